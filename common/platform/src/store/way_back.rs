//! The way back from the delay queues: how long ago something came back from each, as told by all
//! retry-schedulers, and whether it goes round `doorbell.retries` for a while.

use std::collections::HashMap;
use std::time::Duration;

use doorbell_common::rung::DelayQueue;

use super::{Store, StoreError};

/// Notes since when something has come back, by the clock of Redis. ARGV: the name of a delay queue, and how
/// many milliseconds ago; any number of times. It is remembered for an hour, far longer than anyone asks for.
const NOTE: &str = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000) \
for i = 1, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], string.format('%.0f', now - ARGV[i + 1])) end \
redis.call('EXPIRE', KEYS[1], 3600) return 0";

/// Answers, for each delay queue that is known, its name and how many milliseconds ago.
const ASK: &str = "local time = redis.call('TIME') local now = time[1] * 1000 + math.floor(time[2] / 1000) \
local known = redis.call('HGETALL', KEYS[1]) \
for i = 2, #known, 2 do known[i] = string.format('%.0f', math.max(now - known[i], 0)) end return known";

impl Store {
    /// Notes how long ago something came back from these delay queues.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn note_came_back(&self, ago: &[(DelayQueue, Duration)]) -> Result<(), StoreError> {
        let mut eval = redis::cmd("EVAL");
        eval.arg(NOTE).arg(1).arg(self.keys.came_back());
        for (queue, ago) in ago {
            eval.arg(queue.name()).arg(ago.as_millis().to_string());
        }
        eval.query_async::<u8>(&mut self.link.clone()).await?;
        Ok(())
    }

    /// How long ago something came back from each delay queue, of those from which anything did within the
    /// last hour.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn came_back(&self) -> Result<HashMap<DelayQueue, Duration>, StoreError> {
        let mut eval = redis::cmd("EVAL");
        eval.arg(ASK).arg(1).arg(self.keys.came_back());
        let all: HashMap<String, u64> = eval.query_async(&mut self.link.clone()).await?;
        let known = |(queue, ago): (String, u64)| {
            Some((DelayQueue::of_name(&queue)?, Duration::from_millis(ago)))
        };
        Ok(all.into_iter().filter_map(known).collect())
    }

    /// Has what comes out of the delay queues, and what is handed on to the retry-schedulers, go round
    /// `doorbell.retries` for so long.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn begin_detour(&self, length: Duration) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        set.arg(self.keys.detour()).arg(1).arg("PX").arg(length.as_millis().to_string());
        Ok(set.query_async(&mut self.link.clone()).await?)
    }

    /// Whether it does.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn is_on_detour(&self) -> Result<bool, StoreError> {
        let mut exists = redis::cmd("EXISTS");
        exists.arg(self.keys.detour());
        Ok(exists.query_async(&mut self.link.clone()).await?)
    }
}
