//! Threads, queues, supervision.

pub mod stage;
pub mod system;
