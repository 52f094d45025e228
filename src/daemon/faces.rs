//! The stage `faces`: a frame becomes RGB, its faces are found, followed and brought upright.
//!
//! Invariants: waits for a frame at most [`MAX_IDLE`]; a frame that cannot be used is counted and passed over; a track
//! that was handed on is ended downstream exactly once, even when this stage panicked in between.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{SendTimeoutError, Sender};

use super::stage::{End, Heartbeat, MAX_IDLE};
use super::{Context, Settings};
use crate::face::detect::{DetectOptions, Detector, Profile};
use crate::face::track::Tracker;
use crate::face::{AlignedFace, Face, TrackId, TrackedFace, align};
use crate::frame::{CaptureTime, Converter, Frame, RgbImage};
use crate::mailbox::{Mailbox, Taken};
use crate::pool::{Pool, Pooled};
use crate::telemetry::{Stage, Telemetry};

/// Batches under way at once: one being filled, one waiting, one being read.
const BATCHES: usize = 4;
/// Pictures under way at once: those of the batches, and two that the mirror may hold.
const PICTURES: usize = BATCHES + 2;

/// The faces of one frame on their way to `expression`.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// The frame's number.
    pub(super) seq: u64,
    /// The whole picture, for the mirror; `None` where the batch only says who has left.
    pub(super) picture: Option<Pooled<RgbImage>>,
    /// Only the first `used` are of this frame, the rest keep their memory.
    slots: Vec<Slot>,
    used: usize,
    /// Tracks that ended.
    pub(super) ended: Vec<TrackId>,
    time: Option<CaptureTime>,
}

/// One face in view.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) tracked: TrackedFace,
    pub(super) aligned: AlignedFace,
}

impl Batch {
    /// The faces of this frame.
    pub(super) fn faces(&self) -> &[Slot] {
        &self.slots[..self.used]
    }

    /// When the frame was captured.
    pub(super) fn time(&self) -> CaptureTime {
        self.time.unwrap_or_else(CaptureTime::now)
    }

    fn begin(&mut self, seq: u64, time: CaptureTime, picture: Option<Pooled<RgbImage>>) {
        self.seq = seq;
        self.time = Some(time);
        self.picture = picture;
        self.used = 0;
        self.ended.clear();
    }

    /// Brings the face upright into the next slot; a face whose landmarks allow none is left out.
    fn add(&mut self, tracked: TrackedFace) {
        let Some(picture) = &self.picture else { return };
        if self.used == self.slots.len() {
            self.slots.push(Slot { tracked, aligned: AlignedFace::default() });
        }
        let slot = &mut self.slots[self.used];
        slot.tracked = tracked;
        match align::align(picture, &tracked.face.landmarks, &mut slot.aligned) {
            Ok(_) => self.used += 1,
            Err(error) => tracing::debug!(%error, track = tracked.id.0, "face passed over"),
        }
    }
}

/// The stage; what is in here outlives a panic.
#[derive(Debug)]
pub(super) struct Faces {
    context: Arc<Context>,
    frames: Arc<Mailbox<Frame>>,
    batches: Sender<Pooled<Batch>>,
    batch_pool: Pool<Batch>,
    picture_pool: Pool<RgbImage>,
    next_track: TrackId,
    in_view: Vec<TrackId>,
    taken: u64,
}

/// What is made anew after a panic.
#[derive(Debug)]
struct Work {
    settings: Arc<Settings>,
    converter: Converter,
    detector: Detector,
    tracker: Tracker,
    found: Vec<Face>,
    tracked: Vec<TrackedFace>,
}

impl Work {
    fn new(context: &Context, next_track: TrackId) -> Self {
        let settings = context.settings.load_full();
        Self {
            converter: Converter::new(),
            detector: Detector::new(&context.models.detector, detect_options(&settings)),
            tracker: Tracker::counting_from(next_track, settings.faces.leave_after),
            found: Vec::new(),
            tracked: Vec::new(),
            settings,
        }
    }

    /// Takes over settings that were changed while running.
    fn follow_settings(&mut self, context: &Context) {
        let newest = context.settings.load();
        if !Arc::ptr_eq(&newest, &self.settings) {
            self.settings = Arc::clone(&newest);
            self.detector = Detector::new(&context.models.detector, detect_options(&self.settings));
            self.tracker.set_leave_after(self.settings.faces.leave_after);
        }
    }
}

fn detect_options(settings: &Settings) -> DetectOptions {
    let faces = &settings.faces;
    DetectOptions {
        profile: Profile::Live,
        min_face_px: faces.min_face_px,
        min_score: faces.min_score,
        max_faces: faces.max_faces,
    }
}

