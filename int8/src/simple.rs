//! The layers that are not convolutions: a few operations a value, at the speed of memory.
//!
//! Each is one generic function, compiled once more for each instruction set that x86-64 has beyond its base, so all give the same bytes:
//! the arithmetic is integers and single `f32` steps in a written order. The compiler does the rest, since channels lie together.
//!
//! Invariant: who calls [`Simple::run`] has planned the pictures into the arena; see `kernels`.

use std::ops::Range;

use crate::graph::{Binary, DepthOrder, Order, Out, Pooling, Quant, Shape, Upsampling, Window};
use crate::isa::Isa;
use crate::kernels::{Memory, Scratch, Store, View};
use crate::plan::{Place, store};

/// A tensor of bytes in the arena.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Picture {
    pub(crate) view: View,
    pub(crate) shape: Shape,
    pub(crate) quant: Quant,
}

impl Picture {
    /// Bytes of a row from its first pixel's first channel on, where the picture is not a slice.
    fn gapless(&self) -> bool {
        self.view.pixel == self.shape.channels
    }
}

/// A layer that is not a convolution, planned.
#[derive(Clone, Debug)]
pub(crate) enum Simple {
    Map { from: Picture, to: Picture, tables: Box<[[u8; 256]]> },
    Requantise { from: Picture, to: Picture, factor: f32, store: Store },
    Binary { binary: Binary, a: Picture, b: Picture, to: Place, factors: (f32, f32), store: Store },
    Pool { pooling: Pooling, window: Window, from: Picture, to: Place, factor: f32, store: Store },
    Nearest { from: Picture, to: Picture },
    Bilinear { upsampling: Upsampling, from: Picture, to: Picture, store: Store },
    DepthToSpace { block: usize, order: DepthOrder, from: Picture, to: Picture },
    Dequantise { from: Picture, base: usize },
    MeanAbsolute { a: Picture, b: Option<Picture>, weights: Box<[f32]>, base: usize },
    CopyFloats { from: usize, to: usize, count: usize },
    FloatLinear { from: usize, to: usize, weights: Box<[f32]>, bias: Box<[f32]> },
}

fn out_of(place: Place) -> Out {
    match place {
        Place::Bytes(picture) => Out::U8(picture.quant),
        Place::Floats { .. } => Out::F32,
    }
}

fn shape_of(place: Place) -> Shape {
    match place {
        Place::Bytes(Picture { shape, .. }) | Place::Floats { shape, .. } => shape,
    }
}

const UNBOUNDED: (f32, f32) = (f32::NEG_INFINITY, f32::INFINITY);

impl Simple {
    pub(crate) fn map(from: Picture, to: Picture, tables: &[[u8; 256]]) -> Self {
        Self::Map { from, to, tables: tables.into() }
    }

    pub(crate) fn requantise(from: Picture, to: Picture) -> Self {
        let factor = from.quant.scale() / to.quant.scale();
        Self::Requantise { from, to, factor, store: store(Out::U8(to.quant), UNBOUNDED) }
    }

    pub(crate) fn binary(binary: Binary, (a, b): (Picture, Picture), to: Place, bounds: (f32, f32)) -> Self {
        let out = out_of(to);
        Self::Binary { binary, a, b, to, factors: binary.factors(a.quant, b.quant, out), store: store(out, bounds) }
    }

    pub(crate) fn pool(pooling: Pooling, window: Window, from: Picture, to: Place) -> Self {
        let out = out_of(to);
        let unit = match out {
            Out::U8(quant) => quant.scale(),
            Out::F32 => 1.0,
        };
        Self::Pool { pooling, window, from, to, factor: from.quant.scale() / unit, store: store(out, UNBOUNDED) }
    }

    pub(crate) fn upsample(upsampling: Upsampling, from: Picture, to: Picture) -> Self {
        match upsampling {
            Upsampling::Nearest => Self::Nearest { from, to },
            _ => Self::Bilinear { upsampling, from, to, store: store(Out::U8(to.quant), UNBOUNDED) },
        }
    }

    pub(crate) fn depth_to_space(block: usize, order: DepthOrder, from: Picture, to: Picture) -> Self {
        Self::DepthToSpace { block, order, from, to }
    }

    pub(crate) fn dequantise(from: Picture, base: usize) -> Self {
        Self::Dequantise { from, base }
    }

