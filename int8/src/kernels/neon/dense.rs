//! Dense layers: tiles of a few pixels by up to sixteen channels, the sums in registers.
//!
//! The pixels of a tile may lie anywhere, so that tiles run on over the ends of rows. For the pixels of a chunk the
//! channels are taken group by group: a group's weights stay in the first-level cache, and so do the chunk's inputs.
//! Few channels at the end take tiles of more pixels; up to three of them may take [`Way::Rows`], where the lanes are
//! partial sums of one channel instead of channels.

use std::arch::aarch64::*;
use std::marker::PhantomData;

use super::finish::{Finish, Reach};
use super::{Dots, Packed, signed};
use crate::kernels::{Area, BLOCK, DenseSpec, Grid, Layer, Memory, QUAD, Scratch};

/// Pixels whose places are worked out together.
const CHUNK: usize = 64;
/// The most pixels in a tile; places are filled up to a multiple of it.
const WIDEST: usize = 8;

/// Whether the products of two quads that meet in 16 bits always fit.
pub(super) fn pairs_fit(spec: &DenseSpec) -> bool {
    let low =
        |o: usize, run: usize, i: usize| i < spec.quads * QUAD && spec.weight(o, run, i / QUAD, i % QUAD) == i8::MIN;
    let pair = |o: usize, run: usize, i: usize| {
        // Quads meet their neighbours in tiles, and bytes eight apart meet in rows.
        low(o, run, i) && (low(o, run, i + QUAD) || low(o, run, i + 2 * QUAD))
    };
    !(0..spec.channels).any(|o| (0..spec.runs.len()).any(|run| (0..spec.quads * QUAD).any(|i| pair(o, run, i))))
}

/// How a group of channels is computed.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// This many vectors of four channels.
    Tile(usize),
    /// This many channels, each by itself.
    Rows(usize),
}

/// Channels that are computed together.
#[derive(Clone, Copy, Debug)]
struct Group {
    way: Way,
    channel: usize,
    live: usize,
    /// Bytes into the packed weights.
    weights: usize,
}

/// A dense layer.
#[derive(Debug)]
pub(super) struct Dense<D> {
    grid: Grid,
    /// From a pixel's first byte to each run.
    offsets: Box<[usize]>,
    quads: usize,
    groups: Box<[Group]>,
    weights: Packed,
    finish: Finish,
    dots: PhantomData<D>,
}

/// Where the pixels of a chunk are read and written.
struct Places {
    inputs: [usize; CHUNK],
    outputs: [usize; CHUNK],
    count: usize,
}

impl<D: Dots> Dense<D> {
    pub(super) fn new(spec: DenseSpec) -> Self {
        let (mut weights, mut groups) = (vec![], vec![]);
        for channel in (0..spec.channels).step_by(BLOCK) {
            let live = (spec.channels - channel).min(BLOCK);
            let vectors = live.div_ceil(4);
            let by_rows = live < 4 && live * spec.quads.div_ceil(4) < spec.quads;
            let way = if by_rows { Way::Rows(live) } else { Way::Tile(vectors) };
            groups.push(Group { way, channel, live, weights: weights.len() });
            match way {
                Way::Tile(vectors) => pack_tile(&spec, channel, vectors, &mut weights),
                Way::Rows(channels) => pack_rows(&spec, channel, channels, &mut weights),
            }
        }
        let reach: Vec<Reach> = (0..spec.channels).map(|channel| Reach::of(all_weights(&spec, channel))).collect();
        Self {
            grid: spec.grid,
            offsets: spec.runs.iter().map(|tap| tap.row * spec.tap_row + tap.offset).collect(),
            quads: spec.quads,
            groups: groups.into(),
            weights: Packed::new(&weights),
            finish: Finish::new(spec.post, &reach),
            dots: PhantomData,
        }
    }

