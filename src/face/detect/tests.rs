use super::*;
use crate::models::Task;

fn model() -> DetectorModel {
    static MODEL: std::sync::OnceLock<DetectorModel> = std::sync::OnceLock::new();
    let make = || DetectorModel::new(Bundle::load(Task::Detector, None).unwrap(), Settings::default()).unwrap();
    MODEL.get_or_init(make).clone()
}

fn still() -> Detector {
    Detector::new(&model(), DetectOptions::still(&model()))
}

fn live(min_face_px: u32) -> Detector {
    let options = DetectOptions { profile: Profile::Live, min_face_px, min_score: 0.5, max_faces: 16 };
    Detector::new(&model(), options)
}

fn fixture(name: &str) -> RgbImage {
    let path = format!("{}/tests/data/faces/{name}", env!("CARGO_MANIFEST_DIR"));
    let picture = image::open(path).unwrap().to_rgb8();
    RgbImage { width_px: picture.width(), height_px: picture.height(), data: picture.into_raw() }
}

/// What the float network finds in the fixtures.
fn reference() -> Vec<(String, Rect, Landmarks)> {
    let text = include_str!("../../../tests/data/faces/reference.json");
    let entries: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
    let number = |v: &serde_json::Value| v.as_f64().unwrap() as f32;
    let entry = |e: &serde_json::Value| {
        let b = &e["box"];
        let rect = Rect { x: number(&b[0]), y: number(&b[1]), width: number(&b[2]), height: number(&b[3]) };
        let points = std::array::from_fn(|i| {
            let p = &e["landmarks"][i];
            Point { x: number(&p[0]), y: number(&p[1]) }
        });
        (e["file"].as_str().unwrap().to_owned(), rect, points)
    };
    entries.iter().map(entry).collect()
}

fn iou(a: &Rect, b: &Rect) -> f32 {
    let shared = intersection(a, b);
    shared / (area(a) + area(b) - shared)
}

/// `picture` shrunk by `factor`, through the detector's own (tested) painter.
fn shrunk(picture: &RgbImage, factor: f32) -> RgbImage {
    let scaled = |size: u32| (size as f32 * factor).round() as usize;
    let (width_px, height_px) = (scaled(picture.width_px), scaled(picture.height_px));
    let mut canvas = Vec::new();
    let view = View { x: 0.0, y: 0.0, scale: factor, width_px, height_px };
    Painter::default().draw(picture, &view, &mut canvas);
    let plane = width_px * height_px;
    let data = (0..plane).flat_map(|i| [2, 1, 0].map(|c| canvas[c * plane + i].round() as u8)).collect();
    RgbImage { width_px: width_px as u32, height_px: height_px as u32, data }
}

fn plain(width: u32, height: u32) -> RgbImage {
    let mut picture = RgbImage::default();
    picture.resize(width, height);
    for (i, pixel) in picture.data.chunks_exact_mut(3).enumerate() {
        let (x, y) = (i as u32 % width, i as u32 / width);
        pixel.copy_from_slice(&[(90 + x / 16 % 40) as u8, (100 + y / 16 % 30) as u8, 110]);
    }
    picture
}

fn paste(into: &mut RgbImage, picture: &RgbImage, x: u32, y: u32) {
    for row in 0..picture.height_px {
        let from = (3 * row * picture.width_px) as usize;
        let to = (3 * ((y + row) * into.width_px + x)) as usize;
        let bytes = 3 * picture.width_px as usize;
        into.data[to..to + bytes].copy_from_slice(&picture.data[from..from + bytes]);
    }
}

/// A plain picture with a face of this height at this place (its top left corner), and the face's box.
fn with_face(size: (u32, u32), face_px: f32, at: (u32, u32)) -> (RgbImage, Rect) {
    let (name, rect, _) = reference().swap_remove(2);
    let factor = face_px / rect.height;
    let small = shrunk(&fixture(&name), factor);
    let mut scene = plain(size.0, size.1);
    paste(&mut scene, &small, at.0, at.1);
    let place = |origin: u32, v: f32| origin as f32 + v * factor;
    let rect = Rect {
        x: place(at.0, rect.x),
        y: place(at.1, rect.y),
        width: rect.width * factor,
        height: rect.height * factor,
    };
    (scene, rect)
}

