//! ONNX graphs as they come out of a file, checked before anything believes them.
//!
//! Invariant: a [`Model`] that exists has nodes in an order in which each takes only what exists, no cycle, no name given out
//! twice, and initialisers as long as their shapes say. Reading allocates no more than the file's own size, by a small factor.

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use visaged_int8::graph::Refusal;

/// A graph that cannot be run, and where.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{place}: {fault}")]
pub struct ModelError {
    /// Where.
    pub place: Place,
    /// What is wrong there.
    #[source]
    pub fault: Fault,
}

/// A place in a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The graph itself.
    Graph,
    /// A node, by its name, or where it has none by its first output.
    Node(String),
    /// An initialiser.
    Tensor(String),
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Graph => f.write_str("the graph"),
            Self::Node(name) => write!(f, "node {name}"),
            Self::Tensor(name) => write!(f, "tensor {name}"),
        }
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Fault {
    /// No graph in the file.
    #[error("the file holds none")]
    NoGraph,
    /// Counts that no network has.
    #[error("has {what} {size}, the limit is {limit}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much.
        size: u128,
        /// What is taken at most.
        limit: u128,
    },
    /// A node that needs its own output.
    #[error("lies on a cycle")]
    Cycle,
    /// A tensor that does not exist.
    #[error("takes {0}, which nothing gives out")]
    Missing(String),
    /// An input that the operation cannot do without.
    #[error("lacks its input {0}")]
    Input(usize),
    /// A name that is taken.
    #[error("gives out {0}, which exists already")]
    Twice(String),
    /// A name of the kind that stands for lowered parts.
    #[error("gives out {0}: names with `visaged.` in them are taken")]
    Reserved(String),
    /// A number that is no type of ONNX.
    #[error("its data type is {0}, which ONNX does not have")]
    DataType(i32),
    /// Data in another file.
    #[error("its data lie in another file; only whole files are read")]
    External,
    /// A size below zero, or beyond all memory.
    #[error("its shape is {0:?}")]
    Dimensions(Vec<i64>),
    /// Truncated, or overlong.
    #[error("holds {got} bytes or values where its shape wants {expected}")]
    Length {
        /// By its shape.
        expected: usize,
        /// In the file.
        got: usize,
    },
    /// An attribute of another type or out of range.
    #[error("its attribute {name} is {value}")]
    Attribute {
        /// Its name.
        name: &'static str,
        /// Its value, as far as it can be told.
        value: String,
    },
    /// A scale that is none.
    #[error("its scale is {0}; it has to be above zero and finite")]
    Scale(f32),
    /// Shapes that do not go together.
    #[error("{0}")]
    Shape(String),
    /// The int8 engine's own check refused it.
    #[error(transparent)]
    Layer(#[from] Refusal),
}

/// Nodes in a graph, at most.
const MOST_NODES: usize = 1 << 14;
/// In the names that the lowering makes.
const RESERVED: &str = "visaged.";
/// Dimensions of a tensor, at most.
const MOST_DIMENSIONS: usize = 8;

/// A tensor whose values are in the file.
#[derive(Clone, Debug)]
pub(super) struct Constant {
    pub(super) dims: Vec<usize>,
    pub(super) data: Data,
}

/// Values of the types that the lowering looks into.
#[derive(Clone, Debug)]
pub(super) enum Data {
    F32(Vec<f32>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    I32(Vec<i32>),
    I64(Vec<i64>),
    /// Halves, strings, ...
    Other,
}

impl Constant {
    pub(super) fn floats(&self) -> Option<&[f32]> {
        if let Data::F32(values) = &self.data { Some(values) } else { None }
    }

    pub(super) fn longs(&self) -> Option<&[i64]> {
        if let Data::I64(values) = &self.data { Some(values) } else { None }
    }

