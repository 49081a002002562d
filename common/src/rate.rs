//! The rate limit of a subscription: so many attempts a second, some of them at once.
//!
//! The generic cell rate algorithm (ITU-T I.371): what is remembered is one time, at which the next
//! attempt would come if they came evenly. One who comes too early waits a moment for its turn, or
//! is told when to come back, each a little later than the one before, so that those who were sent
//! away come back at the pace of the limit. In Redis the same is done by a script
//! (`doorbell_platform::store::rate`); this is its model, and what holds while Redis is away.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many attempts a subscription allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// In each second, in the long run; at least 1.
    pub per_second: u32,
    /// At once, after a time with fewer; at least 1.
    pub burst: u32,
}

impl RateLimit {
    /// The time between two attempts that come evenly, in microseconds.
    #[must_use]
    pub fn interval(self) -> u64 {
        1_000_000_u64.div_ceil(u64::from(self.per_second.max(1)))
    }

    /// How much earlier than that an attempt may come, in microseconds.
    #[must_use]
    pub fn tolerance(self) -> u64 {
        self.interval() * u64::from(self.burst.saturating_sub(1))
    }
}

/// What one who comes is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It is its turn after this wait.
    After(Duration),
    /// That would take too long: it may ask again after this time.
    AskAgainAfter(Duration),
}

/// How much of a limit is used. Times are microseconds of one clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meter {
    /// When the next one would come, if they came evenly.
    even: u64,
    /// When the last one may ask again that was sent away.
    line: u64,
}

impl Meter {
    /// One comes at `now`, and would wait for so long.
    pub fn ask(&mut self, limit: RateLimit, patience: Duration, now: u64) -> Turn {
        let even = self.even.max(now);
        let opens = even.saturating_sub(limit.tolerance()).max(now);
        let wait = Duration::from_micros(opens - now);
        if wait <= patience {
            self.even = even + limit.interval();
            return Turn::After(wait);
        }
        self.line = self.line.max(opens) + limit.interval();
        Turn::AskAgainAfter(Duration::from_micros(self.line - now))
    }

    /// One comes at `now`, and does not wait: whether it is within the limit. One that is not
    /// uses nothing of it.
    pub fn admits(&mut self, limit: RateLimit, now: u64) -> bool {
        self.admits_together(limit, 1, now)
    }

    /// The same of so many, which come together and aren't parted: all are admitted where one is, and all are counted.
    pub fn admits_together(&mut self, limit: RateLimit, count: u32, now: u64) -> bool {
        let even = self.even.max(now);
        let admits = even <= now.saturating_add(limit.tolerance());
        if admits {
            self.even = even + limit.interval().saturating_mul(u64::from(count));
        }
        admits
    }

    /// How many would be admitted now, one after the other.
    #[must_use]
    pub fn remaining(&self, limit: RateLimit, now: u64) -> u32 {
        let free = (now + limit.tolerance()).checked_sub(self.even.max(now));
        let more = free.map_or(0, |free| free / limit.interval() + 1);
        u32::try_from(more).unwrap_or(u32::MAX)
    }

    /// How long until the next one is admitted.
    #[must_use]
    pub fn until_next(&self, limit: RateLimit, now: u64) -> Duration {
        Duration::from_micros(self.even.saturating_sub(limit.tolerance()).saturating_sub(now))
    }

    /// How long until nothing of the limit is used any more.
    #[must_use]
    pub fn until_idle(&self, now: u64) -> Duration {
        Duration::from_micros(self.even.saturating_sub(now))
    }

    /// Whether a fresh meter would do as well.
    #[must_use]
    pub fn is_idle(&self, now: u64) -> bool {
        self.even <= now && self.line <= now
    }
}

/// The meters of many, of which those are forgotten that a fresh one would do as well as.
#[derive(Clone, Debug)]
pub struct Meters<K> {
    meters: HashMap<K, Meter>,
    /// With so many it is time to forget some.
    full: usize,
}

/// With so many meters, unused ones are looked for.
const MANY_METERS: usize = 8192;

impl<K> Default for Meters<K> {
    fn default() -> Self {
        Self { meters: HashMap::new(), full: MANY_METERS }
    }
}

