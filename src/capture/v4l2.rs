//! V4L2 cameras: what they offer, which of it is taken, and the frames they give.
//!
//! Built on the crate `v4l`, whose traps are kept in here: its `next` is called only when `poll` has said that a frame
//! is there, so a time-out breaks nothing; a stream whose call failed is never used again; its panics (a name that is
//! not UTF-8, an unknown colour space, a failing STREAMOFF in `drop`) are caught at this border.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use v4l::buffer::Type;
use v4l::capability::Flags as Capability;
use v4l::frameinterval::FrameIntervalEnum;
use v4l::framesize::FrameSizeEnum;
use v4l::io::traits::{CaptureStream, Stream as _};
use v4l::prelude::{Device, MmapStream};
use v4l::video::Capture;
use v4l::video::capture::Parameters;
use v4l::{Format, FourCC, Fraction};

use super::clip::natural_order;
use super::{CaptureError, Source, Timing};
use crate::frame::{CaptureTime, Frame, PixelFormat, row_bytes};
use crate::pool::Pool;

/// The kernel's number of all video devices (`Documentation/admin-guide/devices.txt`).
const VIDEO_MAJOR: u32 = 81;
/// One is with us, one is being filled, two absorb our hiccups.
const BUFFERS: u32 = 4;
/// A driver's timestamp that is older is not believed.
const OLDEST_FRAME: Duration = Duration::from_secs(1);
/// A rate counts as reached from this share on: 29.97 is as good as 30.
const RATE_REACHED: f64 = 0.95;

/// What is asked of a camera.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// `None`: the cheapest to convert that reaches size and rate.
    pub format: Option<PixelFormat>,
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
    /// Frames per second.
    pub fps: u32,
}

/// What a camera is and offers.
#[derive(Clone, Debug, PartialEq)]
pub struct CameraInfo {
    /// Device node.
    pub device: PathBuf,
    /// The camera's name.
    pub card: String,
    /// Its kernel driver.
    pub driver: String,
    /// Where it is plugged in.
    pub bus: String,
    /// Its layouts, in the driver's order.
    pub formats: Vec<FormatInfo>,
}

/// One layout that a camera offers.
#[derive(Clone, Debug, PartialEq)]
pub struct FormatInfo {
    /// Four-character code.
    pub fourcc: String,
    /// The driver's words.
    pub description: String,
    /// `None`: visaged cannot read it, and `sizes` is then empty.
    pub format: Option<PixelFormat>,
    /// Its sizes.
    pub sizes: Vec<SizeInfo>,
}

/// Sizes that come with the same rates.
#[derive(Clone, Debug, PartialEq)]
pub struct SizeInfo {
    /// Which sizes.
    pub size: Size,
    /// Rates at that size (at the largest, for a range); empty where the driver does not say.
    pub rates: Vec<Rate>,
}

/// One size, or all between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// Exactly this, in pixels.
    Exactly(u32, u32),
    /// From `min` to `max` in steps, in pixels, `(width, height)`.
    Between {
        /// Smallest.
        min: (u32, u32),
        /// Largest.
        max: (u32, u32),
        /// Steps, at least 1.
        step: (u32, u32),
    },
}

/// One rate, or all between two, as `numerator / denominator` seconds a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rate {
    /// Exactly this.
    Exactly(Interval),
    /// Any between.
    Between {
        /// Shortest interval: the highest rate.
        fastest: Interval,
        /// Longest interval.
        slowest: Interval,
    },
}

/// Seconds from frame to frame, as a fraction; both parts are above zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    numerator: u32,
    denominator: u32,
}

impl Interval {
    /// `None` where a part is zero, as broken drivers give it.
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        (numerator > 0 && denominator > 0).then_some(Self { numerator, denominator })
    }

    /// Frames per second.
    pub fn fps(self) -> f64 {
        f64::from(self.denominator) / f64::from(self.numerator)
    }
}

/// What is asked of the driver.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Layout.
    pub format: PixelFormat,
    /// Width in pixels.
    pub width_px: u32,
    /// Height in pixels.
    pub height_px: u32,
    /// `None` where the driver says nothing of rates.
    pub interval: Option<Interval>,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, width_px, height_px, interval } = self;
        write!(f, "{} {width_px}x{height_px}", name_of(*format))?;
        match interval {
            Some(interval) => write!(f, " at {} fps", (interval.fps() * 100.0).round() / 100.0),
            None => write!(f, " at a rate that the driver does not tell"),
        }
    }
}

