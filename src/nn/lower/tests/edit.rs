//! Random edits of graphs as messages: what a careless tool or a hostile file could hold.

use tract_onnx::pb::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};

/// Operations that an edit may turn a node into.
const OPERATIONS: [&str; 40] = [
    "QuantizeLinear",
    "DequantizeLinear",
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Relu",
    "Clip",
    "LeakyRelu",
    "PRelu",
    "Sigmoid",
    "Tanh",
    "HardSigmoid",
    "HardSwish",
    "Abs",
    "Neg",
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Concat",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "ReduceMean",
    "Resize",
    "Upsample",
    "DepthToSpace",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Identity",
    "Dropout",
    "Constant",
    "Softmax",
    "If",
    "Int8Segment",
    "",
];

/// Names of attributes that an edit may give a node.
const ATTRIBUTES: [&str; 16] = [
    "pads",
    "strides",
    "dilations",
    "kernel_shape",
    "group",
    "auto_pad",
    "axis",
    "axes",
    "perm",
    "keepdims",
    "alpha",
    "ceil_mode",
    "count_include_pad",
    "blocksize",
    "transB",
    "output_padding",
];

/// Numbers at which sizes and sums break.
const INTEGERS: [i64; 18] =
    [-1, 0, 1, 2, 3, 4, 7, 64, 255, 1 << 14, 1 << 20, 1 << 31, (1 << 32) + 1, 1 << 62, i64::MAX, i64::MIN, -2, -129];

const FLOATS: [f32; 12] =
    [0.0, -0.0, 1.0, -1.0, 1e-30, 1e30, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e-45, f32::MAX, 0.007];

/// Random numbers as an edit asks for them.
pub(crate) struct Dice<'a>(pub(crate) &'a mut dyn FnMut() -> u32);

impl Dice<'_> {
    fn below(&mut self, n: usize) -> usize {
        (self.0)() as usize % n.max(1)
    }

    fn one<'t, T>(&mut self, of: &'t [T]) -> Option<&'t T> {
        if of.is_empty() { None } else { Some(&of[self.below(of.len())]) }
    }

    fn integer(&mut self) -> i64 {
        match self.below(3) {
            0 => self.below(9) as i64,
            _ => INTEGERS[self.below(INTEGERS.len())],
        }
    }

    fn float(&mut self) -> f32 {
        if self.below(2) == 0 { FLOATS[self.below(FLOATS.len())] } else { f32::from_bits((self.0)()) }
    }
}

/// Makes one random edit.
pub(crate) fn edit(model: &mut ModelProto, dice: &mut Dice<'_>) {
    let Some(graph) = &mut model.graph else {
        model.graph = Some(GraphProto::default());
        return;
    };
    match dice.below(13) {
        0 => rewire(graph, dice),
        1 => rewire_output(graph, dice),
        2 | 3 => with_node(graph, dice, edit_attributes),
        4 => with_node(graph, dice, |node, dice| {
            node.op_type = OPERATIONS[dice.below(OPERATIONS.len())].into();
        }),
        5 if !graph.node.is_empty() => {
            let at = dice.below(graph.node.len());
            graph.node.remove(at);
        }
        6 => double(graph, dice),
        7..=9 => {
            let at = dice.below(graph.initializer.len());
            if let Some(tensor) = graph.initializer.get_mut(at) {
                edit_tensor(tensor, dice);
            }
        }
        10 => insert(graph, dice),
        11 => {
            let at = dice.below(model.opset_import.len());
            if let Some(set) = model.opset_import.get_mut(at) {
                set.version = [1, 7, 9, 10, 11, 13, 17, 18, 21][dice.below(9)];
            }
        }
        _ if !graph.output.is_empty() => {
            let name = any_name(graph, dice);
            let at = dice.below(graph.output.len());
            graph.output[at].name = name;
        }
        _ => {}
    }
}

fn with_node(graph: &mut GraphProto, dice: &mut Dice<'_>, change: impl FnOnce(&mut NodeProto, &mut Dice<'_>)) {
    let at = dice.below(graph.node.len());
    if let Some(node) = graph.node.get_mut(at) {
        change(node, dice);
    }
}

fn any_name(graph: &GraphProto, dice: &mut Dice<'_>) -> String {
    let outputs = graph.node.iter().flat_map(|node| node.output.iter());
    let names: Vec<&String> = outputs
        .chain(graph.input.iter().map(|input| &input.name))
        .chain(graph.initializer.iter().map(|tensor| &tensor.name))
        .collect();
    dice.one(&names).map(|name| (*name).clone()).unwrap_or_default()
}

