use proptest::prelude::*;

use super::*;

struct Clock(CaptureTime);

impl Clock {
    fn new() -> Self {
        Self(CaptureTime::now())
    }
    fn at(&self, seconds: f32) -> CaptureTime {
        CaptureTime { monotonic: self.0.monotonic + Duration::from_secs_f32(seconds), ..self.0 }
    }
}

const LEAVE: Duration = Duration::from_millis(1000);

fn face(x: f32, y: f32, size: f32) -> Face {
    let rect = Rect { x: x - size / 2.0, y: y - size / 2.0, width: size, height: size };
    let at = |dx: f32, dy: f32| Point { x: x + dx * size, y: y + dy * size };
    let landmarks = [at(-0.2, -0.15), at(0.2, -0.15), at(0.0, 0.05), at(-0.17, 0.25), at(0.17, 0.25)];
    Face { rect, landmarks, score: 0.9 }
}

/// A small, repeatable jitter in [-1, 1].
fn jitter(n: usize) -> f32 {
    let hash = (n as u32).wrapping_mul(2_654_435_761) >> 16;
    hash as f32 / 32_768.0 - 1.0
}

/// Runs a scene: `scene(t)` gives (person, face) pairs; returns each person's ids in order of appearance.
fn follow(fps: f32, seconds: f32, scene: impl Fn(f32) -> Vec<(usize, Face)>) -> Vec<Vec<TrackId>> {
    let (clock, mut tracker) = (Clock::new(), Tracker::new(LEAVE));
    let (mut out, mut ended) = (Vec::new(), Vec::new());
    let mut ids: Vec<Vec<TrackId>> = Vec::new();
    for i in 0..(seconds * fps) as usize {
        let t = i as f32 / fps;
        let people = scene(t);
        let faces: Vec<Face> = people.iter().map(|(_, face)| *face).collect();
        tracker.update(clock.at(t), &faces, &mut out, &mut ended);
        for (person, face) in &people {
            let centre = centre_and_size(&face.rect).0;
            let shown = out.iter().find(|tracked| centre_and_size(&tracked.face.rect).0 == centre);
            ids.resize(ids.len().max(person + 1), Vec::new());
            let seen = &mut ids[*person];
            if let Some(tracked) = shown
                && seen.last() != Some(&tracked.id)
            {
                seen.push(tracked.id);
            }
        }
    }
    ids
}

#[test]
fn ids_stay_when_two_people_cross_at_any_speed_and_frame_rate() {
    for fps in [5.0, 10.0, 15.0, 30.0] {
        for speed in [80.0, 160.0, 320.0] {
            for drop in [0.0, 10.0, 30.0] {
                let seconds = 600.0 / speed;
                let ids = follow(fps, seconds, |t| {
                    let n = (t * fps).round() as usize;
                    let (a, b) = (20.0 + speed * t, 620.0 - speed * t);
                    let first = face(a + 1.5 * jitter(2 * n), 240.0 + 1.5 * jitter(3 * n + 1), 80.0);
                    let second = face(b + 1.5 * jitter(5 * n), 240.0 + drop + 1.5 * jitter(7 * n), 70.0);
                    // The nearer (larger) one hides the other while they overlap by more than half.
                    if (a - b).abs() < 40.0 { vec![(0, first)] } else { vec![(0, first), (1, second)] }
                });
                // At five frames a second and half a face a frame there is nothing to tell them apart by but motion.
                assert!(ids.iter().all(|seen| seen.len() == 1), "{fps} fps, {speed} px/s, {drop}: {ids:?}");
            }
        }
    }
}

#[test]
fn an_id_stays_over_an_occlusion_of_half_a_second() {
    for fps in [8.0, 15.0, 30.0] {
        for speed in [0.0, 60.0, 150.0] {
            let ids = follow(fps, 3.0, |t| {
                let hidden = (1.2..1.7).contains(&t);
                if hidden { vec![] } else { vec![(0, face(100.0 + speed * t, 200.0, 60.0))] }
            });
            assert_eq!(ids[0].len(), 1, "{fps} fps, {speed} px/s");
        }
    }
}