const LAYOUTS: [(PixelFormat, &[u8; 4]); 7] = [
    (PixelFormat::Yuyv, b"YUYV"),
    (PixelFormat::Uyvy, b"UYVY"),
    (PixelFormat::Nv12, b"NV12"),
    (PixelFormat::Grey, b"GREY"),
    (PixelFormat::Rgb3, b"RGB3"),
    (PixelFormat::Bgr3, b"BGR3"),
    (PixelFormat::Mjpg, b"MJPG"),
];

/// The four-character code of a layout.
pub fn name_of(format: PixelFormat) -> &'static str {
    let (_, name) = LAYOUTS.iter().find(|(f, _)| *f == format).expect("all layouts are in the table");
    std::str::from_utf8(*name).expect("ASCII")
}

/// The layout of a four-character code. `JPEG` is what some drivers call MJPG.
pub fn format_named(fourcc: &[u8; 4]) -> Option<PixelFormat> {
    let fourcc = if fourcc == b"JPEG" { b"MJPG" } else { fourcc };
    LAYOUTS.iter().find(|(_, name)| *name == fourcc).map(|(f, _)| *f)
}

/// Cost of conversion, and GREY behind all colours: the mirror is worth more than the cycles it saves.
fn cost(format: PixelFormat) -> u32 {
    match format {
        PixelFormat::Rgb3 => 0,
        PixelFormat::Bgr3 => 1,
        PixelFormat::Nv12 => 2,
        PixelFormat::Yuyv => 3,
        PixelFormat::Uyvy => 4,
        PixelFormat::Grey => 5,
        PixelFormat::Mjpg => 6,
    }
}

impl CameraInfo {
    /// What is taken of what is offered: the size nearest to the wish, then a layout that reaches the rate there (or
    /// comes nearest to it), then the one that is cheapest to convert; so MJPG only where no other layout reaches the
    /// rate. `None` where no layout that can be read (or none of the layout wished for) is offered.
    pub fn choose(&self, wish: &Wish) -> Option<Choice> {
        let readable = self.formats.iter().filter_map(|offer| Some((offer.format?, &offer.sizes)));
        let wished = readable.filter(|(format, _)| wish.format.is_none_or(|wanted| wanted == *format));
        let choices = wished.flat_map(|(format, sizes)| sizes.iter().map(move |size| size.nearest(format, wish)));
        choices.min_by(|a, b| rank(a, wish).partial_cmp(&rank(b, wish)).unwrap_or(std::cmp::Ordering::Equal))
    }

    fn offered(&self) -> String {
        let names: Vec<_> = self.formats.iter().map(|offer| offer.fourcc.as_str()).collect();
        if names.is_empty() { "nothing".into() } else { names.join(" ") }
    }
}

/// Less is better.
fn rank(choice: &Choice, wish: &Wish) -> (f64, f64, u32) {
    // Differences of the sides as ratios, so that half and double are equally far.
    let apart = |a: u32, b: u32| (f64::from(a.max(1)) / f64::from(b.max(1))).ln().abs();
    let distance = apart(choice.width_px, wish.width_px) + apart(choice.height_px, wish.height_px);
    let missing = choice.interval.map_or(0.0, |interval| {
        let share = interval.fps() / f64::from(wish.fps.max(1));
        if share >= RATE_REACHED { 0.0 } else { 1.0 - share }
    });
    (distance, missing, cost(choice.format))
}

impl SizeInfo {
    fn nearest(&self, format: PixelFormat, wish: &Wish) -> Choice {
        let (width_px, height_px) = self.size.nearest(wish.width_px, wish.height_px);
        let wanted = f64::from(wish.fps.max(1));
        let intervals = self.rates.iter().filter_map(|rate| rate.nearest(wish.fps));
        // The slowest that is fast enough; else the fastest.
        let interval = intervals.min_by(|a, b| {
            let key = |i: &Interval| if i.fps() >= wanted * RATE_REACHED { (0, i.fps()) } else { (1, -i.fps()) };
            key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal)
        });
        Choice { format, width_px, height_px, interval }
    }
}

