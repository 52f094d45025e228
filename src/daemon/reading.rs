//! The stage `expression`: each crop is read and smoothed over its track, the observation becomes events.
//!
//! Invariants: no observation is dropped on the way from tracks to events; handing an event over never waits for the
//! broker; when the stage ends, whoever was announced has left.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::faces::{Batch, Slot};
use super::stage::{End, Heartbeat, MAX_IDLE};
use super::{Context, Settings};
use crate::expression::derl::Derl;
use crate::expression::smooth::{SmoothOptions, Smoothed, Smoother};
use crate::expression::{Observation, ObservedFace, Reading};
use crate::face::TrackId;
use crate::frame::CaptureTime;
use crate::pool::Pooled;
use crate::report::{Event, Reporter};
use crate::telemetry::{Stage, Telemetry};

/// Takes an event without waiting.
pub(super) type Offer = Box<dyn Fn(Event) + Send>;

/// The stage; what is in here outlives a panic.
pub(super) struct Expression {
    context: Arc<Context>,
    batches: Receiver<Pooled<Batch>>,
    reporter: Reporter,
    offer: Offer,
    events: Vec<Event>,
}

/// What is made anew after a panic.
struct Work {
    settings: Arc<Settings>,
    derl: Derl,
    smoother: Smoother,
    reading: Reading,
    observation: Observation,
    /// The de-expressed faces of the frame before, whose memory is used again.
    neutrals: Vec<(TrackId, Vec<u8>)>,
}

impl Work {
    fn new(context: &Context) -> Result<Self, String> {
        let settings = context.settings.load_full();
        Ok(Self {
            derl: Derl::new(&context.models.derl).map_err(|error| error.to_string())?,
            smoother: Smoother::new(smooth_options(&settings)),
            reading: Reading::default(),
            observation: Observation {
                frame_seq: 0,
                time: CaptureTime::now(),
                width_px: 0,
                height_px: 0,
                faces: Vec::new(),
                ended: Vec::new(),
            },
            neutrals: Vec::new(),
            settings,
        })
    }

    fn observe(&mut self, batch: &Batch, telemetry: &Telemetry) {
        let observation = &mut self.observation;
        observation.frame_seq = batch.seq;
        observation.time = batch.time();
        if let Some(picture) = &batch.picture {
            (observation.width_px, observation.height_px) = (picture.width_px, picture.height_px);
        }
        observation.ended.clear();
        observation.ended.extend_from_slice(&batch.ended);
        self.smoother.forget(&batch.ended);
        self.neutrals.extend(observation.faces.drain(..).map(|face| (face.track, face.neutral)));
        for slot in batch.faces() {
            if let Some(face) = self.observe_face(slot, batch, telemetry) {
                self.observation.faces.push(face);
            }
        }
    }

    /// `None` for a track that could never be read yet.
    fn observe_face(&mut self, slot: &Slot, batch: &Batch, telemetry: &Telemetry) -> Option<ObservedFace> {
        let track = slot.tracked.id;
        let mut neutral = self.neutral_of(track, batch);
        let smoothed = match self.read(slot, batch.time(), telemetry) {
            Some(smoothed) => {
                neutral.clone_from(&self.reading.neutral);
                smoothed
            }
            None => self.smoother.last(track)?,
        };
        Some(ObservedFace {
            track,
            face: slot.tracked.face,
            quality: slot.aligned.quality,
            emotion: smoothed.emotion,
            probabilities: smoothed.probabilities,
            neutrality: smoothed.neutrality,
            neutral,
        })
    }

    /// `None` where the crop is not worth reading or could not be read.
    fn read(&mut self, slot: &Slot, time: CaptureTime, telemetry: &Telemetry) -> Option<Smoothed> {
        let (track, quality) = (slot.tracked.id, slot.aligned.quality);
        if !self.smoother.wants(track, quality) {
            return None;
        }
        match self.derl.read(&slot.aligned, &mut self.reading) {
            Ok(()) => {
                Telemetry::count(&telemetry.faces_read);
                Some(self.smoother.add(track, time, quality, &self.reading))
            }
            Err(error) => {
                Telemetry::count(&telemetry.derl_failures);
                tracing::warn!(%error, track = track.0, "face passed over");
                None
            }
        }
    }

    /// This track's de-expressed face as last read, or the memory of somebody's who is not in this frame, emptied.
    fn neutral_of(&mut self, track: TrackId, batch: &Batch) -> Vec<u8> {
        if let Some(index) = self.neutrals.iter().position(|(owner, _)| *owner == track) {
            return self.neutrals.swap_remove(index).1;
        }
        let absent = |owner: &TrackId| batch.faces().iter().all(|slot| slot.tracked.id != *owner);
        let free = self.neutrals.iter().position(|(owner, _)| absent(owner));
        let mut neutral = free.map(|index| self.neutrals.swap_remove(index).1).unwrap_or_default();
        neutral.clear();
        neutral
    }

    fn follow_settings(&mut self, context: &Context, reporter: &mut Reporter) {
        let newest = context.settings.load();
        if !Arc::ptr_eq(&newest, &self.settings) {
            self.settings = Arc::clone(&newest);
            self.smoother.set_options(smooth_options(&self.settings));
            reporter.reconfigure(self.settings.report.clone());
        }
    }
}

fn smooth_options(settings: &Settings) -> SmoothOptions {
    let expression = &settings.expression;
    SmoothOptions {
        half_life: expression.half_life,
        hysteresis: expression.hysteresis,
        hold: expression.hold,
        min_quality: expression.min_quality,
    }
}

impl Expression {
    pub(super) fn new(
        context: Arc<Context>,
        batches: Receiver<Pooled<Batch>>,
        reporter: Reporter,
        offer: Offer,
    ) -> Self {
        Self { context, batches, reporter, offer, events: Vec::new() }
    }

    /// Runs until `faces` has ended.
    pub(super) fn run(&mut self, heartbeat: &Heartbeat) -> End {
        let mut work = match Work::new(&self.context) {
            Ok(work) => work,
            Err(reason) => return End::Fatal(reason),
        };
        loop {
            heartbeat.beat();
            work.follow_settings(&self.context, &mut self.reporter);
            match self.batches.recv_timeout(MAX_IDLE) {
                Ok(batch) => self.one_batch(&mut work, batch),
                Err(RecvTimeoutError::Timeout) => {
                    self.reporter.tick(CaptureTime::now(), &mut self.events);
                    self.offer_all();
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.reporter.finish(CaptureTime::now(), &mut self.events);
        self.offer_all();
        End::Finished
    }

    fn one_batch(&mut self, work: &mut Work, mut batch: Pooled<Batch>) {
        let telemetry = Arc::clone(&self.context.telemetry);
        telemetry.time(Stage::Expression, || work.observe(&batch, &telemetry));
        let observation = &work.observation;
        telemetry.faces_in_view.store(observation.faces.len() as u64, Ordering::Relaxed);
        telemetry.time(Stage::Report, || {
            self.reporter.observe(observation, &mut self.events);
            self.offer_all();
        });
        if let Some(picture) = batch.picture.take() {
            Telemetry::count(&telemetry.frames_read);
            telemetry.record(Stage::Total, observation.time.monotonic.elapsed());
            self.context.shutter.pass(&picture);
            if let Some(hub) = &self.context.hub {
                hub.show(picture, observation);
            }
        }
    }

    fn offer_all(&mut self) {
        self.events.drain(..).for_each(&self.offer);
    }
}