#[test]
fn fifty_faces_keep_fifty_ids() {
    let ids = follow(15.0, 3.0, |t| {
        let people = (0..50).map(|i| {
            let (column, row) = ((i % 10) as f32, (i / 10) as f32);
            let sway = 15.0 * (2.0 * t + i as f32).sin();
            (i, face(60.0 + 120.0 * column + sway, 60.0 + 130.0 * row, 50.0 + (i % 7) as f32))
        });
        people.filter(|(i, _)| !((t * 15.0) as usize + i).is_multiple_of(9)).collect()
    });
    let mut all: Vec<TrackId> = ids.iter().flatten().copied().collect();
    all.sort_unstable();
    assert!(ids.iter().all(|seen| seen.len() == 1));
    assert_eq!(all, (1..=50).map(TrackId).collect::<Vec<_>>());
}

#[test]
fn a_single_false_detection_is_never_announced() {
    let (clock, mut tracker) = (Clock::new(), Tracker::new(LEAVE));
    let (mut out, mut ended) = (Vec::new(), Vec::new());
    tracker.update(clock.at(0.0), &[face(100.0, 100.0, 40.0)], &mut out, &mut ended);
    for i in 1..60 {
        tracker.update(clock.at(i as f32 / 30.0), &[], &mut out, &mut ended);
        assert!(out.is_empty() && ended.is_empty());
    }
}

#[test]
fn a_track_ends_once_after_leave_after_and_whoever_comes_next_has_a_new_id() {
    let (clock, mut tracker) = (Clock::new(), Tracker::new(LEAVE));
    let (mut out, mut ended) = (Vec::new(), Vec::new());
    let mut ends = Vec::new();
    for i in 0..90 {
        let t = i as f32 / 30.0;
        let here = !(0.5..2.0).contains(&t);
        let faces: &[Face] = if here { &[face(100.0, 100.0, 40.0)] } else { &[] };
        tracker.update(clock.at(t), faces, &mut out, &mut ended);
        ends.extend(ended.iter().map(|id| (*id, t)));
    }
    assert_eq!(ends.len(), 1);
    assert_eq!(ends[0].0, TrackId(1));
    assert!((1.45..1.6).contains(&ends[0].1), "{ends:?}");
    assert_eq!(out[0].id, TrackId(2));
}

#[test]
fn a_face_missed_in_one_frame_is_shown_where_it_is_going() {
    let (clock, mut tracker) = (Clock::new(), Tracker::new(LEAVE));
    let (mut out, mut ended) = (Vec::new(), Vec::new());
    for i in 0..10 {
        let t = i as f32 / 30.0;
        tracker.update(clock.at(t), &[face(100.0 + 120.0 * t, 100.0, 60.0)], &mut out, &mut ended);
    }
    tracker.update(clock.at(10.0 / 30.0), &[], &mut out, &mut ended);
    let shown = centre_and_size(&out[0].face.rect).0;
    assert!((shown.x - 140.0).abs() < 1.0, "{shown:?}");
}

#[test]
fn landmarks_of_a_face_at_rest_jitter_less_and_follow_a_quick_move() {
    let mut filter = LandmarkFilter::default();
    let (mut raw, mut smooth) = (0.0_f32, 0.0_f32);
    let mut last_raw = 88.0;
    let mut last = filter.next(&face(100.0, 100.0, 60.0).landmarks, 60.0, None);
    for n in 0..200 {
        let measured = face(100.0 + 0.5 * jitter(n), 100.0 + 0.5 * jitter(n + 1000), 60.0).landmarks;
        let next = filter.next(&measured, 60.0, Some(1.0 / 30.0));
        raw += (measured[0].x - last_raw).abs();
        last_raw = measured[0].x;
        smooth += (next[0].x - last[0].x).abs();
        last = next;
    }
    assert!(smooth < 0.5 * raw, "{smooth} against {raw}");
    let mut lag = 0.0_f32;
    for n in 1..20 {
        // Two face sizes a second.
        let x = 100.0 + 120.0 * n as f32 / 30.0;
        let next = filter.next(&face(x, 100.0, 60.0).landmarks, 60.0, Some(1.0 / 30.0));
        lag = x - 12.0 - next[0].x;
    }
    assert!(lag < 4.0, "{lag} px behind");
}

