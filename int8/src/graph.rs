//! Quantised networks as they are described: layers, shapes, scales. Nothing is decided here about memory or processors.
//!
//! A [`Graph`] can only be made through its [`Builder`], layer by layer; each layer is checked as it comes and refused by name. So a
//! graph that exists has shapes that fit, scales above zero, sums that cannot overflow, and no cycles (a layer takes tensors that exist).
//!
//! # What the numbers mean
//! A byte q of a tensor with [`Quant`] (scale, zero-point) stands for `(q - zero_point) * scale`. Each layer computes on what
//! its inputs stand for and rounds its result to its output's grid once: `q = clamp(round(x / scale) + zero_point, 0, 255)`, half to even. Sums
//! of products are exact integers; what follows is `f32`, one step after another, in the order that [`Post`](crate::kernels::Post) and `simple` write down. That
//! is the whole rule, on every processor. It is ONNX's QuantizeLinear on the exact sum, but for the rounding of `f32` scales: at most one step from it.

use crate::kernels::BLOCK;

/// How bytes stand for real numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Quant {
    scale: f32,
    zero_point: u8,
}

impl Quant {
    /// A grid with steps of `scale`, where `zero_point` stands for 0.
    ///
    /// # Errors
    /// [`Refusal::Scale`] unless the scale is above zero, finite and normal.
    pub fn new(scale: f32, zero_point: u8) -> Result<Self, Refusal> {
        if scale.is_normal() && scale > 0.0 { Ok(Self { scale, zero_point }) } else { Err(Refusal::Scale(scale)) }
    }

    /// What one step stands for.
    pub fn scale(self) -> f32 {
        self.scale
    }

    /// The byte that stands for 0.
    pub fn zero_point(self) -> u8 {
        self.zero_point
    }
}

/// What a layer gives out.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Out {
    /// Bytes on a grid.
    U8(Quant),
    /// Real numbers.
    F32,
}

/// The size of a tensor; the batch is always 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
    /// Channels.
    pub channels: usize,
}

impl Shape {
    /// Its number of values.
    pub fn len(self) -> usize {
        self.height * self.width * self.channels
    }

    /// Whether it holds nothing; no tensor of a graph does.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.height, self.width, self.channels)
    }
}

/// A tensor of the graph that gave it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub(crate) usize);

/// Rows and columns of something.
pub type Pair = (usize, usize);

/// Pixels around a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns before.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns behind.
    pub right: usize,
}

/// A function applied to each real value before it is rounded.
#[derive(Clone, Debug, PartialEq)]
pub enum Function {
    /// None.
    Identity,
    /// `clamp(x, low, high)`: ReLU is (0, infinity), ReLU6 (0, 6).
    Clip {
        /// Lowest value, may be minus infinity.
        low: f32,
        /// Highest value, may be infinity.
        high: f32,
    },
    /// Below 0 times a factor: one, or one a channel. Leaky ReLU, PReLU.
    Slope(Vec<f32>),
    /// `x * clamp(x / 6 + 1 / 2, 0, 1)`.
    HardSwish,
}

impl Function {
    /// `max(x, 0)`.
    pub const RELU: Self = Self::Clip { low: 0.0, high: f32::INFINITY };
    /// `min(max(x, 0), 6)`.
    pub const RELU6: Self = Self::Clip { low: 0.0, high: 6.0 };
}

/// A convolution: `[output][input of its group][row][column]` weights, symmetric, with a scale an output channel.
#[derive(Clone, Debug)]
pub struct Conv {
    /// Rows and columns of the kernel.
    pub kernel: Pair,
    /// Steps.
    pub stride: Pair,
    /// Distance of the taps.
    pub dilation: Pair,
    /// The input counts as 0 (its zero-point) there.
    pub padding: Padding,
    /// Groups; as many as channels in and out is a depthwise convolution.
    pub groups: usize,
    /// Output channels.
    pub channels: usize,
    /// The weights.
    pub weights: Vec<i8>,
    /// Scales of the weights: one, or one an output channel.
    pub weight_scales: Vec<f32>,
    /// One an output channel in units of input scale times weight scale, or none.
    pub bias: Vec<i32>,
    /// Applied to the result.
    pub function: Function,
}