    /// Integers of up to 32 bits.
    pub(super) fn integers(&self) -> Option<Vec<i32>> {
        match &self.data {
            Data::I8(values) => Some(values.iter().map(|v| i32::from(*v)).collect()),
            Data::U8(values) => Some(values.iter().map(|v| i32::from(*v)).collect()),
            Data::I32(values) => Some(values.clone()),
            Data::F32(_) | Data::I64(_) | Data::Other => None,
        }
    }
}

/// Bytes of a value of one of ONNX's types; `None`: of no fixed size, or packed.
fn value_size(data_type: i32) -> Result<Option<usize>, Fault> {
    match data_type {
        2 | 3 | 9 => Ok(Some(1)),
        4 | 5 | 10 | 16 => Ok(Some(2)),
        1 | 6 | 12 => Ok(Some(4)),
        7 | 11 | 13 | 14 => Ok(Some(8)),
        15 => Ok(Some(16)),
        8 | 17..=26 => Ok(None),
        other => Err(Fault::DataType(other)),
    }
}

fn dimensions(dims: &[i64]) -> Result<(Vec<usize>, usize), Fault> {
    let refuse = || Fault::Dimensions(dims.iter().copied().take(MOST_DIMENSIONS + 1).collect());
    if dims.len() > MOST_DIMENSIONS {
        return Err(refuse());
    }
    let mut sizes = Vec::with_capacity(dims.len());
    let mut count = 1_usize;
    for dim in dims {
        let size = usize::try_from(*dim).map_err(|_| refuse())?;
        count = count.checked_mul(size).filter(|count| *count <= isize::MAX as usize / 16).ok_or_else(refuse)?;
        sizes.push(size);
    }
    Ok((sizes, count))
}

/// Sees to it that a tensor is as long as its shape says.
fn check_tensor(tensor: &TensorProto) -> Result<(), Fault> {
    if tensor.data_location.is_some_and(|location| location != 0) || !tensor.external_data.is_empty() {
        return Err(Fault::External);
    }
    let (_, count) = dimensions(&tensor.dims)?;
    let Some(size) = value_size(tensor.data_type)? else { return Ok(()) };
    let (expected, got) = if tensor.raw_data.is_empty() {
        let fields =
            [tensor.float_data.len(), tensor.int32_data.len(), tensor.int64_data.len(), tensor.double_data.len()];
        let unsigned = tensor.uint64_data.len();
        // Complex values take two places each.
        let count = if tensor.data_type == 14 || tensor.data_type == 15 { count * 2 } else { count };
        (count, fields.into_iter().max().unwrap_or(0).max(unsigned))
    } else {
        (count * size, tensor.raw_data.len())
    };
    if expected == got { Ok(()) } else { Err(Fault::Length { expected, got }) }
}

/// The values of a tensor that [`check_tensor`] has passed.
fn read_tensor(tensor: &TensorProto) -> Result<Constant, Fault> {
    check_tensor(tensor)?;
    let (dims, count) = dimensions(&tensor.dims)?;
    let raw = &tensor.raw_data;
    let four = || raw.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]]);
    let eight = || raw.chunks_exact(8).map(|b| [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
    let whole = !raw.is_empty();
    let data = match tensor.data_type {
        1 if whole => Data::F32(four().map(f32::from_le_bytes).collect()),
        1 => Data::F32(tensor.float_data.clone()),
        2 if whole => Data::U8(raw.clone()),
        2 => Data::U8(tensor.int32_data.iter().map(|v| *v as u8).collect()),
        3 if whole => Data::I8(raw.iter().map(|v| *v as i8).collect()),
        3 => Data::I8(tensor.int32_data.iter().map(|v| *v as i8).collect()),
        6 if whole => Data::I32(four().map(i32::from_le_bytes).collect()),
        6 => Data::I32(tensor.int32_data.clone()),
        7 if whole => Data::I64(eight().map(i64::from_le_bytes).collect()),
        7 => Data::I64(tensor.int64_data.clone()),
        _ => return Ok(Constant { dims, data: Data::Other }),
    };
    let got = match &data {
        Data::F32(v) => v.len(),
        Data::I8(v) => v.len(),
        Data::U8(v) => v.len(),
        Data::I32(v) => v.len(),
        Data::I64(v) => v.len(),
        Data::Other => count,
    };
    if got == count { Ok(Constant { dims, data }) } else { Err(Fault::Length { expected: count, got }) }
}

/// A node and what it is called.
#[derive(Debug)]
pub(super) struct Node<'a> {
    pub(super) proto: &'a NodeProto,
    pub(super) name: String,
    /// Names from outside that its subgraphs take, beyond its own inputs.
    pub(super) hidden: Vec<&'a str>,
}

