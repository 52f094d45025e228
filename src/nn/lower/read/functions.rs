//! Functions of one value and of two.

use std::rc::Rc;

use visaged_int8::graph::{Binary, Shape};

use super::super::function::{Unary, followed, gated};
use super::super::model::{Fault, Node};
use super::super::view::Meeting;
use super::super::{Base, Expr, LONGEST_CHAIN, Lowerer, Stop, Tensor, Value, left};

impl<'a> Lowerer<'a, '_> {
    pub(super) fn unary(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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
    pub(super) fn by_channel(&mut self, node: &'a Node<'a>, tensor: &Tensor, i: usize) -> Result<Vec<f64>, Stop> {
        let Some((dims, values)) = self.reals(node, i)? else { return left(format!("its input {i} is no constant")) };
        match tensor.view.meeting(self.shape(tensor), &dims) {
            Some(Meeting::All | Meeting::Channels) if values.iter().all(|value| value.is_finite()) => Ok(values),
            _ => left(format!("a constant of {dims:?} is neither one value nor one a channel")),
        }
    }

    pub(super) fn push(&mut self, tensor: &Tensor, function: Unary) -> Result<Value, Stop> {
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

    pub(super) fn binary(&mut self, node: &'a Node<'a>, binary: Binary) -> Result<Value, Stop> {
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

    pub(super) fn divide(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let tensor = self.tensor(node, 0)?;
        let divisors = self.by_channel(node, &tensor, 1)?;
        if divisors.contains(&0.0) {
            return left("it divides by 0");
        }
        let factors = divisors.iter().map(|divisor| divisor.recip()).collect();
        self.push(&tensor, Unary::Affine(factors, [0.0].into()))
    }

    pub(super) fn with_constant(
        &mut self,
        node: &'a Node<'a>,
        binary: Binary,
        tensor: &Tensor,
        i: usize,
    ) -> Result<Value, Stop> {
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
    pub(super) fn offset(&mut self, tensor: &Tensor, values: Vec<f64>) -> Result<Value, Stop> {
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

    pub(super) fn two_tensors(&mut self, binary: Binary, a: &Tensor, b: &Tensor) -> Result<Value, Stop> {
        if let Some(gated) = self.gated(binary, a, b) {
            return gated;
        }
        let (from, with) = (self.shape(a), self.shape(b));
        let lone = |shape: Shape| Shape { height: 1, width: 1, ..shape };
        let pictures = a.view.is_picture(from) && b.view.is_picture(with);
        let (a, b) = if (from == with && a.view.meets(&b.view, from)) || (pictures && with == lone(from)) {
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
    pub(super) fn gated(&mut self, binary: Binary, a: &Tensor, b: &Tensor) -> Option<Result<Value, Stop>> {
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
}