    /// # Safety
    /// As for [`Layer::run`].
    unsafe fn chunk(&self, memory: Memory, places: &Places) {
        for group in &self.groups {
            // SAFETY: as promised to this function; a tile as wide as its group was packed.
            unsafe {
                match group.way {
                    Way::Tile(4) if D::NARROW_SUM => self.tiles::<4, 4>(memory, group, places),
                    Way::Tile(3) if D::NARROW_SUM => self.tiles::<4, 3>(memory, group, places),
                    Way::Tile(2) if D::NARROW_SUM => self.tiles::<8, 2>(memory, group, places),
                    Way::Tile(_) if D::NARROW_SUM => self.tiles::<8, 1>(memory, group, places),
                    Way::Tile(4) => self.tiles::<2, 4>(memory, group, places),
                    Way::Tile(3) => self.tiles::<2, 3>(memory, group, places),
                    Way::Tile(2) => self.tiles::<4, 2>(memory, group, places),
                    Way::Tile(_) => self.tiles::<4, 1>(memory, group, places),
                    Way::Rows(3) => self.rows::<3>(memory, group, places),
                    Way::Rows(2) => self.rows::<2>(memory, group, places),
                    Way::Rows(_) => self.rows::<1>(memory, group, places),
                }
            }
        }
    }

    /// All pixels of a chunk, by tiles of `P`. A last tile of two or more pixels is filled up with its last pixel,
    /// which is then written twice.
    #[inline(always)]
    unsafe fn tiles<const P: usize, const N: usize>(&self, memory: Memory, group: &Group, places: &Places) {
        let single = places.count % P == 1;
        let many = if single { places.count - 1 } else { places.count };
        // SAFETY: as promised to this function.
        unsafe {
            if many > 0 {
                self.tile_loop::<P, N>(memory, group, places, 0, many);
            }
            if single {
                self.tile_loop::<1, N>(memory, group, places, many, places.count);
            }
        }
    }

    #[inline(never)]
    unsafe fn tile_loop<const P: usize, const N: usize>(
        &self,
        memory: Memory,
        group: &Group,
        places: &Places,
        first: usize,
        end: usize,
    ) {
        let (chunks, rest) = (self.quads / 4, self.quads % 4);
        let start = self.weights.as_ptr().wrapping_add(group.weights);
        for i in (first..end).step_by(P) {
            // SAFETY: the places are filled up to a multiple of `P`; inputs lie in the arena or its slack, weights were
            // packed for this walk, the outputs are the task's.
            unsafe {
                let inputs: [*const u8; P] =
                    std::array::from_fn(|p| memory.bytes.add(*places.inputs.get_unchecked(i + p)).cast_const());
                let bias: [D::Sum; N] = std::array::from_fn(|n| D::start(&self.finish, group.channel + 4 * n));
                let mut sums = [bias; P];
                let mut weights = start;
                for &offset in &self.offsets {
                    let mut at = offset;
                    for _ in 0..chunks {
                        D::quads::<4, P, N>(&mut sums, inputs.map(|x| signed(x.add(at))), weights);
                        at += 16;
                        weights = weights.add(64 * N);
                    }
                    match rest {
                        0 => {}
                        1 => D::quads::<1, P, N>(&mut sums, inputs.map(|x| signed(x.add(at))), weights),
                        2 => D::quads::<2, P, N>(&mut sums, inputs.map(|x| signed(x.add(at))), weights),
                        _ => D::quads::<3, P, N>(&mut sums, inputs.map(|x| signed(x.add(at))), weights),
                    }
                    weights = weights.add(16 * N * rest);
                }
                let outputs = std::array::from_fn(|p| *places.outputs.get_unchecked(i + p) + group.channel);
                let sums = sums.map(|sums| sums.map(|sum| D::end(sum)));
                self.finish.write(memory, outputs, group.channel, group.live, sums);
            }
        }
    }

