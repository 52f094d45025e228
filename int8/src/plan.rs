//! From a [`Graph`] to what runs: where each tensor lies in the arena, which halo it wants, and the steps in order.
//!
//! Invariants that the kernels rely on, proven here ([`prove`] checks each task against the arena before it is packed): every
//! byte that a step reads or writes lies within the arena; a step writes only its own output tensor; a tensor's memory belongs to it from the
//! step that makes it to the last that reads it; a halo holds the zero-point whenever a step reads it.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::graph::{
    Binary, Conv, ConvTranspose, Function, Graph, Node, Op, Order, Out, Padding, Pair, Quant, Shape, TensorId, fill_up,
    rescale,
};
use crate::isa::Isa;
use crate::kernels::{Activation, DenseSpec, DepthwiseSpec, Grid, Layer, Post, QUAD, SLACK, Store, Tap, View};
use crate::run::Network;
use crate::simple::{Picture, Simple};

/// A network made ready for one processor. Cheap to clone: the weights are shared.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) isa: Isa,
    pub(crate) steps: Vec<Step>,
    pub(crate) inputs: Vec<Door>,
    pub(crate) outputs: Vec<Door>,
    /// Bytes of the arena, the slack at both ends included.
    pub(crate) bytes: usize,
    /// Values of the float buffer.
    pub(crate) floats: usize,
    /// Bytes of scratch that a thread wants.
    pub(crate) scratch: usize,
    layers: Vec<LayerInfo>,
}

/// An input or output: where it lies, and how the caller's floats are ordered.
#[derive(Clone, Debug)]
pub(crate) struct Door {
    pub(crate) port: Port,
    pub(crate) order: Order,
    pub(crate) at: Place,
}

/// An input or output as callers see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Its size.
    pub shape: Shape,
}

/// A layer, for reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its name in the graph.
    pub name: String,
    /// `conv`, `depthwise`, `add` and so on.
    pub kind: &'static str,
    /// Rows and columns of the kernel, (1, 1) where there is none.
    pub kernel: Pair,
    /// Steps.
    pub stride: Pair,
    /// Size of the first input.
    pub input: Shape,
    /// Size of the output.
    pub output: Shape,
    /// Multiply-accumulates of one run.
    pub multiply_accumulates: u64,
}

/// Where a tensor lies.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Place {
    Bytes(Picture),
    Floats { base: usize, shape: Shape },
}

/// What making a value takes beside its products, in multiply-accumulates.
const EFFORT_OF_A_VALUE: usize = 8;

/// One thing done, by all threads together, before the next begins.
#[derive(Debug)]
pub(crate) struct Step {
    /// Which layer it belongs to.
    pub(crate) layer: usize,
    /// How long it takes, roughly, in multiply-accumulates of a dense layer.
    pub(crate) effort: u64,
    pub(crate) work: Work,
}

#[derive(Debug)]
pub(crate) enum Work {
    /// Puts the zero-point around a picture, in all channels of the pixels it shares.
    Halo(Halo),
    /// A convolution; its grid's rows or columns are shared out.
    Layer { layer: Box<dyn Layer>, rows: usize, columns: usize },
    /// Anything else; its rows are shared out.
    Simple(Simple),
}

/// A frame of pixels around a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Halo {
    /// The first byte of the frame.
    pub(crate) start: usize,
    /// Bytes of a row, frame included.
    pub(crate) pitch: usize,
    /// Rows above, of the picture and below.
    pub(crate) rows: (usize, usize, usize),
    /// Bytes left, of the picture and right in a row.
    pub(crate) columns: (usize, usize, usize),
    pub(crate) value: u8,
}

impl Plan {
    /// Plans `graph` for the kernels of `isa`.
    pub fn new(graph: &Graph, isa: Isa) -> Self {
        let placement = Placement::new(graph);
        let mut planner = Planner { graph, placement: &placement, isa, steps: Vec::new(), halos: BTreeMap::new() };
        for port in &graph.inputs {
            planner.halo(port.tensor, usize::MAX);
        }
        for (index, node) in graph.nodes.iter().enumerate() {
            planner.halo(node.output, index);
            planner.node(node, index);
        }
        let steps = planner.steps;
        let scratch = steps.iter().map(|step| match &step.work {
            Work::Layer { layer, .. } => layer.scratch(),
            Work::Simple(simple) => simple.scratch(),
            Work::Halo(_) => 0,
        });
        let scratch = scratch
            .max()
            .unwrap_or(0)
            .max(graph.inputs.iter().chain(&graph.outputs).map(|port| staging(graph, port)).max().unwrap_or(0));
        let door = |port: &crate::graph::Port| Door {
            port: Port { name: port.name.clone(), shape: graph.tensors[port.tensor.0].shape },
            order: port.order,
            at: placement.place(graph, port.tensor),
        };
        Self {
            inner: Arc::new(Inner {
                isa,
                inputs: graph.inputs.iter().map(door).collect(),
                outputs: graph.outputs.iter().map(door).collect(),
                bytes: placement.bytes,
                floats: placement.floats,
                scratch,
                layers: graph.nodes.iter().map(|node| info(graph, node)).collect(),
                steps,
            }),
        }
    }