/// A transposed convolution: `[input][output][row][column]` weights. Output rows: `(rows - 1) * stride + kernel - top - bottom`.
#[derive(Clone, Debug)]
pub struct ConvTranspose {
    /// Rows and columns of the kernel.
    pub kernel: Pair,
    /// Steps of the output.
    pub stride: Pair,
    /// Cut off the output.
    pub padding: Padding,
    /// Output channels.
    pub channels: usize,
    /// The weights.
    pub weights: Vec<i8>,
    /// Scales of the weights: one, or one an output channel.
    pub weight_scales: Vec<f32>,
    /// One an output channel in units of input scale times weight scale, or none.
    pub bias: Vec<i32>,
    /// Applied to the result.
    pub function: Function,
}

/// Which of a window's values a pooling gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The largest; padding does not count.
    Max,
    /// The mean of those within the picture.
    Average,
    /// The sum over the window's size, padding counted as 0.
    AveragePadded,
}

/// A pooling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Rows and columns.
    pub kernel: Pair,
    /// Steps.
    pub stride: Pair,
    /// Around the picture.
    pub padding: Padding,
}

/// How an upsampling by 2 finds its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upsampling {
    /// Each pixel four times.
    Nearest,
    /// Linear; output pixel i lies at `(i + 0.5) / 2 - 0.5`.
    BilinearHalfPixel,
    /// Linear; output pixel i lies at `i / 2`.
    BilinearAsymmetric,
    /// Linear; the corners' centres fall together.
    BilinearAlignCorners,
}

/// Order of the channels that a depth-to-space takes apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DepthOrder {
    /// Row, column, channel (ONNX "DCR").
    BlockFirst,
    /// Channel, row, column (ONNX "CRD").
    ChannelFirst,
}

/// Two values to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binary {
    /// a + b
    Add,
    /// a - b
    Subtract,
    /// a * b
    Multiply,
}

/// A layer.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Conv(Conv),
    ConvTranspose(ConvTranspose),
    /// Bytes by table: one table, or one a channel.
    Map(Vec<[u8; 256]>),
    /// The second may be one pixel that counts for all.
    Binary {
        binary: Binary,
        low: f32,
        high: f32,
    },
    Concat,
    Pool {
        pooling: Pooling,
        window: Window,
    },
    Upsample(Upsampling),
    DepthToSpace {
        block: usize,
        order: DepthOrder,
    },
    Dequantise,
    /// Mean over all values of `weight[pixel] * |a - b|`, b being 0 where there is none; no weights are ones.
    MeanAbsolute {
        weights: Vec<f32>,
    },
    /// Float vectors end to end.
    FloatConcat,
    /// Float: `bias + weights [output][input] * x`, summed in order.
    FloatLinear {
        weights: Vec<f32>,
        bias: Vec<f32>,
    },
}

impl Op {
    /// The name that reports use.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Conv(_) => "conv",
            Self::ConvTranspose(_) => "conv-transpose",
            Self::Map(_) => "map",
            Self::Binary { binary: Binary::Add, .. } => "add",
            Self::Binary { binary: Binary::Subtract, .. } => "subtract",
            Self::Binary { binary: Binary::Multiply, .. } => "multiply",
            Self::Concat => "concat",
            Self::Pool { pooling: Pooling::Max, .. } => "max-pool",
            Self::Pool { .. } => "average-pool",
            Self::Upsample(Upsampling::Nearest) => "upsample-nearest",
            Self::Upsample(_) => "upsample-bilinear",
            Self::DepthToSpace { .. } => "depth-to-space",
            Self::Dequantise => "dequantise",
            Self::MeanAbsolute { .. } => "mean-absolute",
            Self::FloatConcat => "float-concat",
            Self::FloatLinear { .. } => "float-linear",
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) shape: Shape,
    pub(crate) out: Out,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) op: Op,
    pub(crate) inputs: Vec<TensorId>,
    pub(crate) output: TensorId,
}

/// How the floats of an input or output are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Channel by channel, as ONNX has pictures (NCHW).
    ChannelsFirst,
    /// Pixel by pixel (NHWC).
    ChannelsLast,
}

/// An input or output of the graph.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) tensor: TensorId,
    pub(crate) order: Order,
}

/// A network: see the module.
#[derive(Clone, Debug)]
pub struct Graph {
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) nodes: Vec<Node>,
    pub(crate) inputs: Vec<Port>,
    pub(crate) outputs: Vec<Port>,
}

