//! Whether this machine's clock and Redis's agree. What is due is told by the clock of whoever wrote that, and read by
//! another one's, and endpoints refuse signatures of another time than theirs: without this nobody would say why.

use std::sync::Arc;
use std::time::Duration;

use doorbell_common::time::Timestamp;
use prometheus::{Gauge, Registry};
use redis::RedisResult;
use tokio::time::Instant;

use super::Store;
use crate::clock;
use crate::seldom::Seldom;

/// How often Redis is asked.
const EVERY: Duration = Duration::from_secs(10);
/// Clocks that are kept by NTP differ by less.
const TOLERATED: Duration = Duration::from_secs(1);
/// How often it is told that they differ by more.
const TOLD_EACH: Duration = Duration::from_secs(600);
/// An answer that took longer says too little.
const PROMPT: Duration = Duration::from_millis(500);

/// What time Redis has, as a script because that has a key, by which a cluster knows whom to ask.
const ASK: &str = "return redis.call('TIME')";

/// By how much the clocks differ. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Clocks(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    offset: Gauge,
    asked: Seldom,
    told: Seldom,
}

impl Clocks {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let offset = Gauge::new(
            "doorbell_clock_offset_seconds",
            "By how much this machine's clock is ahead of Redis's; below 0 where it is behind.",
        )?;
        registry.register(Box::new(offset.clone()))?;
        let (asked, told) = (Seldom::each(EVERY), Seldom::each(TOLD_EACH));
        Ok(Self(Arc::new(Inner { offset, asked, told })))
    }

    fn note(&self, offset: f64) {
        self.0.offset.set(offset);
        if offset.abs() > TOLERATED.as_secs_f64() && self.0.told.is_time() {
            let direction = if offset > 0.0 { "ahead of" } else { "behind" };
            let seconds = offset.abs();
            tracing::warn!(
                "this machine's clock is {seconds:.1} s {direction} Redis's: retries may come early or late by as much, \
                 and endpoints may refuse signatures; are both kept by NTP?"
            );
        }
    }
}

impl Store {
    /// Compares the clocks, now and then. Whether Redis answers at all is another's question.
    pub(super) async fn compare_clocks(&self) {
        if !self.clocks.0.asked.is_time() {
            return;
        }
        let (asked_at, began) = (clock::now(), Instant::now());
        let mut ask = redis::cmd("EVAL");
        ask.arg(ASK).arg(1).arg(self.keys.epoch());
        let answer: RedisResult<(u64, u64)> = ask.query_async(&mut self.link.clone()).await;
        let took = began.elapsed();
        match answer {
            Ok((seconds, micros)) if took < PROMPT => {
                let theirs = Timestamp::from_seconds(seconds).plus(Duration::from_micros(micros));
                self.clocks.note(seconds_ahead(asked_at.plus(took / 2), theirs));
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "Redis does not say what time it has"),
        }
    }
}

/// By how many seconds one time is ahead of another.
fn seconds_ahead(ours: Timestamp, theirs: Timestamp) -> f64 {
    ours.since(theirs).as_secs_f64() - theirs.since(ours).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_are_ahead_or_behind() {
        for (ours, theirs, ahead) in
            [(5_000, 5_000, 0.0), (35_500, 5_000, 30.5), (5_000, 5_250, -0.25), (-1_000, 0, -1.0)]
        {
            let (ours, theirs) = (Timestamp::from_millis(ours), Timestamp::from_millis(theirs));
            let found = seconds_ahead(ours, theirs);
            assert!((found - ahead).abs() < 1e-9, "{ours} and {theirs}: {found}");
        }
    }
}
