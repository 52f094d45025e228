//! Every set of kernels that this processor can run against the definition: random layers, borders, zero-points, extreme values.
//!
//! A task is made here as the planner makes one: tensors with random halos in one arena, views within it. The whole arena is
//! compared afterwards, so that a byte written beside the outputs is found too.

use proptest::prelude::*;

use super::{
    Activation, Area, BLOCK, DenseSpec, DepthwiseSpec, Grid, Kernels, Layer, Memory, Post, QUAD, SLACK, Scratch, Store,
    Tap, View, scalar::Scalar,
};

/// The shape of a random layer.
#[derive(Clone, Debug)]
struct Shape {
    rows: usize,
    columns: usize,
    inputs: usize,
    outputs: usize,
    kernel: (usize, usize),
    stride: (usize, usize),
    dilation: (usize, usize),
    /// Channels of the tensors that input and output are slices of, beyond their own: before and behind.
    beside: [usize; 4],
    /// Pixels beyond what the layer needs, at the end of input rows and output rows.
    halo: [usize; 2],
    /// A phase of a transposed convolution writes every other pixel of every other row.
    spread: usize,
}

fn shapes(depthwise: bool) -> impl Strategy<Value = Shape> {
    // Small maps of any depth; wide and high ones, which are cut into strips, of a lower depth for the test's speed.
    let sizes = prop_oneof![
        8 => (1usize..6, 1usize..27, channels(), channels()),
        1 => (1usize..4, 27usize..300, 1usize..40, 1usize..40),
        1 => (6usize..40, 1usize..9, 1usize..40, 1usize..40),
    ];
    let kernels = prop_oneof![Just((1, 1)), Just((3, 3)), Just((5, 5)), Just((2, 2)), Just((1, 3)), Just((3, 1))];
    let steps = (1usize..3, 1usize..3, 1usize..3, 1usize..3, 1usize..3);
    let around = (prop_oneof![Just([0; 4]), [0usize..9, 0usize..9, 0usize..9, 0usize..9]], [0usize..3, 0usize..3]);
    (sizes, kernels, steps, around).prop_map(
        move |((rows, columns, inputs, outputs), kernel, steps, (beside, halo))| Shape {
            rows,
            columns,
            inputs: if depthwise { outputs } else { inputs },
            outputs,
            kernel,
            stride: (steps.0, steps.1),
            dilation: (steps.2, steps.3),
            beside,
            halo,
            spread: steps.4,
        },
    )
}

fn channels() -> impl Strategy<Value = usize> {
    prop_oneof![1usize..20, Just(16), Just(24), Just(32), Just(48), Just(64), 20usize..100]
}

/// How the outcome is made from a sum.
#[derive(Clone, Debug)]
struct Finish {
    activation: u8,
    float: bool,
    zero_point: u8,
    low: u8,
    high: u8,
    /// Typical outputs cover the range for about 1; 0 gives zeros, 1e9 saturates everything.
    gain: f32,
}

fn finishes() -> impl Strategy<Value = Finish> {
    let zero_points = prop_oneof![Just(0u8), Just(255u8), any::<u8>()];
    let gains = prop_oneof![3 => 0.05f32..4.0, 1 => Just(0.0f32), 1 => Just(1e9f32), 1 => Just(1e30f32)];
    let activations = prop_oneof![2 => Just(0u8), 1 => Just(1), 1 => Just(2)];
    (activations, prop::bool::weighted(0.2), zero_points, any::<u8>(), any::<u8>(), gains).prop_map(
        |(activation, float, zero_point, a, b, gain)| Finish {
            activation,
            float,
            zero_point,
            low: if a < 128 { 0 } else { a.min(b) },
            high: if a < 128 { 255 } else { a.max(b) },
            gain,
        },
    )
}

/// Which values fill inputs and weights.
#[derive(Clone, Copy, Debug)]
enum Fill {
    Random,
    /// Weights spread like a bell, as trained ones are.
    Bell,
    Extreme,
    Constant(u8, i8),
}

fn fills() -> impl Strategy<Value = Fill> {
    prop_oneof![
        3 => Just(Fill::Random),
        3 => Just(Fill::Bell),
        2 => Just(Fill::Extreme),
        1 => prop_oneof![Just((255, 127)), Just((255, -128)), Just((255, -127)), Just((128, -128)), Just((0, 127))]
            .prop_map(|(x, w)| Fill::Constant(x, w)),
    ]
}