    /// All pixels of a chunk, four by four, `C` channels.
    #[inline(never)]
    unsafe fn rows<const C: usize>(&self, memory: Memory, group: &Group, places: &Places) {
        let chunks = self.quads.div_ceil(4);
        let start = self.weights.as_ptr().wrapping_add(group.weights);
        for i in (0..places.count).step_by(4) {
            // SAFETY: as in `tile_loop`.
            unsafe {
                let inputs: [*const u8; 4] =
                    std::array::from_fn(|p| memory.bytes.add(*places.inputs.get_unchecked(i + p)).cast_const());
                let mut sums = [[vdupq_n_s32(0); 4]; C];
                let mut weights = start;
                for &offset in &self.offsets {
                    let mut at = offset;
                    for _ in 0..chunks {
                        let x = inputs.map(|x| signed(x.add(at)));
                        for sums in &mut sums {
                            let w = vld1q_s8(weights);
                            for p in 0..4 {
                                sums[p] = D::bytes(sums[p], x[p], w);
                            }
                            weights = weights.add(16);
                        }
                        at += 16;
                    }
                }
                let sums = sums.map(|s| vpaddq_s32(vpaddq_s32(s[0], s[1]), vpaddq_s32(s[2], s[3])));
                let outputs = std::array::from_fn(|p| *places.outputs.get_unchecked(i + p) + group.channel);
                self.finish.write_columns(memory, outputs, group.channel, sums);
            }
        }
    }
}

impl<D: Dots> Layer for Dense<D> {
    unsafe fn run(&self, memory: Memory, area: Area, _: &mut Scratch) {
        let mut places = Places { inputs: [0; CHUNK], outputs: [0; CHUNK], count: 0 };
        for y in area.rows {
            for x in area.columns.clone() {
                places.inputs[places.count] = self.grid.input.at(y, x);
                places.outputs[places.count] = self.grid.output.at(y, x);
                places.count += 1;
                if places.count == CHUNK {
                    // SAFETY: as promised to this function.
                    unsafe { self.chunk(memory, &places) };
                    places.count = 0;
                }
            }
        }
        if let Some(last) = places.count.checked_sub(1) {
            for i in places.count..places.count.next_multiple_of(WIDEST) {
                places.inputs[i] = places.inputs[last];
                places.outputs[i] = places.outputs[last];
            }
            // SAFETY: as promised to this function.
            unsafe { self.chunk(memory, &places) };
        }
    }
}

fn all_weights(spec: &DenseSpec, channel: usize) -> impl Iterator<Item = i8> {
    let quads = (0..spec.runs.len()).flat_map(move |run| (0..spec.quads).map(move |quad| (run, quad)));
    quads.flat_map(move |(run, quad)| (0..QUAD).map(move |byte| spec.weight(channel, run, quad, byte)))
}

/// `[run][quad][vectors][4][QUAD]`.
fn pack_tile(spec: &DenseSpec, channel: usize, vectors: usize, weights: &mut Vec<i8>) {
    for run in 0..spec.runs.len() {
        for quad in 0..spec.quads {
            for lane in 0..4 * vectors {
                weights.extend((0..QUAD).map(|byte| spec.weight(channel + lane, run, quad, byte)));
            }
        }
    }
    weights.resize(weights.len().next_multiple_of(64), 0);
}

/// `[run][16 bytes][channels][16]`, zero beyond the quads.
fn pack_rows(spec: &DenseSpec, channel: usize, channels: usize, weights: &mut Vec<i8>) {
    for run in 0..spec.runs.len() {
        for chunk in 0..spec.quads.div_ceil(4) {
            for o in channel..channel + channels {
                let weight = |i: usize| if i / QUAD < spec.quads { spec.weight(o, run, i / QUAD, i % QUAD) } else { 0 };
                weights.extend((0..16).map(|i| weight(chunk * 16 + i)));
            }
        }
    }
    weights.resize(weights.len().next_multiple_of(64), 0);
}
