//! The laws of the next move, as a table and as properties.

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::event::{Event, Trace};
use crate::ids::{SlotNumber, SubscriptionId};

const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);
const KEEP: Keep = Keep { beyond_policy: WEEK, at_most: None, held: WEEK };

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_seconds(1_000_000 + seconds)
}

fn event() -> Arc<Event> {
    Arc::new(Event {
        id: "evt_1".parse().unwrap(),
        tenant: "acme".parse().unwrap(),
        event_type: "a".parse().unwrap(),
        timestamp: at(0),
        trace: Trace::default(),
        data: b"1".as_slice().into(),
    })
}

fn fresh() -> Delivery {
    Delivery::begin(event(), SubscriptionId::new(SlotNumber(0), 1), at(0))
}

fn failure(outcome: OutcomeClass, ended_at: Timestamp, retry_after_ms: Option<u64>) -> Failure {
    Failure {
        outcome,
        status: None,
        detail: String::new(),
        endpoint: String::new(),
        started_at: ended_at,
        ended_at,
        retry_after_ms,
    }
}

fn failed(times: u32, outcome: OutcomeClass) -> Delivery {
    (0..times).fold(fresh(), |delivery, _| delivery.after_failure(failure(outcome, at(0), None)))
}

fn policy(seconds: &[u64]) -> RetryPolicy {
    RetryPolicy::schedule(seconds.iter().map(|s| Duration::from_secs(*s))).unwrap()
}

/// A move without its work, for tables.
fn brief(next: &Move) -> String {
    match next {
        Move::Release(_) => "release".to_owned(),
        Move::Park(rung, _) => format!("park {}s", rung.length().as_secs()),
        Move::Hold(_) => "hold".to_owned(),
        Move::GiveUp(reason, _) => reason.as_str().to_owned(),
        Move::Cancel => "cancel".to_owned(),
    }
}

#[test]
fn each_situation_has_its_move() {
    let policy = policy(&[2, 4]);
    let active = Standing::Active(&policy);
    let suspended = Standing::Suspended(&policy);
    let late = 6 + 7 * 24 * 3600;
    for (delivery, standing, seconds, expected) in [
        (fresh(), active, 0, "release"),
        (fresh(), suspended, 0, "hold"),
        (fresh(), Standing::Missing, 0, "hold"),
        (fresh(), Standing::Cancelled, 0, "cancel"),
        (failed(1, OutcomeClass::ServerError), active, 0, "park 2s"),
        (failed(2, OutcomeClass::Timeout), active, 0, "park 4s"),
        (failed(2, OutcomeClass::Timeout), active, 60, "release"),
        (failed(3, OutcomeClass::ClientError), active, 0, "exhausted"),
        (failed(3, OutcomeClass::ClientError), suspended, 0, "exhausted"),
        (failed(3, OutcomeClass::ClientError), Standing::Cancelled, 0, "cancel"),
        (failed(3, OutcomeClass::ClientError), Standing::Missing, 0, "hold"),
        (failed(1, OutcomeClass::Gone), active, 0, "gone"),
        (failed(1, OutcomeClass::Gone), Standing::Cancelled, 0, "gone"),
        (failed(1, OutcomeClass::Blocked), active, 0, "blocked"),
        (failed(1, OutcomeClass::Redirect), suspended, 0, "hold"),
        (failed(1, OutcomeClass::Dns), active, late, "release"),
        (failed(1, OutcomeClass::Dns), active, late + 1, "expired"),
        (failed(1, OutcomeClass::Dns), Standing::Cancelled, late + 1, "cancel"),
    ] {
        let state = delivery.state.clone();
        let next = next_move(delivery, standing, KEEP, (at(seconds), 0.0));
        assert_eq!(brief(&next), expected, "{state:?} {standing:?} after {seconds} s");
    }
}

#[test]
fn held_time_does_not_count_towards_the_expiry() {
    let policy = policy(&[2]);
    let year = 365 * 24 * 3600;
    let delivery = failed(1, OutcomeClass::ServerError).hold(at(1));
    let next = next_move(delivery, Standing::Active(&policy), KEEP, (at(year), 0.0));
    assert_eq!(brief(&next), "release");
}

