//! Scaling of RGB pictures, properly anti-aliased when they shrink.
//!
//! Works on the stored (gamma-encoded) values, as the networks were trained. The intermediate picture is kept between
//! calls; `fast_image_resize` still allocates its coefficient tables (a few KB) in each call.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::{U8, U8x3};
use fast_image_resize::{FilterType, PixelTrait, ResizeAlg, ResizeOptions, Resizer};

use super::RgbImage;

/// Scales pictures; keep one for each place that scales, so that its scratch memory is used again.
#[derive(Debug, Default)]
pub struct Scaler {
    resizer: Resizer,
}

impl Scaler {
    /// A scaler without scratch memory yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Scales the whole of `src` to the size that `dst` has (set it with [`RgbImage::resize`]); the aspect ratio is
    /// the caller's matter. A triangle filter that widens with the reduction (bilinear when enlarging).
    ///
    /// A `dst` without pixels stays so; a `src` without pixels gives black.
    ///
    /// # Panics
    /// Where the invariant of [`RgbImage`], `data.len() == 3 * width_px * height_px`, was broken.
    pub fn scale(&mut self, src: &RgbImage, dst: &mut RgbImage) {
        if src.width_px == 0 || src.height_px == 0 {
            dst.data.fill(0);
            return;
        }
        let (from_px, to_px) = ((src.width_px, src.height_px), (dst.width_px, dst.height_px));
        self.typed::<U8x3>(&src.data, from_px, &mut dst.data, to_px);
    }

    /// `picture` itself where neither side is longer than `longest_px`; else `small`, made to hold it at that length.
    ///
    /// # Panics
    /// As [`Self::scale`].
    pub fn within<'a>(&mut self, picture: &'a RgbImage, longest_px: u32, small: &'a mut RgbImage) -> &'a RgbImage {
        let longest = picture.width_px.max(picture.height_px);
        if longest <= longest_px {
            return picture;
        }
        let scale = f64::from(longest_px) / f64::from(longest);
        let side = |side_px: u32| ((f64::from(side_px) * scale).round() as u32).max(1);
        small.resize(side(picture.width_px), side(picture.height_px));
        self.scale(picture, small);
        small
    }

    /// As [`Self::scale`], for one channel: `from` is `from_px` wide and high, `to` becomes `to_px`.
    ///
    /// # Panics
    /// Where a slice is not as long as its size says.
    pub fn scale_grey(&mut self, from: &[u8], from_px: (u32, u32), to: &mut [u8], to_px: (u32, u32)) {
        self.typed::<U8>(from, from_px, to, to_px);
    }

    /// Typed, since the library's untyped entrance brings the code for every kind of pixel with it.
    fn typed<P: PixelTrait>(&mut self, from: &[u8], from_px: (u32, u32), to: &mut [u8], to_px: (u32, u32)) {
        let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
        let from = TypedImageRef::<P>::from_buffer(from_px.0, from_px.1, from);
        let to = TypedImage::<P>::from_buffer(to_px.0, to_px.1, to);
        let (Ok(from), Ok(mut to)) = (from, to) else { panic!("a picture holds a pixel for each place of its size") };
        self.resizer.resize_typed(&from, &mut to, &options).expect("nothing is cropped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(width_px: u32, height_px: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> RgbImage {
        let data = (0..height_px).flat_map(|y| (0..width_px).map(move |x| (x, y))).flat_map(|(x, y)| pixel(x, y));
        RgbImage { width_px, height_px, data: data.collect() }
    }

    fn scaled(src: &RgbImage, width_px: u32, height_px: u32) -> RgbImage {
        let mut dst = RgbImage::default();
        dst.resize(width_px, height_px);
        Scaler::new().scale(src, &mut dst);
        dst
    }

    #[test]
    fn a_large_picture_comes_within_a_length_and_a_small_one_is_left_as_it_is() {
        let (large, narrow, mut small) =
            (picture(1920, 1080, |_, _| [9; 3]), picture(1, 999, |_, _| [9; 3]), RgbImage::default());
        let mut scaler = Scaler::new();
        let size = |picture: &RgbImage| (picture.width_px, picture.height_px);
        assert_eq!(size(scaler.within(&large, 640, &mut small)), (640, 360));
        assert_eq!(size(scaler.within(&narrow, 640, &mut small)), (1, 640));
        assert!(std::ptr::eq(scaler.within(&large, 1920, &mut small), &large));
    }

    #[test]
    fn a_fine_chequerboard_shrinks_to_grey_and_not_to_a_pattern() {
        let board = picture(64, 64, |x, y| [if (x + y) % 2 == 0 { 255 } else { 0 }; 3]);
        let small = scaled(&board, 16, 16);
        for &value in &small.data {
            assert!((120..=136).contains(&value), "{value}");
        }
    }

    #[test]
    fn channels_and_corners_stay_where_they_are() {
        let src = picture(40, 30, |x, y| [if x < 20 { 200 } else { 10 }, if y < 15 { 150 } else { 20 }, 77]);
        let dst = scaled(&src, 17, 90);
        assert_eq!(dst.data[..3], [200, 150, 77]);
        assert_eq!(dst.data[3 * (17 * 90 - 1)..], [10, 20, 77]);
    }

    #[test]
    fn pictures_without_pixels_are_no_trouble() {
        assert!(scaled(&picture(4, 4, |_, _| [9; 3]), 0, 7).data.is_empty());
        assert_eq!(scaled(&RgbImage::default(), 2, 1).data, [0; 6]);
    }
}
