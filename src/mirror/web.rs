//! The live page over HTTP: plain files, an MJPEG stream, Server-Sent Events.
//!
//! Invariants: a picture is encoded once for all viewers, at most [`FRAMES_PER_SECOND`] times a second, and not at all while nobody
//! watches; each viewer gets the newest picture when its connection has room, so a slow one delays nobody; connections are bounded
//! in number and cut when nothing can be written for a while; the async runtime lives in one thread that ends when told. What comes in is
//! a wish for the try-on alone, from this page alone, and only where there is a try-on; its pictures are bounded before they are read.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::stream;
use jpeg_encoder::{ColorType, Encoder, EncodingError};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{Instant, Sleep};

use super::hub::{Hub, Message, Snapshot, Status, Watcher};
use super::try_on::{MOST_BYTES, Painter, ReferenceError, Show, TryOn, TryOnState};
use crate::expression::{Emotion, NEUTRAL_SIDE_PX, ObservedFace};
use crate::frame::{RgbImage, Scaler};
use crate::picture::PictureError;

/// Pictures and observations a second, at most.
pub const FRAMES_PER_SECOND: u32 = 15;

/// Larger pictures are scaled down to this width or height.
pub const LONGEST_SIDE_PX: u32 = 640;

/// Connections served at a time; further ones wait in the kernel's queue.
pub const CONNECTIONS: usize = 48;

/// A connection on which nothing could be written for this long is cut.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The last picture is sent again after this long, so that a viewer who has gone is noticed.
const PICTURE_KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Between two `status` events; they keep the connection alive, too.
const STATUS_EVERY: Duration = Duration::from_secs(1);

const FRAME_INTERVAL: Duration = Duration::from_millis(1000 / FRAMES_PER_SECOND as u64);
const PICTURE_QUALITY: u8 = 75;
const NEUTRAL_QUALITY: u8 = 90;

const PAGE_HTML: &str = include_str!("page/page.html");
const PAGE_CSS: &str = include_str!("page/page.css");
const PAGE_JS: &str = include_str!("page/page.js");
const ICON_SVG: &str = include_str!("page/icon.svg");

/// Everything the page needs is its own; nothing inline, nothing from elsewhere, no framing.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// IPTC's digital source type for a picture made by a model from a real one, as an XMP packet behind its JPEG APP1 name.
const SYNTHETIC_MARK: &[u8] = b"http://ns.adobe.com/xap/1.0/\0\
<x:xmpmeta xmlns:x=\"adobe:ns:meta/\"><rdf:RDF xmlns:rdf=\"http://www.w3.org/1999/02/22-rdf-syntax-ns#\">\
<rdf:Description rdf:about=\"\" xmlns:Iptc4xmpExt=\"http://iptc.org/std/Iptc4xmpExt/2008-02-29/\" \
Iptc4xmpExt:DigitalSourceType=\"http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia\"/>\
</rdf:RDF></x:xmpmeta>";

/// The page sends it with what it asks for. A page from elsewhere cannot: a browser would ask us first, and is told nothing.
const OWN_PAGE: &str = "visaged-page";

const BOUNDARY: &str = "visaged-frame";

/// What the page says of the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// Shown in the title, such as `site/device`.
    pub device: String,
    /// The picture is shown mirrored left to right.
    pub mirrored: bool,
}

