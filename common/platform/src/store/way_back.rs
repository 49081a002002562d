//! The way back from the delay queues: when something last came back from each, as told by all
//! retry-schedulers, and whether it goes round `doorbell.retries` for a while.

use std::collections::HashMap;
use std::time::Duration;

use doorbell_common::rung::Rung;
use doorbell_common::time::Timestamp;

use super::{Store, StoreError};

/// How long it is remembered that something came back; far longer than anyone asks for.
const REMEMBERED: Duration = Duration::from_secs(3600);

impl Store {
    /// Notes when something last came back from these delay queues.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn note_came_back(&self, when: &[(Rung, Timestamp)]) -> Result<(), StoreError> {
        let key = self.keys.came_back();
        let mut put = redis::cmd("HSET");
        put.arg(&key);
        for (rung, at) in when {
            put.arg(rung.queue()).arg(at.as_millis());
        }
        let mut pipe = redis::pipe();
        pipe.add_command(put).ignore();
        pipe.cmd("EXPIRE").arg(&key).arg(REMEMBERED.as_secs()).ignore();
        Ok(pipe.query_async(&mut self.link.clone()).await?)
    }

    /// When something last came back from each delay queue, of those from which anything did.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn came_back(&self) -> Result<HashMap<Rung, Timestamp>, StoreError> {
        let mut get = redis::cmd("HGETALL");
        get.arg(self.keys.came_back());
        let all: HashMap<String, i64> = get.query_async(&mut self.link.clone()).await?;
        let known = |(queue, at): (String, i64)| {
            Some((Rung::of_queue(&queue)?, Timestamp::from_millis(at)))
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