#[test]
fn the_int8_detector_agrees_with_the_float_one_on_the_fixtures() {
    let mut detector = still();
    let mut faces = Vec::new();
    for (name, rect, landmarks) in reference() {
        detector.detect(&fixture(&name), &mut faces).unwrap();
        assert_eq!(faces.len(), 1, "{name}");
        assert!(iou(&faces[0].rect, &rect) > 0.75, "{name}: {:?} against {rect:?}", faces[0].rect);
        for (found, wanted) in faces[0].landmarks.iter().zip(&landmarks) {
            let off = (found.x - wanted.x).hypot(found.y - wanted.y);
            assert!(off < 0.06 * rect.height, "{name}: {off} px");
        }
    }
}

#[test]
fn a_face_of_24_px_in_a_640x480_picture_is_found_wherever_it_is() {
    let mut detector = still();
    let mut faces = Vec::new();
    for at in [(10, 10), (300, 220), (311, 5), (590, 430)] {
        let (scene, rect) = with_face((640, 480), 24.0, at);
        detector.detect(&scene, &mut faces).unwrap();
        assert!(faces.iter().any(|f| iou(&f.rect, &rect) > 0.4), "at {at:?}: {faces:?}");
    }
}

#[test]
fn live_finds_a_face_of_24_px_within_a_second_of_frames_and_then_keeps_it() {
    for at in [(10, 10), (300, 220), (590, 430)] {
        let (scene, rect) = with_face((640, 480), 24.0, at);
        let mut detector = live(24);
        let mut faces = Vec::new();
        let mut first = None;
        for frame in 0..60 {
            detector.detect(&scene, &mut faces).unwrap();
            let found = faces.iter().any(|f| iou(&f.rect, &rect) > 0.4);
            if first.is_none() && found {
                first = Some(frame);
            }
            assert!(first.is_none() || found, "lost in frame {frame}");
        }
        assert!(first.is_some_and(|frame| frame < 30), "at {at:?}: {first:?}");
    }
}

#[test]
fn live_finds_a_near_face_within_two_frames_and_in_every_frame_after() {
    let (scene, rect) = with_face((640, 480), 150.0, (200, 120));
    let mut detector = live(24);
    let mut faces = Vec::new();
    for frame in 0..12 {
        detector.detect(&scene, &mut faces).unwrap();
        let found = faces.len() == 1 && iou(&faces[0].rect, &rect) > 0.6;
        assert!(found || frame < 2, "frame {frame}: {faces:?}");
    }
}

#[test]
fn live_takes_no_more_looks_in_a_frame_than_its_bound() {
    let (scene, _) = with_face((1280, 720), 150.0, (500, 200));
    let mut detector = live(24);
    let mut faces = Vec::new();
    for _ in 0..40 {
        detector.detect(&scene, &mut faces).unwrap();
        assert!(detector.views.len() <= 1 + FOCUS_LOOKS);
        let cost: usize = detector.views.iter().map(|v| v.width_px * v.height_px).sum();
        assert!(cost <= 390 * 224 + FOCUS_LOOKS * FOCUS_PX * FOCUS_PX);
    }
}

#[test]
fn the_same_frames_give_the_same_faces() {
    let run = || {
        let mut detector = live(24);
        let mut faces = Vec::new();
        let mut all = Vec::new();
        for frame in 0..8 {
            let (scene, _) = with_face((640, 480), 60.0 + frame as f32, (100 + 9 * frame, 90));
            detector.detect(&scene, &mut faces).unwrap();
            all.extend_from_slice(&faces);
        }
        all
    };
    assert_eq!(run(), run());
}