/// xorshift: the same bytes for the same seed on every machine.
struct Random(u32);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0
    }

    fn input(&mut self, fill: Fill) -> u8 {
        match fill {
            Fill::Random | Fill::Bell => self.next() as u8,
            Fill::Extreme => [0, 1, 127, 128, 254, 255][self.next() as usize % 6],
            Fill::Constant(x, _) => x,
        }
    }

    fn weight(&mut self, fill: Fill) -> i8 {
        match fill {
            Fill::Random => self.next() as i8,
            Fill::Bell => ((0..3).map(|_| i32::from(self.next() as i8)).sum::<i32>() / 3) as i8,
            Fill::Extreme => [-128, -127, -1, 0, 1, 126, 127][self.next() as usize % 7],
            Fill::Constant(_, w) => w,
        }
    }
}

/// Arena and float buffer with the task's views in them.
struct Rig {
    bytes: Vec<u8>,
    floats: Vec<f32>,
    grid: Grid,
    tap_row: usize,
    tap_column: usize,
}

fn rig(shape: &Shape, finish: &Finish, fill: Fill, random: &mut Random) -> Rig {
    let pixel = shape.beside[0] + shape.inputs + shape.beside[1];
    let extent =
        |n: usize, kernel: usize, stride: usize, dilation: usize| (n - 1) * stride + (kernel - 1) * dilation + 1;
    let width = extent(shape.columns, shape.kernel.1, shape.stride.1, shape.dilation.1) + shape.halo[0];
    let height = extent(shape.rows, shape.kernel.0, shape.stride.0, shape.dilation.0);
    let pitch = width * pixel;
    let out_pixel = shape.beside[2] + shape.outputs + shape.beside[3];
    let out_pitch = (shape.columns * shape.spread + shape.halo[1]) * out_pixel;
    let input = SLACK + shape.beside[0];
    let behind = SLACK + height * pitch + SLACK;
    let output = behind + shape.beside[2];
    let size = behind + shape.rows * shape.spread * out_pitch + SLACK;
    let bytes = (0..size).map(|_| random.input(fill)).collect();
    let output = View {
        base: if finish.float { shape.beside[2] } else { output },
        row: out_pitch * shape.spread,
        pixel: out_pixel * shape.spread,
    };
    Rig {
        bytes,
        floats: vec![f32::NAN; shape.rows * shape.spread * out_pitch + SLACK],
        grid: Grid {
            rows: shape.rows,
            columns: shape.columns,
            input: View { base: input, row: shape.stride.0 * pitch, pixel: shape.stride.1 * pixel },
            output,
        },
        tap_row: shape.dilation.0 * pitch,
        tap_column: shape.dilation.1 * pixel,
    }
}

fn post(shape: &Shape, finish: &Finish, terms: usize, random: &mut Random) -> Post {
    let padded = shape.outputs.next_multiple_of(BLOCK);
    let of = |n: usize, random: &mut Random, f: &mut dyn FnMut(u32) -> f32| -> Box<[f32]> {
        (0..n).map(|i| if i < shape.outputs { f(random.next()) } else { 0.0 }).collect()
    };
    let bias = (0..padded)
        .map(|i| if i < shape.outputs { (random.next() as i32) >> (8 + random.next() % 20) } else { 0 })
        .collect();
    let unit = finish.gain / (terms as f32).sqrt() / 60.0;
    let scale = of(padded, random, &mut |r| unit * (0.5 + (r % 1000) as f32 / 1000.0));
    let activation = match finish.activation {
        0 => Activation::None,
        1 => Activation::Slope(of(padded, random, &mut |r| (r % 300) as f32 / 200.0 - 0.25)),
        _ => Activation::HardSwish { inverse: 0.75 },
    };
    let zero_point = i32::from(finish.zero_point);
    let store = if finish.float {
        Store::F32 { low: if finish.low > 99 { -1.5 } else { f32::NEG_INFINITY }, high: f32::INFINITY }
    } else {
        Store::U8 {
            low: (i32::from(finish.low) - zero_point) as f32,
            high: (i32::from(finish.high) - zero_point) as f32,
            zero_point,
        }
    };
    Post { bias, scale, activation, store }
}

