//! The gate before a POST, one for each subscription in each dispatcher: whether a delivery may be
//! attempted now, waits a moment, or is held for later without an attempt.
//!
//! It asks, in this order: is the breaker open, did the endpoint ask to be left alone, does it
//! not answer, are enough POSTs in flight. The first two can be [asked alone](Gate::closed), before the
//! [rate limit](crate::rate), which counts the attempts of all dispatchers. Time and chance are arguments.

mod hold;
mod line;

use std::time::Duration;

use crate::breaker::{Breaker, Sign};
use crate::time::Timestamp;
use crate::work::MOST;

use hold::{CROWD_LATE, LONGEST_SILENT_HOLD};
pub use hold::{HoldReason, hold_until};
use line::Line;

/// The bounds of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// POSTs in flight at once.
    pub concurrency: u32,
    /// Deliveries that may wait for one of these to end.
    pub waiting: u32,
    /// After so many failures in a row the breaker opens.
    pub failures: u32,
}

/// An endpoint is slow that has been asked for so long, by one POST or several one after the other, and has
/// answered nothing since. It stays so until it answers.
const SLOW_AFTER: Duration = Duration::from_secs(1);
/// POSTs in flight at once to a slow endpoint: enough to see whether it answers again.
const SLOW_CONCURRENCY: u32 = 2;
/// POSTs in flight at once to an endpoint of which nothing is known; each answer allows one more. Should many
/// endpoints begin to hang at the same moment, each takes so many permits at most.
const FIRST_CONCURRENCY: u32 = 16;

/// A POST takes so long at least, as far as the pace of a line goes: nobody is to come back as if it took no time at all.
const SHORTEST: Duration = Duration::from_millis(1);

/// How many at most come back right after a probe. Where there are more, the others take their time.
const CROWD: u32 = 100;

/// A delivery waits only if its turn is likely to come within this time: it keeps its message in
/// hand meanwhile, and so a place from others.
const LIKELY_WITHIN: Duration = Duration::from_millis(250);

/// How far away a turn may be that is told: the endpoint may be faster by then.
const LONGEST_LINE: Duration = Duration::from_secs(120);
/// After how long one comes back whose turn is farther away. Just below what takes a rung or two.
const ASKS_AGAIN_AFTER: [Duration; 3] =
    [Duration::from_millis(63_500), Duration::from_millis(79_500), Duration::from_millis(95_500)];

/// May a delivery be attempted?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Now, with this pass.
    Go(Pass),
    /// As soon as another attempt ends.
    Wait,
    /// Not before this time.
    Hold(HoldReason, Timestamp),
}

/// The right to make one POST.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    number: u64,
    is_probe: bool,
    is_slow: bool,
}

impl Pass {
    /// Whether the POST is likely to take long: the endpoint is slow.
    #[must_use]
    pub fn is_slow(&self) -> bool {
        self.is_slow
    }
}

/// The gate of one subscription.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    /// Those who have a pass, and when their POST began.
    passes: Vec<(u64, Option<Timestamp>)>,
    next_number: u64,
    waiting: u32,
    breaker: Breaker,
    throttled_until: Option<Timestamp>,
    last_answer: Option<Timestamp>,
    /// When the first of those POSTs began that took long and failed, and after which nothing was answered.
    in_vain_since: Option<Timestamp>,
    /// How many were answered since it was new or slow.
    answers: u32,
    /// How long a POST takes, the last ones counting most.
    usual: Duration,
    /// Those who have come back, and wait for their turn in hand.
    called: Line,
    /// Those who are held because enough are there, until their turn.
    held: Line,
    /// How many were held whose turn is too far away to be known.
    beyond: u32,
    /// When the first attempt ended that failed since the last one was answered.
    fails_since: Option<Timestamp>,
    /// How many are held behind the open breaker until the next probe has ended.
    behind: u32,
}