    /// A network over this plan with memory of its own, run by `threads` threads, the caller's included.
    pub fn network(&self, threads: std::num::NonZeroUsize) -> Network {
        Network::new(self, threads)
    }

    /// The kernels it runs on.
    pub fn isa(&self) -> Isa {
        self.inner.isa
    }

    /// What it takes, in order.
    pub fn inputs(&self) -> impl ExactSizeIterator<Item = &Port> {
        self.inner.inputs.iter().map(|door| &door.port)
    }

    /// What it gives, in order.
    pub fn outputs(&self) -> impl ExactSizeIterator<Item = &Port> {
        self.inner.outputs.iter().map(|door| &door.port)
    }

    /// Its layers, in order.
    pub fn layers(&self) -> &[LayerInfo] {
        &self.inner.layers
    }

    /// Bytes of memory that a network over it takes, beside the packed weights.
    pub fn memory(&self) -> usize {
        self.inner.bytes + self.inner.floats * 4 + self.inner.scratch
    }
}

/// Bytes to hold as many rows of an input or output as are converted together, a plane a channel.
fn staging(graph: &Graph, port: &crate::graph::Port) -> usize {
    let shape = graph.tensors[port.tensor.0].shape;
    staged_rows(shape) * shape.width * shape.channels + SLACK
}

/// Rows of an input or output that are converted together: enough of each channel's floats that they come from memory in one piece.
pub(crate) fn staged_rows(shape: Shape) -> usize {
    const PIECE: usize = 1024;
    const BYTES: usize = 64 * 1024;
    (PIECE / shape.width).min(BYTES / (shape.width * shape.channels)).clamp(1, shape.height)
}

fn info(graph: &Graph, node: &Node) -> LayerInfo {
    let input = graph.tensors[node.inputs[0].0].shape;
    let (kernel, stride) = match &node.op {
        Op::Conv(conv) => (conv.kernel, conv.stride),
        Op::ConvTranspose(conv) => (conv.kernel, conv.stride),
        Op::Pool { window, .. } => (window.kernel, window.stride),
        _ => ((1, 1), (1, 1)),
    };
    LayerInfo {
        name: node.name.clone(),
        kind: match &node.op {
            Op::Conv(conv) if is_depthwise(conv, input) => "depthwise",
            op => op.name(),
        },
        kernel,
        stride,
        input,
        output: graph.tensors[node.output.0].shape,
        multiply_accumulates: graph.work(node),
    }
}

fn is_depthwise(conv: &Conv, input: Shape) -> bool {
    conv.groups > 1 && conv.groups == input.channels && conv.channels == input.channels
}

// --- placement ---------------------------------------------------------------------------------------------------

/// Where every tensor lies. Tensors that are joined on the grid they have already are slices of the joined one.
#[derive(Debug)]
struct Placement {
    /// For a tensor of bytes: the tensor whose memory it lies in and the first channel it has there.
    homes: Vec<(usize, usize)>,
    /// Of each home: the offset of its pixel (0, 0), and its halo.
    offsets: Vec<usize>,
    halos: Vec<Padding>,
    /// Of each tensor of floats.
    floats_at: Vec<usize>,
    bytes: usize,
    floats: usize,
}

impl Placement {
    fn new(graph: &Graph) -> Self {
        let homes = homes(graph);
        let halos = halos(graph, &homes);
        let lives = lives(graph, &homes);
        let mut placement = Self {
            offsets: vec![0; graph.tensors.len()],
            floats_at: vec![0; graph.tensors.len()],
            homes,
            halos,
            bytes: 0,
            floats: 0,
        };
        placement.lay_out(graph, &lives);
        for (i, tensor) in graph.tensors.iter().enumerate() {
            if tensor.out == Out::F32 {
                placement.floats_at[i] = placement.floats;
                placement.floats += tensor.shape.len().next_multiple_of(16);
            }
        }
        placement
    }