impl<K: Clone + Eq + Hash> Meters<K> {
    /// The meter of this one.
    pub fn of(&mut self, key: &K, now: u64) -> &mut Meter {
        if self.meters.len() >= self.full {
            self.meters.retain(|_, meter| !meter.is_idle(now));
            // Not looked through again and again while most are in use.
            self.full = MANY_METERS.max(self.meters.len() * 2);
        }
        self.meters.entry(key.clone()).or_default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: u64 = 1_000_000;

    #[test]
    fn a_burst_passes_and_the_others_come_evenly() {
        let limit = RateLimit { per_second: 50, burst: 3 };
        let mut meter = Meter::default();
        let mut ask = |patience| meter.ask(limit, Duration::from_millis(patience), SECOND);
        let after = |millis| Turn::After(Duration::from_millis(millis));
        let again = |millis| Turn::AskAgainAfter(Duration::from_millis(millis));
        assert_eq!([ask(0), ask(0), ask(0)], [after(0); 3]);
        assert_eq!([ask(50), ask(50)], [after(20), after(40)]);
        assert_eq!([ask(50), ask(50), ask(50)], [again(80), again(100), again(120)]);
        // Who has been sent away once is more patient than who has just come.
        assert_eq!(ask(100), after(60));
    }

    #[test]
    fn who_comes_back_when_told_to_finds_a_turn() {
        let limit = RateLimit { per_second: 10, burst: 1 };
        let mut meter = Meter::default();
        let mut coming = std::collections::BTreeMap::new();
        for n in 0..1000 {
            if let Turn::AskAgainAfter(wait) = meter.ask(limit, Duration::ZERO, n) {
                coming.insert(n + u64::try_from(wait.as_micros()).unwrap(), n);
            }
        }
        assert_eq!(coming.len(), 999);
        for at in coming.into_keys() {
            let turn = meter.ask(limit, Duration::from_secs(1), at);
            assert!(matches!(turn, Turn::After(_)), "{turn:?} at {at}");
        }
    }

    #[test]
    fn who_does_not_wait_is_admitted_or_uses_nothing() {
        let limit = RateLimit { per_second: 10, burst: 3 };
        let mut meter = Meter::default();
        let mut admitted = |millis: u64| meter.admits(limit, SECOND + millis * 1000);
        assert_eq!([admitted(0), admitted(0), admitted(0), admitted(0)], [true, true, true, false]);
        assert_eq!([admitted(99), admitted(100), admitted(101)], [false, true, false]);
        assert_eq!([admitted(5000), admitted(5000), admitted(5000)], [true; 3]);
    }

    #[test]
    fn those_who_come_together_are_all_counted() {
        let limit = RateLimit { per_second: 10, burst: 3 };
        let mut meter = Meter::default();
        assert!(meter.admits_together(limit, 20, SECOND));
        // As long until the next one as if they had come one after the other.
        assert_eq!(meter.until_next(limit, SECOND), Duration::from_millis(1800));
        assert!(!meter.admits_together(limit, 1, SECOND + 1_700_000));
        assert!(meter.admits_together(limit, 1, SECOND + 1_800_000));
    }

    #[test]
    fn unused_meters_are_forgotten() {
        let limit = RateLimit { per_second: 10, burst: 3 };
        let mut meters = Meters::default();
        let count = u64::try_from(MANY_METERS).unwrap();
        for key in 0..count {
            assert!(meters.of(&key, SECOND).admits(limit, SECOND));
        }
        // All are in use, so none is forgotten, and none is looked for at each that comes.
        meters.of(&count, SECOND).admits(limit, SECOND);
        assert_eq!((meters.meters.len(), meters.full), (MANY_METERS + 1, 2 * MANY_METERS));
        for key in count..=2 * count {
            meters.of(&key, 5 * SECOND).admits(limit, 5 * SECOND);
        }
        assert!(meters.meters.len() <= MANY_METERS + 1);
    }

    proptest! {
        #[test]
        fn what_remains_is_what_is_admitted(
            per_second in 1_u32..1000, burst in 1_u32..50, used in 0_u32..60, at in 0_u64..SECOND,
        ) {
            let limit = RateLimit { per_second, burst };
            let mut meter = Meter::default();
            for _ in 0..used {
                meter.admits(limit, SECOND);
            }
            let now = SECOND + at;
            let (remaining, wait) = (meter.remaining(limit, now), meter.until_next(limit, now));
            prop_assert_eq!(remaining == 0, !wait.is_zero());
            let then = now + u64::try_from(wait.as_micros()).unwrap();
            prop_assert!(wait.is_zero() || !meter.clone().admits(limit, then - 1));
            prop_assert!(meter.clone().admits(limit, then));
            let admitted = (0..100).take_while(|_| meter.admits(limit, now)).count();
            prop_assert_eq!(admitted, usize::try_from(remaining).unwrap());
        }

        #[test]
        fn no_second_has_more_than_its_share(
            (per_second, burst) in (1_u32..200, 1_u32..50),
            steps in prop::collection::vec((0_u64..50_000, 0_u64..500), 1..500),
        ) {
            let limit = RateLimit { per_second, burst };
            let (mut meter, mut now, mut turns) = (Meter::default(), 5 * SECOND, Vec::new());
            for (step, patience) in steps {
                now += step;
                if let Turn::After(wait) = meter.ask(limit, Duration::from_millis(patience), now) {
                    prop_assert!(wait <= Duration::from_millis(patience));
                    turns.push(now + u64::try_from(wait.as_micros()).unwrap());
                }
            }
            turns.sort_unstable();
            for (i, from) in turns.iter().enumerate() {
                let within = turns.iter().skip(i).take_while(|at| **at < from + SECOND).count();
                prop_assert!(within <= usize::try_from(per_second + burst).unwrap());
            }
        }
    }
}
