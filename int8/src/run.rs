//! Running a plan: memory, threads, the steps one after another.
//!
//! Invariants: a stage is done, by whichever threads took its parts, before any of them begins the next, and all stages before
//! [`Network::run`] returns, which holds what comes in and goes out so long; once made, a network allocates nothing there (the outputs'
//! vectors excepted, the first time).

use std::num::NonZeroUsize;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::thread::{JoinHandle, Thread};
use std::time::Instant;

use crate::edges::{Plain, dequantise_rows, quantise_rows};
use crate::graph::Order;
use crate::kernels::{Area, Memory, SLACK, Scratch};
use crate::plan::{Door, Halo, Inner, Place, Plan, Step, Work, staged_rows};
use crate::simple::Picture;

/// A [`Plan`] with memory of its own.
#[derive(Debug)]
pub struct Network {
    plan: Arc<Inner>,
    // Held for their memory; `memory` points into them.
    _arena: Scratch,
    _floats: Box<[f32]>,
    memory: Memory,
    scratch: Scratch,
    doors: Arc<Doors>,
    team: Option<Team>,
}

/// Where the caller's floats lie while a run lasts: the inputs', then the outputs'.
#[derive(Debug)]
struct Doors(Box<[AtomicPtr<f32>]>);

impl Doors {
    fn at(&self, door: usize) -> *mut f32 {
        self.0[door].load(Ordering::Relaxed)
    }
}

