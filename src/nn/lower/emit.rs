//! Makes layers out of expressions, in the segment where they belong.

use std::collections::VecDeque;
use std::rc::Rc;

use visaged_int8::graph::{
    Builder, Conv, ConvTranspose, Function, GraphError, Out, Padding, Pooling, Quant, Shape, TensorId,
};
use visaged_int8::kernels::{BLOCK, QUAD};

use super::function::{Unary, apply, fused, is_one, without_saturation};
use super::view::View;
use super::{
    Base, Convolution, Draft, Expr, ExprId, Fault, Lowerer, ModelError, Pick, Place, Port, Ref, Stop, Want, is_ours,
    left, refused,
};

impl<'a> Lowerer<'a, '_> {
    /// Makes an expression's tensor, once for each grid.
    ///
    /// # Errors
    /// [`Stop::Left`] where no layer gives it so.
    pub(super) fn make(&mut self, id: ExprId, want: Want) -> Result<Ref, Stop> {
        if let Some(made) = self.made.get(&(id, want.key())) {
            return Ok(*made);
        }
        let expr = Rc::clone(&self.exprs[id]);
        let made = match &expr.base {
            Base::Bytes(bytes) => self.make_map(&expr, *bytes, want)?,
            Base::Conv { input, conv, bias } => self.make_conv(&expr, *input, conv, bias, want)?,
            Base::Binary { binary, a, b } => {
                let function = function(&expr, want)?;
                if !matches!(function, Function::Identity | Function::Clip { .. }) {
                    return left(format!("only clipping can be fused into {}", expr.base.name()));
                }
                let (binary, a, b) = (*binary, self.carry(*a, expr.segment)?, self.carry(*b, expr.segment)?);
                self.emit(&expr, 0, |builder, name| builder.binary(name, binary, (a, b), &function, want.out()))?
            }
            Base::Average { input, pooling, window } => {
                bare(&expr, want)?;
                let (input, pooling, window) = (self.carry(*input, expr.segment)?, *pooling, *window);
                self.emit(&expr, 0, |builder, name| builder.pool(name, input, pooling, window, want.out()))?
            }
            Base::Bilinear { input, upsampling } => {
                bare(&expr, want)?;
                let Want::Bytes(quant) = want else { return left("its result is not quantised") };
                let (input, upsampling) = (self.carry(*input, expr.segment)?, *upsampling);
                self.emit(&expr, 0, |builder, name| builder.upsample(name, input, upsampling, quant))?
            }
            Base::Pick { input, pick } => {
                bare(&expr, want)?;
                let Want::Bytes(_) = want else { return left("neither its input nor its result is quantised") };
                let (input, pick) = (self.make(*input, want)?, *pick);
                let input = self.carry(input, expr.segment)?;
                self.emit(&expr, 0, |builder, name| picked(builder, name, input, pick))?
            }
            Base::Concat(inputs) => self.make_concat(&expr, inputs, want)?,
            Base::Mean { a, b, weights, whole } => {
                bare(&expr, want)?;
                if !whole || want != Want::Real {
                    return left("a mean of absolute values is taken over everything and as a real number");
                }
                let a = self.carry(*a, expr.segment)?;
                let b = b.map(|b| self.carry(b, expr.segment)).transpose()?;
                let weights = weights.to_vec();
                self.emit(&expr, 4 * weights.len(), |builder, name| builder.mean_absolute(name, a, b, weights))?
            }
            Base::Linear { input, weights, bias } => {
                bare(&expr, want)?;
                if want != Want::Real {
                    return left("a linear layer on real numbers gives real numbers");
                }
                let input = self.make(*input, Want::Real)?;
                let (input, weights, bias) = (self.carry(input, expr.segment)?, weights.to_vec(), bias.to_vec());
                self.emit(&expr, 4 * weights.len(), |builder, name| builder.float_linear(name, input, weights, bias))?
            }
        };
        self.made.insert((id, want.key()), made);
        Ok(made)
    }

    /// A layer that only picks values, on bytes that exist.
    pub(super) fn pick_bytes(&mut self, bytes: Ref, pick: Pick) -> Result<ExprId, Stop> {
        let model = self.model;
        let name = &model.nodes[self.current].name;
        let made = self.emit_named(bytes.segment, name, &[self.current], 0, |builder, name| {
            picked(builder, name, bytes.tensor, pick)
        })?;
        Ok(self.bytes(made))
    }

    /// Another grid for the same bytes: they are taken for what they are, not for what they stand for.
    pub(super) fn reinterpret(&mut self, bytes: Ref, as_what: Quant) -> Result<ExprId, Stop> {
        let Out::U8(from) = self.drafts[bytes.segment].builder.out(bytes.tensor) else {
            return left("its integers are none");
        };
        let same = move |x: f64| {
            let byte = (x / f64::from(from.scale())).round() + f64::from(from.zero_point());
            (byte - f64::from(as_what.zero_point())) * f64::from(as_what.scale())
        };
        let model = self.model;
        let name = &model.nodes[self.current].name;
        let made = self.emit_named(bytes.segment, name, &[self.current], 256, |builder, name| {
            builder.map(name, bytes.tensor, same, as_what)
        })?;
        Ok(self.bytes(made))
    }

    fn make_map(&mut self, expr: &Expr, bytes: Ref, want: Want) -> Result<Ref, Stop> {
        let Want::Bytes(quant) = want else {
            if let Some(last) = expr.chain.last() {
                return left(format!("the result of {} is not quantised", last.name()));
            }
            return self.emit(expr, 0, |builder, name| builder.dequantise(name, bytes.tensor));
        };
        if expr.chain.iter().any(|function| matches!(function, Unary::PixelWeights(_))) {
            return left("weights that go by pixel are taken only into a mean");
        }
        let chain = without_saturation(&expr.chain, quant);
        if chain.is_empty() && self.drafts[bytes.segment].builder.out(bytes.tensor) == Out::U8(quant) {
            self.note(&expr.nodes, &self.model.nodes[self.current].name);
            return Ok(bytes);
        }
        let tables = if is_one(chain) { 1 } else { expr.shape.channels };
        self.emit(expr, 256 * tables, |builder, name| {
            if tables == 1 {
                builder.map(name, bytes.tensor, |x| apply(chain, x, 0), quant)
            } else {
                builder.map_channels(name, bytes.tensor, |channel, x| apply(chain, x, channel), quant)
            }
        })
    }

    fn make_conv(
        &mut self,
        expr: &Expr,
        input: Ref,
        conv: &Convolution,
        bias: &[f64],
        want: Want,
    ) -> Result<Ref, Stop> {
        let Out::U8(from) = self.drafts[input.segment].builder.out(input.tensor) else {
            return left("its input is not quantised");
        };
        let (scales, bias, chain) = absorbed(conv, bias, &expr.chain);
        let function = function_of(&chain, &expr.base, want)?;
        let (weight_scales, bias) = integer_bias(conv, scales, &bias, from)?;
        self.spend_halo(conv, input)?;
        let input = self.carry(input, expr.segment)?;
        let Convolution { kernel, stride, dilation, padding, groups, channels, .. } = *conv;
        let taken = conv.weights.len() / (channels / groups).max(1) / groups.max(1);
        let packed = groups * (channels / groups).next_multiple_of(BLOCK) * (taken + QUAD * kernel.0);
        let weights = conv.weights.clone();
        self.emit(expr, packed, |builder, name| {
            if conv.transposed {
                let conv = ConvTranspose { kernel, stride, padding, channels, weights, weight_scales, bias, function };
                return builder.conv_transpose(name, input, conv, want.out());
            }
            let conv =
                Conv { kernel, stride, dilation, padding, groups, channels, weights, weight_scales, bias, function };
            builder.conv(name, input, conv, want.out())
        })
    }

    /// A picture lies in memory with its padding around it.
    fn spend_halo(&mut self, conv: &Convolution, input: Ref) -> Result<(), Stop> {
        let Shape { height, width, channels } = self.drafts[input.segment].builder.shape(input.tensor);
        let Padding { top, left, bottom, right } = conv.padding;
        // A transposed convolution's padding is cut off; its kernel reaches over the border instead.
        let (rows, columns) =
            if conv.transposed { (2 * conv.kernel.0, 2 * conv.kernel.1) } else { (top + bottom, left + right) };
        let size = (height + rows).saturating_mul(width + columns).saturating_mul(channels);
        let model = self.model;
        let name = &model.nodes[self.current].name;
        spend(&mut self.bytes_left, super::MOST_BYTES, size, "bytes in all its tensors:", name)
    }

    fn make_concat(&mut self, expr: &Expr, inputs: &[ExprId], want: Want) -> Result<Ref, Stop> {
        bare(expr, want)?;
        if want == Want::Real && expr.shape.height * expr.shape.width != 1 {
            return left("pictures are joined only where the result is quantised");
        }
        let mut joined = Vec::with_capacity(inputs.len());
        for input in inputs {
            let made = match &self.exprs[*input].base {
                // Bytes are brought to the grid as they are joined.
                Base::Bytes(bytes) if want != Want::Real && self.exprs[*input].chain.is_empty() => *bytes,
                _ => self.make(*input, want)?,
            };
            joined.push(self.carry(made, expr.segment)?);
        }
        self.emit(expr, 0, |builder, name| builder.concat(name, &joined, want.out()))
    }

    fn emit(
        &mut self,
        expr: &Expr,
        constants: usize,
        layer: impl FnOnce(&mut Builder, &str) -> Result<TensorId, GraphError>,
    ) -> Result<Ref, Stop> {
        let at = expr.nodes.first().copied().unwrap_or(self.current);
        let model = self.model;
        self.emit_named(expr.segment, &model.nodes[at].name, &expr.nodes, constants, layer)
    }

    fn emit_named(
        &mut self,
        segment: usize,
        name: &str,
        nodes: &[usize],
        constants: usize,
        layer: impl FnOnce(&mut Builder, &str) -> Result<TensorId, GraphError>,
    ) -> Result<Ref, Stop> {
        spend(&mut self.constants_left, super::MOST_CONSTANTS, constants, "bytes of weights and tables:", name)?;
        let builder = &mut self.draft(segment).builder;
        let tensor = layer(builder, name).map_err(|error| {
            if is_ours(&error.refusal) { Stop::Left(error.refusal.to_string()) } else { Stop::Bad(refused(error)) }
        })?;
        // Counted as bytes.
        let len = builder.shape(tensor).len() * if builder.out(tensor) == Out::F32 { 4 } else { 1 };
        spend(&mut self.bytes_left, super::MOST_BYTES, len, "bytes in all its tensors:", name)?;
        self.note(nodes, name);
        Ok(Ref { segment, tensor })
    }

    fn note(&mut self, nodes: &[usize], layer: &str) {
        for node in nodes {
            self.layers.insert(*node, layer.to_owned());
        }
    }

    pub(super) fn draft(&mut self, segment: usize) -> &mut Draft {
        if self.drafts.len() <= segment {
            self.drafts.resize_with(segment + 1, Draft::default);
        }
        &mut self.drafts[segment]
    }

    /// A tensor of an earlier segment in a later one: out as real numbers, in on the same grid, which changes nothing.
    fn carry(&mut self, from: Ref, segment: usize) -> Result<TensorId, Stop> {
        if from.segment == segment {
            return Ok(from.tensor);
        }
        if let Some(known) = self.carried.get(&(from, segment)) {
            return Ok(known.tensor);
        }
        let builder = &mut self.drafts[from.segment].builder;
        let Out::U8(quant) = builder.out(from.tensor) else {
            return left("real numbers do not go from one segment to another");
        };
        let view = View::picture(builder.shape(from.tensor));
        let shape = builder.shape(from.tensor);
        let name = format!("visaged.carried.{}", self.carried.len());
        builder.output(&name, from.tensor, view.order);
        let port = Port { name: name.clone(), dims: view.dims };
        self.drafts[from.segment].outputs.push(port.clone());
        let tensor = self.enter(segment, port, shape, &view.order, quant)?;
        self.carried.insert((from, segment), Ref { segment, tensor });
        Ok(tensor)
    }

    /// An input of a segment.
    fn enter(
        &mut self,
        segment: usize,
        port: Port,
        shape: Shape,
        order: &visaged_int8::graph::Order,
        quant: Quant,
    ) -> Result<TensorId, Stop> {
        spend(&mut self.bytes_left, super::MOST_BYTES, shape.len(), "bytes in all its tensors:", &port.name)?;
        let draft = self.draft(segment);
        let tensor = draft.builder.input(&port.name, shape, *order, quant).map_err(refused)?;
        draft.inputs.push(port);
        Ok(tensor)
    }

    /// Real numbers from outside on a grid.
    pub(super) fn take(&mut self, name: &'a str, quant: Quant) -> Result<(Ref, View), Stop> {
        let segment = self.demand(name)?;
        if !self.dims.contains_key(name) {
            let dims = (self.known)(name);
            self.dims.insert(name, dims);
        }
        let Some(dims) = self.dims[name].clone() else {
            return left(format!("the shape of {name} is not known"));
        };
        let Some(shape) = View::shape(&dims) else {
            return left(format!("{name} is {dims:?}: only pictures and vectors, one at a time, are lowered"));
        };
        let view = View { dims: dims.clone(), order: visaged_int8::graph::Order::ChannelsFirst };
        let key = (name, Want::Bytes(quant).key());
        if let Some(known) = self.taken.get(&key) {
            return Ok((*known, view));
        }
        let tensor = self.enter(segment, Port { name: name.into(), dims }, shape, &view.order, quant)?;
        let made = Ref { segment, tensor };
        self.taken.insert(key, made);
        Ok((made, view))
    }
}

