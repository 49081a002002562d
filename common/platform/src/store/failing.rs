//! Since when the attempts of a subscription have done nothing but fail. Lost with Redis, it begins
//! anew: a subscription is disabled later, never earlier.

use std::time::Duration;

use doorbell_common::ids::SubscriptionId;
use doorbell_common::time::Timestamp;
use redis::Value;

use super::Store;

impl Store {
    /// Notes that an attempt has failed; answers since when none is known to have succeeded.
    /// Forgotten after `keep`, counted from the first failure. With Redis away: since now.
    pub async fn note_failing(
        &self,
        id: &SubscriptionId,
        keep: Duration,
        now: Timestamp,
    ) -> Timestamp {
        if !self.is_up() {
            return now;
        }
        let (mut link, key) = (self.link.clone(), self.keys.failing(id));
        let mut pipe = redis::pipe();
        let set = pipe.cmd("SET").arg(&key).arg(now.as_millis()).arg("NX");
        set.arg("EX").arg(keep.as_secs().max(1)).ignore();
        pipe.cmd("GET").arg(&key);
        match pipe.query_async::<(Option<i64>,)>(&mut link).await {
            Ok((since,)) => since.map_or(now, Timestamp::from_millis),
            Err(error) => {
                tracing::debug!(%error, "failure not noted");
                now
            }
        }
    }

    /// Notes that attempts of these subscriptions have succeeded.
    pub async fn note_working(&self, ids: &[SubscriptionId]) {
        if !self.is_up() {
            return;
        }
        // The keys have no place in common.
        let at_once = if self.link.is_cluster() { 1 } else { ids.len().max(1) };
        let unlinking = ids.chunks(at_once).map(|ids| async move {
            let mut link = self.link.clone();
            let mut unlink = redis::cmd("UNLINK");
            for id in ids {
                unlink.arg(self.keys.failing(id));
            }
            if let Err(error) = unlink.query_async::<Value>(&mut link).await {
                tracing::debug!(%error, "successes not noted");
            }
        });
        futures_util::future::join_all(unlinking).await;
    }
}
