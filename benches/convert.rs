//! Time to turn one 640x480 frame of each layout into RGB, and to scale it for the detector.

#![allow(missing_docs, reason = "criterion's macro makes a public function")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use visaged::frame::{CaptureTime, Converter, Frame, PixelFormat, RgbImage, Scaler};
use visaged::pool::Pool;

const WIDTH: u32 = 640;
const HEIGHT: u32 = 480;

/// A smooth picture with some texture, R G B.
fn picture() -> Vec<u8> {
    let pixel = |x: u32, y: u32| [(x * 255 / WIDTH) as u8, (y * 255 / HEIGHT) as u8, ((x ^ y) % 64 * 2) as u8];
    (0..HEIGHT).flat_map(|y| (0..WIDTH).flat_map(move |x| pixel(x, y))).collect()
}

fn jpeg(rgb: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut bytes, 85);
    // As cameras do.
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_1);
    encoder.encode(rgb, WIDTH as u16, HEIGHT as u16, jpeg_encoder::ColorType::Rgb).expect("a picture of a sane size");
    bytes
}

fn convert(criterion: &mut Criterion) {
    let rgb = picture();
    let mut group = criterion.benchmark_group("convert_640x480");
    for (name, format, stride_bytes, bytes) in [
        ("YUYV", PixelFormat::Yuyv, 2 * WIDTH, rgb[..2 * (WIDTH * HEIGHT) as usize].to_vec()),
        ("UYVY", PixelFormat::Uyvy, 2 * WIDTH, rgb[..2 * (WIDTH * HEIGHT) as usize].to_vec()),
        ("NV12", PixelFormat::Nv12, WIDTH, rgb[..3 * (WIDTH * HEIGHT) as usize / 2].to_vec()),
        ("GREY", PixelFormat::Grey, WIDTH, rgb[..(WIDTH * HEIGHT) as usize].to_vec()),
        ("RGB3", PixelFormat::Rgb3, 3 * WIDTH, rgb.clone()),
        ("BGR3", PixelFormat::Bgr3, 3 * WIDTH, rgb.clone()),
        ("MJPG", PixelFormat::Mjpg, 0, jpeg(&rgb)),
    ] {
        let mut data = Pool::<Vec<u8>>::new(1).take();
        data.extend_from_slice(&bytes);
        let (width_px, height_px, time) = (WIDTH, HEIGHT, CaptureTime::now());
        let frame = Frame { data, format, width_px, height_px, stride_bytes, seq: 0, time };
        let (mut converter, mut out) = (Converter::new(), RgbImage::default());
        group.bench_function(name, |bencher| {
            bencher.iter(|| converter.to_rgb(black_box(&frame), &mut out).expect("a whole frame"));
        });
    }
    group.finish();
}

fn scale(criterion: &mut Criterion) {
    let src = RgbImage { width_px: WIDTH, height_px: HEIGHT, data: picture() };
    let (mut scaler, mut dst) = (Scaler::new(), RgbImage::default());
    dst.resize(320, 240);
    criterion.bench_function("scale_640x480_to_320x240", |bencher| {
        bencher.iter(|| scaler.scale(black_box(&src), &mut dst));
    });
}

criterion_group!(benches, convert, scale);
criterion_main!(benches);
