//! The laws of the gate.

use proptest::prelude::*;

use super::*;

mod crowd;

const BOUNDS: Bounds = Bounds { concurrency: 4, waiting: 2, failures: 3 };

fn at(millis: i64) -> Timestamp {
    Timestamp::from_millis(1_000_000 + millis)
}

fn go(gate: &mut Gate, now: Timestamp) -> Pass {
    let Admission::Go(pass) = gate.arrive(BOUNDS, now) else { panic!("not let through") };
    gate.begin(pass, now);
    pass
}

fn end(gate: &mut Gate, pass: Pass, sign: Sign, now: Timestamp) {
    gate.end(pass, (sign, None), BOUNDS, (now, 0.0));
}

#[test]
fn so_many_go_so_many_wait_and_the_rest_is_held() {
    let mut gate = Gate::default();
    let passes: Vec<Pass> = (0..4).map(|_| go(&mut gate, at(0))).collect();
    assert_eq!(gate.arrive(BOUNDS, at(1)), Admission::Wait);
    assert_eq!(gate.arrive(BOUNDS, at(1)), Admission::Wait);
    assert_eq!(gate.arrive(BOUNDS, at(1)), Admission::Hold(HoldReason::Busy, at(1)));
    end(&mut gate, passes[0], Sign::Answers, at(2));
    // Who waits goes before who comes.
    assert_eq!(gate.arrive(BOUNDS, at(3)), Admission::Hold(HoldReason::Busy, at(3)));
    assert!(matches!(gate.ask_again(BOUNDS, at(3)), Admission::Go(_)));
    assert_eq!(gate.ask_again(BOUNDS, at(3)), Admission::Wait);
    assert!(matches!(gate.give_up_waiting(BOUNDS, at(4)), Admission::Hold(HoldReason::Busy, _)));
    assert!(!gate.is_idle(at(4)));
    for pass in passes {
        end(&mut gate, pass, Sign::Answers, at(5));
    }
    assert!(!gate.is_deserted(), "one is in flight");
}

#[test]
fn nobody_waits_where_it_would_take_long() {
    let mut gate = Gate::default();
    for _ in 0..20 {
        let pass = go(&mut gate, at(0));
        end(&mut gate, pass, Sign::Answers, at(1800));
    }
    for _ in 0..4 {
        go(&mut gate, at(2000));
    }
    // Each takes 1.8 s, four at once: the next turn comes after some 450 ms.
    // Those who are held come back one after the other.
    let held: Vec<Admission> = (0..3).map(|_| gate.arrive(BOUNDS, at(2000))).collect();
    let turns: Vec<i64> = held
        .iter()
        .map(|admission| {
            let Admission::Hold(HoldReason::Busy, turn) = admission else { panic!("not held") };
            turn.since(at(2000)).as_millis()
        })
        .map(|millis| i64::try_from(millis).unwrap())
        .collect();
    assert_eq!(turns[0], 0);
    assert!(turns[1] >= 260 && turns[2] >= turns[1] + 260, "{turns:?}");
}

#[test]
fn who_is_held_for_an_endpoint_that_takes_no_time_does_not_come_back_all_at_once() {
    let mut gate = Gate::default();
    let pass = go(&mut gate, at(0));
    end(&mut gate, pass, Sign::Answers, at(0));
    for _ in 0..4 {
        go(&mut gate, at(0));
    }
    let turns = (0..10_000).filter_map(|_| match gate.arrive(BOUNDS, at(0)) {
        Admission::Hold(HoldReason::Busy, turn) => Some(turn),
        Admission::Go(_) | Admission::Wait | Admission::Hold(..) => None,
    });
    assert!(turns.last().unwrap() >= at(1500));
}

