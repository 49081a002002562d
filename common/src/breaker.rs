//! The breaker of one endpoint: after many failures in a row it lets nothing through but single
//! probes, at growing intervals, until one is answered.
//!
//! Time and chance are arguments.

use std::time::Duration;

use crate::outcome::OutcomeClass;
use crate::time::Timestamp;

/// The first interval between probes; each next one is twice as long.
const FIRST_INTERVAL: Duration = Duration::from_secs(5);
/// The longest interval between probes.
const LONGEST_INTERVAL: Duration = Duration::from_secs(300);
/// By how much of itself an interval may be longer, so that breakers that opened together do not
/// probe together.
const JITTER: f64 = 0.1;

/// What an attempt says about its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sign {
    /// It answers, be it with a refusal: receivers misdeploy, and then fix it.
    Answers,
    /// It does not, or answers that it can't.
    Fails,
    /// It asks to be left alone for a while; that is no failure.
    Throttles,
}

impl Sign {
    /// What an outcome says about the endpoint; `asked_to_wait` is whether it named a time.
    #[must_use]
    pub fn of(outcome: OutcomeClass, asked_to_wait: bool) -> Self {
        match outcome {
            OutcomeClass::Throttled | OutcomeClass::ServerError if asked_to_wait => Self::Throttles,
            OutcomeClass::Throttled
            | OutcomeClass::ServerError
            | OutcomeClass::Timeout
            | OutcomeClass::Dns
            | OutcomeClass::Connect
            | OutcomeClass::Tls
            | OutcomeClass::Protocol => Self::Fails,
            // A blocked address is our own refusal, and a template not the endpoint's: neither says
            // anything of who is there.
            OutcomeClass::Delivered
            | OutcomeClass::Redirect
            | OutcomeClass::Gone
            | OutcomeClass::ClientError
            | OutcomeClass::Blocked
            | OutcomeClass::Template => Self::Answers,
        }
    }
}

/// The breaker of one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Breaker {
    /// Everything passes; so many attempts in a row have failed.
    Closed {
        /// Failures in a row.
        failures: u32,
    },
    /// Nothing passes but a probe, from this time on.
    Open {
        /// Probes that have failed.
        probes: u32,
        /// When the next one may be made.
        probe_at: Timestamp,
    },
}

impl Default for Breaker {
    fn default() -> Self {
        Self::Closed { failures: 0 }
    }
}

impl Breaker {
    /// Whether it is open.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Open { .. })
    }

    /// The breaker after an attempt that ended at `now`. It opens after `most` failures in a row;
    /// `chance` in `[0, 1)` draws the jitter.
    #[must_use]
    pub fn after(
        self,
        sign: Sign,
        was_probe: bool,
        most: u32,
        (now, chance): (Timestamp, f64),
    ) -> Self {
        match (self, sign) {
            (_, Sign::Answers) => Self::default(),
            (_, Sign::Throttles) => self,
            (Self::Closed { failures }, Sign::Fails) => {
                let failures = failures.saturating_add(1);
                if failures < most {
                    return Self::Closed { failures };
                }
                Self::Open { probes: 0, probe_at: now.plus(interval(0, chance)) }
            }
            // What was in flight when it opened tells nothing new.
            (Self::Open { .. }, Sign::Fails) if !was_probe => self,
            (Self::Open { probes, .. }, Sign::Fails) => {
                let probes = probes.saturating_add(1);
                Self::Open { probes, probe_at: now.plus(interval(probes, chance)) }
            }
        }
    }
}

/// How long to wait after so many failed probes.
fn interval(probes: u32, chance: f64) -> Duration {
    let nominal = FIRST_INTERVAL.saturating_mul(1 << probes.min(16)).min(LONGEST_INTERVAL);
    nominal.mul_f64(1.0 + JITTER * chance)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_seconds(seconds)
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_closes_on_an_answer() {
        let mut breaker = Breaker::default();
        for _ in 0..9 {
            breaker = breaker.after(Sign::Fails, false, 10, (at(0), 0.0));
        }
        assert_eq!(breaker, Breaker::Closed { failures: 9 });
        let answered = breaker.after(Sign::Answers, false, 10, (at(0), 0.0));
        assert_eq!(answered, Breaker::Closed { failures: 0 });
        assert_eq!(breaker.after(Sign::Throttles, false, 10, (at(0), 0.0)), breaker);
        breaker = breaker.after(Sign::Fails, false, 10, (at(0), 0.0));
        assert_eq!(breaker, Breaker::Open { probes: 0, probe_at: at(5) });
        assert_eq!(
            breaker.after(Sign::Fails, false, 10, (at(1), 0.0)),
            breaker,
            "in flight before"
        );
        breaker = breaker.after(Sign::Fails, true, 10, (at(20), 0.0));
        assert_eq!(breaker, Breaker::Open { probes: 1, probe_at: at(30) });
        assert!(!breaker.after(Sign::Answers, true, 10, (at(31), 0.0)).is_open());
    }

    #[test]
    fn every_outcome_is_a_sign() {
        let fails = [
            OutcomeClass::Throttled,
            OutcomeClass::ServerError,
            OutcomeClass::Timeout,
            OutcomeClass::Dns,
            OutcomeClass::Connect,
            OutcomeClass::Tls,
            OutcomeClass::Protocol,
        ];
        for outcome in OutcomeClass::ALL {
            let sign = Sign::of(outcome, false);
            assert_eq!(sign == Sign::Fails, fails.contains(&outcome), "{outcome:?}");
        }
        assert_eq!(Sign::of(OutcomeClass::Throttled, true), Sign::Throttles);
        assert_eq!(Sign::of(OutcomeClass::ServerError, true), Sign::Throttles);
    }

    proptest! {
        #[test]
        fn probe_intervals_grow_to_a_bound(probes in 0_u32..100, chance in 0.0..1.0_f64) {
            prop_assert!(interval(probes, chance) >= FIRST_INTERVAL);
            prop_assert!(interval(probes, chance) <= LONGEST_INTERVAL.mul_f64(1.0 + JITTER));
            prop_assert!(interval(probes + 1, 0.0) >= interval(probes, 0.0));
        }
    }
}
