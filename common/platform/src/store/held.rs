//! Which subscriptions have deliveries in the stream of held ones: a hint where to read, written
//! before each message goes there. The stream is the truth.

use std::time::Duration;

use doorbell_common::ids::SubscriptionId;
use doorbell_common::time::Timestamp;
use redis::Value;

use super::{Store, StoreError};

/// A subscription with held deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldEntry {
    /// Which one.
    pub subscription: SubscriptionId,
    /// The first of them went to the stream at or after this time.
    pub since: Timestamp,
    /// The last of them, as far as is known, was about to go there at this time.
    pub last: Timestamp,
}

/// Keeps the earliest time of a hold, renews the last time that one was noted. ARGV: the
/// subscription, since when the delivery is held, now.
const NOTE: &str = "local v = redis.call('HGET', KEYS[1], ARGV[1]) local since, last = ARGV[2], ARGV[3] if v then local s, l = string.match(v, '^(%d+):(%d+)$') if s and tonumber(s) < tonumber(since) then since = s end if l and tonumber(l) > tonumber(last) then last = l end end redis.call('HSET', KEYS[1], ARGV[1], since .. ':' .. last) return 1";

/// Removes an entry that is still as it was read.
const REMOVE: &str = "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then return redis.call('HDEL', KEYS[1], ARGV[1]) end return 0";

/// Takes or renews a lease.
const LEASE: &str = "local v = redis.call('GET', KEYS[1]) if not v or v == ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1 end return 0";

impl Store {
    /// Notes that a delivery, held since that time, is about to go to the stream.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn note_held(
        &self,
        subscription: &SubscriptionId,
        held_since: Timestamp,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        self.check_epoch().await?;
        let mut link = self.link.clone();
        let mut eval = redis::cmd("EVAL");
        eval.arg(NOTE).arg(1).arg(self.keys.held()).arg(subscription.as_str());
        eval.arg(held_since.as_millis()).arg(now.as_millis());
        eval.query_async::<Value>(&mut link).await?;
        Ok(())
    }

    /// Every subscription with held deliveries.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn held(&self) -> Result<Vec<HeldEntry>, StoreError> {
        let mut link = self.link.clone();
        let pairs: Vec<(String, String)> =
            redis::cmd("HGETALL").arg(self.keys.held()).query_async(&mut link).await?;
        Ok(pairs.iter().filter_map(|(id, times)| entry(id, times)).collect())
    }

    /// Forgets an entry, unless another delivery was noted since it was read.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn forget_held(&self, entry: &HeldEntry) -> Result<(), StoreError> {
        let mut link = self.link.clone();
        let times = format!("{}:{}", entry.since.as_millis(), entry.last.as_millis());
        let mut eval = redis::cmd("EVAL");
        eval.arg(REMOVE).arg(1).arg(self.keys.held()).arg(entry.subscription.as_str()).arg(times);
        eval.query_async::<Value>(&mut link).await?;
        Ok(())
    }

    /// Takes or renews the lease to read held deliveries, so that replicas do not all read the
    /// same; answers whether it is ours. Two that read at once do no harm.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn lease_held(&self, owner: &str, length: Duration) -> Result<bool, StoreError> {
        let mut link = self.link.clone();
        let mut eval = redis::cmd("EVAL");
        eval.arg(LEASE)
            .arg(1)
            .arg(self.keys.held_lease())
            .arg(owner)
            .arg(length.as_millis().to_string());
        Ok(eval.query_async::<u8>(&mut link).await? == 1)
    }
}

fn entry(id: &str, times: &str) -> Option<HeldEntry> {
    let (since, last) = times.split_once(':')?;
    Some(HeldEntry {
        subscription: id.parse().ok()?,
        since: Timestamp::from_millis(since.parse().ok()?),
        last: Timestamp::from_millis(last.parse().ok()?),
    })
}