/// A layer that was refused, by name.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("node {node}: {refusal}")]
pub struct GraphError {
    /// The layer's name in the file.
    pub node: String,
    /// What is wrong with it.
    #[source]
    pub refusal: Refusal,
}

/// What is wrong with a layer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// A scale that is none.
    #[error("a scale is {0}; it has to be above zero and finite")]
    Scale(f32),
    /// A shape that cannot be.
    #[error("{0}")]
    Shape(String),
    /// More memory or work than any network for small boards has.
    #[error("{what} would be {size}, the limit is {limit}")]
    Size {
        /// Of what.
        what: &'static str,
        /// How much.
        size: u128,
        /// What is taken at most.
        limit: u128,
    },
    /// A parameter out of range.
    #[error("{0}")]
    Parameter(String),
    /// Bytes where floats are taken, or the other way.
    #[error("takes {0}")]
    Kind(&'static str),
}

/// Values in one tensor, at most.
const LARGEST_TENSOR: usize = 1 << 26;
/// Pixels in one direction, at most.
const LARGEST_SIDE: usize = 1 << 14;
/// Channels, at most.
const MOST_CHANNELS: usize = 1 << 13;
/// Multiply-accumulates in one layer, at most.
const MOST_WORK: u128 = 1 << 40;
/// Kernel, stride, dilation, padding, at most.
const LARGEST_STEP: usize = 1 << 10;
/// Layers, at most.
const MOST_NODES: usize = 1 << 14;

/// Makes a [`Graph`], layer by layer.
#[derive(Debug, Default)]
pub struct Builder {
    tensors: Vec<Tensor>,
    nodes: Vec<Node>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

type Built = Result<TensorId, GraphError>;

fn shape(message: impl Into<String>) -> Refusal {
    Refusal::Shape(message.into())
}

fn limit(what: &'static str, size: u128, limit: u128) -> Result<(), Refusal> {
    if size <= limit { Ok(()) } else { Err(Refusal::Size { what, size, limit }) }
}

impl Builder {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The shape of a tensor made so far.
    pub fn shape(&self, tensor: TensorId) -> Shape {
        self.tensors[tensor.0].shape
    }

    /// What a tensor made so far holds.
    pub fn out(&self, tensor: TensorId) -> Out {
        self.tensors[tensor.0].out
    }

    /// The grid of a tensor of bytes.
    fn quant(&self, tensor: TensorId) -> Result<Quant, Refusal> {
        match self.tensors[tensor.0].out {
            Out::U8(quant) => Ok(quant),
            Out::F32 => Err(Refusal::Kind("quantised tensors, not real numbers")),
        }
    }

    /// An input: floats in `order`, quantised as they come in.
    ///
    /// # Errors
    /// [`GraphError`] for an absurd shape.
    pub fn input(&mut self, name: &str, shape: Shape, order: Order, quant: Quant) -> Built {
        let tensor = self.tensor(name, shape, Out::U8(quant))?;
        self.inputs.push(Port { name: name.into(), tensor, order });
        Ok(tensor)
    }

    /// Declares an output: floats in `order`, dequantised where the tensor holds bytes.
    pub fn output(&mut self, name: &str, tensor: TensorId, order: Order) {
        self.outputs.push(Port { name: name.into(), tensor, order });
    }

    /// A convolution, a linear layer (as a 1x1 convolution of one pixel, or a kernel as large as the picture).
    ///
    /// # Errors
    /// [`GraphError`] where a parameter, a count or a scale does not fit, or a sum could overflow.
    pub fn conv(&mut self, name: &str, input: TensorId, conv: Conv, out: Out) -> Built {
        let shape = self.check_conv(input, &conv, out).map_err(|refusal| refuse(name, refusal))?;
        self.node(name, Op::Conv(conv), vec![input], shape, out)
    }

