//! The place where the pipeline leaves what the live page shows.
//!
//! Invariants: [`Hub::show`] neither waits nor, once warm, allocates, and does nothing but count while nobody watches;
//! buffers of pictures and faces are handed on by swapping; the ring of messages is bounded in number and in bytes and uses its
//! allocations again.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::expression::{Observation, ObservedFace};
use crate::frame::RgbImage;
use crate::pool::Pooled;

/// Messages kept for a page that is opened later.
pub(super) const MESSAGES_KEPT: usize = 100;

/// Bytes of a payload that are kept; the page says when there were more.
pub(super) const PAYLOAD_KEPT_BYTES: usize = 8 * 1024;

/// How the daemon is, in the words of the `status` topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// Not yet ready.
    Starting,
    /// Everything works.
    Online,
    /// Something does not.
    Degraded {
        /// What, for a person.
        reason: String,
    },
}

/// Where the pipeline leaves pictures, observations, messages and its state for whoever watches. Clones share one place.
#[derive(Clone, Debug)]
pub struct Hub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    watchers: AtomicUsize,
    picture_watchers: AtomicUsize,
    frames: AtomicU64,
    latency_us: AtomicU64,
    latest: Mutex<Latest>,
    fresh: Notify,
    messages: Mutex<Messages>,
    message_count: watch::Sender<u64>,
    status: watch::Sender<Status>,
    notice: Mutex<Option<String>>,
}

#[derive(Debug, Default)]
struct Latest {
    fresh: bool,
    picture: Option<Pooled<RgbImage>>,
    snapshot: Snapshot,
}

/// A copy of an [`Observation`] whose allocations are used again.
#[derive(Debug, Default)]
pub(super) struct Snapshot {
    pub(super) frame: u64,
    pub(super) width_px: u32,
    pub(super) height_px: u32,
    places: Vec<ObservedFace>,
    used: usize,
}

impl Snapshot {
    pub(super) fn faces(&self) -> &[ObservedFace] {
        &self.places[..self.used]
    }

    fn copy_from(&mut self, observation: &Observation) {
        self.frame = observation.frame_seq;
        self.width_px = observation.width_px;
        self.height_px = observation.height_px;
        self.used = observation.faces.len();
        for (i, face) in observation.faces.iter().enumerate() {
            let Some(place) = self.places.get_mut(i) else {
                self.places.push(face.clone());
                continue;
            };
            let mut neutral = std::mem::take(&mut place.neutral);
            neutral.clear();
            neutral.extend_from_slice(&face.neutral);
            *place = ObservedFace { neutral, ..*face };
        }
    }
}

/// One MQTT message as it passed.
#[derive(Debug)]
pub(super) struct Message {
    /// Counted from 1 for this hub.
    pub(super) seq: u64,
    pub(super) time: jiff::Timestamp,
    pub(super) topic: String,
    /// The first [`PAYLOAD_KEPT_BYTES`] of it.
    pub(super) payload: Vec<u8>,
    pub(super) payload_bytes: usize,
}

