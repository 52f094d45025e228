//! Plays a USB camera (UVC 1.0, bulk transfers) on gadgetfs and dummy_hcd: MJPG 640x480 and YUYV 160x120, both at 30
//! and 15 fps. The numbers in the descriptors are those of the USB Device Class Definition for Video Devices 1.0.

use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Different pictures in the stream.
pub(crate) const PICTURES: usize = 4;
const EACH_SHOWN: usize = 5;
const WIDTH: u16 = 640;
const HEIGHT: u16 = 480;
const SMALL: (u16, u16) = (160, 120);
const MAX_PAYLOAD: usize = 16_384;
/// dummy_udc names its endpoints; this one is bulk, towards the host.
const ENDPOINT: &str = "/dev/gadget/ep1in-bulk";
const ENDPOINT_ADDRESS: u8 = 0x81;
/// In units of 100 ns, as UVC counts.
const INTERVALS: [u32; 2] = [333_333, 666_666];
const MJPG: u8 = 1;

/// The JPEG pictures that are sent, one after the other, each five times.
pub(crate) fn pictures() -> Vec<Vec<u8>> {
    let picture = |n: usize| {
        let pixel = |x: usize, y: usize| [(x + 60 * n) as u8, (y + 30 * n) as u8, (x * y / 99) as u8];
        let rows = 0..usize::from(HEIGHT);
        let rgb: Vec<u8> = rows.flat_map(|y| (0..usize::from(WIDTH)).flat_map(move |x| pixel(x, y))).collect();
        let mut bytes = Vec::new();
        let encoder = jpeg_encoder::Encoder::new(&mut bytes, 80);
        encoder.encode(&rgb, WIDTH, HEIGHT, jpeg_encoder::ColorType::Rgb).expect("a picture of a sane size");
        bytes
    };
    (0..PICTURES).map(picture).collect()
}

fn frame_descriptor(subtype: u8, (width, height): (u16, u16)) -> Vec<u8> {
    let bytes = u32::from(width) * u32::from(height) * 2;
    let mut d = vec![26 + 4 * INTERVALS.len() as u8, 0x24, subtype, 1, 0];
    d.extend(width.to_le_bytes());
    d.extend(height.to_le_bytes());
    d.extend((bytes * 8 * 15).to_le_bytes());
    d.extend((bytes * 8 * 30).to_le_bytes());
    d.extend(bytes.to_le_bytes());
    d.extend(INTERVALS[0].to_le_bytes());
    d.push(INTERVALS.len() as u8);
    d.extend(INTERVALS.iter().flat_map(|interval| interval.to_le_bytes()));
    d
}

fn set_length(descriptor: &mut [u8], at: usize) {
    let length = (descriptor.len() as u16).to_le_bytes();
    descriptor[at..at + 2].copy_from_slice(&length);
}

fn endpoint_descriptor(high_speed: bool) -> [u8; 7] {
    let [low, high] = (if high_speed { 512u16 } else { 64 }).to_le_bytes();
    [7, 5, ENDPOINT_ADDRESS, 2, low, high, 0]
}

fn configuration(high_speed: bool) -> Vec<u8> {
    // Header, camera terminal, output terminal.
    let mut control = vec![13, 0x24, 1, 0x00, 0x01, 0, 0];
    control.extend(48_000_000u32.to_le_bytes());
    control.extend([1, 1]);
    control.extend([18, 0x24, 2, 1, 0x01, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]);
    control.extend([9, 0x24, 3, 2, 0x01, 0x01, 0, 1, 0]);
    set_length(&mut control, 5);
    // Input header; MJPEG format, frame, colour; uncompressed format (YUY2), frame, colour.
    let mut streaming = vec![15, 0x24, 1, 2, 0, 0, ENDPOINT_ADDRESS, 0, 2, 0, 0, 0, 1, 0, 0];
    streaming.extend([11, 0x24, 6, 1, 1, 1, 1, 0, 0, 0, 0]);
    streaming.extend(frame_descriptor(7, (WIDTH, HEIGHT)));
    streaming.extend([6, 0x24, 0x0d, 1, 1, 4]);
    streaming.extend([27, 0x24, 4, 2, 1, 0x59, 0x55, 0x59, 0x32, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]);
    streaming.extend([16, 1, 0, 0, 0, 0]);
    streaming.extend(frame_descriptor(5, SMALL));
    streaming.extend([6, 0x24, 0x0d, 1, 1, 4]);
    set_length(&mut streaming, 4);
    let mut c = vec![9, 2, 0, 0, 2, 1, 0, 0xc0, 50];
    c.extend([8, 0x0b, 0, 2, 0x0e, 3, 0, 0]);
    c.extend([9, 4, 0, 0, 0, 0x0e, 1, 0, 0]);
    c.extend(control);
    c.extend([9, 4, 1, 0, 1, 0x0e, 2, 0, 0]);
    c.extend(streaming);
    c.extend(endpoint_descriptor(high_speed));
    set_length(&mut c, 2);
    c
}