    fn check_conv(&self, input: TensorId, conv: &Conv, out: Out) -> Result<Shape, Refusal> {
        let quant = self.quant(input)?;
        let from = self.shape(input);
        if conv.groups == 0 || !from.channels.is_multiple_of(conv.groups) || !conv.channels.is_multiple_of(conv.groups)
        {
            let (a, b, g) = (from.channels, conv.channels, conv.groups);
            return Err(shape(format!("{a} channels in and {b} out do not part into {g} groups")));
        }
        let taken = from.channels / conv.groups;
        let height =
            extent(from.height, conv.kernel.0, conv.stride.0, conv.dilation.0, conv.padding.top, conv.padding.bottom)?;
        let width =
            extent(from.width, conv.kernel.1, conv.stride.1, conv.dilation.1, conv.padding.left, conv.padding.right)?;
        let terms = taken * conv.kernel.0 * conv.kernel.1;
        check_weights(conv.channels, terms, &conv.weights, &conv.weight_scales, &conv.bias, quant, out)?;
        let sums = |channel: usize| conv.weights[channel * terms..][..terms].iter().copied();
        check_sums(conv.channels, sums, &conv.bias, quant)?;
        check_function(&conv.function, conv.channels)?;
        limit("the work", (height * width * conv.channels) as u128 * terms as u128, MOST_WORK)?;
        Ok(Shape { height, width, channels: conv.channels })
    }

    /// A transposed convolution.
    ///
    /// # Errors
    /// [`GraphError`] as for [`Builder::conv`].
    pub fn conv_transpose(&mut self, name: &str, input: TensorId, conv: ConvTranspose, out: Out) -> Built {
        let shape = self.check_conv_transpose(input, &conv, out).map_err(|refusal| refuse(name, refusal))?;
        self.node(name, Op::ConvTranspose(conv), vec![input], shape, out)
    }

    fn check_conv_transpose(&self, input: TensorId, conv: &ConvTranspose, out: Out) -> Result<Shape, Refusal> {
        let quant = self.quant(input)?;
        let from = self.shape(input);
        let height =
            extent_transposed(from.height, conv.kernel.0, conv.stride.0, conv.padding.top, conv.padding.bottom)?;
        let width = extent_transposed(from.width, conv.kernel.1, conv.stride.1, conv.padding.left, conv.padding.right)?;
        let area = conv.kernel.0 * conv.kernel.1;
        let terms = from.channels * area;
        check_weights(conv.channels, terms, &conv.weights, &conv.weight_scales, &conv.bias, quant, out)?;
        let sums = |channel: usize| {
            let weights = &conv.weights;
            (0..from.channels)
                .flat_map(move |i| weights[(i * conv.channels + channel) * area..][..area].iter().copied())
        };
        check_sums(conv.channels, sums, &conv.bias, quant)?;
        check_function(&conv.function, conv.channels)?;
        limit("the work", (from.height * from.width * conv.channels) as u128 * terms as u128, MOST_WORK)?;
        Ok(Shape { height, width, channels: conv.channels })
    }

    /// Any function of one real value, as a table of 256: sigmoid, tanh, another grid.
    ///
    /// # Errors
    /// [`GraphError`] where the input holds no bytes.
    pub fn map(&mut self, name: &str, input: TensorId, function: impl Fn(f64) -> f64, out: Quant) -> Built {
        let quant = self.quant(input).map_err(|refusal| refuse(name, refusal))?;
        let shape = self.shape(input);
        self.node(name, Op::Map(vec![table(quant, out, function)]), vec![input], shape, Out::U8(out))
    }

    /// As [`Builder::map`] with a function of the channel and the value: PReLU, a scale and an offset a channel.
    ///
    /// # Errors
    /// [`GraphError`] where the input holds no bytes.
    pub fn map_channels(
        &mut self,
        name: &str,
        input: TensorId,
        function: impl Fn(usize, f64) -> f64,
        out: Quant,
    ) -> Built {
        let quant = self.quant(input).map_err(|refusal| refuse(name, refusal))?;
        let shape = self.shape(input);
        let tables = (0..shape.channels).map(|channel| table(quant, out, |x| function(channel, x))).collect();
        self.node(name, Op::Map(tables), vec![input], shape, Out::U8(out))
    }

    /// Sum, difference or product of two tensors of one shape, clipped; `b` may be one pixel that counts for every pixel of `a`.
    ///
    /// # Errors
    /// [`GraphError`] where shapes or kinds do not fit, or the function is not [`Function::Identity`] or [`Function::Clip`].
    pub fn binary(
        &mut self,
        name: &str,
        binary: Binary,
        inputs: (TensorId, TensorId),
        function: &Function,
        out: Out,
    ) -> Built {
        let (a, b) = inputs;
        let (low, high) = self.check_binary(a, b, function).map_err(|refusal| refuse(name, refusal))?;
        let shape = self.shape(a);
        self.node(name, Op::Binary { binary, low, high }, vec![a, b], shape, out)
    }

