//! Once warm, frames are captured and converted without a single allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use visaged::capture::Source;
use visaged::capture::clip::Clip;
use visaged::capture::pattern::Pattern;
use visaged::config::Pace;
use visaged::frame::{CaptureTime, Converter, Frame, PixelFormat, RgbImage};
use visaged::mailbox::{Mailbox, Taken};
use visaged::pool::Pool;

/// Counts what this thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `alloc`'s contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `realloc`'s contract.
        unsafe { System.realloc(place, layout, size) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

const SIZE: (u32, u32) = (641, 479);

const RAW: [PixelFormat; 6] =
    [PixelFormat::Yuyv, PixelFormat::Uyvy, PixelFormat::Nv12, PixelFormat::Grey, PixelFormat::Rgb3, PixelFormat::Bgr3];

fn frame(pool: &Pool<Vec<u8>>, format: PixelFormat, stride_bytes: u32, bytes: &[u8]) -> Frame {
    let mut data = pool.take();
    data.clear();
    data.extend_from_slice(bytes);
    let (width_px, height_px) = SIZE;
    Frame { data, format, width_px, height_px, stride_bytes, seq: 0, time: CaptureTime::now() }
}

#[test]
fn conversion_of_every_raw_layout_allocates_nothing_once_warm() {
    let (pool, mut converter, mut rgb) = (Pool::new(1), Converter::new(), RgbImage::default());
    let stride = 3 * SIZE.0 + 5;
    let bytes = vec![100; stride as usize * SIZE.1 as usize * 2];
    let mut all = |times: usize| {
        for format in (0..times).flat_map(|_| RAW) {
            converter.to_rgb(&frame(&pool, format, stride, &bytes), &mut rgb).unwrap();
        }
    };
    all(1);
    assert_eq!(allocations(|| all(20)), 0);
}

#[test]
fn conversion_of_jpeg_allocates_what_its_decoder_does_and_no_more_with_time() {
    let mut jpeg = Vec::new();
    let pixels: Vec<u8> = (0..3 * SIZE.0 * SIZE.1).map(|n| (n / 7) as u8).collect();
    let encoder = jpeg_encoder::Encoder::new(&mut jpeg, 80);
    encoder.encode(&pixels, SIZE.0 as u16, SIZE.1 as u16, jpeg_encoder::ColorType::Rgb).unwrap();
    let (pool, mut converter, mut rgb) = (Pool::new(1), Converter::new(), RgbImage::default());
    let mut once = || converter.to_rgb(&frame(&pool, PixelFormat::Mjpg, 0, &jpeg), &mut rgb).unwrap();
    once();
    let second = allocations(&mut once);
    for _ in 0..10 {
        once();
    }
    assert_eq!(allocations(&mut once), second);
    assert!(second <= 40, "{second} allocations a picture");
}

/// Takes frames as a reader of the mailbox would.
fn pass(source: &mut dyn Source, pool: &Pool<Vec<u8>>, mailbox: &Mailbox<Frame>, frames: usize) {
    for _ in 0..frames {
        mailbox.put(source.next_frame(pool, Duration::from_secs(20)).unwrap());
        assert!(matches!(mailbox.take(Duration::ZERO), Taken::Value(_)));
    }
}

#[test]
fn clips_and_pattern_allocate_nothing_once_warm() {
    let mut gif = Vec::new();
    let mut encoder = gif::Encoder::new(&mut gif, 64, 48, &[0, 0, 0, 255, 255, 255]).unwrap();
    for n in 0..3 {
        let buffer = vec![n % 2; 64 * 48];
        encoder
            .write_frame(&gif::Frame { width: 64, height: 48, buffer: buffer.into(), ..gif::Frame::default() })
            .unwrap();
    }
    drop(encoder);
    let (pool, mailbox) = (Pool::new(2), Mailbox::default());
    let mut clip = Clip::from_bytes("clip", gif.leak(), true, Pace::Fast).unwrap();
    pass(&mut clip, &pool, &mailbox, 7);
    assert_eq!(allocations(|| pass(&mut clip, &pool, &mailbox, 60)), 0, "a clip that is kept");
    let mut pattern = Pattern::new(64, 48, 1000);
    pass(&mut pattern, &pool, &mailbox, 3);
    assert_eq!(allocations(|| pass(&mut pattern, &pool, &mailbox, 60)), 0, "the pattern");
}