fn rewire(graph: &mut GraphProto, dice: &mut Dice<'_>) {
    let name = any_name(graph, dice);
    with_node(graph, dice, |node, dice| match dice.below(4) {
        0 => node.input.push(name),
        1 => drop(node.input.pop()),
        _ => {
            let at = dice.below(node.input.len());
            if let Some(input) = node.input.get_mut(at) {
                *input = name;
            }
        }
    });
}

fn rewire_output(graph: &mut GraphProto, dice: &mut Dice<'_>) {
    let name = if dice.below(2) == 0 { any_name(graph, dice) } else { format!("new{}", dice.below(1000)) };
    with_node(graph, dice, |node, dice| {
        let at = dice.below(node.output.len());
        if let Some(output) = node.output.get_mut(at) {
            *output = name;
        }
    });
}

fn edit_attributes(node: &mut NodeProto, dice: &mut Dice<'_>) {
    match dice.below(4) {
        0 => {
            let name = ATTRIBUTES[dice.below(ATTRIBUTES.len())];
            let ints = (0..dice.below(6)).map(|_| dice.integer()).collect();
            let kind = [0, 1, 2, 3, 7][dice.below(5)];
            let i = dice.integer();
            let f = dice.float();
            node.attribute.push(AttributeProto { name: name.into(), r#type: kind, ints, i, f, ..Default::default() });
        }
        1 => drop(node.attribute.pop()),
        _ => {
            let at = dice.below(node.attribute.len());
            let Some(attribute) = node.attribute.get_mut(at) else { return };
            attribute.i = dice.integer();
            attribute.f = dice.float();
            let at = dice.below(attribute.ints.len());
            if let Some(int) = attribute.ints.get_mut(at) {
                *int = dice.integer();
            }
            if let Some(tensor) = &mut attribute.t {
                edit_tensor(tensor, dice);
            }
        }
    }
}

fn edit_tensor(tensor: &mut TensorProto, dice: &mut Dice<'_>) {
    match dice.below(7) {
        0 => tensor.data_type = dice.below(30) as i32 - 2,
        1 => {
            let at = dice.below(tensor.dims.len());
            match tensor.dims.get_mut(at) {
                Some(dim) => *dim = dice.integer(),
                None => tensor.dims.push(dice.integer()),
            }
        }
        2 => drop(tensor.raw_data.pop()),
        3 => tensor.data_location = Some(dice.below(3) as i32),
        // All values anew, so that the shape still fits.
        4 if tensor.data_type == 1 => {
            let value = dice.float();
            let values = tensor.raw_data.len() / 4;
            tensor.raw_data = value.to_le_bytes().repeat(values);
            tensor.float_data.fill(value);
        }
        5 => {
            let at = dice.below(tensor.raw_data.len());
            if let Some(byte) = tensor.raw_data.get_mut(at) {
                *byte = (dice.0)() as u8;
            }
        }
        _ => {
            let at = dice.below(tensor.raw_data.len() / 4);
            let value = dice.float().to_le_bytes();
            if let Some(place) = tensor.raw_data.get_mut(4 * at..4 * at + 4) {
                place.copy_from_slice(&value);
            }
        }
    }
}

/// A node once more under other names.
fn double(graph: &mut GraphProto, dice: &mut Dice<'_>) {
    let Some(mut node) = dice.one(&graph.node).cloned() else { return };
    let mark = dice.below(1000);
    for output in &mut node.output {
        *output = format!("{output}.{mark}");
    }
    let name = node.output.first().cloned().unwrap_or_default();
    graph.node.push(node);
    with_node(graph, dice, |other, dice| {
        let at = dice.below(other.input.len());
        if let Some(input) = other.input.get_mut(at) {
            *input = name;
        }
    });
}

/// A node of one input between two that were neighbours.
fn insert(graph: &mut GraphProto, dice: &mut Dice<'_>) {
    let between = format!("between{}", dice.below(1000));
    let op = OPERATIONS[dice.below(OPERATIONS.len())];
    let mut inputs = Vec::new();
    with_node(graph, dice, |node, dice| {
        let at = dice.below(node.input.len());
        if let Some(input) = node.input.get_mut(at) {
            inputs.push(std::mem::replace(input, between.clone()));
        }
    });
    for _ in 0..dice.below(3) {
        inputs.push(any_name(graph, dice));
    }
    let attribute = Vec::new();
    graph.node.push(NodeProto {
        op_type: op.into(),
        input: inputs,
        output: vec![between],
        attribute,
        ..NodeProto::default()
    });
}
