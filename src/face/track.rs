//! Follows faces from frame to frame and gives each person's stay one name.
//!
//! A constant-velocity prediction in real time (not in frames), a gate, and the assignment of least total cost (Kuhn,
//! Munkres) between predictions and detections. Where two people cross, the prediction keeps them apart; a track that is
//! not seen coasts on its velocity until `leave_after`.
//!
//! Invariants: ids count up from 1 and are never used again, not even after [`Tracker::clear`]; a track is announced after
//! two sightings; every announced track ends exactly once; nothing is allocated once the largest number of faces was seen.

use std::time::{Duration, Instant};

use super::{Face, Landmarks, Point, Rect, TrackId, TrackedFace};
use crate::frame::CaptureTime;

/// A confirmed track that was not seen is still shown, where it is predicted to be, for this long.
const COAST: Duration = Duration::from_millis(120);
/// A track seen only once is forgotten after this long.
const TENTATIVE: Duration = Duration::from_millis(400);
/// A prediction stops moving after this long.
const PREDICT: Duration = Duration::from_millis(700);
/// Cost above which a prediction and a detection are not the same face.
const GATE: f32 = 1.0;
/// Stands for "cannot be": larger than any sum of real costs.
const IMPOSSIBLE: f32 = 1e6;

/// Gives faces their names.
#[derive(Debug)]
pub struct Tracker {
    leave_after: Duration,
    next_id: u64,
    tracks: Vec<Track>,
    assignment: Assignment,
    costs: Vec<f32>,
    taken: Vec<bool>,
}

#[derive(Clone, Debug)]
struct Track {
    /// `None` until the second sighting.
    id: Option<TrackId>,
    /// As last measured, centre and size.
    centre: Point,
    size: f32,
    /// Pixels a second.
    velocity: Point,
    last_seen: Instant,
    face: Face,
    smooth: LandmarkFilter,
}

impl Tracker {
    /// A tracker that ends a track once it was not seen for `leave_after`.
    pub fn new(leave_after: Duration) -> Self {
        Self::counting_from(TrackId(1), leave_after)
    }

    /// The same with ids from `first` on, for a tracker that takes the place of another.
    pub fn counting_from(first: TrackId, leave_after: Duration) -> Self {
        Self {
            leave_after,
            next_id: first.0,
            tracks: Vec::new(),
            assignment: Assignment::default(),
            costs: Vec::new(),
            taken: Vec::new(),
        }
    }

    /// The id that the next person will get.
    pub fn next_id(&self) -> TrackId {
        TrackId(self.next_id)
    }

    /// Takes another patience from now on.
    pub fn set_leave_after(&mut self, leave_after: Duration) {
        self.leave_after = leave_after;
    }

    /// Takes in the faces found in the frame captured at `now`. `out` becomes the people in view, by id; `ended` those
    /// whose stay is over. A `now` before the last one counts as the last one.
    pub fn update(&mut self, now: CaptureTime, faces: &[Face], out: &mut Vec<TrackedFace>, ended: &mut Vec<TrackId>) {
        out.clear();
        ended.clear();
        let now = now.monotonic;
        self.assign(now, faces);
        self.taken.clear();
        self.taken.resize(faces.len(), false);
        for (i, track) in self.tracks.iter_mut().enumerate() {
            let Some(j) = self.assignment.of_row(i) else { continue };
            if self.costs[i * faces.len() + j] < IMPOSSIBLE {
                track.see(now, &faces[j]);
                track.id.get_or_insert_with(|| {
                    self.next_id += 1;
                    TrackId(self.next_id - 1)
                });
                self.taken[j] = true;
            }
        }
        self.forget(now, ended);
        let new = faces.iter().zip(&self.taken).filter(|(_, taken)| !**taken);
        self.tracks.extend(new.map(|(face, _)| Track::new(now, face)));
        out.extend(self.tracks.iter().filter_map(|track| track.shown(now)));
        out.sort_unstable_by_key(|tracked| tracked.id);
    }

    /// Ends every track, as when the source of frames changes.
    pub fn clear(&mut self, ended: &mut Vec<TrackId>) {
        ended.clear();
        ended.extend(self.tracks.drain(..).filter_map(|track| track.id));
        ended.sort_unstable();
    }

    fn assign(&mut self, now: Instant, faces: &[Face]) {
        self.costs.clear();
        for track in &self.tracks {
            let unseen = now.saturating_duration_since(track.last_seen);
            let predicted = track.predict(unseen);
            self.costs.extend(faces.iter().map(|face| cost(track, predicted, unseen, face)));
        }
        self.assignment.solve(self.tracks.len(), faces.len(), &self.costs);
    }

