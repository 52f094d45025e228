//! QuantizeLinear and DequantizeLinear: grids of activations, constants as integers and what they stand for.

use std::rc::Rc;

use visaged_int8::graph::{Out, Quant};

use super::super::model::{Constant, Data, Fault, ModelError, Node};
use super::super::{Lowerer, Stop, Tensor, Value, Want, Weights, left};
use super::axis_of;

impl Weights {
    /// What the integers stand for.
    pub(super) fn reals(&self) -> Vec<f64> {
        let inner: usize = self.dims.iter().skip(self.axis + 1).product::<usize>().max(1);
        let real = |(i, q): (usize, &i32)| {
            let place = (i / inner) % self.scales.len();
            (f64::from(*q) - f64::from(self.zero_points[place])) * f64::from(self.scales[place])
        };
        self.integers.iter().enumerate().map(real).collect()
    }

    /// As signed bytes around 0, where they are.
    pub(super) fn symmetric(&self) -> Option<Vec<i8>> {
        let inner: usize = self.dims.iter().skip(self.axis + 1).product::<usize>().max(1);
        let zero = |i: usize| self.zero_points[(i / inner) % self.scales.len()];
        self.integers.iter().enumerate().map(|(i, q)| i8::try_from(q.checked_sub(zero(i))?).ok()).collect()
    }

    /// Whether the scales go along this axis, or there is one.
    pub(super) fn goes_along(&self, axis: usize) -> bool {
        self.scales.len() == 1 || self.axis == axis
    }
}

impl<'a> Lowerer<'a, '_> {
    /// Scale and zero-point for activations: one of each.
    pub(super) fn grid(&mut self, node: &'a Node<'a>, signed: Option<bool>) -> Result<(Quant, bool), Stop> {
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

    pub(super) fn quantise(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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
    pub(super) fn export_or_leave(&mut self, name: &'a str, tensor: &Tensor, reason: String) -> Result<bool, Stop> {
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

    pub(super) fn quantise_constant(&mut self, node: &'a Node<'a>, constant: &Constant) -> Result<Value, Stop> {
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
    pub(super) fn scales(
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

    pub(super) fn dequantise(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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
}

fn check_scale(node: &Node<'_>, scale: f32) -> Result<(), ModelError> {
    if scale > 0.0 && scale.is_finite() { Ok(()) } else { Err(node.fail(Fault::Scale(scale))) }
}