    /// First fit, the largest first: each home where no home that lives at the same time lies.
    fn lay_out(&mut self, graph: &Graph, lives: &[Option<(usize, usize)>]) {
        let mut order: Vec<usize> = (0..graph.tensors.len()).filter(|i| lives[*i].is_some()).collect();
        order.sort_by_key(|i| std::cmp::Reverse(self.footprint(graph, *i)));
        let mut placed: Vec<(usize, usize, (usize, usize))> = Vec::new();
        let mut end = SLACK;
        for home in order {
            let (size, Some(life)) = (self.footprint(graph, home), lives[home]) else { continue };
            let mut at = SLACK;
            placed.sort_unstable();
            for &(start, stop, other) in &placed {
                let together = life.0 <= other.1 && other.0 <= life.1;
                if together && start < at + size && at < stop {
                    at = stop;
                }
            }
            placed.push((at, at + size, life));
            end = end.max(at + size);
            let halo = self.halos[home];
            let pixel = graph.tensors[home].shape.channels;
            self.offsets[home] = at + halo.top * self.pitch(graph, home) + halo.left * pixel;
        }
        self.bytes = end + SLACK;
    }

    /// Bytes of a row of a home, halo included.
    fn pitch(&self, graph: &Graph, home: usize) -> usize {
        let (shape, halo) = (graph.tensors[home].shape, self.halos[home]);
        (halo.left + shape.width + halo.right) * shape.channels
    }

    fn footprint(&self, graph: &Graph, home: usize) -> usize {
        let (shape, halo) = (graph.tensors[home].shape, self.halos[home]);
        ((halo.top + shape.height + halo.bottom) * self.pitch(graph, home)).next_multiple_of(64)
    }

    fn place(&self, graph: &Graph, tensor: TensorId) -> Place {
        let shape = graph.tensors[tensor.0].shape;
        match graph.tensors[tensor.0].out {
            Out::U8(quant) => {
                let (home, channel) = self.homes[tensor.0];
                let pixel = graph.tensors[home].shape.channels;
                let view = View { base: self.offsets[home] + channel, row: self.pitch(graph, home), pixel };
                Place::Bytes(Picture { view, shape, quant })
            }
            Out::F32 => Place::Floats { base: self.floats_at[tensor.0], shape },
        }
    }
}

/// Which tensors are slices of a joined one: those on its grid, each of one only, none that comes from outside.
fn homes(graph: &Graph) -> Vec<(usize, usize)> {
    let mut homes: Vec<(usize, usize)> = (0..graph.tensors.len()).map(|i| (i, 0)).collect();
    let mut fixed = vec![false; graph.tensors.len()];
    for port in &graph.inputs {
        fixed[port.tensor.0] = true;
    }
    for node in graph.nodes.iter().filter(|node| matches!(node.op, Op::Concat)) {
        let mut channel = 0;
        for input in &node.inputs {
            // A joined tensor that is itself a slice would need its own slices moved along: it is copied instead.
            let free = !fixed[input.0] && homes[input.0].0 == input.0;
            if free && graph.tensors[input.0].out == graph.tensors[node.output.0].out {
                homes[input.0] = (node.output.0, channel);
                fixed[input.0] = true;
            }
            channel += graph.tensors[input.0].shape.channels;
        }
        fixed[node.output.0] = true;
    }
    homes
}

/// The halo that the readers of each home want.
fn halos(graph: &Graph, homes: &[(usize, usize)]) -> Vec<Padding> {
    let mut halos = vec![Padding::default(); graph.tensors.len()];
    for node in &graph.nodes {
        let wanted = match &node.op {
            Op::Conv(conv) => reach(graph.tensors[node.inputs[0].0].shape, graph.tensors[node.output.0].shape, conv),
            Op::ConvTranspose(conv) => {
                reach_transposed(graph.tensors[node.inputs[0].0].shape, graph.tensors[node.output.0].shape, conv)
            }
            _ => continue,
        };
        let halo = &mut halos[homes[node.inputs[0].0].0];
        halo.top = halo.top.max(wanted.top);
        halo.left = halo.left.max(wanted.left);
        halo.bottom = halo.bottom.max(wanted.bottom);
        halo.right = halo.right.max(wanted.right);
    }
    halos
}

