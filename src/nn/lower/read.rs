//! Reads nodes, one operation after another, into values.

use std::rc::Rc;

use visaged_int8::graph::{Binary, DepthOrder, Order, Out, Padding, Pooling, Quant, Shape, Upsampling, Window};

use super::function::{Unary, followed, gated};
use super::model::{Constant, Data, Fault, ModelError, Node};
use super::view::{Meeting, View, count};
use super::{
    Base, Convolution, Expr, ExprId, LONGEST_CHAIN, Lowerer, Pick, Ref, Stop, Tensor, Value, Want, Weights, left,
};

/// Weights of a linear layer on real numbers, at most: tract is faster beyond.
const LARGEST_REAL_LINEAR: usize = 1 << 16;

impl Weights {
    /// What the integers stand for.
    fn reals(&self) -> Vec<f64> {
        let inner: usize = self.dims.iter().skip(self.axis + 1).product::<usize>().max(1);
        let real = |(i, q): (usize, &i32)| {
            let place = (i / inner) % self.scales.len();
            (f64::from(*q) - f64::from(self.zero_points[place])) * f64::from(self.scales[place])
        };
        self.integers.iter().enumerate().map(real).collect()
    }

    /// As signed bytes around 0, where they are.
    fn symmetric(&self) -> Option<Vec<i8>> {
        let inner: usize = self.dims.iter().skip(self.axis + 1).product::<usize>().max(1);
        let zero = |i: usize| self.zero_points[(i / inner) % self.scales.len()];
        self.integers.iter().enumerate().map(|(i, q)| i8::try_from(q.checked_sub(zero(i))?).ok()).collect()
    }

    /// Whether the scales go along this axis, or there is one.
    fn goes_along(&self, axis: usize) -> bool {
        self.scales.len() == 1 || self.axis == axis
    }
}

/// The size of one direction of a window's result.
fn extent(n: usize, kernel: usize, stride: usize, dilation: usize, padding: usize) -> Result<usize, Fault> {
    let reach = (kernel - 1).checked_mul(dilation).and_then(|reach| reach.checked_add(1));
    match (reach, n.checked_add(padding)) {
        (Some(reach), Some(padded)) if reach <= padded => Ok((padded - reach) / stride + 1),
        _ => Err(Fault::Shape(format!(
            "a kernel of {kernel} steps of {dilation} does not fit into {n} and {padding} pixels"
        ))),
    }
}

struct Geometry {
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    padding: Padding,
}

/// Kernel, strides, pads and dilations as ONNX's attributes give them.
fn geometry(node: &Node<'_>, input: Shape, kernel: [usize; 2]) -> Result<Geometry, ModelError> {
    let pair = |name, least| -> Result<[usize; 2], ModelError> {
        let sizes = node.sizes(name, 2, least, 1)?;
        Ok([sizes[0], sizes[1]])
    };
    let (stride, dilation) = (pair("strides", 1)?, pair("dilations", 1)?);
    let pads = node.sizes("pads", 4, 0, 0)?;
    let mut padding = Padding { top: pads[0], left: pads[1], bottom: pads[2], right: pads[3] };
    let auto = node.text("auto_pad", "NOTSET")?;
    match auto {
        "NOTSET" | "" => {}
        "VALID" => padding = Padding::default(),
        "SAME_UPPER" | "SAME_LOWER" => {
            let split = |n: usize, axis: usize| {
                let reach = (kernel[axis] - 1) * dilation[axis] + 1;
                let total = ((n.div_ceil(stride[axis]) - 1) * stride[axis] + reach).saturating_sub(n);
                let small = total / 2;
                if auto == "SAME_UPPER" { (small, total - small) } else { (total - small, small) }
            };
            let ((top, bottom), (left, right)) = (split(input.height, 0), split(input.width, 1));
            padding = Padding { top, left, bottom, right };
        }
        other => return Err(node.fail(Fault::Attribute { name: "auto_pad", value: other.into() })),
    }
    Ok(Geometry { kernel, stride, dilation, padding })
}

