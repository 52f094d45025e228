//! How fast single layers run on one core, and how near to what the processor can do.
//!
//!     cargo run --release -p visaged-int8 --example layers [-- [avx2|...] [part of a layer's name]]
//!
//! The best of many short runs counts: a busy machine only ever makes them slower.

use std::hint::black_box;
use std::time::Instant;

use visaged_int8::isa::Isa;
use visaged_int8::kernels::{
    Activation, Area, BLOCK, DenseSpec, DepthwiseSpec, Grid, Kernels, Layer, Memory, Post, QUAD, SLACK, Scratch, Store,
    Tap, View,
};
use visaged_int8::peak;

/// A layer to time.
struct Shape {
    kind: Kind,
    kernel: usize,
    stride: usize,
    inputs: usize,
    outputs: usize,
    /// Output rows and columns.
    size: (usize, usize),
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Dense,
    Depthwise,
}

const fn dense(kernel: usize, stride: usize, inputs: usize, outputs: usize, size: usize) -> Shape {
    Shape { kind: Kind::Dense, kernel, stride, inputs, outputs, size: (size, size) }
}

const fn depthwise(kernel: usize, stride: usize, channels: usize, size: usize) -> Shape {
    Shape { kind: Kind::Depthwise, kernel, stride, inputs: channels, outputs: channels, size: (size, size) }
}

/// A 1x1 layer as a planner lays it: all pixels in one row.
const fn flat(inputs: usize, outputs: usize, pixels: usize) -> Shape {
    Shape { kind: Kind::Dense, kernel: 1, stride: 1, inputs, outputs, size: (1, pixels) }
}

const LAYERS: &[Shape] = &[
    dense(3, 1, 32, 32, 64),
    dense(3, 1, 64, 64, 32),
    dense(3, 1, 128, 128, 16),
    dense(3, 2, 32, 64, 32),
    flat(16, 16, 64 * 64),
    flat(16, 32, 64 * 64),
    flat(32, 32, 64 * 64),
    flat(64, 64, 32 * 32),
    flat(128, 128, 32 * 32),
    dense(1, 1, 64, 64, 32),
    dense(1, 2, 64, 64, 16),
    dense(3, 1, 24, 24, 64),
    dense(3, 1, 96, 96, 16),
    dense(3, 1, 16, 16, 64),
    dense(3, 1, 1, 16, 128),
    dense(3, 2, 1, 16, 64),
    dense(3, 1, 3, 16, 128),
    dense(3, 2, 3, 16, 64),
    dense(3, 1, 8, 8, 128),
    dense(3, 1, 32, 4, 64),
    dense(3, 1, 8, 1, 128),
    dense(3, 1, 1, 1, 128),
    flat(64, 1, 40 * 40),
    flat(64, 4, 40 * 40),
    flat(64, 10, 40 * 40),
    flat(24, 8, 64 * 64),
    dense(3, 1, 64, 64, 4),
    dense(3, 1, 64, 64, 8),
    dense(3, 1, 160, 160, 8),
    flat(128, 128, 16),
    flat(256, 8, 1),
    flat(256, 256, 1),
    depthwise(3, 1, 1, 40),
    depthwise(3, 1, 4, 40),
    depthwise(3, 1, 10, 40),
    depthwise(3, 1, 16, 64),
    depthwise(3, 1, 24, 64),
    depthwise(3, 1, 32, 64),
    depthwise(3, 1, 64, 32),
    depthwise(3, 1, 128, 16),
    depthwise(3, 2, 16, 64),
    depthwise(3, 2, 24, 32),
    depthwise(3, 2, 32, 32),
    depthwise(3, 2, 64, 32),
    depthwise(3, 2, 128, 16),
    depthwise(5, 1, 32, 32),
];

impl Shape {
    fn name(&self) -> String {
        let Self { kernel, stride, inputs, outputs, size: (rows, columns), .. } = self;
        let kind = if self.kind == Kind::Dense { "dense" } else { "depthwise" };
        format!("{kind} {kernel}x{kernel} s{stride} {inputs}->{outputs} @{rows}x{columns}")
    }

    fn products(&self) -> usize {
        let inputs = if self.kind == Kind::Dense { self.inputs } else { 1 };
        self.kernel * self.kernel * inputs * self.outputs * self.size.0 * self.size.1
    }

    /// Bytes from one input row to the next.
    fn pitch(&self) -> usize {
        ((self.size.1 - 1) * self.stride + self.kernel) * self.inputs
    }

    fn input_bytes(&self) -> usize {
        ((self.size.0 - 1) * self.stride + self.kernel) * self.pitch()
    }

    fn grid(&self) -> Grid {
        let (rows, columns) = self.size;
        let output = SLACK + self.input_bytes() + SLACK;
        Grid {
            rows,
            columns,
            input: View { base: SLACK, row: self.stride * self.pitch(), pixel: self.stride * self.inputs },
            output: View { base: output, row: columns * self.outputs, pixel: self.outputs },
        }
    }

