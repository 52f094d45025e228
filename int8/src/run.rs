//! Running a plan: memory, threads, the steps one after another.
//!
//! Invariants: a step is done, by whichever threads took its parts, before any of them begins the next; only the caller's thread touches what comes in and goes out; once made, a
//! network allocates nothing in [`Network::run`] (the outputs' vectors excepted, the first time).

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Instant;

use crate::graph::Order;
use crate::kernels::{Area, Memory, SLACK, Scratch};
use crate::plan::{Door, Halo, Inner, Place, Plan, Step, Work, staged_rows};
use crate::simple::{Picture, dequantise_rows, quantise_rows};

/// A [`Plan`] with memory of its own.
#[derive(Debug)]
pub struct Network {
    plan: Arc<Inner>,
    // Held for their memory; `memory` points into them.
    _arena: Scratch,
    _floats: Box<[f32]>,
    memory: Memory,
    scratch: Scratch,
    team: Option<Team>,
}

/// A run that could not be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// The caller gave more or fewer inputs.
    #[error("the network takes {expected} inputs, got {got}")]
    Inputs {
        /// How many it takes.
        expected: usize,
        /// How many were given.
        got: usize,
    },
    /// The caller gave a tensor of another size.
    #[error("input {name} takes {expected} values, got {got}")]
    Length {
        /// Which input.
        name: String,
        /// Values it takes.
        expected: usize,
        /// Values given.
        got: usize,
    },
    /// A thread of the network ended in a panic: a fault in this library. Make a new network.
    #[error("a thread of the network has ended; make the network anew and report the panic that was printed")]
    Thread,
}

impl Network {
    pub(crate) fn new(plan: &Plan, threads: NonZeroUsize) -> Self {
        let inner = plan.inner.clone();
        let mut arena = Scratch::new(inner.bytes);
        let mut floats = vec![0.0; inner.floats.max(1)].into_boxed_slice();
        let memory = Memory { bytes: arena.as_mut_ptr(), floats: floats.as_mut_ptr() };
        let scratch = Scratch::new(inner.scratch);
        let team = (threads.get() > 1).then(|| Team::new(&inner, memory, threads.get()));
        Self { plan: inner, _arena: arena, _floats: floats, memory, scratch, team }
    }

    /// Threads that run it, the caller's included.
    pub fn threads(&self) -> usize {
        self.team.as_ref().map_or(1, |team| team.workers.len() + 1)
    }

    /// Runs once: `inputs` and `outputs` in the plan's order, each as long as its shape has values. `outputs` is resized to fit.
    ///
    /// # Errors
    /// [`RunError`] where a count or length is wrong; nothing was run then.
    pub fn run(&mut self, inputs: &[&[f32]], outputs: &mut Vec<Vec<f32>>) -> Result<(), RunError> {
        if let Some(team) = &self.team {
            team.wake();
        }
        self.take(inputs)?;
        match &mut self.team {
            Some(team) => team.run(&self.plan, self.memory, &mut self.scratch)?,
            None => {
                for step in &self.plan.steps {
                    // SAFETY: the memory was made for this plan, and nobody else holds it.
                    unsafe { part(&self.plan, step, self.memory, (0, 1), &mut self.scratch) };
                }
            }
        }
        self.give(outputs);
        Ok(())
    }

    /// As [`Network::run`] on the caller's thread alone, adding each layer's nanoseconds to `times` (one a layer of the plan); what is
    /// done before the first layer counts for the last entry, which is one more.
    ///
    /// # Errors
    /// As [`Network::run`].
    pub fn run_timed(
        &mut self,
        inputs: &[&[f32]],
        outputs: &mut Vec<Vec<f32>>,
        times: &mut Vec<u64>,
    ) -> Result<(), RunError> {
        let layers =
            self.plan.steps.iter().map(|step| step.layer).filter(|i| *i != usize::MAX).max().map_or(0, |i| i + 1);
        times.resize(layers + 1, 0);
        let start = Instant::now();
        self.take(inputs)?;
        times[layers] += start.elapsed().as_nanos() as u64;
        for step in &self.plan.steps {
            let start = Instant::now();
            // SAFETY: as in `run`.
            unsafe { part(&self.plan, step, self.memory, (0, 1), &mut self.scratch) };
            times[step.layer.min(layers)] += start.elapsed().as_nanos() as u64;
        }
        let start = Instant::now();
        self.give(outputs);
        times[layers] += start.elapsed().as_nanos() as u64;
        Ok(())
    }

