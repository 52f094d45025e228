//! Functions of one value that a network applies element by element, as chains.

use std::rc::Rc;

use visaged_int8::graph::{Function, Quant};

/// One function; parameters that go by channel hold one value, or one a channel.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Unary {
    Clip(f32, f32),
    /// Below 0 times a factor.
    Slope(Rc<[f32]>),
    HardSwish,
    Sigmoid,
    Tanh,
    /// `clamp(alpha * x + beta, 0, 1)`.
    HardSigmoid(f32, f32),
    /// `x * factor + offset`.
    Affine(Rc<[f64]>, Rc<[f64]>),
    Absolute,
    /// Times a weight a pixel; only a mean takes it.
    PixelWeights(Rc<[f32]>),
    /// `x * chain(x)`.
    TimesChain(Rc<[Unary]>),
}

const SIXTH: f64 = 1.0 / 6.0;

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

fn at<T: Copy>(values: &[T], channel: usize) -> T {
    if values.len() == 1 { values[0] } else { values[channel] }
}

impl Unary {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Clip(..) => "clipping",
            Self::Slope(_) => "a slope",
            Self::HardSwish => "hard swish",
            Self::Sigmoid => "a sigmoid",
            Self::Tanh => "a hyperbolic tangent",
            Self::HardSigmoid(..) => "a hard sigmoid",
            Self::Affine(..) => "a factor or offset",
            Self::Absolute => "an absolute value",
            Self::PixelWeights(_) => "a weight a pixel",
            Self::TimesChain(_) => "a product of a value and its function",
        }
    }

    /// Functions in it, for bounding chains.
    pub(super) fn len(&self) -> usize {
        if let Self::TimesChain(chain) = self { 1 + chain.iter().map(Self::len).sum::<usize>() } else { 1 }
    }

    /// Whether the same function holds for every channel.
    fn is_one(&self) -> bool {
        match self {
            Self::Slope(slopes) => slopes.len() == 1,
            Self::Affine(factors, offsets) => factors.len() == 1 && offsets.len() == 1,
            Self::TimesChain(chain) => chain.iter().all(Self::is_one),
            _ => true,
        }
    }

    fn apply(&self, x: f64, channel: usize) -> f64 {
        match self {
            // No `clamp`: it panics where the bounds are the wrong way round.
            Self::Clip(low, high) => x.max(f64::from(*low)).min(f64::from(*high)),
            Self::Slope(slopes) if x < 0.0 => x * f64::from(at(slopes, channel)),
            Self::Slope(_) => x,
            Self::HardSwish => x * (x * SIXTH + 0.5).clamp(0.0, 1.0),
            Self::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Self::Tanh => x.tanh(),
            Self::HardSigmoid(alpha, beta) => (x * f64::from(*alpha) + f64::from(*beta)).clamp(0.0, 1.0),
            Self::Affine(factors, offsets) => x * at(factors, channel) + at(offsets, channel),
            Self::Absolute => x.abs(),
            Self::PixelWeights(_) => f64::NAN,
            Self::TimesChain(chain) => x * apply(chain, x, channel),
        }
    }

    fn is_factor(&self, factor: f64) -> bool {
        matches!(self, Self::Affine(a, b) if a.len() == 1 && b.len() == 1 && near(a[0], factor) && b[0] == 0.0)
    }

    fn is_offset(&self, offset: f64) -> bool {
        matches!(self, Self::Affine(a, b) if a.len() == 1 && b.len() == 1 && a[0] == 1.0 && near(b[0], offset))
    }

    fn is_hard_gate(&self) -> bool {
        matches!(self, Self::HardSigmoid(a, b) if near(f64::from(*a), SIXTH) && near(f64::from(*b), 0.5))
    }
}

/// The chain's value.
pub(super) fn apply(chain: &[Unary], x: f64, channel: usize) -> f64 {
    chain.iter().fold(x, |x, function| function.apply(x, channel))
}

/// Whether one table holds for every channel.
pub(super) fn is_one(chain: &[Unary]) -> bool {
    chain.iter().all(Unary::is_one)
}