#[test]
fn nobody_waits_where_nothing_was_answered_yet() {
    let mut gate = Gate::default();
    let passes: Vec<Pass> = (0..4).map(|_| go(&mut gate, at(0))).collect();
    assert_eq!(gate.arrive(BOUNDS, at(250)), Admission::Wait);
    assert_eq!(gate.arrive(BOUNDS, at(251)), Admission::Hold(HoldReason::Busy, at(251)));
    // The oldest has begun before the answer, the others after it.
    end(&mut gate, passes[0], Sign::Answers, at(260));
    let Admission::Go(pass) = gate.ask_again(BOUNDS, at(260)) else { panic!("not let through") };
    gate.begin(pass, at(260));
    assert_eq!(gate.arrive(BOUNDS, at(270)), Admission::Wait);
}

#[test]
fn an_endpoint_that_says_nothing_gets_little_more() {
    let mut gate = Gate::default();
    let first = go(&mut gate, at(0));
    let _second = go(&mut gate, at(900));
    let _third = go(&mut gate, at(1000));
    // For as long again as it has said nothing.
    assert_eq!(gate.arrive(BOUNDS, at(1001)), Admission::Hold(HoldReason::Silent, at(2002)));
    assert!(!first.is_slow());
    end(&mut gate, first, Sign::Fails, at(1500));
    // It has said nothing since then all the same.
    assert_eq!(gate.arrive(BOUNDS, at(1501)), Admission::Hold(HoldReason::Silent, at(3002)));
}

#[test]
fn an_endpoint_is_slow_until_it_answers() {
    let mut gate = Gate::default();
    let lost = go(&mut gate, at(0));
    end(&mut gate, lost, Sign::Fails, at(15_000));
    let first = go(&mut gate, at(600_000));
    let second = go(&mut gate, at(600_000));
    assert!(first.is_slow() && second.is_slow());
    // As long as it has said nothing, but no longer than it makes sense to guess.
    let held = gate.arrive(BOUNDS, at(600_000));
    assert_eq!(held, Admission::Hold(HoldReason::Silent, at(630_000)));
    end(&mut gate, first, Sign::Answers, at(601_000));
    let third = go(&mut gate, at(601_000));
    assert!(!third.is_slow());
}

#[test]
fn what_fails_at_once_or_beside_answers_does_not_make_it_slow() {
    let mut gate = Gate::default();
    let refused = go(&mut gate, at(0));
    end(&mut gate, refused, Sign::Fails, at(5));
    let lost = go(&mut gate, at(1000));
    let answered = go(&mut gate, at(2000));
    assert!(!lost.is_slow() && !answered.is_slow());
    end(&mut gate, answered, Sign::Answers, at(2010));
    end(&mut gate, lost, Sign::Fails, at(16_000));
    assert!(!go(&mut gate, at(20_000)).is_slow());
}

#[test]
fn an_endpoint_of_which_nothing_is_known_gets_more_with_each_answer() {
    let wide = Bounds { concurrency: 32, waiting: 0, ..BOUNDS };
    let fill = |gate: &mut Gate, now: Timestamp| -> Vec<Pass> {
        std::iter::from_fn(|| match gate.arrive(wide, now) {
            Admission::Go(pass) => {
                gate.begin(pass, now);
                Some(pass)
            }
            Admission::Wait | Admission::Hold(..) => None,
        })
        .collect()
    };
    let mut gate = Gate::default();
    for (round, expected) in (0..).zip([16, 32, 32]) {
        let passes = fill(&mut gate, at(1000 * round));
        assert_eq!(passes.len(), expected);
        for pass in passes {
            end(&mut gate, pass, Sign::Answers, at(1000 * round + 999));
        }
    }
    for pass in fill(&mut gate, at(3000)) {
        end(&mut gate, pass, Sign::Fails, at(5000));
    }
    gate.breaker = Breaker::default();
    assert_eq!(fill(&mut gate, at(6000)).len(), 2);
}

