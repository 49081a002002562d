//! A line of those who were each told when their turn comes, at the pace at which an endpoint takes them.
//!
//! The pace is an estimate that goes up and down, so what is kept is how many are in line and not when the last one's turn
//! comes.

use std::time::Duration;

use crate::time::Timestamp;

/// The end of the line.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Line {
    /// How many were in line when the last one joined, with that one; of the first perhaps a part only.
    length: f64,
    joined_at: Option<Timestamp>,
}

impl Line {
    /// After how long one's turn comes who joins now, if one's comes each `interval`.
    pub(super) fn wait(&self, interval: Duration, now: Timestamp) -> Duration {
        let passed = self.joined_at.map_or(Duration::ZERO, |at| now.since(at));
        interval.mul_f64(self.length).saturating_sub(passed)
    }

    /// One more joins.
    pub(super) fn join(&mut self, interval: Duration, now: Timestamp) {
        let wait = self.wait(interval, now);
        let before = if interval.is_zero() { 0.0 } else { wait.div_duration_f64(interval) };
        *self = Self { length: before + 1.0, joined_at: Some(now) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn at(millis: i64) -> Timestamp {
        Timestamp::from_millis(1_000_000 + millis)
    }

    fn assert_wait(line: &Line, interval: Duration, now: Timestamp, millis: u64) {
        let wait = line.wait(interval, now).as_micros();
        assert!(wait.abs_diff(u128::from(millis) * 1000) < 10, "{wait} us instead of {millis} ms");
    }

    #[test]
    fn grows_with_each_and_shrinks_with_time() {
        let mut line = Line::default();
        assert_wait(&line, SECOND, at(0), 0);
        for _ in 0..3 {
            line.join(SECOND, at(0));
        }
        assert_wait(&line, SECOND, at(0), 3000);
        assert_wait(&line, SECOND, at(1500), 1500);
        line.join(SECOND, at(1500));
        assert_wait(&line, SECOND, at(2000), 2000);
        assert_wait(&line, SECOND, at(9000), 0);
        line.join(SECOND, at(9000));
        assert_wait(&line, SECOND, at(9000), 1000);
    }

    #[test]
    fn is_as_long_as_the_pace_says_just_now() {
        let mut line = Line::default();
        (0..100).for_each(|_| line.join(SECOND, at(0)));
        assert_wait(&line, SECOND / 10, at(1000), 9000);
        assert_wait(&line, SECOND, at(1000), 99_000);
    }

    #[test]
    fn thousands_a_second_are_counted() {
        let (mut line, interval) = (Line::default(), Duration::from_micros(100));
        (0..30_000).for_each(|_| line.join(interval, at(0)));
        assert_wait(&line, interval, at(1), 2999);
    }

    #[test]
    fn there_is_no_line_where_nothing_is_known() {
        let mut line = Line::default();
        (0..100).for_each(|_| line.join(Duration::ZERO, at(0)));
        assert_wait(&line, Duration::ZERO, at(0), 0);
        assert_wait(&line, SECOND, at(0), 1000);
    }
}
