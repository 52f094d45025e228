//! An observation without an event allocates nothing once warm.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::{Duration, Instant};

use visaged::config::ReportConfig;
use visaged::expression::{Emotion, Observation, ObservedFace, Probabilities};
use visaged::face::{Face, Point, Rect, TrackId};
use visaged::frame::CaptureTime;
use visaged::report::{Boot, Reporter};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is the system allocator's; counting touches a thread's own cell, which needs no allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn face(track: u64) -> ObservedFace {
    ObservedFace {
        track: TrackId(track),
        face: Face {
            rect: Rect { x: 1.0, y: 1.0, width: 50.0, height: 50.0 },
            landmarks: [Point::default(); 5],
            score: 0.9,
        },
        quality: 1.0,
        emotion: Emotion::Neutral,
        probabilities: Probabilities([0.125; 8]),
        neutrality: 1.0,
        neutral: Vec::new(),
    }
}

#[test]
fn ten_thousand_observations_without_an_event_allocate_nothing() {
    let mut time = CaptureTime { monotonic: Instant::now(), wall: "2026-03-01T09:30:00Z".parse().unwrap() };
    let config =
        ReportConfig { sample_every: None, summary_every: Some(Duration::from_secs(3600)), ..Default::default() };
    let mut reporter = Reporter::new(config, Boot::random(), time);
    let faces = (1..=16).map(face).collect();
    let mut observation = Observation { frame_seq: 0, time, width_px: 640, height_px: 480, faces, ended: Vec::new() };
    let mut events = Vec::new();
    let mut show = |reporter: &mut Reporter, events: &mut Vec<_>, frames: u32| {
        for _ in 0..frames {
            time.monotonic += Duration::from_millis(33);
            observation.time = time;
            reporter.observe(&observation, events);
        }
    };
    show(&mut reporter, &mut events, 30);
    assert_eq!(events.len(), 16, "everybody has entered");
    let before = ALLOCATIONS.with(Cell::get);
    show(&mut reporter, &mut events, 10_000);
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    assert_eq!(events.len(), 16);
}
