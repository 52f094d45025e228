//! Finds faces with YuNet (Wu, Peng, Yu: "YuNet: a tiny millisecond-level face detector", 2023) in pictures of any size.
//!
//! YuNet finds a face surely once it is about [`SURE_PX`] pixels high on the network's canvas, so what matters is at which
//! scale it looks. Two ways of looking ([`Profile`]):
//! - `Still` looks everywhere at every scale: the picture scaled so that the smallest wanted face is `SURE_PX` high, and
//!   again at 0.4 of that and so on, in tiles where a scale is larger than the largest canvas.
//! - `Live` looks around each face that it knows of on a small canvas, and scans a piece of the rest: by turns the whole
//!   picture at a coarse scale and one tile of a finer grid. A near face is found within two frames, the smallest one once
//!   its tile has its turn; from then on it is seen in every frame. One frame costs one scan and a few small looks.
//!
//! Invariants: the same pictures in the same order give the same faces; scores are finite and in [0, 1], boxes have a size
//! above zero; nothing of ours is allocated once every canvas has been used.

use std::sync::{Arc, Mutex, PoisonError};

use super::canvas::{Painter, View};
use super::{Face, Landmarks, Point, Rect};
use crate::frame::RgbImage;
use crate::models::{Bundle, BundleError, BundleFault, DetectorManifest};
use crate::nn::{Network, NnError, Plan, Session, Settings};

/// Height of a face on the canvas at which it is found surely (97 % and more of frontal faces).
pub const SURE_PX: f32 = 32.0;
/// One box lies in another by more than this part of its area: the same face.
const SAME_FACE_INSIDE: f32 = 0.7;

/// Width and height of the canvases of the still profile, smallest first.
const STILL_CANVASES: [(usize, usize); 8] =
    [(160, 160), (320, 256), (256, 320), (320, 320), (480, 384), (384, 480), (640, 480), (480, 640)];
const STILL_TILE: (usize, usize) = (640, 640);
const STILL_TILE_OVERLAP_PX: f32 = 128.0;
const STILL_LEVEL_RATIO: f32 = 0.4;
/// The longest side that a still picture is looked at with: bounds the time that one picture takes.
const STILL_LONGEST_PX: f32 = 2560.0;

/// Canvases of the live profile, all of about the same area: the one that fits the picture's shape is taken.
const LIVE_CANVASES: [(usize, usize); 5] = [(320, 256), (384, 224), (288, 288), (256, 320), (224, 384)];
const LIVE_TILE_OVERLAP_PX: f32 = 32.0;
/// Tiles along each side of the finer grids; after the first an odd number, so that no seam lies on another grid's.
const LIVE_GRIDS: [usize; 6] = [2, 3, 5, 9, 17, 33];
/// Side of the canvas for a close look at one known face.
pub const FOCUS_PX: usize = 160;
/// The focus shows this many times the face's longer side.
const FOCUS_MARGIN: f32 = 2.6;
const FOCUS_MAX_SCALE: f32 = 3.0;
/// Most focus looks in one frame; where more faces are known they take turns.
const FOCUS_LOOKS: usize = 4;
/// Looks without success after which a known face is given up.
const FOCUS_PATIENCE: u32 = 10;
const MOST_KNOWN: usize = 64;

/// How a detector looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Frames that follow one another: bounded cost a frame, known faces in every frame.
    Live,
    /// Single pictures: everything, everywhere.
    Still,
}

/// What a detector is to find.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectOptions {
    /// How it looks.
    pub profile: Profile,
    /// Height of the smallest face that must be found, in pixels of the picture; at least 1.
    pub min_face_px: u32,
    /// Detections below this score are not faces; in (0, 1).
    pub min_score: f32,
    /// The largest faces are kept.
    pub max_faces: usize,
}

impl DetectOptions {
    /// For single pictures: faces from 24 px, as many as there are, at the bundle's own threshold.
    pub fn still(model: &DetectorModel) -> Self {
        let min_score = model.shared.manifest.detection.threshold;
        Self { profile: Profile::Still, min_face_px: 24, min_score, max_faces: 1000 }
    }
}