#[test]
fn an_endpoint_that_takes_its_time_but_answers_is_not_slow() {
    let mut gate = Gate::default();
    let first = go(&mut gate, at(0));
    let second = go(&mut gate, at(1000));
    end(&mut gate, first, Sign::Answers, at(2000));
    let _third = go(&mut gate, at(2000));
    // The second is older than a second, but something was answered since it began.
    assert!(matches!(gate.arrive(BOUNDS, at(2500)), Admission::Go(_)));
    end(&mut gate, second, Sign::Answers, at(3000));
    assert!(matches!(gate.arrive(BOUNDS, at(3000)), Admission::Go(_)));
}

#[test]
fn an_open_breaker_lets_one_probe_through() {
    let mut gate = Gate::default();
    for _ in 0..3 {
        let pass = go(&mut gate, at(0));
        end(&mut gate, pass, Sign::Fails, at(0));
    }
    assert!(gate.is_open());
    assert_eq!(gate.arrive(BOUNDS, at(1)), Admission::Hold(HoldReason::Breaker, at(5001)));
    let probe = go(&mut gate, at(5000));
    assert_eq!(gate.arrive(BOUNDS, at(5001)), Admission::Hold(HoldReason::Breaker, at(5001)));
    end(&mut gate, probe, Sign::Fails, at(6000));
    // The next one at 16 s, and what a POST usually takes: an eighth of the second that the last one took.
    assert_eq!(gate.arrive(BOUNDS, at(6001)), Admission::Hold(HoldReason::Breaker, at(16_125)));
    let probe = go(&mut gate, at(16_000));
    end(&mut gate, probe, Sign::Answers, at(16_100));
    assert!(gate.is_idle(at(16_100)));
}

#[test]
fn whether_it_is_closed_to_all_can_be_asked_without_coming() {
    let mut gate = Gate::default();
    assert!(!gate.is_closed(at(0)));
    for _ in 0..4 {
        go(&mut gate, at(0));
    }
    assert_eq!((gate.closed(at(0)), gate.is_closed(at(0))), (None, false), "busy is not closed");
    let mut gate = Gate::default();
    let pass = go(&mut gate, at(0));
    gate.end(pass, (Sign::Throttles, Some(Duration::from_secs(2))), BOUNDS, (at(0), 0.0));
    assert_eq!(gate.closed(at(1)), Some((HoldReason::Throttled, at(2000))));
    assert_eq!(gate.closed(at(2000)), None);
    for _ in 0..3 {
        let pass = go(&mut gate, at(3000));
        end(&mut gate, pass, Sign::Fails, at(3000));
    }
    assert_eq!(gate.closed(at(3001)), Some((HoldReason::Breaker, at(8001))));
    assert_eq!(gate.closed(at(8000)), None, "time for a probe");
    let _probe = go(&mut gate, at(8000));
    assert_eq!(gate.closed(at(8000)), Some((HoldReason::Breaker, at(8001))));
}

#[test]
fn while_a_probe_hangs_nobody_comes_back_for_it() {
    let mut gate = Gate::default();
    for _ in 0..30 {
        let pass = go(&mut gate, at(0));
        end(&mut gate, pass, Sign::Fails, at(15_000));
        gate.breaker = Breaker::default();
    }
    let last = go(&mut gate, at(15_000));
    gate.breaker = Breaker::Closed { failures: 2 };
    end(&mut gate, last, Sign::Fails, at(30_000));
    assert!(gate.is_open());
    let _probe = go(&mut gate, at(35_000));
    let Admission::Hold(HoldReason::Breaker, until) = gate.arrive(BOUNDS, at(36_000)) else {
        panic!("not held")
    };
    assert!(until > at(49_000) && until <= at(50_000), "{until}");
}

#[test]
fn a_probe_that_is_asked_to_wait_is_not_followed_by_another_at_once() {
    let mut gate = Gate::default();
    for _ in 0..3 {
        let pass = go(&mut gate, at(0));
        end(&mut gate, pass, Sign::Fails, at(0));
    }
    let probe = go(&mut gate, at(5000));
    let wait = Some(Duration::from_secs(60));
    gate.end(probe, (Sign::Throttles, wait), BOUNDS, (at(5000), 0.0));
    let held = gate.arrive(BOUNDS, at(5001));
    assert_eq!(held, Admission::Hold(HoldReason::Breaker, at(65_000)));
    go(&mut gate, at(65_000));
}

