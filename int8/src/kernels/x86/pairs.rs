//! Pairs of input bytes whose products may be added in 16 bits.
//!
//! `vpmaddubsw` multiplies bytes twice as fast as `vpmaddwd` multiplies 16-bit integers, but adds two products with saturation. It is exact
//! where, of the two weights, those of the same sign add up to at most 128, as 255 * 128 is below 2^15. Which two bytes meet is free
//! within a window of 16 that one shuffle reaches: a matching of the bytes by which every pair is safe, for all channels of a
//! block, almost always exists for weights that are spread like a bell. Four bytes side by side need no shuffle where their pairs are safe as
//! they lie; what is left over in several windows is joined.

use std::ops::Range;

use super::super::{DenseSpec, QUAD};

/// Bytes that a shuffle reaches.
const WINDOW: usize = 16;
/// Weights of a pair that have the same sign add up to no more.
const SAFE: i32 = 128;
/// Of what is left over, so many are looked through for a partner: weights that nothing goes with must not take forever.
const REACH: usize = 16;
/// Choices that the search for a matching may make; it rarely needs more than eight.
const BUDGET: usize = 400;

/// Whether the products of two weights may be added.
pub(super) fn is_safe(a: i32, b: i32) -> bool {
    a.max(0) + b.max(0) <= SAFE && a.min(0) + b.min(0) >= -SAFE
}

/// A byte of input: its run, and where in it.
type Byte = (usize, usize);

/// Four input bytes that are multiplied together: two pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) way: Way,
    pub(super) bytes: [Option<Byte>; QUAD],
}

/// How the bytes of a step come together; the first is the cheapest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    /// They lie side by side.
    Quad,
    /// They lie within a window.
    Window,
    /// They lie anywhere, in up to [`TERMS`] places.
    Joint,
}

/// Places that the bytes of a joint step come from.
pub(super) const TERMS: usize = QUAD;

/// The steps of a block of channels, `first..end`, in the order of their ways.
pub(super) fn steps(spec: &DenseSpec, first: usize, end: usize) -> Vec<Step> {
    let block = Block { spec, channels: first..end };
    let ways = [(false, false), (true, false), (false, true), (true, true)];
    let mut steps = ways
        .map(|(quads, join)| block.steps(quads, join))
        .into_iter()
        .min_by_key(|steps| cost(steps))
        .unwrap_or_default();
    steps.sort_by_key(|step| step.way);
    steps
}

/// What steps take, by instructions for 16 channels of a pixel. That each way has a loop of its own costs next to nothing.
fn cost(steps: &[Step]) -> usize {
    let of = |way: Way| steps.iter().filter(|step| step.way == way).count();
    of(Way::Quad) * 7 + of(Way::Window) * 8 + of(Way::Joint) * 14
}

/// Whether bytes lie in one window.
fn is_window(bytes: [Option<Byte>; QUAD]) -> bool {
    let mut places = bytes.into_iter().flatten().map(|byte| (byte.0, window(byte)));
    let first = places.next();
    places.all(|place| Some(place) == first)
}

/// A window's first byte.
pub(super) fn window((_, byte): Byte) -> usize {
    byte / WINDOW * WINDOW
}

struct Block<'a> {
    spec: &'a DenseSpec,
    channels: Range<usize>,
}

