use tract_onnx::pb::{ModelProto, NodeProto, TensorProto};

use self::net::{Net, attribute, integer};
use super::*;

mod edit;
pub(crate) mod net;

const SHAPE: &[usize] = &[1, 3, 8, 8];

/// `x` -> pair -> convolution -> pair -> `y`.
fn small() -> Net {
    let mut net = Net::default();
    let x = net.input("x", &[1, 3, 8, 8]);
    let x = net.pair(&x, 0.02, 128);
    let c = net.conv(&x, "c", (3, 4));
    let y = net.pair(&c, 0.05, 100);
    net.output(&y);
    net
}

fn lowered(model: &ModelProto) -> Result<Lowered, ModelError> {
    lower(model, &[SHAPE], &mut |_| None)
}

fn error(change: impl FnOnce(&mut Net)) -> String {
    let mut net = small();
    change(&mut net);
    let model = net.model();
    lowered(&model).err().map(|error| error.to_string()).unwrap_or_else(|| "no error".into())
}

fn tensor<'t>(net: &'t mut Net, name: &str) -> &'t mut TensorProto {
    net.graph.initializer.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

fn node<'t>(net: &'t mut Net, op: &str) -> &'t mut NodeProto {
    net.graph.node.iter_mut().find(|node| node.op_type == op).unwrap()
}

fn reasons(net: Net) -> Vec<String> {
    let lowered = lowered(&net.model()).unwrap();
    let reason = |node: &NodeReport| match &node.fate {
        Fate::Left(reason) => Some(format!("{}: {reason}", node.op)),
        _ => None,
    };
    lowered.report.nodes.iter().filter_map(reason).collect()
}

#[test]
fn a_graph_of_pairs_and_layers_is_one_segment_with_nothing_left() {
    let lowered = lowered(&small().model()).unwrap();
    assert!(lowered.rest.is_none());
    assert_eq!(lowered.report.to_string(), "1 of 1 nodes");
    let [segment] = &lowered.segments[..] else { panic!("{:?}", lowered.segments) };
    assert_eq!(segment.inputs, [Port { name: "x".into(), dims: SHAPE.into() }]);
    assert_eq!(segment.outputs, [Port { name: "c.dq".into(), dims: vec![1, 4, 8, 8] }]);
    assert_eq!(segment.graph.multiply_accumulates(), 4 * 64 * 27);
}

#[test]
fn a_file_without_a_graph_is_refused() {
    let error = lowered(&ModelProto::default()).unwrap_err();
    assert_eq!(error.to_string(), "the graph: the file holds none");
}

#[test]
fn a_missing_tensor_is_named_with_the_node_that_takes_it() {
    let message = error(|net| node(net, "Conv").input[0] = "nowhere".into());
    assert_eq!(message, "node Conv to c: takes nowhere, which nothing gives out");
    let message = error(|net| net.output("nothing"));
    assert_eq!(message, "the graph: takes nothing, which nothing gives out");
}

#[test]
fn a_cycle_is_named_by_a_node_on_it() {
    let message = error(|net| node(net, "QuantizeLinear").input[0] = "c.dq".into());
    assert!(message.ends_with("lies on a cycle"), "{message}");
}

#[test]
fn a_tensor_that_two_nodes_give_out_is_refused() {
    let message = error(|net| drop(net.node("Relu", &["x"], "c", vec![])));
    assert_eq!(message, "node Relu to c: gives out c, which exists already");
}

#[test]
fn scales_of_zero_below_zero_and_none_are_refused_by_name() {
    for scale in [0.0, -0.1, f32::NAN, f32::INFINITY] {
        let message = error(|net| tensor(net, "x.scale").raw_data = scale.to_le_bytes().into());
        assert!(message.starts_with("node QuantizeLinear to x.q: its scale is"), "{scale}: {message}");
    }
    let message = error(|net| tensor(net, "c.w.scale").raw_data = (-1.0_f32).to_le_bytes().repeat(4));
    assert!(message.starts_with("node DequantizeLinear to c.w: its scale is -1"), "{message}");
    let message = error(|net| tensor(net, "x.scale").raw_data = 1e-40_f32.to_le_bytes().into());
    assert!(message.starts_with("node QuantizeLinear to x.q: a scale is"), "{message}");
}

