//! The edges of a network: real numbers to bytes on the way in, bytes to real numbers on the way out, and channels first to channels last.
//!
//! Knows pictures in the arena, no layers. What a set of instructions does faster than the compiler does by itself is in [`Vectors`]; the rest
//! is written once.
//!
//! Invariant: who calls has planned the pictures into the arena; see `kernels`.

use std::ops::Range;

use crate::graph::{Order, Quant, Shape};
use crate::kernels::{Memory, Scratch};
use crate::simple::{Picture, byte, input, output, pieces};

/// What a set of instructions takes over: each does the first part of its work, or none of it, and says how much.
///
/// # Safety
/// Only where the processor has the instructions.
pub(crate) trait Vectors {
    /// [`Grid::byte`] of the first values of `floats`: so many.
    #[inline(always)]
    unsafe fn quantise(_floats: &[f32], _bytes: &mut [u8], _grid: &Grid) -> usize {
        0
    }

    /// As [`transpose`], of the first rows and columns: so many.
    #[inline(always)]
    unsafe fn transpose(_: (*const u8, usize), _: (*mut u8, usize), rows: usize, _columns: usize) -> (usize, usize) {
        (rows, 0)
    }

    /// The first bytes of three colours side by side: so many of each.
    #[inline(always)]
    unsafe fn interleave(_colours: [&[u8]; 3], _pixels: &mut [u8]) -> usize {
        0
    }
}

/// Nothing is taken over.
pub(crate) struct Plain;

impl Vectors for Plain {}

/// Writes the real numbers of rows to where they belong in a whole picture of them that starts at `floats`.
///
/// # Safety
/// `from` is planned into `memory`, `floats` holds its shape's count of values, the scratch the rows' bytes, nobody else touches those of `rows`.
#[inline(always)]
pub(crate) unsafe fn dequantise_rows<V: Vectors>(
    memory: Memory,
    from: Picture,
    rows: Range<usize>,
    order: Order,
    floats: *mut f32,
    scratch: &mut Scratch,
) {
    let Shape { height, width, channels } = from.shape;
    let (zero, scale) = (i32::from(from.quant.zero_point()), from.quant.scale());
    let real = |byte: u8| (i32::from(byte) - zero) as f32 * scale;
    if order == Order::ChannelsLast || channels == 1 {
        let (count, length) = pieces(&[from], width, channels);
        for (y, x) in rows.flat_map(|y| (0..count).map(move |x| (y, x))) {
            // SAFETY: a row or pixel of the picture, and its values.
            let (bytes, out) = unsafe {
                let out = std::slice::from_raw_parts_mut(floats.add(y * width * channels + x * length), length);
                (input(memory, from.view.at(y, x), length), out)
            };
            for (out, byte) in out.iter_mut().zip(bytes) {
                *out = real(*byte);
            }
        }
        return;
    }
    let lines = rows.len() * width;
    for (i, y) in rows.clone().enumerate() {
        // SAFETY: the scratch holds the rows, see `plan::staging`; their pixels lie in the picture.
        unsafe {
            let row = memory.bytes.add(from.view.at(y, 0));
            transpose::<V>((row, from.view.pixel), (scratch.as_mut_ptr().add(i * width), lines), width, channels);
        }
    }
    // SAFETY: the scratch holds the rows.
    let planes = unsafe { std::slice::from_raw_parts(scratch.as_mut_ptr(), lines * channels) };
    for (channel, plane) in planes.chunks_exact(lines).enumerate() {
        // SAFETY: rows of the channel's values.
        let out = unsafe { std::slice::from_raw_parts_mut(floats.add((channel * height + rows.start) * width), lines) };
        for (out, byte) in out.iter_mut().zip(plane) {
            *out = real(*byte);
        }
    }
}

