//! Pictures and clips as the world gives them: cut short, empty, huge, in unusual colours, or no pictures at all.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use image::codecs::gif::GifEncoder;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, RgbImage as Rgb8};
use proptest::prelude::*;
use tempfile::TempDir;
use visaged::capture::clip::{Clip, KEPT_BYTES};
use visaged::capture::{CaptureError, Source, Timing};
use visaged::config::Pace;
use visaged::frame::{Converter, PixelFormat, RgbImage};
use visaged::picture::avi::{AviError, AviReader};
use visaged::picture::{self, PictureError, PictureLimits};
use visaged::pool::Pool;

const LIMITS: PictureLimits = PictureLimits { max_pixels: 64_000_000, max_file_bytes: 256 << 20 };
const PATIENCE: Duration = Duration::from_secs(20);

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn path(&self) -> &Path {
        self.0.path()
    }
}

/// Four quarters of different colours: red, green above blue, white.
fn quarters(width: u32, height: u32) -> Rgb8 {
    Rgb8::from_fn(width, height, |x, y| {
        image::Rgb(match (2 * x < width, 2 * y < height) {
            (true, true) => [255, 0, 0],
            (false, true) => [0, 255, 0],
            (true, false) => [0, 0, 255],
            (false, false) => [255, 255, 255],
        })
    })
}

fn encoded(picture: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn jpeg(picture: &Rgb8) -> Vec<u8> {
    let mut bytes = Vec::new();
    let encoder = jpeg_encoder::Encoder::new(&mut bytes, 95);
    let (width, height) = (picture.width() as u16, picture.height() as u16);
    encoder.encode(picture, width, height, jpeg_encoder::ColorType::Rgb).unwrap();
    bytes
}

fn gif(frames: &[Rgb8], delay_ms: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 30);
    for frame in frames {
        let rgba = DynamicImage::from(frame.clone()).into_rgba8();
        let delay = image::Delay::from_numer_denom_ms(delay_ms, 1);
        encoder.encode_frame(image::Frame::from_parts(rgba, 0, 0, delay)).unwrap();
    }
    drop(encoder);
    bytes
}

fn chunk(id: &[u8; 4], contents: &[u8]) -> Vec<u8> {
    let mut chunk = [id.as_slice(), &(contents.len() as u32).to_le_bytes(), contents].concat();
    if chunk.len() % 2 == 1 {
        chunk.push(0);
    }
    chunk
}

/// An AVI with a sound stream before the video stream, as recorders write them.
fn avi(coding: &[u8; 4], width: u32, height: u32, fps: u32, frames: &[Vec<u8>]) -> Vec<u8> {
    let mut video = vec![0; 56];
    video[..4].copy_from_slice(b"vids");
    video[4..8].copy_from_slice(coding);
    video[20..24].copy_from_slice(&1u32.to_le_bytes());
    video[24..28].copy_from_slice(&fps.to_le_bytes());
    let mut bitmap = vec![0; 40];
    bitmap[4..8].copy_from_slice(&width.to_le_bytes());
    bitmap[8..12].copy_from_slice(&height.to_le_bytes());
    bitmap[16..20].copy_from_slice(coding);
    let mut sound = vec![0; 56];
    sound[..4].copy_from_slice(b"auds");
    let stream = |header: &[u8], format: &[u8]| {
        chunk(b"LIST", &[b"strl".as_slice(), &chunk(b"strh", header), &chunk(b"strf", format)].concat())
    };
    let streams = [stream(&sound, &[0; 18]), stream(&video, &bitmap)].concat();
    let headers = chunk(b"LIST", &[b"hdrl".as_slice(), &chunk(b"avih", &[0; 56]), &streams].concat());
    let mut movie = b"movi".to_vec();
    for frame in frames {
        movie.extend(chunk(b"00wb", &[1; 31]));
        movie.extend(chunk(b"01dc", frame));
    }
    let body = [b"AVI ".as_slice(), &headers, &chunk(b"JUNK", &[0; 7]), &chunk(b"LIST", &movie)].concat();
    chunk(b"RIFF", &body)
}

