//! Whole networks against a plain interpreter: what the layers mean, written a second time without a thought for speed, so that
//! placement, halos, slices, phases and threads are held to it.

use std::num::NonZeroUsize;

use proptest::prelude::*;

use crate::graph::{
    Binary, Builder, Conv, ConvTranspose, DepthOrder, Function, Graph, Node, Op, Order, Out, Padding, Pooling, Quant,
    Shape, TensorId, Upsampling, Window, rescale,
};
use crate::isa::Isa;
use crate::{Plan, RunError};

// --- the interpreter ---------------------------------------------------------------------------------------------

/// A tensor in the order of its pixels, bytes or floats.
#[derive(Clone, Debug, PartialEq)]
enum Values {
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
}

impl Values {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Floats(_) => panic!("bytes expected"),
        }
    }

    fn floats(&self) -> &[f32] {
        match self {
            Self::Floats(floats) => floats,
            Self::Bytes(_) => panic!("floats expected"),
        }
    }
}

struct Interpreter<'a> {
    graph: &'a Graph,
    values: Vec<Option<Values>>,
}

fn quantise(value: f32, out: Out, (low, high): (f32, f32)) -> (u8, f32) {
    match out {
        Out::F32 => (0, value.max(low).min(high)),
        Out::U8(quant) => {
            let zero = f32::from(quant.zero_point());
            let bound = |x: f32| (x / quant.scale()).round_ties_even().max(-zero).min(255.0 - zero);
            let value = value.max(bound(low)).min(bound(high));
            ((value.round_ties_even() + zero) as u8, 0.0)
        }
    }
}

fn unit(out: Out) -> f32 {
    match out {
        Out::U8(quant) => quant.scale(),
        Out::F32 => 1.0,
    }
}

const FREE: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);

impl<'a> Interpreter<'a> {
    fn run(graph: &'a Graph, inputs: &[&[f32]]) -> Vec<Vec<f32>> {
        let mut this = Self { graph, values: vec![None; graph.tensors.len()] };
        for (port, data) in graph.inputs.iter().zip(inputs) {
            let shape = graph.tensors[port.tensor.0].shape;
            let out = graph.tensors[port.tensor.0].out;
            let bytes = (0..shape.len()).map(|i| {
                let value = data[ordered(shape, port.order, i)] / unit(out);
                quantise(value, out, FREE).0
            });
            this.values[port.tensor.0] = Some(Values::Bytes(bytes.collect()));
        }
        for node in &graph.nodes {
            let values = this.node(node);
            this.values[node.output.0] = Some(values);
        }
        graph.outputs.iter().map(|port| this.output(port.tensor, port.order)).collect()
    }

    fn output(&self, tensor: TensorId, order: Order) -> Vec<f32> {
        let shape = self.shape(tensor);
        let mut result = vec![0.0; shape.len()];
        for i in 0..shape.len() {
            result[ordered(shape, order, i)] = match self.of(tensor) {
                Values::Floats(floats) => floats[i],
                Values::Bytes(_) => self.integer(tensor, i) as f32 * unit(self.graph.tensors[tensor.0].out),
            };
        }
        result
    }

    fn of(&self, tensor: TensorId) -> &Values {
        self.values[tensor.0].as_ref().expect("made before it is read")
    }

    fn shape(&self, tensor: TensorId) -> Shape {
        self.graph.tensors[tensor.0].shape
    }

    fn quant(&self, tensor: TensorId) -> Quant {
        match self.graph.tensors[tensor.0].out {
            Out::U8(quant) => quant,
            Out::F32 => panic!("bytes expected"),
        }
    }

    /// The integer without its zero-point.
    fn integer(&self, tensor: TensorId, i: usize) -> i32 {
        i32::from(self.of(tensor).bytes()[i]) - i32::from(self.quant(tensor).zero_point())
    }

    /// As `integer`, 0 outside of the picture.
    fn pixel(&self, tensor: TensorId, y: isize, x: isize, channel: usize) -> i32 {
        let shape = self.shape(tensor);
        if y < 0 || x < 0 || y >= shape.height as isize || x >= shape.width as isize {
            return 0;
        }
        self.integer(tensor, (y as usize * shape.width + x as usize) * shape.channels + channel)
    }