    fn take(&mut self, inputs: &[&[f32]]) -> Result<(), RunError> {
        let doors = &self.plan.inputs;
        if inputs.len() != doors.len() {
            return Err(RunError::Inputs { expected: doors.len(), got: inputs.len() });
        }
        for (door, data) in doors.iter().zip(inputs) {
            let expected = door.port.shape.len();
            if data.len() != expected {
                return Err(RunError::Length { name: door.port.name.clone(), expected, got: data.len() });
            }
        }
        for (door, data) in doors.iter().zip(inputs) {
            let Place::Bytes(picture) = door.at else { continue };
            for rows in pieces(picture) {
                // SAFETY: the memory was made for this plan, the lengths were checked, nobody else runs.
                unsafe { take_rows(&self.plan, self.memory, picture, rows, door.order, data, &mut self.scratch) };
            }
        }
        Ok(())
    }

    fn give(&mut self, outputs: &mut Vec<Vec<f32>>) {
        outputs.resize_with(self.plan.outputs.len(), Vec::new);
        for (door, output) in self.plan.outputs.iter().zip(outputs) {
            output.resize(door.port.shape.len(), 0.0);
            // SAFETY: the memory was made for this plan, the output has the tensor's length.
            unsafe { give(&self.plan, self.memory, door, output, &mut self.scratch) };
        }
    }
}

/// The rows of an input or output that are converted together.
fn pieces(picture: Picture) -> impl Iterator<Item = Range<usize>> {
    let (height, count) = (picture.shape.height, staged_rows(picture.shape));
    (0..height).step_by(count).map(move |y| y..height.min(y + count))
}

/// Quantises rows with the plan's instructions.
///
/// # Safety
/// As [`quantise_rows`].
unsafe fn take_rows(
    plan: &Inner,
    memory: Memory,
    picture: Picture,
    rows: Range<usize>,
    order: Order,
    data: &[f32],
    scratch: &mut Scratch,
) {
    #[cfg(target_arch = "x86_64")]
    if plan.isa != crate::isa::Isa::Scalar {
        #[target_feature(enable = "avx2")]
        unsafe fn with_avx2(
            memory: Memory,
            picture: Picture,
            rows: Range<usize>,
            order: Order,
            data: &[f32],
            scratch: &mut Scratch,
        ) {
            // SAFETY: the caller vouches.
            unsafe { quantise_rows(memory, picture, rows, order, data, scratch) };
        }
        // SAFETY: every set but the scalar one includes AVX2; the caller vouches for the rest.
        unsafe { with_avx2(memory, picture, rows, order, data, scratch) };
        return;
    }
    let _ = plan;
    // SAFETY: the caller vouches.
    unsafe { quantise_rows(memory, picture, rows, order, data, scratch) };
}

/// Writes rows of real numbers with the plan's instructions.
///
/// # Safety
/// As [`dequantise_rows`].
unsafe fn give_rows(
    plan: &Inner,
    memory: Memory,
    picture: Picture,
    rows: Range<usize>,
    order: Order,
    floats: *mut f32,
    scratch: &mut Scratch,
) {
    #[cfg(target_arch = "x86_64")]
    if plan.isa != crate::isa::Isa::Scalar {
        #[target_feature(enable = "avx2")]
        unsafe fn with_avx2(
            memory: Memory,
            picture: Picture,
            rows: Range<usize>,
            order: Order,
            floats: *mut f32,
            scratch: &mut Scratch,
        ) {
            // SAFETY: the caller vouches.
            unsafe { dequantise_rows(memory, picture, rows, order, floats, scratch) };
        }
        // SAFETY: every set but the scalar one includes AVX2; the caller vouches for the rest.
        unsafe { with_avx2(memory, picture, rows, order, floats, scratch) };
        return;
    }
    let _ = plan;
    // SAFETY: the caller vouches.
    unsafe { dequantise_rows(memory, picture, rows, order, floats, scratch) };
}

/// Writes an output.
///
/// # Safety
/// `memory` belongs to the door's plan, `output` has the tensor's length.
unsafe fn give(plan: &Inner, memory: Memory, door: &Door, output: &mut [f32], scratch: &mut Scratch) {
    match door.at {
        Place::Bytes(picture) => {
            for rows in pieces(picture) {
                // SAFETY: the caller vouches.
                unsafe { give_rows(plan, memory, picture, rows, door.order, output.as_mut_ptr(), scratch) };
            }
        }
        Place::Floats { base, shape } => {
            // SAFETY: the plan put the tensor there.
            let values = unsafe { std::slice::from_raw_parts(memory.floats.add(base), shape.len()) };
            let pixels = shape.height * shape.width;
            if door.order == Order::ChannelsLast || pixels == 1 || shape.channels == 1 {
                output.copy_from_slice(values);
                return;
            }
            for (i, pixel) in values.chunks_exact(shape.channels).enumerate() {
                for (channel, value) in pixel.iter().enumerate() {
                    output[channel * pixels + i] = *value;
                }
            }
        }
    }
}