impl Geometry {
    fn output(&self, input: Shape, channels: usize) -> Result<Shape, Fault> {
        let Padding { top, left, bottom, right } = self.padding;
        let height = extent(input.height, self.kernel[0], self.stride[0], self.dilation[0], top + bottom)?;
        let width = extent(input.width, self.kernel[1], self.stride[1], self.dilation[1], left + right)?;
        Ok(Shape { height, width, channels })
    }
}

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
    fn reals(&mut self, node: &'a Node<'a>, i: usize) -> Result<Option<(Vec<usize>, Vec<f64>)>, Stop> {
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

    // Quantisation.

    /// Scale and zero-point for activations: one of each.
    fn grid(&mut self, node: &'a Node<'a>, signed: Option<bool>) -> Result<(Quant, bool), Stop> {
        if node.int("block_size", 0)? != 0 {
            return left("scales that go by block are not lowered");
        }
        let Value::Constant(scale) = self.input(node, 1)? else { return left("its scale is no constant") };
        let Some(scales) = scale.floats() else { return left("its scale is no 32-bit float") };
        for scale in scales {
            check_scale(node, *scale)?;
        }
        let [scale] = *scales else {
            return left(format!("{} scales: tensors between layers have one", scales.len()));
        };
        let (zero_point, signed) = match self.optional(node, 2)? {
            None => (0, signed.unwrap_or(false)),
            Some(Value::Constant(zero)) => match zero.data {
                Data::U8(ref values) if values.len() == 1 => (i32::from(values[0]), false),
                Data::I8(ref values) if values.len() == 1 => (i32::from(values[0]), true),
                _ => return left("its zero-point is no byte"),
            },
            Some(_) => return left("its zero-point is no constant"),
        };
        let type_named = node.int("output_dtype", 0)?;
        if node.input(2).is_none() && node.op() == "QuantizeLinear" && !matches!(type_named, 0 | 2) {
            return left("only bytes are lowered");
        }
        // Signed bytes are moved up by 128, and so is their zero-point.
        let byte = zero_point + if signed { 128 } else { 0 };
        let quant = Quant::new(scale, byte as u8).map_err(|refusal| node.fail(Fault::Layer(refusal)))?;
        Ok((quant, signed))
    }

    fn quantise(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        if let Value::Constant(constant) = self.input(node, 0)? {
            return self.quantise_constant(node, &constant);
        }
        let (quant, signed) = self.grid(node, None)?;
        let name = node.input(0).ok_or_else(|| node.fail(Fault::Input(0)))?;
        let made = match self.value(name)? {
            Value::Tensor(tensor) if tensor.integers.is_some() => return left("its input is integers"),
            Value::Tensor(tensor) => match self.make(tensor.expr, Want::Bytes(quant)) {
                Ok(made) => (made, tensor.view),
                Err(Stop::Bad(error)) => return Err(Stop::Bad(error)),
                Err(Stop::Left(reason)) => {
                    // What can be had as real numbers comes back in from outside; what cannot is left.
                    if self.export_or_leave(name, &tensor, reason)? {
                        self.take(name, quant)?
                    } else {
                        return left("its input was left");
                    }
                }
            },
            Value::Foreign => self.take(name, quant)?,
            Value::Weights(_) | Value::Constant(_) => return left("its input is a constant"),
        };
        let (bytes, view) = made;
        let expr = self.bytes(bytes);
        Ok(Value::Tensor(Tensor { expr, view, integers: Some(signed) }))
    }

    /// Sees to it that a tensor exists as real numbers outside, and that its dimensions are known there.
    fn export_or_leave(&mut self, name: &'a str, tensor: &Tensor, reason: String) -> Result<bool, Stop> {
        self.dims.insert(name, Some(tensor.view.dims.clone()));
        if self.foreign.contains_key(name) {
            return Ok(true);
        }
        match self.export(name, tensor) {
            Ok(segment) => {
                self.foreign.insert(name, segment + 1);
                Ok(true)
            }
            Err(Stop::Bad(error)) => Err(Stop::Bad(error)),
            Err(Stop::Left(_)) => {
                let Some(at) = self.producers.get(name).copied() else { return Ok(false) };
                self.leave(at, reason)?;
                Ok(true)
            }
        }
    }

    fn quantise_constant(&mut self, node: &'a Node<'a>, constant: &Constant) -> Result<Value, Stop> {
        let Some(values) = constant.floats() else { return left("its input is no 32-bit float") };
        let (scales, zero_points, axis, signed) = self.scales(node, &constant.dims, None)?;
        let inner: usize = constant.dims.iter().skip(axis + 1).product::<usize>().max(1);
        let (low, high) = if signed { (-128.0, 127.0) } else { (0.0, 255.0) };
        let round = |(i, x): (usize, &f32)| {
            let place = (i / inner) % scales.len();
            let q = (f64::from(*x) / f64::from(scales[place])).round_ties_even() + f64::from(zero_points[place]);
            // NaN becomes the lowest.
            q.max(low).min(high) as i32
        };
        let integers: Vec<i32> = values.iter().enumerate().map(round).collect();
        let data = if signed {
            Data::I8(integers.iter().map(|q| *q as i8).collect())
        } else {
            Data::U8(integers.iter().map(|q| *q as u8).collect())
        };
        Ok(Value::Constant(Rc::new(Constant { dims: constant.dims.clone(), data })))
    }

    /// Scales and zero-points of a constant: one of each, or one a place of an axis.
    fn scales(
        &mut self,
        node: &'a Node<'a>,
        dims: &[usize],
        of: Option<&Data>,
    ) -> Result<(Vec<f32>, Vec<i32>, usize, bool), Stop> {
        if node.int("block_size", 0)? != 0 {
            return left("scales that go by block are not lowered");
        }
        let Value::Constant(scale) = self.input(node, 1)? else { return left("its scale is no constant") };
        let Some(scales) = scale.floats() else { return left("its scale is no 32-bit float") };
        let axis = if scales.len() == 1 { 0 } else { axis_of(node, node.int("axis", 1)?, dims.len())? };
        if scales.len() != 1 && dims[axis] != scales.len() {
            let message = format!("has {} scales for the {} places of axis {axis}", scales.len(), dims[axis]);
            return Err(node.fail(Fault::Shape(message)).into());
        }
        let (zero_points, signed) = match self.optional(node, 2)? {
            None => (vec![0; scales.len()], matches!(of, Some(Data::I8(_) | Data::I32(_)))),
            Some(Value::Constant(zero)) => {
                let signed = matches!(zero.data, Data::I8(_) | Data::I32(_));
                let Some(values) = zero.integers() else { return left("its zero-points are no integers") };
                match values.len() {
                    n if n == scales.len() => (values, signed),
                    1 => (vec![values[0]; scales.len()], signed),
                    n => {
                        let message = format!("has {n} zero-points for {} scales", scales.len());
                        return Err(node.fail(Fault::Shape(message)).into());
                    }
                }
            }
            Some(_) => return left("its zero-point is no constant"),
        };
        Ok((scales.to_vec(), zero_points, axis, signed))
    }

    fn dequantise(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        match self.input(node, 0)? {
            Value::Constant(constant) => {
                let Some(integers) = constant.integers() else { return left("its input is no integers") };
                let (scales, zero_points, axis, _) = self.scales(node, &constant.dims, Some(&constant.data))?;
                for scale in &scales {
                    // Quantisers write 0 for channels whose weights are all 0.
                    if !scale.is_finite() || *scale < 0.0 {
                        return Err(node.fail(Fault::Scale(*scale)).into());
                    }
                }
                let dims = constant.dims.clone();
                Ok(Value::Weights(Rc::new(Weights { dims, integers, scales, zero_points, axis })))
            }
            Value::Tensor(tensor) => {
                let Some(signed) = tensor.integers else { return left("its input is no integers") };
                let (quant, _) = self.grid(node, Some(signed))?;
                let Some(bytes) = self.exact(&tensor) else { return left("its input is not made yet") };
                let same = self.drafts[bytes.segment].builder.out(bytes.tensor) == Out::U8(quant);
                let expr = if same { tensor.expr } else { self.reinterpret(bytes, quant)? };
                Ok(Value::Tensor(Tensor { expr, view: tensor.view, integers: None }))
            }
            Value::Weights(_) | Value::Foreign => {
                // The scale is looked at all the same: a file with a wrong one is wrong.
                if let Value::Constant(scale) = self.input(node, 1)? {
                    for scale in scale.floats().unwrap_or_default() {
                        check_scale(node, *scale)?;
                    }
                }
                left("its integers come from elsewhere")
            }
        }
    }

    // Views.

    fn reshape(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let tensor = self.either(node, 0)?;
        let from = &tensor.view.dims;
        let dims = match node.op() {
            "Flatten" => {
                let axis = node.int("axis", 1)?;
                let rank = from.len() as i64;
                let axis = if axis < 0 { axis + rank } else { axis };
                if !(0..=rank).contains(&axis) {
                    return Err(bad_axes(node, &[axis]));
                }
                let (rows, columns) = from.split_at(axis as usize);
                vec![rows.iter().product(), columns.iter().product()]
            }
            "Reshape" => {
                let attribute = node.ints("shape")?.map(<[i64]>::to_vec);
                let wanted = match attribute {
                    Some(wanted) => wanted,
                    None => self.longs(node, 1)?.ok_or_else(|| node.fail(Fault::Input(1)))?,
                };
                reshaped(node, from, &wanted)?
            }
            "Squeeze" => {
                let axes = self.axes(node, from.len())?;
                let goes = |(i, dim): (usize, &usize)| axes.as_ref().map_or(*dim == 1, |axes| axes.contains(&i));
                if axes.as_ref().is_some_and(|axes| axes.iter().any(|axis| from[*axis] != 1)) {
                    return Err(node.fail(Fault::Shape(format!("takes axes of {from:?} away that are not 1"))).into());
                }
                from.iter().enumerate().filter(|at| !goes(*at)).map(|(_, dim)| *dim).collect()
            }
            _ => {
                let given = match node.ints("axes")? {
                    Some(axes) => axes.len(),
                    None => self.longs(node, 1)?.ok_or_else(|| node.fail(Fault::Input(1)))?.len(),
                };
                let rank = from.len() + given.min(9);
                let axes = self.axes(node, rank)?.unwrap_or_default();
                let mut rest = from.iter();
                (0..rank).map(|i| if axes.contains(&i) { 1 } else { rest.next().copied().unwrap_or(1) }).collect()
            }
        };
        let Some(view) = tensor.view.reshaped(dims.clone()) else {
            let message = format!("{from:?} does not become {dims:?}");
            return Err(node.fail(Fault::Shape(message)).into());
        };
        Ok(Value::Tensor(Tensor { view, ..tensor }))
    }

    fn transpose(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let value = self.input(node, 0)?;
        let rank = match &value {
            Value::Tensor(tensor) => tensor.view.dims.len(),
            Value::Weights(weights) => weights.dims.len(),
            _ => return left("its input is not quantised"),
        };
        let axes = match node.ints("perm")? {
            Some(ints) if ints.len() == rank => {
                ints.iter().map(|axis| axis_of(node, *axis, rank)).collect::<Result<Vec<_>, _>>()?
            }
            Some(ints) => return Err(bad_axes(node, ints)),
            None => (0..rank).rev().collect(),
        };
        match value {
            Value::Tensor(tensor) => match tensor.view.transposed(self.shape(&tensor), &axes) {
                Some(view) => Ok(Value::Tensor(Tensor { view, ..tensor })),
                None => left(format!("{:?} by {axes:?} is neither channels first nor channels last", tensor.view.dims)),
            },
            Value::Weights(weights) if axes == [1, 0] => {
                let [rows, columns] = weights.dims[..] else { return left("only matrices of weights are transposed") };
                let integers =
                    (0..columns).flat_map(|c| (0..rows).map(move |r| r * columns + c)).map(|i| weights.integers[i]);
                let integers = integers.collect();
                let (scales, zero_points) = (weights.scales.clone(), weights.zero_points.clone());
                let axis = if scales.len() == 1 { 0 } else { 1 - weights.axis };
                Ok(Value::Weights(Rc::new(Weights { dims: vec![columns, rows], integers, scales, zero_points, axis })))
            }
            _ => left("only matrices of weights are transposed"),
        }
    }

    // Layers with weights.

    fn weights(&mut self, node: &'a Node<'a>, i: usize) -> Result<(Rc<Weights>, Vec<i8>), Stop> {
        let Value::Weights(weights) = self.input(node, i)? else { return left("its weights are not quantised") };
        match weights.symmetric() {
            Some(bytes) => Ok((weights, bytes)),
            None => left("its weights are not symmetric around 0"),
        }
    }

    fn bias(&mut self, node: &'a Node<'a>, i: usize, channels: usize) -> Result<Vec<f64>, Stop> {
        if node.input(i).is_none() {
            return Ok(Vec::new());
        }
        let Some((dims, bias)) = self.reals(node, i)? else { return left("its bias is no constant") };
        if bias.len() == channels && dims.iter().filter(|dim| **dim != 1).count() <= 1 {
            return Ok(bias);
        }
        if bias.len() == 1 && node.op() == "Gemm" {
            return Ok(vec![bias[0]; channels]);
        }
        Err(node.fail(Fault::Shape(format!("has a bias of {dims:?} for {channels} channels"))).into())
    }

    fn conv(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let (input, from) = self.quantised_picture(node, 0)?;
        let (weights, bytes) = self.weights(node, 1)?;
        let [channels, taken, rows, columns] = weights.dims[..] else {
            return left(format!("weights of {:?}: only two-dimensional convolutions are lowered", weights.dims));
        };
        if !weights.goes_along(0) {
            return left("the scales of its weights do not go by output channel");
        }
        let groups = usize::try_from(node.int("group", 1)?).unwrap_or(0);
        if groups == 0 || taken.checked_mul(groups) != Some(from.channels) || channels == 0 || channels % groups != 0 {
            let message =
                format!("has weights of {:?} in {groups} groups for {} channels", weights.dims, from.channels);
            return Err(node.fail(Fault::Shape(message)).into());
        }
        let kernel = kernel(node, rows, columns)?;
        let geometry = geometry(node, from, kernel)?;
        let shape = geometry.output(from, channels).map_err(|fault| node.fail(fault))?;
        let bias = self.bias(node, 2, channels)?;
        let conv = Convolution {
            transposed: false,
            kernel: kernel.into(),
            stride: geometry.stride.into(),
            dilation: geometry.dilation.into(),
            padding: geometry.padding,
            groups,
            channels,
            weights: bytes,
            scales: weights.scales.clone(),
        };
        let base = Base::Conv { input, conv: Rc::new(conv), bias: bias.into() };
        let expr = self.base(base, shape, input.segment, 0)?;
        Ok(Value::Tensor(Tensor { expr, view: View::picture(shape), integers: None }))
    }

    fn conv_transpose(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let (input, from) = self.quantised_picture(node, 0)?;
        let (weights, bytes) = self.weights(node, 1)?;
        let [taken, channels, rows, columns] = weights.dims[..] else {
            return left(format!("weights of {:?}: only two-dimensional convolutions are lowered", weights.dims));
        };
        if node.int("group", 1)? != 1 || node.sizes("dilations", 2, 1, 1)? != [1, 1] {
            return left("transposed convolutions in groups or with dilation are not lowered");
        }
        if node.has("output_shape") || !matches!(node.text("auto_pad", "NOTSET")?, "NOTSET" | "VALID" | "") {
            return left("transposed convolutions are lowered only where their pads are given");
        }
        if !weights.goes_along(1) {
            return left("the scales of its weights do not go by output channel");
        }
        if taken != from.channels || channels == 0 {
            let message = format!("has weights of {:?} for {} channels", weights.dims, from.channels);
            return Err(node.fail(Fault::Shape(message)).into());
        }
        let kernel = kernel(node, rows, columns)?;
        let stride = node.sizes("strides", 2, 1, 1)?;
        let mut pads =
            if node.text("auto_pad", "NOTSET")? == "VALID" { vec![0; 4] } else { node.sizes("pads", 4, 0, 0)? };
        let extra = node.sizes("output_padding", 2, 0, 0)?;
        for axis in 0..2 {
            // More output at the end is less of it cut off.
            let Some(less) = pads[2 + axis].checked_sub(extra[axis]) else {
                return left("its output goes beyond what its kernel reaches");
            };
            pads[2 + axis] = less;
        }
        let extent = |n: usize, axis: usize| {
            let full = (n - 1).checked_mul(stride[axis]).and_then(|full| full.checked_add(kernel[axis]));
            full.and_then(|full| full.checked_sub(pads[axis] + pads[2 + axis])).filter(|left| *left > 0)
        };
        let (Some(height), Some(width)) = (extent(from.height, 0), extent(from.width, 1)) else {
            return Err(node.fail(Fault::Shape(format!("pads of {pads:?} leave nothing"))).into());
        };
        let shape = Shape { height, width, channels };
        let bias = self.bias(node, 2, channels)?;
        let conv = Convolution {
            transposed: true,
            kernel: kernel.into(),
            stride: (stride[0], stride[1]),
            dilation: (1, 1),
            padding: Padding { top: pads[0], left: pads[1], bottom: pads[2], right: pads[3] },
            groups: 1,
            channels,
            weights: bytes,
            scales: weights.scales.clone(),
        };
        let base = Base::Conv { input, conv: Rc::new(conv), bias: bias.into() };
        let expr = self.base(base, shape, input.segment, 0)?;
        Ok(Value::Tensor(Tensor { expr, view: View::picture(shape), integers: None }))
    }

    /// Gemm and MatMul.
    fn linear(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let tensor = self.tensor(node, 0)?;
        let gemm = node.op() == "Gemm";
        let across = gemm && node.int("transB", 0)? != 0;
        if gemm && node.int("transA", 0)? != 0 {
            return left("a transposed first factor is not lowered");
        }
        let (alpha, beta) = if gemm { (node.float("alpha", 1.0)?, node.float("beta", 1.0)?) } else { (1.0, 1.0) };
        if alpha != 1.0 || beta != 1.0 {
            return left("factors of a Gemm other than 1 are not lowered");
        }
        let dims = match self.input(node, 1)? {
            Value::Weights(weights) => weights.dims.clone(),
            Value::Constant(constant) => constant.dims.clone(),
            _ => return left("its second factor is no constant"),
        };
        let [a, b] = dims[..] else { return left("its second factor is no matrix") };
        let (taken, channels) = if across { (b, a) } else { (a, b) };
        let last = tensor.view.dims.last().copied().unwrap_or(0);
        if last != taken || channels == 0 || tensor.view.dims.len() < 2 || (gemm && tensor.view.dims.len() != 2) {
            let message = format!("{:?} times {dims:?} is no product of matrices", tensor.view.dims);
            return Err(node.fail(Fault::Shape(message)).into());
        }
        let quantised = matches!(self.input(node, 1)?, Value::Weights(_));
        match self.exact(&tensor) {
            Some(bytes) if quantised => self.quantised_linear(node, &tensor, bytes, (taken, channels), across),
            _ => self.real_linear(node, &tensor, (taken, channels), across),
        }
    }

    fn quantised_linear(
        &mut self,
        node: &'a Node<'a>,
        tensor: &Tensor,
        input: Ref,
        (taken, channels): (usize, usize),
        across: bool,
    ) -> Result<Value, Stop> {
        let (weights, bytes) = self.weights(node, 1)?;
        if !weights.goes_along(usize::from(!across)) {
            return left("the scales of its weights do not go by output");
        }
        let from = self.shape(tensor);
        let pixels = from.height * from.width;
        let rows: usize = tensor.view.dims[..tensor.view.dims.len() - 1].iter().product();
        let first = tensor.view.is(from, Order::ChannelsFirst);
        // Pixel by pixel, or the picture as one vector.
        let (kernel, shape) = if taken == from.channels && rows == pixels && tensor.view.is(from, Order::ChannelsLast) {
            ((1, 1), Shape { channels, ..from })
        } else if rows == 1 {
            ((from.height, from.width), Shape { height: 1, width: 1, channels })
        } else {
            return left("its rows are no pixels");
        };
        // `[output][input channel][row][column]` out of a matrix either way, whose inputs come in the view's order.
        let area = kernel.0 * kernel.1;
        let at = |output: usize, channel: usize, pixel: usize| {
            let input = if first { channel * area + pixel } else { pixel * from.channels + channel };
            if across { output * taken + input } else { input * channels + output }
        };
        let mut ordered = Vec::with_capacity(bytes.len());
        for output in 0..channels {
            for channel in 0..from.channels {
                ordered.extend((0..area).map(|pixel| bytes[at(output, channel, pixel)]));
            }
        }
        let bias = if node.op() == "Gemm" { self.bias(node, 2, channels)? } else { Vec::new() };
        let conv = Convolution {
            transposed: false,
            kernel,
            stride: (1, 1),
            dilation: (1, 1),
            padding: Padding::default(),
            groups: 1,
            channels,
            weights: ordered,
            scales: weights.scales.clone(),
        };
        let base = Base::Conv { input, conv: Rc::new(conv), bias: bias.into() };
        let expr = self.base(base, shape, input.segment, 0)?;
        let mut dims = tensor.view.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = channels;
        }
        Ok(Value::Tensor(Tensor { expr, view: View { dims, order: Order::ChannelsLast }, integers: None }))
    }

    fn real_linear(
        &mut self,
        node: &'a Node<'a>,
        tensor: &Tensor,
        (taken, channels): (usize, usize),
        across: bool,
    ) -> Result<Value, Stop> {
        let from = self.shape(tensor);
        if from.height * from.width != 1 || taken != from.channels {
            return left("only vectors of real numbers go through a linear layer that is not quantised");
        }
        if taken.saturating_mul(channels) > LARGEST_REAL_LINEAR {
            return left("a linear layer on real numbers of this size");
        }
        let Some((_, values)) = self.reals(node, 1)? else { return left("its weights are no constants") };
        let at = |output: usize, input: usize| if across { output * taken + input } else { input * channels + output };
        let weights: Rc<[f32]> =
            (0..channels).flat_map(|o| (0..taken).map(move |i| (o, i))).map(|(o, i)| values[at(o, i)] as f32).collect();
        let mut bias = if node.op() == "Gemm" { self.bias(node, 2, channels)? } else { Vec::new() };
        bias.resize(channels, 0.0);
        let bias = bias.into_iter().map(|b| b as f32).collect();
        let (segment, height) = (self.exprs[tensor.expr].segment, self.exprs[tensor.expr].height + 1);
        let base = Base::Linear { input: tensor.expr, weights, bias };
        let expr = self.base(base, Shape { height: 1, width: 1, channels }, segment, height)?;
        let mut dims = tensor.view.dims.clone();
        if let Some(last) = dims.last_mut() {
            *last = channels;
        }
        Ok(Value::Tensor(Tensor { expr, view: View { dims, order: Order::ChannelsFirst }, integers: None }))
    }

    // Functions of one value.

    fn unary(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let tensor = self.tensor(node, 0)?;
        let function = match node.op() {
            "Relu" => Unary::Clip(0.0, f32::INFINITY),
            "Clip" => {
                let (low, high) = (node.float("min", f32::NEG_INFINITY)?, node.float("max", f32::INFINITY)?);
                let (low, high) = (self.scalar(node, 1, low)?, self.scalar(node, 2, high)?);
                if low > high || low.is_nan() || high.is_nan() {
                    return Err(node.fail(Fault::Shape(format!("clips from {low} to {high}"))).into());
                }
                Unary::Clip(low, high)
            }
            "LeakyRelu" => Unary::Slope([node.float("alpha", 0.01)?].into()),
            "PRelu" => Unary::Slope(self.by_channel(node, &tensor, 1)?.iter().map(|slope| *slope as f32).collect()),
            "Sigmoid" => Unary::Sigmoid,
            "Tanh" => Unary::Tanh,
            "HardSigmoid" => Unary::HardSigmoid(node.float("alpha", 0.2)?, node.float("beta", 0.5)?),
            "HardSwish" => Unary::HardSwish,
            "Abs" => Unary::Absolute,
            _ => Unary::Affine([-1.0].into(), [0.0].into()),
        };
        self.push(&tensor, function)
    }

    /// A constant input that holds one value, or one a channel.
    fn by_channel(&mut self, node: &'a Node<'a>, tensor: &Tensor, i: usize) -> Result<Vec<f64>, Stop> {
        let Some((dims, values)) = self.reals(node, i)? else { return left(format!("its input {i} is no constant")) };
        match tensor.view.meeting(self.shape(tensor), &dims) {
            Some(Meeting::All | Meeting::Channels) if values.iter().all(|value| value.is_finite()) => Ok(values),
            _ => left(format!("a constant of {dims:?} is neither one value nor one a channel")),
        }
    }

    fn push(&mut self, tensor: &Tensor, function: Unary) -> Result<Value, Stop> {
        let from = Rc::clone(&self.exprs[tensor.expr]);
        let chain = followed(&from.chain, function);
        if chain.iter().map(Unary::len).sum::<usize>() > LONGEST_CHAIN {
            return left(format!("more than {LONGEST_CHAIN} functions in a row"));
        }
        let mut nodes = from.nodes.clone();
        nodes.push(self.current);
        let expr = self.add(Expr { chain, nodes, ..Expr::clone(&from) })?;
        Ok(Value::Tensor(Tensor { expr, view: tensor.view.clone(), integers: None }))
    }

    // Functions of two values.

    fn binary(&mut self, node: &'a Node<'a>, binary: Binary) -> Result<Value, Stop> {
        match (self.input(node, 0)?, self.input(node, 1)?) {
            (Value::Tensor(a), Value::Tensor(b)) if a.integers.is_none() && b.integers.is_none() => {
                self.two_tensors(binary, &a, &b)
            }
            (Value::Tensor(tensor), Value::Constant(_) | Value::Weights(_)) if tensor.integers.is_none() => {
                self.with_constant(node, binary, &tensor, 1)
            }
            (Value::Constant(_) | Value::Weights(_), Value::Tensor(tensor)) if tensor.integers.is_none() => {
                self.with_constant(node, binary, &tensor, 0)
            }
            _ => left("its inputs are not quantised"),
        }
    }

    fn divide(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let tensor = self.tensor(node, 0)?;
        let divisors = self.by_channel(node, &tensor, 1)?;
        if divisors.contains(&0.0) {
            return left("it divides by 0");
        }
        let factors = divisors.iter().map(|divisor| divisor.recip()).collect();
        self.push(&tensor, Unary::Affine(factors, [0.0].into()))
    }

    fn with_constant(&mut self, node: &'a Node<'a>, binary: Binary, tensor: &Tensor, i: usize) -> Result<Value, Stop> {
        let shape = self.shape(tensor);
        let Some((dims, values)) = self.reals(node, i)? else { return left("its constant is no 32-bit float") };
        if tensor.view.meeting(shape, &dims) == Some(Meeting::Pixels) && binary == Binary::Multiply {
            return self.push(tensor, Unary::PixelWeights(values.iter().map(|value| *value as f32).collect()));
        }
        let values = self.by_channel(node, tensor, i)?;
        match binary {
            Binary::Multiply => self.push(tensor, Unary::Affine(values.into(), [0.0].into())),
            Binary::Add => self.offset(tensor, values),
            Binary::Subtract if i == 1 => self.offset(tensor, values.iter().map(|value| -value).collect()),
            Binary::Subtract => self.push(tensor, Unary::Affine([-1.0].into(), values.into())),
        }
    }

    /// An offset: into the bias where it can go there.
    fn offset(&mut self, tensor: &Tensor, values: Vec<f64>) -> Result<Value, Stop> {
        let from = Rc::clone(&self.exprs[tensor.expr]);
        let Base::Conv { input, conv, bias } = &from.base else {
            return self.push(tensor, Unary::Affine([1.0].into(), values.into()));
        };
        if !from.chain.is_empty() {
            return self.push(tensor, Unary::Affine([1.0].into(), values.into()));
        }
        let old = |channel: usize| if bias.is_empty() { 0.0 } else { bias[channel] };
        let new = (0..conv.channels).map(|channel| old(channel) + values[channel % values.len()]).collect();
        let base = Base::Conv { input: *input, conv: Rc::clone(conv), bias: new };
        let mut nodes = from.nodes.clone();
        nodes.push(self.current);
        let root = self.exprs.len();
        let expr = self.add(Expr { base, nodes, root, ..Expr::clone(&from) })?;
        Ok(Value::Tensor(Tensor { expr, view: tensor.view.clone(), integers: None }))
    }

    fn two_tensors(&mut self, binary: Binary, a: &Tensor, b: &Tensor) -> Result<Value, Stop> {
        if let Some(gated) = self.gated(binary, a, b) {
            return gated;
        }
        let (from, with) = (self.shape(a), self.shape(b));
        let lone = |shape: Shape| Shape { height: 1, width: 1, ..shape };
        let pictures = a.view.is_picture(from) && b.view.is_picture(with);
        let (a, b) = if from == with && a.view.meets(&b.view, from) {
            (a, b)
        } else if pictures && with == lone(from) {
            (a, b)
        } else if pictures && from == lone(with) && binary != Binary::Subtract {
            (b, a)
        } else {
            return left(format!("{:?} and {:?} do not meet value by value", a.view.dims, b.view.dims));
        };
        let (Some(first), Some(second)) = (self.exact(a), self.exact(b)) else {
            return left("its inputs are not quantised");
        };
        let segment = first.segment.max(second.segment);
        let base = Base::Binary { binary, a: first, b: second };
        let expr = self.base(base, self.shape(a), segment, 0)?;
        Ok(Value::Tensor(Tensor { expr, view: a.view.clone(), integers: None }))
    }

    /// A value times a function of the same value: hard swish, swish, squares.
    fn gated(&mut self, binary: Binary, a: &Tensor, b: &Tensor) -> Option<Result<Value, Stop>> {
        let (x, y) = (Rc::clone(&self.exprs[a.expr]), Rc::clone(&self.exprs[b.expr]));
        if binary != Binary::Multiply || x.root != y.root || !a.view.meets(&b.view, x.shape) {
            return None;
        }
        let (value, gate) = match (y.chain.strip_prefix(&x.chain[..]), x.chain.strip_prefix(&y.chain[..])) {
            (Some(gate), _) => (a, gated(gate)),
            (None, Some(gate)) => (b, gated(gate)),
            (None, None) => return None,
        };
        let pushed = self.push(value, gate);
        let Ok(Value::Tensor(tensor)) = &pushed else { return Some(pushed) };
        // The gate's own nodes are in it too.
        let mut expr = Expr::clone(&self.exprs[tensor.expr]);
        expr.nodes.extend(x.nodes.iter().chain(&y.nodes));
        expr.nodes.sort_unstable();
        expr.nodes.dedup();
        self.exprs[tensor.expr] = Rc::new(expr);
        Some(pushed)
    }

    // Layers without weights.

    fn concat(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let mut inputs = Vec::new();
        for i in 0..node.proto.input.len() {
            inputs.push(self.either(node, i)?);
        }
        let Some(first) = inputs.first().cloned() else { return Err(node.fail(Fault::Input(0)).into()) };
        let axis = axis_of(node, node.int("axis", 1)?, first.view.dims.len())?;
        if inputs.iter().any(|input| input.integers != first.integers) {
            return left("integers and what they stand for, or signed and unsigned ones, are joined");
        }
        let order = self.joined_order(&inputs, axis)?;
        let mut dims = first.view.dims.clone();
        let mut shape = Shape { channels: 0, ..self.shape(&first) };
        dims[axis] = 0;
        for input in &inputs {
            let next = self.shape(input);
            let mut others = input.view.dims.clone();
            others[axis] = 0;
            let mut known = dims.clone();
            known[axis] = 0;
            if others != known || (next.height, next.width) != (shape.height, shape.width) {
                let message = format!("joins {:?} and {:?} along axis {axis}", first.view.dims, input.view.dims);
                return Err(node.fail(Fault::Shape(message)).into());
            }
            dims[axis] += input.view.dims[axis];
            shape.channels += next.channels;
        }
        let view = View { dims, order };
        let exprs: Rc<[ExprId]> = inputs.iter().map(|input| input.expr).collect();
        let segment = exprs.iter().map(|id| self.exprs[*id].segment).max().unwrap_or(0);
        let height = exprs.iter().map(|id| self.exprs[*id].height).max().unwrap_or(0) + 1;
        let grid = self.common_grid(&inputs);
        let expr = self.base(Base::Concat(exprs), shape, segment, height)?;
        let expr = match grid {
            // Joined as they are.
            Some(quant) => {
                let made = self.make(expr, Want::Bytes(quant))?;
                self.bytes(made)
            }
            None if first.integers.is_some() => return left("integers on several grids are joined"),
            None => expr,
        };
        Ok(Value::Tensor(Tensor { expr, view, integers: first.integers }))
    }

    /// The order of joined tensors, where `axis` is their channels.
    fn joined_order(&self, inputs: &[Tensor], axis: usize) -> Result<Order, Stop> {
        let rank = inputs[0].view.dims.len();
        if inputs.iter().any(|input| input.view.dims.len() != rank) {
            return left("tensors of different ranks are joined");
        }
        let all = |test: &dyn Fn(&Tensor, Shape) -> bool| inputs.iter().all(|input| test(input, self.shape(input)));
        if axis == 1 && all(&|input, shape| input.view.is_picture(shape)) {
            return Ok(Order::ChannelsFirst);
        }
        let last = |input: &Tensor, shape: Shape| {
            input.view.dims[axis] == shape.channels && input.view.is(shape, Order::ChannelsLast)
        };
        if axis + 1 == rank && all(&last) {
            return Ok(Order::ChannelsLast);
        }
        let vector =
            |input: &Tensor, shape: Shape| shape.height * shape.width == 1 && input.view.dims[axis] == shape.channels;
        if all(&vector) {
            Ok(Order::ChannelsFirst)
        } else {
            left("tensors are joined along another axis than channels")
        }
    }

    /// The grid that all of these quantised tensors are on.
    fn common_grid(&self, inputs: &[Tensor]) -> Option<Quant> {
        let grid = |tensor: &Tensor| {
            let bytes = self.exact(tensor)?;
            match self.drafts[bytes.segment].builder.out(bytes.tensor) {
                Out::U8(quant) => Some(quant),
                Out::F32 => None,
            }
        };
        let first = grid(inputs.first()?)?;
        inputs.iter().all(|input| grid(input) == Some(first)).then_some(first)
    }

    fn max_pool(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let (tensor, shape) = self.picture_to_pick(node)?;
        let (window, output) = window(node, shape)?;
        if node.int("storage_order", 0)? != 0 || node.sizes("dilations", 2, 1, 1)? != [1, 1] {
            return left("dilated pooling is not lowered");
        }
        self.pick(&tensor, Pick::Max(window), output)
    }

    fn picture_to_pick(&mut self, node: &'a Node<'a>) -> Result<(Tensor, Shape), Stop> {
        let tensor = self.either(node, 0)?;
        let shape = self.shape(&tensor);
        if tensor.view.is_picture(shape) { Ok((tensor, shape)) } else { left("its input is no picture") }
    }

    fn pick(&mut self, tensor: &Tensor, pick: Pick, shape: Shape) -> Result<Value, Stop> {
        let view = View::picture(shape);
        let expr = match self.exact(tensor) {
            Some(bytes) => self.pick_bytes(bytes, pick)?,
            None => {
                let (segment, height) = (self.exprs[tensor.expr].segment, self.exprs[tensor.expr].height + 1);
                self.base(Base::Pick { input: tensor.expr, pick }, shape, segment, height)?
            }
        };
        Ok(Value::Tensor(Tensor { expr, view, integers: tensor.integers }))
    }

    fn average_pool(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let (input, from) = self.quantised_picture(node, 0)?;
        let (window, shape) = window(node, from)?;
        if node.sizes("dilations", 2, 1, 1)? != [1, 1] {
            return left("dilated pooling is not lowered");
        }
        let padded = node.int("count_include_pad", 0)? != 0;
        let pooling = if padded { Pooling::AveragePadded } else { Pooling::Average };
        self.average(input, pooling, window, shape, View::picture(shape))
    }

    fn average(
        &mut self,
        input: Ref,
        pooling: Pooling,
        window: Window,
        shape: Shape,
        view: View,
    ) -> Result<Value, Stop> {
        let expr = self.base(Base::Average { input, pooling, window }, shape, input.segment, 0)?;
        Ok(Value::Tensor(Tensor { expr, view, integers: None }))
    }

    fn global_average(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let (input, from) = self.quantised_picture(node, 0)?;
        let shape = Shape { height: 1, width: 1, channels: from.channels };
        self.average(input, Pooling::Average, whole(from), shape, View::picture(shape))
    }

    fn reduce_mean(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let tensor = self.tensor(node, 0)?;
        let rank = tensor.view.dims.len();
        let axes = match self.axes(node, rank)? {
            Some(axes) if !axes.is_empty() => axes,
            _ if node.int("noop_with_empty_axes", 0)? != 0 => return Ok(Value::Tensor(tensor)),
            _ => (0..rank).collect(),
        };
        let keep = node.int("keepdims", 1)? != 0;
        let reduced = |(i, dim): (usize, &usize)| match (axes.contains(&i), keep) {
            (true, true) => Some(1),
            (true, false) => None,
            (false, _) => Some(*dim),
        };
        let dims: Vec<usize> = tensor.view.dims.iter().enumerate().filter_map(reduced).collect();
        let view = View { dims, order: Order::ChannelsFirst };
        let from = Rc::clone(&self.exprs[tensor.expr]);
        let lone = Shape { height: 1, width: 1, channels: from.shape.channels };
        if let Base::Mean { a, b, weights, whole: false } = &from.base
            && from.chain.is_empty()
        {
            // The pixels are done, the channels are left.
            if count(&view.dims) != Some(1) {
                return left("a mean over some of the channels");
            }
            let base = Base::Mean { a: *a, b: *b, weights: Rc::clone(weights), whole: true };
            return self.mean(base, Shape { channels: 1, ..lone }, view, &from);
        }
        if !tensor.view.is_picture(from.shape) {
            return left("its input is no picture");
        }
        let over_pixels = axes.contains(&2) && axes.contains(&3);
        let over_channels = axes.contains(&1) || from.shape.channels == 1;
        if !over_pixels {
            return left("a mean over something else than all pixels");
        }
        if let Some((a, b, weights)) = absolute(&from) {
            let shape = if over_channels { Shape { channels: 1, ..lone } } else { lone };
            return self.mean(Base::Mean { a, b, weights, whole: over_channels }, shape, view, &from);
        }
        match self.exact(&tensor) {
            Some(input) if !axes.contains(&1) => self.average(input, Pooling::Average, whole(from.shape), lone, view),
            Some(_) => left("a mean over pixels and channels"),
            None => left("its input is not quantised"),
        }
    }

    fn mean(&mut self, base: Base, shape: Shape, view: View, from: &Expr) -> Result<Value, Stop> {
        let expr = self.base(base, shape, from.segment, 0)?;
        let mut with = Expr::clone(&self.exprs[expr]);
        with.nodes.extend(&from.nodes);
        self.exprs[expr] = Rc::new(with);
        Ok(Value::Tensor(Tensor { expr, view, integers: None }))
    }

    fn resize(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let (tensor, from) = self.picture_to_pick(node)?;
        if !self.doubles(node, from)? {
            return left("only upsampling to twice the size is lowered");
        }
        let shape = Shape { height: from.height * 2, width: from.width * 2, channels: from.channels };
        let transformation = match node.op() {
            "Upsample" => "asymmetric",
            _ if self.model.opset == 10 => "asymmetric",
            _ => node.text("coordinate_transformation_mode", "half_pixel")?,
        };
        let nearest_mode = if node.op() == "Upsample" || self.model.opset == 10 {
            "floor"
        } else {
            node.text("nearest_mode", "round_prefer_floor")?
        };
        match (node.text("mode", "nearest")?, transformation, nearest_mode) {
            ("nearest", "asymmetric", "floor" | "round_prefer_floor")
            | ("nearest", "half_pixel" | "pytorch_half_pixel", "round_prefer_floor" | "round_prefer_ceil") => {
                self.pick(&tensor, Pick::Nearest, shape)
            }
            ("linear" | "bilinear", transformation, _) => {
                let upsampling = match transformation {
                    "half_pixel" => Upsampling::BilinearHalfPixel,
                    "pytorch_half_pixel" => Upsampling::BilinearHalfPixel,
                    "asymmetric" => Upsampling::BilinearAsymmetric,
                    "align_corners" => Upsampling::BilinearAlignCorners,
                    other => return left(format!("{other} is not lowered")),
                };
                if node.int("antialias", 0)? != 0 {
                    return left("antialiasing is not lowered");
                }
                let Some(input) = self.exact(&tensor).filter(|_| tensor.integers.is_none()) else {
                    return left("its input is not quantised");
                };
                let expr = self.base(Base::Bilinear { input, upsampling }, shape, input.segment, 0)?;
                Ok(Value::Tensor(Tensor { expr, view: View::picture(shape), integers: None }))
            }
            (mode, transformation, nearest) => left(format!("{mode}, {transformation}, {nearest} is not lowered")),
        }
    }

    /// Whether scales or sizes make it twice as high and wide.
    fn doubles(&mut self, node: &'a Node<'a>, from: Shape) -> Result<bool, Stop> {
        if node.has("axes") {
            return Ok(false);
        }
        let at = if node.op() == "Upsample" || self.model.opset == 10 { 1 } else { 2 };
        let written = node.has("scales");
        if written || node.input(at).is_some() {
            let scales = match self.reals(node, at)? {
                Some((_, scales)) => scales,
                None => return left("its scales are no constants"),
            };
            // Empty scales mean that the sizes count.
            if !scales.is_empty() {
                return Ok(scales == [1.0, 1.0, 2.0, 2.0]);
            }
        }
        let sizes = self.longs(node, 3)?.unwrap_or_default();
        let wanted = [1, from.channels, from.height * 2, from.width * 2];
        Ok(sizes.len() == 4 && sizes.iter().zip(wanted).all(|(size, wanted)| usize::try_from(*size) == Ok(wanted)))
    }

    fn depth_to_space(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let (tensor, from) = self.picture_to_pick(node)?;
        let block = usize::try_from(node.int("blocksize", 0)?).unwrap_or(0);
        let parts = block.checked_mul(block).filter(|parts| *parts > 0 && from.channels % parts == 0);
        let Some(parts) = parts else {
            let message = format!("{} channels do not make squares of {block} by {block}", from.channels);
            return Err(node.fail(Fault::Shape(message)).into());
        };
        let order = match node.text("mode", "DCR")? {
            "DCR" => DepthOrder::BlockFirst,
            "CRD" => DepthOrder::ChannelFirst,
            other => return Err(node.fail(Fault::Attribute { name: "mode", value: other.into() }).into()),
        };
        let shape = Shape { height: from.height * block, width: from.width * block, channels: from.channels / parts };
        self.pick(&tensor, Pick::DepthToSpace(block, order), shape)
    }
}

