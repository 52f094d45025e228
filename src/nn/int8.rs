//! The int8 engine behind [`Network`](super::Network): a whole graph, or the lowered parts of one as operations of tract.
//!
//! Invariant: a segment gives the shapes that its lowering named. Knows tract only as the keeper of what was not lowered.

use std::num::NonZeroUsize;
use std::sync::Arc;

use tract_onnx::prelude::{
    Datum as _, IntoTValue, SpecialOps as _, TValue, Tensor, TractResult, TypedFact, TypedModel, tvec,
};
use tract_onnx::tract_core::internal::{
    DatumExt as _, EvalContext, EvalOp, LaneId, Op, OpState, OutletId, ShapeFact, StaticName, TVec, TractError,
    TypedOp, as_op, not_out_of_plan, op_as_typed_op,
};
use tract_onnx::tract_hir::infer::{InferenceOp, InferenceResult, Solver, TensorProxy};
use tract_onnx::tract_hir::ops::expandable::{Expansion, expand};
use visaged_int8::isa::Isa;
use visaged_int8::{Network, Plan};

use super::lower::{SEGMENT, Segment};
use super::{NnError, TensorSpec};

/// A segment made ready for this processor; cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Ready {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    plan: Plan,
    threads: NonZeroUsize,
    /// Dimensions of the outputs.
    outputs: Vec<Vec<usize>>,
}

impl Ready {
    pub(super) fn new(segment: &Segment, isa: Isa, threads: NonZeroUsize) -> Self {
        let plan = Plan::new(&segment.graph, isa);
        let outputs = segment.outputs.iter().map(|port| port.dims.clone()).collect();
        Self { shared: Arc::new(Shared { plan, threads, outputs }) }
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.shared.plan
    }

    pub(super) fn network(&self) -> Network {
        self.shared.plan.network(self.shared.threads)
    }

    /// As an operation for a graph that tract has just read.
    pub(super) fn operation(&self) -> Box<dyn InferenceOp> {
        expand(self.clone())
    }
}

impl PartialEq for Ready {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }
}

impl Eq for Ready {}

impl Expansion for Ready {
    fn name(&self) -> StaticName {
        SEGMENT.into()
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.shared.outputs.len())
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        solver: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        for input in inputs {
            solver.equals(&input.datum_type, f32::datum_type())?;
        }
        for (output, dims) in outputs.iter().zip(&self.shared.outputs) {
            solver.equals(&output.datum_type, f32::datum_type())?;
            solver.equals(&output.shape, ShapeFact::from_dims(dims.iter().copied()).to_tvec())?;
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for Ready {
    fn name(&self) -> StaticName {
        SEGMENT.into()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        Ok(vec![format!("{} layers", self.plan().layers().len())])
    }

    op_as_typed_op!();
}

impl EvalOp for Ready {
    not_out_of_plan!();

    fn state(&self, _: &EvalContext) -> TractResult<Option<Box<dyn OpState>>> {
        Ok(Some(Box::new(Running::new(self.clone()))))
    }
}

impl TypedOp for Ready {
    fn output_facts(&self, _: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(self.shared.outputs.iter().map(f32::fact).collect())
    }

    as_op!();
}

/// A segment with memory of its own, as tract holds it.
#[derive(Debug)]
struct Running {
    ready: Ready,
    network: Network,
    outputs: Vec<Vec<f32>>,
}

impl Running {
    fn new(ready: Ready) -> Self {
        let network = ready.network();
        Self { ready, network, outputs: Vec::new() }
    }
}

impl Clone for Running {
    fn clone(&self) -> Self {
        Self::new(self.ready.clone())
    }
}

impl OpState for Running {
    fn eval(&mut self, _: &EvalContext, _: &dyn Op, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let mut slices: TVec<&[f32]> = tvec!();
        for input in &inputs {
            slices.push(input.try_as_plain_ram()?.as_slice::<f32>()?);
        }
        self.network.run(&slices, &mut self.outputs).map_err(|error| TractError::msg(error.to_string()))?;
        let values = self.outputs.iter().zip(&self.ready.shared.outputs);
        values.map(|(values, dims)| Ok(Tensor::from_shape(dims, values)?.into_tvalue())).collect()
    }

    fn reset_lanes(&mut self, _: &[LaneId]) -> TractResult<()> {
        Ok(())
    }
}

/// A graph that is one segment: no other engine takes part.
#[derive(Clone, Debug)]
pub(super) struct Whole {
    ready: Ready,
    /// Which of the graph's inputs each of the network's is.
    order: Arc<[usize]>,
    pub(super) inputs: Arc<[TensorSpec]>,
    pub(super) outputs: Arc<[TensorSpec]>,
}

impl Whole {
    pub(super) fn new(segment: &Segment, ready: Ready, inputs: Arc<[TensorSpec]>) -> Self {
        let place = |name: &str| inputs.iter().position(|input| input.name == name).unwrap_or_default();
        let order = segment.inputs.iter().map(|port| place(&port.name)).collect();
        let outputs =
            segment.outputs.iter().map(|port| TensorSpec { name: port.name.clone(), shape: port.dims.clone() });
        Self { ready, order, outputs: outputs.collect(), inputs }
    }

    pub(super) fn run(
        &self,
        network: &mut Network,
        inputs: &[&[f32]],
        outputs: &mut Vec<Vec<f32>>,
    ) -> Result<(), NnError> {
        let ordered: TVec<&[f32]> = self.order.iter().map(|place| inputs[*place]).collect();
        network
            .run(&ordered, outputs)
            .map_err(|error| NnError::Engine { engine: super::Engine::Int8.name(), message: error.to_string() })
    }

    pub(super) fn network(&self) -> Network {
        self.ready.network()
    }
}
