//! Lowering: finds what the int8 engine can compute in an ONNX graph with QuantizeLinear and DequantizeLinear pairs, and describes it to
//! that engine. What is left stays an ONNX graph, in which each lowered part is one node.
//!
//! Real-valued tensors are kept as expressions until something asks for them on a grid (QuantizeLinear) or as real numbers (an output, a
//! node that is left); then the layer is made with all that was fused into it. A node that cannot be lowered is left with its reason, and
//! its inputs are asked for as real numbers. Everything behind a node that was left belongs to a later segment than everything before it, so
//! segments never wait for one another in a circle.
//!
//! Invariants: nothing in a file is believed (see [`ModelError`]); memory is bounded by [`MOST_BYTES`] and [`MOST_CONSTANTS`]
//! whatever a file says; the same graph gives the same segments. Knows ONNX and the int8 engine's description of
//! networks, no engine that runs graphs.

mod emit;
mod function;
mod model;
mod part;
mod read;
mod rest;
#[cfg(test)]
pub(super) mod tests;
mod view;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::rc::Rc;

use tract_onnx::pb::ModelProto;
use visaged_int8::graph::{
    Binary, Builder, DepthOrder, Graph, GraphError, Out, Padding, Pair, Pooling, Quant, Refusal, Shape, TensorId,
    Upsampling, Window,
};

use self::function::Unary;
use self::model::{Constant, Model};
pub use self::model::{Fault, ModelError, Place};
pub(super) use self::part::prune;
use self::view::View;

/// Bytes of all tensors of the lowered layers together, padding included, at most.
pub const MOST_BYTES: u128 = 1 << 28;
/// Bytes of weights and tables of the lowered layers together, at most, as they are packed.
pub const MOST_CONSTANTS: u128 = 1 << 27;
/// Functions in one chain, at most.
const LONGEST_CHAIN: usize = 8;
/// Expressions within one another, at most.
const DEEPEST: usize = 12;

/// The domain of the nodes that stand for lowered segments.
pub const DOMAIN: &str = "visaged";
/// Their operation.
pub const SEGMENT: &str = "Int8Segment";

/// A graph in its two parts.
#[derive(Debug)]
pub struct Lowered {
    /// What the int8 engine runs; segment `i` is the node called [`segment_name`]`(i)` in `rest`.
    pub segments: Vec<Segment>,
    /// What is left; `None` where one segment is the whole graph.
    pub rest: Option<ModelProto>,
    /// What became of each node.
    pub report: Lowering,
}

/// The name of a segment's node.
pub fn segment_name(i: usize) -> String {
    format!("visaged.segment.{i}")
}

/// A part of the graph for the int8 engine: real numbers at its edges.
#[derive(Debug)]
pub struct Segment {
    /// Its network.
    pub graph: Graph,
    /// Tensors of the ONNX graph, in the order of the network's inputs; one may come twice.
    pub inputs: Vec<Port>,
    /// Tensors of the ONNX graph, in the order of the network's outputs.
    pub outputs: Vec<Port>,
}

/// A tensor at the edge of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name in the ONNX graph.
    pub name: String,
    /// Its dimensions there.
    pub dims: Vec<usize>,
}

/// What became of each node of a graph that its outputs need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lowering {
    /// In the graph's order.
    pub nodes: Vec<NodeReport>,
    /// Parts that the int8 engine runs.
    pub segments: usize,
}

/// What became of one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeReport {
    /// Its name in the file.
    pub name: String,
    /// Its operation.
    pub op: String,
    /// What became of it.
    pub fate: Fate,
}

/// What became of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Computed by the int8 engine's layer of this name.
    Layer(String),
    /// Nothing to compute: quantisation at an edge, a constant, another view of a tensor.
    Absorbed,
    /// Left as it is, and why.
    Left(String),
}

impl Lowering {
    fn counted(&self) -> impl Iterator<Item = &NodeReport> {
        let book_keeping = |op: &str| matches!(op, "QuantizeLinear" | "DequantizeLinear" | "Constant" | "Identity");
        self.nodes.iter().filter(move |node| node.fate != Fate::Absorbed || !book_keeping(&node.op))
    }

