//! `visaged` watches a camera, finds faces, takes the expression off each (de-expression), reads the emotion from
//! what was taken off, and reports over MQTT. Everything runs on the device.
//!
//! # The way of a frame
//!
//! ```text
//! camera ─► capture ─► Frame ─► face::detect ─► face::track ─► face::align ─► AlignedFace
//!                                                                              │
//!      broker ◄─ mqtt ◄─ Event ◄─ report ◄─ Observation ◄─ expression ◄────────┘
//!                                               │
//!                                               └─► mirror (the live page) ◄─ synthesis (the try-on)
//! ```
//!
//! One direction, no way back. Frames may be dropped (the newest wins, and every drop is counted); events may not.
//! A module knows only what stands above it in this list; only [`daemon`] and [`cli`] know everybody.
//!
//! | module | what it is for |
//! |---|---|
//! | [`frame`] | a captured picture with its time, and its conversion to RGB |
//! | [`pool`] | buffers that are used again, so that a warm pipeline allocates nothing |
//! | [`mailbox`] | the one-place queue between stages in which the newest wins |
//! | [`picture`] | still pictures from disk: opened with limits, turned upright, written with their mark |
//! | [`capture`] | sources of frames: V4L2 cameras, clips, a test pattern |
//! | [`nn`] | networks and the engines that run them; knows no faces |
//! | [`models`] | model bundles: manifest, verification, the defaults inside the binary, the store of installed ones |
//! | [`face`] | detection, tracking, alignment |
//! | [`expression`] | de-expression, emotion, smoothing over time; knows no MQTT |
//! | [`synthesis`] | whose face it is, make-up put on and taken off, and the way back into the picture; knows no MQTT |
//! | [`selftest`] | a bundle tried on pictures before anything depends on it |
//! | [`report`] | observations to events: the fixed JSON contract |
//! | [`mqtt`] | topics, payloads, discovery, the client and its spool; knows no pictures |
//! | [`mirror`] | what a person sees: the live page |
//! | [`config`] | the one typed configuration |
//! | [`telemetry`] | counters and latency histograms: Prometheus text and the telemetry payload |
//! | [`daemon`] | threads, queues, supervision |
//! | [`cli`] | one file a subcommand |

pub mod capture;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod expression;
pub mod face;
pub mod frame;
pub mod mailbox;
pub mod mirror;
pub mod models;
pub mod mqtt;
pub mod nn;
pub mod picture;
pub mod pool;
pub mod report;
pub mod selftest;
pub mod synthesis;
pub mod telemetry;