/// How far beyond the picture a convolution reads; trailing padding that no step reaches is not counted.
fn reach(from: Shape, to: Shape, conv: &Conv) -> Padding {
    let last = |n: usize, stride: usize, kernel: usize, dilation: usize| (n - 1) * stride + (kernel - 1) * dilation + 1;
    Padding {
        top: conv.padding.top,
        left: conv.padding.left,
        bottom: last(to.height, conv.stride.0, conv.kernel.0, conv.dilation.0)
            .saturating_sub(from.height + conv.padding.top),
        right: last(to.width, conv.stride.1, conv.kernel.1, conv.dilation.1)
            .saturating_sub(from.width + conv.padding.left),
    }
}

fn reach_transposed(from: Shape, to: Shape, conv: &ConvTranspose) -> Padding {
    let mut halo = Padding::default();
    for phase in 0..conv.stride.0.min(to.height) {
        let phase = Phase::new(phase, to.height, conv.kernel.0, conv.stride.0, conv.padding.top);
        halo.top = halo.top.max(phase.before());
        halo.bottom = halo.bottom.max(phase.behind(from.height));
    }
    for phase in 0..conv.stride.1.min(to.width) {
        let phase = Phase::new(phase, to.width, conv.kernel.1, conv.stride.1, conv.padding.left);
        halo.left = halo.left.max(phase.before());
        halo.right = halo.right.max(phase.behind(from.width));
    }
    halo
}

/// The outputs of a transposed convolution in one direction that lie `stride` apart: an ordinary convolution.
#[derive(Clone, Copy, Debug)]
struct Phase {
    /// The first of them.
    first: usize,
    /// How many.
    count: usize,
    /// The kernel's taps that meet them: `tap`, `tap + stride`, and so on, `taps` of them.
    tap: usize,
    taps: usize,
    /// The input under the first of these taps at the first output.
    input: usize,
}

impl Phase {
    fn new(phase: usize, outputs: usize, kernel: usize, stride: usize, padding: usize) -> Self {
        let tap = (phase + padding) % stride;
        Self {
            first: phase,
            count: (outputs - phase).div_ceil(stride),
            tap,
            taps: if tap < kernel { (kernel - tap).div_ceil(stride) } else { 0 },
            input: (phase + padding - tap) / stride,
        }
    }

    /// Inputs needed before the first.
    fn before(&self) -> usize {
        (self.taps.max(1) - 1).saturating_sub(self.input)
    }

    /// Inputs needed behind the last of `n`.
    fn behind(&self, n: usize) -> usize {
        (self.input + self.count).saturating_sub(n)
    }
}

/// First and last step of each home, step 0 being the inputs.
fn lives(graph: &Graph, homes: &[(usize, usize)]) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; graph.tensors.len()];
    let mut touch = |tensor: TensorId, step: usize| {
        let life = &mut lives[homes[tensor.0].0];
        let (first, last) = life.unwrap_or((step, step));
        *life = Some((first.min(step), last.max(step)));
    };
    for port in &graph.inputs {
        touch(port.tensor, 0);
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        for tensor in node.inputs.iter().chain([&node.output]) {
            touch(*tensor, i + 1);
        }
    }
    for port in &graph.outputs {
        touch(port.tensor, graph.nodes.len() + 1);
    }
    for (i, tensor) in graph.tensors.iter().enumerate() {
        if tensor.out == Out::F32 {
            lives[i] = None;
        }
    }
    lives
}

// --- steps -------------------------------------------------------------------------------------------------------

struct Planner<'a> {
    graph: &'a Graph,
    placement: &'a Placement,
    isa: Isa,
    steps: Vec<Step>,
    /// Homes whose halo is filled already.
    halos: BTreeMap<usize, ()>,
}