#[test]
fn fifty_faces_are_found_as_fifty() {
    let (name, rect, _) = reference().swap_remove(2);
    let small = shrunk(&fixture(&name), 64.0 / rect.height);
    let mut scene = plain(1000, 500);
    for i in 0..50 {
        paste(&mut scene, &small, 5 + 98 * (i % 10), 8 + 98 * (i / 10));
    }
    let mut faces = Vec::new();
    still().detect(&scene, &mut faces).unwrap();
    let (mut cells, mut extra) = ([false; 50], Vec::new());
    for face in &faces {
        let centre = |origin: f32, size: f32| origin + size / 2.0;
        let column = (centre(face.rect.x, face.rect.width) - 5.0) / 98.0;
        let row = (centre(face.rect.y, face.rect.height) - 8.0) / 98.0;
        let cell = &mut cells[row as usize * 10 + column as usize];
        if *cell {
            extra.push(face);
        }
        *cell = true;
    }
    assert_eq!(cells, [true; 50]);
    assert!(extra.is_empty(), "{extra:?} of {faces:?}");
    let mut few = Detector::new(&model(), DetectOptions { max_faces: 7, ..DetectOptions::still(&model()) });
    few.detect(&scene, &mut faces).unwrap();
    assert_eq!(faces.len(), 7);
}

#[test]
fn pictures_of_any_shape_are_looked_at_and_hold_no_face_where_there_is_none() {
    let mut detector = still();
    let mut faces = Vec::new();
    for (width, height) in [(1, 1), (1, 3000), (3000, 1), (48, 48), (31, 200), (1300, 40), (0, 0), (0, 5)] {
        detector.detect(&plain(width, height), &mut faces).unwrap();
        assert_eq!(faces, [], "{width}x{height}");
    }
    for value in [0, 255] {
        let mut flat = RgbImage::default();
        flat.resize(320, 240);
        flat.data.fill(value);
        detector.detect(&flat, &mut faces).unwrap();
        assert_eq!(faces, []);
    }
}

#[test]
fn a_face_that_fills_a_small_picture_is_found() {
    let (name, rect, _) = reference().swap_remove(2);
    let tiny = shrunk(&fixture(&name), 40.0 / rect.height);
    let mut faces = Vec::new();
    still().detect(&tiny, &mut faces).unwrap();
    assert_eq!(faces.len(), 1);
}

#[test]
fn every_pixel_of_every_level_lies_in_a_view() {
    for (width, height) in [(640.0, 480.0), (1920.0, 1080.0), (4000.0, 3000.0), (12_000.0, 8000.0), (50.0, 900.0)] {
        let mut views = Vec::new();
        still_views(width, height, 24, &mut views);
        assert!(views.len() < 80, "{width}x{height}: {} views", views.len());
        let mut scales: Vec<f32> = views.iter().map(|v| v.scale).collect();
        scales.dedup();
        for scale in scales {
            for i in 0..400 {
                let (x, y) = ((i % 20) as f32 / 19.0 * (width - 1.0), (i / 20) as f32 / 19.0 * (height - 1.0));
                let covers = |v: &&View| {
                    let r = v.region();
                    v.scale == scale && x >= r.x - 0.5 && y >= r.y - 0.5 && x <= r.x + r.width && y <= r.y + r.height
                };
                assert!(views.iter().find(covers).is_some(), "{width}x{height} at {scale}: {x},{y}");
            }
        }
    }
}

#[test]
fn a_picture_with_too_few_bytes_is_an_error_and_the_next_one_is_fine() {
    let mut detector = live(24);
    let mut faces = Vec::new();
    let broken = RgbImage { width_px: 64, height_px: 64, data: vec![0; 100] };
    assert!(matches!(detector.detect(&broken, &mut faces), Err(DetectError::Picture { bytes: 100, .. })));
    detector.detect(&plain(64, 64), &mut faces).unwrap();
}

#[test]
fn outputs_that_are_no_numbers_are_no_faces() {
    let view = View { x: 0.0, y: 0.0, scale: 1.0, width_px: 32, height_px: 32 };
    let mut found = Vec::new();
    for bad in [f32::NAN, f32::INFINITY, -f32::INFINITY, 1e30] {
        let (cls, boxes, points) = ([bad; 16], [bad; 64], [bad; 160]);
        decode(&view, 8, 0.5, [&cls, &cls, &boxes, &points], &mut found);
        decode(&view, 8, 0.5, [&[0.9; 16], &[0.9; 16], &boxes, &points], &mut found);
    }
    assert!(found.iter().all(|c| is_sane(&c.face)));
    assert!(found.is_empty(), "{found:?}");
}
