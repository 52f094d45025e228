//! The int8 engine against ONNX Runtime's answers, against tract's, and against itself on every set of kernels.

use super::lower::Fate;
use super::lower::tests::net::{Net, integer};
use super::*;

const LAYERS: &str = "tests/data/nn/layers";

fn read(path: impl AsRef<std::path::Path>) -> Vec<u8> {
    std::fs::read(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// A graph of one layer or a few.
struct Example {
    name: String,
    model: Vec<u8>,
    /// Of its inputs.
    shapes: Vec<Vec<usize>>,
    /// Its inputs' and then its outputs', as ONNX Runtime gives them.
    values: Vec<f32>,
}

impl Example {
    fn plan(&self, settings: impl Into<Settings>) -> Plan {
        let shapes: Vec<&[usize]> = self.shapes.iter().map(Vec::as_slice).collect();
        Plan::prepare(&self.model, &shapes, settings).unwrap()
    }
}

fn layers() -> Vec<Example> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(LAYERS);
    let names = std::fs::read_dir(folder)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().into_string().unwrap().strip_suffix(".onnx").map(str::to_owned));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
        .into_iter()
        .map(|name| {
            let model = read(format!("{LAYERS}/{name}.onnx"));
            let values = read(format!("{LAYERS}/{name}.f32"));
            let values = values.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let shapes = tract::declared(&tract::read(&model).unwrap());
            Example { name, model, shapes, values }
        })
        .collect()
}

fn run(plan: &Plan, inputs: &[&[f32]]) -> Vec<Vec<f32>> {
    let mut outputs = Vec::new();
    plan.network().unwrap().run(inputs, &mut outputs).unwrap();
    outputs
}

fn left(plan: &Plan) -> Vec<String> {
    let nodes = &plan.lowering().unwrap().nodes;
    nodes.iter().filter(|node| matches!(node.fate, Fate::Left(_))).map(|node| node.op.clone()).collect()
}

#[test]
fn every_layer_gives_what_onnx_runtime_gives_but_for_a_step_now_and_then() {
    let layers = layers();
    assert!(layers.len() > 90, "{}", layers.len());
    for example in layers {
        let (plan, name) = (example.plan(Engine::Int8), &example.name);
        let mut rest = &example.values[..];
        let mut next = |count: usize| {
            let (front, back) = rest.split_at(count);
            rest = back;
            front
        };
        let inputs: Vec<&[f32]> = plan.inputs().iter().map(|spec| next(spec.shape.iter().product())).collect();
        for (output, spec) in run(&plan, &inputs).iter().zip(plan.outputs()) {
            let expected = next(spec.shape.iter().product());
            assert_eq!(output.len(), expected.len(), "{name}");
            let span = expected.iter().fold(0.0_f32, |span, y| span.max(y.abs()));
            let distance = |(a, b): (&f32, &f32)| (a - b).abs() / span;
            let worst = output.iter().zip(expected).map(distance).fold(0.0_f32, f32::max);
            let off = output.iter().zip(expected).filter(|pair| distance(*pair) > 1e-4).count();
            // Float steps in another order fall on the other side of a half now and then: one step of the grid, which is at most
            // a 64th of what these graphs' outputs reach.
            assert!(worst < 1.0 / 64.0 && off * 10 <= expected.len(), "{name}: {worst}, {off} of {}", expected.len());
        }
        assert!(rest.is_empty(), "{name} gives less than ONNX Runtime");
    }
}

#[test]
fn of_the_layers_only_those_are_left_that_no_kernel_has() {
    for example in layers() {
        let (plan, name) = (example.plan(Engine::Int8), &example.name);
        let expected: &[&str] = match name.as_str() {
            "block_float_middle" => &["Softmax"],
            "block_two_outputs" | "conv_sigmoid" => &["Sigmoid"],
            "conv_tanh" => &["Tanh"],
            _ => &[],
        };
        assert_eq!(left(&plan), expected, "{name}");
        assert_eq!(plan.operations().is_empty(), expected.is_empty(), "{name}");
    }
}

