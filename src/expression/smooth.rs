//! Smooths readings over a track, so that what is shown follows the face and does not flicker.
//!
//! An exponential average in real time, weighted by the crop's quality, and on top of it hysteresis: another emotion is
//! shown once it has led the one shown by a margin for a while.
//! Invariants: probabilities stay finite, in [0, 1], with sum 1; a track that was forgotten leaves nothing behind; nothing is
//! allocated once the largest number of tracks was seen.

use std::time::{Duration, Instant};

use super::{Emotion, Probabilities, Reading};
use crate::face::TrackId;
use crate::frame::CaptureTime;

/// How readings are smoothed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SmoothOptions {
    /// After this time a reading counts half.
    pub half_life: Duration,
    /// Another emotion is shown once it leads the one shown by this much, in [0, 1].
    pub hysteresis: f32,
    /// ... for at least this long.
    pub hold: Duration,
    /// Crops of lower quality are not read once a track has a reading; in [0, 1].
    pub min_quality: f32,
}

/// What is known of a track.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Smoothed {
    /// The emotion shown.
    pub emotion: Emotion,
    /// Averaged.
    pub probabilities: Probabilities,
    /// Averaged, in [0, 1].
    pub neutrality: f32,
}

/// The averages of all tracks.
#[derive(Debug)]
pub struct Smoother {
    options: SmoothOptions,
    tracks: Vec<(TrackId, State)>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    seen: Instant,
    weight: f32,
    probabilities: [f32; 8],
    neutrality: f32,
    shown: Emotion,
    rival: Option<(Emotion, Instant)>,
}

impl Smoother {
    /// A smoother without tracks.
    pub fn new(options: SmoothOptions) -> Self {
        Self { options, tracks: Vec::new() }
    }

    /// Takes new options for what comes; the averages stay.
    pub fn set_options(&mut self, options: SmoothOptions) {
        self.options = options;
    }

    /// Whether a crop of this quality is to be read: good enough, or the track's first.
    pub fn wants(&self, track: TrackId, quality: f32) -> bool {
        quality >= self.options.min_quality || self.last(track).is_none()
    }

    /// What is known of a track; `None` before its first reading.
    pub fn last(&self, track: TrackId) -> Option<Smoothed> {
        self.tracks.iter().find(|(id, _)| *id == track).map(|(_, state)| state.smoothed())
    }

    /// Takes in a reading of the frame captured at `now` with the crop's quality in [0, 1].
    pub fn add(&mut self, track: TrackId, now: CaptureTime, quality: f32, reading: &Reading) -> Smoothed {
        // Even the worst crop counts a little, so that a track has something to show.
        let quality = if quality > 0.01 { quality.min(1.0) } else { 0.01 };
        let options = self.options;
        match self.tracks.iter_mut().find(|(id, _)| *id == track) {
            Some((_, state)) => {
                state.add(&options, now.monotonic, quality, reading);
                state.smoothed()
            }
            None => {
                let state = State::new(now.monotonic, quality, reading);
                self.tracks.push((track, state));
                state.smoothed()
            }
        }
    }

    /// Forgets the tracks that ended.
    pub fn forget(&mut self, ended: &[TrackId]) {
        self.tracks.retain(|(id, _)| !ended.contains(id));
    }

    /// Tracks that are remembered.
    pub fn len(&self) -> usize {
        self.tracks.len()
    }

    /// Whether no track is remembered.
    pub fn is_empty(&self) -> bool {
        self.tracks.is_empty()
    }
}

impl State {
    fn new(seen: Instant, quality: f32, reading: &Reading) -> Self {
        Self {
            seen,
            weight: quality,
            probabilities: reading.probabilities.0,
            neutrality: reading.neutrality,
            shown: reading.probabilities.top(),
            rival: None,
        }
    }

    fn add(&mut self, options: &SmoothOptions, now: Instant, quality: f32, reading: &Reading) {
        let passed = now.saturating_duration_since(self.seen);
        self.seen = self.seen.max(now);
        let decay = decay(passed, options.half_life);
        // A reading stands for the time since the last one, so that the frame rate does not matter.
        let new = (1.0 - decay) * quality;
        self.weight = self.weight * decay + new;
        let gain = if self.weight > 0.0 { new / self.weight } else { 0.0 };
        for (mean, value) in self.probabilities.iter_mut().zip(reading.probabilities.0) {
            *mean += gain * (value - *mean);
        }
        self.neutrality += gain * (reading.neutrality - self.neutrality);
        self.choose(options, now);
    }

    fn choose(&mut self, options: &SmoothOptions, now: Instant) {
        let top = Probabilities(self.probabilities).top();
        let lead = self.probabilities[top as usize] - self.probabilities[self.shown as usize];
        if top == self.shown || lead < options.hysteresis {
            self.rival = None;
            return;
        }
        let since = match self.rival {
            Some((rival, since)) if rival == top => since,
            _ => now,
        };
        self.rival = Some((top, since));
        if now.saturating_duration_since(since) >= options.hold {
            self.shown = top;
            self.rival = None;
        }
    }

    fn smoothed(&self) -> Smoothed {
        Smoothed { emotion: self.shown, probabilities: Probabilities(self.probabilities), neutrality: self.neutrality }
    }
}

