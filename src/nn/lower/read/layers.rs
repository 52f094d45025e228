//! Layers without weights: joining, pooling, means, upsampling.

use std::rc::Rc;

use visaged_int8::graph::{Binary, DepthOrder, Order, Out, Padding, Pooling, Quant, Shape, Upsampling, Window};

use super::super::function::Unary;
use super::super::model::{Fault, Node};
use super::super::view::{View, count};
use super::super::{Base, Expr, ExprId, Lowerer, Pick, Ref, Stop, Tensor, Value, Want, left};
use super::axis_of;
use super::geometry::{Geometry, geometry};

impl<'a> Lowerer<'a, '_> {
    pub(super) fn concat(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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
    pub(super) fn joined_order(&self, inputs: &[Tensor], axis: usize) -> Result<Order, Stop> {
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
    pub(super) fn common_grid(&self, inputs: &[Tensor]) -> Option<Quant> {
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

    pub(super) fn max_pool(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let (tensor, shape) = self.picture_to_pick(node)?;
        let (window, output) = window(node, shape)?;
        if node.int("storage_order", 0)? != 0 || node.sizes("dilations", 2, 1, 1)? != [1, 1] {
            return left("dilated pooling is not lowered");
        }
        self.pick(&tensor, Pick::Max(window), output)
    }

    pub(super) fn picture_to_pick(&mut self, node: &'a Node<'a>) -> Result<(Tensor, Shape), Stop> {
        let tensor = self.either(node, 0)?;
        let shape = self.shape(&tensor);
        if tensor.view.is_picture(shape) { Ok((tensor, shape)) } else { left("its input is no picture") }
    }

    pub(super) fn pick(&mut self, tensor: &Tensor, pick: Pick, shape: Shape) -> Result<Value, Stop> {
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

    pub(super) fn average_pool(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let (input, from) = self.quantised_picture(node, 0)?;
        let (window, shape) = window(node, from)?;
        if node.sizes("dilations", 2, 1, 1)? != [1, 1] {
            return left("dilated pooling is not lowered");
        }
        let padded = node.int("count_include_pad", 0)? != 0;
        let pooling = if padded { Pooling::AveragePadded } else { Pooling::Average };
        self.average(input, pooling, window, shape, View::picture(shape))
    }

    pub(super) fn average(
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

    pub(super) fn global_average(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
        let (input, from) = self.quantised_picture(node, 0)?;
        let shape = Shape { height: 1, width: 1, channels: from.channels };
        self.average(input, Pooling::Average, whole(from), shape, View::picture(shape))
    }

    pub(super) fn reduce_mean(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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

    pub(super) fn mean(&mut self, base: Base, shape: Shape, view: View, from: &Expr) -> Result<Value, Stop> {
        let expr = self.base(base, shape, from.segment, 0)?;
        let mut with = Expr::clone(&self.exprs[expr]);
        with.nodes.extend(&from.nodes);
        self.exprs[expr] = Rc::new(with);
        Ok(Value::Tensor(Tensor { expr, view, integers: None }))
    }

    pub(super) fn resize(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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
    pub(super) fn doubles(&mut self, node: &'a Node<'a>, from: Shape) -> Result<bool, Stop> {
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

    pub(super) fn depth_to_space(&mut self, node: &'a Node<'a>) -> Result<Value, Stop> {
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
    let exact = |n: usize, axis: usize, pads: usize| (n + pads - kernel[axis]).is_multiple_of(stride[axis]);
    let (vertical, horizontal) = (padding.top + padding.bottom, padding.left + padding.right);
    if node.int("ceil_mode", 0)? != 0 && !(exact(from.height, 0, vertical) && exact(from.width, 1, horizontal)) {
        return left("a window that reaches beyond the picture is not lowered");
    }
    Ok((Window { kernel: kernel.into(), stride: stride.into(), padding }, shape))
}