    /// Nodes that were lowered, and all; those that only quantise or name something do not count.
    pub fn counts(&self) -> (usize, usize) {
        let lowered = self.counted().filter(|node| !matches!(node.fate, Fate::Left(_))).count();
        (lowered, self.counted().count())
    }

    /// Operations that were left with how often, most frequent first.
    pub fn left(&self) -> Vec<(&str, usize)> {
        let mut counts = BTreeMap::new();
        for node in self.nodes.iter().filter(|node| matches!(node.fate, Fate::Left(_))) {
            *counts.entry(node.op.as_str()).or_insert(0) += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        counts
    }
}

impl std::fmt::Display for Lowering {
    /// `67 of 73 nodes; left: Sigmoid x6`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (lowered, all) = self.counts();
        write!(f, "{lowered} of {all} nodes")?;
        for (i, (op, count)) in self.left().into_iter().enumerate() {
            write!(f, "{}{op} x{count}", if i == 0 { "; left: " } else { ", " })?;
        }
        Ok(())
    }
}

/// Lowers a graph for one set of input shapes (one an input that is no initialiser, in order). `known` tells the dimensions of a tensor that comes out of a node
/// that was left, where somebody can; without them its followers are left too.
///
/// # Errors
/// [`ModelError`] naming the node or tensor where the graph cannot be run by anybody.
pub fn lower(
    proto: &ModelProto,
    shapes: &[&[usize]],
    known: &mut dyn FnMut(&str) -> Option<Vec<usize>>,
) -> Result<Lowered, ModelError> {
    let model = Model::read(proto)?;
    if model.inputs.len() != shapes.len() {
        let message = format!("has {} inputs, {} shapes were given", model.inputs.len(), shapes.len());
        return Err(ModelError { place: Place::Graph, fault: Fault::Shape(message) });
    }
    let mut lowerer = Lowerer::new(&model, shapes, known);
    for at in 0..model.nodes.len() {
        lowerer.node(at)?;
    }
    for output in &model.outputs {
        lowerer.demand(output)?;
    }
    lowerer.finish(proto)
}

/// Why a layer was not made.
enum Stop {
    /// The node is left, for this reason.
    Left(String),
    /// The graph cannot be run.
    Bad(ModelError),
}

impl From<ModelError> for Stop {
    fn from(error: ModelError) -> Self {
        Self::Bad(error)
    }
}

fn left<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Left(reason.into()))
}

/// A tensor of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Ref {
    segment: usize,
    tensor: TensorId,
}

type ExprId = usize;

/// What a name of the ONNX graph stands for.
#[derive(Clone, Debug)]
enum Value {
    Constant(Rc<Constant>),
    Weights(Rc<Weights>),
    Tensor(Tensor),
    /// Given out by a node that was left, or an input of the graph.
    Foreign,
}

/// A tensor that the int8 engine computes.
#[derive(Clone, Debug)]
struct Tensor {
    expr: ExprId,
    view: View,
    /// The bytes themselves, between QuantizeLinear and DequantizeLinear, and whether they are signed; `None`: what they stand for.
    integers: Option<bool>,
}

/// Constant integers that stand for real numbers.
#[derive(Clone, Debug)]
struct Weights {
    dims: Vec<usize>,
    integers: Vec<i32>,
    /// One, or one a place of `axis`.
    scales: Vec<f32>,
    /// As many as scales.
    zero_points: Vec<i32>,
    axis: usize,
}

/// A real-valued tensor that may not have been made yet.
#[derive(Clone, Debug)]
struct Expr {
    base: Base,
    /// Applied to the base, in order.
    chain: Vec<Unary>,
    shape: Shape,
    segment: usize,
    /// The expression of the base alone.
    root: ExprId,
    /// Expressions in it within one another.
    height: usize,
    /// The nodes that it computes.
    nodes: Vec<usize>,
}