impl Gate {
    /// A delivery that was held comes back, to wait for its turn before it [arrives](Self::arrive), and before it takes
    /// anything that others need: those who were held come back to the second, and so many at once. Answers how long it
    /// waits, which is no longer than its `patience`.
    ///
    /// # Errors
    /// Why it is held once more, and until when: its turn comes later than that.
    pub fn come_back(
        &mut self,
        bounds: Bounds,
        patience: Duration,
        now: Timestamp,
    ) -> Result<Duration, (HoldReason, Timestamp)> {
        if self.is_open() || self.silence(now).is_some() {
            // It has no line: whoever comes finds out whether it answers again, or is held for what it is.
            return Ok(Duration::ZERO);
        }
        let interval = self.interval(bounds, now);
        // Those of them go at once who may be in flight together.
        let wait = self.called.wait(interval, now).saturating_sub(self.usual);
        if wait > patience {
            return Err((HoldReason::Busy, self.take_turn(bounds, now)));
        }
        self.called.join(interval, now);
        Ok(wait)
    }

    /// A delivery comes to the gate.
    pub fn arrive(&mut self, bounds: Bounds, now: Timestamp) -> Admission {
        let admission = self.admit(bounds, now);
        let must_wait = match admission {
            Admission::Wait => true,
            // Those who came before go first.
            Admission::Go(pass) if self.waiting > 0 && !pass.is_probe => {
                self.give_back(pass);
                true
            }
            Admission::Go(_) | Admission::Hold(..) => false,
        };
        if !must_wait {
            return admission;
        }
        let in_turn = self.usual * (self.waiting + 1) / self.concurrency(bounds, false).max(1);
        // Who has said nothing for a while says nothing for as long again.
        let likely_in = in_turn.max(self.quiet_for(now).unwrap_or_default());
        if self.waiting < bounds.waiting && likely_in <= LIKELY_WITHIN {
            self.waiting += 1;
            return Admission::Wait;
        }
        Admission::Hold(HoldReason::Busy, self.take_turn(bounds, now))
    }

    /// One that waits asks again; whatever it is told but to wait, it does not wait any more.
    pub fn ask_again(&mut self, bounds: Bounds, now: Timestamp) -> Admission {
        let admission = self.admit(bounds, now);
        if admission != Admission::Wait {
            self.waiting = self.waiting.saturating_sub(1);
        }
        admission
    }

    /// Whether another one that waits would be let through beside the one that just was: each answer allows one more.
    #[must_use]
    pub fn may_next_go(&self, bounds: Bounds) -> bool {
        let most = usize::try_from(self.concurrency(bounds, false)).unwrap_or(usize::MAX);
        self.waiting > 0 && self.passes.len() < most
    }

    /// One that waits has waited long enough: it is held.
    pub fn give_up_waiting(&mut self, bounds: Bounds, now: Timestamp) -> Admission {
        self.waiting = self.waiting.saturating_sub(1);
        Admission::Hold(HoldReason::Busy, self.take_turn(bounds, now))
    }

    /// A POST begins.
    pub fn begin(&mut self, pass: Pass, now: Timestamp) {
        for (number, began) in &mut self.passes {
            if *number == pass.number {
                *began = Some(now);
            }
        }
    }

