//! The tract engine: reads an ONNX graph, simplifies it and runs it in float on one thread.
//!
//! tract runs a quantised (QDQ) convolution in float between scalar quantise and dequantise passes, which is slower than
//! float alone. So each QuantizeLinear, DequantizeLinear pair on an activation is fused into one vectorised pass over the
//! tensor, `FakeQuant`, and weights are dequantised once, when the graph is read. The values are those that QDQ defines,
//! up to the order of float sums.
//!
//! Invariant: whoever calls [`nn::Plan::prepare`](super::Plan::prepare) has verified the bytes (see [`models`](crate::models)); this module does not
//! defend against hostile graphs, it only reports what tract refuses.

use std::collections::HashMap;
use std::sync::Arc;

use tract_onnx::prelude::{
    Framework, InferenceFact, InferenceModelExt, IntoTValue, SpecialOps, TValue, Tensor, TractResult, TypedModel,
    TypedSimplePlan, TypedSimpleState, tvec,
};
use tract_onnx::tract_core::internal::{
    DatumType, DimLike as _, ElementWiseMiniOp, OutletId, TVec, TypedModelPatch, TypedNode, tensor0,
};
use tract_onnx::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_core::ops::math::max;
use tract_onnx::tract_core::ops::quant::{DequantizeLinearF32, QuantizeLinearI8, QuantizeLinearU8};

use tract_onnx::pb::ModelProto;
use tract_onnx::tract_hir::infer::{Factoid as _, InferenceModel, InferenceOp};

use super::int8::Ready;
use super::{Engine, Network, NnError, TensorSpec, check_inputs};

/// A graph made ready for one set of input shapes. Cheap to clone: the weights are shared.
#[derive(Clone, Debug)]
pub struct Plan {
    plan: Arc<TypedSimplePlan>,
    engine: Engine,
    inputs: Arc<[TensorSpec]>,
    outputs: Arc<[TensorSpec]>,
}

impl Plan {
    /// Makes a graph ready for these shapes of its inputs (one an input, in order; every dimension above zero).
    ///
    /// # Errors
    /// [`NnError::Engine`] naming the node where tract cannot read, type or simplify the graph.
    pub(super) fn of_graph(proto: &ModelProto, input_shapes: &[&[usize]], engine: Engine) -> Result<Self, NnError> {
        parsed(proto, input_shapes)
            .and_then(|graph| Self::finish(graph, engine))
            .map_err(|error| NnError::Engine { engine: engine.name(), message: format!("{error:#}") })
    }

    /// Makes a graph ready in which the first nodes stand for parts that the int8 engine runs.
    pub(super) fn around(proto: &ModelProto, input_shapes: &[&[usize]], parts: &[Ready]) -> TractResult<Self> {
        let mut graph = parsed(proto, input_shapes)?;
        // tract keeps what it does not know as a place to be filled.
        let places = graph.nodes_mut().iter_mut().filter(|node| is_segment(&*node.op));
        for (node, part) in places.zip(parts) {
            node.op = part.operation();
        }
        Self::finish(graph, Engine::Int8)
    }

    fn finish(graph: InferenceModel, engine: Engine) -> TractResult<Self> {
        let mut typed = graph.into_typed()?;
        match engine {
            Engine::Fused | Engine::Int8 => fuse_pairs(&mut typed, Pairs::Fuse)?,
            Engine::Float => fuse_pairs(&mut typed, Pairs::Drop)?,
            Engine::Qdq => {}
        }
        typed.declutter()?;
        if matches!(engine, Engine::Fused | Engine::Int8) {
            drop_repeated_quantisation(&mut typed)?;
        }
        let outputs = specs(&typed, typed.output_outlets()?)?;
        let inputs = specs(&typed, typed.input_outlets()?)?;
        let typed = typed.into_optimized()?;
        Ok(Self { plan: TypedSimplePlan::new(typed)?, engine, inputs, outputs })
    }

    pub(super) fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    pub(super) fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// A network over this plan with working memory of its own.
    ///
    /// # Errors
    /// [`NnError::Engine`] where tract cannot set up its state.
    pub fn network(&self) -> Result<TractNetwork, NnError> {
        let state = self.plan.spawn().map_err(|error| self.failed(&error))?;
        Ok(TractNetwork { state, plan: self.clone() })
    }