/// Why no faces came.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    /// The picture's data do not fit its size.
    #[error("a picture of {width_px}x{height_px} RGB pixels came with {bytes} bytes")]
    Picture {
        /// Its width.
        width_px: u32,
        /// Its height.
        height_px: u32,
        /// Its data.
        bytes: usize,
    },
    /// The network failed.
    #[error("face detector: {0}")]
    Network(#[from] NnError),
}

/// Why no detector could be made.
#[derive(Debug, thiserror::Error)]
pub enum DetectorError {
    /// The bundle was refused.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// The network could not be prepared.
    #[error("face detector: {0}")]
    Network(#[from] NnError),
}

/// A detector's network; shared by the detectors of several threads.
#[derive(Clone, Debug)]
pub struct DetectorModel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    bundle: Bundle,
    manifest: DetectorManifest,
    settings: Settings,
    plans: Mutex<Vec<((usize, usize), Plan)>>,
}

impl DetectorModel {
    /// Reads the network of a verified bundle.
    ///
    /// # Errors
    /// [`DetectorError`] where the bundle is for another task, or its graph has other tensors than its manifest says.
    pub fn new(bundle: Bundle, settings: impl Into<Settings>) -> Result<Self, DetectorError> {
        let (manifest, settings) = (bundle.detector()?, settings.into());
        let model = Self { shared: Arc::new(Shared { bundle, manifest, settings, plans: Mutex::default() }) };
        model.check_outputs(FOCUS_PX, FOCUS_PX)?;
        Ok(model)
    }

    /// The verified bundle.
    pub fn bundle(&self) -> &Bundle {
        &self.shared.bundle
    }

    /// A network for one canvas size (multiples of 32), with memory of its own; for `bench`.
    ///
    /// # Errors
    /// [`NnError`] where the graph cannot be prepared.
    pub fn network(&self, width_px: usize, height_px: usize) -> Result<Session, NnError> {
        self.plan(width_px, height_px)?.network()
    }

    /// The plan for one canvas size (multiples of 32), made once.
    ///
    /// # Errors
    /// [`NnError`] where the graph cannot be prepared.
    pub fn plan(&self, width_px: usize, height_px: usize) -> Result<Plan, NnError> {
        let mut plans = self.shared.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, plan)) = plans.iter().find(|(size, _)| *size == (width_px, height_px)) {
            return Ok(plan.clone());
        }
        let shape: &[usize] = &[1, 3, height_px, width_px];
        let plan = Plan::prepare(self.shared.bundle.model(), &[shape], self.shared.settings)?;
        plans.push(((width_px, height_px), plan.clone()));
        Ok(plan)
    }

    /// Sees to it that the graph's outputs are those of the manifest, in the same order.
    fn check_outputs(&self, width_px: usize, height_px: usize) -> Result<(), DetectorError> {
        let network = self.network(width_px, height_px)?;
        let listed = &self.shared.bundle.manifest().outputs;
        for (places, stride) in self.shared.manifest.outputs.iter().zip(DetectorManifest::STRIDES) {
            let cells = (width_px / stride) * (height_px / stride);
            for (place, values) in places.iter().zip([1, 1, 4, 10]) {
                let expected = vec![1, cells, values];
                let found = network.outputs().get(*place);
                if found.is_none_or(|o| o.name != listed[*place].name || o.shape != expected) {
                    let fault = BundleFault::Shape {
                        tensor: listed[*place].name.clone(),
                        expected,
                        found: found.map(|o| o.shape.clone()).unwrap_or_default(),
                    };
                    return Err(self.shared.bundle.refuse(fault).into());
                }
            }
        }
        Ok(())
    }
}

/// Finds faces; one a thread.
#[derive(Debug)]
pub struct Detector {
    options: DetectOptions,
    looker: Looker,
    found: Vec<Candidate>,
    live: LiveState,
    views: Vec<View>,
}

/// Draws, runs, decodes.
#[derive(Debug)]
struct Looker {
    model: DetectorModel,
    networks: Vec<((usize, usize), Session)>,
    painter: Painter,
    canvas: Vec<f32>,
    outputs: Vec<Vec<f32>>,
    min_score: f32,
}

#[derive(Clone, Copy, Debug)]
struct Candidate {
    face: Face,
    kept: bool,
}

/// What the live profile remembers from frame to frame.
#[derive(Debug, Default)]
struct LiveState {
    size_px: (u32, u32),
    coarse: Option<View>,
    grids: Vec<Grid>,
    known: Vec<Known>,
    frames: u64,
    scans: usize,
}