#[test]
fn a_missing_scale_is_refused_by_name() {
    let message = error(|net| node(net, "QuantizeLinear").input[1].clear());
    assert_eq!(message, "node QuantizeLinear to x.q: lacks its input 1");
}

#[test]
fn truncated_and_overlong_data_are_refused_by_name() {
    let message = error(|net| tensor(net, "c.w.bytes").raw_data.truncate(107));
    assert_eq!(message, "tensor c.w.bytes: holds 107 bytes or values where its shape wants 108");
    let message = error(|net| tensor(net, "x.scale").raw_data.push(0));
    assert_eq!(message, "tensor x.scale: holds 5 bytes or values where its shape wants 4");
}

#[test]
fn dimensions_below_zero_or_beyond_memory_are_refused_by_name() {
    for dims in [vec![-1], vec![1 << 40, 1 << 40], vec![i64::MAX, 2], vec![1; 9]] {
        let message = error(|net| tensor(net, "c.w.bytes").dims = dims.clone());
        assert!(message.starts_with("tensor c.w.bytes: its shape is"), "{message}");
    }
}

#[test]
fn data_in_other_files_and_unknown_types_are_refused_by_name() {
    let message = error(|net| tensor(net, "c.w.bytes").data_location = Some(1));
    assert!(message.starts_with("tensor c.w.bytes: its data lie in another file"), "{message}");
    let message = error(|net| tensor(net, "c.w.bytes").data_type = 99);
    assert!(message.contains("99, which ONNX does not have"), "{message}");
}

#[test]
fn pads_strides_and_kernels_that_cannot_be_are_refused_by_name() {
    for (name, ints) in [
        ("pads", vec![-1, 0, 0, 0]),
        ("pads", vec![1, 1]),
        ("pads", vec![i64::MAX; 4]),
        ("strides", vec![0, 1]),
        ("dilations", vec![1 << 40, 1]),
    ] {
        let message = error(|net| node(net, "Conv").attribute = vec![attribute(name, &ints)]);
        assert!(message.starts_with(&format!("node Conv to c: its attribute {name} is")), "{message}");
    }
    let message = error(|net| node(net, "Conv").attribute = vec![attribute("dilations", &[9, 9])]);
    assert!(message.contains("does not fit into 8 and 0 pixels"), "{message}");
    let message = error(|net| node(net, "Conv").attribute = vec![attribute("kernel_shape", &[5, 5])]);
    assert!(message.contains("a kernel_shape other than its weights' 3 by 3"), "{message}");
    let message = error(|net| node(net, "Conv").attribute = vec![integer("pads", 1)]);
    assert!(message.contains("its attribute pads is of type 2"), "{message}");
    let message = error(|net| node(net, "Conv").attribute = vec![integer("group", 2)]);
    assert!(message.contains("in 2 groups for 3 channels"), "{message}");
}

#[test]
fn reshapes_that_do_not_fit_are_refused_by_name() {
    for wanted in [vec![1, 7], vec![-1, -1], vec![1, -5], vec![i64::MAX, i64::MAX], vec![1; 9], vec![0, 0, 0, 0, 0]] {
        let message = error(|net| {
            let shape = net.longs("shape", &wanted);
            let flat = net.node("Reshape", &["c.dq", &shape], "flat", vec![]);
            net.output(&flat);
        });
        assert!(message.starts_with("node Reshape to flat: [1, 4, 8, 8] does not become"), "{wanted:?}: {message}");
    }
}

#[test]
fn a_graph_that_would_take_too_much_memory_is_refused() {
    let message = error(|net| {
        let mut last = "c.dq".to_owned();
        for i in 0..12 {
            let scales = net.floats("twice", &[4], &[1.0, 1.0, 2.0, 2.0]);
            let mode =
                vec![net::text("coordinate_transformation_mode", "asymmetric"), net::text("nearest_mode", "floor")];
            last = net.node("Resize", &[&last, "", &scales], &format!("up{i}"), mode);
        }
        net.output(&last);
    });
    assert!(message.contains("the limit is"), "{message}");
}