fn open(path: &Path) -> Result<RgbImage, PictureError> {
    picture::open(path, LIMITS)
}

fn pixel(picture: &RgbImage, x: u32, y: u32) -> [u8; 3] {
    let at = 3 * (y * picture.width_px + x) as usize;
    picture.data[at..at + 3].try_into().unwrap()
}

fn near(got: [u8; 3], wanted: [u8; 3], tolerance: u8) -> bool {
    got.iter().zip(wanted).all(|(a, b)| a.abs_diff(b) <= tolerance)
}

#[track_caller]
fn refused(path: &Path, with: &str) {
    let error = open(path).unwrap_err().to_string();
    assert!(error.contains(with), "{error:?} does not say {with:?}");
    assert!(error.starts_with(&path.display().to_string()), "{error:?} does not name the file");
    assert!(!error.contains('\n'), "{error:?} is more than a line");
}

#[test]
fn every_format_is_read_whatever_its_name() {
    let (folder, picture) = (Folder::new(), DynamicImage::from(quarters(40, 20)));
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif] {
        let read = open(&folder.file("picture.txt", encoded(&picture, format))).unwrap();
        assert_eq!((read.width_px, read.height_px), (40, 20));
        assert!(near(pixel(&read, 5, 5), [255, 0, 0], 12), "{format:?} {:?}", pixel(&read, 5, 5));
        assert!(near(pixel(&read, 35, 5), [0, 255, 0], 12), "{format:?} {:?}", pixel(&read, 35, 5));
        assert!(near(pixel(&read, 5, 15), [0, 0, 255], 12), "{format:?} {:?}", pixel(&read, 5, 15));
    }
}

#[test]
fn what_is_no_picture_is_told_by_what_it_looks_like() {
    let folder = Folder::new();
    refused(&folder.file("a.jpg", "To be or not to be\n"), "not a picture but text");
    refused(&folder.file("a.gif", "GIF is a format.\n"), "not a picture but text");
    refused(&folder.file("a.png", b"%PDF-1.7\n\0"), "not a picture but a PDF document");
    refused(&folder.file("b.png", [0, 1, 2, 3, 250]), "not a picture but data of an unknown kind");
    refused(&folder.file("c.png", ""), "the file is empty");
    refused(folder.path(), "not a file");
    refused(&folder.path().join("missing.png"), "No such file");
}

#[test]
fn pictures_cut_short_anywhere_are_errors_and_never_half_pictures() {
    let folder = Folder::new();
    let picture = DynamicImage::from(quarters(24, 18));
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Gif] {
        let whole = encoded(&picture, format);
        // The last bytes of a PNG, a WebP and a GIF carry no pixels.
        let end = whole.len() - if format == ImageFormat::Jpeg { 1 } else { 16.min(whole.len() / 4) };
        for length in (0..end).step_by(7) {
            let read = open(&folder.file("cut", &whole[..length]));
            assert!(read.is_err(), "{format:?} cut to {length} of {}", whole.len());
        }
    }
}

#[test]
fn a_picture_of_100_megapixels_is_refused_before_it_is_decoded() {
    let folder = Folder::new();
    let mut png = encoded(&DynamicImage::from(quarters(2, 2)), ImageFormat::Png);
    png[16..24].copy_from_slice(&[10_000u32.to_be_bytes(), 10_000u32.to_be_bytes()].concat());
    let checksum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&checksum.to_be_bytes());
    refused(&folder.file("huge.png", &png), "10000x10000 pixels are more than the 64000000 allowed");

    let mut jpeg = jpeg(&quarters(16, 16));
    let frame = jpeg.windows(2).position(|marker| marker == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0x27, 0x10, 0x27, 0x10]);
    refused(&folder.file("huge.jpg", &jpeg), "10000x10000 pixels are more than the 64000000 allowed");

    let long = folder.file("long.png", &png);
    let few = PictureLimits { max_file_bytes: 10, ..LIMITS };
    assert!(matches!(picture::open(&long, few), Err(PictureError::TooManyBytes { .. })));
}