/// Does one thread's part of a step.
///
/// # Safety
/// `memory` belongs to the plan; the other parts of this step are all that runs on it meanwhile.
unsafe fn part(plan: &Inner, step: &Step, memory: Memory, (index, count): (usize, usize), scratch: &mut Scratch) {
    let share = |n: usize| n * index / count..n * (index + 1) / count;
    match &step.work {
        Work::Halo(halo) => {
            if index == 0 {
                // SAFETY: the planner put the frame into the arena.
                unsafe { fill(memory, halo) };
            }
        }
        Work::Layer { layer, rows, columns } => {
            let area = if *rows >= count {
                Area { rows: share(*rows), columns: 0..*columns }
            } else {
                Area { rows: 0..*rows, columns: share(*columns) }
            };
            if !area.rows.is_empty() && !area.columns.is_empty() {
                // SAFETY: the planner proved the task; parts do not overlap.
                unsafe { layer.run(memory, area, scratch) };
            }
        }
        Work::Simple(simple) => {
            let rows = share(simple.rows());
            if !rows.is_empty() {
                // SAFETY: as above; the plan was made for a processor that is here.
                unsafe { simple.run(plan.isa, memory, rows, scratch) };
            }
        }
    }
}

/// Writes the zero-point around a picture.
///
/// # Safety
/// The frame lies within the arena.
unsafe fn fill(memory: Memory, halo: &Halo) {
    // SAFETY: the caller vouches.
    let fill = |at: usize, count: usize| unsafe { std::ptr::write_bytes(memory.bytes.add(at), halo.value, count) };
    let (above, height, below) = halo.rows;
    let (left, width, right) = halo.columns;
    fill(halo.start, above * halo.pitch);
    for y in above..above + height {
        let row = halo.start + y * halo.pitch;
        fill(row, left);
        fill(row + left + width, right);
    }
    fill(halo.start + (above + height) * halo.pitch, below * halo.pitch);
}

// --- threads -----------------------------------------------------------------------------------------------------

/// Threads that go through the steps together. A step is divided into parts, and each thread does those that are its own: its rows of one layer
/// are what it has made of its rows of the layer before, in its own caches. Where others keep a thread from its core, those
/// that wait for it take over what it has not begun.
#[derive(Debug)]
struct Team {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    threads: Vec<Thread>,
}

#[derive(Debug)]
struct Shared {
    /// The parts of each step, among all parts.
    stages: Box<[Range<usize>]>,
    /// For each part, in how many runs somebody has begun it. Only grows, so that who is late cannot take anything of a later run.
    begun: Box<[AtomicUsize]>,
    /// Counts runs that have begun; workers sleep until it changes.
    run: AtomicUsize,
    /// What `run` is about to be.
    soon: AtomicUsize,
    stop: AtomicBool,
    /// Parts done so far, over all runs.
    done: AtomicUsize,
    /// A thread panicked: nobody waits any more.
    broken: AtomicBool,
    threads: usize,
}

/// The least effort that a step is divided for: about a microsecond.
const DIVIDED: u64 = 60_000;
/// The effort of a part where a thread has several of a step.
const PART: u64 = 1_000_000;
/// Most parts of a step for each thread.
const PARTS: u64 = 4;
/// Looks before a waiting thread takes over what another has not begun.
const PATIENCE: u32 = 100;
/// Looks before a waiting thread lets others have the processor.
const SPINS: u32 = 4000;
/// Looks before a thread that was woken for a run that does not begin goes to sleep again.
const AWAKE: u32 = 3 * SPINS;

/// The parts of each step, among all parts.
fn stages(plan: &Inner, threads: usize) -> Box<[Range<usize>]> {
    let mut first = 0;
    let stage = |step: &Step| {
        let most = match &step.work {
            Work::Halo(_) => 1,
            Work::Layer { rows, columns, .. } => *rows.max(columns),
            Work::Simple(simple) => simple.rows(),
        };
        let each = (step.effort / (PART * threads as u64)).clamp(1, PARTS) as usize;
        let count = if step.effort < DIVIDED { 1 } else { (each * threads).min(most) };
        first += count;
        first - count..first
    };
    plan.steps.iter().map(stage).collect()
}

/// What a thread has on its way through a run.
struct Helper<'a> {
    shared: &'a Shared,
    plan: &'a Inner,
    memory: Memory,
    run: usize,
    scratch: &'a mut Scratch,
}

