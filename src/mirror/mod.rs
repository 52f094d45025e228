//! What a person sees: the live page.
//!
//! [`Hub`] is where the pipeline leaves pictures, observations, MQTT messages and its state; [`web`] shows them to
//! browsers. [`TryOn`] is what a page has asked to be drawn on the faces that it shows. Knows frames, faces, expressions and
//! synthesis; of MQTT it knows that a message is a topic and bytes.
//!
//! Invariants: the pipeline never waits for a viewer; while nobody watches nothing is kept, copied, encoded or allocated
//! for a frame; of pictures and observations the newest wins.

mod hub;
mod try_on;
pub mod web;

pub use hub::{Hub, Status};
pub use try_on::{MOST_BYTES, MOST_PIXELS, Networks, ReferenceError, Show, TryOn, WishError};