#[derive(Debug)]
struct Grid {
    tiles: Vec<View>,
    next: usize,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    rect: Rect,
    misses: u32,
    waited: u32,
    looked: bool,
}

impl Detector {
    /// A detector with memory of its own over a shared model.
    pub fn new(model: &DetectorModel, options: DetectOptions) -> Self {
        let min_score = options.min_score.clamp(0.01, 0.99);
        Self {
            options,
            looker: Looker {
                model: model.clone(),
                networks: Vec::new(),
                painter: Painter::default(),
                canvas: Vec::new(),
                outputs: Vec::new(),
                min_score,
            },
            found: Vec::new(),
            live: LiveState::default(),
            views: Vec::new(),
        }
    }

    /// Prepares every network that pictures of this size will need, so that the first frame does not wait for it.
    ///
    /// # Errors
    /// [`DetectError::Network`] where one cannot be prepared.
    pub fn warm_up(&mut self, width_px: u32, height_px: u32) -> Result<(), DetectError> {
        if width_px == 0 || height_px == 0 {
            return Ok(());
        }
        match self.options.profile {
            Profile::Live => {
                self.looker.prepare(FOCUS_PX, FOCUS_PX)?;
                let (width, height) = live_canvas(width_px as f32, height_px as f32).0;
                self.looker.prepare(width, height)?;
            }
            Profile::Still => {
                still_views(width_px as f32, height_px as f32, self.options.min_face_px, &mut self.views);
                for view in &self.views {
                    self.looker.prepare(view.width_px, view.height_px)?;
                }
            }
        }
        Ok(())
    }

    /// The canvas at which the live profile looks at whole pictures of this size: width and height, multiples of 32.
    pub fn live_canvas_px(&self, width_px: u32, height_px: u32) -> (usize, usize) {
        live_canvas(width_px as f32, height_px as f32).0
    }

    /// Finds the faces of `picture` into `out`, largest first. A picture without pixels has none.
    ///
    /// # Errors
    /// [`DetectError`]; `out` is then empty and the next picture is looked at as if nothing had happened.
    pub fn detect(&mut self, picture: &RgbImage, out: &mut Vec<Face>) -> Result<(), DetectError> {
        out.clear();
        let (width_px, height_px) = (picture.width_px, picture.height_px);
        if picture.data.len() != 3 * width_px as usize * height_px as usize {
            return Err(DetectError::Picture { width_px, height_px, bytes: picture.data.len() });
        }
        if picture.data.is_empty() {
            return Ok(());
        }
        self.found.clear();
        match self.options.profile {
            Profile::Still => {
                still_views(width_px as f32, height_px as f32, self.options.min_face_px, &mut self.views);
            }
            Profile::Live => self.live.plan(width_px, height_px, self.options.min_face_px, &mut self.views),
        }
        for view in &self.views {
            self.looker.look(picture, view, &mut self.found)?;
        }
        suppress(&mut self.found, self.looker.model.shared.manifest.detection.nms_iou);
        out.extend(self.found.iter().filter(|c| c.kept).map(|c| c.face));
        out.sort_unstable_by(|a, b| area(&b.rect).total_cmp(&area(&a.rect)).then(a.rect.x.total_cmp(&b.rect.x)));
        out.truncate(self.options.max_faces);
        if self.options.profile == Profile::Live {
            self.live.remember(out);
        }
        Ok(())
    }
}

impl Looker {
    fn prepare(&mut self, width_px: usize, height_px: usize) -> Result<usize, NnError> {
        let size = (width_px, height_px);
        if let Some(at) = self.networks.iter().position(|(s, _)| *s == size) {
            return Ok(at);
        }
        self.networks.push((size, self.model.network(width_px, height_px)?));
        Ok(self.networks.len() - 1)
    }

    fn look(&mut self, picture: &RgbImage, view: &View, found: &mut Vec<Candidate>) -> Result<(), NnError> {
        let at = self.prepare(view.width_px, view.height_px)?;
        self.painter.draw(picture, view, &mut self.canvas);
        self.networks[at].1.run(&[&self.canvas], &mut self.outputs)?;
        let first = found.len();
        for (places, stride) in self.model.shared.manifest.outputs.iter().zip(DetectorManifest::STRIDES) {
            let [cls, obj, boxes, points] = places.map(|place| self.outputs[place].as_slice());
            decode(view, stride, self.min_score, [cls, obj, boxes, points], found);
        }
        let (width, height) = (picture.width_px as f32, picture.height_px as f32);
        let mut i = first;
        while i < found.len() {
            if cut_by(view, width, height, &found[i].face.rect) {
                found.swap_remove(i);
            } else {
                i += 1;
            }
        }
        Ok(())
    }
}