impl Size {
    fn nearest(self, width_px: u32, height_px: u32) -> (u32, u32) {
        match self {
            Self::Exactly(width, height) => (width, height),
            Self::Between { min, max, step } => {
                let snap = |wish: u32, min: u32, max: u32, step: u32| {
                    let inside = wish.clamp(min, max.max(min));
                    min + (inside - min) / step.max(1) * step.max(1)
                };
                (snap(width_px, min.0, max.0, step.0), snap(height_px, min.1, max.1, step.1))
            }
        }
    }
}

impl Rate {
    fn nearest(self, fps: u32) -> Option<Interval> {
        match self {
            Self::Exactly(interval) => Some(interval),
            Self::Between { fastest, slowest } => {
                let wanted = Interval::new(1, fps.max(1))?;
                Some(if wanted.fps() > fastest.fps() {
                    fastest
                } else if wanted.fps() < slowest.fps() {
                    slowest
                } else {
                    wanted
                })
            }
        }
    }
}

/// Runs a call into `v4l`, which panics on names and codes that it does not know; a panic becomes an error.
fn contained<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call))
        .unwrap_or_else(|_| Err(io::Error::other("the driver's answer cannot be understood")))
}

/// An open device node that is a camera.
struct Node {
    path: PathBuf,
    device: Device,
    card: String,
    driver: String,
    bus: String,
}

impl Node {
    fn open(path: &Path) -> Result<Self, CaptureError> {
        let device = path.to_path_buf();
        let not = |found: &str| CaptureError::NotACamera { device: device.clone(), found: found.into() };
        let metadata = fs::metadata(path).map_err(|e| open_error(path, e))?;
        let kind = metadata.file_type();
        // Told apart before opening: opening the wrong device can do things, and opening a FIFO waits.
        if !kind.is_char_device() {
            return Err(not(if kind.is_dir() { "a folder" } else { "a file of another kind" }));
        }
        if libc::major(metadata.rdev()) != VIDEO_MAJOR {
            return Err(not("a device of another kind"));
        }
        let opened = contained(|| Device::with_path(path)).map_err(|e| open_error(path, e))?;
        let capability = query_capability(&opened).map_err(|e| driver_error(path, "VIDIOC_QUERYCAP", e))?;
        let flags = Capability::from_bits_truncate(capability.device_caps);
        if !flags.contains(Capability::VIDEO_CAPTURE) {
            return Err(not(if flags.contains(Capability::VIDEO_CAPTURE_MPLANE) {
                "one with several planes a frame, which is not supported"
            } else {
                "a video device that does not capture (many cameras have a second node for metadata: try the other)"
            }));
        }
        if !flags.contains(Capability::STREAMING) {
            return Err(not("a capture device that cannot stream"));
        }
        Ok(Self {
            path: device.clone(),
            device: opened,
            card: text(&capability.card),
            driver: text(&capability.driver),
            bus: text(&capability.bus_info),
        })
    }

    fn info(&self) -> Result<CameraInfo, CaptureError> {
        let formats = contained(|| self.device.enum_formats())
            .map_err(|e| driver_error(&self.path, "VIDIOC_ENUM_FMT", e))?
            .into_iter()
            .map(|offer| {
                let format = format_named(&offer.fourcc.repr);
                FormatInfo {
                    fourcc: offer.fourcc.repr.escape_ascii().to_string(),
                    description: offer.description,
                    format,
                    sizes: format.map(|_| self.sizes(offer.fourcc)).unwrap_or_default(),
                }
            })
            .collect();
        Ok(CameraInfo {
            device: self.path.clone(),
            card: self.card.clone(),
            driver: self.driver.clone(),
            bus: self.bus.clone(),
            formats,
        })
    }

    /// A driver that does not enumerate sizes (EINVAL) may still stream: then it is asked for the wish as it stands.
    fn sizes(&self, fourcc: FourCC) -> Vec<SizeInfo> {
        let sizes = contained(|| self.device.enum_framesizes(fourcc)).unwrap_or_default();
        if sizes.is_empty() {
            let size = Size::Between { min: (1, 1), max: (u32::from(u16::MAX), u32::from(u16::MAX)), step: (1, 1) };
            return vec![SizeInfo { size, rates: Vec::new() }];
        }
        let sizes = sizes.into_iter().map(|size| match size.size {
            FrameSizeEnum::Discrete(size) => Size::Exactly(size.width, size.height),
            FrameSizeEnum::Stepwise(range) => Size::Between {
                min: (range.min_width, range.min_height),
                max: (range.max_width, range.max_height),
                step: (range.step_width.max(1), range.step_height.max(1)),
            },
        });
        sizes.map(|size| SizeInfo { size, rates: self.rates(fourcc, size) }).collect()
    }