fn spend(purse: &mut u128, limit: u128, size: usize, what: &'static str, name: &str) -> Result<(), Stop> {
    let size = size as u128;
    let Some(rest) = purse.checked_sub(size) else {
        let fault = Fault::TooMuch { what, size: limit - *purse + size, limit };
        return Err(Stop::Bad(ModelError { place: Place::Node(name.into()), fault }));
    };
    *purse = rest;
    Ok(())
}

fn picked(builder: &mut Builder, name: &str, input: TensorId, pick: Pick) -> Result<TensorId, GraphError> {
    let out = builder.out(input);
    match (pick, out) {
        (Pick::Max(window), out) => builder.pool(name, input, Pooling::Max, window, out),
        (Pick::DepthToSpace(block, order), _) => builder.depth_to_space(name, input, block, order),
        (Pick::Nearest, Out::U8(quant)) => {
            builder.upsample(name, input, visaged_int8::graph::Upsampling::Nearest, quant)
        }
        // The builder says what is wrong with it.
        (Pick::Nearest, Out::F32) => builder.dequantise(name, input),
    }
}

/// The function that is fused into an expression's layer.
fn function(expr: &Expr, want: Want) -> Result<Function, Stop> {
    function_of(&expr.chain, &expr.base, want)
}

fn function_of(chain: &[Unary], base: &Base, want: Want) -> Result<Function, Stop> {
    let shorter = match want {
        Want::Bytes(quant) => without_saturation(chain, quant),
        Want::Real => chain,
    };
    fused(chain)
        .or_else(|_| fused(shorter))
        .map_err(|name| Stop::Left(format!("{name} is not fused into {}", base.name())))
}