/// Writes a matrix of bytes with rows and columns exchanged: `to[column][row] = from[row][column]`. Each side is its first
/// byte and the distance of its rows.
///
/// # Safety
/// Both sides hold the matrix, and do not overlap.
#[inline(always)]
unsafe fn transpose<V: Vectors>(from: (*const u8, usize), to: (*mut u8, usize), rows: usize, columns: usize) {
    // SAFETY: by this function's contract; what lies behind the first rows or columns is a matrix of its own.
    unsafe {
        let (high, wide) = V::transpose(from, to, rows, columns);
        if wide < columns {
            transpose_squares((from.0.add(wide), from.1), (to.0.add(wide * to.1), to.1), high, columns - wide);
        }
        if high < rows {
            transpose_squares((from.0.add(high * from.1), from.1), (to.0.add(high), to.1), rows - high, columns);
        }
    }
}

/// As [`transpose`], eight by eight.
///
/// # Safety
/// Likewise.
#[inline(always)]
unsafe fn transpose_squares(from: (*const u8, usize), to: (*mut u8, usize), rows: usize, columns: usize) {
    const SIDE: usize = 8;
    let whole = (rows - rows % SIDE, columns - columns % SIDE);
    // SAFETY: rows and columns stay below `rows` and `columns`, squares with all of theirs.
    unsafe {
        let read = |row: usize, column: usize| from.0.add(row * from.1 + column);
        let write = |row: usize, column: usize| to.0.add(column * to.1 + row);
        for row in (0..whole.0).step_by(SIDE) {
            for column in (0..whole.1).step_by(SIDE) {
                let square = std::array::from_fn(|i| read(row + i, column).cast::<u64>().read_unaligned());
                for (i, line) in exchange(square).into_iter().enumerate() {
                    write(row, column + i).cast::<u64>().write_unaligned(line);
                }
            }
        }
        for row in 0..rows {
            for column in if row < whole.0 { whole.1 } else { 0 }..columns {
                *write(row, column) = *read(row, column);
            }
        }
    }
}

/// Rows and columns of a square of eight by eight bytes exchanged: quarters, then quarters of quarters, then pairs.
#[inline(always)]
fn exchange(mut square: [u64; 8]) -> [u64; 8] {
    for (distance, bits, mask) in
        [(4, 32, 0x0000_0000_ffff_ffff_u64), (2, 16, 0x0000_ffff_0000_ffff), (1, 8, 0x00ff_00ff_00ff_00ff)]
    {
        for i in (0..8).filter(|i| i & distance == 0) {
            let swap = ((square[i].to_le() >> bits) ^ square[i + distance].to_le()) & mask;
            square[i] = u64::from_le(square[i].to_le() ^ (swap << bits));
            square[i + distance] = u64::from_le(square[i + distance].to_le() ^ swap);
        }
    }
    square
}

/// How real numbers become bytes.
pub(crate) struct Grid {
    scale: f32,
    inverse: f32,
    zero_point: i32,
    way: Way,
}

/// How to divide by the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// To multiply by one over a power of two is the same.
    Multiply,
    /// To multiply by one over the scale comes near enough to tell what the quotient is rounded to, but beside halves.
    Nearly,
    Divide,
}

impl Grid {
    fn new(quant: Quant) -> Self {
        let scale = quant.scale();
        let inverse = 1.0 / scale;
        let way = match (scale.is_normal() && inverse.is_normal(), is_power_of_two(scale)) {
            (true, true) => Way::Multiply,
            (true, false) => Way::Nearly,
            _ => Way::Divide,
        };
        Self { scale, inverse, zero_point: i32::from(quant.zero_point()), way }
    }

    fn bounds(&self) -> (f32, f32) {
        (-self.zero_point as f32, (255 - self.zero_point) as f32)
    }

    /// The byte for a quotient.
    #[inline(always)]
    fn byte(&self, quotient: f32) -> u8 {
        let (low, high) = self.bounds();
        byte(quotient, low, high, self.zero_point)
    }
}

#[inline(always)]
unsafe fn quantise<V: Vectors>(floats: &[f32], bytes: &mut [u8], grid: &Grid) {
    // SAFETY: the caller vouches for the processor.
    let done = unsafe { V::quantise(floats, bytes, grid) };
    let rest = bytes[done..].iter_mut().zip(&floats[done..]);
    if grid.way == Way::Multiply {
        rest.for_each(|(byte, x)| *byte = grid.byte(x * grid.inverse));
    } else {
        rest.for_each(|(byte, x)| *byte = grid.byte(x / grid.scale));
    }
}