    fn check_binary(&self, a: TensorId, b: TensorId, function: &Function) -> Result<(f32, f32), Refusal> {
        self.quant(a)?;
        self.quant(b)?;
        let (from, with) = (self.shape(a), self.shape(b));
        if with != from && with != (Shape { height: 1, width: 1, channels: from.channels }) {
            return Err(shape(format!("{from} and {with} do not go together")));
        }
        match *function {
            Function::Identity => Ok((f32::NEG_INFINITY, f32::INFINITY)),
            Function::Clip { low, high } if low <= high => Ok((low, high)),
            _ => Err(Refusal::Parameter("only clipping can follow a sum or product of two tensors".into())),
        }
    }

    /// Tensors of one height and width, channel behind channel; quantised ones on the grid of `out`, floats as they are.
    ///
    /// # Errors
    /// [`GraphError`] where shapes or kinds do not fit.
    pub fn concat(&mut self, name: &str, inputs: &[TensorId], out: Out) -> Built {
        let shape = self.check_concat(inputs, out).map_err(|refusal| refuse(name, refusal))?;
        let op = if out == Out::F32 { Op::FloatConcat } else { Op::Concat };
        self.node(name, op, inputs.to_vec(), shape, out)
    }

    fn check_concat(&self, inputs: &[TensorId], out: Out) -> Result<Shape, Refusal> {
        let first = self.shape(*inputs.first().ok_or_else(|| shape("nothing to join"))?);
        let mut channels = 0;
        for input in inputs {
            let next = self.shape(*input);
            if (next.height, next.width) != (first.height, first.width) {
                return Err(shape(format!("{first} and {next} do not join")));
            }
            if (self.out(*input) == Out::F32) != (out == Out::F32) {
                return Err(Refusal::Kind("either quantised tensors or real numbers, not both"));
            }
            channels += next.channels;
        }
        if out == Out::F32 && first.height * first.width != 1 {
            return Err(shape("real numbers are joined as vectors, not as pictures"));
        }
        Ok(Shape { channels, ..first })
    }

    /// A pooling. The largest keeps its input's grid, so `out` has to be it.
    ///
    /// # Errors
    /// [`GraphError`] where the window does not fit.
    pub fn pool(&mut self, name: &str, input: TensorId, pooling: Pooling, window: Window, out: Out) -> Built {
        let shape = self.check_pool(input, pooling, window, out).map_err(|refusal| refuse(name, refusal))?;
        self.node(name, Op::Pool { pooling, window }, vec![input], shape, out)
    }

    fn check_pool(&self, input: TensorId, pooling: Pooling, window: Window, out: Out) -> Result<Shape, Refusal> {
        let quant = self.quant(input)?;
        let from = self.shape(input);
        let Window { kernel, stride, padding } = window;
        if padding.top.max(padding.bottom) >= kernel.0 || padding.left.max(padding.right) >= kernel.1 {
            return Err(Refusal::Parameter("a pooling window may not lie in the padding alone".into()));
        }
        let height = extent(from.height, kernel.0, stride.0, 1, padding.top, padding.bottom)?;
        let width = extent(from.width, kernel.1, stride.1, 1, padding.left, padding.right)?;
        if pooling == Pooling::Max && out != Out::U8(quant) {
            return Err(Refusal::Parameter("the largest value keeps its grid".into()));
        }
        let work = (height * width * from.channels) as u128 * (kernel.0 * kernel.1) as u128;
        limit("the work", work, MOST_WORK)?;
        Ok(Shape { height, width, channels: from.channels })
    }

    /// The mean over the whole picture, one pixel.
    ///
    /// # Errors
    /// [`GraphError`] where the input holds no bytes.
    pub fn global_average(&mut self, name: &str, input: TensorId, out: Out) -> Built {
        let Shape { height, width, .. } = self.shape(input);
        let window = Window { kernel: (height, width), stride: (1, 1), padding: Padding::default() };
        self.pool(name, input, Pooling::Average, window, out)
    }

