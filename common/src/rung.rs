//! The rungs: 18 delay queues whose lengths are the powers of two from 1 s to 2^17 s. Any wait is
//! a few of them, one after the other.

use std::time::Duration;

/// One delay queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rung(u32);

impl Rung {
    /// How many there are.
    pub const COUNT: u32 = 18;

    /// Every rung, shortest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).map(Self)
    }

    /// How long a message stays in it.
    #[must_use]
    pub fn length(self) -> Duration {
        Duration::from_secs(1 << self.0)
    }

    /// The queue's name, such as `doorbell.delay.16s`.
    #[must_use]
    pub fn queue(self) -> String {
        format!("doorbell.delay.{}s", self.length().as_secs())
    }

    /// The rung of this queue, if it is one's.
    #[must_use]
    pub fn of_queue(name: &str) -> Option<Self> {
        let seconds = name.strip_prefix("doorbell.delay.")?.strip_suffix('s')?;
        let seconds: u64 = seconds.parse().ok()?;
        let rung = Self(seconds.checked_ilog2()?);
        (seconds.is_power_of_two() && rung.0 < Self::COUNT).then_some(rung)
    }

    /// Its number, 0 for the shortest.
    #[must_use]
    pub fn number(self) -> usize {
        usize::try_from(self.0).unwrap_or_default()
    }

    /// The rung to wait in while `remaining` is left: the longest that does not overshoot. Under
    /// a second it is the shortest, which overshoots by less than a second.
    #[must_use]
    pub fn for_wait(remaining: Duration) -> Self {
        let seconds = remaining.as_secs().max(1);
        Self(seconds.ilog2().min(Self::COUNT - 1))
    }
}

/// The wait, in whole seconds and between `least` and `most` seconds, that takes the fewest
/// rungs: the number in that range with the fewest binary ones.
#[must_use]
pub fn fewest_rungs(least: u64, most: u64) -> u64 {
    let mut best = most.max(least);
    // Clearing the lowest one again and again keeps the leading bits that all of the range share.
    while best > 0 && (best & (best - 1)) >= least {
        best &= best - 1;
        if best == 0 {
            break;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_longest_rung_that_does_not_overshoot() {
        for (millis, queue) in [
            (0, "doorbell.delay.1s"),
            (999, "doorbell.delay.1s"),
            (1999, "doorbell.delay.1s"),
            (2000, "doorbell.delay.2s"),
            (3_600_000, "doorbell.delay.2048s"),
            (604_800_000, "doorbell.delay.131072s"),
        ] {
            assert_eq!(Rung::for_wait(Duration::from_millis(millis)).queue(), queue, "{millis} ms");
        }
        assert_eq!(Rung::all().count(), 18);
        assert!(Rung::all().all(|rung| Rung::of_queue(&rung.queue()) == Some(rung)));
        assert_eq!(Rung::of_queue("doorbell.delay.3s"), None);
    }

    proptest! {
        #[test]
        fn parking_never_overshoots_by_a_second_and_always_ends(millis in 0_u64..2_592_000_000) {
            let wait = Duration::from_millis(millis);
            let mut waited = Duration::ZERO;
            let mut hops = 0;
            while waited < wait {
                waited += Rung::for_wait(wait - waited).length();
                hops += 1;
                // 30 days are 19 times the longest rung, and 17 shorter ones.
                prop_assert!(hops <= 19 + 18);
            }
            prop_assert!(waited < wait + Duration::from_secs(1));
        }

        #[test]
        fn no_number_in_the_range_has_fewer_ones(least in 1_u64..5000, width in 0_u64..500) {
            let most = least + width;
            let chosen = fewest_rungs(least, most);
            prop_assert!((least..=most).contains(&chosen));
            let fewest = (least..=most).map(u64::count_ones).min().unwrap();
            prop_assert_eq!(chosen.count_ones(), fewest);
        }
    }
}