#[test]
fn an_endpoint_that_asks_for_it_is_left_alone_by_all() {
    let mut gate = Gate::default();
    let pass = go(&mut gate, at(0));
    let wait = Some(Duration::from_secs(7));
    gate.end(pass, (Sign::Throttles, wait), BOUNDS, (at(0), 0.0));
    assert_eq!(gate.arrive(BOUNDS, at(6999)), Admission::Hold(HoldReason::Throttled, at(7000)));
    assert!(!gate.is_idle(at(6999)) && gate.is_idle(at(7000)));
    go(&mut gate, at(7000));
}

#[test]
fn whoever_is_held_by_a_breaker_comes_after_its_probe() {
    let mut gate = Gate::default();
    let passes: Vec<Pass> = (0..3).map(|_| go(&mut gate, at(0))).collect();
    for pass in passes {
        end(&mut gate, pass, Sign::Fails, at(16_000));
    }
    let held = gate.arrive(BOUNDS, at(17_000));
    let Admission::Hold(HoldReason::Breaker, until) = held else { panic!("{held:?}") };
    assert_eq!(until.since(at(21_000)).as_secs(), 16);
    // The one that comes in time makes it.
    go(&mut gate, at(21_000));
}

#[test]
fn the_more_are_held_by_a_breaker_the_longer_they_are() {
    let mut gate = Gate::default();
    for (begins, ends) in [(0, 1000), (21_000, 21_000), (21_000, 21_000)] {
        let pass = go(&mut gate, at(begins));
        end(&mut gate, pass, Sign::Fails, at(ends));
    }
    let first = gate.closed(at(21_000)).unwrap();
    assert!(first.0 == HoldReason::Breaker && first.1 < at(27_000), "{first:?}");
    for _ in 1..CROWD {
        assert_eq!(gate.closed(at(21_000)), Some(first));
    }
    // For as long as it has failed.
    assert_eq!(gate.closed(at(21_000)), Some((HoldReason::Crowd, at(41_000))));
    assert!(gate.is_closed(at(21_000)));
    assert_eq!(gate.closed(at(22_000)), Some((HoldReason::Crowd, at(43_000))));
    let probe = go(&mut gate, at(90_000));
    end(&mut gate, probe, Sign::Fails, at(90_000));
    for _ in 0..CROWD {
        let held = gate.closed(at(90_000)).map(|(reason, _)| reason);
        assert_eq!(held, Some(HoldReason::Breaker), "counted anew");
    }
    let held = gate.closed(at(90_000));
    assert_eq!(held, Some((HoldReason::Crowd, at(150_000))), "a minute at most");
}

#[test]
fn an_answer_of_one_that_was_in_flight_before_ends_the_crowd_too() {
    let mut gate = Gate::default();
    let before = go(&mut gate, at(0));
    let open = |gate: &mut Gate, now: i64| {
        for _ in 0..3 {
            let pass = go(gate, at(now));
            end(gate, pass, Sign::Fails, at(now));
        }
    };
    open(&mut gate, 0);
    (0..=CROWD).for_each(|_| assert!(gate.closed(at(1)).is_some()));
    end(&mut gate, before, Sign::Answers, at(2));
    assert!(!gate.is_closed(at(2)));
    open(&mut gate, 3);
    assert_eq!(gate.closed(at(4)).map(|(reason, _)| reason), Some(HoldReason::Breaker));
}

