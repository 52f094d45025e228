use proptest::prelude::*;

use super::*;
use crate::face::align::align;
use crate::face::detect::{DetectOptions, Detector, DetectorModel};
use crate::models::Task;

fn model() -> DerlModel {
    static MODEL: std::sync::OnceLock<DerlModel> = std::sync::OnceLock::new();
    MODEL.get_or_init(|| DerlModel::new(Bundle::load(Task::Derl, None).unwrap(), Settings::default()).unwrap()).clone()
}

fn check(reading: &Reading) {
    let sum: f32 = reading.probabilities.0.iter().sum();
    assert!((sum - 1.0).abs() < 1e-4, "{reading:?}");
    assert!(reading.probabilities.0.iter().all(|p| (0.0..=1.0).contains(p)), "{reading:?}");
    assert!((0.0..=1.0).contains(&reading.neutrality), "{reading:?}");
    assert_eq!(reading.neutral.len(), PIXELS);
}

fn flat(width: u32, height: u32, value: u8) -> RgbImage {
    RgbImage { width_px: width, height_px: height, data: vec![value; 3 * (width * height) as usize] }
}

fn fixture(name: &str) -> RgbImage {
    let path = format!("{}/tests/data/faces/{name}", env!("CARGO_MANIFEST_DIR"));
    let picture = image::open(path).unwrap().to_rgb8();
    RgbImage { width_px: picture.width(), height_px: picture.height(), data: picture.into_raw() }
}

/// Through detection and alignment, as a frame goes.
fn read(name: &str) -> Reading {
    let picture = fixture(name);
    let detector = DetectorModel::new(Bundle::load(Task::Detector, None).unwrap(), Settings::default()).unwrap();
    let mut faces = Vec::new();
    Detector::new(&detector, DetectOptions::still(&detector)).detect(&picture, &mut faces).unwrap();
    let (mut aligned, mut reading) = (AlignedFace::default(), Reading::default());
    align(&picture, &faces[0].landmarks, &mut aligned).unwrap();
    assert!(aligned.quality > 0.5, "{name}: {}", aligned.quality);
    Derl::new(&model()).unwrap().read(&aligned, &mut reading).unwrap();
    check(&reading);
    reading
}

#[test]
fn a_smile_is_happier_and_less_neutral_than_the_same_person_at_rest() {
    let (rest, smile) = (read("london_004_neutral.jpg"), read("london_004_smile.jpg"));
    let happiness = |r: &Reading| r.probabilities.0[Emotion::Happiness as usize];
    assert_eq!(smile.probabilities.top(), Emotion::Happiness);
    assert!(happiness(&smile) > happiness(&rest) + 0.3, "{rest:?} {smile:?}");
    assert!(smile.neutrality < rest.neutrality, "{} {}", rest.neutrality, smile.neutrality);
}

#[test]
fn black_white_and_grey_pictures_have_probabilities_too() {
    let mut derl = Derl::new(&model()).unwrap();
    let mut reading = Reading::default();
    for value in [0, 1, 127, 254, 255] {
        derl.read_crop(&flat(128, 128, value), &mut reading).unwrap();
        check(&reading);
        derl.read_crop(&flat(48, 48, value), &mut reading).unwrap();
        check(&reading);
    }
}

#[test]
fn a_crop_of_128_px_is_read_exactly_as_the_aligned_face() {
    let mut picture = flat(128, 128, 0);
    for (i, value) in picture.data.iter_mut().enumerate() {
        *value = (i * 31 % 251) as u8;
    }
    let mut derl = Derl::new(&model()).unwrap();
    let (mut a, mut b) = (Reading::default(), Reading::default());
    derl.read_crop(&picture, &mut a).unwrap();
    derl.read(&AlignedFace { rgb: picture.data, quality: 1.0 }, &mut b).unwrap();
    assert_eq!((a.probabilities, a.neutrality, a.neutral), (b.probabilities, b.neutrality, b.neutral));
}

#[test]
fn luminance_is_bt_601_and_the_mean_of_two_by_two() {
    let mut picture = flat(128, 128, 0);
    for pixel in picture.data.chunks_exact_mut(3) {
        pixel.copy_from_slice(&[200, 100, 50]);
    }
    let mut grey = vec![0.0; PIXELS];
    halve(&picture.data, &mut grey).unwrap();
    // 0.299 * 200 + 0.587 * 100 + 0.114 * 50 = 124.2
    assert!(grey.iter().all(|v| *v == 124.0));
    picture.data[..3].fill(255);
    halve(&picture.data, &mut grey).unwrap();
    assert_eq!(grey[0], (3.0 * 124.0 + 255.0) / 4.0);
}

#[test]
fn a_48_px_crop_is_enlarged_bilinearly_between_pixel_centres() {
    let mut picture = flat(48, 48, 0);
    for (i, pixel) in picture.data.chunks_exact_mut(3).enumerate() {
        pixel.fill((4 * (i % 48)) as u8);
    }
    let mut derl = Derl::new(&model()).unwrap();
    derl.read_crop(&picture, &mut Reading::default()).unwrap();
    for column in 2..62 {
        let expected = 4.0 * ((column as f32 + 0.5) * 0.75 - 0.5);
        assert!((derl.luminance()[column] - expected).abs() <= 0.51, "{column}: {}", derl.luminance()[column]);
    }
}

#[test]
fn crops_without_pixels_or_with_too_few_bytes_are_refused() {
    let mut derl = Derl::new(&model()).unwrap();
    let mut reading = Reading::default();
    assert!(matches!(derl.read_crop(&flat(0, 0, 0), &mut reading), Err(ReadError::Crop { .. })));
    let short = RgbImage { width_px: 128, height_px: 128, data: vec![0; 10] };
    assert!(matches!(derl.read_crop(&short, &mut reading), Err(ReadError::Crop { bytes: 10, .. })));
    derl.read_crop(&flat(1, 1, 9), &mut reading).unwrap();
    check(&reading);
}

#[test]
fn logits_that_are_no_numbers_are_an_error_and_never_a_probability() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let logits = [0.0, bad, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        assert!(matches!(probabilities(&logits, 1.0, &Emotion::ALL), Err(ReadError::NotFinite(_))));
    }
}

#[test]
fn labels_in_another_order_move_the_probabilities_with_them() {
    let mut order = Emotion::ALL;
    order.swap(0, 6);
    let p = probabilities(&[9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], 1.0, &order).unwrap();
    assert_eq!(p.top(), Emotion::Fear);
}

proptest! {
    #[test]
    fn any_finite_logits_give_probabilities(logits in prop::array::uniform8(-1e30_f32..1e30), t in 0.01_f32..100.0) {
        let p = probabilities(&logits, t, &Emotion::ALL).unwrap().0;
        prop_assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-4);
        prop_assert!(p.iter().all(|v| (0.0..=1.0).contains(v)));
    }

    #[test]
    fn noise_is_read_without_a_number_that_is_none(seed in any::<u64>(), width in 1_u32..200, height in 1_u32..200) {
        let mut state = seed | 1;
        let mut picture = flat(width, height, 0);
        for value in &mut picture.data {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *value = (state >> 56) as u8;
        }
        let mut reading = Reading::default();
        Derl::new(&model()).unwrap().read_crop(&picture, &mut reading).unwrap();
        check(&reading);
    }
}