/// What is done together before the next begins.
#[derive(Clone, Copy)]
enum Stage<'a> {
    /// An input, and which of the doors it is.
    Take(&'a Door, usize),
    Step(&'a Step),
    /// An output, likewise.
    Give(&'a Door, usize),
}

impl Inner {
    /// All stages, in order.
    fn stages(&self) -> impl Iterator<Item = Stage<'_>> {
        (0..self.inputs.len() + self.steps.len() + self.outputs.len()).map(|i| self.stage(i))
    }

    fn stage(&self, index: usize) -> Stage<'_> {
        let (inputs, steps) = (self.inputs.len(), self.steps.len());
        if index < inputs {
            Stage::Take(&self.inputs[index], index)
        } else if index < inputs + steps {
            Stage::Step(&self.steps[index - inputs])
        } else {
            let output = index - inputs - steps;
            Stage::Give(&self.outputs[output], inputs + output)
        }
    }
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
        let doors = inner.inputs.iter().chain(&inner.outputs).map(|_| AtomicPtr::default()).collect();
        let doors = Arc::new(Doors(doors));
        let team = (threads.get() > 1).then(|| Team::new(&inner, memory, &doors, threads.get()));
        Self { plan: inner, _arena: arena, _floats: floats, memory, scratch, doors, team }
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
        self.open(inputs, outputs)?;
        match &mut self.team {
            Some(team) => team.run(&self.plan, self.memory, &mut self.scratch)?,
            None => {
                for stage in self.plan.stages() {
                    // SAFETY: the memory was made for this plan, nobody else holds it, and the doors are this run's.
                    unsafe { part(&self.plan, stage, self.memory, &self.doors, (0, 1), &mut self.scratch) };
                }
            }
        }
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
        self.open(inputs, outputs)?;
        for stage in self.plan.stages() {
            let start = Instant::now();
            // SAFETY: as in `run`.
            unsafe { part(&self.plan, stage, self.memory, &self.doors, (0, 1), &mut self.scratch) };
            let layer = if let Stage::Step(step) = stage { step.layer.min(layers) } else { layers };
            times[layer] += start.elapsed().as_nanos() as u64;
        }
        Ok(())
    }

    /// Checks what comes in, makes room for what goes out, and notes where both are.
    fn open(&mut self, inputs: &[&[f32]], outputs: &mut Vec<Vec<f32>>) -> Result<(), RunError> {
        let ports = &self.plan.inputs;
        if inputs.len() != ports.len() {
            return Err(RunError::Inputs { expected: ports.len(), got: inputs.len() });
        }
        for (door, data) in ports.iter().zip(inputs) {
            let expected = door.port.shape.len();
            if data.len() != expected {
                return Err(RunError::Length { name: door.port.name.clone(), expected, got: data.len() });
            }
        }
        outputs.resize_with(self.plan.outputs.len(), Vec::new);
        for (door, output) in self.plan.outputs.iter().zip(&mut *outputs) {
            output.resize(door.port.shape.len(), 0.0);
        }
        let given = outputs.iter_mut().map(|output| output.as_mut_ptr());
        for (door, at) in self.doors.0.iter().zip(inputs.iter().map(|input| input.as_ptr().cast_mut()).chain(given)) {
            door.store(at, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// How many pieces the rows of an input or output are converted in.
fn pieces(picture: Picture) -> usize {
    picture.shape.height.div_ceil(staged_rows(picture.shape))
}

/// The rows of each of some pieces.
fn rows_of(picture: Picture, pieces: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let (height, count) = (picture.shape.height, staged_rows(picture.shape));
    pieces.map(move |i| i * count..height.min((i + 1) * count))
}

/// Rows of an input or output, to be converted.
struct Rows<'a> {
    memory: Memory,
    picture: Picture,
    rows: Range<usize>,
    order: Order,
    scratch: &'a mut Scratch,
}

impl Rows<'_> {
    /// Quantises them with the plan's instructions.
    ///
    /// # Safety
    /// As [`quantise_rows`].
    unsafe fn take(self, plan: &Inner, data: &[f32]) {
        let Self { memory, picture, rows, order, scratch } = self;
        #[cfg(target_arch = "x86_64")]
        if plan.isa != crate::isa::Isa::Scalar {
            #[target_feature(enable = "avx2")]
            unsafe fn with_avx2(rows: Rows<'_>, data: &[f32]) {
                let Rows { memory, picture, rows, order, scratch } = rows;
                // SAFETY: the caller vouches.
                unsafe { quantise_rows::<crate::edges::Avx2>(memory, picture, rows, order, data, scratch) };
            }
            // SAFETY: every set but the scalar one includes AVX2; the caller vouches for the rest.
            unsafe { with_avx2(Self { memory, picture, rows, order, scratch }, data) };
            return;
        }
        let _ = plan;
        // SAFETY: the caller vouches.
        unsafe { quantise_rows::<Plain>(memory, picture, rows, order, data, scratch) };
    }

    /// Writes them as real numbers with the plan's instructions.
    ///
    /// # Safety
    /// As [`dequantise_rows`].
    unsafe fn give(self, plan: &Inner, floats: *mut f32) {
        let Self { memory, picture, rows, order, scratch } = self;
        #[cfg(target_arch = "x86_64")]
        if plan.isa != crate::isa::Isa::Scalar {
            #[target_feature(enable = "avx2")]
            unsafe fn with_avx2(rows: Rows<'_>, floats: *mut f32) {
                let Rows { memory, picture, rows, order, scratch } = rows;
                // SAFETY: the caller vouches.
                unsafe { dequantise_rows::<crate::edges::Avx2>(memory, picture, rows, order, floats, scratch) };
            }
            // SAFETY: every set but the scalar one includes AVX2; the caller vouches for the rest.
            unsafe { with_avx2(Self { memory, picture, rows, order, scratch }, floats) };
            return;
        }
        let _ = plan;
        // SAFETY: the caller vouches.
        unsafe { dequantise_rows::<Plain>(memory, picture, rows, order, floats, scratch) };
    }
}

/// Writes an output that was computed in real numbers.
///
/// # Safety
/// `values` lie where the plan put the tensor, `output` has room for as many.
unsafe fn give_floats(values: *const f32, shape: crate::graph::Shape, order: Order, output: *mut f32) {
    // SAFETY: by this function's contract.
    let (values, output) = unsafe {
        let values = std::slice::from_raw_parts(values, shape.len());
        (values, std::slice::from_raw_parts_mut(output, shape.len()))
    };
    let pixels = shape.height * shape.width;
    if order == Order::ChannelsLast || pixels == 1 || shape.channels == 1 {
        output.copy_from_slice(values);
        return;
    }
    for (i, pixel) in values.chunks_exact(shape.channels).enumerate() {
        for (channel, value) in pixel.iter().enumerate() {
            output[channel * pixels + i] = *value;
        }
    }
}

/// Does one part of a stage.
///
/// # Safety
/// `memory` belongs to the plan, and the doors are as long as its ports; the other parts of this stage are all that runs on them meanwhile.
unsafe fn part(
    plan: &Inner,
    stage: Stage<'_>,
    memory: Memory,
    doors: &Doors,
    (index, count): (usize, usize),
    scratch: &mut Scratch,
) {
    let share = |n: usize| n * index / count..n * (index + 1) / count;
    match stage {
        Stage::Take(Door { at: Place::Bytes(picture), order, port }, door) => {
            // SAFETY: the lengths were checked; nobody writes an input.
            let data = unsafe { std::slice::from_raw_parts(doors.at(door), port.shape.len()) };
            for rows in rows_of(*picture, share(pieces(*picture))) {
                // SAFETY: the memory was made for this plan; parts do not overlap.
                unsafe { Rows { memory, picture: *picture, rows, order: *order, scratch }.take(plan, data) };
            }
        }
        Stage::Give(Door { at: Place::Bytes(picture), order, .. }, door) => {
            for rows in rows_of(*picture, share(pieces(*picture))) {
                let rows = Rows { memory, picture: *picture, rows, order: *order, scratch };
                // SAFETY: the memory was made for this plan, the output has the tensor's length; parts do not overlap.
                unsafe { rows.give(plan, doors.at(door)) };
            }
        }
        Stage::Give(Door { at: Place::Floats { base, shape }, order, .. }, door) if index == 0 => {
            // SAFETY: likewise; the first part does it all.
            unsafe { give_floats(memory.floats.add(*base), *shape, *order, doors.at(door)) };
        }
        Stage::Step(step) => {
            // SAFETY: by this function's contract.
            unsafe { part_of_step(plan, step, memory, (index, count), scratch) };
        }
        // Inputs are bytes, and other parts of floats have nothing to do.
        Stage::Take(..) | Stage::Give(..) => {}
    }
}

/// Does one part of a step.
///
/// # Safety
/// As for [`part`].
unsafe fn part_of_step(
    plan: &Inner,
    step: &Step,
    memory: Memory,
    (index, count): (usize, usize),
    scratch: &mut Scratch,
) {
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
    doors: Arc<Doors>,
    /// The parts of each stage, among all parts.
    stages: Box<[Range<usize>]>,
    /// For each part, in how many runs somebody has begun it. Only grows, so that who is late cannot take anything of a later run.
    begun: Box<[AtomicUsize]>,
    /// Counts runs that have begun; workers sleep until it changes.
    run: AtomicUsize,
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
/// What converting a value takes, in multiply-accumulates.
const EFFORT_OF_AN_EDGE: usize = 4;

/// The parts of each stage, among all parts.
fn parts(plan: &Inner, threads: usize) -> Box<[Range<usize>]> {
    let mut first = 0;
    let parts = |stage: Stage<'_>| {
        let (effort, most) = match stage {
            Stage::Take(door, _) | Stage::Give(door, _) => match door.at {
                Place::Bytes(picture) => ((picture.shape.len() * EFFORT_OF_AN_EDGE) as u64, pieces(picture)),
                Place::Floats { .. } => (0, 1),
            },
            Stage::Step(step) => match &step.work {
                Work::Halo(_) => (step.effort, 1),
                Work::Layer { rows, columns, .. } => (step.effort, *rows.max(columns)),
                Work::Simple(simple) => (step.effort, simple.rows()),
            },
        };
        let each = (effort / (PART * threads as u64)).clamp(1, PARTS) as usize;
        let count = if effort < DIVIDED { 1 } else { (each * threads).min(most) };
        first += count;
        first - count..first
    };
    plan.stages().map(parts).collect()
}

/// What a thread has on its way through a run.
struct Helper<'a> {
    shared: &'a Shared,
    plan: &'a Inner,
    memory: Memory,
    run: usize,
    scratch: &'a mut Scratch,
}