    pub(crate) fn mean_absolute(a: Picture, b: Option<Picture>, weights: &[f32], base: usize) -> Self {
        Self::MeanAbsolute { a, b, weights: weights.into(), base }
    }

    pub(crate) fn copy_floats(from: usize, to: usize, count: usize) -> Self {
        Self::CopyFloats { from, to, count }
    }

    pub(crate) fn float_linear(from: usize, to: usize, weights: &[f32], bias: &[f32]) -> Self {
        Self::FloatLinear { from, to, weights: weights.into(), bias: bias.into() }
    }

    /// Rows that threads may share out; 1 where the layer is one piece.
    pub(crate) fn rows(&self) -> usize {
        match self {
            Self::Map { to, .. }
            | Self::Requantise { to, .. }
            | Self::Nearest { to, .. }
            | Self::Bilinear { to, .. }
            | Self::DepthToSpace { to, .. } => to.shape.height,
            Self::Dequantise { from, .. } => from.shape.height,
            Self::Binary { to, .. } | Self::Pool { to, .. } => shape_of(*to).height,
            Self::MeanAbsolute { .. } | Self::CopyFloats { .. } | Self::FloatLinear { .. } => 1,
        }
    }

    /// Bytes of scratch.
    pub(crate) fn scratch(&self) -> usize {
        match self {
            Self::Pool { from, .. } => from.shape.channels * 4,
            _ => 0,
        }
    }