    fn forget(&mut self, now: Instant, ended: &mut Vec<TrackId>) {
        let leave_after = self.leave_after;
        self.tracks.retain(|track| {
            let unseen = now.saturating_duration_since(track.last_seen);
            match track.id {
                Some(id) if unseen > leave_after => {
                    ended.push(id);
                    false
                }
                Some(_) => true,
                None => unseen <= TENTATIVE,
            }
        });
        ended.sort_unstable();
    }
}

/// How unlike the track's prediction a face is; [`IMPOSSIBLE`] beyond the gate.
fn cost(track: &Track, predicted: Point, unseen: Duration, face: &Face) -> f32 {
    let (centre, size) = centre_and_size(&face.rect);
    let mean_size = 0.5 * (size + track.size);
    let distance = (centre.x - predicted.x).hypot(centre.y - predicted.y) / mean_size;
    let growth = (size / track.size).ln().abs();
    // What was unseen for longer may have gone further and turned towards the camera or away from it.
    let seconds = unseen.as_secs_f32().min(1.0);
    let reach = 0.8 + 2.0 * seconds;
    let cost = distance / reach + growth / (1.0 + seconds);
    // Numbers that are no numbers fail this comparison too.
    if cost <= GATE { cost } else { IMPOSSIBLE }
}

fn centre_and_size(rect: &Rect) -> (Point, f32) {
    let centre = Point { x: rect.x + rect.width / 2.0, y: rect.y + rect.height / 2.0 };
    (centre, (rect.width * rect.height).max(1.0).sqrt())
}

impl Track {
    fn new(now: Instant, face: &Face) -> Self {
        let (centre, size) = centre_and_size(&face.rect);
        let mut smooth = LandmarkFilter::default();
        let face = Face { landmarks: smooth.next(&face.landmarks, size, None), ..*face };
        Self { id: None, centre, size, velocity: Point::default(), last_seen: now, face, smooth }
    }

    fn predict(&self, unseen: Duration) -> Point {
        let seconds = unseen.min(PREDICT).as_secs_f32();
        Point { x: self.centre.x + self.velocity.x * seconds, y: self.centre.y + self.velocity.y * seconds }
    }

    fn see(&mut self, now: Instant, face: &Face) {
        let unseen = now.saturating_duration_since(self.last_seen);
        let seconds = unseen.as_secs_f32();
        let (centre, size) = centre_and_size(&face.rect);
        if seconds > 1e-4 {
            let measured = Point { x: (centre.x - self.centre.x) / seconds, y: (centre.y - self.centre.y) / seconds };
            // The first pair of sightings is all that is known; later ones correct it with a time constant of 0.15 s.
            let gain = if self.id.is_none() { 0.7 } else { 1.0 - (-seconds / 0.15).exp() };
            self.velocity.x += gain * (measured.x - self.velocity.x);
            self.velocity.y += gain * (measured.y - self.velocity.y);
        }
        self.centre = centre;
        self.size += 0.5 * (size - self.size);
        self.last_seen = self.last_seen.max(now);
        self.face = Face { landmarks: self.smooth.next(&face.landmarks, size, Some(seconds)), ..*face };
    }

    fn shown(&self, now: Instant) -> Option<TrackedFace> {
        let unseen = now.saturating_duration_since(self.last_seen);
        let id = self.id.filter(|_| unseen <= COAST)?;
        let ahead = self.predict(unseen);
        let (dx, dy) = (ahead.x - self.centre.x, ahead.y - self.centre.y);
        let mut face = self.face;
        face.rect.x += dx;
        face.rect.y += dy;
        for point in &mut face.landmarks {
            point.x += dx;
            point.y += dy;
        }
        Some(TrackedFace { id, face })
    }
}

/// Smooths landmarks against jitter without lagging behind quick moves: the 1-euro filter (Casiez, Roussel, Vogel,
/// CHI 2012), with speeds measured in face sizes a second so that near and far faces are treated alike.
#[derive(Clone, Debug, Default)]
struct LandmarkFilter {
    points: Option<Landmarks>,
    /// Face sizes a second.
    velocity: Point,
}

impl LandmarkFilter {
    /// Cut-off for a face at rest.
    const CUTOFF_HZ: f32 = 2.0;
    /// What the cut-off gains for each face size a second.
    const CUTOFF_PER_SPEED: f32 = 10.0;
    const SPEED_CUTOFF_HZ: f32 = 2.0;
    /// After a longer gap the old points say nothing.
    const GAP_SECONDS: f32 = 0.3;

