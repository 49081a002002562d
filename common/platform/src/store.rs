//! Redis: subscriptions and tenants, what is known of hand-offs, and which deliveries are held.
//!
//! Redis is never the only copy of an undelivered event. One Redis or a cluster: there, every
//! command and pipeline stays within one hash tag.
//!
//! An empty Redis must never look like "no subscriptions". The store is initialised once, by
//! [`Store::init`], which writes an epoch; every answer that could mean "there is nothing" is
//! only believed while that epoch is there, and the same.

use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

pub mod api_keys;
pub mod audit;
pub mod changes;
mod clocks;
pub mod event_types;
pub mod failing;
pub mod held;
pub mod idempotency;
pub mod keys;
pub mod lease;
pub mod ledger;
mod link;
mod losses;
mod memory;
pub mod notes;
pub mod rate;
pub mod records;
pub mod removals;
mod sealed;
pub mod sealing;
mod slots;
pub mod snapshots;
pub mod tenant_limits;
pub mod tenants;
pub mod unverified;
pub mod way_back;

pub use losses::Losses;

use doorbell_common::sealing::NotOpened;
use prometheus::Registry;
use redis::{FromRedisValue, Pipeline, RedisError, Value, from_redis_value};

use clocks::Clocks;
use keys::Keys;
use link::Link;
use memory::Memory;
use sealed::Secrets;

use crate::backoff::Backoff;
use crate::health::{Dependency, Health};
use crate::shutdown::Shutdown;
use crate::tls::Trust;

/// Counts something under a key that is forgotten a while after it was first counted.
const COUNT: &str = "if redis.call('INCRBY', KEYS[1], ARGV[1]) == tonumber(ARGV[1]) then redis.call('EXPIRE', KEYS[1], ARGV[2]) end";

/// How often a service looks whether the store is there.
const LOOK: Duration = Duration::from_millis(250);

/// Redis as Doorbell uses it. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    link: Link,
    keys: Keys,
    health: Health,
    secrets: Secrets,
    memory: Memory,
    clocks: Clocks,
    /// The epoch seen first; another one later is another store.
    epoch: Arc<RwLock<Option<String>>>,
}

/// Why the store did not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Redis is unreachable, or answered with an error.
    #[error("Redis: {0}")]
    Redis(#[from] RedisError),
    /// It did not answer when last asked, or it is not the store that this service began with.
    #[error("Redis is not ready")]
    NotReady,
    /// There is no epoch: it was never initialised, or it was emptied.
    #[error(
        "Redis is not initialised or was emptied; run `doorbell-control-plane init` if it is new, restore it otherwise"
    )]
    NotInitialised,
    /// Another epoch than before: someone initialised it anew.
    #[error(
        "Redis was initialised anew since this service started; restart the service to accept that"
    )]
    AnotherEpoch,
    /// A part of it is missing.
    #[error(
        "Redis has lost {0}: restore it, then run `doorbell-control-plane init`; or go on with what is left by `doorbell-control-plane init --accept-losses`"
    )]
    Lost(String),
    /// It may forget any key, to make room for others.
    #[error(
        "Redis may evict subscriptions (maxmemory-policy {0}): set that to noeviction, or to one of volatile-…"
    )]
    Evicts(String),
    /// A value in it is not what we write.
    #[error("Redis holds something that is not understood at {key}: {error}")]
    Corrupt {
        /// Where.
        key: String,
        /// What the parser said.
        error: serde_json::Error,
    },
    /// Secrets are sealed with a key that this service lacks.
    #[error("secrets are encrypted with the key {0:?}, which is not in --encryption-keys-file")]
    NoSuchKey(String),
    /// The secrets of a subscription are sealed, and can't be opened.
    #[error("the secrets in {key} can't be opened: {error}; see --encryption-keys-file")]
    NotOpened {
        /// Where.
        key: String,
        /// Why.
        error: NotOpened,
    },
}

impl StoreError {
    /// Whether it is only a part of Redis that is of no use: what needs others may go on.
    #[must_use]
    pub fn is_of_a_part(&self) -> bool {
        matches!(self, Self::Lost(_))
    }