    /// The operations of the plan by name with their counts, most frequent first; for `bench` and for tests.
    pub fn operations(&self) -> Vec<(String, usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for node in self.plan.model().nodes() {
            *counts.entry(node.op.name().into_owned()).or_insert(0) += 1;
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
        counts
    }

    fn failed(&self, error: &dyn std::fmt::Display) -> NnError {
        NnError::Engine { engine: self.engine.name(), message: format!("{error:#}") }
    }
}

/// A [`Plan`] being run.
#[derive(Debug)]
pub struct TractNetwork {
    state: TypedSimpleState,
    plan: Plan,
}

impl Network for TractNetwork {
    fn engine(&self) -> &'static str {
        self.plan.engine.name()
    }

    fn inputs(&self) -> &[TensorSpec] {
        &self.plan.inputs
    }

    fn outputs(&self) -> &[TensorSpec] {
        &self.plan.outputs
    }

    fn run(&mut self, inputs: &[&[f32]], outputs: &mut Vec<Vec<f32>>) -> Result<(), NnError> {
        check_inputs(&self.plan.inputs, inputs)?;
        let mut values: TVec<TValue> = tvec!();
        for (spec, data) in self.plan.inputs.iter().zip(inputs) {
            let tensor = Tensor::from_shape(&spec.shape, data).map_err(|error| self.plan.failed(&error))?;
            values.push(tensor.into_tvalue());
        }
        let results = self.state.run(values).map_err(|error| self.plan.failed(&error))?;
        outputs.resize_with(results.len(), Vec::new);
        for (result, output) in results.iter().zip(outputs.iter_mut()) {
            let view = result.try_as_plain_ram().map_err(|error| self.plan.failed(&error))?;
            output.clear();
            output.extend_from_slice(view.as_slice::<f32>().map_err(|error| self.plan.failed(&error))?);
        }
        Ok(())
    }
}

/// Reads a file's messages; nothing in them is looked at yet.
pub(super) fn read(model: &[u8]) -> TractResult<ModelProto> {
    let mut model = model;
    tract_onnx::onnx().proto_model_for_read(&mut model)
}

/// The graph with its inputs' shapes in place of what it declares.
fn parsed(proto: &ModelProto, input_shapes: &[&[usize]]) -> TractResult<InferenceModel> {
    let mut graph = tract_onnx::onnx().model_for_proto_model(proto)?;
    let count = graph.input_outlets()?.len();
    if count != input_shapes.len() {
        refuse(format!("the graph has {count} inputs, {} shapes were given", input_shapes.len()))?;
    }
    for (i, shape) in input_shapes.iter().enumerate() {
        graph.set_input_fact(i, InferenceFact::dt_shape(DatumType::F32, *shape))?;
    }
    // Declared output shapes may be symbolic; the ones that follow from the inputs are what counts.
    for i in 0..graph.output_outlets()?.len() {
        graph.set_output_fact(i, InferenceFact::default())?;
    }
    Ok(graph)
}

fn is_segment(op: &dyn InferenceOp) -> bool {
    op.name() == format!("Unimplemented({})", super::lower::SEGMENT)
}

/// The shapes of all tensors of a graph that follow from its inputs', by name.
pub(super) fn shapes(proto: &ModelProto, input_shapes: &[&[usize]]) -> TractResult<HashMap<String, Vec<usize>>> {
    let mut graph = parsed(proto, input_shapes)?;
    graph.analyse(true)?;
    let mut shapes = HashMap::new();
    for node in graph.nodes() {
        for (slot, outlet) in node.outputs.iter().enumerate() {
            let concrete = outlet
                .fact
                .shape
                .concretize()
                .and_then(|dims| dims.iter().map(|dim| dim.to_usize().ok()).collect::<Option<Vec<usize>>>());
            let label = graph.outlet_label(OutletId::new(node.id, slot));
            if let (Some(label), Some(dims)) = (label, concrete) {
                shapes.insert(label.to_owned(), dims);
            }
        }
    }
    Ok(shapes)
}

/// A graph's inputs by name, with the shapes that were given.
pub(super) fn named(proto: &ModelProto, input_shapes: &[&[usize]]) -> Arc<[TensorSpec]> {
    let inputs = input_names(proto).into_iter().zip(input_shapes);
    inputs.map(|(name, shape)| TensorSpec { name, shape: shape.to_vec() }).collect()
}

