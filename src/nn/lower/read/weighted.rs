//! Layers with weights: convolutions and linear layers.

use std::rc::Rc;

use visaged_int8::graph::{Order, Padding, Shape};

use super::super::model::{Fault, ModelError, Node};
use super::super::view::View;
use super::super::{Base, Convolution, Lowerer, Ref, Stop, Tensor, Value, Weights, left};
use super::geometry::geometry;

/// Weights of a linear layer on real numbers, at most: tract is faster beyond.
const LARGEST_REAL_LINEAR: usize = 1 << 16;

impl<'a> Lowerer<'a, '_> {
    pub(super) fn weights(&mut self, node: &'a Node<'a>, i: usize) -> Result<(Rc<Weights>, Vec<i8>), Stop> {
        let Value::Weights(weights) = self.input(node, i)? else { return left("its weights are not quantised") };
        match weights.symmetric() {
            Some(bytes) => Ok((weights, bytes)),
            None => left("its weights are not symmetric around 0"),
        }
    }

    pub(super) fn bias(&mut self, node: &'a Node<'a>, i: usize, channels: usize) -> Result<Vec<f64>, Stop> {
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

    pub(super) fn conv(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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

    pub(super) fn conv_transpose(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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
    pub(super) fn linear(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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

    pub(super) fn quantised_linear(
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

    pub(super) fn real_linear(
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
