//! Quantised convolutional networks on small processors: exact, and near the limit of the processor.

pub mod graph;
pub mod isa;
pub mod kernels;
mod plan;
mod run;
mod simple;
#[cfg(test)]
mod tests;

pub use plan::{LayerInfo, Plan, Port};
pub use run::{Network, RunError};
