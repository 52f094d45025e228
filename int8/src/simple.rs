//! The layers that are not convolutions: a few operations a value, at the speed of memory.
//!
//! Each is one generic function, compiled once more for each instruction set that x86-64 has beyond its base, so all give the same bytes:
//! the arithmetic is integers and single `f32` steps in a written order. The compiler does the rest, since channels lie together.
//!
//! Invariant: who calls [`Simple::run`] has planned the pictures into the arena; see `kernels`.

use std::ops::Range;

use crate::edges::{Plain, dequantise_rows};
use crate::graph::{Binary, DepthOrder, Order, Out, Padding, Pooling, Quant, Shape, Upsampling, Window};
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
                    dequantise_rows::<Plain>(memory, *from, rows, Order::ChannelsLast, floats, scratch);
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
pub(crate) fn byte(value: f32, low: f32, high: f32, zero_point: i32) -> u8 {
    let value = if value > low { value } else { low };
    let value = if value < high { value } else { high };
    (round(value) + zero_point) as u8
}

/// The pixels of a row as pieces of bytes that lie together: the whole row, or one pixel each.
#[inline(always)]
pub(crate) fn pieces(pictures: &[Picture], width: usize, channels: usize) -> (usize, usize) {
    if pictures.iter().all(Picture::gapless) { (1, width * channels) } else { (width, channels) }
}

#[inline(always)]
pub(crate) unsafe fn input<'a>(memory: Memory, at: usize, count: usize) -> &'a [u8] {
    // SAFETY: the caller names bytes of a planned picture that nobody writes meanwhile.
    unsafe { std::slice::from_raw_parts(memory.bytes.add(at), count) }
}