/// YuNet's output of one level to faces in pixels of the picture.
fn decode(view: &View, stride: usize, min_score: f32, outputs: [&[f32]; 4], found: &mut Vec<Candidate>) {
    let [cls, obj, boxes, points] = outputs;
    let columns = view.width_px / stride;
    let step = stride as f32;
    for (i, (cls, obj)) in cls.iter().zip(obj).enumerate() {
        let squared = cls.clamp(0.0, 1.0) * obj.clamp(0.0, 1.0);
        if squared.is_nan() || squared < min_score * min_score {
            continue;
        }
        let origin = Point { x: (i % columns) as f32 * step, y: (i / columns) as f32 * step };
        let to_picture = |x: f32, y: f32| Point {
            x: view.x + (origin.x + x * step) / view.scale,
            y: view.y + (origin.y + y * step) / view.scale,
        };
        let b = &boxes[4 * i..4 * i + 4];
        let centre = to_picture(b[0], b[1]);
        let size = |log: f32| log.exp() * step / view.scale;
        let (width, height) = (size(b[2]), size(b[3]));
        let rect = Rect { x: centre.x - width / 2.0, y: centre.y - height / 2.0, width, height };
        let k = &points[10 * i..10 * i + 10];
        let landmarks: Landmarks = std::array::from_fn(|p| to_picture(k[2 * p], k[2 * p + 1]));
        let face = Face { rect, landmarks, score: squared.sqrt() };
        if is_sane(&face) {
            found.push(Candidate { face, kept: false });
        }
    }
}

/// Whether the numbers are numbers and the landmarks lie in the box or hardly outside it. Of 984 real faces at three
/// scales none had a landmark further out than 5 % of a side; what texture is taken for a face often has.
fn is_sane(face: &Face) -> bool {
    const OUTSIDE: f32 = 0.15;
    let r = &face.rect;
    let numbers = [r.x, r.y, r.width, r.height];
    let within = |v: f32, from: f32, size: f32| v >= from - OUTSIDE * size && v <= from + (1.0 + OUTSIDE) * size;
    numbers.iter().all(|v| v.is_finite() && v.abs() < 1e6)
        && r.width > 0.0
        && r.height > 0.0
        && face.landmarks.iter().all(|p| within(p.x, r.x, r.width) && within(p.y, r.y, r.height))
}

/// Whether a view's edge that is not the picture's cuts the face: another view shows it whole.
fn cut_by(view: &View, width: f32, height: f32, face: &Rect) -> bool {
    let region = view.region();
    let slack = 0.1 * face.width.max(face.height);
    (region.x > 0.5 && face.x < region.x - slack)
        || (region.y > 0.5 && face.y < region.y - slack)
        || (region.x + region.width < width - 0.5 && face.x + face.width > region.x + region.width + slack)
        || (region.y + region.height < height - 0.5 && face.y + face.height > region.y + region.height + slack)
}

/// Greedy non-maximum suppression: marks the faces that stand.
fn suppress(found: &mut [Candidate], nms_iou: f32) {
    found.sort_unstable_by(|a, b| {
        let (a, b) = (&a.face, &b.face);
        b.score.total_cmp(&a.score).then(a.rect.x.total_cmp(&b.rect.x)).then(a.rect.y.total_cmp(&b.rect.y))
    });
    for i in 0..found.len() {
        let rect = found[i].face.rect;
        found[i].kept = !found[..i].iter().any(|c| c.kept && same_face(&c.face.rect, &rect, nms_iou));
    }
}

fn same_face(a: &Rect, b: &Rect, nms_iou: f32) -> bool {
    let shared = intersection(a, b);
    let (area_a, area_b) = (area(a), area(b));
    shared > nms_iou * (area_a + area_b - shared) || shared > SAME_FACE_INSIDE * area_a.min(area_b)
}

pub(crate) fn area(r: &Rect) -> f32 {
    r.width * r.height
}