/// The names of a graph's inputs that are no initialisers, in order.
pub(super) fn input_names(proto: &ModelProto) -> Vec<String> {
    let Some(graph) = &proto.graph else { return Vec::new() };
    let constant = |name: &str| graph.initializer.iter().any(|tensor| tensor.name == name);
    graph.input.iter().map(|input| input.name.clone()).filter(|name| !constant(name)).collect()
}

fn specs(model: &TypedModel, outlets: &[OutletId]) -> TractResult<Arc<[TensorSpec]>> {
    let mut specs = Vec::with_capacity(outlets.len());
    for outlet in outlets {
        let name = model.outlet_label(*outlet).unwrap_or(&model.node(outlet.node).name).to_owned();
        let fact = model.outlet_fact(*outlet)?;
        let Some(shape) = fact.shape.as_concrete() else {
            return refuse(format!("the shape of {name}, {:?}, does not follow from the inputs", fact.shape));
        };
        specs.push(TensorSpec { name, shape: shape.to_vec() });
    }
    Ok(specs.into())
}

fn refuse<T>(message: String) -> TractResult<T> {
    Err(tract_onnx::tract_core::internal::TractError::msg(message))
}

/// Rounds a float tensor to the values that an 8-bit one can hold: QuantizeLinear and DequantizeLinear in one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
struct FakeQuant {
    /// Step of the grid, above zero.
    scale: f32,
    /// The integer that stands for 0.
    zero_point: i32,
    /// Smallest integer: 0 or -128.
    low: i32,
    /// Largest integer: 255 or 127.
    high: i32,
}

impl Eq for FakeQuant {}

impl FakeQuant {
    /// `DequantizeLinear(QuantizeLinear(x))` as ONNX defines it: round half to even, then saturate. NaN becomes the lowest value.
    fn apply(self, values: &mut [f32]) {
        #[cfg(target_arch = "x86_64")]
        if std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2, which is all that the function asks for.
            unsafe { self.apply_avx2(values) };
            return;
        }
        self.apply_any(values);
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    fn apply_avx2(self, values: &mut [f32]) {
        self.apply_any(values);
    }

    #[inline(always)]
    fn apply_any(self, values: &mut [f32]) {
        // Adding and subtracting 1.5 * 2^23 rounds half to even for |x| < 2^22 without a call that no baseline
        // instruction set has; the bounds are integers, so saturating first changes nothing.
        const ROUND: f32 = 12_582_912.0;
        let low = (self.low - self.zero_point) as f32;
        let high = (self.high - self.zero_point) as f32;
        for value in values {
            let q = *value / self.scale;
            let q = if q > low { q } else { low };
            let q = if q < high { q } else { high };
            *value = ((q + ROUND) - ROUND) * self.scale;
        }
    }
}

