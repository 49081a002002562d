//! When a failed delivery is tried again: the policy that a subscription may choose.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::duration::DurationText;

/// The delays between the attempts of a delivery. A delay runs from the end of the failed
/// attempt; jitter is added elsewhere and only ever delays.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct RetryPolicy(Written);

/// A policy as it stands in JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Written {
    /// These delays, one after the other.
    Schedule(Vec<DurationText>),
    /// Each delay `factor` times the one before, never above `max`.
    Exponential(Exponential),
    /// Always the same delay.
    Fixed(Fixed),
    /// Delays of 1, 1, 2, 3, 5, 8 … units.
    Fibonacci(Fibonacci),
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Exponential {
    initial: DurationText,
    factor: f64,
    max: DurationText,
    attempts: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixed {
    delay: DurationText,
    attempts: u32,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fibonacci {
    unit: DurationText,
    attempts: u32,
}

/// Why a policy is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRetryPolicy {
    /// No attempt at all, or more than [`RetryPolicy::MAX_ATTEMPTS`].
    #[error(
        "attempts must be between 1 and {}, the first attempt included (a schedule has one delay less)",
        RetryPolicy::MAX_ATTEMPTS
    )]
    Attempts,
    /// A delay above [`RetryPolicy::MAX_DELAY`].
    #[error("a delay must not be longer than 7d")]
    Delay,
    /// A factor that shrinks, or grows beyond reason.
    #[error("factor must be between 1 and 10")]
    Factor,
}

impl RetryPolicy {
    /// The most attempts a policy may make, the first included.
    pub const MAX_ATTEMPTS: u32 = 100;
    /// The longest delay a policy may ask for.
    pub const MAX_DELAY: Duration = Duration::from_secs(7 * 24 * 3600);

    /// The policy with these delays.
    ///
    /// # Errors
    /// More than 99 delays, or one of more than 7 days.
    pub fn schedule(
        delays: impl IntoIterator<Item = Duration>,
    ) -> Result<Self, InvalidRetryPolicy> {
        Written::Schedule(delays.into_iter().map(DurationText::from).collect()).try_into()
    }

    /// How many POSTs the policy makes at most, the first included.
    #[must_use]
    pub fn attempts(&self) -> u32 {
        match &self.0 {
            Written::Schedule(delays) => {
                u32::try_from(delays.len()).unwrap_or(u32::MAX).saturating_add(1)
            }
            Written::Exponential(Exponential { attempts, .. })
            | Written::Fixed(Fixed { attempts, .. })
            | Written::Fibonacci(Fibonacci { attempts, .. }) => *attempts,
        }
    }

    /// How long to wait after the `made`th attempt (from 1) failed, before any jitter; `None`
    /// when that was the last.
    #[must_use]
    pub fn delay_after(&self, made: u32) -> Option<Duration> {
        if made >= self.attempts() {
            return None;
        }
        let retries_before = made.saturating_sub(1);
        let delay = match &self.0 {
            Written::Schedule(delays) => delays.get(usize::try_from(retries_before).ok()?)?.0,
            Written::Fixed(fixed) => fixed.delay.0,
            Written::Exponential(exponential) => exponential.delay(retries_before),
            Written::Fibonacci(fibonacci) => {
                fibonacci.unit.0.saturating_mul(fibonacci_number(retries_before))
            }
        };
        Some(delay.min(Self::MAX_DELAY))
    }

    /// How long after the first attempt the last one comes, if every one fails at once and
    /// without jitter.
    #[must_use]
    pub fn nominal_span(&self) -> Duration {
        (1..self.attempts()).filter_map(|made| self.delay_after(made)).sum()
    }
}

impl Exponential {
    fn delay(&self, retries_before: u32) -> Duration {
        let exponent = i32::try_from(retries_before).unwrap_or(i32::MAX);
        let seconds = self.initial.0.as_secs_f64() * self.factor.powi(exponent);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(self.max.0)
    }
}

/// 1, 1, 2, 3, 5 … for 0, 1, 2, 3, 4 …
fn fibonacci_number(n: u32) -> u32 {
    let (mut current, mut next) = (1_u32, 1_u32);
    for _ in 0..n {
        (current, next) = (next, current.saturating_add(next));
    }
    current
}

impl Default for RetryPolicy {
    /// 5 s, 5 m, 30 m, 2 h, 5 h, 10 h, 14 h, 20 h, 24 h: ten attempts over three days.
    fn default() -> Self {
        let delays = ["5s", "5m", "30m", "2h", "5h", "10h", "14h", "20h", "24h"];
        // Each of these is a duration; the test below counts them.
        Self(Written::Schedule(delays.iter().filter_map(|delay| delay.parse().ok()).collect()))
    }
}