/// Why the page could not be served.
#[derive(Debug, thiserror::Error)]
pub enum WebError {
    /// Another program listens there.
    #[error("{name}: cannot listen on {listen}: the port is in use; stop the other program or choose another port")]
    PortInUse {
        /// Which server.
        name: &'static str,
        /// Where it should have listened.
        listen: SocketAddr,
    },
    /// Ports below 1024 are not for everybody.
    #[error("{name}: may not listen on {listen}: choose a port above 1023, or grant CAP_NET_BIND_SERVICE")]
    NotAllowed {
        /// Which server.
        name: &'static str,
        /// Where it should have listened.
        listen: SocketAddr,
    },
    /// No such address on this machine, or another refusal of the system.
    #[error("{name}: cannot listen on {listen}: {source}; is the address one of this machine's?")]
    Listen {
        /// Which server.
        name: &'static str,
        /// Where it should have listened.
        listen: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The thread or its runtime could not be made.
    #[error("{name}: cannot start its thread: {source}")]
    Thread {
        /// Which server.
        name: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A running HTTP server in a thread of its own; ends when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Listens on `listen` (port 0: any free one) and serves `routes`, such as [`router`]'s, merged with others where wished, in a
    /// thread called `name`. Adds the security headers; on a loopback address, requests for other host names are refused (DNS rebinding).
    ///
    /// # Errors
    /// [`WebError`]: the port is in use, not allowed, the address is not ours, or no thread can be had.
    pub fn start(name: &'static str, listen: SocketAddr, routes: Router) -> Result<Self, WebError> {
        let refused = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => WebError::PortInUse { name, listen },
            io::ErrorKind::PermissionDenied => WebError::NotAllowed { name, listen },
            _ => WebError::Listen { name, listen, source },
        };
        let thread_refused = |source| WebError::Thread { name, source };
        let socket = std::net::TcpListener::bind(listen).map_err(refused)?;
        socket.set_nonblocking(true).map_err(refused)?;
        let address = socket.local_addr().map_err(refused)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(thread_refused)?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(socket).map_err(refused)?
        };
        let listener = Bounded { listener, free: Arc::new(Semaphore::new(CONNECTIONS)) };
        let routes = guarded(routes, address.ip().is_loopback());
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        result = axum::serve(listener, routes).into_future() => {
                            if let Err(error) = result {
                                tracing::error!(%error, server = name, "the server has ended");
                            }
                        }
                        _ = stopped => {}
                    }
                });
            })
            .map_err(thread_refused)?;
        Ok(Self { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it really listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether the thread still lives.
    pub fn is_running(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Closes every connection at once and waits for the thread, which needs no longer than the encoding of one picture.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!(address = %self.address, "the server's thread had panicked");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// `/` with its files, `/stream.mjpg`, `/events`, `/neutral/{track}.jpg` and `/healthz`, fed by `hub`; with a `try_on` also `/try-on` and
/// `/try-on/reference`, which set it. To be served within a tokio runtime; [`Server::start`] adds the headers and the checks.
pub fn router(hub: Hub, page: &Page, try_on: Option<TryOn>) -> Router {
    let html = PAGE_HTML.replace("data-mirrored=\"false\"", &format!("data-mirrored=\"{}\"", page.mirrored));
    let (pictures, observations) = (watch::Sender::new(None), watch::Sender::new(None));
    let feed = Feed {
        hub,
        pictures,
        observations,
        snapshot: Mutex::default(),
        pump_runs: Mutex::new(false),
        hello: event("hello", &Hello::new(page)),
        try_on,
    };
    let wishes = match &feed.try_on {
        None => Router::new(),
        Some(_) => Router::new()
            .route("/try-on", post(set_try_on))
            .route("/try-on/reference", post(take_reference).delete(forget_reference)),
    };
    wishes
        .route("/", get(async move || typed("text/html; charset=utf-8", html.clone())))
        .route("/page.css", get(async || typed("text/css; charset=utf-8", PAGE_CSS)))
        .route("/page.js", get(async || typed("text/javascript; charset=utf-8", PAGE_JS)))
        .route("/icon.svg", get(async || typed("image/svg+xml", ICON_SVG)))
        .route("/healthz", get(async || typed("text/plain; charset=utf-8", "ok\n")))
        .route("/stream.mjpg", get(stream_pictures))
        .route("/events", get(stream_events))
        .route("/neutral/{file}", get(neutral_face))
        .with_state(Arc::new(feed))
}

fn typed(content_type: &'static str, body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, HeaderValue::from_static(content_type))], body.into()).into_response()
}

// ---- what every answer gets ----

fn guarded(routes: Router, loopback_only: bool) -> Router {
    routes.layer(middleware::from_fn(move |request: Request, next: Next| async move {
        let mut response = if loopback_only && !names_loopback(request.headers()) {
            let text =
                "this server answers only to localhost and loopback addresses; set `web.listen` to open it to others\n";
            (StatusCode::MISDIRECTED_REQUEST, text).into_response()
        } else {
            next.run(request).await
        };
        add_security_headers(response.headers_mut());
        response
    }))
}

fn add_security_headers(headers: &mut HeaderMap) {
    let fixed: [(HeaderName, &'static str); 7] = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (HeaderName::from_static("permissions-policy"), "camera=(), microphone=(), geolocation=()"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
}

/// Whether the `Host` header names this machine: a rebound DNS name does not.
fn names_loopback(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _port)| name),
    };
    match name.parse::<IpAddr>() {
        Ok(address) => address.is_loopback(),
        Err(_) => {
            let name = name.to_ascii_lowercase();
            name == "localhost" || name.ends_with(".localhost")
        }
    }
}

// ---- from the hub to the viewers ----

/// What all viewers of one page share.
struct Feed {
    hub: Hub,
    /// One part of the multipart stream.
    pictures: watch::Sender<Option<Bytes>>,
    /// One `observation` event.
    observations: watch::Sender<Option<Bytes>>,
    snapshot: Mutex<Snapshot>,
    pump_runs: Mutex<bool>,
    hello: Bytes,
    try_on: Option<TryOn>,
}

impl Feed {
    /// Counts a viewer and sees to it that the pump runs.
    fn join(self: &Arc<Self>, picture: bool) -> Watcher {
        let mut pump_runs = lock(&self.pump_runs);
        let watcher = self.hub.watch(picture);
        if !std::mem::replace(&mut *pump_runs, true) {
            tokio::spawn(pump(PumpRun(Arc::clone(self))));
        }
        watcher
    }
}

/// Says that the pump has ended, however it ends.
struct PumpRun(Arc<Feed>);

impl Drop for PumpRun {
    fn drop(&mut self) {
        let mut pump_runs = lock(&self.0.pump_runs);
        self.0.pictures.send_replace(None);
        self.0.observations.send_replace(None);
        self.0.hub.forget();
        *pump_runs = false;
    }
}

/// Carries the newest frame from the hub to the viewers for as long as there are any.
async fn pump(run: PumpRun) {
    let feed = &run.0;
    let mut encoder = PictureEncoder::default();
    let mut painter = feed.try_on.clone().map(Painter::new);
    let mut due = Instant::now();
    loop {
        feed.hub.fresh().await;
        if !feed.hub.is_watched() {
            // Under the lock no viewer can join between the look and the end.
            let pump_runs = lock(&feed.pump_runs);
            if !feed.hub.is_watched() {
                drop(pump_runs);
                return;
            }
        }
        tokio::time::sleep_until(due).await;
        let picture = {
            let mut snapshot = lock(&feed.snapshot);
            let Some(mut picture) = feed.hub.take(&mut snapshot) else { continue };
            feed.observations.send_replace(Some(event("observation", &ObservationEvent::new(&snapshot))));
            due = Instant::now() + FRAME_INTERVAL;
            let drawn = match (&mut painter, &mut picture) {
                (Some(painter), Some(picture)) => painter.draw(picture, snapshot.faces()),
                _ => false,
            };
            picture.map(|picture| (picture, drawn))
        };
        if let Some((picture, synthetic)) = picture {
            match encoder.part(&picture, synthetic) {
                Ok(part) => drop(feed.pictures.send_replace(Some(part))),
                Err(error) => tracing::warn!(%error, "a picture for the live page could not be encoded"),
            }
        }
    }
}

#[derive(Default)]
struct PictureEncoder {
    scaler: Scaler,
    small: RgbImage,
    size_hint_bytes: usize,
}

impl PictureEncoder {
    /// The picture as one part of the multipart stream, the next boundary included: browsers show a part once they see its end. One that is
    /// synthetic in part is marked so.
    fn part(&mut self, picture: &RgbImage, synthetic: bool) -> Result<Bytes, EncodingError> {
        let mut jpeg = Vec::with_capacity(self.size_hint_bytes);
        let picture = self.scaler.within(picture, LONGEST_SIDE_PX, &mut self.small);
        // The longest side fits into 16 bits by now.
        let (width, height) = (picture.width_px as u16, picture.height_px as u16);
        let mut encoder = Encoder::new(&mut jpeg, PICTURE_QUALITY);
        if synthetic {
            encoder.add_app_segment(1, SYNTHETIC_MARK.to_vec())?;
        }
        encoder.encode(&picture.data, width, height, ColorType::Rgb)?;
        let mut part = format!("Content-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n", jpeg.len()).into_bytes();
        part.reserve_exact(jpeg.len() + BOUNDARY.len() + 6);
        part.extend_from_slice(&jpeg);
        part.extend_from_slice(format!("\r\n--{BOUNDARY}\r\n").as_bytes());
        self.size_hint_bytes = jpeg.len() + jpeg.len() / 8;
        Ok(part.into())
    }
}

// ---- /stream.mjpg ----

async fn stream_pictures(State(feed): State<Arc<Feed>>) -> Response {
    struct Viewer {
        pictures: watch::Receiver<Option<Bytes>>,
        greeted: bool,
        _watcher: Watcher,
    }
    let watcher = feed.join(true);
    let mut pictures = feed.pictures.subscribe();
    pictures.mark_changed();
    let viewer = Viewer { pictures, greeted: false, _watcher: watcher };
    let body = stream::unfold(viewer, async |mut viewer: Viewer| {
        if !std::mem::replace(&mut viewer.greeted, true) {
            return Some((Ok::<_, Infallible>(Bytes::from(format!("--{BOUNDARY}\r\n"))), viewer));
        }
        loop {
            // An elapsed time-out sends the last picture again.
            if let Ok(Err(_gone)) = tokio::time::timeout(PICTURE_KEEP_ALIVE, viewer.pictures.changed()).await {
                return None;
            }
            let part = viewer.pictures.borrow_and_update().clone();
            if let Some(part) = part {
                return Some((Ok(part), viewer));
            }
        }
    });
    typed("multipart/x-mixed-replace; boundary=visaged-frame", Body::from_stream(body))
}

// ---- /events ----

async fn stream_events(State(feed): State<Arc<Feed>>) -> Response {
    let watcher = feed.join(false);
    let mut observations = feed.observations.subscribe();
    let mut message_count = feed.hub.message_count();
    let mut status = feed.hub.status_changes();
    observations.mark_changed();
    message_count.mark_changed();
    status.mark_changed();
    let mut second = tokio::time::interval(STATUS_EVERY);
    second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let viewer = EventViewer {
        hello: Some(feed.hello.clone()),
        hub: feed.hub.clone(),
        try_on: feed.try_on.clone(),
        observations,
        message_count,
        status,
        second,
        cursor: 0,
        rate: FrameRate { frames: feed.hub.frames(), since: Instant::now(), per_second: None },
        _watcher: watcher,
    };
    let body = stream::unfold(viewer, async |mut viewer: EventViewer| {
        let chunk = viewer.next().await?;
        Some((Ok::<_, Infallible>(chunk), viewer))
    });
    typed("text/event-stream", Body::from_stream(body))
}

struct EventViewer {
    hello: Option<Bytes>,
    hub: Hub,
    try_on: Option<TryOn>,
    observations: watch::Receiver<Option<Bytes>>,
    message_count: watch::Receiver<u64>,
    status: watch::Receiver<Status>,
    second: tokio::time::Interval,
    cursor: u64,
    rate: FrameRate,
    _watcher: Watcher,
}

impl EventViewer {
    /// The next events; `None` when the server ends.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(hello) = self.hello.take() {
            return Some(hello);
        }
        loop {
            tokio::select! {
                changed = self.observations.changed() => {
                    changed.ok()?;
                    let newest = self.observations.borrow_and_update().clone();
                    if newest.is_some() {
                        return newest;
                    }
                }
                changed = self.message_count.changed() => {
                    changed.ok()?;
                    let mut chunk = Vec::new();
                    self.hub.messages_after(&mut self.cursor, |message| {
                        write_event(&mut chunk, "message", &MessageEvent::new(message));
                    });
                    if !chunk.is_empty() {
                        return Some(chunk.into());
                    }
                }
                changed = self.status.changed() => {
                    changed.ok()?;
                    return Some(self.status_event());
                }
                _ = self.second.tick() => {
                    self.rate.count(self.hub.frames(), Instant::now());
                    return Some(self.status_event());
                }
            }
        }
    }

    fn status_event(&mut self) -> Bytes {
        let status = self.status.borrow_and_update();
        let (state, reason) = match &*status {
            Status::Starting => ("starting", None),
            Status::Online => ("online", None),
            Status::Degraded { reason } => ("degraded", Some(reason.as_str())),
        };
        let fps = self.rate.per_second.map(rounded);
        event(
            "status",
            &StatusEvent {
                state,
                reason,
                notice: self.hub.current_notice(),
                fps,
                latency_ms: rounded(self.hub.latency().as_secs_f32() * 1e3),
                try_on: self.try_on.as_ref().map(TryOn::state),
            },
        )
    }
}