/// As PNG chunks carry it (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[test]
fn a_gif_bomb_is_refused_and_so_is_a_bomb_in_one_of_its_frames() {
    let folder = Folder::new();
    let mut bomb = gif(&[quarters(4, 4)], 100);
    bomb[6..10].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    refused(&folder.file("bomb.gif", &bomb), "65535x65535 pixels are more than");
    let clip = Clip::open(&folder.file("bomb.gif", &bomb), true, Pace::Fast).unwrap_err();
    assert!(clip.to_string().contains("more than"), "{clip}");

    let mut wide = gif(&[quarters(4, 4)], 100);
    let descriptor = wide.windows(9).position(|d| d == [0x2c, 0, 0, 0, 0, 4, 0, 4, 0]).unwrap();
    wide[descriptor + 5..descriptor + 9].copy_from_slice(&[0xff, 0xff, 0xff, 0xff]);
    refused(&folder.file("wide.gif", wide), "65535x65535 pixels are more than");
}

#[test]
fn colours_of_print_depth_of_scanners_and_grey_are_read() {
    let folder = Folder::new();
    // Adobe's files hold CMYK inverted and say so in an APP14 segment: 100 % magenta.
    let cmyk: Vec<u8> = [0, 255, 0, 0].repeat(16 * 16);
    let mut bytes = Vec::new();
    jpeg_encoder::Encoder::new(&mut bytes, 95).encode(&cmyk, 16, 16, jpeg_encoder::ColorType::Cmyk).unwrap();
    let read = open(&folder.file("cmyk.jpg", bytes)).unwrap();
    assert!(near(pixel(&read, 8, 8), [255, 0, 255], 8), "{:?}", pixel(&read, 8, 8));

    let deep = image::ImageBuffer::from_pixel(9, 7, image::Rgb([65_535u16, 32_896, 0]));
    let read = open(&folder.file("deep.png", encoded(&DynamicImage::from(deep), ImageFormat::Png))).unwrap();
    assert_eq!(pixel(&read, 4, 4), [255, 128, 0]);

    let grey = image::GrayImage::from_pixel(9, 7, image::Luma([77]));
    let read = open(&folder.file("grey.png", encoded(&DynamicImage::from(grey), ImageFormat::Png))).unwrap();
    assert_eq!(pixel(&read, 8, 6), [77; 3]);
}

#[test]
fn transparency_is_laid_over_white() {
    let folder = Folder::new();
    let half = image::RgbaImage::from_fn(3, 1, |x, _| image::Rgba([0, 0, 0, [0, 128, 255][x as usize]]));
    let read = open(&folder.file("half.png", encoded(&DynamicImage::from(half), ImageFormat::Png))).unwrap();
    assert_eq!([pixel(&read, 0, 0), pixel(&read, 1, 0), pixel(&read, 2, 0)], [[255; 3], [127; 3], [0; 3]]);
}

/// An APP1 segment with the one tag "orientation".
fn exif(orientation: u8) -> Vec<u8> {
    let mut tiff = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    tiff.extend([orientation, 0, 0, 0, 0, 0, 0]);
    [[0xff, 0xe1].as_slice(), &(tiff.len() as u16 + 2).to_be_bytes(), &tiff].concat()
}