#[inline(always)]
pub(crate) unsafe fn output<'a>(memory: Memory, at: usize, count: usize) -> &'a mut [u8] {
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

/// The largest of `COUNT` bytes, `channels` of them, at least `N`.
///
/// # Safety
/// So many bytes can be read at each of `from` and written at `to`, which overlaps none of them.
#[inline(always)]
unsafe fn largest<const N: usize, const COUNT: usize>(from: [*const u8; COUNT], to: *mut u8, channels: usize) {
    let mut next = 0;
    while next < channels {
        // The last piece begins early enough to be a whole one.
        let at = next.min(channels - N);
        // SAFETY: a piece within the channels.
        unsafe {
            let pieces = from.map(|from| from.add(at).cast::<[u8; N]>().read_unaligned());
            let mut most = pieces[0];
            for piece in &pieces[1..] {
                for i in 0..N {
                    most[i] = most[i].max(piece[i]);
                }
            }
            to.add(at).cast::<[u8; N]>().write_unaligned(most);
        }
        next += N;
    }
}

/// As [`max_pool`] with square windows of `SIDE` by `SIDE`, which is `COUNT`; `channels` is `N` at least.
#[inline(always)]
unsafe fn squares<const N: usize, const SIDE: usize, const COUNT: usize>(
    memory: Memory,
    window: Window,
    (from, to): (Picture, Picture),
    channels: usize,
    rows: Range<usize>,
) {
    let within = |at, axis: (usize, usize, usize)| {
        let range = within(at, SIDE, axis.0, axis.1, axis.2);
        // What lies beyond the border is the last within it once more, which leaves the largest what it is.
        std::array::from_fn::<usize, SIDE, _>(|i| range.start + i.min(range.len() - 1))
    };
    for y in rows {
        let lines = within(y, (window.stride.0, window.padding.top, from.shape.height));
        for x in 0..to.shape.width {
            let columns = within(x, (window.stride.1, window.padding.left, from.shape.width));
            // SAFETY: pixels within the picture, and one of this step's output.
            unsafe {
                let pixel = |i: usize| memory.bytes.add(from.view.at(lines[i / SIDE], columns[i % SIDE])).cast_const();
                let pixels = std::array::from_fn::<_, COUNT, _>(pixel);
                largest::<N, COUNT>(pixels, memory.bytes.add(to.view.at(y, x)), channels);
            }
        }
    }
}

/// As [`max_pool`] with windows of two by two that lie side by side within the picture; `channels` is `N` at least.
#[inline(always)]
unsafe fn halve<const N: usize>(memory: Memory, from: Picture, to: Picture, channels: usize, rows: Range<usize>) {
    for y in rows {
        let mut above = memory.bytes.wrapping_add(from.view.at(2 * y, 0)).cast_const();
        let mut out = memory.bytes.wrapping_add(to.view.at(y, 0));
        for _ in 0..to.shape.width {
            let (step, below) = (from.view.pixel, above.wrapping_add(from.view.row));
            let four = [above, above.wrapping_add(step), below, below.wrapping_add(step)];
            // SAFETY: pixels within the picture, and one of this step's output.
            unsafe { largest::<N, 4>(four, out, channels) };
            above = above.wrapping_add(2 * step);
            out = out.wrapping_add(to.view.pixel);
        }
    }
}

/// [`max_pool`] of pieces of `N` channels, where it is one of these: whether it was.
#[inline(always)]
unsafe fn max_pool_of<const N: usize>(
    memory: Memory,
    window: Window,
    from: Picture,
    to: Picture,
    channels: usize,
    rows: Range<usize>,
) -> bool {
    let inside = 2 * to.shape.height <= from.shape.height && 2 * to.shape.width <= from.shape.width;
    let halves = (window.stride, window.padding) == ((2, 2), Padding::default()) && inside;
    // SAFETY: as these functions.
    unsafe {
        match window.kernel {
            (2, 2) if halves => halve::<N>(memory, from, to, channels, rows),
            (2, 2) => squares::<N, 2, 4>(memory, window, (from, to), channels, rows),
            (3, 3) => squares::<N, 3, 9>(memory, window, (from, to), channels, rows),
            _ => return false,
        }
    }
    true
}

#[inline(always)]
unsafe fn max_pool(memory: Memory, window: Window, from: Picture, to: Picture, rows: Range<usize>) {
    let channels = to.shape.channels;
    // SAFETY: as this function; a number of channels that the compiler knows makes a loop of one piece none.
    let done = unsafe {
        match channels {
            PIECE => max_pool_of::<PIECE>(memory, window, from, to, PIECE, rows.clone()),
            0..PIECE => false,
            _ if channels.is_multiple_of(64) => max_pool_of::<64>(memory, window, from, to, channels, rows.clone()),
            _ if channels.is_multiple_of(32) => max_pool_of::<32>(memory, window, from, to, channels, rows.clone()),
            _ => max_pool_of::<PIECE>(memory, window, from, to, channels, rows.clone()),
        }
    };
    if done {
        return;
    }
    for y in rows {
        let ys = within(y, window.kernel.0, window.stride.0, window.padding.top, from.shape.height);
        for x in 0..to.shape.width {
            let xs = within(x, window.kernel.1, window.stride.1, window.padding.left, from.shape.width);
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

/// Two copies of `channels` bytes, in pieces of `N` of which there are whole ones.
///
/// # Safety
/// So many bytes can be read at `from` and written at either of `to`.
#[inline(always)]
unsafe fn copy_twice<const N: usize>(from: *const u8, to: [*mut u8; 2], channels: usize) {
    for at in (0..channels / N).map(|i| i * N) {
        // SAFETY: a piece within the channels.
        unsafe {
            let piece = from.add(at).cast::<[u8; N]>().read_unaligned();
            to[0].add(at).cast::<[u8; N]>().write_unaligned(piece);
            to[1].add(at).cast::<[u8; N]>().write_unaligned(piece);
        }
    }
}

#[inline(always)]
unsafe fn nearest(memory: Memory, from: Picture, to: Picture, rows: Range<usize>) {
    // SAFETY: as `double`; a number of channels that the compiler knows makes a loop of one piece none.
    unsafe {
        match from.shape.channels {
            8 => double::<8>(memory, from, to, 8, rows),
            n if n.is_multiple_of(32) => double::<32>(memory, from, to, n, rows),
            n if n.is_multiple_of(8) => double::<8>(memory, from, to, n, rows),
            n => double::<1>(memory, from, to, n, rows),
        }
    }
}

/// Each pixel of the rows twice, in pieces of `N` channels.
#[inline(always)]
unsafe fn double<const N: usize>(memory: Memory, from: Picture, to: Picture, channels: usize, rows: Range<usize>) {
    for y in rows {
        let mut pixel = memory.bytes.wrapping_add(from.view.at(y / 2, 0)).cast_const();
        let mut out = memory.bytes.wrapping_add(to.view.at(y, 0));
        for _ in 0..from.shape.width {
            // SAFETY: a pixel of the input and two of this step's output.
            unsafe { copy_twice::<N>(pixel, [out, out.wrapping_add(to.view.pixel)], channels) };
            pixel = pixel.wrapping_add(from.view.pixel);
            out = out.wrapping_add(2 * to.view.pixel);
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

/// Sixteen running sums, so that every instruction set adds in the same order: over a row's values where they lie side by side and have
/// one weight or a weight each, else over a pixel's.
#[inline(always)]
unsafe fn mean_absolute(memory: Memory, a: Picture, b: Option<Picture>, weights: &[f32]) -> f32 {
    const LANES: usize = 16;
    let Shape { height, width, channels } = a.shape;
    let grid = |picture: Picture| (i32::from(picture.quant.zero_point()), picture.quant.scale());
    let ((za, sa), (zb, sb)) = (grid(a), b.map_or((0, 0.0), grid));
    let difference = |p: u8, q: u8| ((i32::from(p) - za) as f32 * sa - (i32::from(q) - zb) as f32 * sb).abs();
    let side_by_side = a.gapless() && b.is_none_or(|b| b.gapless()) && (weights.is_empty() || channels == 1);
    let (count, length) = if side_by_side { (1, width * channels) } else { (width, channels) };
    let mut total = 0.0_f64;
    for y in 0..height {
        let mut sums = [0.0_f32; LANES];
        for x in 0..count {
            // SAFETY: a row or a pixel of either picture; without a second one the first stands in, times 0.
            let (p, q) = unsafe {
                let p = input(memory, a.view.at(y, x), length);
                (p, b.map_or(p, |b| input(memory, b.view.at(y, x), length)))
            };
            let each = if side_by_side { weights.get(y * width..).unwrap_or(&[]) } else { &[] };
            let one = if side_by_side { 1.0 } else { weights.get(y * width + x).copied().unwrap_or(1.0) };
            let whole = length - length % LANES;
            let pairs = p.as_chunks::<LANES>().0.iter().zip(q.as_chunks::<LANES>().0);
            for (chunk, (p, q)) in pairs.enumerate() {
                let weights = each.as_chunks::<LANES>().0.get(chunk).copied().unwrap_or([one; LANES]);
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum += difference(p[i], q[i]) * weights[i];
                }
            }
            for (i, sum) in (whole..length).zip(&mut sums) {
                *sum += difference(p[i], q[i]) * each.get(i).copied().unwrap_or(one);
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
    fn the_largest_of_four_is_that_of_each_channel() {
        for channels in [16, 17, 24, 31, 32, 40, 64] {
            let from: [Vec<u8>; 4] =
                std::array::from_fn(|i| (0..channels).map(|c| ((c * 37 + i * 101) * 73 % 251) as u8).collect());
            let mut to = vec![0; channels];
            // SAFETY: all of them have so many bytes.
            unsafe { largest::<PIECE, 4>(std::array::from_fn(|i| from[i].as_ptr()), to.as_mut_ptr(), channels) };
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