impl Planner<'_> {
    fn place(&self, tensor: TensorId) -> Place {
        self.placement.place(self.graph, tensor)
    }

    /// The picture of a tensor that the builder proved to hold bytes.
    fn picture(&self, tensor: TensorId) -> Picture {
        match self.place(tensor) {
            Place::Bytes(picture) => picture,
            Place::Floats { .. } => unreachable!("the builder takes no floats here"),
        }
    }

    /// Fills the halo of the tensor's home before its first pixel is written.
    fn halo(&mut self, tensor: TensorId, layer: usize) {
        let home = self.placement.homes[tensor.0].0;
        let Out::U8(quant) = self.graph.tensors[home].out else { return };
        let halo = self.placement.halos[home];
        if halo == Padding::default() || self.halos.insert(home, ()).is_some() {
            return;
        }
        let shape = self.graph.tensors[home].shape;
        let pitch = self.placement.pitch(self.graph, home);
        let halo = Halo {
            start: self.placement.offsets[home] - halo.top * pitch - halo.left * shape.channels,
            pitch,
            rows: (halo.top, shape.height, halo.bottom),
            columns: (halo.left * shape.channels, shape.width * shape.channels, halo.right * shape.channels),
            value: quant.zero_point(),
        };
        self.steps.push(Step { layer, effort: 0, work: Work::Halo(halo) });
    }

    fn push(&mut self, layer: usize, effort: usize, work: Work) {
        self.steps.push(Step { layer, effort: effort as u64, work });
    }

    fn node(&mut self, node: &Node, index: usize) {
        match &node.op {
            Op::Conv(conv) => self.conv(node, conv, index),
            Op::ConvTranspose(conv) => self.conv_transpose(node, conv, index),
            _ => {
                let effort = self.graph.tensors[node.output.0].shape.len() * EFFORT_OF_A_VALUE;
                for simple in self.simple(node) {
                    self.push(index, effort, Work::Simple(simple));
                }
            }
        }
    }

    fn simple(&self, node: &Node) -> Vec<Simple> {
        let out = self.place(node.output);
        let input = |i: usize| self.picture(node.inputs[i]);
        let one = |simple: Simple| vec![simple];
        match &node.op {
            Op::Conv(_) | Op::ConvTranspose(_) => unreachable!("convolutions are not simple"),
            Op::Map(tables) => one(Simple::map(input(0), self.picture(node.output), tables)),
            Op::Binary { binary, low, high } => one(Simple::binary(*binary, (input(0), input(1)), out, (*low, *high))),
            Op::Concat => self.joined(node),
            Op::Pool { pooling, window } => one(Simple::pool(*pooling, *window, input(0), out)),
            Op::Upsample(upsampling) => one(Simple::upsample(*upsampling, input(0), self.picture(node.output))),
            Op::DepthToSpace { block, order } => {
                one(Simple::depth_to_space(*block, *order, input(0), self.picture(node.output)))
            }
            Op::Dequantise => one(Simple::dequantise(input(0), float_base(out))),
            Op::MeanAbsolute { weights } => {
                let second = node.inputs.get(1).map(|b| self.picture(*b));
                one(Simple::mean_absolute(input(0), second, weights, float_base(out)))
            }
            Op::FloatConcat => {
                let mut to = float_base(out);
                let mut copies = Vec::new();
                for tensor in &node.inputs {
                    if let Place::Floats { base, shape } = self.place(*tensor) {
                        copies.push(Simple::copy_floats(base, to, shape.len()));
                        to += shape.len();
                    }
                }
                copies
            }
            Op::FloatLinear { weights, bias } => {
                one(Simple::float_linear(float_base(self.place(node.inputs[0])), float_base(out), weights, bias))
            }
        }
    }

    /// Copies of those inputs that are not slices of the joined tensor anyway.
    fn joined(&self, node: &Node) -> Vec<Simple> {
        let to = self.picture(node.output);
        let mut channel = 0;
        let mut copies = Vec::new();
        for tensor in &node.inputs {
            let from = self.picture(*tensor);
            let slice =
                Picture { view: View { base: to.view.base + channel, ..to.view }, shape: from.shape, quant: to.quant };
            if from.view != slice.view {
                copies.push(Simple::requantise(from, slice));
            }
            channel += from.shape.channels;
        }
        copies
    }

    fn conv(&mut self, node: &Node, conv: &Conv, index: usize) {
        let from = self.picture(node.inputs[0]);
        let to = self.place(node.output);
        let geometry = Geometry {
            input: shift(from.view, conv.padding.top, conv.padding.left),
            stride: conv.stride,
            rows: shape_of(to).height,
            columns: shape_of(to).width,
            output: view_of(to),
        };
        let scales = Scales::new(from.quant, &conv.weight_scales, out_of(to), conv.channels);
        if is_depthwise(conv, from.shape) {
            self.depthwise(conv, from, geometry, &scales, index);
            return;
        }
        let (taken, given) = (from.shape.channels / conv.groups, conv.channels / conv.groups);
        let area = conv.kernel.0 * conv.kernel.1;
        let joined = conv.dilation.1 == 1 && from.view.pixel == taken;
        for group in 0..conv.groups {
            let first = group * given;
            let weight = |channel: usize, input: usize, tap: usize| {
                conv.weights[((first + channel) * taken + input) * area + tap]
            };
            let taps = Taps { kernel: conv.kernel, inputs: taken, outputs: given, joined };
            let mut geometry = geometry;
            geometry.input.base += group * taken;
            geometry.output.base += first;
            let contiguous = conv.kernel == (1, 1) && conv.stride == (1, 1);
            let spec = DenseSpec {
                grid: if contiguous { geometry.flattened() } else { geometry.grid() },
                tap_row: conv.dilation.0 * from.view.row,
                runs: taps.runs(conv.dilation.1 * from.view.pixel),
                quads: taps.quads(),
                channels: given,
                weights: taps.pack(weight),
                post: scales.post(
                    &conv.function,
                    conv.bias.get(first..).unwrap_or(&[]),
                    first..first + given,
                    |channel| {
                        (0..taken * area).map(|i| i64::from(conv.weights[(first + channel) * taken * area + i])).sum()
                    },
                ),
            };
            self.dense(spec, index);
        }
    }

    fn dense(&mut self, spec: DenseSpec, index: usize) {
        let last = spec.runs.iter().map(|tap| tap.row * spec.tap_row + tap.offset).max().unwrap_or(0);
        prove(&spec.grid, last + spec.quads * QUAD - (QUAD - 1), spec.channels, &spec.post.store, self.placement);
        let (rows, columns) = (spec.grid.rows, spec.grid.columns);
        let effort = rows * columns * spec.channels * (spec.runs.len() * spec.quads * QUAD + EFFORT_OF_A_VALUE);
        let layer = self.isa.kernels().dense(spec);
        self.push(index, effort, Work::Layer { layer, rows, columns });
    }

    fn depthwise(&mut self, conv: &Conv, from: Picture, geometry: Geometry, scales: &Scales, index: usize) {
        let channels = conv.channels;
        let area = conv.kernel.0 * conv.kernel.1;
        let weights = (0..area)
            .flat_map(|tap| fill_up((0..channels).map(|channel| conv.weights[channel * area + tap]), channels))
            .collect();
        let spec = DepthwiseSpec {
            grid: geometry.grid(),
            kernel_rows: conv.kernel.0,
            kernel_columns: conv.kernel.1,
            tap_row: conv.dilation.0 * from.view.row,
            tap_column: conv.dilation.1 * from.view.pixel,
            channels,
            weights,
            post: scales.post(&conv.function, &conv.bias, 0..channels, |channel| {
                conv.weights[channel * area..][..area].iter().map(|w| i64::from(*w)).sum()
            }),
        };
        let last = (spec.kernel_rows - 1) * spec.tap_row + (spec.kernel_columns - 1) * spec.tap_column;
        prove(&spec.grid, last + channels, channels, &spec.post.store, self.placement);
        let (rows, columns) = (spec.grid.rows, spec.grid.columns);
        let effort = rows * columns * channels * (3 * area + EFFORT_OF_A_VALUE);
        let layer = self.isa.kernels().depthwise(spec);
        self.push(index, effort, Work::Layer { layer, rows, columns });
    }

    fn conv_transpose(&mut self, node: &Node, conv: &ConvTranspose, index: usize) {
        let from = self.picture(node.inputs[0]);
        let to = self.place(node.output);
        let (size, view) = (shape_of(to), view_of(to));
        let scales = Scales::new(from.quant, &conv.weight_scales, out_of(to), conv.channels);
        let area = conv.kernel.0 * conv.kernel.1;
        for row in 0..conv.stride.0.min(size.height) {
            let rows = Phase::new(row, size.height, conv.kernel.0, conv.stride.0, conv.padding.top);
            for column in 0..conv.stride.1.min(size.width) {
                let columns = Phase::new(column, size.width, conv.kernel.1, conv.stride.1, conv.padding.left);
                // Where no tap meets the outputs one of zeros stands in.
                let kernel = (rows.taps.max(1), columns.taps.max(1));
                let tap = |tap: usize| {
                    let (r, c) = (kernel.0 - 1 - tap / kernel.1, kernel.1 - 1 - tap % kernel.1);
                    let (r, c) = (rows.tap + r * conv.stride.0, columns.tap + c * conv.stride.1);
                    (rows.taps * columns.taps > 0).then_some(r * conv.kernel.1 + c)
                };
                let weight = |channel: usize, input: usize, at: usize| {
                    tap(at).map_or(0, |at| conv.weights[(input * conv.channels + channel) * area + at])
                };
                let taps = Taps {
                    kernel,
                    inputs: from.shape.channels,
                    outputs: conv.channels,
                    joined: from.view.pixel == from.shape.channels,
                };
                let geometry = Geometry {
                    input: View {
                        base: from.view.base + rows.input * from.view.row + columns.input * from.view.pixel
                            - (kernel.0 - 1) * from.view.row
                            - (kernel.1 - 1) * from.view.pixel,
                        ..from.view
                    },
                    stride: (1, 1),
                    rows: rows.count,
                    columns: columns.count,
                    output: View {
                        base: view.at(rows.first, columns.first),
                        row: view.row * conv.stride.0,
                        pixel: view.pixel * conv.stride.1,
                    },
                };
                let spec = DenseSpec {
                    grid: geometry.grid(),
                    tap_row: from.view.row,
                    runs: taps.runs(from.view.pixel),
                    quads: taps.quads(),
                    channels: conv.channels,
                    weights: taps.pack(weight),
                    post: scales.post(&conv.function, &conv.bias, 0..conv.channels, |channel| {
                        let inputs = 0..from.shape.channels;
                        inputs
                            .flat_map(|i| (0..kernel.0 * kernel.1).map(move |t| i64::from(weight(channel, i, t))))
                            .sum()
                    }),
                };
                self.dense(spec, index);
            }
        }
    }
}