    /// Twice as high and wide. Nearest keeps its input's grid, so `out` has to be it.
    ///
    /// # Errors
    /// [`GraphError`] for an absurd size or another grid.
    pub fn upsample(&mut self, name: &str, input: TensorId, upsampling: Upsampling, out: Quant) -> Built {
        let quant = self.quant(input).map_err(|refusal| refuse(name, refusal))?;
        if upsampling == Upsampling::Nearest && out != quant {
            return Err(refuse(name, Refusal::Parameter("repeated pixels keep their grid".into())));
        }
        let from = self.shape(input);
        if upsampling == Upsampling::BilinearAlignCorners {
            // The weights' common denominator grows with the picture; sums of bytes times it stay within i32 up to here.
            let side = from.height.max(from.width) as u128;
            limit("a side of a picture with aligned corners", side, 1024).map_err(|refusal| refuse(name, refusal))?;
        }
        let shape = Shape { height: from.height * 2, width: from.width * 2, channels: from.channels };
        self.node(name, Op::Upsample(upsampling), vec![input], shape, Out::U8(out))
    }

    /// `block * block` channels become a square of pixels; the grid stays.
    ///
    /// # Errors
    /// [`GraphError`] where the channels do not part.
    pub fn depth_to_space(&mut self, name: &str, input: TensorId, block: usize, order: DepthOrder) -> Built {
        let quant = self.quant(input).map_err(|refusal| refuse(name, refusal))?;
        let from = self.shape(input);
        let parts = block.saturating_mul(block);
        if block == 0 || !from.channels.is_multiple_of(parts) {
            let message = format!("{} channels do not make squares of {block} by {block}", from.channels);
            return Err(refuse(name, shape(message)));
        }
        let shape = Shape { height: from.height * block, width: from.width * block, channels: from.channels / parts };
        self.node(name, Op::DepthToSpace { block, order }, vec![input], shape, Out::U8(quant))
    }

    /// The real numbers that bytes stand for.
    ///
    /// # Errors
    /// [`GraphError`] where the input holds none.
    pub fn dequantise(&mut self, name: &str, input: TensorId) -> Built {
        self.quant(input).map_err(|refusal| refuse(name, refusal))?;
        let shape = self.shape(input);
        self.node(name, Op::Dequantise, vec![input], shape, Out::F32)
    }

    /// The mean over all pixels and channels of `weight * |a - b|` (of `weight * |a|` without b), one real number. `weights`: one a pixel, or none.
    ///
    /// # Errors
    /// [`GraphError`] where shapes or counts do not fit.
    pub fn mean_absolute(&mut self, name: &str, a: TensorId, b: Option<TensorId>, weights: Vec<f32>) -> Built {
        let from = self.shape(a);
        let check = || {
            self.quant(a)?;
            if let Some(b) = b {
                self.quant(b)?;
                if self.shape(b) != from {
                    return Err(shape(format!("{from} and {} do not go together", self.shape(b))));
                }
            }
            if !weights.is_empty() && weights.len() != from.height * from.width {
                return Err(shape(format!("{} weights for {from}", weights.len())));
            }
            Ok(())
        };
        check().map_err(|refusal| refuse(name, refusal))?;
        let inputs = std::iter::once(a).chain(b).collect();
        self.node(name, Op::MeanAbsolute { weights }, inputs, Shape { height: 1, width: 1, channels: 1 }, Out::F32)
    }

    /// A small linear layer on real numbers, for the head of a network: `bias + weights * x`, weights `[output][input]`.
    ///
    /// # Errors
    /// [`GraphError`] where counts do not fit or the input is not a float vector.
    pub fn float_linear(&mut self, name: &str, input: TensorId, weights: Vec<f32>, bias: Vec<f32>) -> Built {
        let from = self.shape(input);
        let outputs = bias.len();
        let check = || {
            if self.out(input) != Out::F32 {
                return Err(Refusal::Kind("real numbers, not a quantised tensor"));
            }
            if from.height * from.width != 1 || outputs == 0 || weights.len() != outputs * from.channels {
                return Err(shape(format!("{} weights and {outputs} outputs for {from}", weights.len())));
            }
            Ok(())
        };
        check().map_err(|refusal| refuse(name, refusal))?;
        let shape = Shape { height: 1, width: 1, channels: outputs };
        self.node(name, Op::FloatLinear { weights, bias }, vec![input], shape, Out::F32)
    }

