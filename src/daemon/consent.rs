//! Whether faces may be analysed: `privacy.require_consent`, and who has given consent until when.
//!
//! Given by a command, or by a line ([`super::consent_line`]) for as long as it is active.
//!
//! Invariants: where consent is required nothing is analysed until it is given; consent ends by itself at its end, and with the
//! process: it is never read from a disk. What was taken back does not come back by itself: a line that was active then grants
//! again only when it has been inactive. Ends are measured in the monotonic clock, which no one can set.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::mqtt::payload::Consent as Payload;
use crate::report::Moment;

/// Asked for each frame, changed by commands and by a configuration that is read again.
#[derive(Debug)]
pub struct Consent {
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    required: bool,
    grant: Grant,
    line: Line,
}

/// What the line says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// Nothing, or there is none.
    Inactive,
    Grants,
    /// It is active, but consent was taken back since it became so.
    TakenBack,
}

impl State {
    fn granted(&self, now: Instant) -> bool {
        self.line == Line::Grants || self.grant.holds(now)
    }
}

#[derive(Clone, Copy, Debug)]
enum Grant {
    None,
    Given,
    Until { end: Instant, wall: Option<Moment> },
}

impl Grant {
    fn holds(self, now: Instant) -> bool {
        match self {
            Self::None => false,
            Self::Given => true,
            Self::Until { end, .. } => now < end,
        }
    }
}

impl Consent {
    /// Nobody has consented yet.
    pub fn new(required: bool) -> Self {
        Self { state: Mutex::new(State { required, grant: Grant::None, line: Line::Inactive }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another configuration.
    pub fn set_required(&self, required: bool) {
        self.lock().required = required;
    }

    /// Whether analysis waits for it.
    pub fn is_required(&self) -> bool {
        self.lock().required
    }

    /// Whether faces may be analysed at `now`. Never waits, allocates nothing.
    pub fn allows_analysis(&self, now: Instant) -> bool {
        let state = self.lock();
        !state.required || state.granted(now)
    }

    /// Consent is given at `now`, for `lasting` or until it is taken back; an end too far off to be told is none.
    pub fn grant(&self, lasting: Option<Duration>, now: Instant, wall: jiff::Timestamp) {
        let end = lasting.and_then(|lasting| Some((lasting, now.checked_add(lasting)?)));
        self.lock().grant = match end {
            Some((lasting, end)) => Grant::Until { end, wall: wall.checked_add(lasting).ok().map(Moment) },
            None => Grant::Given,
        };
    }

    /// Consent is taken back, by whomever it was given.
    pub fn revoke(&self) {
        let mut state = self.lock();
        state.grant = Grant::None;
        if state.line == Line::Grants {
            state.line = Line::TakenBack;
        }
    }

    /// The line is active, or is not, or cannot be read. Never waits.
    pub fn line(&self, active: bool) {
        let mut state = self.lock();
        state.line = match (active, state.line) {
            (false, _) => Line::Inactive,
            (true, Line::Inactive) => Line::Grants,
            (true, same) => same,
        };
    }

    /// What is published of it; `None` where it is not required.
    pub fn describe(&self, now: Instant) -> Option<Payload> {
        let state = *self.lock();
        let granted = state.granted(now);
        let until = match state.grant {
            Grant::Until { wall, .. } if granted && state.line != Line::Grants => wall,
            _ => None,
        };
        state.required.then_some(Payload { granted, until })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_consent_is_required_nothing_is_analysed_until_it_is_given_and_after_its_end() {
        let (consent, now, wall) = (Consent::new(true), Instant::now(), jiff::Timestamp::UNIX_EPOCH);
        let after = |s| now + Duration::from_secs(s);
        assert!(!consent.allows_analysis(now));
        consent.grant(Some(Duration::from_secs(10)), now, wall);
        assert!(consent.allows_analysis(after(9)) && !consent.allows_analysis(after(10)));
        let until = Some(Moment("1970-01-01T00:00:10Z".parse().unwrap()));
        assert_eq!(consent.describe(after(9)), Some(Payload { granted: true, until }));
        assert_eq!(consent.describe(after(10)), Some(Payload { granted: false, until: None }));
        consent.grant(None, now, wall);
        assert!(consent.allows_analysis(after(1_000_000)));
        consent.revoke();
        assert!(!consent.allows_analysis(now));
    }

    #[test]
    fn where_consent_is_not_required_analysis_never_waits_for_it() {
        let (consent, now) = (Consent::new(false), Instant::now());
        assert!(consent.allows_analysis(now));
        assert_eq!(consent.describe(now), None);
        consent.set_required(true);
        assert!(!consent.allows_analysis(now));
    }

    #[test]
    fn a_line_grants_consent_for_as_long_as_it_is_active() {
        let (consent, now) = (Consent::new(true), Instant::now());
        consent.line(true);
        assert!(consent.allows_analysis(now));
        assert_eq!(consent.describe(now), Some(Payload { granted: true, until: None }));
        consent.line(false);
        assert!(!consent.allows_analysis(now));
        consent.grant(Some(Duration::from_secs(10)), now, jiff::Timestamp::UNIX_EPOCH);
        consent.line(true);
        assert_eq!(consent.describe(now), Some(Payload { granted: true, until: None }), "the line lasts longer");
        consent.line(false);
        assert!(consent.allows_analysis(now), "what a command has given the line does not take");
        assert!(!consent.allows_analysis(now + Duration::from_secs(10)));
    }

    #[test]
    fn what_was_taken_back_comes_back_only_when_the_line_was_let_go_and_is_made_active_again() {
        let (consent, now) = (Consent::new(true), Instant::now());
        consent.line(true);
        consent.revoke();
        consent.line(true);
        assert!(!consent.allows_analysis(now));
        consent.line(false);
        consent.line(true);
        assert!(consent.allows_analysis(now));
    }

    #[test]
    fn an_end_that_no_clock_can_hold_is_no_end() {
        let (consent, now) = (Consent::new(true), Instant::now());
        consent.grant(Some(Duration::MAX), now, jiff::Timestamp::MAX);
        assert!(consent.allows_analysis(now + Duration::from_secs(1)));
    }
}
