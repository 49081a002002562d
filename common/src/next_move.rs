//! The one decision of the retry-scheduler: what happens next to a delivery.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::outcome::OutcomeClass;
use crate::retry::RetryPolicy;
use crate::rung::{Rung, fewest_rungs};
use crate::subscription::Standing;
use crate::time::Timestamp;
use crate::work::{Delivery, DeliveryState, Failure, Stage};

/// What happens next.
#[derive(Clone, Debug, PartialEq)]
pub enum Move {
    /// Its time has come: a dispatcher may have it.
    Release(Delivery),
    /// It waits, in this rung, and is then looked at again.
    Park(Rung, Delivery),
    /// It is kept until its subscription returns.
    Hold(Delivery),
    /// It is given up, and kept with its reason.
    GiveUp(DeadReason, Delivery),
    /// It ends, because its subscription is no more.
    Cancel,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Release(delivery) => write!(f, "release {}", delivery.name()),
            Self::Park(rung, delivery) => {
                write!(f, "park {} for {} s", delivery.name(), rung.length().as_secs())
            }
            Self::Hold(delivery) => write!(f, "hold {}", delivery.name()),
            Self::GiveUp(reason, delivery) => {
                write!(f, "give up {}: {}", delivery.name(), reason.as_str())
            }
            Self::Cancel => f.write_str("cancel"),
        }
    }
}

/// Why a delivery was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeadReason {
    /// The last attempt that its policy allows has failed.
    Exhausted,
    /// The endpoint answered 410.
    Gone,
    /// Its URL leads to an address that may not be called.
    Blocked,
    /// Too much time has passed since its last nominal attempt, or it was held too long for its
    /// subscription's return.
    Expired,
    /// There was little room left for held deliveries, and its tenant had more of them than its share.
    Overflow,
}

impl DeadReason {
    /// Every reason, for metrics that show each one from the start.
    pub const ALL: [Self; 5] =
        [Self::Exhausted, Self::Gone, Self::Blocked, Self::Expired, Self::Overflow];

    /// The reason as it stands in metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Exhausted => "exhausted",
            Self::Gone => "gone",
            Self::Blocked => "blocked",
            Self::Expired => "expired",
            Self::Overflow => "overflow",
        }
    }
}

/// How long a delivery may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// How long after its policy's last nominal attempt, held time not counted.
    pub beyond_policy: Duration,
    /// How long at most since it began, all time counted: what its tenant has as retention.
    pub at_most: Option<Duration>,
    /// How long for its subscription's return.
    pub held: Duration,
}

/// Jitter is at most this part of a delay.
const JITTER: f64 = 0.1;
/// Within the jitter window, this part of it may be given away for fewer hops.
const ROUNDING: u64 = 8;

/// Decides what happens next to a delivery at `now`. `standing` is that of its subscription; it expires
/// as `keep` says, and `chance` in `[0, 1)` draws its jitter. Those of a parcel have the same chance: they
/// are for different endpoints, and stay together.
#[must_use]
pub fn next_move(
    delivery: Delivery,
    standing: Standing<'_>,
    keep: Keep,
    (now, chance): (Timestamp, f64),
) -> Move {
    let held_for = delivery.state.held_since.map(|since| now.since(since));
    let is_held_too_long = held_for.is_some_and(|held_for| held_for >= keep.held);
    let delivery = delivery.resume(now);
    if delivery.state.stage == Stage::Failed {
        // What the endpoint or our own rules have made final needs no look at the subscription.
        match delivery.state.last_failure.as_ref().map(|failure| failure.outcome) {
            Some(OutcomeClass::Gone) => return Move::GiveUp(DeadReason::Gone, delivery),
            Some(OutcomeClass::Blocked) => return Move::GiveUp(DeadReason::Blocked, delivery),
            _ => {}
        }
    }
    let (policy, suspended) = match standing {
        Standing::Cancelled => return Move::Cancel,
        Standing::Missing if is_held_too_long => {
            return Move::GiveUp(DeadReason::Expired, delivery);
        }
        Standing::Missing => return Move::Hold(delivery.hold(now)),
        Standing::Active(policy) => (policy, false),
        Standing::Suspended(policy) => (policy, true),
    };
    if delivery.state.stage == Stage::Failed
        && policy.delay_after(delivery.state.attempts).is_none()
    {
        return Move::GiveUp(DeadReason::Exhausted, delivery);
    }
    if now > expiry(&delivery.state, policy, keep) {
        return Move::GiveUp(DeadReason::Expired, delivery);
    }
    if suspended && is_held_too_long {
        return Move::GiveUp(DeadReason::Expired, delivery);
    }
    if suspended {
        return Move::Hold(delivery.hold(now));
    }
    let delivery = with_due_time(delivery, policy, (now, chance));
    match delivery.state.stage {
        Stage::Due(due) if now < due => Move::Park(Rung::for_wait(due.since(now)), delivery),
        Stage::Due(_) | Stage::Failed => Move::Release(delivery),
    }
}

/// When a delivery is given up although its policy would go on.
fn expiry(state: &DeliveryState, policy: &RetryPolicy, keep: Keep) -> Timestamp {
    let by_policy = state
        .created_at
        .plus(policy.nominal_span())
        .plus(keep.beyond_policy)
        .plus(Duration::from_millis(state.held_ms));
    keep.at_most.map_or(by_policy, |most| by_policy.min(state.created_at.plus(most)))
}

/// Turns a fresh failure into the time of the next attempt.
fn with_due_time(
    mut delivery: Delivery,
    policy: &RetryPolicy,
    (now, chance): (Timestamp, f64),
) -> Delivery {
    let (Stage::Failed, Some(failure)) = (delivery.state.stage, &delivery.state.last_failure)
    else {
        return delivery;
    };
    let Some(delay) = policy.delay_after(delivery.state.attempts) else {
        return delivery;
    };
    let due = due_time(failure, delay, chance, now);
    // What `Retry-After` adds to our own schedule must not make the delivery expire earlier.
    let beyond_schedule = due.since(failure.ended_at.plus(delay));
    delivery.add_held(beyond_schedule);
    delivery.state.stage = Stage::Due(due);
    delivery
}

/// When to try again after `failure`: its end and `delay` (or the endpoint's `Retry-After`, if
/// that is longer), and up to a tenth of that as jitter, drawn by `chance` in `[0, 1)`. Never
/// earlier. A wait of whole seconds from `now` is preferred, one that needs few rungs.
#[must_use]
pub fn due_time(failure: &Failure, delay: Duration, chance: f64, now: Timestamp) -> Timestamp {
    let delay = delay.max(Duration::from_millis(failure.retry_after_ms.unwrap_or(0)));
    let window = delay.mul_f64(JITTER);
    let earliest = failure.ended_at.plus(delay);
    let drawn = earliest.plus(window.mul_f64(chance)).since(now);
    let latest = earliest.plus(window).since(now);
    let seconds_up = |wait: Duration| wait.as_secs() + u64::from(wait.subsec_millis() > 0);
    // The first whole second after the drawn time, or failing that after the earliest one.
    let least = Some(seconds_up(drawn))
        .filter(|least| *least <= latest.as_secs())
        .unwrap_or_else(|| seconds_up(earliest.since(now)));
    if least > latest.as_secs() || least == 0 {
        return now.plus(drawn).max(earliest);
    }
    let most = latest.as_secs().min(least + window.as_secs() / ROUNDING);
    now.plus(Duration::from_secs(fewest_rungs(least, most))).max(earliest)
}

#[cfg(test)]
mod tests;
