//! From an [`AlignedFace`](crate::face::AlignedFace) to an emotion: de-expression, what was removed, and its smoothing over time. Knows no MQTT.

pub mod composite;
pub mod derl;
pub mod smooth;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::face::{Face, TrackId};
use crate::frame::CaptureTime;

/// The eight emotions of FER+, in the order of the network's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Emotion {
    /// No expression.
    Neutral,
    /// A smile or a laugh.
    Happiness,
    /// Brows and lids up, mouth open.
    Surprise,
    /// Inner brows up, mouth corners down.
    Sadness,
    /// Brows down, lips pressed or teeth bared.
    Anger,
    /// Nose wrinkled, upper lip up.
    Disgust,
    /// Brows up and drawn together, eyes wide.
    Fear,
    /// One mouth corner tightened.
    Contempt,
}

impl Emotion {
    /// All of them, in the order of the logits.
    pub const ALL: [Self; 8] = [
        Self::Neutral,
        Self::Happiness,
        Self::Surprise,
        Self::Sadness,
        Self::Anger,
        Self::Disgust,
        Self::Fear,
        Self::Contempt,
    ];

    /// The FER+ name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Neutral => "neutral",
            Self::Happiness => "happiness",
            Self::Surprise => "surprise",
            Self::Sadness => "sadness",
            Self::Anger => "anger",
            Self::Disgust => "disgust",
            Self::Fear => "fear",
            Self::Contempt => "contempt",
        }
    }
}

/// A probability for each emotion, in the order of [`Emotion::ALL`]; each in [0, 1], finite, together 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Probabilities(pub [f32; 8]);

impl Probabilities {
    /// The likeliest emotion; the first of equals.
    pub fn top(&self) -> Emotion {
        let mut best = 0;
        for (i, p) in self.0.iter().enumerate() {
            if *p > self.0[best] {
                best = i;
            }
        }
        Emotion::ALL[best]
    }
}

/// Side of the de-expressed face in pixels.
pub const NEUTRAL_SIDE_PX: usize = 64;

/// What one look at one face gave, before smoothing.
#[derive(Clone, Debug)]
pub struct Reading {
    /// By the network alone.
    pub probabilities: Probabilities,
    /// How little was removed, in [0, 1]; 1 is a neutral face.
    pub neutrality: f32,
    /// The face without its expression: 64x64 luminance, row by row.
    pub neutral: Vec<u8>,
}

impl Default for Reading {
    /// Nothing known: all emotions alike, a black neutral face.
    fn default() -> Self {
        let neutral = vec![0; NEUTRAL_SIDE_PX * NEUTRAL_SIDE_PX];
        Self { probabilities: Probabilities([0.125; 8]), neutrality: 0.0, neutral }
    }
}

/// One tracked face in one frame, as the daemon speaks of it: smoothed over its track.
#[derive(Clone, Debug)]
pub struct ObservedFace {
    /// Whose stay this is.
    pub track: TrackId,
    /// Where it is.
    pub face: Face,
    /// How fit for reading, in [0, 1].
    pub quality: f32,
    /// The emotion shown: hysteresis applied, does not flicker.
    pub emotion: Emotion,
    /// Smoothed over time.
    pub probabilities: Probabilities,
    /// Smoothed over time, in [0, 1].
    pub neutrality: f32,
    /// The de-expressed face: 64x64 luminance, row by row.
    pub neutral: Vec<u8>,
}

/// Everything known about one frame; what `report` and `mirror` read.
#[derive(Debug)]
pub struct Observation {
    /// The frame's number.
    pub frame_seq: u64,
    /// When the frame was captured.
    pub time: CaptureTime,
    /// Width of the frame in pixels.
    pub width_px: u32,
    /// Height of the frame in pixels.
    pub height_px: u32,
    /// The faces in view, by track.
    pub faces: Vec<ObservedFace>,
    /// Tracks that ended with this frame: the tracker gave up on them, they never come back.
    pub ended: Vec<TrackId>,
}