#[test]
fn every_set_of_kernels_gives_the_same_bits_on_every_layer() {
    for example in layers() {
        let mut first: Option<Vec<Vec<f32>>> = None;
        for isa in Isa::available() {
            let plan = example.plan(Settings { isa, ..Settings::default() });
            let mut at = 0;
            let input = |spec: &TensorSpec| {
                let start = at;
                at += spec.shape.iter().product::<usize>();
                &example.values[start..at]
            };
            let inputs: Vec<&[f32]> = plan.inputs().iter().map(input).collect();
            let outputs = run(&plan, &inputs);
            let expected = first.get_or_insert_with(|| outputs.clone());
            assert_eq!(*expected, outputs, "{} on {}", example.name, isa.name());
        }
    }
}

#[test]
fn everything_of_the_expression_networks_is_lowered() {
    for bundle in ["derl", "derl-tiny"] {
        let model = read(format!("models-quantized/{bundle}/model.onnx"));
        let plan = Plan::prepare(&model, &[&[1, 1, 64, 64]], Engine::Int8).unwrap();
        assert_eq!(left(&plan), [""; 0], "{bundle}");
        assert!(plan.operations().is_empty(), "{bundle}: no other engine takes part");
        assert_eq!(plan.outputs()[2], TensorSpec { name: "residue_energy".into(), shape: vec![1, 5] });
    }
}

#[test]
fn everything_of_the_detector_but_its_last_sigmoids_is_lowered_as_one_segment() {
    let model = read("models-quantized/detector/model.onnx");
    for (height, width) in [(256, 320), (480, 640), (160, 160)] {
        let plan = Plan::prepare(&model, &[&[1, 3, height, width]], Engine::Int8).unwrap();
        assert_eq!(left(&plan), ["Sigmoid"; 6]);
        assert_eq!(plan.lowering().unwrap().segments, 1);
        let cells = height * width / 64;
        assert_eq!(plan.outputs()[0], TensorSpec { name: "cls_8".into(), shape: vec![1, cells, 1] });
    }
}

#[test]
fn the_networks_give_what_the_fused_engine_gives() {
    for (bundle, shape) in [("derl", [1, 1, 64, 64]), ("detector", [1, 3, 96, 128])] {
        let model = read(format!("models-quantized/{bundle}/model.onnx"));
        let wave =
            |i: usize| if bundle == "derl" { (i as f32 * 0.37).sin() } else { 127.0 * (1.0 + (i as f32 * 0.37).sin()) };
        let input: Vec<f32> = (0..shape.iter().product()).map(wave).collect();
        let [int8, fused] = [Engine::Int8, Engine::Fused]
            .map(|engine| run(&Plan::prepare(&model, &[&shape], engine).unwrap(), &[&input]));
        for (a, b) in int8.iter().zip(&fused) {
            let span = b.iter().fold(0.0_f32, |span, y| span.max(y.abs()));
            let mean = a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len() as f32;
            assert!(a.len() == b.len() && mean < 0.01 * span, "{bundle}: {mean} of {span}");
        }
    }
}

#[test]
fn segments_around_a_node_that_was_left_give_what_tract_gives_alone() {
    let mut net = Net::default();
    let x = net.input("x", &[1, 3, 8, 8]);
    let x = net.pair(&x, 0.02, 128);
    let c = net.conv(&x, "c", (3, 4));
    let c = net.pair(&c, 0.05, 100);
    let soft = net.node("Softmax", &[&c], "soft", vec![integer("axis", 1)]);
    let soft = net.pair(&soft, 1.0 / 255.0, 0);
    let sum = net.node("Add", &[&c, &soft], "sum", vec![]);
    let sum = net.pair(&sum, 0.05, 100);
    net.output(&sum);
    let model = net.model();
    let input: Vec<f32> = (0..192).map(|i| (i as f32 * 0.7).sin() * 2.5).collect();
    let [int8, qdq] = [Engine::Int8, Engine::Qdq].map(|engine| {
        let plan = Plan::of_graph(model.clone(), &[&[1, 3, 8, 8]], engine.into()).unwrap();
        assert_eq!(plan.lowering().map_or(0, |lowering| lowering.segments), if engine == Engine::Int8 { 2 } else { 0 });
        run(&plan, &[&input])
    });
    let off = int8[0].iter().zip(&qdq[0]).filter(|(a, b)| (*a - *b).abs() > 1e-4).count();
    let worst = int8[0].iter().zip(&qdq[0]).map(|(a, b)| (a - b).abs()).fold(0.0_f32, f32::max);
    assert!(worst < 0.051 && off < 12, "{worst}, {off} of 256");
}