impl Block<'_> {
    fn weight(&self, channel: usize, (run, byte): Byte) -> i32 {
        i32::from(self.spec.weight(channel, run, byte / QUAD, byte % QUAD))
    }

    fn counts(&self, byte: Byte) -> bool {
        self.channels.clone().any(|channel| self.weight(channel, byte) != 0)
    }

    fn are_safe(&self, a: Byte, b: Byte) -> bool {
        self.channels.clone().all(|channel| is_safe(self.weight(channel, a), self.weight(channel, b)))
    }

    /// `quads`: whether bytes side by side are taken together first wherever they may be; `join`: whether bytes of several windows may meet.
    fn steps(&self, quads: bool, join: bool) -> Vec<Step> {
        let length = self.spec.quads * QUAD;
        let windows = (0..self.spec.runs.len()).flat_map(|run| (0..length).step_by(WINDOW).map(move |at| (run, at)));
        let (mut steps, mut halves) = (Vec::new(), Vec::new());
        for (run, window) in windows {
            let mut bytes = (window..length.min(window + WINDOW))
                .filter(|&byte| self.counts((run, byte)))
                .fold(0u16, |bytes, byte| bytes | 1 << (byte - window));
            for quad in (0..WINDOW).step_by(QUAD).filter(|_| quads) {
                let at = |i: usize| (run, window + quad + i);
                let mine = bytes & 0xf << quad;
                if mine.count_ones() > 2 && self.are_safe(at(0), at(1)) && self.are_safe(at(2), at(3)) {
                    let taken = std::array::from_fn(|i| (mine & 1 << (quad + i) != 0).then(|| at(i)));
                    steps.push(Step { way: Way::Quad, bytes: taken });
                    bytes &= !mine;
                }
            }
            let mut friends = [0u16; WINDOW];
            let inside = || (0..WINDOW).filter(|byte| bytes & 1 << byte != 0);
            for (a, b) in inside().flat_map(|a| inside().take_while(move |&b| b < a).map(move |b| (a, b))) {
                if self.are_safe((run, window + a), (run, window + b)) {
                    friends[a] |= 1 << b;
                    friends[b] |= 1 << a;
                }
            }
            let byte = |byte: usize| (run, window + byte);
            let pairs: Vec<Half> =
                matching(bytes, &friends).iter().map(|&(a, b)| [Some(byte(a)), b.map(byte)]).collect();
            let (pairs, single): (Vec<Half>, Vec<Half>) = pairs.iter().partition(|pair| pair[1].is_some());
            let (twos, rest) = pairs.as_chunks::<2>();
            steps.extend(twos.iter().map(|[a, b]| Step { way: Way::Window, bytes: [a[0], a[1], b[0], b[1]] }));
            halves.extend(rest);
            halves.extend(single);
        }
        steps.extend(self.joined(halves, join));
        steps
    }

    /// Steps of what is left over in windows, given window by window.
    fn joined(&self, halves: Vec<Half>, join: bool) -> Vec<Step> {
        // Bytes that are alone become pairs where they may.
        let mut pairs: Vec<Half> = Vec::new();
        for half in halves {
            let alone = |pair: &&mut Half| match (**pair, half) {
                ([Some(a), None], [Some(b), None]) => join && self.are_safe(a, b),
                _ => false,
            };
            match pairs.iter_mut().rev().take(REACH).find(alone) {
                Some(pair) => pair[1] = half[0],
                None => pairs.push(half),
            }
        }
        // Two of one window are a step of it; of others any two.
        let with = |a: Half, b: Half| [a[0], a[1], b[0], b[1]];
        let (mut steps, mut open) = (Vec::new(), Vec::<Half>::new());
        for half in pairs {
            match open.iter().rev().take(REACH).position(|other| is_window(with(*other, half))) {
                Some(back) => {
                    let other = open.remove(open.len() - 1 - back);
                    steps.push(Step { way: Way::Window, bytes: with(other, half) });
                }
                None => open.push(half),
            }
        }
        for two in open.chunks(if join { 2 } else { 1 }) {
            let bytes = with(two[0], two.get(1).copied().unwrap_or_default());
            steps.push(Step { way: if is_window(bytes) { Way::Window } else { Way::Joint }, bytes });
        }
        steps
    }
}

/// A pair of bytes, or one.
type Half = [Option<Byte>; 2];

/// Where the bytes of a step come from: a run, the place of a byte in it less that in the step, and which bytes of the step those are.
pub(super) fn terms(bytes: [Option<Byte>; QUAD]) -> Vec<(usize, isize, [bool; QUAD])> {
    let mut terms: Vec<(usize, isize, [bool; QUAD])> = Vec::new();
    for (i, (run, byte)) in bytes.into_iter().enumerate().filter_map(|(i, byte)| Some((i, byte?))) {
        let at = byte as isize - i as isize;
        match terms.iter_mut().find(|term| (term.0, term.1) == (run, at)) {
            Some(term) => term.2[i] = true,
            None => terms.push((run, at, std::array::from_fn(|other| other == i))),
        }
    }
    terms
}

/// Bytes by two, or alone where no partner is left.
type Pairs = Vec<(usize, Option<usize>)>;

/// As few pairs as a short search finds.
fn matching(bytes: u16, friends: &[u16; WINDOW]) -> Pairs {
    let mut search = Search { friends, best: None, budget: BUDGET, lower: (bytes.count_ones() as usize).div_ceil(2) };
    search.go(bytes, &mut Vec::new());
    search.best.unwrap_or_default()
}

struct Search<'a> {
    friends: &'a [u16; WINDOW],
    best: Option<Pairs>,
    budget: usize,
    /// No matching has fewer pairs.
    lower: usize,
}

impl Search<'_> {
    fn go(&mut self, left: u16, pairs: &mut Pairs) {
        let best = self.best.as_ref().map_or(usize::MAX, Vec::len);
        let alone = |byte: &usize| (self.friends[*byte] & left).count_ones();
        let Some(byte) = (0..WINDOW).filter(|byte| left & 1 << byte != 0).min_by_key(alone) else {
            if pairs.len() < best {
                self.best = Some(pairs.clone());
            }
            return;
        };
        if best == self.lower || pairs.len() + (left.count_ones() as usize).div_ceil(2) >= best {
            return;
        }
        // The first way down is always taken to its end, so that there is a matching at all.
        if self.best.is_some() && self.budget == 0 {
            return;
        }
        self.budget = self.budget.saturating_sub(1);
        let left = left & !(1 << byte);
        let partners = self.friends[byte] & left;
        if partners == 0 {
            pairs.push((byte, None));
            self.go(left, pairs);
            pairs.pop();
        }
        for partner in (0..WINDOW).filter(|partner| partners & 1 << partner != 0) {
            pairs.push((byte, Some(partner)));
            self.go(left & !(1 << partner), pairs);
            pairs.pop();
        }
    }
}

/// How many steps in pairs the channels of a block have.
pub(super) fn count(spec: &DenseSpec, first: usize, channels: usize) -> usize {
    steps(spec, first, spec.channels.min(first + channels)).len()
}