impl TryFrom<Written> for RetryPolicy {
    type Error = InvalidRetryPolicy;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        let longest = match &written {
            Written::Schedule(delays) => {
                delays.iter().max().map_or(Duration::ZERO, |delay| delay.0)
            }
            Written::Exponential(exponential) => {
                if !(1.0..=10.0).contains(&exponential.factor) {
                    return Err(InvalidRetryPolicy::Factor);
                }
                exponential.initial.0.max(exponential.max.0)
            }
            Written::Fixed(fixed) => fixed.delay.0,
            Written::Fibonacci(fibonacci) => fibonacci.unit.0,
        };
        if longest > Self::MAX_DELAY {
            return Err(InvalidRetryPolicy::Delay);
        }
        let policy = Self(written);
        if !(1..=Self::MAX_ATTEMPTS).contains(&policy.attempts()) {
            return Err(InvalidRetryPolicy::Attempts);
        }
        Ok(policy)
    }
}

impl From<RetryPolicy> for Written {
    fn from(policy: RetryPolicy) -> Self {
        policy.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policy(json: &str) -> RetryPolicy {
        serde_json::from_str(json).unwrap()
    }

    fn delays(json: &str) -> Vec<u64> {
        let policy = policy(json);
        (1..).map_while(|made| policy.delay_after(made)).map(|delay| delay.as_secs()).collect()
    }

    #[test]
    fn each_kind_gives_its_delays() {
        for (json, expected) in [
            (r#"{"schedule": ["2s","4s","8s"]}"#, vec![2, 4, 8]),
            (r#"{"schedule": []}"#, vec![]),
            (
                r#"{"exponential": {"initial": "5s", "factor": 2, "max": "1m", "attempts": 7}}"#,
                vec![5, 10, 20, 40, 60, 60],
            ),
            (
                r#"{"exponential": {"initial": "1d", "factor": 10, "max": "7d", "attempts": 4}}"#,
                vec![86_400, 604_800, 604_800],
            ),
            (r#"{"fixed": {"delay": "1m", "attempts": 3}}"#, vec![60, 60]),
            (r#"{"fixed": {"delay": "1m", "attempts": 1}}"#, vec![]),
            (r#"{"fibonacci": {"unit": "1s", "attempts": 8}}"#, vec![1, 1, 2, 3, 5, 8, 13]),
        ] {
            assert_eq!(delays(json), expected, "{json}");
        }
        assert_eq!(RetryPolicy::default().attempts(), 10);
        let shown = r#"{"schedule":["5s","5m","30m","2h","5h","10h","14h","20h","24h"]}"#;
        assert_eq!(serde_json::to_string(&RetryPolicy::default()).unwrap(), shown);
        assert_eq!(
            RetryPolicy::default().nominal_span(),
            Duration::from_secs(75 * 3600 + 35 * 60 + 5)
        );
    }

    #[test]
    fn half_an_hour_of_schedule_is_kept_to_the_second() {
        let policy = policy(
            r#"{"exponential": {"initial": "1s", "factor": 2, "max": "15m", "attempts": 12}}"#,
        );
        let seconds: Vec<u64> =
            (1..12).filter_map(|made| policy.delay_after(made)).map(|d| d.as_secs()).collect();
        assert_eq!(seconds, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900]);
        assert_eq!(policy.nominal_span(), Duration::from_secs(1923));
    }

    #[test]
    fn nonsense_is_refused() {
        for (json, why) in [
            (r#"{"fixed": {"delay": "1m", "attempts": 0}}"#, "attempts"),
            (r#"{"fixed": {"delay": "1m", "attempts": 101}}"#, "attempts"),
            (r#"{"fixed": {"delay": "8d", "attempts": 2}}"#, "7d"),
            (r#"{"fixed": {"delay": "1m", "attempts": 2, "x": 1}}"#, "unknown field"),
            (r#"{"schedule": ["soon"]}"#, "duration"),
            (
                r#"{"exponential": {"initial": "1s", "factor": 0.5, "max": "1m", "attempts": 3}}"#,
                "factor",
            ),
            (r#"{"linear": {}}"#, "unknown variant"),
            (r#"{}"#, "expected value"),
        ] {
            let error = serde_json::from_str::<RetryPolicy>(json).unwrap_err().to_string();
            assert!(error.contains(why), "{json}: {error}");
        }
        let long = format!(r#"{{"schedule": [{}]}}"#, vec![r#""1s""#; 100].join(","));
        assert!(serde_json::from_str::<RetryPolicy>(&long).is_err());
    }

    proptest! {
        #[test]
        fn a_policy_ends_and_its_delays_stay_in_bounds(
            initial in 0_u64..1_000_000, factor in 1.0_f64..10.0, max in 0_u64..604_800, attempts in 1_u32..=100,
        ) {
            let json = format!(r#"{{"exponential":{{"initial":"{initial}ms","factor":{factor},"max":"{max}s","attempts":{attempts}}}}}"#);
            let policy = policy(&json);
            prop_assert_eq!(policy.delay_after(attempts), None);
            for made in 1..attempts {
                let delay = policy.delay_after(made).unwrap();
                prop_assert!(delay <= Duration::from_secs(max));
            }
            let again: RetryPolicy = serde_json::from_str(&serde_json::to_string(&policy).unwrap()).unwrap();
            prop_assert_eq!(again, policy);
        }
    }
}
