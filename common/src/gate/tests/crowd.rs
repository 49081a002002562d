//! What many deliveries for one endpoint do at its gate and between their holds, played through.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::*;
use crate::rung::Rung;

/// Those who want to deliver to one endpoint, which hangs at first.
struct Crowd {
    gate: Gate,
    bounds: Bounds,
    /// How long the endpoint takes to answer, and by how much more or less of that at most.
    takes: Duration,
    varies: f64,
    /// How late a delay queue lets go at most.
    late: Duration,
    hangs_until: Timestamp,
    /// What happens when; the number tells apart what happens at once.
    steps: BTreeMap<(Timestamp, u64), Step>,
    next_number: u64,
    /// Who waits at the gate, and how often each was held before.
    waiting: VecDeque<(u64, u32)>,
    /// Deliveries that came back to the gate, by the second.
    came_back: BTreeMap<u64, u32>,
    /// Messages that were put into a delay queue, by the second.
    parked: BTreeMap<u64, u32>,
    held: u32,
    failed: u32,
    delivered_at: Vec<Timestamp>,
}

enum Step {
    Comes { holds: u32 },
    IsCalled { holds: u32 },
    Parks { until: Timestamp, holds: u32 },
    GivesUp { number: u64 },
    Ends(Pass, Sign),
}

impl Crowd {
    const TIMEOUT: Duration = Duration::from_secs(15);
    /// As in the dispatcher.
    const PATIENCE: Duration = Duration::from_millis(500);
    /// As in the dispatcher.
    const PATIENCE_AFTER_HOLD: Duration = Duration::from_secs(1);

    fn new(come: u32, every: Duration) -> Self {
        let mut crowd = Self {
            gate: Gate::default(),
            bounds: Bounds { concurrency: 32, waiting: 256, failures: 10 },
            takes: Duration::from_millis(5),
            varies: 0.0,
            late: Duration::from_millis(4),
            hangs_until: at(0),
            steps: BTreeMap::new(),
            next_number: 0,
            waiting: VecDeque::new(),
            came_back: BTreeMap::new(),
            parked: BTreeMap::new(),
            held: 0,
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
                Step::IsCalled { holds } => self.arrives(holds, now, chance),
                Step::Parks { until, holds } if until > now => {
                    *self.parked.entry(now.since(at(0)).as_secs()).or_default() += 1;
                    let rung = Rung::for_wait(until.since(now));
                    let lets_go = now.plus(rung.length() + self.late.mul_f64(chance));
                    self.then(lets_go, Step::Parks { until, holds });
                }
                Step::Parks { holds, .. } => self.comes(holds, now, chance),
                Step::GivesUp { number } => {
                    if let Some(place) = self.waiting.iter().position(|(other, _)| *other == number)
                    {
                        let (_, holds) = self.waiting.remove(place).unwrap();
                        let admission = self.gate.give_up_waiting(self.bounds, now);
                        self.goes_on(admission, holds, now, chance);
                    }
                }
                Step::Ends(pass, sign) => {
                    self.gate.end(pass, (sign, None), self.bounds, (now, chance));
                    match sign {
                        Sign::Answers => self.delivered_at.push(now),
                        Sign::Fails | Sign::Throttles => self.failed += 1,
                    }
                    self.next_goes(now, chance);
                }
            }
        }
        self
    }

    fn comes(&mut self, holds: u32, now: Timestamp, chance: f64) {
        if holds == 0 {
            return self.arrives(holds, now, chance);
        }
        *self.came_back.entry(now.since(at(0)).as_secs()).or_default() += 1;
        let called = match self.gate.closed(now) {
            Some(closed) => Err(closed),
            None => self.gate.come_back(self.bounds, Self::PATIENCE_AFTER_HOLD, now),
        };
        match called {
            Ok(wait) => self.then(now.plus(wait), Step::IsCalled { holds }),
            Err((reason, until)) => {
                self.goes_on(Admission::Hold(reason, until), holds, now, chance);
            }
        }
    }

    fn arrives(&mut self, holds: u32, now: Timestamp, chance: f64) {
        let admission = self.gate.arrive(self.bounds, now);
        self.goes_on(admission, holds, now, chance);
    }

    fn goes_on(&mut self, admission: Admission, holds: u32, now: Timestamp, chance: f64) {
        match admission {
            Admission::Go(pass) => {
                self.gate.begin(pass, now);
                let (takes, sign) = if now < self.hangs_until {
                    (Self::TIMEOUT, Sign::Fails)
                } else {
                    let takes = self.takes.mul_f64(1.0 + self.varies * (2.0 * chance - 1.0));
                    (takes, Sign::Answers)
                };
                self.then(now.plus(takes), Step::Ends(pass, sign));
            }
            Admission::Wait => {
                let number = self.next_number;
                self.waiting.push_back((number, holds));
                self.then(now.plus(Self::PATIENCE), Step::GivesUp { number });
            }
            Admission::Hold(reason, opens_at) => {
                self.held += 1;
                let until = hold_until((reason, opens_at), holds, now, chance);
                self.then(now, Step::Parks { until, holds: holds + 1 });
            }
        }
    }

    fn next_goes(&mut self, now: Timestamp, chance: f64) {
        let Some((number, holds)) = self.waiting.pop_front() else { return };
        match self.gate.ask_again(self.bounds, now) {
            Admission::Wait => self.waiting.push_front((number, holds)),
            admission @ (Admission::Go(_) | Admission::Hold(..)) => {
                self.goes_on(admission, holds, now, chance);
                if self.gate.may_next_go(self.bounds) {
                    self.next_goes(now, chance);
                }
            }
        }
    }

    fn all_delivered_after(&self) -> Duration {
        self.delivered_at.iter().max().unwrap().since(self.hangs_until)
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
    let mut crowd = Crowd::new(3000, Duration::from_millis(20));
    crowd.hangs_until = at(120_000);
    let crowd = crowd.run();
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
    let mut crowd = Crowd::new(20_000, Duration::from_micros(500));
    crowd.hangs_until = at(600_000);
    let crowd = crowd.run();
    let delivered = u32::try_from(crowd.delivered_at.len()).unwrap();
    assert_eq!(delivered + crowd.failed, 20_000);
    assert!(crowd.failed < 50, "{} attempts for nothing", crowd.failed);
    let last = crowd.all_delivered_after();
    // A probe, and the longest hold of one that came just before it.
    assert!(last < Duration::from_secs(330 + 15 + 450 + 100), "{last:?}");
}