    fn each(&self, node: &Node, bounds: (f32, f32), value: impl Fn(usize, usize, usize) -> f32) -> Values {
        let tensor = &self.graph.tensors[node.output.0];
        let Shape { width, channels, .. } = tensor.shape;
        let results = (0..tensor.shape.len())
            .map(|i| quantise(value(i / channels / width, i / channels % width, i % channels), tensor.out, bounds));
        match tensor.out {
            Out::U8(_) => Values::Bytes(results.map(|(byte, _)| byte).collect()),
            Out::F32 => Values::Floats(results.map(|(_, float)| float).collect()),
        }
    }

    fn sums(
        &self,
        node: &Node,
        function: &Function,
        scales: &[f32],
        sum: impl Fn(usize, usize, usize) -> i32,
    ) -> Values {
        let out = self.graph.tensors[node.output.0].out;
        let quant = self.quant(node.inputs[0]);
        let bounds = match function {
            Function::Clip { low, high } => (*low, *high),
            _ => FREE,
        };
        self.each(node, bounds, |y, x, channel| {
            let scale = scales[if scales.len() == 1 { 0 } else { channel }];
            let sum = sum(y, x, channel) as f32;
            match function {
                Function::HardSwish => {
                    let value = sum * rescale(quant, scale, Out::F32);
                    let gate = (value * (1.0 / 6.0) + 0.5).clamp(0.0, 1.0);
                    value * gate * (1.0 / unit(out))
                }
                Function::Slope(slopes) => {
                    let value = sum * rescale(quant, scale, out);
                    let slope = slopes[if slopes.len() == 1 { 0 } else { channel }];
                    if value < 0.0 { value * slope } else { value }
                }
                _ => sum * rescale(quant, scale, out),
            }
        })
    }