    /// The graph. Layers that no output needs are left out.
    ///
    /// # Errors
    /// [`GraphError`] where it has no output.
    pub fn build(self) -> Result<Graph, GraphError> {
        if self.outputs.is_empty() {
            return Err(refuse("outputs", shape("the graph gives nothing out")));
        }
        let mut needed = vec![false; self.tensors.len()];
        for port in self.outputs.iter().chain(&self.inputs) {
            needed[port.tensor.0] = true;
        }
        let nodes = propagate(self.nodes, &mut needed);
        Ok(Graph { tensors: self.tensors, nodes, inputs: self.inputs, outputs: self.outputs })
    }

    fn tensor(&mut self, name: &str, shape: Shape, out: Out) -> Built {
        let Shape { height, width, channels } = shape;
        let check = || {
            limit("a side", height.max(width) as u128, LARGEST_SIDE as u128)?;
            limit("the number of channels", channels as u128, MOST_CHANNELS as u128)?;
            if shape.is_empty() {
                return Err(self::shape(format!("{shape} holds nothing")));
            }
            limit("a tensor", height as u128 * width as u128 * channels as u128, LARGEST_TENSOR as u128)
        };
        check().map_err(|refusal| refuse(name, refusal))?;
        self.tensors.push(Tensor { shape, out });
        Ok(TensorId(self.tensors.len() - 1))
    }