fn shape_of(place: Place) -> Shape {
    match place {
        Place::Bytes(picture) => picture.shape,
        Place::Floats { shape, .. } => shape,
    }
}

fn view_of(place: Place) -> View {
    match place {
        Place::Bytes(picture) => picture.view,
        Place::Floats { base, shape } => View { base, row: shape.width * shape.channels, pixel: shape.channels },
    }
}

fn out_of(place: Place) -> Out {
    match place {
        Place::Bytes(picture) => Out::U8(picture.quant),
        Place::Floats { .. } => Out::F32,
    }
}

/// Where floats begin that the builder proved to be floats.
fn float_base(place: Place) -> usize {
    match place {
        Place::Floats { base, .. } => base,
        Place::Bytes(_) => unreachable!("the builder gives floats here"),
    }
}

fn shift(view: View, rows: usize, columns: usize) -> View {
    View { base: view.base - rows * view.row - columns * view.pixel, ..view }
}

/// Which pixels a convolution reads and writes.
#[derive(Clone, Copy, Debug)]
struct Geometry {
    /// The input, from the first tap of the first output on.
    input: View,
    stride: Pair,
    rows: usize,
    columns: usize,
    output: View,
}

impl Geometry {
    fn grid(&self) -> Grid {
        Grid {
            rows: self.rows,
            columns: self.columns,
            input: View {
                base: self.input.base,
                row: self.input.row * self.stride.0,
                pixel: self.input.pixel * self.stride.1,
            },
            output: self.output,
        }
    }