    fn node(&self, node: &Node) -> Values {
        let first = node.inputs[0];
        let from = self.shape(first);
        let out = self.graph.tensors[node.output.0].out;
        match &node.op {
            Op::Conv(conv) => {
                let (taken, given) = (from.channels / conv.groups, conv.channels / conv.groups);
                self.sums(node, &conv.function, &conv.weight_scales, |y, x, channel| {
                    let mut sum = conv.bias.get(channel).copied().unwrap_or(0);
                    for input in 0..taken {
                        for r in 0..conv.kernel.0 {
                            for c in 0..conv.kernel.1 {
                                let y = (y * conv.stride.0 + r * conv.dilation.0) as isize - conv.padding.top as isize;
                                let x = (x * conv.stride.1 + c * conv.dilation.1) as isize - conv.padding.left as isize;
                                let weight =
                                    conv.weights[((channel * taken + input) * conv.kernel.0 + r) * conv.kernel.1 + c];
                                sum += self.pixel(first, y, x, channel / given * taken + input) * i32::from(weight);
                            }
                        }
                    }
                    sum
                })
            }
            Op::ConvTranspose(conv) => self.sums(node, &conv.function, &conv.weight_scales, |y, x, channel| {
                let mut sum = conv.bias.get(channel).copied().unwrap_or(0);
                for row in 0..from.height {
                    for column in 0..from.width {
                        let r = (y + conv.padding.top) as isize - (row * conv.stride.0) as isize;
                        let c = (x + conv.padding.left) as isize - (column * conv.stride.1) as isize;
                        if r < 0 || c < 0 || r >= conv.kernel.0 as isize || c >= conv.kernel.1 as isize {
                            continue;
                        }
                        for input in 0..from.channels {
                            let at = (input * conv.channels + channel) * conv.kernel.0 + r as usize;
                            let weight = conv.weights[at * conv.kernel.1 + c as usize];
                            sum += self.pixel(first, row as isize, column as isize, input) * i32::from(weight);
                        }
                    }
                }
                sum
            }),
            Op::Map(tables) => {
                let bytes = self.of(first).bytes();
                let table = |i: usize| &tables[if tables.len() == 1 { 0 } else { i % from.channels }];
                Values::Bytes(bytes.iter().enumerate().map(|(i, byte)| table(i)[usize::from(*byte)]).collect())
            }
            Op::Binary { binary, low, high } => {
                let second = node.inputs[1];
                let with = self.shape(second);
                let factors = binary.factors(self.quant(first), self.quant(second), out);
                self.each(node, (*low, *high), |y, x, channel| {
                    let a = self.pixel(first, y as isize, x as isize, channel);
                    let (y, x) = if with == from { (y, x) } else { (0, 0) };
                    let b = self.pixel(second, y as isize, x as isize, channel);
                    match binary {
                        Binary::Multiply => (a * b) as f32 * factors.0,
                        _ => a as f32 * factors.0 + b as f32 * factors.1,
                    }
                })
            }
            Op::Concat => self.each(node, FREE, |y, x, mut channel| {
                let mut part = 0;
                while channel >= self.shape(node.inputs[part]).channels {
                    channel -= self.shape(node.inputs[part]).channels;
                    part += 1;
                }
                let quant = self.quant(node.inputs[part]);
                self.pixel(node.inputs[part], y as isize, x as isize, channel) as f32 * (quant.scale() / unit(out))
            }),
            Op::Pool { pooling, window, .. } => self.pool(node, *pooling, *window),
            Op::Upsample(upsampling) => self.upsample(node, *upsampling),
            Op::DepthToSpace { block, order } => self.each(node, FREE, |y, x, channel| {
                let square = y % block * block + x % block;
                let channels = from.channels / block / block;
                let at = match order {
                    DepthOrder::BlockFirst => square * channels + channel,
                    DepthOrder::ChannelFirst => channel * block * block + square,
                };
                self.pixel(first, (y / block) as isize, (x / block) as isize, at) as f32
            }),
            Op::Dequantise => self.each(node, FREE, |y, x, channel| {
                self.pixel(first, y as isize, x as isize, channel) as f32 * self.quant(first).scale()
            }),
            Op::MeanAbsolute { weights } => {
                let real = |tensor: TensorId, i: usize| {
                    f64::from(self.integer(tensor, i)) * f64::from(self.quant(tensor).scale())
                };
                let sum: f64 = (0..from.len())
                    .map(|i| {
                        let weight = weights.get(i / from.channels).map_or(1.0, |w| f64::from(*w));
                        let b = node.inputs.get(1).map_or(0.0, |b| real(*b, i));
                        (real(first, i) - b).abs() * weight
                    })
                    .sum();
                Values::Floats(vec![(sum / from.len() as f64) as f32])
            }
            Op::FloatConcat => {
                Values::Floats(node.inputs.iter().flat_map(|input| self.of(*input).floats().to_vec()).collect())
            }
            Op::FloatLinear { weights, bias } => {
                let x = self.of(first).floats();
                let rows = weights.chunks(x.len()).zip(bias);
                Values::Floats(rows.map(|(row, b)| row.iter().zip(x).fold(*b, |sum, (w, x)| sum + w * x)).collect())
            }
        }
    }

    fn pool(&self, node: &Node, pooling: Pooling, window: Window) -> Values {
        let (first, from) = (node.inputs[0], self.shape(node.inputs[0]));
        let out = self.graph.tensors[node.output.0].out;
        self.each(node, FREE, |y, x, channel| {
            let mut inside = Vec::new();
            for r in 0..window.kernel.0 {
                for c in 0..window.kernel.1 {
                    let y = (y * window.stride.0 + r) as isize - window.padding.top as isize;
                    let x = (x * window.stride.1 + c) as isize - window.padding.left as isize;
                    if y >= 0 && x >= 0 && y < from.height as isize && x < from.width as isize {
                        inside.push(self.pixel(first, y, x, channel));
                    }
                }
            }
            let factor = self.quant(first).scale() / unit(out);
            match pooling {
                Pooling::Max => inside.iter().copied().max().expect("no window lies outside") as f32,
                Pooling::Average => inside.iter().sum::<i32>() as f32 * (factor / inside.len() as f32),
                Pooling::AveragePadded => {
                    inside.iter().sum::<i32>() as f32 * (factor / (window.kernel.0 * window.kernel.1) as f32)
                }
            }
        })
    }