/// Frames a second of the pipeline, by one viewer's watch.
struct FrameRate {
    frames: u64,
    since: Instant,
    per_second: Option<f32>,
}

impl FrameRate {
    fn count(&mut self, frames: u64, now: Instant) {
        let elapsed = now.duration_since(self.since);
        if elapsed < STATUS_EVERY / 2 {
            return;
        }
        self.per_second = Some((frames - self.frames) as f32 / elapsed.as_secs_f32());
        (self.frames, self.since) = (frames, now);
    }
}

/// The first event: what never changes while the server runs.
#[derive(Serialize)]
struct Hello<'a> {
    version: &'static str,
    /// Made anew at every start: tells the page that the counters begin again.
    boot: uuid::Uuid,
    device: &'a str,
    mirrored: bool,
    emotions: [&'static str; 8],
}

impl<'a> Hello<'a> {
    fn new(page: &'a Page) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            boot: uuid::Uuid::new_v4(),
            device: &page.device,
            mirrored: page.mirrored,
            emotions: Emotion::ALL.map(Emotion::name),
        }
    }
}

#[derive(Serialize)]
struct ObservationEvent<'a> {
    frame: u64,
    width: u32,
    height: u32,
    faces: Faces<'a>,
}

/// Written from the snapshot without a list in between.
struct Faces<'a>(&'a Snapshot);