    /// One long row where rows follow each other without a gap on both sides.
    fn flattened(&self) -> Grid {
        let grid = self.grid();
        let gapless = |view: View| view.row == view.pixel * self.columns;
        if !gapless(grid.input) || !gapless(grid.output) {
            return grid;
        }
        let columns = self.rows * self.columns;
        let long = |view: View| View { row: view.pixel * columns, ..view };
        Grid { rows: 1, columns, input: long(grid.input), output: long(grid.output) }
    }
}

/// Holds a task to the arena: the promise of `kernels`.
fn prove(grid: &Grid, reach: usize, channels: usize, store: &Store, placement: &Placement) {
    let end = grid.input.at(grid.rows - 1, grid.columns - 1) + reach;
    assert!(grid.input.base >= SLACK && end + SLACK <= placement.bytes, "a task reads beyond the arena: {grid:?}");
    let end = grid.output.at(grid.rows - 1, grid.columns - 1) + channels;
    match store {
        Store::U8 { .. } => assert!(grid.output.base >= SLACK && end + SLACK <= placement.bytes, "{grid:?}"),
        Store::F32 { .. } => assert!(end <= placement.floats, "a task writes beyond the float buffer: {grid:?}"),
    }
}

/// The taps of a kernel over the channels of one group, as runs of quads.
#[derive(Clone, Copy, Debug)]
struct Taps {
    kernel: Pair,
    inputs: usize,
    outputs: usize,
    /// Whether a kernel row's columns and channels follow each other without a gap.
    joined: bool,
}

impl Taps {
    fn columns(&self) -> usize {
        if self.joined { 1 } else { self.kernel.1 }
    }

    /// Bytes of a run.
    fn length(&self) -> usize {
        if self.joined { self.kernel.1 * self.inputs } else { self.inputs }
    }

    fn quads(&self) -> usize {
        self.length().div_ceil(QUAD)
    }