    /// What whoever asked for something may be told: what is wrong, and nothing else of what Redis says.
    #[must_use]
    pub fn for_caller(self) -> String {
        let Self::Redis(error) = self else { return self.to_string() };
        let refusal = error
            .into_server_errors()
            .and_then(|errors| errors.first().map(|(_, error)| error.code().to_owned()));
        let what = match refusal.as_deref() {
            None => "Redis does not answer; try again",
            Some("OOM") => "Redis has no memory left and takes no changes",
            Some("MISCONF") => "Redis cannot write to its disk and takes no changes",
            Some("READONLY") => "Redis is a replica just now and takes no changes; try again",
            Some(_) => "Redis refuses; the log of this service says why",
        };
        what.to_owned()
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl Store {
    /// The Redis at these URLs (several: a cluster). Connects when first used, and again whenever
    /// the connection is lost.
    ///
    /// # Errors
    /// A URL is wrong, or a metric is registered already. A password is never part of the message.
    pub fn new(
        urls: &[String],
        trust: &Trust,
        prefix: &str,
        (health, registry): (Health, &Registry),
    ) -> anyhow::Result<Self> {
        let link = Link::new(urls, trust, registry)?;
        let (keys, secrets, clocks) =
            (Keys::new(prefix), Secrets::default(), Clocks::new(registry)?);
        let (memory, epoch) = (Memory::default(), Arc::default());
        Ok(Self { link, keys, health, secrets, memory, clocks, epoch })
    }

    /// Prepares an empty Redis. Answers whether it was empty; one that has an epoch stays as it is.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn init(&self) -> Result<bool, StoreError> {
        let mut link = self.link.clone();
        let epoch = crate::ids::token();
        let created: bool =
            redis::cmd("SETNX").arg(self.keys.epoch()).arg(&epoch).query_async(&mut link).await?;
        // The log is never empty from now on: a reader that finds it so knows that it was lost.
        self.log_change(&changes::Change::Initialised).await?;
        Ok(created)
    }

    /// Checks that the store is the one that this service began with, and that it has the keys to
    /// what it needs in it.
    ///
    /// # Errors
    /// It is not, or Redis did not answer.
    pub async fn check_epoch(&self) -> Result<(), StoreError> {
        let mut look = redis::pipe();
        look.cmd("GET").arg(self.keys.epoch()).cmd("SMEMBERS").arg(self.keys.sealing_keys());
        let (epoch, sealing): (_, Vec<String>) = look.query_async(&mut self.link.clone()).await?;
        self.judge_epoch(epoch)?;
        self.secrets.check(sealing)
    }

    /// Checks besides that it forgets nothing by itself, and compares its clock with ours.
    async fn check(&self) -> Result<(), StoreError> {
        self.check_epoch().await?;
        self.compare_clocks().await;
        self.check_memory().await
    }

    /// Sends commands whose answers could mean "there is nothing", and checks the epoch after them.
    async fn ask<T: FromRedisValue>(&self, mut commands: Pipeline) -> Result<T, StoreError> {
        let mut link = self.link.clone();
        if link.is_cluster() {
            let answers = commands.query_async(&mut link).await?;
            // On another node, perhaps.
            self.check_epoch().await?;
            return Ok(answers);
        }
        commands.cmd("GET").arg(self.keys.epoch());
        let mut answers: Vec<Value> = commands.query_async(&mut link).await?;
        let epoch = answers.pop().unwrap_or(Value::Nil);
        self.judge_epoch(from_redis_value(epoch).map_err(RedisError::from)?)?;
        Ok(from_redis_value(Value::Array(answers)).map_err(RedisError::from)?)
    }

    /// Ids of a sorted set whose scores are all 0, after one of them; at most `limit`. The second
    /// value is where to go on, if there is more.
    pub(super) async fn page_of_ids<T: FromStr + ToString + Clone>(
        &self,
        list: String,
        after: Option<&T>,
        limit: usize,
    ) -> Result<(Vec<T>, Option<T>), StoreError> {
        let start = after.map_or_else(|| "-".to_owned(), |after| format!("({}", after.to_string()));
        let mut range = redis::pipe();
        range.cmd("ZRANGEBYLEX").arg(list).arg(start).arg("+").arg("LIMIT").arg(0).arg(limit + 1);
        let (names,): (Vec<String>,) = self.ask(range).await?;
        let mut ids: Vec<T> = names.iter().filter_map(|name| name.parse().ok()).collect();
        let more = ids.len() > limit;
        ids.truncate(limit);
        let next = if more { ids.last().cloned() } else { None };
        Ok((ids, next))
    }

    fn judge_epoch(&self, found: Option<String>) -> Result<(), StoreError> {
        let found = found.ok_or(StoreError::NotInitialised)?;
        let mut known = self.epoch.write().unwrap_or_else(PoisonError::into_inner);
        if *known.get_or_insert_with(|| found.clone()) == found {
            Ok(())
        } else {
            Err(StoreError::AnotherEpoch)
        }
    }

    /// Waits until the store is there; `None` if the service is told to stop first.
    pub async fn until_up(&self, shutdown: &Shutdown) -> Option<()> {
        let mut backoff = Backoff::default();
        while !self.is_up() {
            shutdown.until(backoff.wait()).await?;
        }
        Some(())
    }

    /// Whether Redis answered when last asked and is the store that this service began with.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.health.is_up(Dependency::Redis)
    }

    /// For how long it was not.
    #[must_use]
    pub fn away_for(&self) -> Duration {
        self.health.down_for(Dependency::Redis)
    }

    /// Watches over the store's health alone, for services that keep no snapshots.
    pub fn watch(&self, shutdown: &Shutdown) {
        let watching = self.clone().keep_watch(shutdown.clone());
        shutdown.spawn_vital("watch over Redis", watching);
    }

    async fn keep_watch(self, shutdown: Shutdown) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.until_finished(look.tick()).await.is_some() {
            match self.check().await {
                Ok(()) => self.health.up(Dependency::Redis),
                Err(error) => self.health.down(Dependency::Redis, error.to_string()),
            }
        }
    }

    /// What the future gives, if the store can be asked just now: a command to a Redis that is away
    /// would only keep its caller waiting.
    pub(crate) async fn if_up<T>(
        &self,
        loading: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if self.is_up() { loading.await } else { Err(StoreError::NotReady) }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use redis::{RedisResult, parse_redis_value};

    use super::*;

    #[test]
    fn a_caller_is_told_what_is_wrong_with_redis() {
        let refusal = |text: &str| -> RedisResult<Value> {
            parse_redis_value(format!("-{text}\r\n").as_bytes())?.extract_error()
        };
        let timed_out = Err(io::Error::from(io::ErrorKind::TimedOut).into());
        for (answer, told) in [
            (timed_out, "does not answer"),
            (refusal("OOM command not allowed when used memory > 'maxmemory'."), "no memory"),
            (refusal("READONLY You can't write against a read only replica."), "a replica"),
            (refusal("MISCONF Redis is configured to save RDB snapshots"), "its disk"),
            (refusal("NOPERM User joe has no permissions"), "the log of this service"),
        ] {
            let error = StoreError::from(answer.unwrap_err()).for_caller();
            assert!(error.contains(told) && !error.contains("joe"), "{error}");
        }
        assert!(StoreError::NotInitialised.for_caller().contains("init"));
    }
}
