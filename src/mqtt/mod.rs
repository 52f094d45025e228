//! Topics, payloads, discovery, commands, the client and its spool. Knows no pictures.
//!
//! [`Client`] owns one thread, named `mqtt`, with an async runtime of its own; everybody else hands it
//! [events](crate::report::Event) through [`Handle::offer`], which never waits. What is offered lies in a [`Spool`]
//! until the broker has acknowledged it, so that neither a lost connection, nor a broker that forgets, nor a crash loses an
//! event.

#[cfg(feature = "demo")]
pub mod broker;
pub mod client;
pub mod command;
pub mod discovery;
pub mod payload;
pub mod spool;
pub mod topics;

pub use client::{
    Client, CommandSink, Handle, Limits, Link, LinkError, LinkErrorKind, ProbeError, Published, Setup, Sources,
    StartError, Tap, probe,
};
pub use payload::{Health, Info, Status, Telemetry};
pub use spool::{DiskSettings, MemorySettings, Spool, SpoolError};
pub use topics::{TopicError, Topics};