/// What is left of a weight after `passed`.
fn decay(passed: Duration, half_life: Duration) -> f32 {
    if half_life.is_zero() {
        return 0.0;
    }
    (-passed.as_secs_f32() / half_life.as_secs_f32()).exp2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OPTIONS: SmoothOptions = SmoothOptions {
        half_life: Duration::from_millis(300),
        hysteresis: 0.1,
        hold: Duration::from_millis(200),
        min_quality: 0.15,
    };
    const TRACK: TrackId = TrackId(1);

    struct Clock(CaptureTime);

    impl Clock {
        fn new() -> Self {
            Self(CaptureTime::now())
        }
        fn after(&self, millis: u64) -> CaptureTime {
            CaptureTime { monotonic: self.0.monotonic + Duration::from_millis(millis), ..self.0 }
        }
    }

    fn reading(emotion: Emotion, p: f32) -> Reading {
        let mut values = [(1.0 - p) / 7.0; 8];
        values[emotion as usize] = p;
        Reading { probabilities: Probabilities(values), neutrality: p, neutral: Vec::new() }
    }

    #[test]
    fn the_first_reading_is_shown_at_once() {
        let mut smoother = Smoother::new(OPTIONS);
        let shown = smoother.add(TRACK, Clock::new().0, 0.5, &reading(Emotion::Fear, 0.8));
        assert_eq!(shown.emotion, Emotion::Fear);
        assert!((shown.probabilities.0[Emotion::Fear as usize] - 0.8).abs() < 1e-6);
    }

    #[test]
    fn after_one_half_life_old_and_new_count_the_same_at_any_frame_rate() {
        for step in [10, 20, 100, 300] {
            let (clock, mut smoother) = (Clock::new(), Smoother::new(OPTIONS));
            smoother.add(TRACK, clock.0, 1.0, &reading(Emotion::Neutral, 1.0));
            let mut last = None;
            for millis in (step..=300).step_by(step as usize) {
                last = Some(smoother.add(TRACK, clock.after(millis), 1.0, &reading(Emotion::Happiness, 1.0)));
            }
            let p = last.unwrap().probabilities.0;
            assert!((p[0] - 0.5).abs() < 1e-3 && (p[1] - 0.5).abs() < 1e-3, "step {step}: {p:?}");
        }
    }

    #[test]
    fn an_emotion_that_alternates_every_frame_never_makes_the_shown_one_flicker() {
        let (clock, mut smoother) = (Clock::new(), Smoother::new(OPTIONS));
        for i in 0..300 {
            let emotion = if i % 2 == 0 { Emotion::Neutral } else { Emotion::Surprise };
            let shown = smoother.add(TRACK, clock.after(33 * i), 0.9, &reading(emotion, 0.9));
            assert_eq!(shown.emotion, Emotion::Neutral, "frame {i}");
        }
    }

    #[test]
    fn a_lasting_change_is_shown_once_and_not_before_it_has_held() {
        let (clock, mut smoother) = (Clock::new(), Smoother::new(OPTIONS));
        let mut changes = Vec::new();
        let mut before = Emotion::Neutral;
        for i in 0..60 {
            let emotion = if i < 30 { Emotion::Neutral } else { Emotion::Happiness };
            let shown = smoother.add(TRACK, clock.after(33 * i), 0.9, &reading(emotion, 0.9)).emotion;
            if shown != before {
                changes.push(i);
                before = shown;
            }
        }
        assert_eq!(changes.len(), 1);
        // 30 frames of 33 ms, then the average has to turn and the lead to hold for 200 ms.
        assert!((36..50).contains(&changes[0]), "{changes:?}");
    }

    #[test]
    fn a_poor_crop_moves_the_average_less_than_a_good_one() {
        let after = |quality| {
            let (clock, mut smoother) = (Clock::new(), Smoother::new(OPTIONS));
            smoother.add(TRACK, clock.0, 1.0, &reading(Emotion::Neutral, 1.0));
            smoother.add(TRACK, clock.after(100), quality, &reading(Emotion::Anger, 1.0)).probabilities.0[4]
        };
        assert!(after(0.2) < 0.5 * after(1.0));
    }

    #[test]
    fn a_forgotten_track_starts_anew() {
        let (clock, mut smoother) = (Clock::new(), Smoother::new(OPTIONS));
        smoother.add(TRACK, clock.0, 1.0, &reading(Emotion::Neutral, 1.0));
        smoother.forget(&[TRACK]);
        assert!(smoother.is_empty() && smoother.wants(TRACK, 0.0));
        let shown = smoother.add(TRACK, clock.after(33), 1.0, &reading(Emotion::Disgust, 0.9));
        assert_eq!(shown.emotion, Emotion::Disgust);
        assert!(!smoother.wants(TRACK, 0.1) && smoother.wants(TRACK, 0.2));
    }

    proptest! {
        #[test]
        fn probabilities_stay_probabilities(
            steps in prop::collection::vec((0_u64..2000, -0.5_f32..1.5, 0_usize..8, 0.0_f32..=1.0), 1..50),
        ) {
            let (clock, mut smoother) = (Clock::new(), Smoother::new(OPTIONS));
            for (millis, quality, emotion, p) in steps {
                // Times may even go back: a camera that was opened anew.
                let now = clock.after(millis);
                let shown = smoother.add(TRACK, now, quality, &reading(Emotion::ALL[emotion], p));
                let sum: f32 = shown.probabilities.0.iter().sum();
                prop_assert!((sum - 1.0).abs() < 1e-4);
                prop_assert!(shown.probabilities.0.iter().all(|p| (-1e-6..=1.0 + 1e-6).contains(p)));
                prop_assert!((0.0..=1.0).contains(&shown.neutrality));
            }
        }
    }
}
