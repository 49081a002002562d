//! What is to be removed, and since when; kept until some time after it is gone.

use std::time::Duration;

use doorbell_common::removal::{GONE_AFTER, ROLL_EVERY, Removal, Removed, RemovedEvents};
use doorbell_common::time::Timestamp;
use redis::Value;

use super::{Store, StoreError};

/// How long it can be asked what became of a removal after it is done.
const KNOWN_AFTERWARDS: Duration = Duration::from_secs(30 * 24 * 3600);

impl Store {
    /// Removes an event from now on, or notes that a tenant is; answers since when, or `None` if as many
    /// are being removed as may be at once.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be removed.
    pub async fn remove(
        &self,
        what: &Removed,
        now: Timestamp,
        most: usize,
    ) -> Result<Option<Removal>, StoreError> {
        self.check_epoch().await?;
        let key = self.keys.removals();
        // What is asked for again is gone no later. A tenant may have come back meanwhile.
        if matches!(what, Removed::Event(..)) {
            if let Some(known) = self.removal(what).await?
                && !known.is_done(now)
            {
                return Ok(Some(known));
            }
            let mut count = redis::pipe();
            count.cmd("ZCOUNT").arg(&key).arg(now.minus(GONE_AFTER).as_millis()).arg("+inf");
            let (pending,): (usize,) = self.ask(count).await?;
            if pending >= most {
                return Ok(None);
            }
        }
        let mut pipe = redis::pipe();
        pipe.atomic();
        let version = self.keys.removals_version();
        pipe.cmd("SET").arg(version).arg(crate::ids::token()).ignore();
        pipe.cmd("ZADD").arg(key).arg(now.as_millis()).arg(what.to_string()).ignore();
        pipe.query_async::<()>(&mut self.link.clone()).await?;
        self.removal(what).await
    }

    /// Since when something is being removed, or was.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn removal(&self, what: &Removed) -> Result<Option<Removal>, StoreError> {
        let mut get = redis::pipe();
        get.cmd("ZSCORE").arg(self.keys.removals()).arg(what.to_string());
        let (score,): (Option<f64>,) = self.ask(get).await?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "milliseconds are whole, and far below 2^53"
        )]
        let removal = |millis: f64| Removal { requested_at: Timestamp::from_millis(millis as i64) };
        Ok(score.map(removal))
    }

    /// The events that are being removed.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn removed_events(&self, now: Timestamp) -> Result<RemovedEvents, StoreError> {
        let mut range = redis::pipe();
        let oldest = now.minus(GONE_AFTER).as_millis();
        range.cmd("ZRANGEBYSCORE").arg(self.keys.removals()).arg(oldest).arg("+inf");
        let (names,): (Vec<String>,) = self.ask(range).await?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Another text after each new removal; none, if there never was one.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn removals_version(&self) -> Result<Option<String>, StoreError> {
        let mut get = redis::pipe();
        get.cmd("GET").arg(self.keys.removals_version());
        let (version,) = self.ask(get).await?;
        Ok(version)
    }

    /// Whether streams are to begin new segments, which whoever asks then does: something is being
    /// removed, and the last time was a day ago. Forgets what is long gone.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn streams_are_to_roll(&self, now: Timestamp) -> Result<bool, StoreError> {
        let key = self.keys.removals();
        let mut look = redis::pipe();
        let forgotten = now.minus(GONE_AFTER + KNOWN_AFTERWARDS).as_millis();
        look.cmd("ZREMRANGEBYSCORE").arg(&key).arg("-inf").arg(forgotten);
        // Once more after the last is gone: what was closed last is looked at then.
        let pending = now.minus(GONE_AFTER + ROLL_EVERY).as_millis();
        look.cmd("ZCOUNT").arg(&key).arg(pending).arg("+inf");
        let (_forgotten, pending): (u64, u64) = self.ask(look).await?;
        if pending == 0 {
            return Ok(false);
        }
        let mut claim = redis::cmd("SET");
        claim.arg(self.keys.rolled()).arg(now.as_millis()).arg("NX");
        claim.arg("PX").arg(u64::try_from(ROLL_EVERY.as_millis()).unwrap_or(u64::MAX));
        Ok(claim.query_async::<Value>(&mut self.link.clone()).await? != Value::Nil)
    }

    /// They have not begun new segments after all.
    ///
    /// # Errors
    /// Redis did not answer: they do a day later.
    pub async fn streams_have_not_rolled(&self) -> Result<(), StoreError> {
        let mut forget = redis::cmd("DEL");
        forget.arg(self.keys.rolled());
        forget.query_async::<Value>(&mut self.link.clone()).await?;
        Ok(())
    }
}