    fn rates(&self, fourcc: FourCC, size: Size) -> Vec<Rate> {
        let (Size::Exactly(width, height) | Size::Between { max: (width, height), .. }) = size;
        let intervals = contained(|| self.device.enum_frameintervals(fourcc, width, height)).unwrap_or_default();
        let rates = intervals.into_iter().filter_map(|interval| match interval.interval {
            FrameIntervalEnum::Discrete(at) => Some(Rate::Exactly(Interval::new(at.numerator, at.denominator)?)),
            FrameIntervalEnum::Stepwise(range) => Some(Rate::Between {
                fastest: Interval::new(range.min.numerator, range.min.denominator)?,
                slowest: Interval::new(range.max.numerator, range.max.denominator)?,
            }),
        });
        rates.collect()
    }
}

fn open_error(path: &Path, source: io::Error) -> CaptureError {
    let device = path.to_path_buf();
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => CaptureError::NoDevice { device },
        Some(libc::EACCES | libc::EPERM) => CaptureError::Permission { device },
        _ => driver_error(path, "open", source),
    }
}

fn driver_error(path: &Path, call: &'static str, source: io::Error) -> CaptureError {
    let device = path.to_path_buf();
    match source.raw_os_error() {
        Some(libc::EBUSY) => CaptureError::Busy { device },
        Some(libc::ENOTTY) => {
            CaptureError::NotACamera { device, found: "a device that does not speak V4L2 capture".into() }
        }
        _ => CaptureError::Driver { device, call, source },
    }
}

/// As `Device::query_caps`, which panics on a camera whose name is not UTF-8.
fn query_capability(device: &Device) -> io::Result<v4l::v4l_sys::v4l2_capability> {
    // SAFETY: the structure is plain integers and byte arrays, for which zero is a value.
    let mut capability: v4l::v4l_sys::v4l2_capability = unsafe { std::mem::zeroed() };
    let place = (&raw mut capability).cast();
    // SAFETY: VIDIOC_QUERYCAP writes one `v4l2_capability`, which `place` points to and which outlives the call.
    unsafe { v4l::v4l2::ioctl(device.handle().fd(), v4l::v4l2::vidioc::VIDIOC_QUERYCAP, place)? };
    Ok(capability)
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).trim().to_owned()
}

/// Says what the camera at `device` is and offers.
///
/// # Errors
/// [`CaptureError`] where it is not a camera or cannot be opened.
pub fn inspect(device: &Path) -> Result<CameraInfo, CaptureError> {
    Node::open(device)?.info()
}

/// All cameras below `/dev`, each with what it offers or why it cannot be asked; nodes that are no cameras are left out.
pub fn list() -> Vec<Result<CameraInfo, CaptureError>> {
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten().map(|entry| entry.path());
    let mut nodes: Vec<PathBuf> = entries.filter(|path| is_video_node(path)).collect();
    nodes.sort_by(|a, b| natural_order(&a.to_string_lossy(), &b.to_string_lossy()));
    let cameras = nodes.iter().map(|node| inspect(node));
    let gone = |camera: &Result<_, CaptureError>| {
        matches!(camera, Err(CaptureError::NotACamera { .. } | CaptureError::NoDevice { .. }))
    };
    cameras.filter(|camera| !gone(camera)).collect()
}

fn is_video_node(path: &Path) -> bool {
    let number = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("video"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

/// What the driver really gave.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Agreed {
    choice: Choice,
    stride_bytes: u32,
}

/// A camera that streams.
pub struct Camera {
    // Declared before the node: the stream must go first.
    stream: Stream,
    node: Node,
    agreed: Agreed,
    seq: u64,
}

impl fmt::Debug for Camera {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Camera").field("device", &self.node.path).field("agreed", &self.agreed).finish_non_exhaustive()
    }
}