    fn post(&self) -> Post {
        let padded = self.outputs.next_multiple_of(BLOCK);
        Post {
            bias: vec![0; padded].into(),
            scale: vec![1e-4; padded].into(),
            activation: Activation::None,
            store: Store::U8 { low: 0.0, high: 255.0, zero_point: 0 },
        }
    }

    fn layer(&self, kernels: &dyn Kernels) -> Box<dyn Layer> {
        let mut seed = 1u32;
        // Weights as trained layers have them: a bell around zero.
        let mut weight = move || {
            let mut sum = 0i32;
            for _ in 0..3 {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                sum += (seed >> 24) as i32 - 128;
            }
            (sum / 3).clamp(-127, 127) as i8
        };
        match self.kind {
            Kind::Dense => {
                let length = self.kernel * self.inputs;
                let quads = length.div_ceil(QUAD);
                let count = self.outputs.div_ceil(BLOCK) * self.kernel * quads * BLOCK * QUAD;
                let weights = (0..count).map(|i| {
                    let (byte, lane) = (i % QUAD, i / QUAD % BLOCK);
                    let (quad, block) = (i / (QUAD * BLOCK) % quads, i / (QUAD * BLOCK * quads * self.kernel));
                    let is_real = quad * QUAD + byte < length && block * BLOCK + lane < self.outputs;
                    if is_real { weight() } else { 0 }
                });
                kernels.dense(DenseSpec {
                    grid: self.grid(),
                    tap_row: self.pitch(),
                    runs: (0..self.kernel).map(|row| Tap { row, offset: 0 }).collect(),
                    quads,
                    channels: self.outputs,
                    weights: weights.collect(),
                    post: self.post(),
                })
            }
            Kind::Depthwise => {
                let padded = self.outputs.next_multiple_of(BLOCK);
                let count = self.kernel * self.kernel * padded;
                let weights = (0..count).map(|i| if i % padded < self.outputs { weight() } else { 0 });
                kernels.depthwise(DepthwiseSpec {
                    grid: self.grid(),
                    kernel_rows: self.kernel,
                    kernel_columns: self.kernel,
                    tap_row: self.pitch(),
                    tap_column: self.inputs,
                    channels: self.outputs,
                    weights: weights.collect(),
                    post: self.post(),
                })
            }
        }
    }
}

/// Seconds of the fastest of many runs.
fn time(shape: &Shape, kernels: &dyn Kernels) -> f64 {
    let layer = shape.layer(kernels);
    let grid = shape.grid();
    // Aligned, as a network's arena is.
    let mut arena = Scratch::new(grid.output.base + shape.size.0 * grid.output.row + SLACK);
    for i in 0..arena.len() {
        // SAFETY: within the arena.
        unsafe { arena.as_mut_ptr().add(i).write((i * 37 % 251) as u8) };
    }
    let memory = Memory { bytes: arena.as_mut_ptr(), floats: std::ptr::NonNull::dangling().as_ptr() };
    let mut scratch = Scratch::new(layer.scratch());
    let mut run = |times: usize| {
        let start = Instant::now();
        for _ in 0..times {
            let area = Area { rows: 0..shape.size.0, columns: 0..shape.size.1 };
            // SAFETY: the arena was made for this layer, which writes no floats.
            unsafe { layer.run(memory, black_box(area), &mut scratch) };
        }
        start.elapsed().as_secs_f64() / times as f64
    };
    // Long enough for the clock, short enough to lie between two interruptions.
    let times = ((1e-4 / run(3)) as usize).clamp(1, 100_000);
    let begun = Instant::now();
    let mut best = f64::INFINITY;
    while begun.elapsed().as_secs_f64() < 0.15 {
        best = best.min(run(times));
    }
    best
}

fn main() {
    let mut isa = Isa::best();
    let mut part = String::new();
    for argument in std::env::args().skip(1) {
        match argument.parse() {
            Ok(named) => isa = named,
            Err(_) => part = argument,
        }
    }
    let Some(kernels) = isa.kernels_if_available() else { return };
    let begun = Instant::now();
    let clock = || begun.elapsed().as_secs_f64();
    let peak = peak::int8(isa, &clock);
    println!("{}: int8 peak {peak:.1?} GMAC/s, f32 peak {:.1?} GMAC/s", isa.name(), peak::float(isa, &clock));
    println!("{:<34} {:>9} {:>8} {:>7}", "layer", "ms", "GMAC/s", "of peak");
    for shape in LAYERS.iter().filter(|shape| shape.name().contains(&part)) {
        let seconds = time(shape, kernels);
        let rate = shape.products() as f64 / seconds / 1e9;
        let share = peak.map_or("-".into(), |peak| format!("{:.1} %", rate / peak * 100.0));
        println!("{:<34} {:>9.4} {rate:>8.2} {share:>7}", shape.name(), seconds * 1e3);
    }
}
