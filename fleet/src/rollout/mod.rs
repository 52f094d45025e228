//! Roll-outs of models and configuration, in waves.
//!
//! The words are those that AWS IoT Jobs, hawkBit and Mender use: a roll-out has waves (deployment groups, phases), an abort threshold and a
//! time-out; each device's execution is queued, in progress, succeeded, failed, rejected, timed out or canceled.

mod engine;
mod request;

pub use engine::{Changes, Counts, Due, Ended, Execution, Outcome, Plan, Rollout, Size, State, waves_of};
pub(crate) use request::payload;
pub use request::{InvalidRollout, ROLLOUT_COMMANDS, RolloutRequest, Target};
