//! Why a delivery is held, and until when. Goes in: since when nothing will be different, and how often it was held
//! before; comes out: a time that takes few hops through RabbitMQ.

use std::time::Duration;

use crate::rung::fewest_rungs;
use crate::time::Timestamp;

/// Why a delivery is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HoldReason {
    /// The endpoint has failed many times in a row.
    Breaker,
    /// The same, and very many wait for it.
    Crowd,
    /// The endpoint asked to be left alone for a while.
    Throttled,
    /// Enough POSTs to it are in flight, and enough wait.
    Busy,
    /// It has answered nothing for a while.
    Silent,
    /// Its subscription allows only so many a second.
    RateLimit,
    /// Templates of its tenant take longer than there is time for.
    Template,
    /// A dispatcher has no files or memory left for another connection.
    Shortage,
}

impl HoldReason {
    /// Every reason, for metrics that show each one from the start.
    pub const ALL: [Self; 8] = [
        Self::Breaker,
        Self::Crowd,
        Self::Throttled,
        Self::Busy,
        Self::Silent,
        Self::RateLimit,
        Self::Template,
        Self::Shortage,
    ];

    /// The reason as it stands in metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Breaker | Self::Crowd => "breaker",
            Self::Throttled => "throttled",
            Self::Busy => "busy",
            Self::Silent => "silent",
            Self::RateLimit => "rate_limit",
            Self::Template => "template",
            Self::Shortage => "shortage",
        }
    }
}

/// How much more than need be, at most, and by how much again to take a single rung.
pub(super) const CROWD_LATE: Duration = Duration::from_secs(60);

/// The shortest hold; each next one of the same delivery is twice as long.
const FIRST_HOLD: Duration = Duration::from_secs(1);
/// The longest hold, but for what an endpoint or a breaker asks for.
const LONGEST_HOLD: Duration = Duration::from_secs(300);
/// The same behind an endpoint that is silent: nothing says that it has failed, so the wait should be near its end.
pub(super) const LONGEST_SILENT_HOLD: Duration = Duration::from_secs(30);
/// How much longer than need be a hold behind an open breaker may be at least, to take fewer rungs, if that is not more
/// than half of it.
const LATE: Duration = Duration::from_secs(8);

/// Until when to hold a delivery that was held `holds` times in a row before: not before `opens_at`, which is its turn
/// where there is a line. Behind an endpoint in trouble it is longer each time, and, but for one that is silent or has a
/// crowd, up to half as long again by `chance` in `[0, 1)`, so that those who were held together do not come back
/// together. A number of seconds that takes few rungs: each is a round through RabbitMQ, and thousands may wait.
#[must_use]
pub fn hold_until(
    (reason, opens_at): (HoldReason, Timestamp),
    holds: u32,
    now: Timestamp,
    chance: f64,
) -> Timestamp {
    let growing = FIRST_HOLD.saturating_mul(1 << holds.min(16));
    let more = match reason {
        HoldReason::Breaker | HoldReason::Crowd | HoldReason::Throttled => {
            growing.min(LONGEST_HOLD)
        }
        HoldReason::Silent | HoldReason::Template | HoldReason::Shortage => {
            growing.min(LONGEST_SILENT_HOLD)
        }
        // Its time is its turn in a line.
        HoldReason::Busy | HoldReason::RateLimit => Duration::ZERO,
    };
    let opens_in = opens_at.since(now);
    let wait = match reason {
        // When it will answer again is a guess, so the time is one that takes a single rung.
        HoldReason::Silent | HoldReason::Crowd => opens_in.max(more),
        HoldReason::Breaker
        | HoldReason::Throttled
        | HoldReason::Busy
        | HoldReason::RateLimit
        | HoldReason::Template
        | HoldReason::Shortage => opens_in + more.mul_f64(1.0 + chance / 2.0),
    };
    let least = (wait.as_secs() + u64::from(wait.subsec_millis() > 0)).max(1);
    let most = match reason {
        // Those whose turns are apart stay apart: else many come back at once, and most are held once more.
        HoldReason::Busy => least,
        HoldReason::RateLimit => least + least / 32,
        HoldReason::Silent => 2 * least - 1,
        HoldReason::Crowd => least + (least - 1).min(CROWD_LATE.as_secs()),
        // As much of a guess, but often a long one.
        HoldReason::Breaker => least + (least / 8).max(LATE.as_secs().min(least / 2)),
        HoldReason::Throttled | HoldReason::Template | HoldReason::Shortage => least + least / 8,
    };
    now.plus(Duration::from_secs(fewest_rungs(least, most)))
}