#[test]
fn padding_that_would_take_too_much_memory_is_refused() {
    let mut net = Net::default();
    let x = net.input("x", &[1, 2000, 1, 1]);
    let x = net.pair(&x, 0.02, 128);
    let weights = net.weights("w", &[1, 2000, 1, 1], 0);
    let wide = vec![attribute("pads", &[1000; 4]), attribute("strides", &[1000, 1000])];
    let c = net.node("Conv", &[&x, &weights], "c", wide);
    let y = net.pair(&c, 0.05, 100);
    net.output(&y);
    let error = lower(&net.model(), &[&[1, 2000, 1, 1]], &mut |_| None).unwrap_err().to_string();
    assert!(error.contains("bytes in all its tensors: 80080"), "{error}");
}

#[test]
fn more_nodes_than_any_network_has_are_refused() {
    let mut model = small().model();
    model.graph.as_mut().unwrap().node.resize(20_000, NodeProto::default());
    assert!(lowered(&model).unwrap_err().to_string().contains("nodes: 20000, the limit is 16384"));
}

#[test]
fn shapes_that_are_not_as_many_as_inputs_are_refused() {
    let error = lower(&small().model(), &[], &mut |_| None).unwrap_err();
    assert_eq!(error.to_string(), "the graph: has 1 inputs, 0 shapes were given");
}

#[test]
fn names_of_the_lowerings_own_kind_are_refused() {
    let message = error(|net| drop(net.node("Relu", &["x"], "visaged.carried.0", vec![])));
    assert!(message.contains("names with `visaged.` in them are taken"), "{message}");
}

#[test]
fn asymmetric_weights_are_left_with_their_reason() {
    let mut net = small();
    net.tensor(TensorProto {
        name: "zeros".into(),
        dims: vec![4],
        data_type: 3,
        int32_data: vec![1, 100, 0, 0],
        ..TensorProto::default()
    });
    net.graph.node.iter_mut().find(|n| n.output[0] == "c.w").unwrap().input.push("zeros".into());
    let reasons = reasons(net);
    assert!(reasons.iter().any(|r| r == "Conv: its weights are not symmetric around 0"), "{reasons:?}");
}

#[test]
fn a_bias_that_does_not_fit_its_unit_is_left_with_its_reason() {
    let mut net = small();
    let bias = net.floats("bias", &[4], &[0.0, 1_099_511_627_776.0, 0.0, 0.0]);
    node(&mut net, "Conv").input.push(bias);
    let reasons = reasons(net);
    assert!(reasons[0].starts_with("Conv: the bias 1099511627776 of channel 1 does not fit"), "{reasons:?}");
}

#[test]
fn a_bias_of_a_channel_without_weights_is_kept() {
    let mut net = small();
    tensor(&mut net, "c.w.bytes").raw_data[..27].fill(0);
    tensor(&mut net, "c.w.scale").raw_data[..4].copy_from_slice(&0.0_f32.to_le_bytes());
    let bias = net.floats("bias", &[4], &[1.5, 0.0, 0.0, 0.0]);
    node(&mut net, "Conv").input.push(bias);
    let lowered = lowered(&net.model()).unwrap();
    let plan = visaged_int8::Plan::new(&lowered.segments[0].graph, visaged_int8::isa::Isa::Scalar);
    let mut outputs = Vec::new();
    plan.network(std::num::NonZeroUsize::MIN).run(&[&[0.0; 3 * 64]], &mut outputs).unwrap();
    assert!(outputs[0][..64].iter().all(|y| (y - 1.5).abs() < 0.01), "{:?}", &outputs[0][..64]);
}

#[test]
fn what_is_not_quantised_is_left_and_names_why() {
    let mut net = Net::default();
    net.input("x", &[1, 3, 8, 8]);
    let c = net.conv("x", "c", (3, 4));
    net.output(&c);
    assert_eq!(reasons(net), ["Conv: its input 0 is not quantised"]);
}