#[derive(Debug)]
struct Messages {
    ring: VecDeque<Message>,
    last_seq: u64,
}

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Hub {
    /// An empty hub that nobody watches.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                watchers: AtomicUsize::new(0),
                picture_watchers: AtomicUsize::new(0),
                frames: AtomicU64::new(0),
                latency_us: AtomicU64::new(0),
                latest: Mutex::new(Latest::default()),
                fresh: Notify::new(),
                messages: Mutex::new(Messages { ring: VecDeque::with_capacity(MESSAGES_KEPT), last_seq: 0 }),
                message_count: watch::Sender::new(0),
                status: watch::Sender::new(Status::Starting),
                notice: Mutex::new(None),
            }),
        }
    }

    /// Whether anybody watches; while nobody does, [`Hub::show`] only counts.
    pub fn is_watched(&self) -> bool {
        self.shared.watchers.load(Ordering::Relaxed) > 0
    }

    /// Viewers of the page or the stream at this moment.
    pub fn watchers(&self) -> usize {
        self.shared.watchers.load(Ordering::Relaxed)
    }

    /// Leaves a picture and what was seen in it; replaces what nobody has taken yet. Never waits: should the viewers' side hold the
    /// place in this very moment, the picture is passed over.
    ///
    /// The picture goes back to its pool at the latest when it has been encoded: up to two are held here, so the pool's
    /// limit should be two higher than the pipeline alone needs.
    pub fn show(&self, picture: Pooled<RgbImage>, observation: &Observation) {
        let shared = &*self.shared;
        shared.frames.fetch_add(1, Ordering::Relaxed);
        let latency_us = u64::try_from(observation.time.monotonic.elapsed().as_micros()).unwrap_or(u64::MAX);
        shared.latency_us.store(latency_us, Ordering::Relaxed);
        if !self.is_watched() {
            return;
        }
        let mut latest = match shared.latest.try_lock() {
            Ok(latest) => latest,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        latest.snapshot.copy_from(observation);
        let picture_wanted = shared.picture_watchers.load(Ordering::Relaxed) > 0;
        let passed_over = std::mem::replace(&mut latest.picture, picture_wanted.then_some(picture));
        latest.fresh = true;
        drop(latest);
        drop(passed_over);
        shared.fresh.notify_one();
    }

    /// Leaves an MQTT message as it passes; the last hundred are kept, each payload up to 8 KiB.
    pub fn message(&self, topic: &str, payload: &[u8]) {
        let kept = &payload[..payload.len().min(PAYLOAD_KEPT_BYTES)];
        let seq = {
            let mut messages = lock(&self.shared.messages);
            messages.last_seq += 1;
            let seq = messages.last_seq;
            let spare = if messages.ring.len() == MESSAGES_KEPT { messages.ring.pop_front() } else { None };
            let (mut own_topic, mut own_payload) = spare.map(|old| (old.topic, old.payload)).unwrap_or_default();
            own_topic.clear();
            own_topic.push_str(topic);
            own_payload.clear();
            own_payload.extend_from_slice(kept);
            messages.ring.push_back(Message {
                seq,
                time: jiff::Timestamp::now(),
                topic: own_topic,
                payload: own_payload,
                payload_bytes: payload.len(),
            });
            seq
        };
        self.shared.message_count.send_replace(seq);
    }

    /// Says how the daemon is.
    pub fn status(&self, status: Status) {
        self.shared.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    /// A plain line for the people in view; `None` takes it away.
    pub fn notice(&self, notice: Option<String>) {
        let differs = std::mem::replace(&mut *lock(&self.shared.notice), notice.clone()) != notice;
        if differs {
            self.shared.status.send_modify(|_| {});
        }
    }

    /// Has every page told how things are, at once.
    pub(super) fn tell_all(&self) {
        self.shared.status.send_modify(|_| {});
    }

    /// The line, where there is one.
    pub(super) fn current_notice(&self) -> Option<String> {
        lock(&self.shared.notice).clone()
    }

    /// Counts a viewer until the guard is dropped.
    pub(super) fn watch(&self, picture: bool) -> Watcher {
        self.shared.watchers.fetch_add(1, Ordering::Relaxed);
        if picture {
            self.shared.picture_watchers.fetch_add(1, Ordering::Relaxed);
        }
        Watcher { hub: self.clone(), picture }
    }

    /// Waits until something fresh may be there, or a viewer has left.
    pub(super) async fn fresh(&self) {
        self.shared.fresh.notified().await;
    }

    /// Takes what is newest, `snapshot` being swapped; `None` where nothing is fresh.
    pub(super) fn take(&self, snapshot: &mut Snapshot) -> Option<Option<Pooled<RgbImage>>> {
        let mut latest = lock(&self.shared.latest);
        if !std::mem::take(&mut latest.fresh) {
            return None;
        }
        std::mem::swap(&mut latest.snapshot, snapshot);
        Some(latest.picture.take())
    }

    /// Forgets what nobody will come for any more.
    pub(super) fn forget(&self) {
        let mut latest = lock(&self.shared.latest);
        latest.fresh = false;
        latest.picture = None;
    }

    /// Hands every kept message after `cursor` to `each`, oldest first, and moves the cursor.
    pub(super) fn messages_after(&self, cursor: &mut u64, mut each: impl FnMut(&Message)) {
        let messages = lock(&self.shared.messages);
        for message in messages.ring.iter().filter(|message| message.seq > *cursor) {
            each(message);
        }
        *cursor = messages.last_seq;
    }

    pub(super) fn message_count(&self) -> watch::Receiver<u64> {
        self.shared.message_count.subscribe()
    }

    pub(super) fn status_changes(&self) -> watch::Receiver<Status> {
        self.shared.status.subscribe()
    }

    /// Frames shown since the start, watched or not.
    pub(super) fn frames(&self) -> u64 {
        self.shared.frames.load(Ordering::Relaxed)
    }

    /// From capture to [`Hub::show`], of the newest frame.
    pub(super) fn latency(&self) -> Duration {
        Duration::from_micros(self.shared.latency_us.load(Ordering::Relaxed))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts as one viewer while it lives.
#[derive(Debug)]
pub(super) struct Watcher {
    hub: Hub,
    picture: bool,
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let shared = &self.hub.shared;
        if self.picture {
            shared.picture_watchers.fetch_sub(1, Ordering::Relaxed);
        }
        shared.watchers.fetch_sub(1, Ordering::Relaxed);
        shared.fresh.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expression::{Emotion, Probabilities};
    use crate::face::{Face, TrackId};
    use crate::frame::CaptureTime;
    use crate::pool::Pool;

    fn observation(frame_seq: u64, faces: usize) -> Observation {
        let face = |n: usize| ObservedFace {
            track: TrackId(n as u64 + 1),
            face: Face { rect: Default::default(), landmarks: Default::default(), score: 1.0 },
            quality: 1.0,
            emotion: Emotion::Happiness,
            probabilities: Probabilities([0.125; 8]),
            neutrality: 0.5,
            neutral: vec![n as u8; 4],
        };
        Observation {
            frame_seq,
            time: CaptureTime::now(),
            width_px: 640,
            height_px: 480,
            faces: (0..faces).map(face).collect(),
            ended: Vec::new(),
        }
    }

    #[test]
    fn unwatched_pictures_go_straight_back_to_their_pool() {
        let (hub, pool) = (Hub::new(), Pool::<RgbImage>::new(1));
        let mut picture = pool.take();
        picture.resize(8, 8);
        let place = picture.data.as_ptr();
        hub.show(picture, &observation(0, 1));
        assert_eq!(pool.take().data.as_ptr(), place);
        assert!(hub.take(&mut Snapshot::default()).is_none());
        assert_eq!(hub.frames(), 1);
    }

    #[test]
    fn the_newest_picture_wins_and_the_older_one_goes_back_to_its_pool() {
        let (hub, pool) = (Hub::new(), Pool::<RgbImage>::new(4));
        let _watcher = hub.watch(true);
        for seq in 0..3 {
            let mut picture = pool.take();
            picture.resize(8 + seq, 8);
            hub.show(picture, &observation(u64::from(seq), seq as usize));
        }
        let mut snapshot = Snapshot::default();
        let picture = hub.take(&mut snapshot).flatten().unwrap();
        assert_eq!((picture.width_px, snapshot.frame, snapshot.faces().len()), (10, 2, 2));
        assert!(hub.take(&mut snapshot).is_none());
    }

    #[test]
    fn a_viewer_of_events_alone_costs_no_picture() {
        let (hub, pool) = (Hub::new(), Pool::<RgbImage>::new(1));
        let _watcher = hub.watch(false);
        hub.show(pool.take(), &observation(5, 1));
        let mut snapshot = Snapshot::default();
        assert!(matches!(hub.take(&mut snapshot), Some(None)));
        assert_eq!(snapshot.frame, 5);
    }

    #[test]
    fn a_held_place_makes_the_picture_be_passed_over_instead_of_waited_for() {
        let (hub, pool) = (Hub::new(), Pool::<RgbImage>::new(1));
        let _watcher = hub.watch(true);
        let held = hub.shared.latest.lock().unwrap();
        hub.show(pool.take(), &observation(0, 1));
        drop(held);
        assert!(hub.take(&mut Snapshot::default()).is_none());
    }

    #[test]
    fn a_snapshot_keeps_faces_apart_when_their_number_changes() {
        let mut snapshot = Snapshot::default();
        for faces in [3, 1, 2] {
            snapshot.copy_from(&observation(0, faces));
            let neutrals: Vec<u8> = snapshot.faces().iter().map(|face| face.neutral[0]).collect();
            assert_eq!(neutrals, (0..faces as u8).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_last_hundred_messages_are_kept_in_order_and_their_payloads_cut() {
        let hub = Hub::new();
        for n in 0..250_u32 {
            hub.message(&format!("t/{n}"), &vec![b'x'; 10_000]);
        }
        let (mut cursor, mut topics) = (0, Vec::new());
        hub.messages_after(&mut cursor, |message| {
            assert_eq!((message.payload.len(), message.payload_bytes), (PAYLOAD_KEPT_BYTES, 10_000));
            topics.push(message.topic.clone());
        });
        assert_eq!(topics, (150..250).map(|n| format!("t/{n}")).collect::<Vec<_>>());
        hub.message("t/later", b"");
        let mut later = 0;
        hub.messages_after(&mut cursor, |_| later += 1);
        assert_eq!((later, cursor), (1, 251));
    }

    #[test]
    fn watchers_are_counted_while_their_guards_live() {
        let hub = Hub::new();
        let (first, second) = (hub.watch(true), hub.watch(false));
        assert_eq!(hub.watchers(), 2);
        drop(first);
        assert!(hub.is_watched());
        drop(second);
        assert!(!hub.is_watched());
    }
}