impl Camera {
    /// Opens the camera, agrees with its driver on what is nearest to `wish`, and starts it.
    ///
    /// # Errors
    /// [`CaptureError`], with what to do about it.
    pub fn open(device: &Path, wish: &Wish) -> Result<Self, CaptureError> {
        let node = Node::open(device)?;
        let info = node.info()?;
        let problem = || match wish.format {
            Some(format) => format!("it does not offer {}", name_of(format)),
            None => "it offers no layout that can be read".to_owned(),
        };
        let refused = |problem| CaptureError::Format { device: device.into(), problem, offered: info.offered() };
        let choice = info.choose(wish).ok_or_else(|| refused(problem()))?;
        let agreed = agree(&node, &choice)?;
        let agreed = agreed.check(&choice, wish).map_err(refused)?;
        let stream = Stream::start(&node)?;
        Ok(Self { stream, node, agreed, seq: 0 })
    }

    /// What the driver really gave.
    pub fn agreed(&self) -> Choice {
        self.agreed.choice
    }
}

/// What the driver answered, before it is believed.
struct Answer {
    fourcc: FourCC,
    width_px: u32,
    height_px: u32,
    stride_bytes: u32,
    half_pictures: bool,
    interval: Option<Interval>,
}

fn agree(node: &Node, choice: &Choice) -> Result<Answer, CaptureError> {
    let fourcc = FourCC::new(name_of(choice.format).as_bytes().try_into().expect("four characters"));
    // A fresh Format: one that was read back would keep its old stride and size.
    let asked = Format::new(choice.width_px, choice.height_px, fourcc);
    let given =
        contained(|| node.device.set_format(&asked)).map_err(|e| driver_error(&node.path, "VIDIOC_S_FMT", e))?;
    // Drivers without a settable rate refuse; the rate is theirs then.
    if let Some(Interval { numerator, denominator }) = choice.interval {
        let _ = contained(|| node.device.set_params(&Parameters::new(Fraction::new(numerator, denominator))));
    }
    let rate = contained(|| node.device.params()).ok();
    use v4l::format::FieldOrder::{Alternate, Bottom, Top};
    Ok(Answer {
        fourcc: given.fourcc,
        width_px: given.width,
        height_px: given.height,
        stride_bytes: given.stride,
        half_pictures: matches!(given.field_order, Alternate | Bottom | Top),
        interval: rate.and_then(|rate| Interval::new(rate.interval.numerator, rate.interval.denominator)),
    })
}

impl Answer {
    /// Compares with what was asked. A near size or rate is taken as it is, another layout only where none was wished for.
    fn check(&self, asked: &Choice, wish: &Wish) -> Result<Agreed, String> {
        let Self { width_px, height_px, stride_bytes, interval, .. } = *self;
        let given = self.fourcc.repr.escape_ascii();
        let Some(format) = format_named(&self.fourcc.repr) else {
            return Err(format!("asked for {}, the driver gave {given}, which cannot be read", name_of(asked.format)));
        };
        if wish.format.is_some_and(|wished| wished != format) {
            return Err(format!("asked for {}, the driver gave {given}", name_of(asked.format)));
        }
        if width_px == 0 || height_px == 0 {
            return Err(format!("the driver gave a size of {width_px}x{height_px}"));
        }
        if self.half_pictures {
            return Err("the driver gives half pictures (single interlaced fields)".into());
        }
        let row = row_bytes(format, width_px.into());
        let stride_bytes = match stride_bytes {
            _ if format == PixelFormat::Mjpg => 0,
            // Some drivers leave it out where rows are packed.
            0 => u32::try_from(row).map_err(|_| format!("the driver gave a width of {width_px}"))?,
            given if u64::from(given) < row => {
                return Err(format!("the driver gave rows of {given} bytes for {width_px} pixels"));
            }
            given => given,
        };
        Ok(Agreed { choice: Choice { format, width_px, height_px, interval }, stride_bytes })
    }
}