    /// A POST has ended, and this is what it says about its endpoint. `leave_alone` is for how
    /// long the endpoint asked to be left alone.
    pub fn end(
        &mut self,
        pass: Pass,
        (sign, leave_alone): (Sign, Option<Duration>),
        bounds: Bounds,
        (now, chance): (Timestamp, f64),
    ) {
        let began = self.passes.iter().find(|(number, _)| *number == pass.number);
        let began = began.and_then(|(_, began)| *began);
        if let Some(began) = began {
            let took = now.since(began).max(SHORTEST);
            if self.usual.is_zero() {
                // Whoever is in line until now was told to come too soon.
                (self.usual, self.held) = (took, Line::default());
            } else {
                self.usual = (self.usual * 7 + took) / 8;
            }
        }
        self.give_back(pass);
        if pass.is_probe || sign == Sign::Answers {
            self.behind = 0;
        }
        self.breaker = self.breaker.after(sign, pass.is_probe, bounds.failures, (now, chance));
        match sign {
            Sign::Answers => (self.throttled_until, self.fails_since) = (None, None),
            Sign::Fails => self.fails_since = self.fails_since.or(Some(now)),
            Sign::Throttles => {}
        }
        if sign != Sign::Fails {
            self.last_answer = Some(now);
            self.in_vain_since = None;
            self.answers = self.answers.saturating_add(1);
        } else if let Some(began) = began
            && now.since(began) > SLOW_AFTER
            && self.said_nothing_since(began)
        {
            let first = self.in_vain_since.map_or(began, |first| first.min(began));
            (self.in_vain_since, self.answers) = (Some(first), 0);
        }
        if let Some(wait) = leave_alone {
            let until = now.plus(wait);
            self.throttled_until = self.throttled_until.max(Some(until));
        }
    }

    /// A pass that was not used, or whose use said nothing.
    pub fn give_back(&mut self, pass: Pass) {
        self.passes.retain(|(number, _)| *number != pass.number);
    }

    /// Whether a fresh gate would do as well.
    #[must_use]
    pub fn is_idle(&self, now: Timestamp) -> bool {
        self.passes.is_empty()
            && self.waiting == 0
            && self.breaker == Breaker::default()
            && self.throttled_until.is_none_or(|until| until <= now)
            && self.called.wait(self.usual, now).is_zero()
            && self.held.wait(self.usual, now).is_zero()
    }

    /// Whether nobody is at it, so that it may be forgotten where there are too many.
    #[must_use]
    pub fn is_deserted(&self) -> bool {
        self.passes.is_empty() && self.waiting == 0
    }