#[derive(Clone, Debug)]
enum Base {
    Bytes(Ref),
    Conv {
        input: Ref,
        conv: Rc<Convolution>,
        bias: Rc<[f64]>,
    },
    Binary {
        binary: Binary,
        a: Ref,
        b: Ref,
    },
    Average {
        input: Ref,
        pooling: Pooling,
        window: Window,
    },
    Bilinear {
        input: Ref,
        upsampling: Upsampling,
    },
    Pick {
        input: ExprId,
        pick: Pick,
    },
    Concat(Rc<[ExprId]>),
    /// The mean of `weight * |a - b|`, over the pixels; over the channels too where `whole`.
    Mean {
        a: Ref,
        b: Option<Ref>,
        weights: Rc<[f32]>,
        whole: bool,
    },
    Linear {
        input: ExprId,
        weights: Rc<[f32]>,
        bias: Rc<[f32]>,
    },
}

impl Base {
    fn name(&self) -> &'static str {
        match self {
            Self::Bytes(_) => "a quantised tensor",
            Self::Conv { .. } => "a convolution",
            Self::Binary { .. } => "a sum or product of two tensors",
            Self::Average { .. } => "a mean",
            Self::Bilinear { .. } => "an upsampling",
            Self::Pick { .. } => "values picked from an unquantised tensor",
            Self::Concat(_) => "joined tensors",
            Self::Mean { .. } => "a mean of absolute values",
            Self::Linear { .. } => "a linear layer on real numbers",
        }
    }
}

/// Weights and geometry of a convolution of either kind.
#[derive(Clone, Debug)]
struct Convolution {
    transposed: bool,
    kernel: Pair,
    stride: Pair,
    dilation: Pair,
    padding: Padding,
    groups: usize,
    channels: usize,
    weights: Vec<i8>,
    scales: Vec<f32>,
}

/// Layers that only pick values: rounding before and behind them is the same.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Pick {
    Max(Window),
    Nearest,
    DepthToSpace(usize, DepthOrder),
}

/// A grid by its bits, or real numbers.
type Grid = Option<(u32, u8)>;

/// What something is asked for as.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Want {
    Bytes(Quant),
    Real,
}

impl Want {
    fn out(self) -> Out {
        match self {
            Self::Bytes(quant) => Out::U8(quant),
            Self::Real => Out::F32,
        }
    }

    fn key(self) -> Grid {
        match self {
            Self::Bytes(quant) => Some((quant.scale().to_bits(), quant.zero_point())),
            Self::Real => None,
        }
    }
}