#[inline(always)]
unsafe fn interleave<V: Vectors>(colours: [&[u8]; 3], pixels: &mut [u8]) {
    // SAFETY: the caller vouches for the processor.
    let done = unsafe { V::interleave(colours, pixels) };
    let [red, green, blue] = colours.map(|colour| &colour[done..]);
    for (((pixel, r), g), b) in pixels[3 * done..].chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
        (pixel[0], pixel[1], pixel[2]) = (*r, *g, *b);
    }
}

/// Quantises rows of a picture of real numbers, as ONNX's QuantizeLinear: divide, round half to even, add the zero-point, saturate.
///
/// # Safety
/// `to` is planned into `memory`, `floats` holds its shape's count of values, the scratch the rows' bytes, nobody else touches `rows`.
#[inline(always)]
pub(crate) unsafe fn quantise_rows<V: Vectors>(
    memory: Memory,
    to: Picture,
    rows: Range<usize>,
    order: Order,
    floats: &[f32],
    scratch: &mut Scratch,
) {
    let grid = &Grid::new(to.quant);
    let Shape { height, width, channels } = to.shape;
    if order == Order::ChannelsLast || channels == 1 {
        for y in rows {
            let row = &floats[y * width * channels..][..width * channels];
            // SAFETY: inputs are whole tensors, so a row is gapless.
            unsafe { quantise::<V>(row, output(memory, to.view.at(y, 0), width * channels), grid) };
        }
        return;
    }
    let lines = rows.len() * width;
    // SAFETY: the scratch holds the rows, see `plan::staging`.
    let planes = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr(), lines * channels) };
    for (channel, plane) in planes.chunks_exact_mut(lines).enumerate() {
        // SAFETY: as above.
        unsafe { quantise::<V>(&floats[(channel * height + rows.start) * width..][..lines], plane, grid) };
    }
    for (i, y) in rows.enumerate() {
        // SAFETY: as above.
        let out = unsafe { output(memory, to.view.at(y, 0), width * channels) };
        if channels == 3 {
            let colours = std::array::from_fn(|channel| &planes[channel * lines + i * width..][..width]);
            // SAFETY: as above.
            unsafe { interleave::<V>(colours, out) };
            continue;
        }
        // SAFETY: both hold the row.
        unsafe { transpose::<V>((planes[i * width..].as_ptr(), lines), (out.as_mut_ptr(), channels), channels, width) };
    }
}

