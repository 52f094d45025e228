//! Networks and the engines that run them. Knows no faces: tensors in, tensors out.

pub mod tract;

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