impl<'a> ObservationEvent<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        Self { frame: snapshot.frame, width: snapshot.width_px, height: snapshot.height_px, faces: Faces(snapshot) }
    }
}

impl Serialize for Faces<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (width, height) = (self.0.width_px.max(1) as f32, self.0.height_px.max(1) as f32);
        serializer.collect_seq(self.0.faces().iter().map(|face| FaceEvent::new(face, width, height)))
    }
}

#[derive(Serialize)]
struct FaceEvent {
    track: u64,
    /// Left, top, width, height as parts of the picture's width and height.
    #[serde(rename = "box")]
    relative_box: [f32; 4],
    emotion: Emotion,
    probabilities: [f32; 8],
    neutrality: f32,
    quality: f32,
    /// Whether `/neutral/{track}.jpg` has something.
    neutral: bool,
}

impl FaceEvent {
    fn new(face: &ObservedFace, width: f32, height: f32) -> Self {
        let rect = face.face.rect;
        Self {
            track: face.track.0,
            relative_box: [rect.x / width, rect.y / height, rect.width / width, rect.height / height].map(rounded),
            emotion: face.emotion,
            probabilities: face.probabilities.0.map(rounded),
            neutrality: rounded(face.neutrality),
            quality: rounded(face.quality),
            neutral: has_neutral(face),
        }
    }
}

#[derive(Serialize)]
struct MessageEvent<'a> {
    seq: u64,
    /// Since the Unix epoch.
    time_ms: i64,
    topic: &'a str,
    /// `null` where it is not UTF-8.
    payload: Option<&'a str>,
    bytes: usize,
    truncated: bool,
}

impl<'a> MessageEvent<'a> {
    fn new(message: &'a Message) -> Self {
        let truncated = message.payload_bytes > message.payload.len();
        let payload = match std::str::from_utf8(&message.payload) {
            Ok(text) => Some(text),
            // The cut may have gone through a character.
            Err(error) if truncated && error.error_len().is_none() => {
                std::str::from_utf8(&message.payload[..error.valid_up_to()]).ok()
            }
            Err(_) => None,
        };
        Self {
            seq: message.seq,
            time_ms: message.time.as_millisecond(),
            topic: &message.topic,
            payload,
            bytes: message.payload_bytes,
            truncated,
        }
    }
}

#[derive(Serialize)]
struct StatusEvent<'a> {
    state: &'static str,
    reason: Option<&'a str>,
    /// A plain line for the people in view.
    notice: Option<String>,
    /// Frames a second through the pipeline; `null` within the first second.
    fps: Option<f32>,
    latency_ms: f32,
    /// `null` where there is none.
    try_on: Option<TryOnState>,
}

/// Four decimals are enough for a screen.
fn rounded(value: f32) -> f32 {
    (value * 1e4).round() / 1e4
}

fn event(name: &str, data: &impl Serialize) -> Bytes {
    let mut bytes = Vec::with_capacity(512);
    write_event(&mut bytes, name, data);
    bytes.into()
}

/// One Server-Sent Event; JSON escapes line ends, so `data` is one line.
fn write_event(out: &mut Vec<u8>, name: &str, data: &impl Serialize) {
    let start = out.len();
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\ndata: ");
    if let Err(error) = serde_json::to_writer(&mut *out, data) {
        tracing::warn!(%error, event = name, "an event for the live page could not be written");
        out.truncate(start);
        return;
    }
    out.extend_from_slice(b"\n\n");
}

// ---- /neutral/{track}.jpg ----

fn has_neutral(face: &ObservedFace) -> bool {
    face.neutral.len() == NEUTRAL_SIDE_PX * NEUTRAL_SIDE_PX
}

async fn neutral_face(State(feed): State<Arc<Feed>>, Path(file): Path<String>) -> Response {
    let Some(track) = file.strip_suffix(".jpg").and_then(|track| track.parse::<u64>().ok()) else {
        return (StatusCode::NOT_FOUND, "ask for /neutral/TRACK.jpg\n").into_response();
    };
    let encoded = {
        let snapshot = lock(&feed.snapshot);
        let face = snapshot.faces().iter().find(|face| face.track.0 == track && has_neutral(face));
        face.map(|face| neutral_jpeg(&face.neutral))
    };
    match encoded {
        Some(Ok(jpeg)) => typed("image/jpeg", jpeg),
        Some(Err(error)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("encoding it: {error}\n")).into_response(),
        None => (StatusCode::NOT_FOUND, "no such face in view\n").into_response(),
    }
}

/// Marked as synthetic.
fn neutral_jpeg(luminance: &[u8]) -> Result<Vec<u8>, EncodingError> {
    let mut jpeg = Vec::with_capacity(4096);
    let mut encoder = Encoder::new(&mut jpeg, NEUTRAL_QUALITY);
    encoder.add_app_segment(1, SYNTHETIC_MARK.to_vec())?;
    encoder.encode(luminance, NEUTRAL_SIDE_PX as u16, NEUTRAL_SIDE_PX as u16, ColorType::Luma)?;
    Ok(jpeg)
}