    fn runs(&self, column: usize) -> Box<[Tap]> {
        let columns = self.columns();
        (0..self.kernel.0 * columns).map(|i| Tap { row: i / columns, offset: i % columns * column }).collect()
    }

    /// `weight(output, input, tap)` in the order of [`DenseSpec::weights`].
    fn pack(&self, weight: impl Fn(usize, usize, usize) -> i8) -> Box<[i8]> {
        let block = crate::kernels::BLOCK;
        let (runs, quads) = (self.kernel.0 * self.columns(), self.quads());
        let mut packed = vec![0; self.outputs.div_ceil(block) * runs * quads * block * QUAD];
        for (i, value) in packed.iter_mut().enumerate() {
            let (byte, lane) = (i % QUAD, i / QUAD % block);
            let (quad, run) = (i / (QUAD * block) % quads, i / (QUAD * block * quads) % runs);
            let channel = i / (QUAD * block * quads * runs) * block + lane;
            let at = quad * QUAD + byte;
            if channel >= self.outputs || at >= self.length() {
                continue;
            }
            let column = if self.joined { at / self.inputs } else { run % self.kernel.1 };
            let row = run / self.columns();
            *value = weight(channel, at % self.inputs, row * self.kernel.1 + column);
        }
        packed.into()
    }
}

/// The grids around a convolution.
struct Scales {
    input: Quant,
    out: Out,
    /// From a sum to the output's unit, a channel.
    factors: Vec<f32>,
    /// From a sum to a real number, a channel.
    units: Vec<f32>,
}

impl Scales {
    fn new(input: Quant, weights: &[f32], out: Out, channels: usize) -> Self {
        let of = |channel: usize| weights[if weights.len() == 1 { 0 } else { channel }];
        Self {
            input,
            out,
            factors: (0..channels).map(|channel| rescale(input, of(channel), out)).collect(),
            units: (0..channels).map(|channel| rescale(input, of(channel), Out::F32)).collect(),
        }
    }

    /// `total(channel)` is the sum of a channel's weights, counted from the first of `channels`.
    fn post(
        &self,
        function: &Function,
        bias: &[i32],
        channels: std::ops::Range<usize>,
        total: impl Fn(usize) -> i64,
    ) -> Post {
        let count = channels.len();
        let zero_point = i64::from(self.input.zero_point());
        // The builder proved that this stays within i32.
        let folded = (0..count).map(|i| (bias.get(i).map_or(0, |b| i64::from(*b)) - zero_point * total(i)) as i32);
        let scales = if *function == Function::HardSwish { &self.units } else { &self.factors };
        let activation = match function {
            Function::Slope(slopes) => {
                let of = |channel: usize| slopes[if slopes.len() == 1 { 0 } else { channel }];
                Activation::Slope(fill_up(channels.clone().map(of), count))
            }
            Function::HardSwish => Activation::HardSwish {
                inverse: match self.out {
                    Out::U8(quant) => 1.0 / quant.scale(),
                    Out::F32 => 1.0,
                },
            },
            Function::Identity | Function::Clip { .. } => Activation::None,
        };
        let bounds = match function {
            Function::Clip { low, high } => (*low, *high),
            _ => (f32::NEG_INFINITY, f32::INFINITY),
        };
        Post {
            bias: fill_up(folded, count),
            scale: fill_up(channels.map(|channel| scales[channel]), count),
            activation,
            store: store(self.out, bounds),
        }
    }
}

/// What is written for real values between two bounds.
pub(crate) fn store(out: Out, (low, high): (f32, f32)) -> Store {
    let Out::U8(quant) = out else { return Store::F32 { low, high } };
    let zero_point = i32::from(quant.zero_point());
    let (least, most) = (-zero_point as f32, (255 - zero_point) as f32);
    // Rounding keeps order, so bounding what is rounded to the rounded bounds is the same.
    let bound = |x: f32| (x / quant.scale()).round_ties_even().max(least).min(most);
    Store::U8 { low: bound(low), high: bound(high), zero_point }
}

impl Binary {
    /// Factors of a, b and of their product on the way to the unit of the output.
    pub(crate) fn factors(self, a: Quant, b: Quant, out: Out) -> (f32, f32) {
        let unit = match out {
            Out::U8(quant) => quant.scale(),
            Out::F32 => 1.0,
        };
        match self {
            Self::Add => (a.scale() / unit, b.scale() / unit),
            Self::Subtract => (a.scale() / unit, -(b.scale() / unit)),
            Self::Multiply => (a.scale() * b.scale() / unit, 0.0),
        }
    }
}