    fn node(&mut self, name: &str, op: Op, inputs: Vec<TensorId>, shape: Shape, out: Out) -> Built {
        limit("the number of layers", self.nodes.len() as u128 + 1, MOST_NODES as u128)
            .map_err(|refusal| refuse(name, refusal))?;
        let output = self.tensor(name, shape, out)?;
        self.nodes.push(Node { name: name.into(), op, inputs, output });
        Ok(output)
    }
}

/// Keeps the layers that something needs, in order.
fn propagate(nodes: Vec<Node>, needed: &mut [bool]) -> Vec<Node> {
    let mut kept: Vec<Node> = Vec::with_capacity(nodes.len());
    for node in nodes.into_iter().rev() {
        if needed[node.output.0] {
            for input in &node.inputs {
                needed[input.0] = true;
            }
            kept.push(node);
        }
    }
    kept.reverse();
    kept
}

fn refuse(node: &str, refusal: Refusal) -> GraphError {
    GraphError { node: node.into(), refusal }
}

/// Pixels that a window gives in one direction.
fn extent(
    n: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    before: usize,
    behind: usize,
) -> Result<usize, Refusal> {
    for (what, value, least) in
        [("kernel", kernel, 1), ("stride", stride, 1), ("dilation", dilation, 1), ("padding", before.max(behind), 0)]
    {
        // A pooling over the whole picture has a kernel as large as the picture may be.
        let most = if what == "kernel" { LARGEST_SIDE } else { LARGEST_STEP };
        if value < least || value > most {
            return Err(Refusal::Parameter(format!("{what} {value} is out of range ({least} to {most})")));
        }
    }
    let (padded, reach) = (n + before + behind, (kernel - 1) * dilation + 1);
    if reach > padded {
        return Err(shape(format!("a kernel that reaches over {reach} pixels does not fit into {padded}")));
    }
    Ok((padded - reach) / stride + 1)
}

fn extent_transposed(n: usize, kernel: usize, stride: usize, before: usize, behind: usize) -> Result<usize, Refusal> {
    for (what, value, least) in [("kernel", kernel, 1), ("stride", stride, 1), ("padding", before.max(behind), 0)] {
        if value < least || value > LARGEST_STEP {
            return Err(Refusal::Parameter(format!("{what} {value} is out of range ({least} to {LARGEST_STEP})")));
        }
    }
    let full = (n - 1) * stride + kernel;
    full.checked_sub(before + behind)
        .filter(|left| *left > 0)
        .ok_or_else(|| shape(format!("padding of {before} and {behind} leaves nothing of {full} pixels")))
}

fn check_weights(
    channels: usize,
    terms: usize,
    weights: &[i8],
    scales: &[f32],
    bias: &[i32],
    quant: Quant,
    out: Out,
) -> Result<(), Refusal> {
    limit("the number of channels", channels as u128, MOST_CHANNELS as u128)?;
    let count = channels as u128 * terms as u128;
    if weights.len() as u128 != count || count == 0 {
        return Err(shape(format!("{} weights where {count} belong", weights.len())));
    }
    if scales.len() != 1 && scales.len() != channels {
        return Err(shape(format!("{} weight scales for {channels} output channels", scales.len())));
    }
    if !bias.is_empty() && bias.len() != channels {
        return Err(shape(format!("{} biases for {channels} output channels", bias.len())));
    }
    for &scale in scales {
        let unit = rescale(quant, scale, out);
        // A scale of zero stands for a channel whose weights are all zero in some files; it is as good as any other there.
        if !(unit.is_finite() && scale >= 0.0 && scale.is_finite()) {
            return Err(Refusal::Scale(scale));
        }
    }
    Ok(())
}

/// From the unit of a sum to the unit of the output.
pub(crate) fn rescale(input: Quant, weight_scale: f32, out: Out) -> f32 {
    match out {
        Out::U8(out) => input.scale * weight_scale / out.scale,
        Out::F32 => input.scale * weight_scale,
    }
}

/// No sum, on the way with zero-points folded in or not, may leave i32.
fn check_sums<I: Iterator<Item = i8>>(
    channels: usize,
    weights: impl Fn(usize) -> I,
    bias: &[i32],
    quant: Quant,
) -> Result<(), Refusal> {
    for channel in 0..channels {
        let (mut total, mut size) = (0_i64, 0_i64);
        for weight in weights(channel) {
            total += i64::from(weight);
            size += i64::from(weight).abs();
        }
        let bias = bias.get(channel).map_or(0, |b| i64::from(*b));
        let folded = bias - i64::from(quant.zero_point) * total;
        // 128 more a weight: ARM kernels take inputs as signed.
        let worst = folded.abs().max(bias.abs()) + 383 * size;
        limit("a sum", u128::from(worst.unsigned_abs()), i32::MAX as u128)?;
    }
    Ok(())
}

fn check_function(function: &Function, channels: usize) -> Result<(), Refusal> {
    match function {
        Function::Identity | Function::HardSwish => Ok(()),
        Function::Clip { low, high } if low <= high => Ok(()),
        Function::Clip { low, high } => {
            Err(Refusal::Parameter(format!("clipping from {low} to {high} leaves nothing")))
        }
        Function::Slope(slopes) if slopes.len() != 1 && slopes.len() != channels => {
            Err(shape(format!("{} slopes for {channels} channels", slopes.len())))
        }
        Function::Slope(slopes) if slopes.iter().all(|s| s.is_finite()) => Ok(()),
        Function::Slope(_) => Err(Refusal::Parameter("a slope is not finite".into())),
    }
}

/// The bytes that stand for `function` of what each byte stands for.
fn table(from: Quant, to: Quant, function: impl Fn(f64) -> f64) -> [u8; 256] {
    std::array::from_fn(|q| {
        let x = (q as f64 - f64::from(from.zero_point)) * f64::from(from.scale);
        let y = (function(x) / f64::from(to.scale)).round_ties_even() + f64::from(to.zero_point);
        // NaN becomes 0.
        y.clamp(0.0, 255.0) as u8
    })
}

impl Graph {
    /// Multiply-accumulates of one run.
    pub fn multiply_accumulates(&self) -> u64 {
        self.nodes.iter().map(|node| self.work(node)).sum()
    }

    /// Multiply-accumulates of one layer.
    pub(crate) fn work(&self, node: &Node) -> u64 {
        let (from, to) = (self.tensors[node.inputs[0].0].shape, self.tensors[node.output.0].shape);
        let work = match &node.op {
            Op::Conv(conv) => to.len() * (from.channels / conv.groups) * conv.kernel.0 * conv.kernel.1,
            Op::ConvTranspose(conv) => from.len() * to.channels * conv.kernel.0 * conv.kernel.1,
            Op::FloatLinear { weights, .. } => weights.len(),
            _ => 0,
        };
        work as u64
    }
}

/// `values` filled up with 0 to whole blocks.
pub(crate) fn fill_up<T: Copy + Default>(values: impl Iterator<Item = T>, channels: usize) -> Box<[T]> {
    let mut all: Vec<T> = values.collect();
    all.resize(channels.next_multiple_of(BLOCK), T::default());
    all.into()
}