/// Scales, bias and what is left of a chain once its first factors and offsets are in the scales and the bias.
fn absorbed(conv: &Convolution, bias: &[f64], chain: &[Unary]) -> (Vec<f32>, Vec<f64>, Vec<Unary>) {
    let mut scales = conv.scales.clone();
    let mut bias = bias.to_vec();
    let mut chain: VecDeque<Unary> = chain.iter().cloned().collect();
    while let Some(first) = chain.front() {
        let (factors, offsets, behind) = match first {
            Unary::Affine(factors, offsets) => (factors.to_vec(), offsets.to_vec(), None),
            Unary::HardSigmoid(alpha, beta) => {
                (vec![f64::from(*alpha)], vec![f64::from(*beta)], Some(Unary::Clip(0.0, 1.0)))
            }
            _ => break,
        };
        let count = scales.len().max(factors.len());
        let product = |i: usize| (f64::from(scales[i % scales.len()]) * factors[i % factors.len()]) as f32;
        let new: Vec<f32> = (0..count).map(product).collect();
        let zero = |i: usize| scales[i % scales.len()] == 0.0;
        // Scales stay above zero and within what a float can tell.
        if !factors.iter().all(|f| *f > 0.0) || !new.iter().enumerate().all(|(i, s)| s.is_normal() || zero(i)) {
            break;
        }
        let old = |channel: usize| if bias.is_empty() { 0.0 } else { bias[channel % bias.len()] };
        let moved = |channel: usize| old(channel) * factors[channel % factors.len()] + offsets[channel % offsets.len()];
        bias = (0..conv.channels).map(moved).collect();
        scales = new;
        chain.pop_front();
        if let Some(behind) = behind {
            chain.push_front(behind);
        }
    }
    (scales, bias, chain.into())
}