impl Helper<'_> {
    /// Parts done in this run; more than it has if the run is over.
    fn done(&self) -> usize {
        self.shared.done.load(Ordering::Acquire).wrapping_sub(self.run.wrapping_mul(self.shared.begun.len()))
    }

    /// Does a part, unless somebody has begun it.
    fn try_part(&mut self, step: usize, index: usize) -> bool {
        let Range { start, end } = self.shared.stages[step];
        let (begun, next) = (&self.shared.begun[start + index], self.run.wrapping_add(1));
        if begun.compare_exchange(self.run, next, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        // SAFETY: the memory belongs to the plan; the caller has seen all steps before done, and none behind, nor another run, begins
        // before this part is.
        unsafe { part(self.plan, &self.plan.steps[step], self.memory, (index, end - start), self.scratch) };
        self.shared.done.fetch_add(1, Ordering::AcqRel);
        true
    }

    /// Goes through all steps as thread `thread`.
    fn help(mut self, thread: usize) {
        let guard = Guard(self.shared);
        for (step, parts) in self.shared.stages.iter().enumerate() {
            let share = |thread: usize| (parts.len() * thread).div_ceil(self.shared.threads);
            for index in share(thread)..share(thread + 1) {
                self.try_part(step, index);
            }
            let mut wait = Wait::default();
            while self.done() < parts.end {
                if self.shared.broken.load(Ordering::Acquire) {
                    return;
                }
                if wait.0 >= PATIENCE && (0..parts.len()).rev().any(|index| self.try_part(step, index)) {
                    wait = Wait::default();
                }
                wait.a_little();
            }
        }
        std::mem::forget(guard);
    }
}

/// Waiting for other threads: at first without letting go of the core.
#[derive(Debug, Default)]
struct Wait(u32);

impl Wait {
    fn a_little(&mut self) {
        self.0 = self.0.saturating_add(1);
        if self.0 < SPINS { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

/// Lets nobody wait for a thread that panicked.
struct Guard<'a>(&'a Shared);

impl Drop for Guard<'_> {
    fn drop(&mut self) {
        self.0.broken.store(true, Ordering::Release);
    }
}

impl Team {
    fn new(plan: &Arc<Inner>, memory: Memory, count: usize) -> Self {
        let stages = stages(plan, count);
        let parts = stages.last().map_or(0, |parts| parts.end);
        let shared = Arc::new(Shared {
            stages,
            begun: (0..parts).map(|_| AtomicUsize::new(0)).collect(),
            run: AtomicUsize::new(0),
            soon: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
            done: AtomicUsize::new(0),
            broken: AtomicBool::new(false),
            threads: count,
        });
        let mut workers = Vec::new();
        for index in 1..count {
            let (shared, plan) = (shared.clone(), plan.clone());
            let work = move || {
                let mut scratch = Scratch::new(plan.scratch);
                let (mut seen, mut wait) = (0, Wait(AWAKE));
                loop {
                    let run = shared.run.load(Ordering::Acquire);
                    if shared.stop.load(Ordering::Acquire) {
                        return;
                    }
                    if run == seen {
                        // Woken before there is work, it looks for it for a while.
                        if shared.soon.load(Ordering::Acquire) != seen && wait.0 < AWAKE {
                            wait.a_little();
                        } else {
                            std::thread::park();
                            wait = Wait::default();
                        }
                        continue;
                    }
                    let (run, scratch) = (run.wrapping_sub(1), &mut scratch);
                    Helper { shared: &shared, plan: &plan, memory, run, scratch }.help(index);
                    seen = run.wrapping_add(1);
                    wait = Wait(AWAKE);
                }
            };
            match std::thread::Builder::new().name(format!("int8-{index}")).spawn(work) {
                Ok(handle) => workers.push(handle),
                // Those that there are take over its parts.
                Err(_) => break,
            }
        }
        let threads = workers.iter().map(|worker| worker.thread().clone()).collect();
        Self { shared, workers, threads }
    }

    /// Has the workers look for a run that is about to begin.
    fn wake(&self) {
        self.shared.soon.store(self.shared.run.load(Ordering::Acquire).wrapping_add(1), Ordering::Release);
        self.unpark();
    }

    fn unpark(&self) {
        for thread in &self.threads {
            thread.unpark();
        }
    }

    fn run(&mut self, plan: &Inner, memory: Memory, scratch: &mut Scratch) -> Result<(), RunError> {
        if self.shared.broken.load(Ordering::Acquire) {
            return Err(RunError::Thread);
        }
        let run = self.shared.run.fetch_add(1, Ordering::AcqRel);
        self.unpark();
        Helper { shared: &self.shared, plan, memory, run, scratch }.help(0);
        if self.shared.broken.load(Ordering::Acquire) { Err(RunError::Thread) } else { Ok(()) }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker that panicked has nothing left to say.
            let _ = worker.join();
        }
    }
}

const _: () = assert!(SLACK.is_multiple_of(64), "the arena's slack keeps the alignment of what follows");
