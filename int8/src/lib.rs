//! Quantised convolutional networks on small processors: exact, and near the limit of the processor.

pub mod graph;
pub mod isa;
pub mod kernels;