    /// Computes output rows.
    ///
    /// # Safety
    /// As for [`Layer::run`](crate::kernels::Layer::run), with `rows` within [`Simple::rows`]; the processor can run `isa`.
    pub(crate) unsafe fn run(&self, isa: Isa, memory: Memory, rows: Range<usize>, scratch: &mut Scratch) {
        #[cfg(target_arch = "x86_64")]
        match isa {
            // SAFETY: the caller vouches for the processor and for everything else.
            Isa::Avx2 | Isa::AvxVnni => return unsafe { self.run_avx2(memory, rows, scratch) },
            // SAFETY: as above.
            Isa::Avx512Vnni => return unsafe { self.run_avx512(memory, rows, scratch) },
            Isa::Scalar => {}
        }
        let _ = isa;
        // SAFETY: the caller vouches.
        unsafe { self.run_any(memory, rows, scratch) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx2")]
    unsafe fn run_avx2(&self, memory: Memory, rows: Range<usize>, scratch: &mut Scratch) {
        // SAFETY: the caller vouches.
        unsafe { self.run_any(memory, rows, scratch) }
    }

    #[cfg(target_arch = "x86_64")]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
    unsafe fn run_avx512(&self, memory: Memory, rows: Range<usize>, scratch: &mut Scratch) {
        // SAFETY: the caller vouches.
        unsafe { self.run_any(memory, rows, scratch) }
    }

    #[inline(always)]
    unsafe fn run_any(&self, memory: Memory, rows: Range<usize>, scratch: &mut Scratch) {
        // SAFETY: in all arms the caller vouches for the pictures, see the module.
        unsafe {
            match self {
                Self::Map { from, to, tables } => map(memory, *from, *to, tables, rows),
                Self::Requantise { from, to, factor, store } => requantise(memory, *from, *to, *factor, *store, rows),
                Self::Binary { binary, a, b, to, factors, store } => {
                    self::binary(memory, *binary, (*a, *b), *to, *factors, *store, rows);
                }
                Self::Pool { pooling: Pooling::Max, window, from, to, .. } => {
                    if let Place::Bytes(to) = to {
                        max_pool(memory, *window, *from, *to, rows);
                    }
                }
                Self::Pool { pooling, window, from, to, factor, store } => {
                    let padded = *pooling == Pooling::AveragePadded;
                    average_pool(memory, (*window, padded), *from, *to, *factor, *store, rows, scratch);
                }
                Self::Nearest { from, to } => nearest(memory, *from, *to, rows),
                Self::Bilinear { upsampling, from, to, store } => {
                    bilinear(memory, *upsampling, *from, *to, *store, rows)
                }
                Self::DepthToSpace { block, order, from, to } => {
                    depth_to_space(memory, *block, *order, *from, *to, rows);
                }
                Self::Dequantise { from, base } => {
                    let floats = memory.floats.add(*base);
                    dequantise_rows(memory, *from, rows, Order::ChannelsLast, floats, scratch);
                }
                Self::MeanAbsolute { a, b, weights, base } => {
                    if !rows.is_empty() {
                        *memory.floats.add(*base) = mean_absolute(memory, *a, *b, weights);
                    }
                }
                Self::CopyFloats { from, to, count } => {
                    if !rows.is_empty() {
                        std::ptr::copy_nonoverlapping(memory.floats.add(*from), memory.floats.add(*to), *count);
                    }
                }
                Self::FloatLinear { from, to, weights, bias } => {
                    if !rows.is_empty() {
                        float_linear(memory, *from, *to, weights, bias);
                    }
                }
            }
        }
    }
}

/// Rounds half to even, for values below 2^22 in size: added to 1.5 * 2^23 a value is rounded to whole numbers, which then are the
/// difference of the bits. An addition is vectorised everywhere; a cast that saturates is not.
#[inline(always)]
fn round(value: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0;
    (value + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32
}

/// The byte for a value in the output's unit, as [`Post`](crate::kernels::Post) has it.
#[inline(always)]
fn byte(value: f32, low: f32, high: f32, zero_point: i32) -> u8 {
    let value = if value > low { value } else { low };
    let value = if value < high { value } else { high };
    (round(value) + zero_point) as u8
}

/// The pixels of a row as pieces of bytes that lie together: the whole row, or one pixel each.
#[inline(always)]
fn pieces(pictures: &[Picture], width: usize, channels: usize) -> (usize, usize) {
    if pictures.iter().all(Picture::gapless) { (1, width * channels) } else { (width, channels) }
}

#[inline(always)]
unsafe fn input<'a>(memory: Memory, at: usize, count: usize) -> &'a [u8] {
    // SAFETY: the caller names bytes of a planned picture that nobody writes meanwhile.
    unsafe { std::slice::from_raw_parts(memory.bytes.add(at), count) }
}

#[inline(always)]
unsafe fn output<'a>(memory: Memory, at: usize, count: usize) -> &'a mut [u8] {
    // SAFETY: the caller names bytes of its own output.
    unsafe { std::slice::from_raw_parts_mut(memory.bytes.add(at), count) }
}

#[inline(always)]
unsafe fn floats<'a>(memory: Memory, at: usize, count: usize) -> &'a mut [f32] {
    // SAFETY: the caller names floats of its own output.
    unsafe { std::slice::from_raw_parts_mut(memory.floats.add(at), count) }
}

#[inline(always)]
unsafe fn map(memory: Memory, from: Picture, to: Picture, tables: &[[u8; 256]], rows: Range<usize>) {
    let Shape { width, channels, .. } = to.shape;
    let (count, length) = if tables.len() == 1 { pieces(&[from, to], width, channels) } else { (width, channels) };
    for y in rows {
        for x in 0..count {
            // SAFETY: rows and pieces of planned pictures.
            let (a, b) =
                unsafe { (input(memory, from.view.at(y, x), length), output(memory, to.view.at(y, x), length)) };
            if let [table] = tables {
                for (b, a) in b.iter_mut().zip(a) {
                    *b = table[usize::from(*a)];
                }
            } else {
                for ((b, a), table) in b.iter_mut().zip(a).zip(tables) {
                    *b = table[usize::from(*a)];
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn requantise(memory: Memory, from: Picture, to: Picture, factor: f32, store: Store, rows: Range<usize>) {
    let Store::U8 { low, high, zero_point } = store else { return };
    let Shape { width, channels, .. } = to.shape;
    let (count, length) = pieces(&[from, to], width, channels);
    let zero = i32::from(from.quant.zero_point());
    let same = from.quant == to.quant;
    for y in rows {
        for x in 0..count {
            // SAFETY: rows and pieces of planned pictures.
            let (a, b) =
                unsafe { (input(memory, from.view.at(y, x), length), output(memory, to.view.at(y, x), length)) };
            if same {
                b.copy_from_slice(a);
                continue;
            }
            for (b, a) in b.iter_mut().zip(a) {
                *b = byte((i32::from(*a) - zero) as f32 * factor, low, high, zero_point);
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn binary(
    memory: Memory,
    binary: Binary,
    (a, b): (Picture, Picture),
    to: Place,
    factors: (f32, f32),
    store: Store,
    rows: Range<usize>,
) {
    let Shape { width, channels, .. } = shape_of(to);
    let one_pixel = b.shape != a.shape;
    let (count, length) = match to {
        _ if one_pixel => (width, channels),
        Place::Bytes(to) => pieces(&[a, b, to], width, channels),
        Place::Floats { .. } => pieces(&[a, b], width, channels),
    };
    let (za, zb) = (i32::from(a.quant.zero_point()), i32::from(b.quant.zero_point()));
    let (fa, fb) = factors;
    for y in rows {
        for x in 0..count {
            let at = if one_pixel { b.view.base } else { b.view.at(y, x) };
            // SAFETY: rows and pieces of planned pictures.
            let (p, q) = unsafe { (input(memory, a.view.at(y, x), length), input(memory, at, length)) };
            let pairs = p.iter().zip(q);
            let sum = |p: u8, q: u8| (i32::from(p) - za) as f32 * fa + (i32::from(q) - zb) as f32 * fb;
            let product = |p: u8, q: u8| ((i32::from(p) - za) * (i32::from(q) - zb)) as f32 * fa;
            match (to, store) {
                (Place::Bytes(to), Store::U8 { low, high, zero_point }) => {
                    // SAFETY: a row or pixel of this step's output.
                    let out = unsafe { output(memory, to.view.at(y, x), length) };
                    if binary == Binary::Multiply {
                        for (out, (p, q)) in out.iter_mut().zip(pairs) {
                            *out = byte(product(*p, *q), low, high, zero_point);
                        }
                    } else {
                        for (out, (p, q)) in out.iter_mut().zip(pairs) {
                            *out = byte(sum(*p, *q), low, high, zero_point);
                        }
                    }
                }
                (Place::Floats { base, .. }, Store::F32 { low, high }) => {
                    // SAFETY: a row or pixel of this step's output.
                    let out = unsafe { floats(memory, base + y * width * channels + x * length, length) };
                    for (out, (p, q)) in out.iter_mut().zip(pairs) {
                        let value = if binary == Binary::Multiply { product(*p, *q) } else { sum(*p, *q) };
                        let value = if value > low { value } else { low };
                        *out = if value < high { value } else { high };
                    }
                }
                _ => {}
            }
        }
    }
}

/// The part of a window that lies within `n` pixels.
#[inline(always)]
fn within(at: usize, kernel: usize, stride: usize, before: usize, n: usize) -> Range<usize> {
    let start = (at * stride).saturating_sub(before);
    let end = (at * stride + kernel).saturating_sub(before).min(n);
    start..end.max(start)
}

/// Bytes of a vector of the narrowest set.
const PIECE: usize = 16;

/// The largest of four bytes, `channels` of them, at least [`PIECE`].
///
/// # Safety
/// So many bytes can be read at each of `from` and written at `to`, which overlaps none of them.
#[inline(always)]
unsafe fn largest(from: [*const u8; 4], to: *mut u8, channels: usize) {
    for at in (0..channels).step_by(PIECE) {
        // The last piece begins early enough to be a whole one.
        let at = at.min(channels - PIECE);
        // SAFETY: a piece within the channels.
        unsafe {
            let [a, b, c, d] = from.map(|from| from.add(at).cast::<[u8; PIECE]>().read_unaligned());
            let mut most = [0; PIECE];
            for i in 0..PIECE {
                most[i] = a[i].max(b[i]).max(c[i].max(d[i]));
            }
            to.add(at).cast::<[u8; PIECE]>().write_unaligned(most);
        }
    }
}

#[inline(always)]
unsafe fn max_pool(memory: Memory, window: Window, from: Picture, to: Picture, rows: Range<usize>) {
    let channels = to.shape.channels;
    for y in rows {
        let ys = within(y, window.kernel.0, window.stride.0, window.padding.top, from.shape.height);
        for x in 0..to.shape.width {
            let xs = within(x, window.kernel.1, window.stride.1, window.padding.left, from.shape.width);
            if channels >= PIECE && (ys.len(), xs.len()) == (2, 2) {
                // SAFETY: pixels within the picture, and one of this step's output.
                unsafe {
                    let pixel = |row, column| memory.bytes.add(from.view.at(row, column)).cast_const();
                    let (above, below) = (pixel(ys.start, xs.start), pixel(ys.start + 1, xs.start));
                    let step = from.view.pixel;
                    let four = [above, above.add(step), below, below.add(step)];
                    largest(four, memory.bytes.add(to.view.at(y, x)), channels);
                }
                continue;
            }
            // SAFETY: a pixel of this step's output.
            let out = unsafe { output(memory, to.view.at(y, x), channels) };
            let mut first = true;
            for row in ys.clone() {
                for column in xs.clone() {
                    // SAFETY: a pixel within the picture.
                    let pixel = unsafe { input(memory, from.view.at(row, column), channels) };
                    if first {
                        out.copy_from_slice(pixel);
                        first = false;
                        continue;
                    }
                    for (out, value) in out.iter_mut().zip(pixel) {
                        *out = (*out).max(*value);
                    }
                }
            }
        }
    }
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
unsafe fn average_pool(
    memory: Memory,
    (window, padded): (Window, bool),
    from: Picture,
    to: Place,
    factor: f32,
    store: Store,
    rows: Range<usize>,
    scratch: &mut Scratch,
) {
    let Shape { width, channels, .. } = shape_of(to);
    let zero = i32::from(from.quant.zero_point());
    // SAFETY: the scratch holds a value a channel, see `Simple::scratch`.
    let sums = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr().cast::<i32>(), channels) };
    for y in rows {
        let ys = within(y, window.kernel.0, window.stride.0, window.padding.top, from.shape.height);
        for x in 0..width {
            let xs = within(x, window.kernel.1, window.stride.1, window.padding.left, from.shape.width);
            let inside = ys.len() * xs.len();
            sums.fill(-zero * inside as i32);
            for row in ys.clone() {
                for column in xs.clone() {
                    // SAFETY: a pixel within the picture.
                    let pixel = unsafe { input(memory, from.view.at(row, column), channels) };
                    for (sum, value) in sums.iter_mut().zip(pixel) {
                        *sum += i32::from(*value);
                    }
                }
            }
            let count = if padded { window.kernel.0 * window.kernel.1 } else { inside };
            let factor = factor / count as f32;
            match (to, store) {
                (Place::Bytes(to), Store::U8 { low, high, zero_point }) => {
                    // SAFETY: a pixel of this step's output.
                    let out = unsafe { output(memory, to.view.at(y, x), channels) };
                    for (out, sum) in out.iter_mut().zip(&*sums) {
                        *out = byte(*sum as f32 * factor, low, high, zero_point);
                    }
                }
                (Place::Floats { base, .. }, _) => {
                    // SAFETY: a pixel of this step's output.
                    let out = unsafe { floats(memory, base + (y * width + x) * channels, channels) };
                    for (out, sum) in out.iter_mut().zip(&*sums) {
                        *out = *sum as f32 * factor;
                    }
                }
                (Place::Bytes(_), Store::F32 { .. }) => {}
            }
        }
    }
}

#[inline(always)]
unsafe fn nearest(memory: Memory, from: Picture, to: Picture, rows: Range<usize>) {
    let channels = from.shape.channels;
    for y in rows {
        for x in 0..from.shape.width {
            // SAFETY: a pixel of the input and two of this step's output.
            unsafe {
                let pixel = memory.bytes.add(from.view.at(y / 2, x));
                let first = memory.bytes.add(to.view.at(y, 2 * x));
                std::ptr::copy_nonoverlapping(pixel, first, channels);
                std::ptr::copy_nonoverlapping(pixel, first.add(to.view.pixel), channels);
            }
        }
    }
}

/// Two neighbours and their integer weights, of `sum` together.
#[derive(Clone, Copy, Debug)]
struct Neighbours {
    first: usize,
    second: usize,
    weights: (i32, i32),
}

/// The sum of the weights in one direction of `n` pixels.
fn unit(upsampling: Upsampling, n: usize) -> i32 {
    match upsampling {
        Upsampling::Nearest => 1,
        Upsampling::BilinearHalfPixel => 4,
        Upsampling::BilinearAsymmetric => 2,
        Upsampling::BilinearAlignCorners => 2 * n as i32 - 1,
    }
}

#[inline(always)]
fn neighbours(upsampling: Upsampling, at: usize, n: usize) -> Neighbours {
    let whole = unit(upsampling, n);
    let (first, over) = match upsampling {
        Upsampling::Nearest => (at / 2, 0),
        // (at + 1/2) / 2 - 1/2 in quarters, not below 0.
        Upsampling::BilinearHalfPixel => {
            let quarters = (2 * at + 1).saturating_sub(2);
            (quarters / 4, (quarters % 4) as i32)
        }
        Upsampling::BilinearAsymmetric => (at / 2, (at % 2) as i32),
        Upsampling::BilinearAlignCorners => {
            let parts = at * (n - 1);
            (parts / whole as usize, (parts % whole as usize) as i32)
        }
    };
    Neighbours { first, second: (first + 1).min(n - 1), weights: (whole - over, over) }
}

#[inline(always)]
unsafe fn bilinear(
    memory: Memory,
    upsampling: Upsampling,
    from: Picture,
    to: Picture,
    store: Store,
    rows: Range<usize>,
) {
    let Store::U8 { low, high, zero_point } = store else { return };
    let Shape { height, width, channels } = from.shape;
    let whole = unit(upsampling, height) * unit(upsampling, width);
    let zero = i32::from(from.quant.zero_point()) * whole;
    let factor = from.quant.scale() / to.quant.scale() / whole as f32;
    for y in rows {
        let v = neighbours(upsampling, y, height);
        for x in 0..to.shape.width {
            let h = neighbours(upsampling, x, width);
            // SAFETY: pixels within the picture, and one of this step's output.
            let (a, b, c, d, out) = unsafe {
                (
                    input(memory, from.view.at(v.first, h.first), channels),
                    input(memory, from.view.at(v.first, h.second), channels),
                    input(memory, from.view.at(v.second, h.first), channels),
                    input(memory, from.view.at(v.second, h.second), channels),
                    output(memory, to.view.at(y, x), channels),
                )
            };
            let (wa, wb) = (v.weights.0 * h.weights.0, v.weights.0 * h.weights.1);
            let (wc, wd) = (v.weights.1 * h.weights.0, v.weights.1 * h.weights.1);
            for i in 0..channels {
                let sum = i32::from(a[i]) * wa + i32::from(b[i]) * wb + i32::from(c[i]) * wc + i32::from(d[i]) * wd;
                out[i] = byte((sum - zero) as f32 * factor, low, high, zero_point);
            }
        }
    }
}

#[inline(always)]
unsafe fn depth_to_space(
    memory: Memory,
    block: usize,
    order: DepthOrder,
    from: Picture,
    to: Picture,
    rows: Range<usize>,
) {
    let channels = to.shape.channels;
    for y in rows {
        for x in 0..to.shape.width {
            let square = y % block * block + x % block;
            // SAFETY: a pixel of the input and one of this step's output.
            let (pixel, out) = unsafe {
                let pixel = input(memory, from.view.at(y / block, x / block), from.shape.channels);
                (pixel, output(memory, to.view.at(y, x), channels))
            };
            match order {
                DepthOrder::BlockFirst => out.copy_from_slice(&pixel[square * channels..][..channels]),
                DepthOrder::ChannelFirst => {
                    for (i, out) in out.iter_mut().enumerate() {
                        *out = pixel[i * block * block + square];
                    }
                }
            }
        }
    }
}

/// Writes the real numbers of rows to where they belong in a whole picture of them that starts at `floats`.
///
/// # Safety
/// `from` is planned into `memory`, `floats` holds its shape's count of values, the scratch the rows' bytes, nobody else touches those of `rows`.
#[inline(always)]
pub(crate) unsafe fn dequantise_rows(
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
            transpose((row, from.view.pixel), (scratch.as_mut_ptr().add(i * width), lines), width, channels);
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

/// Writes a matrix of bytes with rows and columns exchanged, eight by eight: `to[column][row] = from[row][column]`. Each side is its first
/// byte and the distance of its rows.
///
/// # Safety
/// Both sides hold the matrix, and do not overlap.
#[inline(always)]
unsafe fn transpose(from: (*const u8, usize), to: (*mut u8, usize), rows: usize, columns: usize) {
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

/// Quantises rows of a picture of real numbers, as ONNX's QuantizeLinear: divide, round half to even, add the zero-point, saturate.
///
/// # Safety
/// `to` is planned into `memory`, `floats` holds its shape's count of values, the scratch the rows' bytes, nobody else touches `rows`.
#[inline(always)]
pub(crate) unsafe fn quantise_rows(
    memory: Memory,
    to: Picture,
    rows: Range<usize>,
    order: Order,
    floats: &[f32],
    scratch: &mut Scratch,
) {
    let (zero_point, scale) = (i32::from(to.quant.zero_point()), to.quant.scale());
    let (low, high) = (-zero_point as f32, (255 - zero_point) as f32);
    let inverse = 1.0 / scale;
    // SAFETY: the caller vouches.
    unsafe {
        // To divide by a power of two or to multiply by the other one is the same, and takes half the time.
        if is_power_of_two(scale) && is_power_of_two(inverse) {
            write_rows(memory, to, rows, order, floats, scratch, |x| byte(x * inverse, low, high, zero_point));
        } else {
            write_rows(memory, to, rows, order, floats, scratch, |x| byte(x / scale, low, high, zero_point));
        }
    }
}

fn is_power_of_two(x: f32) -> bool {
    x.is_normal() && x.to_bits().trailing_zeros() >= f32::MANTISSA_DIGITS - 1
}

/// Writes rows of real numbers as the bytes that `quantise` makes of them.
///
/// # Safety
/// As [`quantise_rows`].
#[inline(always)]
unsafe fn write_rows(
    memory: Memory,
    to: Picture,
    rows: Range<usize>,
    order: Order,
    floats: &[f32],
    scratch: &mut Scratch,
    quantise: impl Fn(f32) -> u8,
) {
    let Shape { height, width, channels } = to.shape;
    if order == Order::ChannelsLast || channels == 1 {
        for y in rows {
            let row = &floats[y * width * channels..][..width * channels];
            // SAFETY: inputs are whole tensors, so a row is gapless.
            let out = unsafe { output(memory, to.view.at(y, 0), width * channels) };
            for (out, x) in out.iter_mut().zip(row) {
                *out = quantise(*x);
            }
        }
        return;
    }
    let lines = rows.len() * width;
    // SAFETY: the scratch holds the rows, see `plan::staging`.
    let planes = unsafe { std::slice::from_raw_parts_mut(scratch.as_mut_ptr(), lines * channels) };
    for (channel, plane) in planes.chunks_exact_mut(lines).enumerate() {
        for (out, x) in plane.iter_mut().zip(&floats[(channel * height + rows.start) * width..]) {
            *out = quantise(*x);
        }
    }
    for (i, y) in rows.enumerate() {
        // SAFETY: as above.
        let out = unsafe { output(memory, to.view.at(y, 0), width * channels) };
        if channels == 3 {
            let [red, green, blue] = std::array::from_fn(|channel| &planes[channel * lines + i * width..][..width]);
            for (((out, r), g), b) in out.chunks_exact_mut(3).zip(red).zip(green).zip(blue) {
                (out[0], out[1], out[2]) = (*r, *g, *b);
            }
            continue;
        }
        // SAFETY: both hold the row.
        unsafe { transpose((planes[i * width..].as_ptr(), lines), (out.as_mut_ptr(), channels), channels, width) };
    }
}

/// Sixteen running sums, so that every instruction set adds in the same order.
#[inline(always)]
unsafe fn mean_absolute(memory: Memory, a: Picture, b: Option<Picture>, weights: &[f32]) -> f32 {
    const LANES: usize = 16;
    let Shape { height, width, channels } = a.shape;
    let grid = |picture: Picture| (i32::from(picture.quant.zero_point()), picture.quant.scale());
    let ((za, sa), (zb, sb)) = (grid(a), b.map_or((0, 0.0), grid));
    let mut total = 0.0_f64;
    for y in 0..height {
        let mut sums = [0.0_f32; LANES];
        for x in 0..width {
            let weight = weights.get(y * width + x).copied().unwrap_or(1.0);
            // SAFETY: a pixel of either picture; without a second one the first stands in, times 0.
            let (p, q) = unsafe {
                let p = input(memory, a.view.at(y, x), channels);
                (p, b.map_or(p, |b| input(memory, b.view.at(y, x), channels)))
            };
            let difference =
                |p: u8, q: u8| ((i32::from(p) - za) as f32 * sa - (i32::from(q) - zb) as f32 * sb).abs() * weight;
            let (heads, tails) = (p.chunks_exact(LANES), p.chunks_exact(LANES).remainder());
            for (p, q) in heads.zip(q.chunks_exact(LANES)) {
                for (sum, (p, q)) in sums.iter_mut().zip(p.iter().zip(q)) {
                    *sum += difference(*p, *q);
                }
            }
            for (sum, (p, q)) in sums.iter_mut().zip(tails.iter().zip(&q[channels - tails.len()..])) {
                *sum += difference(*p, *q);
            }
        }
        total += sums.iter().map(|sum| f64::from(*sum)).sum::<f64>();
    }
    (total / (height * width * channels) as f64) as f32
}

#[inline(always)]
unsafe fn float_linear(memory: Memory, from: usize, to: usize, weights: &[f32], bias: &[f32]) {
    let count = weights.len() / bias.len();
    // SAFETY: planned vectors of these lengths, which do not overlap.
    let (x, out) = unsafe {
        let x = std::slice::from_raw_parts(memory.floats.add(from), count);
        (x, floats(memory, to, bias.len()))
    };
    for ((out, row), bias) in out.iter_mut().zip(weights.chunks_exact(count)).zip(bias) {
        *out = row.iter().zip(x).fold(*bias, |sum, (w, x)| sum + w * x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_cut_at_the_borders() {
        let windows: Vec<(usize, usize)> = (0..4).map(|i| within(i, 3, 2, 1, 7)).map(|r| (r.start, r.end)).collect();
        assert_eq!(windows, [(0, 2), (1, 4), (3, 6), (5, 7)]);
    }

    #[test]
    fn neighbours_are_those_of_onnx_resize() {
        let at = |u, i, n| {
            let v = neighbours(u, i, n);
            let whole = unit(u, n) as f64;
            v.first as f64 * f64::from(v.weights.0) / whole + v.second as f64 * f64::from(v.weights.1) / whole
        };
        for n in 1..9 {
            for i in 0..2 * n {
                let last = (n - 1) as f64;
                let half = ((i as f64 + 0.5) / 2.0 - 0.5).clamp(0.0, last);
                let corners = i as f64 * last / (2 * n - 1) as f64;
                assert!((at(Upsampling::BilinearHalfPixel, i, n) - half).abs() < 1e-9, "{i} of {n}");
                assert!((at(Upsampling::BilinearAsymmetric, i, n) - (i as f64 / 2.0).min(last)).abs() < 1e-9);
                assert!((at(Upsampling::BilinearAlignCorners, i, n) - corners).abs() < 1e-9, "{i} of {n}");
            }
        }
    }

    #[test]
    fn rows_and_columns_are_exchanged() {
        for (rows, columns) in [(8, 8), (16, 24), (7, 9), (1, 20), (20, 1), (13, 17)] {
            let from: Vec<u8> = (0..rows * columns).map(|i| (i * 7 % 251) as u8).collect();
            let mut to = vec![0; rows * columns];
            // SAFETY: both hold the matrix.
            unsafe { transpose((from.as_ptr(), columns), (to.as_mut_ptr(), rows), rows, columns) };
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

    #[test]
    fn the_largest_of_four_is_that_of_each_channel() {
        for channels in [16, 17, 24, 31, 32, 40, 64] {
            let from: [Vec<u8>; 4] =
                std::array::from_fn(|i| (0..channels).map(|c| ((c * 37 + i * 101) * 73 % 251) as u8).collect());
            let mut to = vec![0; channels];
            // SAFETY: all of them have so many bytes.
            unsafe { largest(std::array::from_fn(|i| from[i].as_ptr()), to.as_mut_ptr(), channels) };
            let expected: Vec<u8> = (0..channels).map(|c| from.iter().map(|from| from[c]).max().unwrap_or(0)).collect();
            assert_eq!(to, expected);
        }
    }

    #[test]
    fn rounding_is_half_to_even() {
        let values = [0.5, 1.5, 2.5, -0.5, -1.5, 254.5, 255.4, -255.5].map(round);
        assert_eq!(values, [0, 2, 2, 0, -2, 254, 255, -256]);
    }
}
