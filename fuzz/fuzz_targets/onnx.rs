//! Any bytes as an ONNX file: what can be lowered is lowered, planned and run, with every set of kernels that this processor has to the same bits; all
//! else is an error. Half of the changes are made to the graph as messages, so that they get beyond the reader.
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};
use prost::Message as _;
use tract_onnx::pb::tensor_shape_proto::dimension::Value;
use tract_onnx::pb::{ModelProto, type_proto};
use visaged_int8::Plan;
use visaged_int8::isa::Isa;

#[path = "../../src/nn/lower/tests/edit.rs"]
mod edit;
#[allow(unreachable_pub, unused_imports, dead_code)]
#[path = "../../src/nn/lower/mod.rs"]
mod lower;

/// Work of one run, at most, in multiply-accumulates; and its memory in bytes.
const MOST_WORK: u64 = 1 << 22;
const MOST_MEMORY: usize = 1 << 24;

fuzz_target!(|bytes: &[u8]| {
    let Ok(model) = ModelProto::decode(bytes) else { return };
    let shapes = shapes(&model);
    let shapes: Vec<&[usize]> = shapes.iter().map(Vec::as_slice).collect();
    // A shape for what nobody lowered, so that there are segments behind it.
    let mut known = |name: &str| (name.len() % 4 != 0).then(|| vec![1, 1 + name.len() % 8, 8, 8]);
    let Ok(lowered) = lower::lower(&model, &shapes, &mut known) else { return };
    let _ = lowered.report.to_string();
    for segment in &lowered.segments {
        run(segment);
    }
});

/// The shapes that a model declares, small ones where it declares none.
fn shapes(model: &ModelProto) -> Vec<Vec<usize>> {
    let Some(graph) = &model.graph else { return Vec::new() };
    let constant = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    let inputs = graph.input.iter().filter(|input| !constant(&input.name));
    let shape = |input: &tract_onnx::pb::ValueInfoProto| {
        let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_ref()?.value.as_ref() else { return None };
        let dim = |dim: &tract_onnx::pb::tensor_shape_proto::Dimension| match dim.value {
            Some(Value::DimValue(size)) if (0..=64).contains(&size) => size as usize,
            _ => 8,
        };
        Some(tensor.shape.as_ref()?.dim.iter().take(9).map(dim).collect::<Vec<usize>>())
    };
    inputs.map(|input| shape(input).unwrap_or_default()).collect()
}

fn run(segment: &lower::Segment) {
    if segment.graph.multiply_accumulates() > MOST_WORK {
        return;
    }
    let mut expected: Option<Vec<Vec<f32>>> = None;
    for isa in isas() {
        let plan = Plan::new(&segment.graph, *isa);
        if plan.memory() > MOST_MEMORY {
            return;
        }
        for (port, dims) in plan.outputs().zip(&segment.outputs) {
            assert_eq!(port.shape.len(), dims.dims.iter().product::<usize>());
        }
        let inputs: Vec<Vec<f32>> = plan.inputs().map(|port| noise(port.shape.len())).collect();
        let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
        let mut outputs = Vec::new();
        plan.network(std::num::NonZeroUsize::MIN).run(&inputs, &mut outputs).expect("inputs as long as asked for");
        match &expected {
            None => expected = Some(outputs),
            Some(expected) => assert!(same(expected, &outputs), "{} differs", isa.name()),
        }
    }
}

fn same(a: &[Vec<f32>], b: &[Vec<f32>]) -> bool {
    let bits = |values: &[Vec<f32>]| values.iter().flatten().map(|value| value.to_bits()).collect::<Vec<_>>();
    bits(a) == bits(b)
}

fn isas() -> &'static [Isa] {
    static ISAS: OnceLock<Vec<Isa>> = OnceLock::new();
    ISAS.get_or_init(Isa::available)
}

/// Values around 0, with some that are none.
fn noise(len: usize) -> Vec<f32> {
    let mut state = 1_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        match state >> 26 {
            0 => f32::NAN,
            1 => f32::INFINITY,
            _ => ((state >> 8) as f32 / f32::from(1_u16 << 15) - 256.0) / 64.0,
        }
    };
    (0..len).map(|_| next()).collect()
}

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    let decoded = if seed.is_multiple_of(4) { None } else { ModelProto::decode(&data[..size]).ok() };
    let Some(mut model) = decoded else { return fuzzer_mutate(data, size, max_size) };
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let mut dice = edit::Dice(&mut next);
    for _ in 0..1 + seed / 4 % 3 {
        edit::edit(&mut model, &mut dice);
    }
    let bytes = model.encode_to_vec();
    if bytes.len() > max_size {
        return fuzzer_mutate(data, size, max_size);
    }
    data[..bytes.len()].copy_from_slice(&bytes);
    bytes.len()
});