impl Faces {
    pub(super) fn new(context: Arc<Context>, frames: Arc<Mailbox<Frame>>, batches: Sender<Pooled<Batch>>) -> Self {
        Self {
            context,
            frames,
            batches,
            batch_pool: Pool::new(BATCHES),
            picture_pool: Pool::new(PICTURES),
            next_track: TrackId(1),
            in_view: Vec::new(),
            taken: 0,
        }
    }

    /// Runs until the frames end or the daemon stops.
    pub(super) fn run(&mut self, heartbeat: &Heartbeat) -> End {
        let mut work = Work::new(&self.context, self.next_track);
        self.end_orphans();
        let mut last_frame = Instant::now();
        loop {
            heartbeat.beat();
            if self.context.supervision.stopping() {
                return End::Finished;
            }
            match self.frames.take(MAX_IDLE) {
                Taken::Value(frame) => {
                    last_frame = Instant::now();
                    work.follow_settings(&self.context);
                    self.one_frame(&mut work, &frame, last_frame);
                }
                Taken::TimedOut => self.no_frame(&mut work, last_frame.elapsed()),
                Taken::Closed => return End::Finished,
            }
        }
    }

    /// Ends the tracks that an earlier run of this stage had handed on before it panicked.
    fn end_orphans(&mut self) {
        if self.in_view.is_empty() {
            return;
        }
        let mut batch = self.batch_pool.take();
        batch.begin(0, CaptureTime::now(), None);
        batch.ended.append(&mut self.in_view);
        self.hand_on(batch);
    }

    fn one_frame(&mut self, work: &mut Work, frame: &Frame, now: Instant) {
        let telemetry = Arc::clone(&self.context.telemetry);
        telemetry.record(Stage::Wait, frame.time.monotonic.elapsed());
        self.taken += 1;
        let dropped = self.frames.dropped();
        telemetry.frames_dropped.store(dropped, Ordering::Relaxed);
        telemetry.frames_captured.store(self.taken + dropped, Ordering::Relaxed);
        let mut picture = self.picture_pool.take();
        if let Err(error) = telemetry.time(Stage::Convert, || work.converter.to_rgb(frame, &mut picture)) {
            Telemetry::count(&telemetry.frames_broken);
            tracing::debug!(%error, seq = frame.seq, "frame passed over");
            return;
        }
        if !self.context.consent.allows_analysis(now) {
            self.without_analysis(work, frame, picture);
            return;
        }
        if let Err(error) = telemetry.time(Stage::Detect, || work.detector.detect(&picture, &mut work.found)) {
            Telemetry::count(&telemetry.detector_failures);
            tracing::warn!(%error, seq = frame.seq, "frame passed over");
            return;
        }
        self.follow(work, frame.seq, frame.time, Some(picture));
    }

    /// Without consent nothing is looked for: those who were in view leave at once, and the mirror shows the picture alone.
    fn without_analysis(&mut self, work: &mut Work, frame: &Frame, picture: Pooled<RgbImage>) {
        let mut batch = self.batch_pool.take();
        batch.begin(frame.seq, frame.time, Some(picture));
        work.tracker.clear(&mut batch.ended);
        self.in_view.clear();
        self.next_track = work.tracker.next_id();
        self.hand_on(batch);
    }

    /// Without frames nobody is in view: those who were leave.
    fn no_frame(&mut self, work: &mut Work, silence: Duration) {
        if !self.in_view.is_empty() && silence > work.settings.faces.leave_after {
            work.found.clear();
            self.follow(work, 0, CaptureTime::now(), None);
        }
    }

    fn follow(&mut self, work: &mut Work, seq: u64, time: CaptureTime, picture: Option<Pooled<RgbImage>>) {
        let telemetry = Arc::clone(&self.context.telemetry);
        let mut batch = self.batch_pool.take();
        batch.begin(seq, time, picture);
        telemetry.time(Stage::Track, || {
            work.tracker.update(time, &work.found, &mut work.tracked, &mut batch.ended);
        });
        self.next_track = work.tracker.next_id();
        self.in_view.retain(|id| !batch.ended.contains(id));
        for tracked in &work.tracked {
            if !self.in_view.contains(&tracked.id) {
                self.in_view.push(tracked.id);
            }
        }
        telemetry.time(Stage::Align, || work.tracked.iter().for_each(|tracked| batch.add(*tracked)));
        self.hand_on(batch);
    }

    /// Waits until `expression` has taken the batch before; frames meanwhile replace each other in the mailbox.
    fn hand_on(&self, mut batch: Pooled<Batch>) {
        while let Err(SendTimeoutError::Timeout(back)) = self.batches.send_timeout(batch, MAX_IDLE) {
            if self.context.supervision.stopping() {
                return;
            }
            batch = back;
        }
    }
}
