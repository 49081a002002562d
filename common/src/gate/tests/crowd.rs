//! What many deliveries for one endpoint do at its gate and between their holds, played through.

use std::collections::BTreeMap;
use std::ops::Range;

use super::*;
use crate::rung::Rung;

/// Those who want to deliver to one endpoint, which hangs at first.
struct Crowd {
    gate: Gate,
    /// What happens when; the number tells apart what happens at once.
    steps: BTreeMap<(Timestamp, u64), Step>,
    next_number: u64,
    hangs_until: Timestamp,
    /// Messages that were put into a delay queue, by the second.
    parked: BTreeMap<u64, u32>,
    failed: u32,
    delivered_at: Vec<Timestamp>,
}

enum Step {
    Comes { holds: u32 },
    Parks { until: Timestamp, holds: u32 },
    Ends(Pass, Sign),
}

impl Crowd {
    const BOUNDS: Bounds = Bounds { concurrency: 32, waiting: 256, failures: 10 };
    const TIMEOUT: Duration = Duration::from_secs(15);

    fn new(come: u32, every: Duration, hangs_for: Duration) -> Self {
        let mut crowd = Self {
            gate: Gate::default(),
            steps: BTreeMap::new(),
            next_number: 0,
            hangs_until: at(0).plus(hangs_for),
            parked: BTreeMap::new(),
            failed: 0,
            delivered_at: Vec::new(),
        };
        for number in 0..come {
            crowd.then(at(0).plus(every * number), Step::Comes { holds: 0 });
        }
        crowd
    }

    fn then(&mut self, when: Timestamp, step: Step) {
        self.steps.insert((when, self.next_number), step);
        self.next_number += 1;
    }

    fn run(mut self) -> Self {
        while let Some(((now, number), step)) = self.steps.pop_first() {
            // Evenly over `[0, 1)`.
            let chance = (f64::from(u32::try_from(number).unwrap()) * 0.618_034).fract();
            match step {
                Step::Comes { holds } => self.comes(holds, now, chance),
                Step::Parks { until, holds } if until > now => {
                    *self.parked.entry(now.since(at(0)).as_secs()).or_default() += 1;
                    let rung = Rung::for_wait(until.since(now));
                    self.then(now.plus(rung.length()), Step::Parks { until, holds });
                }
                Step::Parks { holds, .. } => self.comes(holds, now, chance),
                Step::Ends(pass, sign) => {
                    self.gate.end(pass, (sign, None), Self::BOUNDS, (now, chance));
                    match sign {
                        Sign::Answers => self.delivered_at.push(now),
                        Sign::Fails | Sign::Throttles => self.failed += 1,
                    }
                }
            }
        }
        self
    }

    fn comes(&mut self, holds: u32, now: Timestamp, chance: f64) {
        let (reason, opens_at) = match self.gate.arrive(Self::BOUNDS, holds > 0, now) {
            Admission::Go(pass) => {
                self.gate.begin(pass, now);
                let (takes, sign) = if now < self.hangs_until {
                    (Self::TIMEOUT, Sign::Fails)
                } else {
                    (Duration::from_millis(5), Sign::Answers)
                };
                return self.then(now.plus(takes), Step::Ends(pass, sign));
            }
            Admission::Wait => {
                self.gate.give_up_waiting(now);
                (HoldReason::Busy, now)
            }
            Admission::Hold(reason, opens_at) => (reason, opens_at),
        };
        let until = hold_until((reason, opens_at), holds, now, chance);
        self.then(now, Step::Parks { until, holds: holds + 1 });
    }

    /// Messages a second in this time.
    fn parked_in(&self, seconds: Range<u64>) -> u64 {
        let count = seconds.end - seconds.start;
        self.parked.range(seconds).map(|(_, parked)| u64::from(*parked)).sum::<u64>() / count
    }
}

/// What is held costs its neighbours a message each time it comes back, and each rung it waits in one more.
#[test]
fn who_waits_behind_an_endpoint_that_hangs_seldom_comes_back() {
    let crowd = Crowd::new(3000, Duration::from_millis(20), Duration::from_secs(120)).run();
    // Fifty of each second are those that come in the first minute.
    for (seconds, most) in [(0..30, 100), (30..60, 125), (60..120, 70)] {
        let parked = crowd.parked_in(seconds.clone());
        assert!((1..=most).contains(&parked), "{parked} a second from {seconds:?}");
    }
    // Nor do they come all at once.
    let most = crowd.parked.values().max().unwrap();
    assert!(*most < 350, "{most} in one second");
}

#[test]
fn all_come_back_to_an_endpoint_that_answers_again() {
    let crowd = Crowd::new(20_000, Duration::from_micros(500), Duration::from_secs(600)).run();
    let delivered = u32::try_from(crowd.delivered_at.len()).unwrap();
    assert_eq!(delivered + crowd.failed, 20_000);
    assert!(crowd.failed < 50, "{} attempts for nothing", crowd.failed);
    let last = crowd.delivered_at.iter().max().unwrap().since(crowd.hangs_until);
    // A probe, and the longest hold of one that came just before it.
    assert!(last < Duration::from_secs(330 + 15 + 450 + 100), "{last:?}");
}