/// Sees to it that nothing has to be fused into an expression's layer.
fn bare(expr: &Expr, want: Want) -> Result<(), Stop> {
    match function(expr, want) {
        Ok(Function::Identity) => Ok(()),
        _ if matches!(want, Want::Bytes(quant) if without_saturation(&expr.chain, quant).is_empty()) => Ok(()),
        Err(stop) => Err(stop),
        Ok(_) => left(format!("no function is fused into {}", expr.base.name())),
    }
}

/// The bias in units of input scale times weight scale. Channels without weights take a scale in which their bias can be told.
fn integer_bias(
    conv: &Convolution,
    mut scales: Vec<f32>,
    bias: &[f64],
    from: Quant,
) -> Result<(Vec<f32>, Vec<i32>), Stop> {
    if bias.is_empty() {
        return Ok((scales, Vec::new()));
    }
    let mut integers = Vec::with_capacity(conv.channels);
    for channel in 0..conv.channels {
        let real = bias[channel % bias.len()];
        if real != 0.0 && conv.is_blank(channel) {
            if scales.len() == 1 {
                scales = vec![scales[0]; conv.channels];
            }
            scales[channel] = (real.abs() / f64::from(from.scale()) / f64::from(1 << 20)) as f32;
        }
        let unit = f64::from(from.scale()) * f64::from(scales[channel % scales.len()]);
        let integer = if real == 0.0 { 0.0 } else { (real / unit).round_ties_even() };
        if !integer.is_finite() || integer.abs() > f64::from(i32::MAX) {
            return left(format!("the bias {real} of channel {channel} does not fit into its unit, {unit:e}"));
        }
        integers.push(integer as i32);
    }
    Ok((scales, integers))
}

impl Convolution {
    /// Whether an output channel has no weight but 0.
    fn is_blank(&self, channel: usize) -> bool {
        if self.transposed {
            let area = self.kernel.0 * self.kernel.1;
            let mut blocks = self.weights.chunks_exact(area.max(1)).skip(channel).step_by(self.channels.max(1));
            return blocks.all(|block| block.iter().all(|weight| *weight == 0));
        }
        let terms = self.weights.len() / self.channels.max(1);
        self.weights[channel * terms..][..terms].iter().all(|weight| *weight == 0)
    }
}
