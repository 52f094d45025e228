//! What a person sees: the live page.
//!
//! [`Hub`] is where the pipeline leaves pictures, observations, MQTT messages and its state; [`web`] shows them to
//! browsers. Knows frames, faces and expressions; of MQTT it knows that a message is a topic and bytes.
//!
//! Invariants: the pipeline never waits for a viewer; while nobody watches nothing is kept, copied, encoded or allocated
//! for a frame; of pictures and observations the newest wins.

mod hub;
pub mod web;

pub use hub::{Hub, Status};