fn is_power_of_two(x: f32) -> bool {
    x.is_normal() && x.to_bits().trailing_zeros() >= f32::MANTISSA_DIGITS - 1
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::Avx2;

#[cfg(target_arch = "x86_64")]
mod x86 {
    //! AVX2, which every set of kernels for x86-64 but the scalar one includes.

    use std::arch::x86_64::*;

    use super::{Grid, Vectors, Way};

    /// Values of a step.
    const STEP: usize = 32;
    /// From a half, and closer to it, a product may lie on the other side of it than the quotient: where that is below 2^9 in size, as all that is
    /// not clipped, both are within 3 * 2^-24 of the true one in proportion.
    const NEAR: f32 = 0.5 - 1.0 / 8192.0;
    /// Pixels of a step of three colours.
    const PIXELS: usize = 16;
    /// A block of a matrix: rows, columns.
    const BLOCK: (usize, usize) = (8, 16);

    /// AVX2.
    pub(crate) struct Avx2;

    impl Vectors for Avx2 {
        #[inline(always)]
        unsafe fn quantise(floats: &[f32], bytes: &mut [u8], grid: &Grid) -> usize {
            // SAFETY: the processor has AVX2, by the trait's contract.
            unsafe {
                match grid.way {
                    Way::Multiply => quantise::<MULTIPLY>(floats, bytes, grid),
                    Way::Nearly => quantise::<NEARLY>(floats, bytes, grid),
                    Way::Divide => quantise::<DIVIDE>(floats, bytes, grid),
                }
            }
        }

        #[inline(always)]
        unsafe fn transpose(
            from: (*const u8, usize),
            to: (*mut u8, usize),
            rows: usize,
            columns: usize,
        ) -> (usize, usize) {
            let (high, wide) = (rows - rows % BLOCK.0, columns - columns % BLOCK.1);
            for row in (0..high).step_by(BLOCK.0) {
                for column in (0..wide).step_by(BLOCK.1) {
                    // SAFETY: the block lies in the matrix, on either side.
                    unsafe {
                        let (from_at, to_at) = (from.0.add(row * from.1 + column), to.0.add(column * to.1 + row));
                        block((from_at, from.1), (to_at, to.1));
                    }
                }
            }
            (high, wide)
        }

        #[inline(always)]
        unsafe fn interleave(colours: [&[u8]; 3], pixels: &mut [u8]) -> usize {
            // SAFETY: the processor has AVX2, by the trait's contract.
            unsafe { interleave(colours, pixels) }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn multiplied(x: [__m256; 4], grid: &Grid) -> [__m256; 4] {
        let inverse = _mm256_set1_ps(grid.inverse);
        [
            _mm256_mul_ps(x[0], inverse),
            _mm256_mul_ps(x[1], inverse),
            _mm256_mul_ps(x[2], inverse),
            _mm256_mul_ps(x[3], inverse),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn divided(x: [__m256; 4], grid: &Grid) -> [__m256; 4] {
        let scale = _mm256_set1_ps(grid.scale);
        [_mm256_div_ps(x[0], scale), _mm256_div_ps(x[1], scale), _mm256_div_ps(x[2], scale), _mm256_div_ps(x[3], scale)]
    }

    /// What is rounded and clipped to the same as the quotients. A division takes as long as all the rest.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn nearly(x: [__m256; 4], grid: &Grid) -> [__m256; 4] {
        let products = multiplied(x, grid);
        let halves = _mm256_or_ps(
            _mm256_or_ps(near_half(products[0]), near_half(products[1])),
            _mm256_or_ps(near_half(products[2]), near_half(products[3])),
        );
        if _mm256_movemask_ps(halves) == 0 { products } else { divided(x, grid) }
    }

    /// Which values are close to a half. Those that are no numbers or too large for a half are not.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn near_half(x: __m256) -> __m256 {
        let over = _mm256_sub_ps(x, _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x));
        let size = _mm256_andnot_ps(_mm256_set1_ps(-0.0), over);
        _mm256_cmp_ps::<_CMP_GE_OQ>(size, _mm256_set1_ps(NEAR))
    }

    /// [`Way`] as a parameter.
    const MULTIPLY: u8 = 0;
    const NEARLY: u8 = 1;
    const DIVIDE: u8 = 2;

    #[inline]
    #[target_feature(enable = "avx2")]
    fn quantise<const WAY: u8>(floats: &[f32], bytes: &mut [u8], grid: &Grid) -> usize {
        for (x, bytes) in floats.chunks_exact(STEP).zip(bytes.chunks_exact_mut(STEP)) {
            // SAFETY: 32 of either.
            unsafe {
                let x = x.as_ptr();
                let x = [
                    _mm256_loadu_ps(x),
                    _mm256_loadu_ps(x.add(8)),
                    _mm256_loadu_ps(x.add(16)),
                    _mm256_loadu_ps(x.add(24)),
                ];
                let quotients = match WAY {
                    MULTIPLY => multiplied(x, grid),
                    NEARLY => nearly(x, grid),
                    _ => divided(x, grid),
                };
                _mm256_storeu_si256(bytes.as_mut_ptr().cast(), packed(quotients, grid));
            }
        }
        floats.len().min(bytes.len()) / STEP * STEP
    }

    /// As [`Grid::byte`].
    #[inline]
    #[target_feature(enable = "avx2")]
    fn packed(x: [__m256; 4], grid: &Grid) -> __m256i {
        let (low, high) = grid.bounds();
        let (low, high) = (_mm256_set1_ps(low), _mm256_set1_ps(high));
        let [a, b, c, d] = [
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x[0], low), high)),
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x[1], low), high)),
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x[2], low), high)),
            _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(x[3], low), high)),
        ];
        let zero = _mm256_set1_epi16(grid.zero_point as i16);
        let front = _mm256_add_epi16(_mm256_packs_epi32(a, b), zero);
        let back = _mm256_add_epi16(_mm256_packs_epi32(c, d), zero);
        // Packing brings the lower halves of all four together, and the upper ones.
        let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_permutevar8x32_epi32(_mm256_packus_epi16(front, back), order)
    }

    /// Rows and columns of a block exchanged. Each side is its first byte and the distance of its rows.
    ///
    /// # Safety
    /// Both sides hold the block; the processor has AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn block(from: (*const u8, usize), to: (*mut u8, usize)) {
        macro_rules! row {
            ($row:literal) => {
                // SAFETY: sixteen bytes of the row, by this function's contract.
                unsafe { _mm_loadu_si128(from.0.add($row * from.1).cast()) }
            };
        }
        macro_rules! pairs {
            ($row:literal $next:literal) => {{
                let (upper, lower) = (row!($row), row!($next));
                [_mm_unpacklo_epi8(upper, lower), _mm_unpackhi_epi8(upper, lower)]
            }};
        }
        // Two rows of a column side by side, then four, then eight.
        let fours = |a: [__m128i; 2], b: [__m128i; 2]| {
            [
                _mm_unpacklo_epi16(a[0], b[0]),
                _mm_unpackhi_epi16(a[0], b[0]),
                _mm_unpacklo_epi16(a[1], b[1]),
                _mm_unpackhi_epi16(a[1], b[1]),
            ]
        };
        let upper = fours(pairs!(0 1), pairs!(2 3));
        let lower = fours(pairs!(4 5), pairs!(6 7));
        for (i, (upper, lower)) in upper.into_iter().zip(lower).enumerate() {
            let (left, right) = (_mm_unpacklo_epi32(upper, lower), _mm_unpackhi_epi32(upper, lower));
            // SAFETY: eight bytes of each of four columns, by this function's contract.
            unsafe {
                let column = |column: usize| to.0.add((4 * i + column) * to.1);
                _mm_storel_epi64(column(0).cast(), left);
                _mm_storeh_pd(column(1).cast(), _mm_castsi128_pd(left));
                _mm_storel_epi64(column(2).cast(), right);
                _mm_storeh_pd(column(3).cast(), _mm_castsi128_pd(right));
            }
        }
    }

    /// Where each byte of three vectors of pixels is in sixteen bytes of each colour; 0x80 where it is another colour's.
    static PLACES: [[[u8; 16]; 3]; 3] = {
        let mut places = [[[0x80; 16]; 3]; 3];
        let mut i = 0;
        while i < 3 * PIXELS {
            places[i / 16][i % 3][i % 16] = (i / 3) as u8;
            i += 1;
        }
        places
    };

    #[inline]
    #[target_feature(enable = "avx2")]
    fn interleave(colours: [&[u8]; 3], pixels: &mut [u8]) -> usize {
        let [red, green, blue] = colours.map(|colour| colour.chunks_exact(PIXELS));
        let count = red.len();
        for (((pixels, red), green), blue) in pixels.chunks_exact_mut(3 * PIXELS).zip(red).zip(green).zip(blue) {
            for (part, places) in PLACES.iter().enumerate() {
                // SAFETY: sixteen bytes of each.
                unsafe {
                    let of = |colour: &[u8], places: &[u8; 16]| {
                        let places = _mm_loadu_si128(places.as_ptr().cast());
                        _mm_shuffle_epi8(_mm_loadu_si128(colour.as_ptr().cast()), places)
                    };
                    let (red, green, blue) = (of(red, &places[0]), of(green, &places[1]), of(blue, &places[2]));
                    let bytes = _mm_or_si128(_mm_or_si128(red, green), blue);
                    _mm_storeu_si128(pixels[part * 16..].as_mut_ptr().cast(), bytes);
                }
            }
        }
        count * PIXELS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_columns_are_exchanged() {
        for (rows, columns) in [(8, 8), (16, 24), (7, 9), (1, 20), (20, 1), (13, 17)] {
            let from: Vec<u8> = (0..rows * columns).map(|i| (i * 7 % 251) as u8).collect();
            let mut to = vec![0; rows * columns];
            // SAFETY: both hold the matrix.
            unsafe { transpose::<Plain>((from.as_ptr(), columns), (to.as_mut_ptr(), rows), rows, columns) };
            for i in 0..rows * columns {
                assert_eq!(to[i % columns * rows + i / columns], from[i], "{rows} x {columns}");
            }
        }
    }

    #[test]
    fn multiplying_by_one_over_a_power_of_two_is_dividing() {
        for exponent in -126..=126 {
            let scale = 2.0_f32.powi(exponent);
            assert!(is_power_of_two(scale) && is_power_of_two(1.0 / scale));
            for x in (0..=u32::MAX).step_by(0x10_3217).map(f32::from_bits).filter(|x| !x.is_nan()) {
                assert_eq!((x * (1.0 / scale)).to_bits(), (x / scale).to_bits(), "{x} by {scale}");
            }
        }
        assert!(![0.0, 0.75, 1.0 / 255.0, 1e-40, f32::INFINITY].into_iter().any(is_power_of_two));
    }

    /// What AVX2 does, where it is here; else the same as what it is compared with.
    macro_rules! fast {
        ($function:ident ( $($argument:expr),* )) => {{
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") {
                // SAFETY: the processor has AVX2.
                unsafe { $function::<Avx2>($($argument),*) };
            }
            #[cfg(not(target_arch = "x86_64"))]
            // SAFETY: nothing beyond the base set is asked for.
            unsafe { $function::<Plain>($($argument),*) };
        }};
    }

    #[test]
    fn real_numbers_become_the_bytes_of_their_quotients_beside_halves_too() {
        let scales = [1.0 / 128.0, 0.018_231_971, 1.0 / 3.0, 0.5, 3.7, 1e-30, 1e30, f32::MIN_POSITIVE / 8.0, f32::MAX];
        for (scale, zero_point) in scales.into_iter().flat_map(|scale| [0_u8, 3, 128, 255].map(|zero| (scale, zero))) {
            let Ok(quant) = Quant::new(scale, zero_point) else { continue };
            let halves = (-600..600).map(|i| i as f32 * 0.5 * scale);
            let beside = halves.clone().flat_map(|x| [x.next_down().next_down(), x.next_down(), x, x.next_up()]);
            let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN, -0.0, 1e-40, f32::MIN_POSITIVE];
            let bits = (0..4000_u32).map(|i| f32::from_bits(i.wrapping_mul(2_654_435_761)));
            let floats: Vec<f32> = beside.chain(odd).chain(bits).collect();
            let mut bytes = vec![0; floats.len()];
            fast!(quantise(&floats, &mut bytes, &Grid::new(quant)));
            let (low, high) = (-f32::from(zero_point), 255.0 - f32::from(zero_point));
            for (x, got) in floats.iter().zip(bytes) {
                assert_eq!(got, byte(x / scale, low, high, zero_point.into()), "{x} by {scale}, {zero_point}");
            }
        }
    }

    #[test]
    fn blocks_of_a_matrix_are_exchanged_as_its_squares_are() {
        for (rows, columns) in [(8, 16), (16, 32), (17, 40), (9, 15), (3, 64), (64, 3), (33, 49)] {
            let from: Vec<u8> = (0..rows * columns).map(|i| (i * 7 % 251) as u8).collect();
            let mut to = vec![0; rows * columns];
            fast!(transpose((from.as_ptr(), columns), (to.as_mut_ptr(), rows), rows, columns));
            assert!((0..rows * columns).all(|i| to[i % columns * rows + i / columns] == from[i]), "{rows} x {columns}");
        }
    }

    #[test]
    fn three_colours_come_side_by_side() {
        for width in [1, 15, 16, 17, 40] {
            let planes: Vec<u8> = (0..3 * width).map(|i| (i * 7 % 251) as u8).collect();
            let mut pixels = vec![0; 3 * width];
            fast!(interleave([0, 1, 2].map(|colour| &planes[colour * width..][..width]), &mut pixels));
            assert!((0..3 * width).all(|i| pixels[i] == planes[i % 3 * width + i / 3]), "{width}");
        }
    }
}