/// The crate's stream, whose `drop` panics where STREAMOFF or the release of its buffers fails.
struct Stream(Option<MmapStream<'static>>);

impl Stream {
    /// Queues all buffers but the first, which the first `next` queues, and starts: so `poll` can be asked before
    /// every `next`, the first included.
    fn start(node: &Node) -> Result<Self, CaptureError> {
        let made = contained(|| MmapStream::with_buffers(&node.device, Type::VideoCapture, BUFFERS));
        let mut stream = Self(Some(made.map_err(|e| driver_error(&node.path, "VIDIOC_REQBUFS", e))?));
        let Some(inner) = &mut stream.0 else { return Err(lost(&node.path)) };
        // Never waited for: `poll` has said that a frame is there.
        inner.set_timeout(Duration::from_secs(1));
        let count = buffer_count(&node.device);
        for index in 1..count.max(2) {
            let queued = contained(|| CaptureStream::queue(inner, index as usize));
            queued.map_err(|e| driver_error(&node.path, "VIDIOC_QBUF", e))?;
        }
        contained(|| inner.start()).map_err(|e| driver_error(&node.path, "VIDIOC_STREAMON", e))?;
        Ok(stream)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let stream = self.0.take();
        if catch_unwind(AssertUnwindSafe(|| drop(stream))).is_err() {
            tracing::warn!("the camera's driver would not stop streaming");
        }
    }
}

/// How many buffers the driver made of those asked for.
fn buffer_count(device: &Device) -> u32 {
    let exists = |index: u32| {
        // SAFETY: the structure is plain integers and unions of such, for which zero is a value.
        let mut buffer: v4l::v4l_sys::v4l2_buffer = unsafe { std::mem::zeroed() };
        buffer.index = index;
        buffer.type_ = Type::VideoCapture as u32;
        buffer.memory = v4l::memory::Memory::Mmap as u32;
        let place = (&raw mut buffer).cast();
        // SAFETY: VIDIOC_QUERYBUF reads and writes one `v4l2_buffer`, which `place` points to and which outlives the call.
        unsafe { v4l::v4l2::ioctl(device.handle().fd(), v4l::v4l2::vidioc::VIDIOC_QUERYBUF, place) }.is_ok()
    };
    (0..32).find(|index| !exists(*index)).unwrap_or(32)
}

fn lost(path: &Path) -> CaptureError {
    CaptureError::Driver { device: path.into(), call: "VIDIOC_DQBUF", source: io::ErrorKind::NotConnected.into() }
}

impl Source for Camera {
    fn describe(&self) -> String {
        let Node { path, card, driver, .. } = &self.node;
        format!("{}: {card} ({driver}), {}", path.display(), self.agreed.choice)
    }

    fn timing(&self) -> Timing {
        Timing::Live
    }

    fn next_frame(&mut self, pool: &Pool<Vec<u8>>, timeout: Duration) -> Result<Frame, CaptureError> {
        let Self { stream, node, agreed, seq } = self;
        let Some(inner) = &mut stream.0 else { return Err(lost(&node.path)) };
        if !wait_readable(&node.device, timeout).map_err(|e| driver_error(&node.path, "poll", e))? {
            return Err(CaptureError::TimedOut(timeout));
        }
        let next = contained(|| CaptureStream::next(inner));
        let (buffer, meta) = match next {
            Ok(next) => next,
            Err(e) => {
                // Its buffers are no longer where it thinks they are: no further call into it.
                drop(Stream(stream.0.take()));
                return Err(driver_error(&node.path, "VIDIOC_DQBUF", e));
            }
        };
        if meta.flags.contains(v4l::buffer::Flags::ERROR) {
            return Err(CaptureError::BadFrame("the driver marked it as damaged".into()));
        }
        let used = buffer.get(..meta.bytesused as usize).filter(|used| !used.is_empty());
        let Some(used) = used else {
            return Err(CaptureError::BadFrame(format!("{} bytes in a buffer of {}", meta.bytesused, buffer.len())));
        };
        let mut data = pool.take();
        data.clear();
        data.extend_from_slice(used);
        let stamp = meta.flags.contains(v4l::buffer::Flags::TIMESTAMP_MONOTONIC).then_some(&meta.timestamp);
        let time = capture_time(stamp.and_then(duration_of), monotonic_now(), CaptureTime::now());
        let number = *seq;
        *seq += 1;
        Ok(Frame {
            data,
            format: agreed.choice.format,
            width_px: agreed.choice.width_px,
            height_px: agreed.choice.height_px,
            stride_bytes: agreed.stride_bytes,
            seq: number,
            time,
        })
    }
}

/// Waits until a frame or an error is there; signals do not cut it short.
fn wait_readable(device: &Device, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that it does not spin through the last millisecond.
        let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
        match contained(|| device.handle().poll(libc::POLLIN, millis)) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            polled => return Ok(polled? > 0),
        }
    }
}

