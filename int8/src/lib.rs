//! int8 networks.
pub mod kernels;