#[test]
fn dead_nodes_are_neither_lowered_nor_left() {
    let mut net = small();
    net.node("Softmax", &["c"], "dead", vec![]);
    let lowered = lowered(&net.model()).unwrap();
    assert!(lowered.rest.is_none());
    assert!(lowered.report.nodes.iter().all(|node| node.op != "Softmax"));
}

#[test]
fn a_part_that_waits_for_a_node_that_was_left_is_a_later_segment() {
    let mut net = small();
    let soft = net.node("Softmax", &["c.dq"], "soft", vec![integer("axis", 1)]);
    let soft = net.pair(&soft, 1.0 / 255.0, 0);
    let sum = net.node("Add", &["c.dq", &soft], "sum", vec![]);
    let sum = net.pair(&sum, 0.05, 100);
    net.output(&sum);
    let lowered = lower(&net.model(), &[SHAPE], &mut |_| Some(vec![1, 4, 8, 8])).unwrap();
    let inputs = |i: usize| lowered.segments[i].inputs.iter().map(|p| p.name.as_str()).collect::<Vec<_>>();
    assert_eq!(lowered.segments.len(), 2);
    assert_eq!(inputs(0), ["x"]);
    assert_eq!(inputs(1), ["soft", "visaged.carried.0"]);
    let rest = lowered.rest.unwrap().graph.unwrap();
    let ops: Vec<&str> = rest.node.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(ops, [SEGMENT, SEGMENT, "Softmax"]);
    assert!(rest.initializer.is_empty(), "nothing that is left takes a constant");
}

#[test]
fn a_thousand_functions_in_a_row_end_in_an_answer() {
    let mut net = small();
    let mut last = "c.dq".to_owned();
    for i in 0..1000 {
        last = net.node(if i % 2 == 0 { "Sigmoid" } else { "Abs" }, &[&last], &format!("f{i}"), vec![]);
    }
    let last = net.pair(&last, 0.01, 0);
    net.output(&last);
    lowered(&net.model()).unwrap();
}

#[test]
fn pictures_joined_with_themselves_again_and_again_end_in_an_answer() {
    let mut net = Net::default();
    let x = net.input("x", &[1, 3, 8, 8]);
    let x = net.pair(&x, 0.02, 128);
    let mut last = net.conv(&x, "c", (3, 4));
    for i in 0..40 {
        last = net.node("Concat", &[&last, &last], &format!("j{i}"), vec![integer("axis", 1)]);
    }
    let last = net.pair(&last, 0.01, 0);
    net.output(&last);
    let _ = lowered(&net.model());
}

/// Pseudo-random numbers (xorshift).
fn random(seed: u32) -> impl FnMut() -> u32 {
    let mut state = seed.wrapping_mul(2_654_435_761).max(1);
    move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    }
}

fn seeds() -> Vec<ModelProto> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/nn/layers");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "onnx"));
    paths.sort();
    paths.iter().map(|path| crate::nn::tract::read(&std::fs::read(path).unwrap()).unwrap()).collect()
}

#[test]
fn graphs_with_random_edits_are_lowered_or_refused() {
    let seeds = seeds();
    let (mut taken, mut refused) = (0, 0);
    for i in 0..3000 {
        let mut next = random(i + 1);
        let mut model = seeds[i as usize % seeds.len()].clone();
        let mut dice = edit::Dice(&mut next);
        for _ in 0..1 + i % 4 {
            edit::edit(&mut model, &mut dice);
        }
        let count = model.graph.as_ref().map_or(0, |graph| graph.input.len());
        let shapes = vec![&[1_usize, 4, 9, 7][..]; count];
        match lower(&model, &shapes, &mut |name| (name.len() % 2 == 0).then(|| vec![1, 4, 8, 8])) {
            Ok(lowered) => {
                taken += 1;
                for segment in &lowered.segments {
                    visaged_int8::Plan::new(&segment.graph, visaged_int8::isa::Isa::best());
                }
            }
            Err(_) => refused += 1,
        }
    }
    assert!(taken > 100 && refused > 100, "{taken} taken, {refused} refused: the edits say nothing");
}
