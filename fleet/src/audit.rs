//! Proves from the store that each boot of each device is there without a gap, up to gaps that the device declared.
//!
//! What is proven: between 0 (or where the retention stopped) and the last number known of a boot, an event's or a gap's, no number is missing that no declared gap holds.
//! What cannot be: whether a boot had later events that never came, as nobody here can know of them.

use serde::Serialize;

use crate::store::{BootRange, Store, StoreError};
use crate::time::Micros;

/// Events of one boot that are missing and were not declared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Missing {
    /// `site/device`.
    pub device: String,
    /// The run of its process.
    pub boot: String,
    /// First missing `seq`.
    pub from: i64,
    /// Last missing `seq`.
    pub to: i64,
}

/// What the audit found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct Audit {
    /// Boots looked at.
    pub boots: i64,
    /// Events in the store.
    pub events: i64,
    /// Events that are missing and were declared lost.
    pub declared: i64,
    /// What is missing without a word.
    pub missing: Vec<Missing>,
}

/// Looks at everything. Holes whose next event came after `settled` are passed over: what belongs into them may still be on its way.
///
/// # Errors
/// [`StoreError`].
pub async fn audit(store: &Store, settled: Micros) -> Result<Audit, StoreError> {
    let (boots, events) = store.totals().await?;
    let holes = store.holes(settled).await?;
    let declared = store.declared().await?;
    let (undeclared, covered) = subtract(&holes, &declared);
    let mut missing = Vec::with_capacity(undeclared.len());
    for hole in undeclared {
        let (device, boot) = store.boot_name(hole.boot_id).await?;
        missing.push(Missing { device, boot, from: hole.from, to: hole.to });
    }
    missing.sort_by(|a, b| (&a.device, &a.boot, a.from).cmp(&(&b.device, &b.boot, b.from)));
    Ok(Audit { boots, events, declared: covered, missing })
}

/// What of `holes` no range of `declared` holds, and how many numbers one does. Both by boot and first number; declared ones may overlap.
fn subtract(holes: &[BootRange], declared: &[BootRange]) -> (Vec<BootRange>, i64) {
    let (mut left, mut covered, mut first) = (Vec::new(), 0, 0);
    for hole in holes {
        let mut from = hole.from;
        while declared.get(first).is_some_and(|gap| gap.boot_id < hole.boot_id) {
            first += 1;
        }
        for gap in declared[first..].iter().take_while(|gap| gap.boot_id == hole.boot_id && gap.from <= hole.to) {
            if gap.to < from {
                continue;
            }
            if gap.from > from {
                left.push(BootRange { boot_id: hole.boot_id, from, to: gap.from - 1 });
            }
            let end = gap.to.min(hole.to);
            covered += end - gap.from.max(from) + 1;
            from = end + 1;
        }
        if from <= hole.to {
            left.push(BootRange { boot_id: hole.boot_id, from, to: hole.to });
        }
    }
    (left, covered)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn range(boot_id: i64, from: i64, to: i64) -> BootRange {
        BootRange { boot_id, from, to }
    }

    #[test]
    fn declared_gaps_cover_holes_and_what_is_left_is_named() {
        let holes = [range(1, 0, 4), range(1, 10, 12), range(2, 3, 3)];
        let declared = [range(1, 1, 2), range(1, 2, 3), range(1, 8, 20), range(3, 3, 3)];
        assert_eq!(subtract(&holes, &declared), (vec![range(1, 0, 0), range(1, 4, 4), range(2, 3, 3)], 6));
    }

    proptest! {
        #[test]
        fn what_is_left_is_what_no_gap_holds(
            missing in prop::collection::btree_set((0..3_i64, 0..30_i64), 0..40),
            gaps in prop::collection::vec((0..3_i64, 0..30_i64, 0..6_i64), 0..12),
        ) {
            let mut holes: Vec<BootRange> = Vec::new();
            for (boot, seq) in &missing {
                match holes.last_mut() {
                    Some(last) if last.boot_id == *boot && last.to + 1 == *seq => last.to = *seq,
                    _ => holes.push(range(*boot, *seq, *seq)),
                }
            }
            let mut declared: Vec<_> = gaps.iter().map(|(boot, from, more)| range(*boot, *from, from + more)).collect();
            declared.sort();
            let held = |(boot, seq): &&(i64, i64)| declared.iter().any(|g| g.boot_id == *boot && g.from <= *seq && *seq <= g.to);
            let expected: BTreeSet<_> = missing.iter().filter(|m| !held(m)).copied().collect();
            let (left, covered) = subtract(&holes, &declared);
            let found: BTreeSet<_> = left.iter().flat_map(|r| (r.from..=r.to).map(|seq| (r.boot_id, seq))).collect();
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(covered as usize, missing.len() - expected.len());
        }
    }
}
