//! Networks and the engines that run them. Knows no faces: tensors in, tensors out.
//!
//! Two engines: the int8 engine of this project ([`visaged_int8`]), which runs what [`lower`] finds for it in an ONNX
//! graph, and tract, which runs the rest, or everything for comparison.

mod int8;
pub mod lower;
pub mod tract;

use std::num::NonZeroUsize;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use tract_onnx::pb::ModelProto;
use visaged_int8::LayerInfo;
use visaged_int8::isa::{Isa, IsaError};

use self::int8::{Ready, Whole};
use self::lower::{Lowered, Lowering};

/// One input or output of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the graph.
    pub name: String,
    /// Its shape, every dimension known.
    pub shape: Vec<usize>,
}

/// A network prepared for one set of input shapes. Float at its edges; what is int8 inside is the engine's affair.
pub trait Network: Send {
    /// Names the engine, for logs, `bench` and metrics.
    fn engine(&self) -> &'static str;
    /// The inputs in order.
    fn inputs(&self) -> &[TensorSpec];
    /// The outputs in order.
    fn outputs(&self) -> &[TensorSpec];

    /// Runs once. `inputs[i]` has the element count of `self.inputs()[i]`; `outputs` is resized to fit, its allocations are kept.
    ///
    /// # Errors
    /// [`NnError`] where a length is wrong or the engine fails; `outputs` is then unspecified.
    fn run(&mut self, inputs: &[&[f32]], outputs: &mut Vec<Vec<f32>>) -> Result<(), NnError>;
}

/// Why a network could not be prepared or run.
#[derive(Debug, thiserror::Error)]
pub enum NnError {
    /// The caller gave a tensor of another size.
    #[error("input {name} takes {expected} values, got {got}")]
    InputLength {
        /// Which input.
        name: String,
        /// Elements it takes.
        expected: usize,
        /// Elements given.
        got: usize,
    },
    /// The engine refused the graph or failed to run it.
    #[error("engine {engine}: {message}")]
    Engine {
        /// Which engine.
        engine: &'static str,
        /// What it said.
        message: String,
    },
}

/// How a graph is run; `bench` compares them, everything else takes [`Engine::Int8`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// In int8 what can be lowered, the rest as in [`Engine::Fused`].
    #[default]
    Int8,
    /// In float by tract, QDQ pairs fused into one pass each: the int8 network's results at about the speed of float.
    Fused,
    /// In float by tract, QDQ as it runs it itself.
    Qdq,
    /// In float by tract, QDQ pairs on activations left out, but for the ReLU in them: the float network with quantised weights.
    Float,
}

impl Engine {
    /// All of them, for `bench`.
    pub const ALL: [Self; 4] = [Self::Int8, Self::Fused, Self::Qdq, Self::Float];

    /// The name that logs, `bench` and metrics use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Fused => "tract-fused",
            Self::Qdq => "tract-qdq",
            Self::Float => "tract-float",
        }
    }
}

/// Which engine, and how it uses the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The engine.
    pub engine: Engine,
    /// The kernels of the int8 engine.
    pub isa: Isa,
    /// Threads of the int8 engine for each network.
    pub threads: NonZeroUsize,
}

impl Default for Settings {
    /// The int8 engine with the fastest kernels that this processor has, on one thread.
    fn default() -> Self {
        Self { engine: Engine::default(), isa: Isa::best(), threads: NonZeroUsize::MIN }
    }
}

/// The environment's variable that names the int8 engine's kernels, in place of the fastest that the processor has.
pub const KERNELS_VARIABLE: &str = "VISAGED_INT8_ISA";

impl Settings {
    /// With the kernels of this name; without one as they are.
    ///
    /// # Errors
    /// [`KernelsError`] for a name that is none, or of kernels that this processor cannot run.
    pub fn with_kernels(self, name: Option<&str>) -> Result<Self, KernelsError> {
        let isa = name.map_or(Ok(self.isa), str::parse).map_err(KernelsError)?;
        Ok(Self { isa, ..self })
    }
}

