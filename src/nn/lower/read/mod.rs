//! Reads nodes, one operation after another, into values.

mod functions;
mod geometry;
mod layers;
mod quantisation;
mod views;
mod weighted;

use std::rc::Rc;

use visaged_int8::graph::{Binary, Shape};

use super::model::{Fault, ModelError, Node};
use super::{Base, Lowerer, Ref, Stop, Tensor, Value, left};

/// Dimensions and values of a constant.
type Reals = (Vec<usize>, Vec<f64>);

impl<'a> Lowerer<'a, '_> {
    /// Reads one node.
    ///
    /// # Errors
    /// [`Stop::Left`] with the reason where it is not lowered.
    pub(super) fn read(&mut self, at: usize) -> Result<(), Stop> {
        let model = self.model;
        let node = &model.nodes[at];
        if !node.is_standard() {
            return left(format!("operations of the domain {} are not known", node.proto.domain));
        }
        if node.outputs().skip(1).any(|output| self.used.contains(output)) {
            return left("its further outputs are used");
        }
        let Some(output) = node.proto.output.first().filter(|output| !output.is_empty()) else {
            return left("it gives nothing out");
        };
        let value = self.result(node)?;
        self.values.insert(output, value);
        Ok(())
    }

    fn result(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        match node.op() {
            "QuantizeLinear" => self.quantise(node),
            "DequantizeLinear" => self.dequantise(node),
            "Constant" => constant(node),
            "Identity" | "Dropout" => {
                let value = self.input(node, 0)?;
                if matches!(value, Value::Foreign) { left("its input was left") } else { Ok(value) }
            }
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => self.reshape(node),
            "Transpose" => self.transpose(node),
            "Conv" => self.conv(node),
            "ConvTranspose" => self.conv_transpose(node),
            "Gemm" | "MatMul" => self.linear(node),
            "Relu" | "Clip" | "LeakyRelu" | "PRelu" | "Sigmoid" | "Tanh" | "HardSigmoid" | "HardSwish" | "Abs"
            | "Neg" => self.unary(node),
            "Add" => self.binary(node, Binary::Add),
            "Sub" => self.binary(node, Binary::Subtract),
            "Mul" => self.binary(node, Binary::Multiply),
            "Div" => self.divide(node),
            "Concat" => self.concat(node),
            "MaxPool" => self.max_pool(node),
            "AveragePool" => self.average_pool(node),
            "GlobalAveragePool" => self.global_average(node),
            "ReduceMean" => self.reduce_mean(node),
            "Resize" | "Upsample" => self.resize(node),
            "DepthToSpace" => self.depth_to_space(node),
            other => left(format!("{other} is not lowered")),
        }
    }

    fn input(&mut self, node: &'a Node<'a>, i: usize) -> Result<Value, Stop> {
        let name = node.input(i).ok_or_else(|| node.fail(Fault::Input(i)))?;
        Ok(self.value(name)?)
    }

    fn optional(&mut self, node: &'a Node<'a>, i: usize) -> Result<Option<Value>, Stop> {
        node.input(i).map(|name| Ok(self.value(name)?)).transpose()
    }

    /// An input that the int8 engine has, as integers or not.
    fn either(&mut self, node: &'a Node<'a>, i: usize) -> Result<Tensor, Stop> {
        match self.input(node, i)? {
            Value::Tensor(tensor) => Ok(tensor),
            _ => left(format!("its input {i} is not quantised")),
        }
    }

    /// An input that the int8 engine has, as what it stands for.
    fn tensor(&mut self, node: &'a Node<'a>, i: usize) -> Result<Tensor, Stop> {
        let tensor = self.either(node, i)?;
        if tensor.integers.is_some() { left(format!("its input {i} is integers")) } else { Ok(tensor) }
    }

    /// The bytes of a tensor to which nothing is to be done any more.
    fn exact(&self, tensor: &Tensor) -> Option<Ref> {
        let expr = &self.exprs[tensor.expr];
        match expr.base {
            Base::Bytes(bytes) if expr.chain.is_empty() => Some(bytes),
            _ => None,
        }
    }

    /// An input that is quantised, as a picture.
    fn quantised_picture(&mut self, node: &'a Node<'a>, i: usize) -> Result<(Ref, Shape), Stop> {
        let tensor = self.tensor(node, i)?;
        let shape = self.exprs[tensor.expr].shape;
        let Some(bytes) = self.exact(&tensor) else { return left(format!("its input {i} is not quantised")) };
        if tensor.view.is_picture(shape) { Ok((bytes, shape)) } else { left("its input is no picture") }
    }

    fn shape(&self, tensor: &Tensor) -> Shape {
        self.exprs[tensor.expr].shape
    }

    /// A constant input's real values with their dimensions.
    fn reals(&mut self, node: &'a Node<'a>, i: usize) -> Result<Option<Reals>, Stop> {
        Ok(match self.optional(node, i)? {
            Some(Value::Constant(constant)) => {
                constant.floats().map(|floats| (constant.dims.clone(), floats.iter().map(|f| f64::from(*f)).collect()))
            }
            Some(Value::Weights(weights)) => Some((weights.dims.clone(), weights.reals())),
            _ => None,
        })
    }

    /// A constant input's one real value; `default` where the input is not given.
    fn scalar(&mut self, node: &'a Node<'a>, i: usize, default: f32) -> Result<f32, Stop> {
        if node.input(i).is_none() {
            return Ok(default);
        }
        match self.reals(node, i)? {
            Some((_, values)) if values.len() == 1 => Ok(values[0] as f32),
            _ => left(format!("its input {i} is no constant")),
        }
    }

    /// A constant input's integers; `None` where the input is not given.
    fn longs(&mut self, node: &'a Node<'a>, i: usize) -> Result<Option<Vec<i64>>, Stop> {
        match self.optional(node, i)? {
            None => Ok(None),
            Some(Value::Constant(constant)) if constant.longs().is_some() && constant.dims.len() <= 1 => {
                Ok(constant.longs().map(<[i64]>::to_vec))
            }
            Some(_) => left(format!("its input {i} is no constant")),
        }
    }

    /// Axes from an attribute, or from input 1 in later versions.
    fn axes(&mut self, node: &'a Node<'a>, rank: usize) -> Result<Option<Vec<usize>>, Stop> {
        let axes = match node.ints("axes")? {
            Some(axes) => Some(axes.to_vec()),
            None => self.longs(node, 1)?,
        };
        let Some(axes) = axes else { return Ok(None) };
        let mut found = Vec::new();
        for axis in axes.iter().take(9) {
            found.push(axis_of(node, *axis, rank)?);
        }
        found.sort_unstable();
        found.dedup();
        if found.len() == axes.len() { Ok(Some(found)) } else { Err(bad_axes(node, &axes)) }
    }
}

fn axis_of(node: &Node<'_>, axis: i64, rank: usize) -> Result<usize, ModelError> {
    let rank = rank as i64;
    let from_front = if axis < 0 { axis.saturating_add(rank) } else { axis };
    if (0..rank).contains(&from_front) {
        return Ok(from_front as usize);
    }
    Err(node.fail(Fault::Shape(format!("takes axis {axis} of a tensor of {rank} dimensions"))))
}

fn bad_axes(node: &Node<'_>, axes: &[i64]) -> Stop {
    let axes = &axes[..axes.len().min(16)];
    Stop::Bad(node.fail(Fault::Shape(format!("takes the axes {axes:?}, which its input does not have"))))
}

fn constant(node: &Node<'_>) -> Result<Value, Stop> {
    match node.tensor("value")? {
        Some(constant) => Ok(Value::Constant(Rc::new(constant))),
        None => left("a constant that is no tensor"),
    }
}