pub(crate) fn intersection(a: &Rect, b: &Rect) -> f32 {
    let width = (a.x + a.width).min(b.x + b.width) - a.x.max(b.x);
    let height = (a.y + a.height).min(b.y + b.height) - a.y.max(b.y);
    width.max(0.0) * height.max(0.0)
}

/// Every view of the still profile for a picture of this size.
fn still_views(width: f32, height: f32, min_face_px: u32, views: &mut Vec<View>) {
    views.clear();
    let longest = width.max(height);
    let wanted = (SURE_PX / min_face_px.max(1) as f32).max(STILL_CANVASES[0].0 as f32 / longest);
    let mut scale = wanted.min(4.0).min(STILL_LONGEST_PX / longest);
    loop {
        still_level(width, height, scale, views);
        if longest * scale <= STILL_CANVASES[1].0 as f32 {
            return;
        }
        scale = (scale * STILL_LEVEL_RATIO).max(STILL_CANVASES[0].0 as f32 / longest);
    }
}

fn still_level(width: f32, height: f32, scale: f32, views: &mut Vec<View>) {
    let (level_width, level_height) = (width * scale, height * scale);
    let fits = |(w, h): &&(usize, usize)| level_width <= *w as f32 + 0.5 && level_height <= *h as f32 + 0.5;
    if let Some((width_px, height_px)) = STILL_CANVASES.iter().find(fits).copied() {
        views.push(View { x: 0.0, y: 0.0, scale, width_px, height_px });
        return;
    }
    let (width_px, height_px) = STILL_TILE;
    let count = |level: f32, tile: usize| {
        let stride = tile as f32 - STILL_TILE_OVERLAP_PX;
        ((level - STILL_TILE_OVERLAP_PX) / stride).ceil().max(1.0) as usize
    };
    let counts = (count(level_width, width_px), count(level_height, height_px));
    spread(width, height, scale, (width_px, height_px), counts, views);
}

/// `counts` tiles along each side, evenly spread over the picture.
fn spread(
    width: f32,
    height: f32,
    scale: f32,
    (width_px, height_px): (usize, usize),
    counts: (usize, usize),
    views: &mut Vec<View>,
) {
    let place = |i: usize, count: usize, size: f32, tile: usize| {
        let room = (size - tile as f32 / scale).max(0.0);
        if count > 1 { room * i as f32 / (count - 1) as f32 } else { 0.0 }
    };
    for row in 0..counts.1 {
        for column in 0..counts.0 {
            let (x, y) = (place(column, counts.0, width, width_px), place(row, counts.1, height, height_px));
            views.push(View { x, y, scale, width_px, height_px });
        }
    }
}

/// The live canvas that shows a picture of this shape largest, and at which scale.
fn live_canvas(width: f32, height: f32) -> ((usize, usize), f32) {
    let scale = |(w, h): (usize, usize)| (w as f32 / width).min(h as f32 / height);
    let mut best = LIVE_CANVASES[0];
    for canvas in LIVE_CANVASES {
        if scale(canvas) > scale(best) {
            best = canvas;
        }
    }
    (best, scale(best))
}

impl LiveState {
    /// What to look at in this frame.
    fn plan(&mut self, width_px: u32, height_px: u32, min_face_px: u32, views: &mut Vec<View>) {
        if self.size_px != (width_px, height_px) {
            self.set_size(width_px, height_px, min_face_px);
        }
        views.clear();
        if self.known.is_empty() || self.frames.is_multiple_of(2) {
            views.extend(self.next_scan());
        }
        self.frames += 1;
        self.plan_focus(width_px as f32, height_px as f32, views);
    }

    fn set_size(&mut self, width_px: u32, height_px: u32, min_face_px: u32) {
        let (width, height) = (width_px as f32, height_px as f32);
        let (canvas, scale) = live_canvas(width, height);
        let scale = scale.min(4.0);
        *self = Self { size_px: (width_px, height_px), ..Self::default() };
        self.coarse = Some(View { x: 0.0, y: 0.0, scale, width_px: canvas.0, height_px: canvas.1 });
        let wanted = (SURE_PX / min_face_px.max(1) as f32).min(2.0);
        if scale >= wanted {
            return;
        }
        for tiles in LIVE_GRIDS {
            let reach = |canvas: usize| tiles as f32 * (canvas as f32 - LIVE_TILE_OVERLAP_PX) + LIVE_TILE_OVERLAP_PX;
            let scale = (reach(canvas.0) / width).min(reach(canvas.1) / height);
            let mut grid = Grid { tiles: Vec::new(), next: 0 };
            spread(width, height, scale.min(wanted), canvas, (tiles, tiles), &mut grid.tiles);
            self.grids.push(grid);
            if scale >= wanted {
                break;
            }
        }
    }