/// Those of a flood come back at the pace at which the endpoint takes them, and few of them twice.
#[test]
fn a_busy_endpoint_is_kept_busy() {
    for (come, micros_apart, concurrency, takes_ms) in [
        (3000, 100, 8, 50),
        (3000, 2000, 8, 50),
        (3000, 100, 32, 50),
        (3000, 100, 32, 1000),
        (3000, 100, 1, 50),
        (20_000, 50, 8, 50),
        (20_000, 50, 32, 40),
        (20_000, 50, 32, 5),
    ] {
        let flood = || {
            let mut crowd = Crowd::new(come, Duration::from_micros(micros_apart));
            crowd.takes = Duration::from_millis(takes_ms);
            crowd.bounds.concurrency = concurrency;
            crowd
        };
        let at_best = Duration::from_millis(takes_ms) * come / concurrency;
        let mut unsteady = flood();
        (unsteady.varies, unsteady.late) = (0.8, Duration::from_millis(300));
        for (crowd, slower, most_holds) in [(flood(), 1.1, 2.6), (unsteady, 1.6, 2.6)] {
            let crowd = crowd.run();
            assert_eq!(u32::try_from(crowd.delivered_at.len()), Ok(come));
            let (took, holds) =
                (crowd.all_delivered_after(), f64::from(crowd.held) / f64::from(come));
            let most = at_best.mul_f64(slower) + Duration::from_secs(1);
            assert!(took <= most, "{took:?} instead of {at_best:?}");
            assert!(holds <= most_holds, "held {holds} times");
        }
    }
}

/// Who is in a line that is longer than anybody can know comes back before its end, but not all at once.
#[test]
fn whose_turn_is_far_away_asks_for_it_now_and_then() {
    let mut crowd = Crowd::new(50_000, Duration::from_micros(100));
    crowd.takes = Duration::from_secs(1);
    let crowd = crowd.run();
    let (took, at_best) = (crowd.all_delivered_after(), Duration::from_millis(1_562_500));
    assert!(took < at_best.mul_f64(1.1), "{took:?}");
    let parked = crowd.parked_in(10..1000);
    assert!(parked < 1000, "{parked} a second");
    let most = crowd.came_back.values().max().unwrap();
    assert!(*most < 5000, "{most} in one second");
}