// ---- /try-on ----

/// `POST /try-on?show=nothing|makeup|bare|neutral|identity|avatar&strength=0..1&avatar=N`
#[derive(Deserialize)]
struct TryOnWish {
    show: Option<String>,
    strength: Option<f32>,
    avatar: Option<usize>,
}

type Refused = (StatusCode, String);

/// The try-on, for a request of this very page.
fn own_try_on<'a>(feed: &'a Feed, headers: &HeaderMap) -> Result<&'a TryOn, Refused> {
    if !headers.contains_key(OWN_PAGE) {
        return Err((StatusCode::FORBIDDEN, format!("only the page itself may ask for this (header {OWN_PAGE})\n")));
    }
    feed.try_on.as_ref().ok_or_else(|| (StatusCode::NOT_FOUND, "there is no try-on\n".into()))
}

async fn set_try_on(
    State(feed): State<Arc<Feed>>,
    Query(wish): Query<TryOnWish>,
    headers: HeaderMap,
) -> Result<StatusCode, Refused> {
    let try_on = own_try_on(&feed, &headers)?;
    let show = match wish.show.as_deref().map(|name| Show::from_name(name).ok_or(name)) {
        Some(Err(_)) => {
            return Err((
                StatusCode::BAD_REQUEST,
                "show takes nothing, makeup, bare, neutral, identity or avatar\n".into(),
            ));
        }
        Some(Ok(show)) => Some(show),
        None => None,
    };
    try_on.set(show, wish.strength, wish.avatar).map_err(|error| (StatusCode::CONFLICT, format!("{error}\n")))?;
    feed.hub.tell_all();
    Ok(StatusCode::NO_CONTENT)
}

async fn forget_reference(State(feed): State<Arc<Feed>>, headers: HeaderMap) -> Result<StatusCode, Refused> {
    own_try_on(&feed, &headers)?.forget_reference();
    feed.hub.tell_all();
    Ok(StatusCode::NO_CONTENT)
}

async fn take_reference(State(feed): State<Arc<Feed>>, request: Request) -> Result<StatusCode, Refused> {
    let try_on = own_try_on(&feed, request.headers())?.clone();
    // Before anything is read, so that pictures that wait take no memory.
    let Ok(_turn) = try_on.turn().try_acquire() else {
        return Err((StatusCode::TOO_MANY_REQUESTS, "another picture is being looked at: try again\n".into()));
    };
    let too_large =
        || (StatusCode::PAYLOAD_TOO_LARGE, format!("the picture's file is larger than {} MiB\n", MOST_BYTES >> 20));
    let announced = request.headers().get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: u64| bytes > MOST_BYTES as u64) {
        return Err(too_large());
    }
    let bytes = axum::body::to_bytes(request.into_body(), MOST_BYTES).await.map_err(|_| too_large())?;
    let worker = try_on.clone();
    match tokio::task::spawn_blocking(move || worker.take_reference(&bytes)).await {
        Ok(Ok(())) => {
            feed.hub.tell_all();
            Ok(StatusCode::NO_CONTENT)
        }
        Ok(Err(error)) => Err((refusal(&error), format!("{error}\n"))),
        Err(_) => Err((StatusCode::UNPROCESSABLE_ENTITY, "the picture could not be looked at\n".into())),
    }
}

