//! Quantised convolutional networks on small processors: exact, and near the limit of the processor.
//!
//! A [`graph::Graph`] says what is computed (layers, shapes, scales), checked layer by layer as it is built. A [`Plan`] decides ahead where everything lies
//! and packs the weights for one processor's [`isa::Isa`]; a [`Network`] is a plan with memory of its own, which runs without allocating.
//!
//! The way down, each module knowing only those behind it: [`graph`] -> [`Plan`] -> (`simple` layers, [`kernels`] for convolutions) -> [`Network`].
//! The rounding rule stands in [`graph`]; the scalar kernels are its definition, every other set gives the same bytes.
//!
//! ```
//! use visaged_int8::graph::{Builder, Conv, Function, Order, Out, Padding, Quant, Shape};
//! use visaged_int8::{Plan, isa::Isa};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let grid = Quant::new(1.0 / 255.0, 0)?;
//! let mut builder = Builder::new();
//! let picture = builder.input("picture", Shape { height: 8, width: 8, channels: 1 }, Order::ChannelsFirst, grid)?;
//! let blur = Conv {
//!     kernel: (3, 3),
//!     stride: (1, 1),
//!     dilation: (1, 1),
//!     padding: Padding { top: 1, left: 1, bottom: 1, right: 1 },
//!     groups: 1,
//!     channels: 1,
//!     weights: vec![1, 2, 1, 2, 4, 2, 1, 2, 1],
//!     weight_scales: vec![1.0 / 16.0],
//!     bias: vec![],
//!     function: Function::Identity,
//! };
//! let blurred = builder.conv("blur", picture, blur, Out::U8(grid))?;
//! builder.output("blurred", blurred, Order::ChannelsFirst);
//!
//! let plan = Plan::new(&builder.build()?, Isa::best());
//! let mut network = plan.network(std::num::NonZeroUsize::MIN);
//! let mut outputs = Vec::new();
//! network.run(&[&[0.5; 64]], &mut outputs)?;
//! assert!((outputs[0][9] - 0.5).abs() < 0.01);
//! # Ok(())
//! # }
//! ```

mod edges;
pub mod graph;
pub mod isa;
pub mod kernels;
pub mod peak;
mod plan;
mod run;
mod simple;
#[cfg(test)]
mod tests;

pub use plan::{LayerInfo, Plan, Port};
pub use run::{Network, RunError};