    fn upsample(&self, node: &Node, upsampling: Upsampling) -> Values {
        let (first, from) = (node.inputs[0], self.shape(node.inputs[0]));
        let out = self.graph.tensors[node.output.0].out;
        // Positions as fractions with whole numbers: (whole pixel, parts of `unit`, unit).
        let at = |i: usize, n: usize| match upsampling {
            Upsampling::Nearest => (i / 2, 0, 1),
            Upsampling::BilinearHalfPixel => {
                let quarters = (2 * i + 1).max(2) - 2;
                (quarters / 4, quarters % 4, 4)
            }
            Upsampling::BilinearAsymmetric => (i / 2, i % 2, 2),
            Upsampling::BilinearAlignCorners => (i * (n - 1) / (2 * n - 1), i * (n - 1) % (2 * n - 1), 2 * n - 1),
        };
        self.each(node, FREE, |y, x, channel| {
            let ((top, down, rows), (left, over, columns)) = (at(y, from.height), at(x, from.width));
            let value = |dy: usize, dx: usize| {
                let (y, x) = ((top + dy).min(from.height - 1), (left + dx).min(from.width - 1));
                i64::from(self.pixel(first, y as isize, x as isize, channel))
            };
            let (down, over) = (down as i64, over as i64);
            let (up, before) = (rows as i64 - down, columns as i64 - over);
            let sum =
                up * (before * value(0, 0) + over * value(0, 1)) + down * (before * value(1, 0) + over * value(1, 1));
            if upsampling == Upsampling::Nearest {
                return sum as f32;
            }
            sum as f32 * (self.quant(first).scale() / unit(out) / (rows * columns) as f32)
        })
    }
}

/// Where the value with index `i` in the order of pixels lies in `order`.
fn ordered(shape: Shape, order: Order, i: usize) -> usize {
    match order {
        Order::ChannelsLast => i,
        Order::ChannelsFirst => i % shape.channels * shape.height * shape.width + i / shape.channels,
    }
}

// --- random networks ---------------------------------------------------------------------------------------------

/// xorshift: the same network for the same seed on every machine.
struct Random(u32);

impl Random {
    fn next(&mut self) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize
    }

    fn below(&mut self, n: usize) -> usize {
        self.next() % n
    }

    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())].clone()
    }

    fn float(&mut self) -> f32 {
        self.below(10_000) as f32 / 10_000.0
    }

    fn quant(&mut self) -> Quant {
        let zero_point = self.of(&[0, 0, 128, 255, 37, 200]);
        Quant::new(0.01 + self.float() * 0.05, zero_point).expect("a scale above zero")
    }

    fn weights(&mut self, count: usize) -> Vec<i8> {
        (0..count).map(|_| self.next() as i8).collect()
    }

    fn scales(&mut self, channels: usize, terms: usize) -> Vec<f32> {
        let count = if self.below(3) == 0 { 1 } else { channels };
        (0..count).map(|_| (0.3 + self.float()) / 80.0 / (terms as f32).sqrt()).collect()
    }

    fn bias(&mut self, channels: usize) -> Vec<i32> {
        let count = if self.below(4) == 0 { 0 } else { channels };
        (0..count).map(|_| self.below(4000) as i32 - 2000).collect()
    }

    fn function(&mut self, channels: usize) -> Function {
        match self.below(7) {
            0 => Function::RELU,
            1 => Function::RELU6,
            2 => Function::Slope(vec![0.1]),
            3 => Function::Slope((0..channels).map(|_| self.float() - 0.3).collect()),
            4 => Function::HardSwish,
            _ => Function::Identity,
        }
    }

    fn out(&mut self, quant: Quant) -> Out {
        if self.below(8) == 0 { Out::F32 } else { Out::U8(quant) }
    }
}