/// Kernels that there are not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{KERNELS_VARIABLE}: {0}")]
pub struct KernelsError(#[source] pub IsaError);

impl From<Engine> for Settings {
    fn from(engine: Engine) -> Self {
        Self { engine, ..Self::default() }
    }
}

/// A graph made ready for one set of input shapes. Cheap to clone: the weights are shared.
#[derive(Clone, Debug)]
pub struct Plan {
    runner: Runner,
    engine: Engine,
    lowered: Option<Arc<LoweredParts>>,
}

#[derive(Clone, Debug)]
enum Runner {
    Whole(Whole),
    Tract(tract::Plan),
}

#[derive(Debug)]
struct LoweredParts {
    report: Lowering,
    parts: Vec<Ready>,
    isa: Isa,
}

impl Plan {
    /// Reads the ONNX file `model` and makes it ready for `input_shapes` (one a graph input, in order; every dimension
    /// above zero).
    ///
    /// # Errors
    /// [`NnError::Engine`] naming the node where the graph cannot be read, typed or simplified.
    pub fn prepare(model: &[u8], input_shapes: &[&[usize]], settings: impl Into<Settings>) -> Result<Self, NnError> {
        let settings = settings.into();
        let engine = settings.engine;
        let fail = |message: String| NnError::Engine { engine: engine.name(), message };
        let proto = tract::read(model).map_err(|error| fail(format!("{error:#}")))?;
        Self::of_graph(proto, input_shapes, settings)
    }

    /// As [`Plan::prepare`], of the part of the graph that `outputs` need, which become the plan's outputs in this order: what serves
    /// none of them costs nothing. `inputs` are shapes by name; those that the part does not take are passed over, so that
    /// [`Plan::inputs`] may be fewer.
    ///
    /// # Errors
    /// As [`Plan::prepare`], and where the graph lacks one of `outputs`, or takes an input that is not in `inputs`.
    pub fn prepare_part(
        model: &[u8],
        inputs: &[(&str, &[usize])],
        outputs: &[&str],
        settings: impl Into<Settings>,
    ) -> Result<Self, NnError> {
        let settings = settings.into();
        let fail = |message: String| NnError::Engine { engine: settings.engine.name(), message };
        let proto = tract::read(model).map_err(|error| fail(format!("{error:#}")))?;
        Self::part_of_graph(proto, inputs, outputs, settings)
    }

    /// As [`Plan::prepare_part`], of the file's messages.
    pub(crate) fn part_of_graph(
        mut proto: ModelProto,
        inputs: &[(&str, &[usize])],
        outputs: &[&str],
        settings: Settings,
    ) -> Result<Self, NnError> {
        let fail = |message: String| NnError::Engine { engine: settings.engine.name(), message };
        lower::prune(&mut proto, outputs).map_err(|error| fail(error.to_string()))?;
        let shapes = tract::input_names(&proto).into_iter().map(|name| {
            let given = inputs.iter().find(|(known, _)| *known == name);
            given.map(|(_, shape)| *shape).ok_or_else(|| fail(format!("the graph takes an input {name} besides")))
        });
        let shapes = shapes.collect::<Result<Vec<_>, _>>()?;
        Self::of_graph(proto, &shapes, settings)
    }

    /// As [`Plan::prepare`], of the file's messages.
    pub(crate) fn of_graph(proto: ModelProto, input_shapes: &[&[usize]], settings: Settings) -> Result<Self, NnError> {
        let engine = settings.engine;
        let fail = |message: String| NnError::Engine { engine: engine.name(), message };
        // tract panics on some malformed graphs; they are refused like the others.
        let prepared = std::panic::catch_unwind(AssertUnwindSafe(|| match engine {
            Engine::Int8 => Self::lower(proto, input_shapes, settings),
            Engine::Fused | Engine::Qdq | Engine::Float => {
                let plan = tract::Plan::of_graph(&proto, input_shapes, engine)?;
                Ok(Self { runner: Runner::Tract(plan), engine, lowered: None })
            }
        }));
        prepared.map_err(|_| {
            fail("tract panicked on this graph: it is malformed in a way that tract has no word for".into())
        })?
    }

    fn lower(proto: ModelProto, input_shapes: &[&[usize]], settings: Settings) -> Result<Self, NnError> {
        let engine = Engine::Int8;
        let fail = |message: String| NnError::Engine { engine: engine.name(), message };
        let mut shapes = None;
        let mut known = |name: &str| {
            let shapes = shapes.get_or_insert_with(|| tract::shapes(&proto, input_shapes).unwrap_or_default());
            shapes.get(name).cloned()
        };
        let lowered = lower::lower(&proto, input_shapes, &mut known).map_err(|error| fail(error.to_string()))?;
        let Lowered { segments, rest, report } = lowered;
        let ready = |segment| Ready::new(segment, settings.isa, settings.threads);
        let parts: Vec<Ready> = segments.iter().map(ready).collect();
        let runner = match (rest, &segments[..], &parts[..]) {
            (None, [segment], [part]) => {
                let inputs = tract::named(&proto, input_shapes);
                Runner::Whole(Whole::new(segment, part.clone(), inputs))
            }
            (rest, _, parts) => {
                let rest = rest.unwrap_or(proto);
                let plan = tract::Plan::around(&rest, input_shapes, parts);
                Runner::Tract(plan.map_err(|error| fail(format!("{error:#}")))?)
            }
        };
        let lowered = Some(Arc::new(LoweredParts { report, parts, isa: settings.isa }));
        Ok(Self { runner, engine, lowered })
    }

    /// A network over this plan with working memory of its own.
    ///
    /// # Errors
    /// [`NnError::Engine`] where the engine cannot set up its state.
    pub fn network(&self) -> Result<Session, NnError> {
        let state = match &self.runner {
            Runner::Whole(whole) => State::Whole(whole.clone(), whole.network()),
            Runner::Tract(plan) => State::Tract(Box::new(plan.network()?)),
        };
        Ok(Session { state, engine: self.engine })
    }

    /// What was lowered to the int8 engine and what was left; `None` for the other engines.
    pub fn lowering(&self) -> Option<&Lowering> {
        self.lowered.as_ref().map(|lowered| &lowered.report)
    }

    /// The kernels that the int8 engine runs on; `None` for the other engines.
    pub fn isa(&self) -> Option<Isa> {
        self.lowered.as_ref().map(|lowered| lowered.isa)
    }

    /// The layers that the int8 engine runs, in order; empty for the other engines.
    pub fn layers(&self) -> impl Iterator<Item = &LayerInfo> {
        self.lowered.iter().flat_map(|lowered| lowered.parts.iter().flat_map(|part| part.plan().layers()))
    }

    /// Runs each of the int8 engine's parts `runs` times on zeros, once it is warm; gives the nanoseconds of each layer of
    /// [`Plan::layers`] over all these runs.
    ///
    /// # Errors
    /// [`NnError::Engine`] where a part cannot be run.
    pub fn time_layers(&self, runs: usize) -> Result<Vec<u64>, NnError> {
        let mut times = Vec::new();
        for part in self.lowered.iter().flat_map(|lowered| &lowered.parts) {
            let inputs: Vec<Vec<f32>> = part.plan().inputs().map(|port| vec![0.0; port.shape.len()]).collect();
            let inputs: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
            let (mut network, mut outputs, mut sums) = (part.network(), Vec::new(), Vec::new());
            let fail = |error: visaged_int8::RunError| NnError::Engine {
                engine: self.engine.name(),
                message: error.to_string(),
            };
            network.run(&inputs, &mut outputs).map_err(fail)?;
            for _ in 0..runs {
                network.run_timed(&inputs, &mut outputs, &mut sums).map_err(fail)?;
            }
            sums.resize(part.plan().layers().len(), 0);
            times.extend(sums);
        }
        Ok(times)
    }

    /// The operations that tract runs by name with their counts, most frequent first; for `bench` and for tests.
    pub fn operations(&self) -> Vec<(String, usize)> {
        match &self.runner {
            Runner::Whole(_) => Vec::new(),
            Runner::Tract(plan) => plan.operations(),
        }
    }

    /// The inputs in order.
    pub fn inputs(&self) -> &[TensorSpec] {
        match &self.runner {
            Runner::Whole(whole) => &whole.inputs,
            Runner::Tract(plan) => plan.inputs(),
        }
    }

    /// The outputs in order.
    pub fn outputs(&self) -> &[TensorSpec] {
        match &self.runner {
            Runner::Whole(whole) => &whole.outputs,
            Runner::Tract(plan) => plan.outputs(),
        }
    }
}

/// A [`Plan`] being run.
#[derive(Debug)]
pub struct Session {
    state: State,
    engine: Engine,
}

#[derive(Debug)]
enum State {
    Whole(Whole, visaged_int8::Network),
    Tract(Box<tract::TractNetwork>),
}

impl Network for Session {
    fn engine(&self) -> &'static str {
        self.engine.name()
    }

    fn inputs(&self) -> &[TensorSpec] {
        match &self.state {
            State::Whole(whole, _) => &whole.inputs,
            State::Tract(network) => network.inputs(),
        }
    }

    fn outputs(&self) -> &[TensorSpec] {
        match &self.state {
            State::Whole(whole, _) => &whole.outputs,
            State::Tract(network) => network.outputs(),
        }
    }

    fn run(&mut self, inputs: &[&[f32]], outputs: &mut Vec<Vec<f32>>) -> Result<(), NnError> {
        match &mut self.state {
            State::Whole(whole, network) => {
                check_inputs(&whole.inputs, inputs)?;
                whole.run(network, inputs, outputs)
            }
            State::Tract(network) => network.run(inputs, outputs),
        }
    }
}

/// Sees to it that every input has the length of its shape.
fn check_inputs(specs: &[TensorSpec], inputs: &[&[f32]]) -> Result<(), NnError> {
    for (i, spec) in specs.iter().enumerate() {
        let expected = spec.shape.iter().product();
        let got = inputs.get(i).map_or(0, |data| data.len());
        if got != expected {
            return Err(NnError::InputLength { name: spec.name.clone(), expected, got });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