/// What is being streamed: the answer to the host's probe and commit requests.
#[derive(Clone, Copy)]
struct Probe {
    format: u8,
    interval: u32,
}

impl Probe {
    fn bytes(self) -> Vec<u8> {
        let (width, height) = if self.format == MJPG { (WIDTH, HEIGHT) } else { SMALL };
        let mut p = vec![1, 0, self.format, 1];
        p.extend(self.interval.to_le_bytes());
        p.extend([0; 10]);
        p.extend((u32::from(width) * u32::from(height) * 2).to_le_bytes());
        p.extend((MAX_PAYLOAD as u32).to_le_bytes());
        p
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let interval = u32::from_le_bytes(bytes.get(4..8)?.try_into().ok()?);
        Some(Self {
            format: if bytes[2] == 2 { 2 } else { MJPG },
            interval: if interval == 0 { INTERVALS[0] } else { interval },
        })
    }
}

/// One request on the control endpoint.
struct Request {
    kind: u8,
    request: u8,
    value: u16,
    index: u16,
    length: usize,
}

/// Plays the camera until the process is killed.
pub(crate) fn play() -> io::Result<Infallible> {
    // gadgetfs acknowledges a host's data stage by itself; if the host's next request comes before we have read, the
    // transfer is lost. Real-time priority wins that race.
    set_priority(libc::SCHED_FIFO, 50)?;
    // Made before the host asks for anything: it gives a request five seconds.
    let pictures = Arc::new(pictures());
    let mut control = OpenOptions::new().read(true).write(true).open("/dev/gadget/dummy_udc")?;
    let mut descriptors = 0u32.to_le_bytes().to_vec();
    descriptors.extend(configuration(false));
    descriptors.extend(configuration(true));
    descriptors.extend([18, 1, 0, 2, 0xef, 2, 1, 64, 0x6b, 0x1d, 0x02, 0x01, 0, 1, 1, 2, 0, 1]);
    control.write_all(&descriptors)?;
    let probe = Arc::new(Mutex::new(Probe { format: MJPG, interval: INTERVALS[0] }));
    let mut start = Some(pictures);
    let mut events = [0; 12 * 5];
    loop {
        let read = control.read(&mut events)?;
        for event in events[..read].chunks_exact(12) {
            // A request follows: event type 3, GADGETFS_SETUP.
            if event[8] != 3 {
                continue;
            }
            let word = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
            let request =
                Request { kind: event[0], request: event[1], value: word(2), index: word(4), length: word(6).into() };
            answer(&mut control, &request, &probe, &mut start)?;
        }
    }
}

