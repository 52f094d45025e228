//! How fast whole networks run: on one core, how near to what the processor can do, where the time goes, and what a second thread gains.
//!
//!     cargo run --release -p visaged-int8 --example networks [-- [avx2|...] [each] [part of a network's name]]
//!
//! With `each` every layer's time, otherwise those of layers of a kind together.
//! One and two threads take turns and the best of many runs counts: a busy machine only ever makes them slower.

use std::num::NonZeroUsize;
use std::time::Instant;

use visaged_int8::graph::{
    Builder, Conv, Function, Graph, GraphError, Order, Out, Padding, Pooling, Quant, Shape, TensorId, Window,
};
use visaged_int8::isa::Isa;
use visaged_int8::{Network, Plan, RunError, peak};

type Failure = Box<dyn std::error::Error>;

/// Runs of each way.
const ROUNDS: usize = 200;

/// A network in the making: convolutions with a ReLU, one behind the other, with weights as trained layers have them.
struct Chain {
    builder: Builder,
    last: TensorId,
    grid: Quant,
    layers: usize,
    seed: u32,
}

impl Chain {
    fn new(channels: usize, height: usize, width: usize) -> Result<Self, Failure> {
        let mut builder = Builder::new();
        let input = Quant::new(1.0 / 128.0, 128)?;
        let last = builder.input("input", Shape { height, width, channels }, Order::ChannelsFirst, input)?;
        Ok(Self { builder, last, grid: Quant::new(1.0 / 64.0, 0)?, layers: 0, seed: 1 })
    }

    /// A bell around zero.
    fn weight(&mut self) -> i8 {
        let mut sum = 0i32;
        for _ in 0..3 {
            self.seed = self.seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            sum += (self.seed >> 24) as i32 - 128;
        }
        (sum / 3).clamp(-127, 127) as i8
    }

    fn name(&mut self) -> String {
        self.layers += 1;
        format!("layer {}", self.layers)
    }

    /// To `channels` channels; as many groups as channels is a depthwise layer.
    fn conv(&mut self, kernel: usize, stride: usize, channels: usize, groups: usize) -> Result<(), GraphError> {
        let taken = self.builder.shape(self.last).channels / groups;
        let terms = kernel * kernel * taken;
        let (before, name) = (kernel / 2, self.name());
        // With steps of two an even picture needs no padding behind it.
        let behind = before - usize::from(stride == 2 && before > 0);
        let conv = Conv {
            kernel: (kernel, kernel),
            stride: (stride, stride),
            dilation: (1, 1),
            padding: Padding { top: before, left: before, bottom: behind, right: behind },
            groups,
            channels,
            weights: (0..channels * terms).map(|_| self.weight()).collect(),
            weight_scales: vec![1.0 / 64.0 / (terms as f32).sqrt()],
            bias: vec![],
            function: Function::RELU,
        };
        self.last = self.builder.conv(&name, self.last, conv, Out::U8(self.grid))?;
        Ok(())
    }

    fn halve(&mut self) -> Result<(), GraphError> {
        let window = Window { kernel: (2, 2), stride: (2, 2), padding: Padding::default() };
        let name = self.name();
        self.last = self.builder.pool(&name, self.last, Pooling::Max, window, Out::U8(self.grid))?;
        Ok(())
    }

    fn build(mut self) -> Result<Graph, GraphError> {
        self.builder.output("output", self.last, Order::ChannelsFirst);
        self.builder.build()
    }
}

/// Four layers of one kind.
fn stack(channels: usize, size: usize, kernel: usize, groups: usize) -> Result<Graph, Failure> {
    let mut chain = Chain::new(channels, size, size)?;
    for _ in 0..4 {
        chain.conv(kernel, 1, channels, groups)?;
    }
    Ok(chain.build()?)
}

/// A small MobileNet of blocks of a depthwise and a 1x1 layer.
fn mobile(size: usize) -> Result<Graph, Failure> {
    let mut chain = Chain::new(3, size, size)?;
    chain.conv(3, 2, 16, 1)?;
    for (stride, channels) in [(1, 32), (2, 64), (1, 64), (2, 128), (1, 128), (2, 256), (1, 256)] {
        let before = chain.builder.shape(chain.last).channels;
        chain.conv(3, stride, before, before)?;
        chain.conv(1, 1, channels, 1)?;
    }
    Ok(chain.build()?)
}

/// The trunk of the shipped face detector, as `layers/detector.txt` lists it.
fn detector() -> Result<Graph, Failure> {
    let mut chain = Chain::new(3, 256, 320)?;
    for line in include_str!("../layers/detector.txt").lines().skip(1) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (kind, numbers) = fields.split_first().ok_or("an empty line")?;
        let numbers = numbers.iter().map(|number| number.parse()).collect::<Result<Vec<usize>, _>>()?;
        let &[kernel, stride, inputs, outputs, height, _] = numbers.as_slice() else { return Err(line.into()) };
        if inputs != outputs && outputs == 1 {
            // The heads begin.
            break;
        }
        if chain.builder.shape(chain.last).height / stride > height {
            chain.halve()?;
        }
        chain.conv(kernel, stride, outputs, if *kind == "depthwise" { inputs } else { 1 })?;
    }
    Ok(chain.build()?)
}