impl ElementWiseMiniOp for FakeQuant {
    fn name(&self) -> String {
        "FakeQuant".into()
    }

    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        self.apply(tensor.try_as_plain_ram_mut()?.as_slice_mut::<f32>()?);
        Ok(())
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{self:?}")])
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pairs {
    Fuse,
    Drop,
}

/// Replaces each activation's QuantizeLinear, DequantizeLinear pair.
fn fuse_pairs(model: &mut TypedModel, pairs: Pairs) -> TractResult<()> {
    while let Some(patch) = next_pair(model, pairs)? {
        patch.apply(model)?;
    }
    model.compact()
}

fn next_pair(model: &TypedModel, pairs: Pairs) -> TractResult<Option<TypedModelPatch>> {
    for id in model.eval_order()? {
        let node = model.node(id);
        let Some(dequant) = node.op_as::<DequantizeLinearF32>() else { continue };
        let before = model.node(node.inputs[0].node);
        let Some(quantised) = quantised_range(before) else { continue };
        let (scale_reciprocal, zero_point, low, high) = quantised;
        // tract keeps the reciprocal of the quantiser's scale; a pair is one only where both halves mean the same grid.
        if dequant.scale.recip() != scale_reciprocal || dequant.zero_point != zero_point {
            continue;
        }
        let mut patch = TypedModelPatch::default();
        let mut wire = patch.tap_model(model, before.inputs[0])?;
        if pairs == Pairs::Fuse {
            let op = FakeQuant { scale: dequant.scale, zero_point, low, high };
            wire = patch.wire_node(&node.name, ElementWiseOp(Box::new(op), None), &[wire])?[0];
        } else if zero_point == low {
            // Quantisers leave a ReLU to the saturation at 0 of the pair behind it.
            let zero = tensor0(0.0_f32).broadcast_into_rank(model.outlet_fact(before.inputs[0])?.rank())?;
            let zero = patch.add_const(format!("{}.zero", node.name), zero)?;
            wire = patch.wire_node(&node.name, max(), &[wire, zero])?[0];
        }
        patch.shunt_outside(model, node.id.into(), wire)?;
        return Ok(Some(patch));
    }
    Ok(None)
}

fn quantised_range(node: &TypedNode) -> Option<(f32, i32, i32, i32)> {
    let op = node.op_as::<ElementWiseOp>()?;
    if let Some(q) = op.0.downcast_ref::<QuantizeLinearU8>() {
        return Some((q.scale, i32::from(q.zero_point), 0, 255));
    }
    let q = op.0.downcast_ref::<QuantizeLinearI8>()?;
    Some((q.scale, i32::from(q.zero_point), -128, 127))
}

/// Takes out a `FakeQuant` whose input is on the same grid already, having come through operations that only pick values.
fn drop_repeated_quantisation(model: &mut TypedModel) -> TractResult<()> {
    while let Some(patch) = next_repeated(model)? {
        patch.apply(model)?;
    }
    model.compact()
}

fn next_repeated(model: &TypedModel) -> TractResult<Option<TypedModelPatch>> {
    for id in model.eval_order()? {
        let node = model.node(id);
        let Some(op) = fake_quant(node) else { continue };
        let mut before = model.node(node.inputs[0].node);
        while only_picks_values(before) && before.inputs.len() == 1 {
            before = model.node(before.inputs[0].node);
        }
        if fake_quant(before) == Some(op) {
            return TypedModelPatch::shunt_one_op(model, node);
        }
    }
    Ok(None)
}

fn fake_quant(node: &TypedNode) -> Option<FakeQuant> {
    node.op_as::<ElementWiseOp>()?.0.downcast_ref::<FakeQuant>().copied()
}

fn only_picks_values(node: &TypedNode) -> bool {
    use tract_onnx::tract_core::internal::{AxisOp, IntoShape};
    use tract_onnx::tract_core::ops::cnn::MaxPool;
    node.op_is::<MaxPool>() || node.op_is::<AxisOp>() || node.op_is::<IntoShape>()
}

/// The shapes of a graph's inputs as it declares them, every dimension known.
#[cfg(test)]
pub(super) fn declared(proto: &ModelProto) -> Vec<Vec<usize>> {
    let graph = tract_onnx::onnx().model_for_proto_model(proto).unwrap();
    let fact = |outlet: &OutletId| graph.outlet_fact(*outlet).unwrap().shape.concretize().unwrap();
    let sizes = |outlet| fact(outlet).iter().map(|dim| dim.to_usize().unwrap()).collect();
    graph.input_outlets().unwrap().iter().map(sizes).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Plan;
    use super::*;

    const MODEL: &[u8] = include_bytes!("../../tests/data/nn/qdq.onnx");
    const INPUT: usize = 3 * 32 * 32;
    const FIRST: usize = 24 * 8 * 8;

    fn golden() -> Vec<f32> {
        let bytes = include_bytes!("../../tests/data/nn/qdq.f32");
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
    }

    fn run(engine: Engine, input: &[f32]) -> (Plan, Vec<Vec<f32>>) {
        let plan = Plan::prepare(MODEL, &[&[1, 3, 32, 32]], engine).unwrap();
        let mut outputs = Vec::new();
        plan.network().unwrap().run(&[input], &mut outputs).unwrap();
        (plan, outputs)
    }

    #[test]
    fn fused_results_are_those_of_onnx_runtime_but_for_roundings_on_the_edge() {
        let golden = golden();
        let (plan, outputs) = run(Engine::Fused, &golden[..INPUT]);
        assert_eq!(plan.outputs()[0].shape, [1, 24, 8, 8]);
        assert_eq!(plan.outputs()[1].name, "b");
        let expected = [&golden[INPUT..INPUT + FIRST], &golden[INPUT + FIRST..]];
        for (output, expected) in outputs.iter().zip(expected) {
            let span = expected.iter().copied().fold(0.0_f32, f32::max);
            let (mut off, mut worst) = (0, 0.0_f32);
            for (a, b) in output.iter().zip(expected) {
                off += usize::from((a - b).abs() > 1e-4 * span);
                worst = worst.max((a - b).abs() / span);
            }
            // Sums taken in another order fall on the other side of a half now and then: one step of 255, rarely.
            assert!(off * 50 < expected.len(), "{off} of {} differ", expected.len());
            assert!(worst < 0.02, "{worst}");
        }
    }

    #[test]
    fn every_pair_is_fused_and_repeated_ones_are_gone() {
        let golden = golden();
        let (fused, _) = run(Engine::Fused, &golden[..INPUT]);
        let count = |plan: &Plan, name: &str| -> usize {
            plan.operations().iter().filter(|(n, _)| n.contains(name)).map(|(_, count)| count).sum()
        };
        assert_eq!(count(&fused, "uantizeLinear"), 0, "{:?}", fused.operations());
        assert!(count(&fused, "FakeQuant") >= 7, "{:?}", fused.operations());
        let (float, _) = run(Engine::Float, &golden[..INPUT]);
        assert_eq!(count(&float, "FakeQuant") + count(&float, "uantizeLinear"), 0, "{:?}", float.operations());
    }

    #[test]
    fn tracts_own_qdq_agrees_with_the_fused_one_and_float_is_near() {
        let golden = golden();
        let (_, fused) = run(Engine::Fused, &golden[..INPUT]);
        for (engine, tolerance) in [(Engine::Qdq, 0.002), (Engine::Float, 0.05)] {
            let (_, other) = run(engine, &golden[..INPUT]);
            for (a, b) in fused.iter().zip(&other) {
                let span = a.iter().copied().fold(0.0_f32, f32::max);
                let mean = a.iter().zip(b).map(|(a, b)| (a - b).abs()).sum::<f32>() / a.len() as f32;
                assert!(mean < tolerance * span, "{engine:?}: {mean} of {span}");
            }
        }
    }

    #[test]
    fn an_input_of_another_length_is_refused_by_name() {
        let plan = Plan::prepare(MODEL, &[&[1, 3, 32, 32]], Engine::Fused).unwrap();
        let error = plan.network().unwrap().run(&[&[0.0; 7]], &mut Vec::new()).unwrap_err();
        assert_eq!(error.to_string(), "input x takes 3072 values, got 7");
    }

    #[test]
    fn bytes_that_are_no_graph_are_an_error() {
        for bytes in [&b"not a graph"[..], &MODEL[..2000], &[]] {
            assert!(matches!(Plan::prepare(bytes, &[&[1, 3, 32, 32]], Engine::Fused), Err(NnError::Engine { .. })));
        }
        let error = Plan::prepare(MODEL, &[], Engine::Fused).unwrap_err();
        assert!(error.to_string().contains("1 inputs, 0 shapes"), "{error}");
    }

    #[test]
    fn rounding_is_half_to_even_and_saturates() {
        let op = FakeQuant { scale: 0.5, zero_point: 3, low: 0, high: 255 };
        let mut values =
            [0.25, 0.75, -0.25, -0.75, 1e9, -1e9, f32::NAN, f32::INFINITY, 0.0, 0.26, 100.0, -1.5, -1.76, 126.25];
        op.apply(&mut values);
        assert_eq!(values, [0.0, 1.0, 0.0, -1.0, 126.0, -1.5, -1.5, 126.0, 0.0, 0.5, 100.0, -1.5, -1.5, 126.0]);
    }

    proptest::proptest! {
        #[test]
        fn fused_rounding_is_onnx_quantise_and_dequantise(
            x in -1000.0_f32..1000.0, scale in 0.001_f32..10.0, zero_point in 0_i32..=255,
        ) {
            let mut values = [x; 9];
            FakeQuant { scale, zero_point, low: 0, high: 255 }.apply(&mut values);
            let q = ((x / scale).round_ties_even() as i32).saturating_add(zero_point).clamp(0, 255);
            let expected = (q - zero_point) as f32 * scale;
            proptest::prop_assert!(values.iter().all(|v| *v == expected), "{} against {expected}", values[0]);
        }
    }
}
