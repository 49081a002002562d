//! The sideline: queues of their own for what a tenant floods us with, so that the others do not
//! wait behind it. Whoever is there is served like everyone else, and may have
//! all that the others leave.
//!
//! What is published anyway may as well be published there, which costs nothing: events that come over HTTP,
//! and whatever our services hand to each other for later, go to the sideline where they are more than
//! their tenant's [share]. The dispatcher moves an event aside that came another way; that costs a
//! message, and so is done only where it is little beside the deliveries that others would wait for.

use std::time::Duration;

use crate::rate::RateLimit;

/// One of the two ways that messages go, each with queues of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Among those of everyone else.
    Main,
    /// Among those of others who flood, and of very large fan-outs.
    Sideline,
}

impl Lane {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Main, Self::Sideline];
}

/// An event for fewer is as soon delivered as moved.
const WORTH_MOVING: usize = 16;
/// Messages of one tenant that wait for a permit: it has more to do than its share, then.
const MANY_WAITING: usize = 10;
/// So much of what a tenant brings in a time longer than this is within its share.
const BURST: Duration = Duration::from_secs(10);

/// What a tenant may have beside all others: so many messages a second, and those of ten seconds at once.
#[must_use]
pub fn share(per_second: u32) -> RateLimit {
    let seconds = u32::try_from(BURST.as_secs()).unwrap_or(u32::MAX);
    RateLimit { per_second, burst: per_second.saturating_mul(seconds) }
}

/// Whether a dispatcher moves an event aside that is for so many deliveries, while so many messages
/// of its tenant wait for a permit.
///
/// One that comes again may have been moved before: so it always is, and then the copies are told
/// by their name.
#[must_use]
pub fn goes_aside(deliveries: usize, waiting: usize, redelivered: bool) -> bool {
    deliveries >= WORTH_MOVING && is_too_much(waiting, redelivered)
}

/// The same of an event that is worth moving for another reason: its filters take long to ask.
#[must_use]
pub fn is_too_much(waiting: usize, redelivered: bool) -> bool {
    waiting >= MANY_WAITING || redelivered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_worth_it_goes_aside() {
        for (deliveries, waiting, redelivered, expected) in [
            (1, 1000, false, false),
            (1, 1000, true, false),
            (15, 1000, true, false),
            (16, 0, false, false),
            (16, 9, false, false),
            (16, 10, false, true),
            (16, 0, true, true),
            (0, 0, true, false),
        ] {
            assert_eq!(goes_aside(deliveries, waiting, redelivered), expected);
        }
    }

    #[test]
    fn a_share_has_ten_seconds_at_once() {
        assert_eq!(share(100), RateLimit { per_second: 100, burst: 1000 });
        assert_eq!(share(u32::MAX).burst, u32::MAX);
    }
}