#[test]
fn nobody_waits_for_a_subscription_for_ever() {
    let policy = policy(&[2]);
    let (suspended, missing) = (Standing::Suspended(&policy), Standing::Missing);
    let (active, week) = (Standing::Active(&policy), 7 * 24 * 3600);
    for (delivery, standing, seconds, expected) in [
        (fresh().hold(at(0)), suspended, week - 1, "hold"),
        (fresh().hold(at(0)), suspended, week, "expired"),
        (fresh().hold(at(0)), missing, week - 1, "hold"),
        (fresh().hold(at(0)), missing, week, "expired"),
        (fresh().hold(at(0)), active, week, "release"),
        (fresh().hold(at(0)), Standing::Cancelled, week, "cancel"),
        // It was back in between.
        (fresh().hold(at(0)).resume(at(9)).hold(at(10)), suspended, week + 9, "hold"),
    ] {
        let state = delivery.state.clone();
        let next = next_move(delivery, standing, KEEP, (at(seconds), 0.0));
        assert_eq!(brief(&next), expected, "{state:?} {standing:?} after {seconds} s");
    }
}

#[test]
fn a_2s_4s_8s_schedule_takes_one_hop_each_when_looked_at_promptly() {
    for (delay, taken_ms, hop) in [(2, 5, 2), (4, 20, 4), (8, 300, 8), (2, 0, 2)] {
        let failure = failure(OutcomeClass::ServerError, at(0), None);
        let now = at(0).plus(Duration::from_millis(taken_ms));
        let due = due_time(&failure, Duration::from_secs(delay), 0.99, now);
        assert_eq!(
            due.since(now),
            Duration::from_secs(hop),
            "{delay} s, looked at after {taken_ms} ms"
        );
    }
}

/// Plays a delivery through every failure and every hop; answers when each attempt came.
fn play(
    policy: &RetryPolicy,
    retry_after_ms: Option<u64>,
    (scheduler_lag, chance): (Duration, f64),
) -> (Vec<Timestamp>, DeadReason) {
    let mut now = at(0);
    let mut attempts = vec![now];
    let failed_at = |delivery: Delivery, now| {
        delivery.after_failure(failure(OutcomeClass::ServerError, now, retry_after_ms))
    };
    let mut delivery = failed_at(fresh(), now);
    loop {
        now = now.plus(scheduler_lag);
        delivery.state.sequence += 1;
        delivery = match next_move(delivery, Standing::Active(policy), KEEP, (now, chance)) {
            Move::Park(rung, delivery) => {
                now = now.plus(rung.length());
                delivery
            }
            Move::Release(delivery) => {
                attempts.push(now);
                failed_at(delivery, now)
            }
            Move::GiveUp(reason, _) => return (attempts, reason),
            other @ (Move::Hold(_) | Move::Cancel) => panic!("{other:?}"),
        };
    }
}

proptest! {
    #[test]
    fn jitter_and_retry_after_only_ever_delay(
        delay_ms in 0_u64..200_000_000, retry_after_ms in prop::option::of(0_u64..86_400_000),
        chance in 0.0_f64..1.0, lag_ms in 0_u64..300_000_000,
    ) {
        let delay = Duration::from_millis(delay_ms);
        let failure = failure(OutcomeClass::Throttled, at(0), retry_after_ms);
        let now = at(0).plus(Duration::from_millis(lag_ms));
        let due = due_time(&failure, delay, chance, now);
        let asked = delay.max(Duration::from_millis(retry_after_ms.unwrap_or(0)));
        prop_assert!(due >= at(0).plus(asked));
        let latest = at(0).plus(asked).plus(asked.mul_f64(0.1)).plus(Duration::from_millis(1));
        prop_assert!(due <= latest.max(now), "{due} after {latest}");
    }

    #[test]
    fn every_attempt_comes_in_its_time_and_the_story_ends(
        delays in prop::collection::vec(1_u64..40_000, 0..12),
        retry_after in prop::option::of(0_u64..86_400),
        lag_ms in 0_u64..50, chance in 0.0_f64..1.0,
    ) {
        let lag = Duration::from_millis(lag_ms);
        let (attempts, reason) = play(&policy(&delays), retry_after.map(|s| s * 1000), (lag, chance));
        prop_assert_eq!(reason, DeadReason::Exhausted);
        prop_assert_eq!(attempts.len(), delays.len() + 1);
        for (pair, delay) in attempts.windows(2).zip(&delays) {
            let waited = pair[1].since(pair[0]);
            let asked = Duration::from_secs((*delay).max(retry_after.unwrap_or(0)));
            prop_assert!(waited >= asked);
            // At most the jitter, a second of rounding up, and the lag of each hop.
            let most = asked.mul_f64(1.1) + Duration::from_secs(1) + lag * 20;
            prop_assert!(waited <= most, "{waited:?} for {asked:?}");
        }
    }
}