impl Shared {
    /// Parts done in a run; more than it has if the run is over.
    fn done(&self, run: usize) -> usize {
        self.done.load(Ordering::Acquire).wrapping_sub(run.wrapping_mul(self.begun.len()))
    }
}

impl Helper<'_> {
    /// Does a part, unless somebody has begun it.
    fn try_part(&mut self, stage: usize, index: usize) -> bool {
        let Range { start, end } = self.shared.stages[stage];
        let (begun, next) = (&self.shared.begun[start + index], self.run.wrapping_add(1));
        if begun.compare_exchange(self.run, next, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        let (stage, share) = (self.plan.stage(stage), (index, end - start));
        let _ended = Ended(self.shared);
        // SAFETY: the memory belongs to the plan; the caller has seen all stages before done, and none behind, nor another run, begins
        // before this part is.
        unsafe { part(self.plan, stage, self.memory, &self.shared.doors, share, self.scratch) };
        true
    }

    /// Goes through all stages as thread `thread`.
    fn help(mut self, thread: usize) {
        let guard = Guard(self.shared);
        for (stage, parts) in self.shared.stages.iter().enumerate() {
            let share = |thread: usize| (parts.len() * thread).div_ceil(self.shared.threads);
            for index in share(thread)..share(thread + 1) {
                self.try_part(stage, index);
            }
            let mut wait = Wait::default();
            while self.shared.done(self.run) < parts.end {
                if self.shared.broken.load(Ordering::Acquire) {
                    return;
                }
                if wait.0 >= PATIENCE && (0..parts.len()).rev().any(|index| self.try_part(stage, index)) {
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

/// Counts a part that is done, or that ended in a panic, which is told first.
struct Ended<'a>(&'a Shared);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.broken.store(true, Ordering::Release);
        }
        self.0.done.fetch_add(1, Ordering::AcqRel);
    }
}

/// Keeps a run that a panic has broken from ending before all threads have left the caller's floats.
struct Closing<'a>(&'a Shared, usize);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        let Self(shared, run) = self;
        if !shared.broken.load(Ordering::Acquire) {
            return;
        }
        // What nobody has begun nobody begins any more; what somebody has begun is waited for.
        let take = |begun: &&AtomicUsize| {
            begun.compare_exchange(*run, run.wrapping_add(1), Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        let taken = shared.begun.iter().filter(take).count();
        let mut wait = Wait::default();
        while shared.done(*run) + taken < shared.begun.len() {
            wait.a_little();
        }
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
    fn new(plan: &Arc<Inner>, memory: Memory, doors: &Arc<Doors>, count: usize) -> Self {
        let stages = parts(plan, count);
        let parts = stages.last().map_or(0, |parts| parts.end);
        let shared = Arc::new(Shared {
            doors: doors.clone(),
            stages,
            begun: (0..parts).map(|_| AtomicUsize::new(0)).collect(),
            run: AtomicUsize::new(0),
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
                let mut seen = 0;
                loop {
                    let run = shared.run.load(Ordering::Acquire);
                    if shared.stop.load(Ordering::Acquire) {
                        return;
                    }
                    if run == seen {
                        std::thread::park();
                        continue;
                    }
                    let (run, scratch) = (run.wrapping_sub(1), &mut scratch);
                    Helper { shared: &shared, plan: &plan, memory, run, scratch }.help(index);
                    seen = run.wrapping_add(1);
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
        let closing = Closing(&self.shared, run);
        Helper { shared: &self.shared, plan, memory, run, scratch }.help(0);
        drop(closing);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_run_ends_when_nobody_is_within_a_part_any_more() {
        let shared = Shared {
            doors: Arc::new(Doors(Box::default())),
            stages: [0..2, 2..3].into(),
            begun: (0..3).map(|_| AtomicUsize::new(0)).collect(),
            run: AtomicUsize::new(1),
            stop: AtomicBool::new(false),
            done: AtomicUsize::new(0),
            broken: AtomicBool::new(true),
            threads: 2,
        };
        let (left, inside) = (AtomicBool::new(false), std::sync::Barrier::new(2));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                shared.begun[1].store(1, Ordering::Release);
                inside.wait();
                (0..1000).for_each(|_| std::thread::yield_now());
                left.store(true, Ordering::Release);
                drop(Ended(&shared));
            });
            inside.wait();
            drop(Closing(&shared, 0));
            assert!(left.load(Ordering::Acquire));
            assert!(
                shared.begun.iter().all(|begun| begun.load(Ordering::Acquire) == 1),
                "nobody begins a part after it"
            );
        });
    }
}