fn refusal(error: &ReferenceError) -> StatusCode {
    match error {
        ReferenceError::NotAPicture(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        ReferenceError::Picture(PictureError::TooManyPixels { .. } | PictureError::TooManyBytes { .. }) => {
            StatusCode::PAYLOAD_TOO_LARGE
        }
        _ => StatusCode::UNPROCESSABLE_ENTITY,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// ---- connections ----

/// Accepts no more than [`CONNECTIONS`] at a time.
struct Bounded {
    listener: TcpListener,
    free: Arc<Semaphore>,
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        loop {
            let Ok(permit) = Arc::clone(&self.free).acquire_owned().await else { std::future::pending().await };
            let (stream, peer) = axum::serve::Listener::accept(&mut self.listener).await;
            if stream.set_nodelay(true).is_ok() {
                let idle = Box::pin(tokio::time::sleep(IDLE_TIMEOUT));
                return (Connection { stream, idle, _permit: permit }, peer);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection that is cut when nothing could be written for [`IDLE_TIMEOUT`]: reading alone does not count, so a client that
/// sends its request byte by byte does not hold a place.
struct Connection {
    stream: TcpStream,
    idle: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    fn unless_idle<T>(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        self.idle.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match result {
            Poll::Pending => self.unless_idle(cx),
            Poll::Ready(result) => {
                self.idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
                Poll::Ready(result)
            }
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_read(cx, buf) {
            Poll::Pending => self.unless_idle(cx),
            ready => ready,
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::try_on::tests::{portrait, try_on};
    use super::*;
    use crate::expression::{Observation, Probabilities};
    use crate::face::{Face, Landmarks, Rect, TrackId};
    use crate::frame::CaptureTime;
    use crate::pool::Pool;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn page() -> Page {
        Page { device: "lab/mirror".into(), mirrored: true }
    }

    fn serve(hub: &Hub) -> Server {
        Server::start("web", "127.0.0.1:0".parse().unwrap(), router(hub.clone(), &page(), None)).unwrap()
    }

    fn serve_try_on(hub: &Hub) -> (Server, TryOn) {
        let (try_on, _) = try_on();
        let routes = router(hub.clone(), &page(), Some(try_on.clone()));
        (Server::start("web", "127.0.0.1:0".parse().unwrap(), routes).unwrap(), try_on)
    }

    /// Posts a body; gives the status and the text.
    fn post(server: &Server, line: &str, header: &str, body: &[u8]) -> (u16, String) {
        let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = body.len();
        let head = format!("{line} HTTP/1.0\r\nHost: localhost\r\n{header}Content-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        // A body that is too large need not be read to its end.
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let text = String::from_utf8_lossy(&answer).into_owned();
        (text.split(' ').nth(1).unwrap_or_default().parse().unwrap_or(0), text)
    }

    fn observation(frame_seq: u64, width_px: u32, height_px: u32) -> Observation {
        let rect = Rect { x: 0.25 * width_px as f32, y: 0.0, width: 0.5 * width_px as f32, height: height_px as f32 };
        let face = ObservedFace {
            track: TrackId(3),
            face: Face { rect, landmarks: Landmarks::default(), score: 0.9 },
            quality: 0.75,
            emotion: Emotion::Surprise,
            probabilities: Probabilities([0.125; 8]),
            neutrality: 0.5,
            neutral: vec![90; NEUTRAL_SIDE_PX * NEUTRAL_SIDE_PX],
        };
        Observation { frame_seq, time: CaptureTime::now(), width_px, height_px, faces: vec![face], ended: vec![] }
    }

    /// Shows frames until dropped.
    struct Feeder {
        on: Arc<AtomicBool>,
        thread: Option<std::thread::JoinHandle<()>>,
    }

    impl Feeder {
        fn start(hub: &Hub, width_px: u32, height_px: u32) -> Self {
            let (on, hub) = (Arc::new(AtomicBool::new(true)), hub.clone());
            let going = Arc::clone(&on);
            let thread = std::thread::spawn(move || {
                let pool = Pool::<RgbImage>::new(4);
                for seq in 0.. {
                    if !going.load(Ordering::Relaxed) {
                        return;
                    }
                    let mut picture = pool.take();
                    picture.resize(width_px, height_px);
                    picture.data.fill((seq * 8 % 256) as u8);
                    hub.show(picture, &observation(seq, width_px, height_px));
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            Self { on, thread: Some(thread) }
        }
    }

    impl Drop for Feeder {
        fn drop(&mut self) {
            self.on.store(false, Ordering::Relaxed);
            self.thread.take().unwrap().join().unwrap();
        }
    }

    /// HTTP/1.0, so that bodies come without chunks and end with the connection.
    fn request(server: &Server, line: &str, host: &str) -> std::net::TcpStream {
        let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{line} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).unwrap();
        stream
    }

    fn answer(server: &Server, line: &str, host: &str) -> (String, Vec<u8>) {
        let mut bytes = Vec::new();
        request(server, line, host).read_to_end(&mut bytes).unwrap();
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        (String::from_utf8(bytes[..end].to_vec()).unwrap(), bytes[end..].to_vec())
    }

    /// Reads until `done` is content with what has come so far.
    fn read_until(stream: &mut std::net::TcpStream, mut done: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
        let (mut bytes, mut buffer) = (Vec::new(), [0; 16 * 1024]);
        while !done(&bytes) {
            let read = stream.read(&mut buffer).expect("more to come");
            assert_ne!(read, 0, "the stream ended early: {}", String::from_utf8_lossy(&bytes));
            bytes.extend_from_slice(&buffer[..read]);
        }
        bytes
    }

    fn count(bytes: &[u8], what: &[u8]) -> usize {
        bytes.windows(what.len()).filter(|window| *window == what).count()
    }

    #[test]
    fn every_answer_carries_the_security_headers() {
        let server = serve(&Hub::new());
        for path in ["/", "/page.css", "/page.js", "/icon.svg", "/healthz", "/neutral/1.jpg", "/no-such-page"] {
            let (head, _) = answer(&server, &format!("GET {path}"), "localhost");
            for line in [
                "content-security-policy: default-src 'none'; script-src 'self'",
                "frame-ancestors 'none'",
                "x-content-type-options: nosniff",
                "cache-control: no-store",
                "cross-origin-resource-policy: same-origin",
            ] {
                assert!(head.contains(line), "{path} lacks {line}: {head}");
            }
        }
    }

    #[test]
    fn the_page_refers_to_nothing_that_the_server_does_not_have_and_holds_nothing_inline() {
        let server = serve(&Hub::new());
        let (head, body) = answer(&server, "GET /", "localhost");
        let html = String::from_utf8(body).unwrap();
        assert!(head.starts_with("HTTP/1.0 200") && html.contains("data-mirrored=\"true\""), "{head}");
        let handler = html.split_whitespace().find(|word| word.starts_with("on") && word.contains('='));
        assert!(!html.contains("<style") && !html.contains("style=") && handler.is_none(), "something inline");
        let quoted = |attribute: &str| {
            html.split(attribute).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        for path in quoted("src=\"").into_iter().chain(quoted("href=\"")) {
            if path != "/stream.mjpg" && !path.starts_with('#') {
                assert!(answer(&server, &format!("GET {path}"), "localhost").0.contains(" 200 "), "{path}");
            }
        }
    }

    #[test]
    fn a_foreign_host_name_is_refused_on_loopback() {
        let server = serve(&Hub::new());
        for (host, status) in [
            ("localhost", 200),
            ("LOCALHOST:8080", 200),
            ("127.0.0.1:1", 200),
            ("[::1]:8080", 200),
            ("mirror.localhost", 200),
            ("rebound.example", 421),
            ("localhost.example:8080", 421),
            ("192.168.1.4", 421),
            ("", 421),
        ] {
            let (head, _) = answer(&server, "GET /healthz", host);
            assert!(head.starts_with(&format!("HTTP/1.0 {status}")), "{host}: {head}");
        }
    }

    #[test]
    fn nothing_can_be_posted() {
        let server = serve(&Hub::new());
        assert!(answer(&server, "POST /", "localhost").0.contains(" 405 "));
    }

    const OWN: &str = "visaged-page: 1\r\n";

    #[test]
    fn a_reference_is_taken_from_this_page_alone_and_what_is_no_picture_or_too_large_is_refused() {
        let hub = Hub::new();
        let (server, try_on) = serve_try_on(&hub);
        let upload = |header: &str, body: &[u8]| post(&server, "POST /try-on/reference", header, body);
        assert_eq!(upload("", &portrait()).0, 403);
        assert!(!try_on.state().reference);
        let (status, text) = upload(OWN, b"<svg onload='alert(1)'/>");
        assert!(status == 415 && text.contains("not a picture"), "{text}");
        assert_eq!(upload(OWN, &portrait()[..3000]).0, 422);
        assert_eq!(upload(OWN, &portrait()).0, 204);
        let state = try_on.state();
        assert!(state.reference && state.show == Show::Makeup);
        assert_eq!(post(&server, "DELETE /try-on/reference", OWN, b"").0, 204);
        assert!(!try_on.state().reference);
    }

    #[test]
    fn an_upload_beyond_the_bound_is_refused_without_being_read_and_one_at_a_time_is_looked_at() {
        let (server, try_on) = serve_try_on(&Hub::new());
        let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let length = MOST_BYTES + 1;
        let head =
            format!("POST /try-on/reference HTTP/1.0\r\nHost: localhost\r\n{OWN}Content-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        let answer = read_until(&mut stream, |bytes| bytes.ends_with(b"MiB\n"));
        assert!(answer.starts_with(b"HTTP/1.0 413"));
        let turn = try_on.turn().try_acquire().unwrap();
        assert_eq!(post(&server, "POST /try-on/reference", OWN, &portrait()).0, 429);
        drop(turn);
        assert_eq!(post(&server, "POST /try-on/reference", OWN, &portrait()).0, 204);
    }

    #[test]
    fn the_page_sets_what_is_drawn_and_every_viewer_is_told() {
        let hub = Hub::new();
        let (server, try_on) = serve_try_on(&hub);
        let mut events = request(&server, "GET /events", "localhost");
        read_until(&mut events, |bytes| count(bytes, br#""try_on":{"show":"nothing","strength":1.0"#) > 0);
        assert_eq!(post(&server, "POST /try-on?show=bare&strength=0.25", "", b"").0, 403);
        assert_eq!(post(&server, "POST /try-on?show=bare&strength=0.25", OWN, b"").0, 204);
        read_until(&mut events, |bytes| count(bytes, br#""try_on":{"show":"bare","strength":0.25"#) > 0);
        assert_eq!(post(&server, "POST /try-on?show=makeup", OWN, b"").0, 409);
        assert_eq!(post(&server, "POST /try-on?show=wig", OWN, b"").0, 400);
        assert_eq!(post(&server, "POST /try-on?strength=loud", OWN, b"").0, 400);
        assert_eq!(try_on.state().show, Show::Bare);
        let (head, _) = answer(&server, "GET /try-on/reference", "localhost");
        assert!(head.contains(" 405 "), "a reference is never handed out: {head}");
    }

    #[test]
    fn without_a_try_on_there_is_nothing_to_ask_for() {
        let server = serve(&Hub::new());
        assert_eq!(post(&server, "POST /try-on?show=bare", OWN, b"").0, 404);
        assert_eq!(post(&server, "POST /try-on/reference", OWN, &portrait()).0, 404);
    }

    #[test]
    fn a_frame_that_was_drawn_on_is_marked_as_synthetic_in_the_stream() {
        let mut encoder = PictureEncoder::default();
        let mut picture = RgbImage::default();
        picture.resize(64, 48);
        let mark = b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia";
        let marks = [true, false].map(|synthetic| count(&encoder.part(&picture, synthetic).unwrap(), mark));
        assert_eq!(marks, [1, 0]);
    }

    #[test]
    fn a_port_in_use_is_named_with_what_to_do() {
        let first = serve(&Hub::new());
        let error = Server::start("web", first.address(), Router::new()).unwrap_err();
        assert!(matches!(error, WebError::PortInUse { .. }));
        let text = error.to_string();
        assert!(text.contains(&first.address().to_string()) && text.contains("choose another port"), "{text}");
    }

    #[test]
    fn an_address_of_another_machine_is_refused_with_a_reason() {
        let error = Server::start("web", "192.0.2.1:0".parse().unwrap(), Router::new()).unwrap_err();
        assert!(matches!(error, WebError::Listen { .. }), "{error}");
    }

    #[test]
    fn the_stream_shows_decodable_pictures_scaled_to_fit() {
        let hub = Hub::new();
        let server = serve(&hub);
        let _feeder = Feeder::start(&hub, 1280, 960);
        let mut stream = request(&server, "GET /stream.mjpg", "localhost");
        let bytes = read_until(&mut stream, |bytes| count(bytes, b"\r\n--visaged-frame\r\n") > 2);
        let head = String::from_utf8_lossy(&bytes[..400]).into_owned();
        assert!(head.contains("content-type: multipart/x-mixed-replace; boundary=visaged-frame"), "{head}");
        let start = bytes.windows(2).position(|two| two == [0xff, 0xd8]).unwrap();
        let picture = image::load_from_memory(&bytes[start..]).unwrap();
        assert_eq!((picture.width(), picture.height()), (640, 480));
    }

    #[test]
    fn a_viewer_who_never_reads_holds_nobody_back() {
        let hub = Hub::new();
        let server = serve(&hub);
        let _feeder = Feeder::start(&hub, 640, 480);
        let _asleep = request(&server, "GET /stream.mjpg", "localhost");
        let mut awake = request(&server, "GET /stream.mjpg", "localhost");
        read_until(&mut awake, |bytes| count(bytes, b"\r\n--visaged-frame\r\n") > 10);
    }

    #[test]
    fn events_tell_everything_that_passes() {
        let hub = Hub::new();
        let server = serve(&hub);
        hub.status(Status::Degraded { reason: "camera unplugged".into() });
        hub.message("visaged/v1/lab/mirror/status", br#"{"status":"online"}"#);
        hub.message("t/binary", &[0xff, 0xfe]);
        let _feeder = Feeder::start(&hub, 640, 480);
        let mut stream = request(&server, "GET /events", "localhost");
        let bytes = read_until(&mut stream, |bytes| {
            [&b"event: observation"[..], b"t/binary", b"event: status"].iter().all(|what| count(bytes, what) > 0)
                && bytes.ends_with(b"\n\n")
        });
        let text = String::from_utf8(bytes).unwrap();
        let data = |name: &str| -> serde_json::Value {
            let start = text.find(&format!("event: {name}\ndata: ")).unwrap();
            serde_json::from_str(text[start..].lines().nth(1).unwrap().strip_prefix("data: ").unwrap()).unwrap()
        };
        let hello = data("hello");
        assert_eq!((&hello["device"], &hello["mirrored"]), (&"lab/mirror".into(), &true.into()));
        assert_eq!(data("status")["reason"], "camera unplugged");
        let face = &data("observation")["faces"][0];
        assert_eq!(face["box"], serde_json::json!([0.25, 0.0, 0.5, 1.0]));
        assert_eq!((&face["track"], &face["emotion"]), (&3.into(), &"surprise".into()));
        let message = data("message");
        assert_eq!((&message["seq"], &message["payload"]), (&1.into(), &r#"{"status":"online"}"#.into()));
        assert!(text.contains(r#""topic":"t/binary","payload":null,"bytes":2"#), "{text}");
    }

    #[test]
    fn a_payload_cut_within_a_character_stays_text() {
        let mut payload = vec![b'x'; super::super::hub::PAYLOAD_KEPT_BYTES - 1];
        payload.extend_from_slice("ä".as_bytes());
        let hub = Hub::new();
        hub.message("t", &payload);
        hub.messages_after(&mut 0, |message| {
            let event = MessageEvent::new(message);
            assert!(event.truncated && event.payload.is_some_and(|text| text.ends_with('x')));
        });
    }

    #[test]
    fn the_neutral_face_of_a_face_in_view_is_a_picture_marked_as_synthetic() {
        let hub = Hub::new();
        let server = serve(&hub);
        let _feeder = Feeder::start(&hub, 640, 480);
        let mut events = request(&server, "GET /events", "localhost");
        read_until(&mut events, |bytes| count(bytes, b"event: observation") > 0);
        let (head, jpeg) = answer(&server, "GET /neutral/3.jpg", "localhost");
        assert!(head.contains("200") && head.contains("image/jpeg"), "{head}");
        let picture = image::load_from_memory(&jpeg).unwrap();
        assert_eq!((picture.width(), picture.height()), (64, 64));
        assert_eq!(count(&jpeg, b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia"), 1);
        for path in ["/neutral/4.jpg", "/neutral/3", "/neutral/-1.jpg", "/neutral/x.jpg", "/neutral/..%2f3.jpg"] {
            assert!(answer(&server, &format!("GET {path}"), "localhost").0.contains(" 404 "), "{path}");
        }
    }

    #[test]
    fn viewers_are_forgotten_when_they_go_and_the_next_one_is_served() {
        let hub = Hub::new();
        let server = serve(&hub);
        let _feeder = Feeder::start(&hub, 320, 240);
        for _ in 0..2 {
            let mut stream = request(&server, "GET /stream.mjpg", "localhost");
            read_until(&mut stream, |bytes| count(bytes, b"\xff\xd8") > 1);
            assert!(hub.is_watched());
            drop(stream);
            let given_up = std::time::Instant::now() + PATIENCE;
            while hub.is_watched() {
                assert!(std::time::Instant::now() < given_up, "still counted");
                std::thread::yield_now();
            }
        }
    }

    #[test]
    fn stopping_closes_the_streams_of_those_who_watch() {
        let hub = Hub::new();
        let server = serve(&hub);
        let _feeder = Feeder::start(&hub, 320, 240);
        let mut stream = request(&server, "GET /stream.mjpg", "localhost");
        let mut events = request(&server, "GET /events", "localhost");
        read_until(&mut stream, |bytes| count(bytes, b"\xff\xd8") > 1);
        read_until(&mut events, |bytes| count(bytes, b"event: observation") > 1);
        assert!(server.is_running());
        server.stop();
        // Both end; a reset counts as an end.
        let _ = stream.read_to_end(&mut Vec::new());
        let _ = events.read_to_end(&mut Vec::new());
        assert!(!hub.is_watched());
    }

    #[test]
    fn connections_beyond_the_bound_wait_and_are_served_when_one_ends() {
        let server = serve(&Hub::new());
        let mut held: Vec<_> = (0..CONNECTIONS).map(|_| request(&server, "GET /events", "localhost")).collect();
        for stream in &mut held {
            read_until(stream, |bytes| count(bytes, b"event: hello") > 0);
        }
        let mut waiting = request(&server, "GET /healthz", "localhost");
        waiting.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(waiting.read(&mut [0; 8]).is_err(), "served beyond the bound");
        held.pop();
        waiting.set_read_timeout(Some(PATIENCE)).unwrap();
        assert!(read_until(&mut waiting, |bytes| bytes.ends_with(b"ok\n")).starts_with(b"HTTP/1.0 200"));
    }

    #[test]
    fn other_routes_can_be_merged_and_are_guarded_too() {
        let routes =
            router(Hub::new(), &page(), None).merge(Router::new().route("/metrics", get(async || "visaged_up 1\n")));
        let server = Server::start("web", "127.0.0.1:0".parse().unwrap(), routes).unwrap();
        let (head, body) = answer(&server, "GET /metrics", "localhost");
        assert!(head.contains("nosniff") && body == b"visaged_up 1\n", "{head}");
        assert!(answer(&server, "GET /metrics", "rebound.example").0.contains(" 421 "));
    }
}