#[test]
fn pictures_that_a_phone_held_sideways_took_are_turned_upright() {
    let (folder, plain) = (Folder::new(), jpeg(&quarters(40, 20)));
    let turned = |orientation| {
        let bytes = [&plain[..2], &exif(orientation), &plain[2..]].concat();
        open(&folder.file("turned.jpg", bytes)).unwrap()
    };
    let corners = |p: &RgbImage| {
        let (right, bottom) = (p.width_px - 3, p.height_px - 3);
        [(2, 2), (right, 2), (2, bottom), (right, bottom)].map(|(x, y)| {
            let colours = [([255, 0, 0], 'r'), ([0, 255, 0], 'g'), ([0, 0, 255], 'b'), ([255; 3], 'w')];
            colours.iter().find(|(colour, _)| near(pixel(p, x, y), *colour, 40)).map_or('?', |(_, name)| *name)
        })
    };
    // EXIF 2.32, 4.6.4: which edge of the scene the first stored row and the first stored column are.
    for (orientation, size, wanted) in [
        (1, (40, 20), ['r', 'g', 'b', 'w']),
        (2, (40, 20), ['g', 'r', 'w', 'b']),
        (3, (40, 20), ['w', 'b', 'g', 'r']),
        (4, (40, 20), ['b', 'w', 'r', 'g']),
        (5, (20, 40), ['r', 'b', 'g', 'w']),
        (6, (20, 40), ['b', 'r', 'w', 'g']),
        (7, (20, 40), ['w', 'g', 'b', 'r']),
        (8, (20, 40), ['g', 'w', 'r', 'b']),
        (99, (40, 20), ['r', 'g', 'b', 'w']),
    ] {
        let read = turned(orientation);
        assert_eq!(((read.width_px, read.height_px), corners(&read)), (size, wanted), "orientation {orientation}");
    }
}

#[test]
fn frames_are_counted_in_gifs_and_avis_and_one_in_stills() {
    let folder = Folder::new();
    let pictures: Vec<Rgb8> = (0..5).map(|n| Rgb8::from_pixel(32, 24, image::Rgb([n * 50, 0, 0]))).collect();
    let jpegs: Vec<_> = pictures.iter().map(jpeg).collect();
    for (name, bytes, count) in [
        ("a.png", encoded(&DynamicImage::from(pictures[0].clone()), ImageFormat::Png), 1),
        ("a.gif", gif(&pictures, 40), 5),
        ("a.avi", avi(b"MJPG", 32, 24, 25, &jpegs), 5),
    ] {
        let frames: Vec<_> =
            picture::frames(&folder.file(name, bytes), LIMITS).unwrap().collect::<Result<_, _>>().unwrap();
        assert_eq!(frames.len(), count, "{name}");
        for (n, (index, picture)) in frames.iter().enumerate() {
            assert_eq!(*index, n as u64);
            assert!(pixel(picture, 3, 3)[0].abs_diff(n as u8 * 50) < 6, "{name} {n}");
        }
    }
}

#[test]
fn a_gif_cut_short_gives_its_good_frames_and_then_an_error() {
    let folder = Folder::new();
    let pictures: Vec<Rgb8> = (0..4).map(|_| quarters(64, 64)).collect();
    let whole = gif(&pictures, 40);
    let items: Vec<_> =
        picture::frames(&folder.file("cut.gif", &whole[..whole.len() * 2 / 3]), LIMITS).unwrap().collect();
    assert!(items.len() >= 2, "{}", items.len());
    assert!(items[..items.len() - 1].iter().all(Result::is_ok) && items[items.len() - 1].is_err());
}

#[test]
fn one_damaged_frame_of_an_avi_does_not_end_it() {
    let folder = Folder::new();
    let good = jpeg(&quarters(32, 24));
    let frames = [good.clone(), good[..good.len() / 2].to_vec(), Vec::new(), jpeg(&quarters(16, 16)), good];
    let path = folder.file("a.avi", avi(b"MJPG", 32, 24, 25, &frames));
    let items: Vec<_> = picture::frames(&path, LIMITS).unwrap().map(|item| item.map(|(n, _)| n)).collect();
    assert!(matches!(items[..], [Ok(0), Err(_), Err(_), Ok(3)]), "{items:?}");
    let told = items[2].as_ref().unwrap_err().to_string();
    assert!(told.contains("frame 2: the JPEG picture is 16x16, the camera had said 32x24"), "{told}");
}