#[test]
fn numbers_that_are_none_and_times_that_go_back_do_no_harm() {
    let (clock, mut tracker) = (Clock::new(), Tracker::new(LEAVE));
    let (mut out, mut ended) = (Vec::new(), Vec::new());
    let broken = face(f32::NAN, f32::INFINITY, 0.0);
    for t in [1.0, 0.5, 0.5, 0.0, 1.0, 1.0] {
        tracker.update(clock.at(t), &[broken, face(10.0, 10.0, 30.0)], &mut out, &mut ended);
    }
    assert_eq!(out.iter().filter(|tracked| tracked.face.rect.x.is_finite()).count(), 1);
}

/// Every way to pair, tried out.
fn least_cost(rows: usize, columns: usize, costs: &[f32], from: usize, used: &mut Vec<usize>) -> f32 {
    if from == rows || used.len() == columns {
        return if used.len() == rows.min(columns) { 0.0 } else { f32::INFINITY };
    }
    let mut best = if rows > columns { least_cost(rows, columns, costs, from + 1, used) } else { f32::INFINITY };
    for column in 0..columns {
        if !used.contains(&column) {
            used.push(column);
            best = best.min(costs[from * columns + column] + least_cost(rows, columns, costs, from + 1, used));
            used.pop();
        }
    }
    best
}

proptest! {
    #[test]
    fn the_assignment_is_the_cheapest_of_all(
        (rows, columns, costs) in (1_usize..5, 1_usize..5)
            .prop_flat_map(|(r, c)| (Just(r), Just(c), prop::collection::vec(0.0_f32..10.0, r * c))),
    ) {
        let mut assignment = Assignment::default();
        assignment.solve(rows, columns, &costs);
        let pairs: Vec<(usize, usize)> = (0..rows).filter_map(|r| Some((r, assignment.of_row(r)?))).collect();
        prop_assert_eq!(pairs.len(), rows.min(columns));
        let total: f32 = pairs.iter().map(|(r, c)| costs[r * columns + c]).sum();
        let best = least_cost(rows, columns, &costs, 0, &mut Vec::new());
        prop_assert!((total - best).abs() < 1e-3, "{} against {}", total, best);
    }

    #[test]
    fn ids_are_unique_never_used_again_and_end_once(
        frames in prop::collection::vec(
            (1_u64..400, prop::collection::vec((0.0_f32..640.0, 0.0_f32..480.0, 10.0_f32..200.0), 0..8)),
            1..60,
        ),
    ) {
        let (clock, mut tracker) = (Clock::new(), Tracker::new(Duration::from_millis(300)));
        let (mut out, mut ended) = (Vec::new(), Vec::new());
        let (mut gone, mut highest, mut millis) = (Vec::new(), 0, 0);
        for (step, faces) in frames {
            millis += step;
            let faces: Vec<Face> = faces.into_iter().map(|(x, y, size)| face(x, y, size)).collect();
            tracker.update(clock.at(millis as f32 / 1000.0), &faces, &mut out, &mut ended);
            for id in &ended {
                prop_assert!(!gone.contains(id));
                gone.push(*id);
            }
            let before = highest;
            for (i, tracked) in out.iter().enumerate() {
                prop_assert!(!gone.contains(&tracked.id));
                prop_assert!(i == 0 || out[i - 1].id < tracked.id);
                highest = highest.max(tracked.id.0);
            }
            prop_assert!(highest - before <= faces.len() as u64);
        }
        tracker.clear(&mut ended);
        prop_assert!(ended.iter().all(|id| !gone.contains(id)));
    }
}
