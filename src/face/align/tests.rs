use proptest::prelude::*;

use super::*;
use crate::face::Point;

fn picture(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> RgbImage {
    let mut picture = RgbImage::default();
    picture.resize(width, height);
    for (i, out) in picture.data.chunks_exact_mut(3).enumerate() {
        out.copy_from_slice(&pixel(i as u32 % width, i as u32 / width));
    }
    picture
}

fn moved(by: &Similarity) -> Landmarks {
    TEMPLATE.map(|p| by.apply(p))
}

#[test]
fn the_template_is_the_one_that_the_networks_were_trained_with() {
    let text = include_str!("../../../training/template.json");
    let file: serde_json::Value = serde_json::from_str(text).unwrap();
    assert_eq!(file["size"], ALIGNED_SIDE_PX);
    for (point, pair) in TEMPLATE.iter().zip(file["points"].as_array().unwrap()) {
        assert!((f64::from(point.x) - pair[0].as_f64().unwrap()).abs() < 1e-4);
        assert!((f64::from(point.y) - pair[1].as_f64().unwrap()).abs() < 1e-4);
    }
}

#[test]
fn a_face_that_lies_in_the_template_is_copied_pixel_by_pixel() {
    let source = picture(128, 128, |x, y| [(2 * x) as u8, (2 * y) as u8, (x ^ y) as u8]);
    let mut face = AlignedFace::default();
    let similarity = align(&source, &TEMPLATE, &mut face).unwrap();
    assert!((similarity.scale() - 1.0).abs() < 1e-5);
    for (a, b) in face.rgb.iter().zip(&source.data) {
        assert!(a.abs_diff(*b) <= 1);
    }
}

#[test]
fn a_face_turned_scaled_and_shifted_comes_out_upright() {
    // A smooth scene drawn in the template's frame, seen through a similarity.
    let scene = |p: Point| [128.0 + 60.0 * (p.x / 15.0).sin(), 128.0 + 60.0 * (p.y / 11.0).cos(), p.x + 20.0];
    for (scale, turn) in [(0.7_f32, 0.3_f32), (1.0, -0.5), (2.6, 0.1), (4.2, 1.2)] {
        let to_picture = Similarity { a: scale * turn.cos(), b: scale * turn.sin(), tx: 0.0, ty: 0.0 };
        let centred = to_picture.apply(Point { x: 64.0, y: 64.0 });
        let to_picture = Similarity { tx: 400.0 - centred.x, ty: 390.0 - centred.y, ..to_picture };
        let back = to_picture.inverse();
        let source = picture(800, 780, |x, y| {
            let p = back.apply(Point { x: x as f32 + 0.5, y: y as f32 + 0.5 });
            scene(p).map(|v| v.clamp(0.0, 255.0) as u8)
        });
        let mut face = AlignedFace::default();
        align(&source, &moved(&to_picture), &mut face).unwrap();
        let mut worst = 0.0_f32;
        for row in 8..120 {
            for column in 8..120 {
                let expected = scene(Point { x: column as f32 + 0.5, y: row as f32 + 0.5 });
                for (c, expected) in expected.iter().enumerate() {
                    worst = worst.max((f32::from(face.rgb[3 * (row * 128 + column) + c]) - expected).abs());
                }
            }
        }
        assert!(worst < 4.0, "scale {scale}, turn {turn}: off by {worst}");
    }
}

#[test]
fn a_fine_chequerboard_that_shrinks_becomes_grey_and_not_a_pattern() {
    let source = picture(1024, 1024, |x, y| [if (x + y) % 2 == 0 { 255 } else { 0 }; 3]);
    let landmarks = TEMPLATE.map(|p| Point { x: 7.3 * p.x + 20.0, y: 7.3 * p.y + 20.0 });
    let mut face = AlignedFace::default();
    align(&source, &landmarks, &mut face).unwrap();
    assert!(face.rgb.iter().all(|v| (96..=160).contains(v)));
}

#[test]
fn outside_the_picture_its_edge_is_repeated_and_the_quality_falls() {
    let source = picture(128, 128, |x, y| [(x * 31 % 256) as u8, (y * 57 % 256) as u8, 9]);
    let mut face = AlignedFace::default();
    align(&source, &TEMPLATE, &mut face).unwrap();
    let whole = face.quality;
    let shifted = TEMPLATE.map(|p| Point { x: p.x - 64.0, ..p });
    align(&source, &shifted, &mut face).unwrap();
    assert_eq!(face.rgb[..3], source.data[..3]);
    assert!(face.quality < 0.6 * whole, "{} against {whole}", face.quality);
}

#[test]
fn quality_falls_with_size_blur_and_profile() {
    let texture = |x: u32, y: u32| [((x * 73 + y * 151) % 200) as u8 + 20; 3];
    let quality = |source: &RgbImage, landmarks: &Landmarks| {
        let mut face = AlignedFace::default();
        align(source, landmarks, &mut face).unwrap();
        face.quality
    };
    let sharp = picture(256, 256, texture);
    let blurred = picture(256, 256, |x, y| [((x + y) / 3) as u8 + 20; 3]);
    let small = TEMPLATE.map(|p| Point { x: 0.2 * p.x + 50.0, y: 0.2 * p.y + 50.0 });
    let mut profile = TEMPLATE;
    profile[2].x += 24.0;
    let best = quality(&sharp, &TEMPLATE);
    assert!(best > 0.8, "{best}");
    assert!(quality(&blurred, &TEMPLATE) < 0.7 * best);
    assert!(quality(&sharp, &small) < 0.7 * best);
    assert!(quality(&sharp, &profile) < 0.5 * best);
}

#[test]
fn landmarks_that_span_no_face_are_refused() {
    let source = picture(10, 10, |_, _| [1; 3]);
    let mut face = AlignedFace::default();
    for landmarks in
        [[Point { x: 3.0, y: 3.0 }; 5], [Point { x: f32::NAN, y: 0.0 }; 5], [Point { x: 1e30, y: -1e30 }; 5]]
    {
        assert_eq!(align(&source, &landmarks, &mut face), Err(AlignError::Landmarks));
    }
    assert_eq!(align(&RgbImage::default(), &TEMPLATE, &mut face), Err(AlignError::Picture));
}

proptest! {
    #[test]
    fn the_inverse_leads_back(angle in -3.0_f32..3.0, scale in 0.05_f32..20.0, x in -500.0_f32..500.0, y in -500.0_f32..500.0) {
        let s = Similarity { a: scale * angle.cos(), b: scale * angle.sin(), tx: x, ty: y };
        let p = Point { x: 17.0, y: -5.0 };
        let q = s.inverse().apply(s.apply(p));
        prop_assert!((p.x - q.x).hypot(p.y - q.y) < 0.1);
        let fitted = Similarity::to_aligned(&moved(&s)).unwrap();
        for (found, wanted) in moved(&s).map(|p| fitted.apply(p)).iter().zip(&TEMPLATE) {
            prop_assert!((found.x - wanted.x).hypot(found.y - wanted.y) < 0.1);
        }
    }
}

proptest! {
    // Each case draws a million samples.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn any_landmarks_give_a_face_or_an_error(
        points in prop::array::uniform5((-1e4_f32..1e4, -1e4_f32..1e4)),
        (width, height) in (1_u32..40, 1_u32..40),
    ) {
        let source = picture(width, height, |x, y| [x as u8, y as u8, 200]);
        let mut face = AlignedFace::default();
        if align(&source, &points.map(|(x, y)| Point { x, y }), &mut face).is_ok() {
            prop_assert!((0.0..=1.0).contains(&face.quality));
        }
    }
}