#[test]
fn avis_that_are_not_mjpeg_say_what_to_do() {
    let open = |bytes: Vec<u8>| AviReader::open(Cursor::new(bytes)).unwrap_err();
    let told = open(avi(b"H264", 32, 24, 25, &[])).to_string();
    assert!(told.contains("coded as H264") && told.contains("ffmpeg"), "{told}");
    let whole = avi(b"MJPG", 32, 24, 25, &[jpeg(&quarters(32, 24))]);
    assert!(matches!(open(whole[..100].to_vec()), AviError::NoVideo));
    assert!(matches!(open(b"RIFF\xff\xff\xff\xffWAVE".to_vec()), AviError::NotAvi));
    assert!(matches!(open(Vec::new()), AviError::NotAvi));
}

#[test]
fn the_further_parts_of_an_opendml_file_are_read_too() {
    let one = jpeg(&quarters(32, 24));
    let mut bytes = avi(b"MJPG", 32, 24, 25, std::slice::from_ref(&one));
    let nested = chunk(b"LIST", &[b"rec ".as_slice(), &chunk(b"01dc", &one)].concat());
    let movie = chunk(b"LIST", &[b"movi".as_slice(), &nested, &chunk(b"01dc", &one)].concat());
    bytes.extend(chunk(b"RIFF", &[b"AVIX".as_slice(), &movie].concat()));
    let mut avi = AviReader::open(Cursor::new(bytes)).unwrap();
    let (mut data, mut count) = (Vec::new(), 0);
    while avi.next_frame(&mut data).unwrap() {
        assert_eq!(data, one);
        count += 1;
    }
    assert_eq!(count, 3);
    assert_eq!(avi.frame_time(), Duration::from_millis(40));
}

proptest! {
    #[test]
    fn a_mangled_avi_ends_and_never_panics(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
        keep in any::<prop::sample::Index>(),
    ) {
        let mut bytes = avi(b"MJPG", 32, 24, 25, &[vec![7; 33], vec![], vec![9; 64]]);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        bytes.truncate(keep.index(bytes.len()) + 1);
        if let Ok(mut avi) = AviReader::open(Cursor::new(bytes)) {
            let mut data = Vec::new();
            // Every chunk takes eight bytes at least, so there is an end.
            for _ in 0..1000 {
                match avi.next_frame(&mut data) {
                    Ok(true) => {}
                    Ok(false) | Err(_) => return Ok(()),
                }
            }
            prop_assert!(false, "no end");
        }
    }

    #[test]
    fn any_bytes_as_a_picture_give_an_answer(
        mut bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..6usize,
    ) {
        let heads: [&[u8]; 6] = [
            b"", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"RIFF\x40\0\0\0WEBPVP8 ", b"RIFF\x40\0\0\0AVI LIST",
        ];
        bytes.splice(..0, heads[kind].iter().copied());
        let folder = Folder::new();
        let _ = open(&folder.file("any", bytes));
    }
}

type Shown = (Vec<(u64, Vec<u8>)>, Vec<String>);

fn all_frames(clip: &mut Clip, most: usize) -> Shown {
    let (pool, mut good, mut bad) = (Pool::new(2), Vec::new(), Vec::new());
    for _ in 0..most {
        match clip.next_frame(&pool, PATIENCE) {
            Ok(frame) => good.push((frame.seq, frame.data.clone())),
            Err(CaptureError::Ended) => break,
            Err(error) => {
                bad.push(error.to_string());
                if !error.is_recoverable() {
                    break;
                }
            }
        }
    }
    (good, bad)
}