    /// By turns the whole picture and one tile, of each grid in turn.
    fn next_scan(&mut self) -> Option<View> {
        let turn = self.scans;
        self.scans = self.scans.wrapping_add(1);
        if turn.is_multiple_of(2) || self.grids.is_empty() {
            return self.coarse;
        }
        let which = (turn / 2) % self.grids.len();
        let grid = &mut self.grids[which];
        let tile = grid.tiles.get(grid.next).copied();
        grid.next = (grid.next + 1) % grid.tiles.len().max(1);
        tile
    }

    /// Looks around the known faces that no view shows well yet, those that waited longest first.
    fn plan_focus(&mut self, width: f32, height: f32, views: &mut Vec<View>) {
        for known in &mut self.known {
            known.looked = false;
        }
        let scan_views = views.len();
        self.known.sort_by_key(|k| std::cmp::Reverse(k.waited));
        for known in &mut self.known {
            known.looked = views.iter().any(|view| shows_well(view, width, height, &known.rect));
            if !known.looked && views.len() < scan_views + FOCUS_LOOKS {
                views.push(focus(width, height, known));
                known.looked = true;
            }
            known.waited = if known.looked { 0 } else { known.waited + 1 };
        }
    }

    /// Takes over the faces just found; keeps for a while those that were not.
    fn remember(&mut self, faces: &[Face]) {
        self.known.retain_mut(|known| {
            if faces.iter().any(|face| same_place(&known.rect, &face.rect)) {
                return false;
            }
            known.misses += u32::from(known.looked);
            known.misses <= FOCUS_PATIENCE
        });
        let room = MOST_KNOWN.saturating_sub(self.known.len());
        let found = faces.iter().take(room);
        self.known.extend(found.map(|face| Known { rect: face.rect, misses: 0, waited: 0, looked: false }));
    }
}

/// Whether a face lies in the view as a whole and large enough to be found surely.
fn shows_well(view: &View, width: f32, height: f32, face: &Rect) -> bool {
    let longer = face.width.max(face.height);
    let largest = 0.8 * view.width_px.min(view.height_px) as f32;
    if !(1.75 * SURE_PX..=largest).contains(&(longer * view.scale)) {
        return false;
    }
    let region = view.region();
    let margin = 0.3 * longer;
    let (right, bottom) = (region.x + region.width, region.y + region.height);
    (region.x <= 0.5 || face.x - margin >= region.x)
        && (region.y <= 0.5 || face.y - margin >= region.y)
        && (right >= width - 0.5 || face.x + face.width + margin <= right)
        && (bottom >= height - 0.5 || face.y + face.height + margin <= bottom)
}

/// A small canvas around a known face; wider the longer it has been missed.
fn focus(width: f32, height: f32, known: &Known) -> View {
    let face = &known.rect;
    let margin = FOCUS_MARGIN * (1.0 + 0.15 * known.misses as f32);
    let side = (margin * face.width.max(face.height)).min(width.max(height)).max(1.0);
    let scale = (FOCUS_PX as f32 / side).min(FOCUS_MAX_SCALE);
    let side = FOCUS_PX as f32 / scale;
    let place = |centre: f32, size: f32| (centre - side / 2.0).min(size - side).max(0.0);
    let x = place(face.x + face.width / 2.0, width);
    let y = place(face.y + face.height / 2.0, height);
    View { x, y, scale, width_px: FOCUS_PX, height_px: FOCUS_PX }
}

fn same_place(a: &Rect, b: &Rect) -> bool {
    let size = 0.5 * (a.width.max(a.height) + b.width.max(b.height));
    let dx = (a.x + a.width / 2.0) - (b.x + b.width / 2.0);
    let dy = (a.y + a.height / 2.0) - (b.y + b.height / 2.0);
    dx.hypot(dy) < 0.6 * size
}

#[cfg(test)]
mod tests;
