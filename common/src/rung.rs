//! The rungs: 18 waits whose lengths are the powers of two from 1 s to 2^17 s, each with a delay queue in each
//! [lane](Lane). Any wait is a few of them, one after the other.

use std::time::Duration;

use crate::sideline::Lane;

/// By how much a rung may overshoot. A message leaves each rung some milliseconds late, so what is left is just short of
/// the next rung, and would take all those below it, one after the other.
const LATE: Duration = Duration::from_millis(500);

/// One of the waits.
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

    /// The rung to wait in while `remaining` is left: the longest that does not overshoot by more than half a second.
    /// Under a second it is the shortest, which overshoots by less than a second.
    #[must_use]
    pub fn for_wait(remaining: Duration) -> Self {
        let seconds = remaining.saturating_add(LATE).as_secs().max(1);
        Self(seconds.ilog2().min(Self::COUNT - 1))
    }
}

/// The queue in which messages wait for as long as a rung says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DelayQueue {
    /// For how long.
    pub rung: Rung,
    /// Among whom.
    pub lane: Lane,
}

impl DelayQueue {
    /// Every delay queue, those of the main lane first, the shortest of each lane first.
    pub fn all() -> impl Iterator<Item = Self> {
        Lane::ALL.into_iter().flat_map(|lane| Rung::all().map(move |rung| Self { rung, lane }))
    }

    /// Its name, such as `doorbell.delay.16s`.
    #[must_use]
    pub fn name(self) -> String {
        format!("{}{}s", prefix(self.lane), self.rung.length().as_secs())
    }

    /// The delay queue of this name, if it is one's.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        Lane::ALL.into_iter().find_map(|lane| {
            let seconds = name.strip_prefix(prefix(lane))?.strip_suffix('s')?;
            let seconds: u64 = seconds.parse().ok()?;
            let rung = Rung(seconds.checked_ilog2()?);
            (seconds.is_power_of_two() && rung.0 < Rung::COUNT).then_some(Self { rung, lane })
        })
    }
}

fn prefix(lane: Lane) -> &'static str {
    match lane {
        Lane::Main => "doorbell.delay.",
        Lane::Sideline => "doorbell.sideline.delay.",
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
        for (millis, seconds) in [
            (0, 1),
            (999, 1),
            (1499, 1),
            (1500, 2),
            (2000, 2),
            (3499, 2),
            (3500, 4),
            (3_600_000, 2048),
            (604_800_000, 131_072),
        ] {
            let rung = Rung::for_wait(Duration::from_millis(millis));
            assert_eq!(rung.length().as_secs(), seconds, "{millis} ms");
        }
        assert_eq!(Rung::all().count(), 18);
    }

    #[test]
    fn each_rung_has_a_queue_in_each_lane() {
        let names: Vec<String> = DelayQueue::all().map(DelayQueue::name).collect();
        assert_eq!(names.len(), 36);
        assert_eq!(names[0], "doorbell.delay.1s");
        assert_eq!(names[17], "doorbell.delay.131072s");
        assert_eq!(names[18], "doorbell.sideline.delay.1s");
        for queue in DelayQueue::all() {
            assert_eq!(DelayQueue::of_name(&queue.name()), Some(queue));
        }
        for other in ["doorbell.delay.3s", "doorbell.delay.262144s", "doorbell.retries"] {
            assert_eq!(DelayQueue::of_name(other), None, "{other}");
        }
    }

    #[test]
    fn a_wait_takes_the_rungs_that_it_is_made_of_although_each_is_left_late() {
        const HOP: Duration = Duration::from_millis(30);
        for (seconds, hops) in
            [(1, 1), (2, 1), (3, 2), (16, 1), (24, 2), (40, 2), (300, 4), (4095, 12)]
        {
            let wait = Duration::from_secs(seconds);
            let (mut waited, mut taken) = (Duration::ZERO, 0);
            while waited < wait {
                waited += Rung::for_wait(wait - waited).length() + HOP;
                taken += 1;
            }
            assert_eq!(taken, hops, "{seconds} s");
            assert!(waited <= wait + HOP * taken, "{seconds} s took {waited:?}");
        }
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