/// A network of `layers` random layers, each on tensors made before it; whatever nobody reads is given out.
fn network(seed: u32, layers: usize) -> Graph {
    let mut random = Random(seed | 1);
    let mut builder = Builder::new();
    let shape = Shape {
        height: 1 + random.below(9),
        width: 1 + random.below(12),
        channels: random.of(&[1, 2, 3, 4, 8, 16, 17]),
    };
    let order = random.of(&[Order::ChannelsFirst, Order::ChannelsLast]);
    let quant = random.quant();
    let mut tensors = vec![builder.input("x", shape, order, quant).expect("a shape")];
    let mut read = vec![true];
    for i in 0..layers {
        let bytes: Vec<usize> = (0..tensors.len()).filter(|t| builder.out(tensors[*t]) != Out::F32).collect();
        let a = if random.below(3) == 0 { random.of(&bytes) } else { bytes[bytes.len() - 1] };
        let same: Vec<usize> =
            bytes.iter().copied().filter(|t| builder.shape(tensors[*t]) == builder.shape(tensors[a])).collect();
        let b = random.of(&same);
        let Some(made) = layer(&mut builder, &mut random, &format!("n{i}"), (tensors[a], tensors[b])) else { continue };
        let new = made.expect("random layers fit");
        read[a] = true;
        tensors.push(new);
        read.push(false);
    }
    let mut given = 0;
    for (tensor, read) in tensors.iter().zip(&read) {
        if !read || random.below(6) == 0 {
            given += 1;
            builder.output(&format!("y{given}"), *tensor, random.of(&[Order::ChannelsFirst, Order::ChannelsLast]));
        }
    }
    if given == 0 {
        builder.output("y", tensors[tensors.len() - 1], Order::ChannelsFirst);
    }
    builder.build().expect("an output")
}

type Made = Result<TensorId, crate::graph::GraphError>;

fn layer(builder: &mut Builder, random: &mut Random, name: &str, (a, b): (TensorId, TensorId)) -> Option<Made> {
    let from = builder.shape(a);
    let quant = random.quant();
    let out = random.out(quant);
    let own = builder.out(a);
    let Out::U8(own_quant) = own else { return None };
    let small = from.height * from.width <= 400;
    Some(match random.below(13) {
        0..=3 => {
            let depthwise = from.channels > 1 && random.below(3) == 0;
            let kernel = random.of(&[(1, 1), (1, 1), (3, 3), (3, 3), (5, 5), (2, 2), (1, 3)]);
            let dilation = (1 + random.below(2), 1 + random.below(2));
            let padding = Padding {
                top: random.below(3),
                left: random.below(3),
                bottom: random.below(3),
                right: random.below(3),
            };
            let reach = |k: usize, d: usize| (k - 1) * d + 1;
            if reach(kernel.0, dilation.0) > from.height + padding.top + padding.bottom
                || reach(kernel.1, dilation.1) > from.width + padding.left + padding.right
            {
                return None;
            }
            let groups = if depthwise {
                from.channels
            } else if from.channels.is_multiple_of(2) && random.below(4) == 0 {
                2
            } else {
                1
            };
            let channels = if depthwise { from.channels } else { groups * random.of(&[1, 3, 8, 16, 20]) };
            let terms = from.channels / groups * kernel.0 * kernel.1;
            let conv = Conv {
                kernel,
                stride: (1 + random.below(2), 1 + random.below(2)),
                dilation,
                padding,
                groups,
                channels,
                weights: random.weights(channels * terms),
                weight_scales: random.scales(channels, terms),
                bias: random.bias(channels),
                function: random.function(channels),
            };
            builder.conv(name, a, conv, out)
        }
        4 if small => {
            let kernel = random.of(&[(2, 2), (4, 4), (3, 3), (1, 1)]);
            let padding = if kernel == (4, 4) || kernel == (3, 3) {
                Padding { top: 1, left: 1, bottom: random.below(2), right: 1 }
            } else {
                Padding::default()
            };
            if from.height * 2 < 3 || from.width * 2 < 3 {
                return None;
            }
            let channels = random.of(&[1, 4, 16, 18]);
            let terms = from.channels * kernel.0 * kernel.1;
            let conv = ConvTranspose {
                kernel,
                stride: (2, 2),
                padding,
                channels,
                weights: random.weights(channels * terms),
                weight_scales: random.scales(channels, terms),
                bias: random.bias(channels),
                function: random.function(channels),
            };
            builder.conv_transpose(name, a, conv, out)
        }
        5 if random.below(2) == 0 => builder.map(name, a, f64::tanh, quant),
        5 => builder.map_channels(name, a, |channel, x| x * (channel as f64 - 2.0), quant),
        6 | 7 => {
            let binary = random.of(&[Binary::Add, Binary::Subtract, Binary::Multiply]);
            let function = random.of(&[Function::Identity, Function::RELU, Function::RELU6]);
            builder.binary(name, binary, (a, b), &function, out)
        }
        8 => {
            // The grid of one of them, so that slices happen.
            let grid = random.of(&[own_quant, quant]);
            let parts = random.of(&[vec![a, b], vec![b, a, a], vec![a]]);
            if parts.len() * from.channels > 200 {
                return None;
            }
            builder.concat(name, &parts, Out::U8(grid))
        }
        9 => {
            let window = Window {
                kernel: (2.min(from.height), 3.min(from.width)),
                stride: (1 + random.below(2), 1 + random.below(2)),
                padding: Padding {
                    top: 0,
                    left: 0,
                    bottom: usize::from(from.height > 1),
                    right: usize::from(from.width > 2),
                },
            };
            let pooling = random.of(&[Pooling::Max, Pooling::Average, Pooling::AveragePadded]);
            builder.pool(name, a, pooling, window, if pooling == Pooling::Max { own } else { out })
        }
        10 if small => {
            let upsampling = random.of(&[
                Upsampling::Nearest,
                Upsampling::BilinearHalfPixel,
                Upsampling::BilinearAsymmetric,
                Upsampling::BilinearAlignCorners,
            ]);
            builder.upsample(name, a, upsampling, if upsampling == Upsampling::Nearest { own_quant } else { quant })
        }
        11 if from.channels.is_multiple_of(4) => {
            let order = random.of(&[DepthOrder::BlockFirst, DepthOrder::ChannelFirst]);
            builder.depth_to_space(name, a, 2, order)
        }
        12 => {
            let average = match builder.global_average(name, a, Out::F32) {
                Ok(average) => average,
                error => return Some(error),
            };
            let joined =
                builder.concat(&format!("{name}.joined"), &[average, average], Out::F32).expect("vectors join");
            let weights = (0..2 * 2 * from.channels).map(|_| random.float() - 0.5).collect();
            builder.float_linear(&format!("{name}.linear"), joined, weights, vec![0.5, -0.25])
        }
        _ => builder.dequantise(name, a),
    })
}