#[test]
fn integers_that_leave_for_a_node_that_was_left_are_the_same_integers() {
    for (data_type, zero_point) in [(2, 128), (3, 3)] {
        let mut net = Net::default();
        let x = net.input("x", &[1, 3, 8, 8]);
        net.pair_of(&x, 0.02, zero_point, data_type);
        let cast = tract_onnx::pb::AttributeProto { name: "to".into(), r#type: 2, i: 1, ..Default::default() };
        let y = net.node("Cast", &["x.q"], "y", vec![cast]);
        net.output(&y);
        let plan = Plan::of_graph(net.model(), &[&[1, 3, 8, 8]], Settings::default()).unwrap();
        let input: Vec<f32> = (0..192).map(|i| (i as f32 - 96.0) * 0.03).collect();
        let (low, high) = if data_type == 3 { (-128.0, 127.0) } else { (0.0, 255.0) };
        let expected = input.iter().map(|x| ((x / 0.02).round_ties_even() + zero_point as f32).clamp(low, high));
        assert!(run(&plan, &[&input])[0].iter().copied().eq(expected), "{data_type}");
    }
}

#[test]
fn files_with_random_bytes_are_prepared_or_refused_by_the_whole_engine() {
    let layers = layers();
    let mut state = 1_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as usize
    };
    let (mut taken, mut refused) = (0, 0);
    for i in 0..400 {
        let Example { model, shapes, values, .. } = &layers[i % layers.len()];
        let mut model = model.clone();
        for _ in 0..1 + i % 3 {
            let at = next() % model.len();
            model[at] ^= 1 << (next() % 8);
        }
        let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
        match Plan::prepare(&model, &shapes, Engine::Int8) {
            Ok(plan) => {
                taken += 1;
                let inputs: Vec<&[f32]> =
                    plan.inputs().iter().map(|spec| &values[..spec.shape.iter().product()]).collect();
                let _ = plan.network().unwrap().run(&inputs, &mut Vec::new());
            }
            Err(error) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
        }
    }
    assert!(taken > 20 && refused > 20, "{taken} taken, {refused} refused");
}

#[test]
fn the_bundles_with_flipped_bytes_are_lowered_or_refused() {
    for (bundle, shape) in [("derl", [1, 1, 64, 64]), ("detector", [1, 3, 64, 64])] {
        let whole = read(format!("models-quantized/{bundle}/model.onnx"));
        for i in 0..24_usize {
            let mut model = whole.clone();
            for k in 0..3 {
                // Most bytes are weights: every other flip hits the graph behind them or before.
                let at = (i * 7_919 + k * 104_729) * 65_537 % model.len();
                model[at] ^= 1 << (i % 8);
            }
            let Ok(proto) = tract::read(&model) else { continue };
            let _ = lower::lower(&proto, &[&shape], &mut |_| None);
        }
        for cut in [0, 1, 100, whole.len() / 2, whole.len() - 1] {
            let proto = tract::read(&whole[..cut]);
            let refused = proto.map_or(true, |proto| lower::lower(&proto, &[&shape], &mut |_| None).is_err());
            assert!(refused, "{bundle} cut at {cut}");
        }
    }
}

#[test]
fn an_input_of_another_length_is_refused_by_name_whether_or_not_anything_is_left() {
    for (bundle, shape, name) in [("derl", [1, 1, 64, 64], "luminance"), ("detector", [1, 3, 64, 64], "input")] {
        let model = read(format!("models-quantized/{bundle}/model.onnx"));
        let plan = Plan::prepare(&model, &[&shape], Engine::Int8).unwrap();
        let mut network = plan.network().unwrap();
        let error = network.run(&[&[0.0; 7]], &mut Vec::new()).unwrap_err().to_string();
        assert!(error.starts_with(&format!("input {name} takes")), "{error}");
        assert!(network.run(&[], &mut Vec::new()).is_err());
    }
}

