//! How much of each rate limit is used, by all dispatchers together.

use std::time::Duration;

use doorbell_common::ids::SubscriptionId;
use doorbell_common::rate::{RateLimit, Turn};

use super::Store;

/// What `doorbell_common::rate::Meter::ask` does, by the clock of Redis. ARGV: interval, tolerance
/// and patience in microseconds. Answers whether it is a turn, and the time until it, or until one
/// may ask again. Numbers are written with all their digits.
const ASK: &str = "local time = redis.call('TIME') local now = time[1] * 1000000 + time[2] \
local known = redis.call('HMGET', KEYS[1], 'even', 'line') \
local interval, tolerance, patience = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]) \
local even, line = math.max(tonumber(known[1] or 0), now), tonumber(known[2] or 0) \
local opens = math.max(even - tolerance, now) \
local turn, wait = 1, opens - now \
if wait <= patience then even = even + interval \
else line = math.max(line, opens) + interval turn = 0 wait = line - now end \
redis.call('HSET', KEYS[1], 'even', string.format('%.0f', even), 'line', string.format('%.0f', line)) \
redis.call('PEXPIRE', KEYS[1], math.ceil((math.max(even, line) - now) / 1000) + 1000) \
return {turn, wait}";

impl Store {
    /// Asks for a turn within a subscription's rate limit; one who gets it waits for it, at most
    /// `patience`.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn ask_for_turn(
        &self,
        id: &SubscriptionId,
        limit: RateLimit,
        patience: Duration,
    ) -> redis::RedisResult<Turn> {
        let mut link = self.link.clone();
        let patience = u64::try_from(patience.as_micros()).unwrap_or(u64::MAX);
        let mut eval = redis::cmd("EVAL");
        eval.arg(ASK).arg(1).arg(self.keys.rate(id));
        eval.arg(limit.interval()).arg(limit.tolerance()).arg(patience);
        let (is_turn, wait): (bool, u64) = eval.query_async(&mut link).await?;
        let wait = Duration::from_micros(wait);
        Ok(if is_turn { Turn::After(wait) } else { Turn::AskAgainAfter(wait) })
    }
}