fn inputs(graph: &Graph, seed: u32) -> Vec<Vec<f32>> {
    let mut random = Random(seed.wrapping_mul(77) | 1);
    graph
        .inputs
        .iter()
        .map(|port| {
            let Out::U8(quant) = graph.tensors[port.tensor.0].out else { unreachable!("inputs are quantised") };
            let value = |r: usize| ((r % 260) as f32 - f32::from(quant.zero_point())) * quant.scale() * 1.01;
            (0..graph.tensors[port.tensor.0].shape.len()).map(|_| value(random.next())).collect()
        })
        .collect()
}

fn threads(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("not zero")
}

fn cases() -> u32 {
    std::env::var("VISAGED_INT8_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(300)
}

fn bits(outputs: &[Vec<f32>]) -> Vec<Vec<u32>> {
    // The two zeros are one value.
    outputs.iter().map(|output| output.iter().map(|x| (x + 0.0).to_bits()).collect()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_set_of_kernels_and_any_number_of_threads_gives_what_the_layers_mean(seed: u32, layers in 1usize..14) {
        let graph = network(seed, layers);
        let data = inputs(&graph, seed);
        let data: Vec<&[f32]> = data.iter().map(Vec::as_slice).collect();
        let expected = bits(&Interpreter::run(&graph, &data));
        for isa in Isa::available() {
            let plan = Plan::new(&graph, isa);
            for count in [1, 3] {
                let mut network = plan.network(threads(count));
                let mut outputs = Vec::new();
                // Twice: what the first run leaves behind must not matter.
                for round in 0..2 {
                    network.run(&data, &mut outputs).expect("lengths fit");
                    prop_assert!(
                        bits(&outputs) == expected,
                        "{} with {count} threads, round {round}: {:#?}", isa.name(), plan.layers(),
                    );
                }
            }
        }
    }
}

#[test]
fn slices_of_a_joined_tensor_are_written_in_place() {
    let mut builder = Builder::new();
    let quant = Quant::new(0.5, 3).unwrap();
    let shape = Shape { height: 4, width: 4, channels: 8 };
    let x = builder.input("x", shape, Order::ChannelsLast, quant).unwrap();
    let a = builder.map("a", x, |v| v * 2.0, quant).unwrap();
    let b = builder.map("b", x, |v| v + 1.0, quant).unwrap();
    let joined = builder.concat("joined", &[a, b], Out::U8(quant)).unwrap();
    builder.output("y", joined, Order::ChannelsLast);
    let plan = Plan::new(&builder.build().unwrap(), Isa::Scalar);
    assert_eq!(plan.inner.steps.len(), 2, "{:?}", plan.inner.steps);
}

#[test]
fn inputs_of_another_count_or_length_are_refused_by_name() {
    let graph = network(5, 3);
    let plan = Plan::new(&graph, Isa::best());
    let mut network = plan.network(threads(1));
    let got = network.run(&[], &mut Vec::new());
    assert_eq!(got, Err(RunError::Inputs { expected: 1, got: 0 }));
    let error = network.run(&[&[1.0; 7][..0]], &mut Vec::new()).unwrap_err();
    assert!(error.to_string().starts_with("input x takes"), "{error}");
}

fn conv_1x1(channels: usize, weights: Vec<i8>) -> Conv {
    Conv {
        kernel: (1, 1),
        stride: (1, 1),
        dilation: (1, 1),
        padding: Padding::default(),
        groups: 1,
        channels,
        weights,
        weight_scales: vec![0.1],
        bias: vec![],
        function: Function::Identity,
    }
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let quant = Quant::new(1.0, 0).unwrap();
    let out = Out::U8(quant);
    let shape = Shape { height: 3, width: 3, channels: 4 };
    let mut builder = Builder::new();
    let x = builder.input("x", shape, Order::ChannelsLast, quant).unwrap();
    let conv = |edit: &dyn Fn(&mut Conv)| {
        let mut conv = conv_1x1(2, vec![1; 8]);
        edit(&mut conv);
        conv
    };
    let mut refused = |edit: &dyn Fn(&mut Conv)| builder.conv("c7", x, conv(edit), out).unwrap_err().to_string();
    assert_eq!(refused(&|c| c.weights.truncate(5)), "node c7: 5 weights where 8 belong");
    assert!(refused(&|c| c.groups = 3).contains("do not part into 3 groups"));
    assert!(refused(&|c| c.groups = 0).contains("groups"));
    assert!(refused(&|c| c.stride = (0, 1)).contains("stride 0 is out of range"));
    assert!(refused(&|c| c.dilation = (1, usize::MAX)).contains("dilation"));
    assert!(refused(&|c| c.padding.top = usize::MAX).contains("padding"));
    assert!(refused(&|c| c.kernel = (9, 9)).contains("does not fit into 3"));
    assert!(refused(&|c| c.weight_scales = vec![f32::NAN]).contains("a scale is NaN"));
    assert!(refused(&|c| c.weight_scales = vec![-1.0]).contains("a scale is -1"));
    assert!(refused(&|c| c.weight_scales = vec![1.0; 3]).contains("3 weight scales for 2"));
    assert!(refused(&|c| c.bias = vec![i32::MAX; 2]).contains("a sum would be"));
    assert!(refused(&|c| c.bias = vec![1]).contains("1 biases for 2"));
    assert!(refused(&|c| c.function = Function::Slope(vec![f32::INFINITY])).contains("a slope is not finite"));
    assert!(refused(&|c| c.function = Function::Clip { low: 1.0, high: f32::NAN }).contains("leaves nothing"));
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-45] {
        assert!(Quant::new(scale, 0).is_err(), "{scale}");
    }
    let huge = Shape { height: 1 << 14, width: 1 << 14, channels: 8 };
    assert!(
        builder.input("big", huge, Order::ChannelsLast, quant).unwrap_err().to_string().contains("a tensor would be")
    );
    let absurd = Shape { height: usize::MAX, width: usize::MAX, channels: usize::MAX };
    assert!(builder.input("absurd", absurd, Order::ChannelsLast, quant).is_err());
    assert!(Builder::new().build().is_err());
}