/// What a mean of absolute values is taken of: `weight * |a - b|`.
fn absolute(expr: &Expr) -> Option<(Ref, Option<Ref>, Rc<[f32]>)> {
    let weights = match &expr.chain[..] {
        [Unary::Absolute] => Rc::from([]),
        [Unary::Absolute, Unary::PixelWeights(weights)] => Rc::clone(weights),
        _ => return None,
    };
    match expr.base {
        Base::Bytes(bytes) => Some((bytes, None, weights)),
        Base::Binary { binary: Binary::Subtract, a, b } => Some((a, Some(b), weights)),
        _ => None,
    }
}

fn whole(shape: Shape) -> Window {
    Window { kernel: (shape.height, shape.width), stride: (1, 1), padding: Padding::default() }
}

fn check_scale(node: &Node<'_>, scale: f32) -> Result<(), ModelError> {
    if scale > 0.0 && scale.is_finite() { Ok(()) } else { Err(node.fail(Fault::Scale(scale))) }
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

/// The kernel as the weights have it; the attribute, where it is there, says the same.
fn kernel(node: &Node<'_>, rows: usize, columns: usize) -> Result<[usize; 2], ModelError> {
    let given = node.ints("kernel_shape")?;
    let same = given.is_none_or(|sizes| {
        sizes.len() == 2 && sizes.iter().zip([rows, columns]).all(|(size, n)| usize::try_from(*size) == Ok(n))
    });
    if rows == 0 || columns == 0 || rows > 1 << 20 || columns > 1 << 20 || !same {
        let message = format!("has a kernel_shape other than its weights' {rows} by {columns}");
        return Err(node.fail(Fault::Shape(message)));
    }
    Ok([rows, columns])
}

/// A pooling window and the shape of its result.
fn window(node: &Node<'_>, from: Shape) -> Result<(Window, Shape), Stop> {
    let Some(sizes) = node.ints("kernel_shape")? else {
        return Err(node.fail(Fault::Attribute { name: "kernel_shape", value: "missing".into() }).into());
    };
    if sizes.len() != 2 {
        return left("only pictures are pooled");
    }
    let sizes = node.sizes("kernel_shape", 2, 1, 1)?;
    let geometry = geometry(node, from, [sizes[0], sizes[1]])?;
    let shape = geometry.output(from, from.channels).map_err(|fault| node.fail(fault))?;
    let Geometry { kernel, stride, padding, .. } = geometry;
    let exact = |n: usize, axis: usize, pads: usize| (n + pads - kernel[axis]) % stride[axis] == 0;
    let (vertical, horizontal) = (padding.top + padding.bottom, padding.left + padding.right);
    if node.int("ceil_mode", 0)? != 0 && !(exact(from.height, 0, vertical) && exact(from.width, 1, horizontal)) {
        return left("a window that reaches beyond the picture is not lowered");
    }
    Ok((Window { kernel: kernel.into(), stride: stride.into(), padding }, shape))
}

/// The dimensions that a Reshape asks for: 0 keeps one, -1 is what is left.
fn reshaped(node: &Node<'_>, from: &[usize], wanted: &[i64]) -> Result<Vec<usize>, Stop> {
    let refuse =
        || Stop::Bad(node.fail(Fault::Shape(format!("{from:?} does not become {:?}", &wanted[..wanted.len().min(9)]))));
    if wanted.len() > 8 {
        return Err(refuse());
    }
    let zero_is_zero = node.int("allowzero", 0)? != 0;
    let mut dims = Vec::with_capacity(wanted.len());
    let mut open = None;
    for (i, size) in wanted.iter().enumerate() {
        let dim = match *size {
            -1 if open.is_none() => {
                open = Some(i);
                1
            }
            0 if !zero_is_zero => *from.get(i).ok_or_else(refuse)?,
            size => usize::try_from(size).map_err(|_| refuse())?,
        };
        dims.push(dim);
    }
    if let Some(open) = open {
        let all = count(from).ok_or_else(refuse)?;
        let rest = count(&dims).filter(|rest| *rest > 0 && all % rest == 0).ok_or_else(refuse)?;
        dims[open] = all / rest;
    }
    Ok(dims)
}