#[derive(Debug, Default)]
struct Draft {
    builder: Builder,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

struct Lowerer<'a, 'b> {
    model: &'a Model<'a>,
    known: &'b mut dyn FnMut(&str) -> Option<Vec<usize>>,
    /// Dimensions of names of [`Value::Foreign`], where they are known.
    dims: HashMap<&'a str, Option<Vec<usize>>>,
    producers: HashMap<&'a str, usize>,
    /// Names that something takes.
    used: HashSet<&'a str>,
    values: HashMap<&'a str, Value>,
    exprs: Vec<Rc<Expr>>,
    of_bytes: HashMap<Ref, ExprId>,
    made: HashMap<(ExprId, Grid), Ref>,
    drafts: Vec<Draft>,
    /// Names that exist as real numbers outside of the segments, and the first segment that can take each.
    foreign: HashMap<&'a str, usize>,
    /// Real numbers from outside, by name and grid.
    taken: HashMap<(&'a str, Grid), Ref>,
    /// Tensors that have gone from one segment to another.
    carried: HashMap<(Ref, usize), Ref>,
    /// Nodes that are left, with the reason.
    left: BTreeMap<usize, String>,
    /// Nodes whose constants something takes that was left.
    kept: BTreeSet<usize>,
    /// Integers that leave a segment: name, their grid, whether they are signed.
    requantised: Vec<(&'a str, Quant, bool)>,
    layers: HashMap<usize, String>,
    /// The node being read.
    current: usize,
    bytes_left: u128,
    constants_left: u128,
}

impl<'a, 'b> Lowerer<'a, 'b> {
    fn new(model: &'a Model<'a>, shapes: &[&[usize]], known: &'b mut dyn FnMut(&str) -> Option<Vec<usize>>) -> Self {
        let all = |(at, node): (usize, &model::Node<'a>)| node.outputs().map(|output| (output, at)).collect::<Vec<_>>();
        let used = model.nodes.iter().flat_map(model::Node::inputs).chain(model.outputs.iter().copied());
        let dims = model.inputs.iter().zip(shapes).map(|(name, dims)| (*name, Some(dims.to_vec())));
        Self {
            model,
            known,
            dims: dims.collect(),
            producers: model.nodes.iter().enumerate().flat_map(all).collect(),
            used: used.collect(),
            values: model.inputs.iter().map(|name| (*name, Value::Foreign)).collect(),
            exprs: Vec::new(),
            of_bytes: HashMap::new(),
            made: HashMap::new(),
            drafts: Vec::new(),
            foreign: model.inputs.iter().map(|name| (*name, 0)).collect(),
            taken: HashMap::new(),
            carried: HashMap::new(),
            left: BTreeMap::new(),
            kept: BTreeSet::new(),
            requantised: Vec::new(),
            layers: HashMap::new(),
            current: 0,
            bytes_left: MOST_BYTES,
            constants_left: MOST_CONSTANTS,
        }
    }

    fn node(&mut self, at: usize) -> Result<(), ModelError> {
        self.current = at;
        match self.read(at) {
            Ok(()) => Ok(()),
            Err(Stop::Bad(error)) => Err(error),
            Err(Stop::Left(reason)) => {
                self.leave(at, reason)?;
                for output in self.model.nodes[at].outputs() {
                    self.values.insert(output, Value::Foreign);
                }
                Ok(())
            }
        }
    }

    /// Leaves a node as it is: gives out its outputs as real numbers, and asks for its inputs as such.
    fn leave(&mut self, at: usize, reason: String) -> Result<usize, ModelError> {
        let model = self.model;
        self.left.entry(at).or_insert(reason);
        let mut segment = 0;
        for input in model.nodes[at].inputs() {
            segment = segment.max(self.demand(input)?);
        }
        for output in model.nodes[at].outputs() {
            self.foreign.insert(output, segment);
        }
        Ok(segment)
    }

    /// Sees to it that a tensor exists outside of the segments; gives the first segment that can take it.
    fn demand(&mut self, name: &'a str) -> Result<usize, ModelError> {
        if let Some(segment) = self.foreign.get(name) {
            return Ok(*segment);
        }
        let segment = match self.value(name)? {
            Value::Foreign => 0,
            Value::Constant(_) | Value::Weights(_) => {
                self.keep(name);
                0
            }
            Value::Tensor(tensor) => match self.export(name, &tensor) {
                Ok(segment) => segment + 1,
                Err(Stop::Bad(error)) => return Err(error),
                // A tensor that is made by a node has one.
                Err(Stop::Left(reason)) => self.leave(self.producers[name], reason)?,
            },
        };
        self.foreign.insert(name, segment);
        Ok(segment)
    }

    /// Makes a tensor an output of its segment.
    fn export(&mut self, name: &'a str, tensor: &Tensor) -> Result<usize, Stop> {
        let expr = Rc::clone(&self.exprs[tensor.expr]);
        let made = match expr.base {
            // Outputs are dequantised as they go out.
            Base::Bytes(bytes) if expr.chain.is_empty() => bytes,
            _ => self.make(tensor.expr, Want::Real)?,
        };
        let mut outside = name.to_owned();
        if let Some(signed) = tensor.integers {
            let Out::U8(quant) = self.drafts[made.segment].builder.out(made.tensor) else {
                return left("its integers are none");
            };
            self.requantised.push((name, quant, signed));
            outside = rest::real_name(name);
        }
        let draft = &mut self.drafts[made.segment];
        draft.builder.output(&outside, made.tensor, tensor.view.order);
        draft.outputs.push(Port { name: outside, dims: tensor.view.dims.clone() });
        Ok(made.segment)
    }

    /// Keeps the nodes that a constant comes from.
    fn keep(&mut self, name: &'a str) {
        let mut names = vec![name];
        while let Some(name) = names.pop() {
            if let Some(at) = self.producers.get(name).copied()
                && !self.left.contains_key(&at)
                && self.kept.insert(at)
            {
                names.extend(self.model.nodes[at].inputs());
            }
        }
    }

    fn value(&mut self, name: &'a str) -> Result<Value, ModelError> {
        if let Some(value) = self.values.get(name) {
            return Ok(value.clone());
        }
        // Whatever is no node's output and no input is an initialiser: the model was checked.
        let value = self.model.constant(name)?.map_or(Value::Foreign, Value::Constant);
        self.values.insert(name, value.clone());
        Ok(value)
    }

    fn add(&mut self, expr: Expr) -> Result<ExprId, Stop> {
        if expr.height > DEEPEST {
            return left(format!("more than {DEEPEST} layers in a row without quantisation"));
        }
        self.exprs.push(Rc::new(expr));
        Ok(self.exprs.len() - 1)
    }

    /// The expression of quantised bytes.
    fn bytes(&mut self, bytes: Ref) -> ExprId {
        if let Some(known) = self.of_bytes.get(&bytes) {
            return *known;
        }
        let id = self.exprs.len();
        let shape = self.drafts[bytes.segment].builder.shape(bytes.tensor);
        let base = Base::Bytes(bytes);
        let expr = Expr { base, chain: vec![], shape, segment: bytes.segment, root: id, height: 0, nodes: vec![] };
        self.exprs.push(Rc::new(expr));
        self.of_bytes.insert(bytes, id);
        id
    }

    /// A new base, computed by the node that is being read.
    fn base(&mut self, base: Base, shape: Shape, segment: usize, height: usize) -> Result<ExprId, Stop> {
        let root = self.exprs.len();
        self.add(Expr { base, chain: vec![], shape, segment, root, height, nodes: vec![self.current] })
    }

    fn finish(mut self, proto: &ModelProto) -> Result<Lowered, ModelError> {
        let mut segments = Vec::new();
        for draft in std::mem::take(&mut self.drafts) {
            if !draft.outputs.is_empty() {
                let graph = draft.builder.build().map_err(refused)?;
                segments.push(Segment { graph, inputs: draft.inputs, outputs: draft.outputs });
            }
        }
        let report = self.report(segments.len());
        let rest = if self.is_whole(&segments) { None } else { Some(self.rest(proto, &segments)) };
        Ok(Lowered { segments, rest, report })
    }

    /// Whether the one segment is all there is.
    fn is_whole(&self, segments: &[Segment]) -> bool {
        let [segment] = segments else { return false };
        self.left.is_empty()
            && self.kept.is_empty()
            && self.requantised.is_empty()
            && segment.outputs.iter().map(|port| port.name.as_str()).eq(self.model.outputs.iter().copied())
    }

    fn report(&self, segments: usize) -> Lowering {
        let fate = |at: usize| match (self.left.get(&at), self.layers.get(&at)) {
            (Some(reason), _) => Fate::Left(reason.clone()),
            (None, Some(layer)) => Fate::Layer(layer.clone()),
            (None, None) => Fate::Absorbed,
        };
        let report = |(at, node): (usize, &model::Node<'_>)| NodeReport {
            name: node.name.clone(),
            op: node.op().to_owned(),
            fate: fate(at),
        };
        Lowering { nodes: self.model.nodes.iter().enumerate().map(report).collect(), segments }
    }
}

fn refused(error: GraphError) -> ModelError {
    ModelError { place: Place::Node(error.node), fault: Fault::Layer(error.refusal) }
}

/// A refusal of the int8 engine that another engine need not share.
fn is_ours(refusal: &Refusal) -> bool {
    matches!(refusal, Refusal::Size { what: "a sum", .. })
}