#[test]
fn a_clip_ends_or_starts_again_with_the_same_frames() {
    let folder = Folder::new();
    let pictures: Vec<Rgb8> = (0..3).map(|n| Rgb8::from_pixel(32, 24, image::Rgb([n * 80, 0, 0]))).collect();
    let stills = folder.path().join("stills");
    fs::create_dir(&stills).unwrap();
    for (n, picture) in [9, 10, 11].iter().zip(&pictures) {
        picture.save_with_format(stills.join(format!("p{n}.png")), ImageFormat::Png).unwrap();
    }
    let jpegs: Vec<_> = pictures.iter().map(jpeg).collect();
    for path in
        [folder.file("a.gif", gif(&pictures, 40)), folder.file("a.avi", avi(b"MJPG", 32, 24, 25, &jpegs)), stills]
    {
        let (once, bad) = all_frames(&mut Clip::open(&path, false, Pace::Fast).unwrap(), 100);
        assert_eq!((once.len(), bad.len()), (3, 0), "{}", path.display());
        assert!(once[0].1 != once[1].1 && once[1].1 != once[2].1);
        let (thrice, _) = all_frames(&mut Clip::open(&path, true, Pace::Fast).unwrap(), 9);
        assert_eq!(thrice.len(), 9);
        for (n, (seq, data)) in thrice.iter().enumerate() {
            assert_eq!((*seq, data), (n as u64, &once[n % 3].1), "{}", path.display());
        }
    }
}

#[test]
fn a_clip_too_long_to_be_kept_is_decoded_again_in_each_round() {
    let folder = Folder::new();
    let side = 1024;
    let count = KEPT_BYTES / (3 * side * side) + 2;
    let picture = |n: usize| Rgb8::from_pixel(side as u32, side as u32, image::Rgb([n as u8 * 11, 0, 0]));
    let pictures: Vec<Rgb8> = (0..count).map(picture).collect();
    let path = folder.file("long.gif", gif(&pictures, 40));
    let mut clip = Clip::open(&path, true, Pace::Fast).unwrap();
    let pool = Pool::new(2);
    for n in 0..2 * count {
        let frame = clip.next_frame(&pool, PATIENCE).unwrap();
        assert!(frame.data[0].abs_diff((n % count) as u8 * 11) < 4, "{n}");
    }
}

#[test]
fn frames_of_a_clip_convert_and_say_their_layout() {
    let folder = Folder::new();
    let avi_path = folder.file("a.avi", avi(b"MJPG", 32, 24, 25, &[jpeg(&quarters(32, 24))]));
    let gif_path = folder.file("a.gif", gif(&[quarters(32, 24)], 40));
    for (path, format) in [(avi_path, PixelFormat::Mjpg), (gif_path, PixelFormat::Rgb3)] {
        let mut clip = Clip::open(&path, false, Pace::Fast).unwrap();
        let frame = clip.next_frame(&Pool::new(1), PATIENCE).unwrap();
        assert_eq!(frame.format, format);
        let mut rgb = RgbImage::default();
        Converter::new().to_rgb(&frame, &mut rgb).unwrap();
        assert!(near(pixel(&rgb, 28, 4), [0, 255, 0], 12), "{:?}", pixel(&rgb, 28, 4));
    }
}

#[test]
fn real_time_frames_come_at_their_times_and_fast_ones_are_taken_on_demand() {
    let folder = Folder::new();
    let minutes = 6 * 60_000;
    let path = folder.file("slow.gif", gif(&[quarters(32, 24), quarters(32, 24), quarters(32, 24)], minutes));
    let pool = Pool::new(1);
    let mut paced = Clip::open(&path, true, Pace::RealTime).unwrap();
    assert_eq!(paced.timing(), Timing::Paced);
    paced.next_frame(&pool, PATIENCE).unwrap();
    let asked = Instant::now();
    let error = paced.next_frame(&pool, Duration::from_millis(5)).unwrap_err();
    assert!(matches!(error, CaptureError::TimedOut(_)) && error.is_recoverable());
    assert!(asked.elapsed() >= Duration::from_millis(5));

    let mut fast = Clip::open(&path, false, Pace::Fast).unwrap();
    assert_eq!(fast.timing(), Timing::OnDemand);
    assert_eq!(all_frames(&mut fast, 10).0.len(), 3);
}