impl<'a> Node<'a> {
    pub(super) fn op(&self) -> &'a str {
        &self.proto.op_type
    }

    /// The name of an input that is given.
    pub(super) fn input(&self, i: usize) -> Option<&'a str> {
        self.proto.input.get(i).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// The inputs that are given, and what its subgraphs take.
    pub(super) fn inputs(&self) -> impl Iterator<Item = &'a str> + '_ {
        self.proto.input.iter().map(String::as_str).filter(|name| !name.is_empty()).chain(self.hidden.iter().copied())
    }

    pub(super) fn outputs(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.proto.output.iter().map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Whether it is of ONNX's own domain.
    pub(super) fn is_standard(&self) -> bool {
        matches!(self.proto.domain.as_str(), "" | "ai.onnx")
    }

    pub(super) fn fail(&self, fault: Fault) -> ModelError {
        ModelError { place: Place::Node(self.name.clone()), fault }
    }

    fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.proto.attribute.iter().find(|attribute| attribute.name == name)
    }

    fn typed(&self, name: &'static str, kind: i32) -> Result<Option<&'a AttributeProto>, ModelError> {
        match self.attribute(name) {
            // Files of ONNX's first version say no type.
            Some(found) if found.r#type != kind && found.r#type != 0 => {
                Err(self.fail(Fault::Attribute { name, value: format!("of type {}", found.r#type) }))
            }
            found => Ok(found),
        }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    pub(super) fn float(&self, name: &'static str, default: f32) -> Result<f32, ModelError> {
        let value = self.typed(name, 1)?.map_or(default, |found| found.f);
        if value.is_nan() { Err(self.fail(Fault::Attribute { name, value: value.to_string() })) } else { Ok(value) }
    }

    pub(super) fn int(&self, name: &'static str, default: i64) -> Result<i64, ModelError> {
        Ok(self.typed(name, 2)?.map_or(default, |found| found.i))
    }

    pub(super) fn text(&self, name: &'static str, default: &'static str) -> Result<&'a str, ModelError> {
        let Some(found) = self.typed(name, 3)? else { return Ok(default) };
        std::str::from_utf8(&found.s).map_err(|_| self.fail(Fault::Attribute { name, value: "no text".into() }))
    }

    pub(super) fn ints(&self, name: &'static str) -> Result<Option<&'a [i64]>, ModelError> {
        Ok(self.typed(name, 7)?.map(|found| found.ints.as_slice()))
    }

    /// `count` sizes from `least` on, small enough to be added and multiplied without a thought.
    pub(super) fn sizes(
        &self,
        name: &'static str,
        count: usize,
        least: i64,
        default: usize,
    ) -> Result<Vec<usize>, ModelError> {
        let Some(ints) = self.ints(name)? else { return Ok(vec![default; count]) };
        let fits = |value: &i64| (least..=1 << 20).contains(value);
        if ints.len() != count || !ints.iter().all(fits) {
            let value = format!("{:?}", &ints[..ints.len().min(16)]);
            return Err(self.fail(Fault::Attribute { name, value }));
        }
        Ok(ints.iter().map(|value| *value as usize).collect())
    }

    pub(super) fn tensor(&self, name: &'static str) -> Result<Option<Constant>, ModelError> {
        let found = self.typed(name, 4)?.and_then(|found| found.t.as_ref());
        found.map(|tensor| read_tensor(tensor).map_err(|fault| self.fail(fault))).transpose()
    }
}

/// A checked graph.
#[derive(Debug)]
pub(super) struct Model<'a> {
    /// The nodes that the outputs need, each behind all that it takes.
    pub(super) nodes: Vec<Node<'a>>,
    /// Inputs that are no initialisers.
    pub(super) inputs: Vec<&'a str>,
    pub(super) outputs: Vec<&'a str>,
    pub(super) initialisers: HashMap<&'a str, &'a TensorProto>,
    /// Of ONNX's own domain.
    pub(super) opset: i64,
    constants: std::cell::RefCell<HashMap<&'a str, Rc<Constant>>>,
}

impl<'a> Model<'a> {
    /// Checks a graph's structure.
    ///
    /// # Errors
    /// [`ModelError`] naming the node or tensor.
    pub(super) fn read(proto: &'a ModelProto) -> Result<Self, ModelError> {
        let whole = |fault| ModelError { place: Place::Graph, fault };
        let graph = proto.graph.as_ref().ok_or_else(|| whole(Fault::NoGraph))?;
        if graph.node.len() > MOST_NODES {
            let (size, limit) = (graph.node.len() as u128, MOST_NODES as u128);
            return Err(whole(Fault::TooMuch { what: "nodes:", size, limit }));
        }
        let initialisers = initialisers(graph)?;
        let inputs: Vec<&str> =
            graph.input.iter().map(|i| i.name.as_str()).filter(|name| !initialisers.contains_key(name)).collect();
        let nodes = nodes(graph);
        let order = order(&nodes, &inputs, &initialisers)?;
        let outputs: Vec<&str> = graph.output.iter().map(|o| o.name.as_str()).collect();
        let live = live(&nodes, &order, &outputs);
        check_outputs(&nodes, &inputs, &initialisers, &outputs).map_err(whole)?;
        let mut nodes: Vec<Option<Node<'a>>> = nodes.into_iter().map(Some).collect();
        let nodes = order.into_iter().filter(|at| live.contains(at)).filter_map(|at| nodes[at].take()).collect();
        let standard = |domain: &str| matches!(domain, "" | "ai.onnx");
        let opset = proto.opset_import.iter().find(|set| standard(&set.domain)).map_or(0, |set| set.version);
        Ok(Self { nodes, inputs, outputs, initialisers, opset, constants: Default::default() })
    }

    /// An initialiser's values.
    ///
    /// # Errors
    /// [`ModelError`] where it holds not as many as its shape says.
    pub(super) fn constant(&self, name: &str) -> Result<Option<Rc<Constant>>, ModelError> {
        if let Some(known) = self.constants.borrow().get(name) {
            return Ok(Some(Rc::clone(known)));
        }
        let Some((name, tensor)) = self.initialisers.get_key_value(name) else { return Ok(None) };
        let place = || Place::Tensor((*name).to_owned());
        let constant = Rc::new(read_tensor(tensor).map_err(|fault| ModelError { place: place(), fault })?);
        self.constants.borrow_mut().insert(name, Rc::clone(&constant));
        Ok(Some(constant))
    }
}

fn initialisers(graph: &GraphProto) -> Result<HashMap<&str, &TensorProto>, ModelError> {
    let mut found = HashMap::new();
    for tensor in &graph.initializer {
        let fail = |fault| ModelError { place: Place::Tensor(tensor.name.clone()), fault };
        check_tensor(tensor).map_err(fail)?;
        if found.insert(tensor.name.as_str(), tensor).is_some() {
            return Err(fail(Fault::Twice(tensor.name.clone())));
        }
    }
    Ok(found)
}

fn nodes(graph: &GraphProto) -> Vec<Node<'_>> {
    let name = |(i, node): (usize, &NodeProto)| match (node.name.as_str(), node.output.first()) {
        ("", Some(output)) if !output.is_empty() => output.clone(),
        ("", _) => format!("{} number {i}", node.op_type),
        (name, _) => name.to_owned(),
    };
    let hidden = |node| {
        let mut names = Vec::new();
        take_hidden(node, &mut names);
        names
    };
    graph
        .node
        .iter()
        .enumerate()
        .map(|(i, proto)| Node { proto, name: name((i, proto)), hidden: hidden(proto) })
        .collect()
}

/// Names that a node's subgraphs take from outside; the reader of protocol buffers bounds how deep they nest.
fn take_hidden<'a>(node: &'a NodeProto, names: &mut Vec<&'a str>) {
    let graphs = node.attribute.iter().flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs));
    for graph in graphs {
        let mut taken = Vec::new();
        for node in &graph.node {
            taken.extend(node.input.iter().map(String::as_str));
            take_hidden(node, &mut taken);
        }
        taken.extend(graph.output.iter().map(|output| output.name.as_str()));
        let inputs = graph.input.iter().map(|input| input.name.as_str());
        let tensors = graph.initializer.iter().map(|tensor| tensor.name.as_str());
        let inner = graph.node.iter().flat_map(|node| node.output.iter().map(String::as_str));
        let own: HashSet<&str> = inputs.chain(tensors).chain(inner).collect();
        names.extend(taken.into_iter().filter(|name| !name.is_empty() && !own.contains(name)));
    }
}