proptest! {
    #[test]
    fn a_hold_is_never_too_short_and_grows_to_a_bound(
        opens_in in 0_u64..1000,
        holds in 0_u32..40,
        chance in 0.0..1.0_f64,
    ) {
        let now = at(0);
        let opens_at = now.plus(Duration::from_secs(opens_in));
        for (reason, shortest, longest) in [
            (HoldReason::Breaker, 1, 450),
            (HoldReason::Crowd, 0, 300),
            (HoldReason::Throttled, 1, 450),
            (HoldReason::Busy, 0, 0),
            (HoldReason::Silent, 0, 30),
            (HoldReason::RateLimit, 0, 0),
        ] {
            let until = hold_until((reason, opens_at), holds, now, chance);
            prop_assert!(until >= opens_at.plus(Duration::from_secs(shortest)));
            let least = opens_in + longest + 1;
            let late = match reason {
                HoldReason::Silent => least,
                HoldReason::Crowd => least.min(60),
                HoldReason::Breaker => (least / 8).max(8.min(least / 2)),
                HoldReason::Throttled
                | HoldReason::Busy
                | HoldReason::RateLimit
                | HoldReason::Template
                | HoldReason::Shortage => least / 8,
            };
            let most = least + late + 1;
            prop_assert!(until <= now.plus(Duration::from_secs(most)));
            let next = hold_until((reason, now), holds + 1, now, 0.0);
            prop_assert!(next >= hold_until((reason, now), holds, now, 0.0));
            // Never hot.
            prop_assert!(next >= now.plus(Duration::from_secs(1)));
        }
    }

    /// Behind an endpoint that says nothing a hold takes one rung.
    #[test]
    fn a_hold_behind_a_silent_endpoint_is_one_hop(
        silence in 0_u64..=30_000,
        holds in 0_u32..40,
        chance in 0.0..1.0_f64,
    ) {
        let now = at(0);
        let opens_at = now.plus(Duration::from_millis(silence));
        let until = hold_until((HoldReason::Silent, opens_at), holds, now, chance);
        let seconds = until.since(now).as_secs();
        prop_assert!(seconds.is_power_of_two() && seconds <= 32, "{seconds}");
    }

    /// Behind an open breaker it takes two, or a few if two would be much too late.
    #[test]
    fn a_hold_behind_a_breaker_is_a_few_hops(
        opens_in in 0_u64..=330_000,
        holds in 0_u32..40,
        chance in 0.0..1.0_f64,
    ) {
        let now = at(0);
        let opens_at = now.plus(Duration::from_millis(opens_in));
        let until = hold_until((HoldReason::Breaker, opens_at), holds, now, chance);
        let seconds = until.since(now).as_secs();
        prop_assert!(seconds.count_ones() <= if seconds < 50 { 2 } else { 4 }, "{seconds}");
    }

    /// Whatever comes and ends in whatever order, no more are in flight than may be.
    #[test]
    fn bounds_are_kept(steps in prop::collection::vec((0_u8..4, any::<bool>()), 0..200)) {
        let (mut gate, mut passes, mut waiting) = (Gate::default(), Vec::new(), 0_u32);
        for (millis, (step, answers)) in (0_i64..).step_by(100).zip(steps) {
            let now = at(millis);
            match step {
                0 | 1 => match gate.arrive(BOUNDS, now) {
                    Admission::Go(pass) => { gate.begin(pass, now); passes.push(pass); }
                    Admission::Wait => waiting += 1,
                    Admission::Hold(..) => {}
                },
                2 if waiting > 0 => match gate.ask_again(BOUNDS, now) {
                    Admission::Go(pass) => { gate.begin(pass, now); passes.push(pass); waiting -= 1; }
                    Admission::Wait => {}
                    Admission::Hold(..) => waiting -= 1,
                },
                _ => if let Some(pass) = passes.pop() {
                    let sign = if answers { Sign::Answers } else { Sign::Fails };
                    end(&mut gate, pass, sign, now);
                },
            }
            prop_assert!(passes.len() <= 4 && waiting <= 2);
            prop_assert_eq!(gate.is_deserted(), passes.is_empty() && waiting == 0);
        }
    }
}