    fn next(&mut self, measured: &Landmarks, size: f32, seconds: Option<f32>) -> Landmarks {
        let (Some(last), Some(seconds)) = (self.points, seconds.filter(|s| *s < Self::GAP_SECONDS)) else {
            self.points = Some(*measured);
            self.velocity = Point::default();
            return *measured;
        };
        let seconds = seconds.max(1e-4);
        let moved = Point {
            x: (0..5).map(|i| measured[i].x - last[i].x).sum::<f32>() / 5.0,
            y: (0..5).map(|i| measured[i].y - last[i].y).sum::<f32>() / 5.0,
        };
        let taken = share(Self::SPEED_CUTOFF_HZ, seconds);
        self.velocity.x += taken * (moved.x / size / seconds - self.velocity.x);
        self.velocity.y += taken * (moved.y / size / seconds - self.velocity.y);
        let speed = self.velocity.x.hypot(self.velocity.y);
        let gain = share(Self::CUTOFF_HZ + Self::CUTOFF_PER_SPEED * speed, seconds);
        let points = std::array::from_fn(|i| Point {
            x: last[i].x + gain * (measured[i].x - last[i].x),
            y: last[i].y + gain * (measured[i].y - last[i].y),
        });
        self.points = Some(points);
        points
    }
}

/// The part of a step that a low-pass with this cut-off takes within `seconds`.
fn share(cutoff_hz: f32, seconds: f32) -> f32 {
    let time_constant = 1.0 / (std::f32::consts::TAU * cutoff_hz);
    seconds / (seconds + time_constant)
}

/// The assignment of least total cost between rows and columns (shortest augmenting paths after Kuhn and Munkres, with
/// potentials; cubic time).
#[derive(Debug, Default)]
struct Assignment {
    row_of_column: Vec<usize>,
    column_of_row: Vec<Option<usize>>,
    row_potential: Vec<f32>,
    column_potential: Vec<f32>,
    least: Vec<f32>,
    way: Vec<usize>,
    visited: Vec<bool>,
}

impl Assignment {
    fn of_row(&self, row: usize) -> Option<usize> {
        self.column_of_row.get(row).copied().flatten()
    }

    /// `costs` holds `rows * columns` finite values, row by row. As many pairs are made as the smaller side has.
    fn solve(&mut self, rows: usize, columns: usize, costs: &[f32]) {
        // The method wants at least as many columns as rows: it runs on the transposed matrix otherwise.
        let turned = rows > columns;
        let (n, m) = if turned { (columns, rows) } else { (rows, columns) };
        let cost = |i: usize, j: usize| if turned { costs[j * columns + i] } else { costs[i * columns + j] };
        reset(&mut self.row_of_column, m + 1, 0);
        reset(&mut self.row_potential, n + 1, 0.0);
        reset(&mut self.column_potential, m + 1, 0.0);
        reset(&mut self.column_of_row, rows, None);
        for row in 1..=n {
            self.augment(row, m, &cost);
        }
        for column in 1..=m {
            let row = self.row_of_column[column];
            if row > 0 {
                let (r, c) = if turned { (column - 1, row - 1) } else { (row - 1, column - 1) };
                self.column_of_row[r] = Some(c);
            }
        }
    }

    fn augment(&mut self, row: usize, m: usize, cost: &impl Fn(usize, usize) -> f32) {
        reset(&mut self.least, m + 1, f32::INFINITY);
        reset(&mut self.visited, m + 1, false);
        reset(&mut self.way, m + 1, 0);
        self.row_of_column[0] = row;
        let mut column = 0;
        while self.row_of_column[column] != 0 {
            self.visited[column] = true;
            let from = self.row_of_column[column];
            let (mut delta, mut next) = (f32::INFINITY, 0);
            for j in 1..=m {
                if self.visited[j] {
                    continue;
                }
                let reduced = cost(from - 1, j - 1) - self.row_potential[from] - self.column_potential[j];
                if reduced < self.least[j] {
                    self.least[j] = reduced;
                    self.way[j] = column;
                }
                if self.least[j] < delta {
                    (delta, next) = (self.least[j], j);
                }
            }
            for j in 0..=m {
                if self.visited[j] {
                    self.row_potential[self.row_of_column[j]] += delta;
                    self.column_potential[j] -= delta;
                } else {
                    self.least[j] -= delta;
                }
            }
            column = next;
        }
        while column != 0 {
            let previous = self.way[column];
            self.row_of_column[column] = self.row_of_column[previous];
            column = previous;
        }
    }
}

fn reset<T: Clone>(values: &mut Vec<T>, len: usize, value: T) {
    values.clear();
    values.resize(len, value);
}

#[cfg(test)]
mod tests;