    /// Whether its breaker is open.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.breaker.is_open()
    }

    /// Whether nobody at all is let through just now.
    #[must_use]
    pub fn is_closed(&self, now: Timestamp) -> bool {
        self.opens_at(now).is_some()
    }

    /// Why nobody at all is let through just now, so that one more is held, and until when: as long as nothing will be
    /// different. `None` if that is not so, or if it is time for a probe.
    pub fn closed(&mut self, now: Timestamp) -> Option<(HoldReason, Timestamp)> {
        let (reason, opens_at) = self.opens_at(now)?;
        if reason != HoldReason::Breaker {
            return Some((reason, opens_at));
        }
        self.behind = self.behind.saturating_add(1);
        if self.behind <= CROWD {
            return Some((reason, opens_at));
        }
        // What has failed for long will for as long again.
        let failing_for = self.fails_since.map_or(Duration::ZERO, |since| now.since(since));
        Some((HoldReason::Crowd, opens_at.max(now.plus(failing_for.min(CROWD_LATE)))))
    }

    /// Why nobody at all is let through just now, and until when: the next probe has not likely ended, or the endpoint
    /// asked to be left alone.
    fn opens_at(&self, now: Timestamp) -> Option<(HoldReason, Timestamp)> {
        let asked_until = self.throttled_until.filter(|until| now < *until);
        let Breaker::Open { probe_at, .. } = self.breaker else {
            return asked_until.map(|until| (HoldReason::Throttled, until));
        };
        let until = if now < probe_at || asked_until.is_some() {
            // Whoever came at the time of the probe would only find it in flight, but for the one that makes it; where
            // nobody new comes, it is made so much later. A probe may have been asked to leave the endpoint alone for
            // longer.
            let probed = probe_at.plus(self.usual);
            Some(asked_until.map_or(probed, |until| until.max(probed)))
        } else {
            // One probe at a time, and nothing of what is in flight from before beside it.
            self.likely_end(now).map(|end| end.max(now))
        };
        until.map(|until| (HoldReason::Breaker, until))
    }

    fn admit(&mut self, bounds: Bounds, now: Timestamp) -> Admission {
        if let Some((reason, until)) = self.closed(now) {
            return Admission::Hold(reason, until);
        }
        let silence = self.silence(now);
        if self.is_open() {
            return self.pass(true, silence.is_some());
        }
        let most =
            usize::try_from(self.concurrency(bounds, silence.is_some())).unwrap_or(usize::MAX);
        if self.passes.len() < most {
            return self.pass(false, silence.is_some());
        }
        match silence {
            // Who has been silent for long will be for as long again.
            Some(silence) => {
                let until = now.plus(silence.min(LONGEST_SILENT_HOLD));
                Admission::Hold(HoldReason::Silent, until)
            }
            None => Admission::Wait,
        }
    }

    /// How many POSTs may be in flight at once just now.
    fn concurrency(&self, bounds: Bounds, is_slow: bool) -> u32 {
        let most =
            if is_slow { SLOW_CONCURRENCY } else { FIRST_CONCURRENCY.saturating_add(self.answers) };
        most.min(bounds.concurrency)
    }

    /// After how long the next turn comes, if each POST takes as long as it usually does, or as it has taken so far where
    /// nothing is answered just now. Until then there have been answers enough for as many at once as there may be.
    fn interval(&self, bounds: Bounds, now: Timestamp) -> Duration {
        let so_far = self.quiet_for(now).unwrap_or_default().min(SLOW_AFTER);
        self.usual.max(so_far) / bounds.concurrency.max(1)
    }

    /// When the turn of one more delivery comes that is held because enough are there: so they come back at the pace at
    /// which they can be served, or a third faster, because some come late.
    fn take_turn(&mut self, bounds: Bounds, now: Timestamp) -> Timestamp {
        let interval = self.interval(bounds, now);
        let called = self.called.wait(interval, now);
        let interval = interval * 3 / 4;
        let wait = self.held.wait(interval, now).max(called);
        if wait < LONGEST_LINE {
            self.held.join(interval, now);
            return now.plus(wait);
        }
        // It comes before its turn, to learn when that is by then.
        // As many as travel in one message come back together.
        let number = usize::try_from(self.beyond).unwrap_or_default() / MOST;
        self.beyond = self.beyond.wrapping_add(1);
        now.plus(ASKS_AGAIN_AFTER[number % ASKS_AGAIN_AFTER.len()])
    }

    fn pass(&mut self, is_probe: bool, is_slow: bool) -> Admission {
        let number = self.next_number;
        self.next_number = number.wrapping_add(1);
        self.passes.push((number, None));
        Admission::Go(Pass { number, is_probe, is_slow })
    }

    /// When the last of those in flight will have ended, if it takes as long as they usually do: at an
    /// endpoint that hangs that is its timeout. `None` if there are none.
    fn likely_end(&self, now: Timestamp) -> Option<Timestamp> {
        let end = |began: Option<Timestamp>| began.unwrap_or(now).plus(self.usual);
        self.passes.iter().map(|(_, began)| end(*began)).max()
    }

    /// The same, if that is long.
    fn silence(&self, now: Timestamp) -> Option<Duration> {
        self.quiet_for(now).filter(|silence| *silence > SLOW_AFTER)
    }

    /// How long the endpoint has answered nothing although it was asked.
    fn quiet_for(&self, now: Timestamp) -> Option<Duration> {
        let oldest = self.passes.iter().filter_map(|(_, began)| *began).min();
        let waits_since = oldest.filter(|began| self.said_nothing_since(*began));
        let since = self.in_vain_since.into_iter().chain(waits_since).min()?;
        Some(now.since(since))
    }

    fn said_nothing_since(&self, time: Timestamp) -> bool {
        self.last_answer.is_none_or(|last| last < time)
    }
}

#[cfg(test)]
mod tests;