/// Seconds of a run.
fn once(network: &mut Network, input: &[f32], outputs: &mut Vec<Vec<f32>>) -> Result<f64, RunError> {
    let start = Instant::now();
    network.run(&[input], outputs)?;
    Ok(start.elapsed().as_secs_f64())
}

fn report(name: &str, graph: &Graph, isa: Isa, peak: Option<f64>, each: bool) -> Result<(), Failure> {
    let plan = Plan::new(graph, isa);
    let input: Vec<f32> =
        plan.inputs().flat_map(|port| (0..port.shape.len()).map(|i| (i % 255) as f32 / 128.0 - 1.0)).collect();
    let two = NonZeroUsize::MIN.saturating_add(1);
    let (mut alone, mut together) = (plan.network(NonZeroUsize::MIN), plan.network(two));
    let (mut outputs, mut best) = (Vec::new(), [f64::INFINITY; 2]);
    let mut least = vec![u64::MAX; plan.layers().len() + 1];
    for _ in 0..ROUNDS {
        for (network, best) in [&mut alone, &mut together].into_iter().zip(&mut best) {
            *best = best.min(once(network, &input, &mut outputs)?);
        }
        let mut times = Vec::new();
        alone.run_timed(&[&input], &mut outputs, &mut times)?;
        for (least, time) in least.iter_mut().zip(times) {
            *least = time.min(*least);
        }
    }
    let work = graph.multiply_accumulates() as f64;
    let share = |seconds: f64| peak.map_or("-".into(), |peak| format!("{:.1} %", work / seconds / peak * 1e-7));
    println!(
        "{name}: {:.1} MMAC, {:.3} ms, {} of the peak; two threads {:.3} ms, {:.2} times as fast",
        work / 1e6,
        best[0] * 1e3,
        share(best[0]),
        best[1] * 1e3,
        best[0] / best[1]
    );
    if each {
        for (layer, time) in plan.layers().iter().zip(&least) {
            let (input, output, seconds) = (layer.input, layer.output, *time as f64 * 1e-9);
            let rate = layer.multiply_accumulates as f64 / seconds;
            println!(
                "    {:<10} {}x{} s{} {:>4} ->{:>4} @{:>3}x{:<3} {:.4} ms {:>5.1} %",
                layer.kind,
                layer.kernel.0,
                layer.kernel.1,
                layer.stride.0,
                input.channels,
                output.channels,
                output.height,
                output.width,
                seconds * 1e3,
                peak.map_or(0.0, |peak| rate / peak * 1e-7)
            );
        }
    }
    let mut kinds: Vec<(String, f64)> = Vec::new();
    for (i, time) in least.iter().enumerate() {
        let kind = plan.layers().get(i).map_or("floats in and out".into(), |layer| {
            format!("{} {}x{}", layer.kind, layer.kernel.0, layer.kernel.1)
        });
        let milliseconds = *time as f64 / 1e6;
        match kinds.iter_mut().find(|known| known.0 == kind) {
            Some(known) => known.1 += milliseconds,
            None => kinds.push((kind, milliseconds)),
        }
    }
    for (kind, milliseconds) in kinds {
        println!("    {kind:<20} {milliseconds:.3} ms");
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut isa = Isa::best();
    let (mut part, mut each) = (String::new(), false);
    for argument in std::env::args().skip(1) {
        match argument.parse() {
            Ok(named) => isa = named,
            Err(_) if argument == "each" => each = true,
            Err(_) => part = argument,
        }
    }
    let begun = Instant::now();
    let peak = peak::int8(isa, &|| begun.elapsed().as_secs_f64());
    println!("{}: int8 peak of one core {peak:.1?} GMAC/s", isa.name());
    let networks = [
        ("4 x 3x3, 32 channels, 64x64", stack(32, 64, 3, 1)?),
        ("4 x 3x3, 64 channels, 32x32", stack(64, 32, 3, 1)?),
        ("4 x depthwise 3x3, 128 channels, 64x64", stack(128, 64, 3, 128)?),
        ("4 x depthwise 3x3, 32 channels, 64x64", stack(32, 64, 3, 32)?),
        ("4 x 1x1, 128 channels, 32x32", stack(128, 32, 1, 1)?),
        ("mobile, 128x128", mobile(128)?),
        ("mobile, 256x256", mobile(256)?),
        ("detector's trunk, 320x256", detector()?),
    ];
    for (name, graph) in networks.iter().filter(|(name, _)| name.contains(&part)) {
        report(name, graph, isa, peak, each)?;
    }
    Ok(())
}
