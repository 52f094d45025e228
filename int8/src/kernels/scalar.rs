//! The definition of right, in plain Rust: what every other kernel must equal bit for bit. Also what runs where nothing faster fits.

use super::{Area, DenseSpec, DepthwiseSpec, Kernels, Layer, Memory, Post, Scratch, Store};

/// Kernels for any processor.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

impl Kernels for Scalar {
    fn dense(&self, spec: DenseSpec) -> Box<dyn Layer> {
        Box::new(Dense(spec))
    }

    fn depthwise(&self, spec: DepthwiseSpec) -> Box<dyn Layer> {
        Box::new(Depthwise(spec))
    }
}

#[derive(Debug)]
struct Dense(DenseSpec);

impl Layer for Dense {
    unsafe fn run(&self, memory: Memory, area: Area, _: &mut Scratch) {
        let spec = &self.0;
        for y in area.rows {
            for x in area.columns.clone() {
                let first = spec.grid.input.at(y, x);
                for channel in 0..spec.channels {
                    let mut sum = spec.post.bias[channel];
                    for (run, tap) in spec.runs.iter().enumerate() {
                        let start = first + tap.row * spec.tap_row + tap.offset;
                        for i in 0..spec.quads * 4 {
                            // SAFETY: the planner proved the bytes of every run within the arena and its slack.
                            let input = unsafe { memory.bytes.add(start + i).read() };
                            sum += i32::from(input) * i32::from(spec.weight(channel, run, i / 4, i % 4));
                        }
                    }
                    // SAFETY: the caller owns the outputs of `area`, which the planner proved to exist.
                    unsafe { store(memory, &spec.post, spec.grid.output.at(y, x) + channel, sum, channel) };
                }
            }
        }
    }
}

#[derive(Debug)]
struct Depthwise(DepthwiseSpec);

impl Layer for Depthwise {
    unsafe fn run(&self, memory: Memory, area: Area, _: &mut Scratch) {
        let spec = &self.0;
        for y in area.rows {
            for x in area.columns.clone() {
                let first = spec.grid.input.at(y, x);
                for channel in 0..spec.channels {
                    let mut sum = spec.post.bias[channel];
                    for tap in 0..spec.kernel_rows * spec.kernel_columns {
                        let (row, column) = (tap / spec.kernel_columns, tap % spec.kernel_columns);
                        let at = first + row * spec.tap_row + column * spec.tap_column + channel;
                        // SAFETY: the planner proved every tap within the arena.
                        let input = unsafe { memory.bytes.add(at).read() };
                        sum += i32::from(input) * i32::from(spec.weights[tap * spec.padded() + channel]);
                    }
                    // SAFETY: as in `Dense`.
                    unsafe { store(memory, &spec.post, spec.grid.output.at(y, x) + channel, sum, channel) };
                }
            }
        }
    }
}

/// Writes the outcome of one sum.
///
/// # Safety
/// `at` is an output of the running task.
#[inline(always)]
pub(super) unsafe fn store(memory: Memory, post: &Post, at: usize, sum: i32, channel: usize) {
    let value = post.value(sum, channel);
    match post.store {
        // SAFETY: by this function's contract.
        Store::U8 { zero_point, .. } => unsafe { memory.bytes.add(at).write(Post::byte(value, zero_point)) },
        // SAFETY: by this function's contract.
        Store::F32 { .. } => unsafe { memory.floats.add(at).write(value) },
    }
}
