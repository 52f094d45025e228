//! Operations that only show a tensor otherwise, or constants: Reshape and its kin, Transpose.

use std::rc::Rc;

use super::super::model::{Fault, Node};
use super::super::view::count;
use super::super::{Lowerer, Stop, Tensor, Value, Weights, left};
use super::{axis_of, bad_axes};

impl<'a> Lowerer<'a, '_> {
    pub(super) fn reshape(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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

    pub(super) fn transpose(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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
