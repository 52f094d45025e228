//! The wait between attempts to connect: doubling, with full jitter, so that a fleet does not come back in step.

use std::time::Duration;

use rand::{Rng, RngCore};

use crate::config::Backoff;

/// The waits after one failure, after two, and so on.
#[derive(Debug)]
pub(super) struct Waits {
    bounds: Backoff,
    failures: u32,
}

impl Waits {
    pub(super) fn new(bounds: Backoff) -> Self {
        Self { bounds, failures: 0 }
    }

    /// The next wait: evenly between nothing and the bound, which doubles from `first` to `longest`.
    pub(super) fn next(&mut self, rng: &mut dyn RngCore) -> Duration {
        let doubled = self.bounds.first.saturating_mul(1 << self.failures.min(20));
        self.failures = self.failures.saturating_add(1);
        doubled.min(self.bounds.longest).mul_f64(rng.random::<f64>())
    }

    /// A connection ended that lasted for `up`. Only one that outlasted the longest wait makes waits short again, or a
    /// broker that accepts and closes at once would be asked twice a second for ever.
    pub(super) fn connection_lasted(&mut self, up: Duration) {
        if up > self.bounds.longest {
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    fn waits() -> Waits {
        Waits::new(Backoff { first: Duration::from_millis(500), longest: Duration::from_secs(30) })
    }

    #[test]
    fn waits_double_up_to_the_longest_and_fill_their_range() {
        let mut rng = StdRng::seed_from_u64(7);
        for (failures, bound_ms) in [(0, 500), (1, 1000), (2, 2000), (5, 16_000), (6, 30_000), (90, 30_000)] {
            let bound = Duration::from_millis(bound_ms);
            let drawn: Vec<_> = (0..200).map(|_| Waits { failures, ..waits() }.next(&mut rng)).collect();
            assert!(drawn.iter().all(|wait| *wait <= bound), "after {failures} failures");
            assert!(drawn.iter().any(|wait| *wait > bound.mul_f64(0.9)), "after {failures} failures");
            assert!(drawn.iter().any(|wait| *wait < bound.mul_f64(0.1)), "after {failures} failures");
        }
    }

    #[test]
    fn only_a_connection_that_lasted_makes_waits_short_again() {
        let mut rng = StdRng::seed_from_u64(7);
        let mut waits = waits();
        for _ in 0..9 {
            waits.next(&mut rng);
        }
        waits.connection_lasted(Duration::from_secs(1));
        assert_eq!(waits.failures, 9);
        waits.connection_lasted(Duration::from_secs(31));
        assert_eq!(waits.failures, 0);
    }
}
