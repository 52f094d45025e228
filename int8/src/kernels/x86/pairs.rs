//! Pairs of input bytes whose products may be added in 16 bits.
//!
//! `vpmaddubsw` multiplies bytes twice as fast as `vpmaddwd` multiplies 16-bit integers, but adds two products with saturation. It is exact
//! where, of the two weights, those of the same sign add up to at most 128, as 255 * 128 is below 2^15. Which two bytes meet is free
//! within a window of 16 that one shuffle reaches: a matching of the bytes by which every pair is safe, for all channels of a
//! block, almost always exists for weights that are spread like a bell.

use super::super::{DenseSpec, QUAD};

/// Bytes that a shuffle reaches.
const WINDOW: usize = 16;
/// Weights of a pair that have the same sign add up to no more.
const SAFE: i32 = 128;
/// Choices that the search for a matching may make; it rarely needs more than eight.
const BUDGET: usize = 400;

/// Whether the products of two weights may be added.
pub(super) fn is_safe(a: i32, b: i32) -> bool {
    a.max(0) + b.max(0) <= SAFE && a.min(0) + b.min(0) >= -SAFE
}

/// Four input bytes that are multiplied together.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) run: usize,
    /// The window's first byte, from the run's first.
    pub(super) window: usize,
    /// Bytes within the window: two pairs.
    pub(super) bytes: [Option<usize>; QUAD],
}

/// The steps of a block of channels, `first..end`.
pub(super) fn steps(spec: &DenseSpec, first: usize, end: usize) -> Vec<Step> {
    let length = spec.quads * QUAD;
    let windows = (0..spec.runs.len()).flat_map(|run| (0..length).step_by(WINDOW).map(move |window| (run, window)));
    let mut steps = Vec::new();
    for (run, window) in windows {
        let weight = |channel: usize, byte: usize| {
            let at = window + byte;
            i32::from(spec.weight(channel, run, at / QUAD, at % QUAD))
        };
        let inside = WINDOW.min(length - window);
        let mut bytes = 0u16;
        let mut friends = [0u16; WINDOW];
        for a in (0..inside).filter(|&a| (first..end).any(|channel| weight(channel, a) != 0)) {
            bytes |= 1 << a;
            for b in (0..a).filter(|b| bytes & 1 << b != 0) {
                if (first..end).all(|channel| is_safe(weight(channel, a), weight(channel, b))) {
                    friends[a] |= 1 << b;
                    friends[b] |= 1 << a;
                }
            }
        }
        for two in matching(bytes, &friends).chunks(2) {
            let (one, other) = (two[0], two.get(1));
            let bytes = [Some(one.0), one.1, other.map(|pair| pair.0), other.and_then(|pair| pair.1)];
            steps.push(Step { run, window, bytes });
        }
    }
    steps
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