/// A graph in which each node takes one or two of those before it, and every last one is an output.
fn branching(choices: &[(usize, usize, u8)]) -> (tract_onnx::pb::ModelProto, Vec<String>) {
    let mut net = Net::default();
    let mut made: Vec<String> = ["x", "y"].iter().map(|name| net.input(name, &[1, 4, 8, 8])).collect();
    for name in &mut made {
        *name = net.pair(name, 0.02, 128);
    }
    let mut taken = vec![true; 2];
    for (i, (a, b, kind)) in choices.iter().enumerate() {
        let (a, b) = (a % made.len(), b % made.len());
        let out = match kind % 3 {
            0 => net.conv(&made[a].clone(), &format!("t{i}"), (4, 4)),
            1 => net.node("Relu", &[&made[a].clone()], &format!("t{i}"), vec![]),
            _ => {
                taken[b] = true;
                net.node("Add", &[&made[a].clone(), &made[b].clone()], &format!("t{i}"), vec![])
            }
        };
        taken[a] = true;
        made.push(net.pair(&out, 0.03 + 0.01 * i as f32, 120));
        taken.push(false);
    }
    let outputs: Vec<String> =
        made.iter().zip(&taken).filter(|(_, taken)| !**taken).map(|(name, _)| name.clone()).collect();
    outputs.iter().for_each(|name| net.output(name));
    (net.model(), outputs)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(48))]

    #[test]
    fn a_part_of_a_graph_gives_the_same_bits_as_the_whole_and_takes_only_what_it_needs(
        choices in proptest::collection::vec((0_usize..64, 0_usize..64, 0_u8..3), 2..9),
        pick in 0_usize..64,
    ) {
        let (proto, outputs) = branching(&choices);
        let shape: &[usize] = &[1, 4, 8, 8];
        let wave = |step: f32| (0..256).map(|i| (i as f32 * step).sin() * 2.5).collect::<Vec<f32>>();
        let values = [("x", wave(0.7)), ("y", wave(0.31))];
        let whole = Plan::of_graph(proto.clone(), &[shape, shape], Engine::Int8.into()).unwrap();
        let all = run(&whole, &[&values[0].1, &values[1].1]);
        let at = pick % outputs.len();
        let inputs = [("y", shape), ("x", shape)];
        let part = Plan::part_of_graph(proto, &inputs, &[&outputs[at]], Engine::Int8.into()).unwrap();
        let given = |spec: &TensorSpec| values.iter().find(|(name, _)| *name == spec.name).unwrap().1.as_slice();
        let inputs: Vec<&[f32]> = part.inputs().iter().map(given).collect();
        let one = run(&part, &inputs);
        proptest::prop_assert_eq!(one.len(), 1);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        proptest::prop_assert_eq!(bits(&one[0]), bits(&all[at]));
        proptest::prop_assert!(part.layers().count() <= whole.layers().count());
    }
}

#[test]
fn each_output_of_a_bundle_by_itself_has_the_bits_that_it_has_among_all() {
    let bundles: [(&str, &str, &[usize]); 2] =
        [("derl", "luminance", &[1, 1, 64, 64]), ("detector", "input", &[1, 3, 64, 96])];
    for (bundle, input, shape) in bundles {
        let model = read(format!("models-quantized/{bundle}/model.onnx"));
        let span = if bundle == "derl" { 1.0 } else { 100.0 };
        let values: Vec<f32> =
            (0..shape.iter().product()).map(|i: usize| span * (1.0 + (i as f32 * 0.37).sin())).collect();
        let whole = Plan::prepare(&model, &[shape], Engine::Int8).unwrap();
        let all = run(&whole, &[&values]);
        for (spec, expected) in whole.outputs().iter().zip(&all) {
            let part = Plan::prepare_part(&model, &[(input, shape)], &[&spec.name], Engine::Int8).unwrap();
            assert_eq!(part.outputs(), std::slice::from_ref(spec));
            assert_eq!(run(&part, &[&values])[0], *expected, "{bundle} {}", spec.name);
            assert!(part.layers().count() <= whole.layers().count());
        }
    }
}

#[test]
fn a_part_without_its_output_or_its_input_is_refused_by_name() {
    let model = read("models-quantized/derl/model.onnx");
    let refused = |inputs: &[(&str, &[usize])], outputs: &[&str]| {
        Plan::prepare_part(&model, inputs, outputs, Engine::Int8).unwrap_err().to_string()
    };
    assert!(refused(&[("luminance", &[1, 1, 64, 64])], &["smile"]).contains("no output smile"));
    assert!(refused(&[("grey", &[1, 1, 64, 64])], &["logits"]).contains("luminance"));
}