/// A chain with one more function behind it, spelt in its shortest form.
pub(super) fn followed(chain: &[Unary], next: Unary) -> Vec<Unary> {
    let mut chain = chain.to_vec();
    match (chain.last(), &next) {
        (Some(Unary::Clip(a, b)), Unary::Clip(low, high)) if low <= high => {
            let both = Unary::Clip(a.max(*low).min(*high), b.max(*low).min(*high));
            chain.pop();
            chain.push(both);
        }
        // x * clip(x + 3, 0, 6), then a sixth of it.
        (Some(Unary::TimesChain(gate)), next)
            if next.is_factor(SIXTH)
                && matches!(&gate[..], [a, Unary::Clip(low, high)] if a.is_offset(3.0) && *low == 0.0 && *high == 6.0) =>
        {
            chain.pop();
            chain.push(Unary::HardSwish);
        }
        _ => chain.push(next),
    }
    chain
}

/// `x * gate(x)` as one function.
pub(super) fn gated(gate: &[Unary]) -> Unary {
    match gate {
        [a] if a.is_hard_gate() => Unary::HardSwish,
        [a, Unary::Clip(low, high), b] if a.is_offset(3.0) && *low == 0.0 && *high == 6.0 && b.is_factor(SIXTH) => {
            Unary::HardSwish
        }
        _ => Unary::TimesChain(gate.into()),
    }
}

/// The chain without a clipping at its end that rounding to `grid` does by itself.
pub(super) fn without_saturation(chain: &[Unary], grid: Quant) -> &[Unary] {
    let lowest = (0.0 - f64::from(grid.zero_point())) * f64::from(grid.scale());
    let highest = (255.0 - f64::from(grid.zero_point())) * f64::from(grid.scale());
    match chain {
        [rest @ .., Unary::Clip(low, high)] if f64::from(*low) <= lowest && f64::from(*high) >= highest => rest,
        chain => chain,
    }
}

/// The one function of a layer's own that the chain is.
///
/// # Errors
/// The name of the function that no layer has, or not behind another.
pub(super) fn fused(chain: &[Unary]) -> Result<Function, &'static str> {
    match chain {
        [] => Ok(Function::Identity),
        [Unary::Clip(low, high)] => Ok(Function::Clip { low: *low, high: *high }),
        [Unary::Slope(slopes)] => Ok(Function::Slope(slopes.to_vec())),
        [Unary::HardSwish] => Ok(Function::HardSwish),
        [other] => Err(other.name()),
        [.., last] => Err(last.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(factor: f64, offset: f64) -> Unary {
        Unary::Affine([factor].into(), [offset].into())
    }

    #[test]
    fn hard_swish_is_known_in_each_of_its_spellings() {
        assert_eq!(gated(&[Unary::HardSigmoid(1.0 / 6.0, 0.5)]), Unary::HardSwish);
        assert_eq!(gated(&[one(1.0, 3.0), Unary::Clip(0.0, 6.0), one(1.0 / 6.0, 0.0)]), Unary::HardSwish);
        let late = gated(&[one(1.0, 3.0), Unary::Clip(0.0, 6.0)]);
        assert_eq!(followed(&[late], one(1.0 / 6.0, 0.0)), [Unary::HardSwish]);
        assert_ne!(gated(&[Unary::HardSigmoid(0.2, 0.5)]), Unary::HardSwish);
    }

    #[test]
    fn two_clippings_are_one_and_what_the_grid_does_is_left_out() {
        let relu = Unary::Clip(0.0, f32::INFINITY);
        let both = followed(std::slice::from_ref(&relu), Unary::Clip(-1.0, 6.0));
        assert_eq!(both, [Unary::Clip(0.0, 6.0)]);
        let at_zero = Quant::new(0.1, 0).unwrap();
        assert!(without_saturation(std::slice::from_ref(&relu), at_zero).is_empty());
        let at_ten = Quant::new(0.1, 10).unwrap();
        assert_eq!(without_saturation(std::slice::from_ref(&relu), at_ten).len(), 1);
        assert_eq!(without_saturation(&both, at_zero).len(), 1, "the grid reaches to 25.5");
    }

    #[test]
    fn chains_are_applied_in_order() {
        let chain = [one(2.0, -1.0), Unary::Absolute, Unary::Slope([0.1].into()), gated(&[Unary::Sigmoid])];
        let x = 2.0 * -3.0 - 1.0_f64;
        let expected = x.abs() * (1.0 / (1.0 + (-x.abs()).exp()));
        assert!((apply(&chain, -3.0, 0) - expected).abs() < 1e-12);
        let by_channel = [Unary::Slope([0.5, 0.25].into())];
        assert!(!is_one(&by_channel) && is_one(&chain));
        assert_eq!(apply(&by_channel, -1.0, 1), -0.25);
    }
}