fn order<'a>(
    nodes: &[Node<'a>],
    inputs: &[&'a str],
    initialisers: &HashMap<&'a str, &'a TensorProto>,
) -> Result<Vec<usize>, ModelError> {
    let mut given: HashMap<&str, Option<usize>> = initialisers.keys().map(|name| (*name, None)).collect();
    for input in inputs {
        if given.insert(input, None).is_some() {
            return Err(ModelError { place: Place::Graph, fault: Fault::Twice((*input).to_owned()) });
        }
    }
    if let Some(name) = given.keys().find(|name| name.contains(RESERVED)) {
        return Err(ModelError { place: Place::Graph, fault: Fault::Reserved((*name).to_owned()) });
    }
    for (at, node) in nodes.iter().enumerate() {
        for output in node.outputs() {
            if output.contains(RESERVED) {
                return Err(node.fail(Fault::Reserved(output.into())));
            }
            if given.insert(output, Some(at)).is_some() {
                return Err(node.fail(Fault::Twice(output.into())));
            }
        }
    }
    let mut waits = vec![0_usize; nodes.len()];
    let mut followers = vec![Vec::new(); nodes.len()];
    for (at, node) in nodes.iter().enumerate() {
        for input in node.inputs() {
            match given.get(input) {
                None => return Err(node.fail(Fault::Missing(input.into()))),
                Some(None) => {}
                Some(Some(before)) => {
                    waits[at] += 1;
                    followers[*before].push(at);
                }
            }
        }
    }
    let mut ready: VecDeque<usize> = (0..nodes.len()).filter(|at| waits[*at] == 0).collect();
    let mut order = Vec::with_capacity(nodes.len());
    while let Some(at) = ready.pop_front() {
        order.push(at);
        for follower in &followers[at] {
            waits[*follower] -= 1;
            if waits[*follower] == 0 {
                ready.push_back(*follower);
            }
        }
    }
    match (0..nodes.len()).find(|at| waits[*at] > 0) {
        Some(at) => Err(nodes[at].fail(Fault::Cycle)),
        None => Ok(order),
    }
}

/// The nodes that some output needs.
fn live(nodes: &[Node<'_>], order: &[usize], outputs: &[&str]) -> HashSet<usize> {
    let mut needed: HashSet<&str> = outputs.iter().copied().collect();
    let mut live = HashSet::new();
    for at in order.iter().rev() {
        if nodes[*at].outputs().any(|output| needed.contains(output)) {
            live.insert(*at);
            needed.extend(nodes[*at].inputs());
        }
    }
    live
}

fn check_outputs(
    nodes: &[Node<'_>],
    inputs: &[&str],
    initialisers: &HashMap<&str, &TensorProto>,
    outputs: &[&str],
) -> Result<(), Fault> {
    let given: HashSet<&str> = nodes.iter().flat_map(Node::outputs).chain(inputs.iter().copied()).collect();
    if outputs.is_empty() {
        return Err(Fault::Shape("gives nothing out".into()));
    }
    let mut seen = HashSet::new();
    for output in outputs {
        if !given.contains(output) && !initialisers.contains_key(output) {
            return Err(Fault::Missing((*output).into()));
        }
        if !seen.insert(output) {
            return Err(Fault::Twice((*output).into()));
        }
    }
    Ok(())
}