#[test]
fn a_folder_without_pictures_and_clips_without_room_for_a_face_are_refused() {
    let folder = Folder::new();
    folder.file("readme.txt", "nothing here");
    let told = |path: &Path| Clip::open(path, true, Pace::Fast).unwrap_err().to_string();
    assert!(told(folder.path()).contains("there is no .jpg, .jpeg, .png or .webp file in this folder"));
    assert!(told(&folder.file("a.gif", "hello, hello, hello")).contains("not a picture but text"));
    assert!(told(&folder.path().join("missing")).contains("No such file"));
    let dots: Vec<Rgb8> = (0..3).map(|_| quarters(1, 1)).collect();
    assert!(told(&folder.file("dot.gif", gif(&dots, 40))).contains("1x1 pixels are too small to hold a face"));
    assert!(told(&folder.file("dot.avi", avi(b"MJPG", 1, 1, 25, &[]))).contains("too small to hold a face"));
}

#[test]
fn a_folder_with_one_good_picture_is_shown_and_one_with_none_is_an_error_and_no_endless_search() {
    let folder = Folder::new();
    folder.file("1.jpg", "text");
    folder.file("2.png", encoded(&DynamicImage::from(quarters(1, 1)), ImageFormat::Png));
    let (good, bad) = all_frames(&mut Clip::open(folder.path(), true, Pace::Fast).unwrap(), 100);
    assert_eq!((good.len(), bad.len()), (0, 3), "{bad:?}");
    assert!(bad[0].contains("not a picture but text") && bad[1].contains("too small"), "{bad:?}");
    assert!(bad[2].ends_with("no frame in it can be read"), "{bad:?}");

    folder.file("3.webp", encoded(&DynamicImage::from(quarters(32, 24)), ImageFormat::WebP));
    let (good, bad) = all_frames(&mut Clip::open(folder.path(), true, Pace::Fast).unwrap(), 12);
    assert!(good.len() >= 4 && bad.len() <= 8, "{} {}", good.len(), bad.len());
}

#[test]
fn a_clip_inside_the_program_is_read_like_one_on_disk() {
    let bytes: &'static [u8] = gif(&[quarters(32, 24), quarters(32, 24)], 40).leak();
    let (good, bad) = all_frames(&mut Clip::from_bytes("bundled", bytes, false, Pace::Fast).unwrap(), 10);
    assert_eq!((good.len(), bad.len()), (2, 0));
    let told = Clip::from_bytes("bundled", b"text", false, Pace::Fast).unwrap_err().to_string();
    assert_eq!(told, "bundled: this is not a picture but text; JPEG, PNG, WebP, GIF and MJPEG AVI are read");
}

#[test]
fn sixteen_bit_pictures_up_to_the_limit_are_read() {
    let folder = Folder::new();
    let mut bytes = Vec::new();
    let pixels = vec![0u8; 8 * 1000 * 500];
    image::codecs::png::PngEncoder::new(&mut bytes).write_image(&pixels, 1000, 500, ExtendedColorType::Rgba16).unwrap();
    let path = folder.file("deep.png", &bytes);
    let read = picture::open(&path, PictureLimits { max_pixels: 500_000, ..LIMITS }).unwrap();
    assert_eq!((read.width_px, read.height_px, pixel(&read, 999, 499)), (1000, 500, [255; 3]));
    let fewer = PictureLimits { max_pixels: 499_999, ..LIMITS };
    assert!(matches!(picture::open(&path, fewer), Err(PictureError::TooManyPixels { .. })));
}