fn dense(shape: &Shape, finish: &Finish, fill: Fill, seed: u32) -> (DenseSpec, Rig) {
    let mut random = Random(seed | 1);
    let rig = rig(shape, finish, fill, &mut random);
    // Columns and channels are one run where the input is a whole tensor and the columns are not dilated.
    let joined = shape.dilation.1 == 1 && shape.beside[0] + shape.beside[1] == 0;
    let (columns, length) = if joined { (1, shape.kernel.1 * shape.inputs) } else { (shape.kernel.1, shape.inputs) };
    let runs: Box<[Tap]> = (0..shape.kernel.0)
        .flat_map(|row| (0..columns).map(move |column| (row, column)))
        .map(|(row, column)| Tap { row, offset: column * rig.tap_column })
        .collect();
    let quads = length.div_ceil(QUAD);
    let blocks = shape.outputs.div_ceil(BLOCK);
    let mut weights = vec![0; blocks * runs.len() * quads * BLOCK * QUAD];
    for (i, weight) in weights.iter_mut().enumerate() {
        let (byte, lane) = (i % QUAD, i / QUAD % BLOCK);
        let (quad, block) = (i / (QUAD * BLOCK) % quads, i / (QUAD * BLOCK * quads * runs.len()));
        if quad * QUAD + byte < length && block * BLOCK + lane < shape.outputs {
            *weight = random.weight(fill);
        }
    }
    let terms = runs.len() * length;
    let spec = DenseSpec {
        grid: rig.grid,
        tap_row: rig.tap_row,
        runs,
        quads,
        channels: shape.outputs,
        weights: weights.into(),
        post: post(shape, finish, terms, &mut random),
    };
    (spec, rig)
}

fn depthwise(shape: &Shape, finish: &Finish, fill: Fill, seed: u32) -> (DepthwiseSpec, Rig) {
    let mut random = Random(seed | 1);
    let rig = rig(shape, finish, fill, &mut random);
    let taps = shape.kernel.0 * shape.kernel.1;
    let padded = shape.outputs.next_multiple_of(BLOCK);
    let weights =
        (0..taps * padded).map(|i| if i % padded < shape.outputs { random.weight(fill) } else { 0 }).collect();
    let spec = DepthwiseSpec {
        grid: rig.grid,
        kernel_rows: shape.kernel.0,
        kernel_columns: shape.kernel.1,
        tap_row: rig.tap_row,
        tap_column: rig.tap_column,
        channels: shape.outputs,
        weights,
        post: post(shape, finish, taps, &mut random),
    };
    (spec, rig)
}

/// Runs `layer` in two parts, split at a row or a column, and gives back arena and float buffer.
fn run(layer: &dyn Layer, rig: &Rig, split: u32) -> (Vec<u8>, Vec<u32>) {
    let (mut bytes, mut floats) = (rig.bytes.clone(), rig.floats.clone());
    let memory = Memory { bytes: bytes.as_mut_ptr(), floats: floats.as_mut_ptr() };
    let mut scratch = Scratch::new(layer.scratch());
    let (rows, columns) = (rig.grid.rows, rig.grid.columns);
    let areas = if split.is_multiple_of(2) {
        let at = split as usize / 2 % (rows + 1);
        [Area { rows: 0..at, columns: 0..columns }, Area { rows: at..rows, columns: 0..columns }]
    } else {
        let at = split as usize / 2 % (columns + 1);
        [Area { rows: 0..rows, columns: 0..at }, Area { rows: 0..rows, columns: at..columns }]
    };
    for area in areas {
        // SAFETY: arena and floats are those the task was made for, and nobody else holds them.
        unsafe { layer.run(memory, area, &mut scratch) };
    }
    (bytes, floats.into_iter().map(f32::to_bits).collect())
}

/// Every set that runs here. Where `VISAGED_INT8_NEEDS` names one that does not, the tests fail instead of leaving it out.
fn every() -> Vec<(&'static str, &'static dyn Kernels)> {
    if let Ok(name) = std::env::var("VISAGED_INT8_NEEDS") {
        name.parse::<crate::isa::Isa>().expect("VISAGED_INT8_NEEDS");
    }
    let sets = crate::isa::Isa::available().into_iter().map(|isa| (isa.name(), isa.kernels()));
    #[cfg(target_arch = "x86_64")]
    let sets = sets.chain(super::x86::forced::available());
    sets.collect()
}

fn cases() -> u32 {
    std::env::var("VISAGED_INT8_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_dense_kernel_equals_the_definition(
        shape in shapes(false), finish in finishes(), fill in fills(), seed: u32, split: u32,
    ) {
        let (spec, rig) = dense(&shape, &finish, fill, seed);
        let expected = run(&*Scalar.dense(spec.clone()), &rig, split);
        for (name, kernels) in every() {
            let got = run(&*kernels.dense(spec.clone()), &rig, split);
            prop_assert!(got == expected, "{name} differs: {shape:?} {finish:?}");
        }
    }

    #[test]
    fn every_depthwise_kernel_equals_the_definition(
        shape in shapes(true), finish in finishes(), fill in fills(), seed: u32, split: u32,
    ) {
        let (spec, rig) = depthwise(&shape, &finish, fill, seed);
        let expected = run(&*Scalar.depthwise(spec.clone()), &rig, split);
        for (name, kernels) in every() {
            let got = run(&*kernels.depthwise(spec.clone()), &rig, split);
            prop_assert!(got == expected, "{name} differs: {shape:?} {finish:?}");
        }
    }
}
