//! What lies on disk only, without the records themselves: how many, and which events of which boot.

use std::collections::VecDeque;

use crate::report::Boot;

/// Records in order, told by counts and ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stock {
    records: u64,
    spans: VecDeque<Span>,
}

/// Events of one boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) boot: Boot,
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) events: u64,
}

impl Stock {
    /// A record at the end; `event` is `None` for a gap.
    pub(super) fn add(&mut self, event: Option<(Boot, u64)>) {
        self.records += 1;
        let Some((boot, seq)) = event else { return };
        match self.spans.back_mut() {
            Some(span) if span.boot == boot && span.to < seq => {
                span.to = seq;
                span.events += 1;
            }
            _ => self.spans.push_back(Span { boot, from: seq, to: seq, events: 1 }),
        }
    }

    /// The record at the front is gone from here.
    pub(super) fn take(&mut self, event: Option<(Boot, u64)>) {
        self.records = self.records.saturating_sub(1);
        let Some((boot, seq)) = event else { return };
        let Some(span) = self.spans.front_mut() else { return };
        if span.boot == boot && seq <= span.to {
            span.from = seq + 1;
            span.events = span.events.saturating_sub(1);
        }
        if span.events == 0 || span.from > span.to {
            self.spans.pop_front();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.records == 0
    }

    pub(super) fn events(&self) -> u64 {
        self.spans.iter().map(|span| span.events).sum()
    }

    pub(super) fn spans(&self) -> impl Iterator<Item = &Span> {
        self.spans.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boot(number: u128) -> Boot {
        Boot(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn what_goes_in_at_the_end_comes_out_at_the_front_by_boot_and_range() {
        let mut stock = Stock::default();
        let records = [Some((boot(1), 7)), None, Some((boot(1), 9)), Some((boot(2), 0)), Some((boot(2), 1))];
        records.iter().for_each(|record| stock.add(*record));
        assert_eq!(stock.events(), 4);
        let spans: Vec<_> = stock.spans().map(|span| (span.boot, span.from, span.to, span.events)).collect();
        assert_eq!(spans, [(boot(1), 7, 9, 2), (boot(2), 0, 1, 2)]);
        records.iter().take(4).for_each(|record| stock.take(*record));
        let spans: Vec<_> = stock.spans().map(|span| (span.boot, span.from, span.to, span.events)).collect();
        assert_eq!(spans, [(boot(2), 1, 1, 1)]);
        stock.take(records[4]);
        assert!(stock.is_empty() && stock.events() == 0);
    }
}