/// The driver's clock; `Instant` keeps its own to itself.
fn monotonic_now() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a `timespec` that outlives the call, which writes nothing else.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) } != 0;
    if failed { Duration::ZERO } else { Duration::new(now.tv_sec as u64, now.tv_nsec as u32) }
}

fn duration_of(stamp: &v4l::timestamp::Timestamp) -> Option<Duration> {
    let micros = u32::try_from(stamp.usec).ok().filter(|micros| *micros < 1_000_000)?;
    Some(Duration::new(u64::try_from(stamp.sec).ok()?, micros * 1000))
}

/// When a frame was captured, from the driver's stamp where that can be: a stamp from the future, or older than
/// [`OLDEST_FRAME`], is not believed.
fn capture_time(stamp: Option<Duration>, monotonic: Duration, now: CaptureTime) -> CaptureTime {
    let age = stamp.and_then(|stamp| monotonic.checked_sub(stamp)).filter(|age| *age <= OLDEST_FRAME);
    let Some(age) = age else { return now };
    match (now.monotonic.checked_sub(age), now.wall.checked_sub(age)) {
        (Some(monotonic), Ok(wall)) => CaptureTime { monotonic, wall },
        _ => now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(width: u32, height: u32, rates: &[u32]) -> SizeInfo {
        let rates = rates.iter().map(|fps| Rate::Exactly(Interval::new(1, *fps).unwrap())).collect();
        SizeInfo { size: Size::Exactly(width, height), rates }
    }

    fn offer(fourcc: &[u8; 4], sizes: Vec<SizeInfo>) -> FormatInfo {
        let name = fourcc.escape_ascii().to_string();
        FormatInfo { fourcc: name.clone(), description: name, format: format_named(fourcc), sizes }
    }

    fn camera(formats: Vec<FormatInfo>) -> CameraInfo {
        CameraInfo { device: "/dev/video0".into(), card: "c".into(), driver: "d".into(), bus: "b".into(), formats }
    }

    fn wish(width_px: u32, height_px: u32, fps: u32) -> Wish {
        Wish { format: None, width_px, height_px, fps }
    }

    fn chosen(camera: &CameraInfo, wish: &Wish) -> String {
        camera.choose(wish).map_or("nothing".into(), |choice| choice.to_string())
    }

    #[test]
    fn mjpg_is_taken_only_where_raw_layouts_do_not_reach_the_rate() {
        let webcam = camera(vec![
            offer(b"MJPG", vec![size(1280, 720, &[30, 15]), size(640, 480, &[30])]),
            offer(b"YUYV", vec![size(1280, 720, &[10, 5]), size(640, 480, &[30, 15])]),
        ]);
        assert_eq!(chosen(&webcam, &wish(640, 480, 30)), "YUYV 640x480 at 30 fps");
        assert_eq!(chosen(&webcam, &wish(1280, 720, 30)), "MJPG 1280x720 at 30 fps");
        assert_eq!(chosen(&webcam, &wish(1280, 720, 5)), "YUYV 1280x720 at 5 fps");
        assert_eq!(chosen(&webcam, &wish(1280, 720, 12)), "MJPG 1280x720 at 15 fps");
        assert_eq!(chosen(&webcam, &wish(1920, 1080, 60)), "MJPG 1280x720 at 30 fps");
    }

    #[test]
    fn the_cheapest_colour_is_taken_among_layouts_that_reach_the_rate() {
        let all = [b"GREY", b"YUYV", b"UYVY", b"NV12", b"BGR3", b"H264"];
        let sensor = camera(all.map(|fourcc| offer(fourcc, vec![size(640, 480, &[30])])).into());
        assert_eq!(chosen(&sensor, &wish(640, 480, 30)), "BGR3 640x480 at 30 fps");
        let infrared = camera(vec![offer(b"GREY", vec![size(640, 480, &[30])]), offer(b"Y16 ", vec![])]);
        assert_eq!(chosen(&infrared, &wish(640, 480, 30)), "GREY 640x480 at 30 fps");
    }

    #[test]
    fn a_layout_wished_for_is_the_only_one_taken() {
        let webcam =
            camera(vec![offer(b"MJPG", vec![size(640, 480, &[30])]), offer(b"YUYV", vec![size(640, 480, &[30])])]);
        let only = |format| Wish { format: Some(format), ..wish(640, 480, 30) };
        assert_eq!(chosen(&webcam, &only(PixelFormat::Mjpg)), "MJPG 640x480 at 30 fps");
        assert_eq!(chosen(&webcam, &only(PixelFormat::Nv12)), "nothing");
        assert_eq!(chosen(&camera(vec![offer(b"H264", vec![])]), &wish(640, 480, 30)), "nothing");
    }

    #[test]
    fn ranges_of_sizes_and_rates_are_snapped_to_their_steps() {
        let size = Size::Between { min: (32, 16), max: (1920, 1080), step: (16, 2) };
        let rates =
            vec![Rate::Between { fastest: Interval::new(1, 25).unwrap(), slowest: Interval::new(1, 5).unwrap() }];
        let sensor = camera(vec![offer(b"NV12", vec![SizeInfo { size, rates }])]);
        assert_eq!(chosen(&sensor, &wish(650, 481, 30)), "NV12 640x480 at 25 fps");
        assert_eq!(chosen(&sensor, &wish(1, 1, 1)), "NV12 32x16 at 5 fps");
        assert_eq!(chosen(&sensor, &wish(4000, 4000, 15)), "NV12 1920x1080 at 15 fps");
    }

    #[test]
    fn a_driver_that_says_nothing_of_rates_is_taken_at_its_size() {
        let quiet = camera(vec![offer(b"YUYV", vec![size(320, 240, &[])])]);
        assert_eq!(chosen(&quiet, &wish(640, 480, 30)), "YUYV 320x240 at a rate that the driver does not tell");
    }

    fn answer(fourcc: &[u8; 4], width_px: u32, height_px: u32, stride_bytes: u32) -> Answer {
        let fourcc = FourCC::new(fourcc);
        Answer { fourcc, width_px, height_px, stride_bytes, half_pictures: false, interval: Interval::new(1, 25) }
    }

    #[test]
    fn what_the_driver_gave_is_checked_against_what_was_asked() {
        let asked = Choice { format: PixelFormat::Mjpg, width_px: 640, height_px: 480, interval: None };
        let any = wish(640, 480, 30);
        let mjpg = Wish { format: Some(PixelFormat::Mjpg), ..any };
        let taken = answer(b"YUYV", 640, 480, 1280).check(&asked, &any).unwrap();
        assert_eq!((taken.choice.format, taken.stride_bytes), (PixelFormat::Yuyv, 1280));
        assert_eq!(answer(b"NV12", 640, 360, 0).check(&asked, &any).unwrap().stride_bytes, 640);
        assert_eq!(
            answer(b"YUYV", 640, 480, 1280).check(&asked, &mjpg).unwrap_err(),
            "asked for MJPG, the driver gave YUYV"
        );
        answer(b"H264", 640, 480, 0).check(&asked, &any).unwrap_err();
        answer(b"YUYV", 0, 480, 1280).check(&asked, &any).unwrap_err();
        answer(b"YUYV", 640, 480, 640).check(&asked, &any).unwrap_err();
        Answer { half_pictures: true, ..answer(b"YUYV", 640, 480, 0) }.check(&asked, &any).unwrap_err();
    }

    #[test]
    fn a_drivers_timestamp_is_believed_only_where_it_can_be_true() {
        let now = CaptureTime { monotonic: Instant::now(), wall: jiff::Timestamp::from_second(1_000).unwrap() };
        let clock = Duration::from_secs(500);
        let at = |stamp| capture_time(stamp, clock, now);
        let true_one = at(Some(clock - Duration::from_millis(40)));
        assert_eq!(now.monotonic - true_one.monotonic, Duration::from_millis(40));
        assert_eq!(now.wall.duration_since(true_one.wall).as_millis(), 40);
        assert_eq!(at(None), now);
        assert_eq!(at(Some(clock + Duration::from_millis(1))), now, "from the future");
        assert_eq!(at(Some(Duration::ZERO)), now, "never set");
    }

    #[test]
    fn what_is_no_camera_is_told_without_opening_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("video0");
        std::fs::write(&file, "").unwrap();
        let told = |path: &Path| inspect(path).unwrap_err().to_string();
        assert!(told(&folder.path().join("video9")).contains("no such camera"));
        assert!(told(&file).contains("not a camera but a file of another kind"));
        assert!(told(folder.path()).contains("not a camera but a folder"));
        assert!(told(Path::new("/dev/null")).contains("not a camera but a device of another kind"));
    }
}