/// Answers one request; the first configuration takes the pictures and starts the stream.
fn answer(
    control: &mut File,
    request: &Request,
    probe: &Arc<Mutex<Probe>>,
    start: &mut Option<Arc<Vec<Vec<u8>>>>,
) -> io::Result<()> {
    let Request { kind, request, value, index, length } = *request;
    let current = || *probe.lock().unwrap_or_else(PoisonError::into_inner);
    let mut reply = |bytes: &[u8]| control.write(&bytes[..bytes.len().min(length)]).map(|_| ());
    match (kind, request) {
        // GET_DESCRIPTOR, a string.
        (0x80, 6) if value >> 8 == 3 => reply(&string_descriptor(value as u8)),
        // SET_CONFIGURATION
        (0x00, 9) => {
            if value == 1
                && let Some(pictures) = start.take()
            {
                start_streaming(Arc::clone(probe), pictures)?;
            }
            acknowledge(control)
        }
        // SET_INTERFACE, GET_INTERFACE
        (0x01, 11) => acknowledge(control),
        (0x81, 10) => reply(&[0]),
        // GET_LEN, GET_INFO, GET_RES; all other GETs tell the current state.
        (0xa1, get) if index & 0xff == 1 && matches!(value >> 8, 1 | 2) => reply(&match get {
            0x85 => vec![26, 0],
            0x86 => vec![3],
            0x84 => vec![0; 26],
            _ => current().bytes(),
        }),
        // SET_CUR of probe and commit.
        (0x21, 1) if index & 0xff == 1 => {
            let mut bytes = vec![0; length];
            control.read_exact(&mut bytes)?;
            if let Some(wanted) = Probe::parse(&bytes) {
                *probe.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
            }
            Ok(())
        }
        _ => {
            stall(control, kind);
            Ok(())
        }
    }
}

fn string_descriptor(number: u8) -> Vec<u8> {
    let text = match number {
        0 => return vec![4, 3, 9, 4],
        1 => "visaged",
        _ => "Test Camera",
    };
    let mut d = vec![2 + 2 * text.len() as u8, 3];
    d.extend(text.encode_utf16().flat_map(u16::to_le_bytes));
    d
}

/// A read of nothing ends a request without data.
fn acknowledge(control: &File) -> io::Result<()> {
    // SAFETY: a read of zero bytes writes nowhere.
    unsafe { libc::read(control.as_raw_fd(), std::ptr::null_mut(), 0) };
    Ok(())
}

/// A transfer of nothing in the wrong direction refuses a request.
fn stall(control: &File, kind: u8) {
    let fd = control.as_raw_fd();
    // SAFETY: transfers of zero bytes read and write nowhere.
    unsafe {
        if kind & 0x80 != 0 {
            libc::read(fd, std::ptr::null_mut(), 0);
        } else {
            libc::write(fd, std::ptr::null(), 0);
        }
    }
}

fn set_priority(policy: i32, priority: i32) -> io::Result<()> {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: `parameters` outlives the call, which only reads it.
    let failed = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } != 0;
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn start_streaming(probe: Arc<Mutex<Probe>>, pictures: Arc<Vec<Vec<u8>>>) -> io::Result<()> {
    let mut endpoint = OpenOptions::new().read(true).write(true).open(ENDPOINT)?;
    let mut descriptors = 1u32.to_le_bytes().to_vec();
    descriptors.extend(endpoint_descriptor(false));
    descriptors.extend(endpoint_descriptor(true));
    endpoint.write_all(&descriptors)?;
    std::thread::Builder::new().name("stream".into()).spawn(move || {
        // The stream itself must not starve the host's side.
        let _ = set_priority(libc::SCHED_OTHER, 0);
        let mut number = 0usize;
        loop {
            let start = Instant::now();
            let Probe { format, interval } = *probe.lock().unwrap_or_else(PoisonError::into_inner);
            let grey = [(16 + number % 200) as u8, 128].repeat(usize::from(SMALL.0) * usize::from(SMALL.1));
            let frame = if format == MJPG { &pictures[(number / EACH_SHOWN) % pictures.len()] } else { &grey };
            send(&mut endpoint, frame, (number % 2) as u8);
            number += 1;
            std::thread::sleep(Duration::from_nanos(u64::from(interval) * 100).saturating_sub(start.elapsed()));
        }
    })?;
    Ok(())
}

/// Sends a frame in payloads, each with the two-byte header: length, and flags with the frame's parity.
fn send(endpoint: &mut File, frame: &[u8], parity: u8) {
    let count = frame.len().div_ceil(MAX_PAYLOAD - 2);
    for (n, part) in frame.chunks(MAX_PAYLOAD - 2).enumerate() {
        let last = n + 1 == count;
        let mut payload = vec![2, 0x80 | parity | if last { 2 } else { 0 }];
        payload.extend_from_slice(part);
        // A transfer that ends on a packet's edge would go on for the host.
        if last && payload.len() % 512 == 0 && payload.len() < MAX_PAYLOAD {
            payload.push(0);
        }
        if endpoint.write_all(&payload).is_err() {
            // Nobody listens at the moment.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
