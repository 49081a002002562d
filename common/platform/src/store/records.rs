//! The records of subscriptions, written so that a reader sees each change whole or not at all.
//!
//! A record lives in its slot and is the truth. The tenant's index (its subscriptions, and which
//! have which pattern) only says where to look, and may say too much: a reader checks the record.
//! So a creation writes the record first and is in force once it is linked; a change links new
//! patterns before the record and unlinks old ones after; a deletion writes the tombstone first.

use std::collections::BTreeMap;

use doorbell_common::ids::{SlotNumber, SubscriptionId, TenantId};
use doorbell_common::pattern::Pattern;
use doorbell_common::subscription::{Record, Subscription};
use doorbell_common::time::Timestamp;
use redis::Value;

use super::changes::Change;
use super::sealed::Opened;
use super::slots::MARK;
use super::{Store, StoreError};

/// A subscription as read, and the bytes that were there: a change is made only over those.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The subscription.
    pub subscription: Subscription,
    raw: String,
    sealed: Option<String>,
}

/// Some of a tenant's subscriptions.
#[derive(Clone, Debug)]
pub struct Listing {
    /// These.
    pub subscriptions: Vec<Subscription>,
    /// Where to go on, if there is more.
    pub next: Option<SubscriptionId>,
    /// How many bytes their records have.
    pub bytes: usize,
}

/// What a slot has under an id.
#[derive(Clone, Debug)]
pub enum Lookup {
    /// The subscription.
    Live(Box<Stored>),
    /// A tombstone.
    Deleted,
    /// Nothing.
    Missing,
}

/// With so many bytes of records a list has enough for now.
pub const LISTED: usize = 2 * 1024 * 1024;
/// Records of a list that are read before it is known how large they are.
const FIRST_READ: usize = 16;

/// Replaces a field if it still holds what was read.
pub(super) const REPLACE: &str = "if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) return 1 end return 0";

/// Takes a subscription out of the sets of patterns; a set that is then empty leaves the list.
/// KEYS: the list, then a set for each pattern. ARGV: the id, then each pattern.
const UNLINK: &str = "for i = 2, #KEYS do redis.call('SREM', KEYS[i], ARGV[1]) if redis.call('EXISTS', KEYS[i]) == 0 then redis.call('SREM', KEYS[1], ARGV[i]) end end return 1";

impl Store {
    /// Writes new subscriptions of a tenant, and the tenant if they are its first.
    ///
    /// # Errors
    /// Redis did not answer: each of them may or may not be there.
    pub async fn create_subscriptions(
        &self,
        tenant: &TenantId,
        subscriptions: &[Subscription],
    ) -> Result<(), StoreError> {
        self.ensure_tenant(tenant).await?;
        let mut link = self.link.clone();
        let mut slots: BTreeMap<SlotNumber, Vec<(String, String)>> = BTreeMap::new();
        for subscription in subscriptions {
            let record = (subscription.id.to_string(), self.seal(subscription, None)?);
            slots.entry(subscription.id.slot()).or_default().push(record);
        }
        let changes: Vec<Change> = slots.keys().map(|slot| Change::Slot(*slot)).collect();
        for change in &changes {
            self.announce_change(change).await?;
        }
        for (slot, records) in slots {
            let mut set = redis::cmd("HSET");
            set.arg(self.keys.slot(slot)).arg(records);
            set.query_async::<Value>(&mut link).await?;
        }
        self.link_created(tenant, subscriptions).await?;
        for change in &changes {
            self.log_change(change).await?;
        }
        Ok(())
    }

    /// Puts subscriptions of a tenant whose records are written into its index, if they are not there yet.
    ///
    /// # Errors
    /// Redis did not answer: each of them may or may not be there.
    pub async fn link_created(
        &self,
        tenant: &TenantId,
        subscriptions: &[Subscription],
    ) -> Result<(), StoreError> {
        let change = Change::Tenant(tenant.clone());
        self.announce_change(&change).await?;
        let links = subscriptions.iter().map(|new| (&new.id, new.events.as_slice()));
        self.link_patterns(tenant, links).await?;
        // Someone may have deleted the tenant in the meantime, without these subscriptions.
        self.ensure_tenant(tenant).await?;
        self.log_change(&change).await
    }

    /// Reads one subscription, as it is now.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn subscription(&self, id: &SubscriptionId) -> Result<Lookup, StoreError> {
        let key = self.keys.slot(id.slot());
        let mut get = redis::pipe();
        get.cmd("HMGET").arg(&key).arg(id.to_string()).arg(MARK);
        let ((raw, mark),): ((Option<String>, Option<String>),) = self.ask(get).await?;
        let Some(raw) = raw else {
            if mark.is_none() {
                self.check_unmarked(id.slot()).await?;
            }
            return Ok(Lookup::Missing);
        };
        Ok(match self.open(&key, &id.to_string(), &raw)? {
            Opened::Deleted => Lookup::Deleted,
            Opened::Live(subscription, sealed) => {
                Lookup::Live(Box::new(Stored { subscription: *subscription, raw, sealed }))
            }
        })
    }

    /// Replaces a subscription by its changed self; answers whether it still was as it was read.
    ///
    /// # Errors
    /// Redis did not answer: the change may or may not be there.
    pub async fn update_subscription(
        &self,
        stored: &Stored,
        changed: &Subscription,
    ) -> Result<bool, StoreError> {
        let before = &stored.subscription;
        let patterns_change = before.events != changed.events;
        self.announce(changed, patterns_change).await?;
        let added: Vec<Pattern> =
            changed.events.iter().filter(|p| !before.events.contains(p)).cloned().collect();
        let added = std::iter::once((&changed.id, added.as_slice()));
        self.link_patterns(&changed.tenant, added).await?;
        let after = self.seal(changed, stored.sealed.as_ref())?;
        let replaced = self.replace(&changed.id, &stored.raw, &after).await?;
        if replaced {
            let removed: Vec<Pattern> =
                before.events.iter().filter(|p| !changed.events.contains(p)).cloned().collect();
            self.unlink_patterns(&changed.tenant, &changed.id, &removed).await?;
        }
        self.log(changed, patterns_change).await?;
        Ok(replaced)
    }

    /// Puts a tombstone in the subscription's place; answers whether it still was as it was read.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be deleted.
    pub async fn delete_subscription(
        &self,
        stored: &Stored,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let subscription = &stored.subscription;
        self.announce(subscription, true).await?;
        let tombstone = serde_json::to_string(&Record::Deleted(now))
            .map_err(|error| corrupt(&subscription.id, error))?;
        let replaced = self.replace(&subscription.id, &stored.raw, &tombstone).await?;
        if replaced {
            self.unlink_patterns(&subscription.tenant, &subscription.id, &subscription.events)
                .await?;
            let mut link = self.link.clone();
            let mut remove = redis::cmd("ZREM");
            remove
                .arg(self.keys.subscriptions(&subscription.tenant))
                .arg(subscription.id.to_string());
            remove.query_async::<Value>(&mut link).await?;
        }
        self.log(subscription, true).await?;
        Ok(replaced)
    }

    /// A tenant's subscriptions, in the order of their ids, after one of them; at most `limit`, and fewer if
    /// they are large.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn list_subscriptions(
        &self,
        tenant: &TenantId,
        after: Option<&SubscriptionId>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        let list = self.keys.subscriptions(tenant);
        let (ids, next) = self.page_of_ids(list, after, limit).await?;
        if ids.is_empty() {
            self.raw_tenant(tenant).await?;
        }
        let mut listing = Listing { subscriptions: Vec::new(), next, bytes: 0 };
        let (mut rest, mut at_once) = (ids.as_slice(), FIRST_READ);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(at_once.min(rest.len()));
            rest = later;
            let reads = now.iter().map(|id| self.subscription(id));
            for lookup in futures_util::future::try_join_all(reads).await? {
                // Others were deleted a moment ago, or lost; neither can be shown.
                if let Lookup::Live(stored) = lookup {
                    listing.bytes += stored.raw.len();
                    listing.subscriptions.push(stored.subscription);
                }
            }
            if listing.bytes >= LISTED && !rest.is_empty() {
                listing.next = now.last().cloned();
                break;
            }
            // As many as there is room for, if they are as large as those before.
            let each = listing.bytes / (ids.len() - rest.len()) + 1;
            at_once = (LISTED.saturating_sub(listing.bytes) / each).max(1);
        }
        Ok(listing)
    }

    async fn replace(
        &self,
        id: &SubscriptionId,
        before: &str,
        after: &str,
    ) -> Result<bool, StoreError> {
        let mut link = self.link.clone();
        let mut eval = redis::cmd("EVAL");
        eval.arg(REPLACE)
            .arg(1)
            .arg(self.keys.slot(id.slot()))
            .arg(id.to_string())
            .arg(before)
            .arg(after);
        Ok(eval.query_async::<u8>(&mut link).await? == 1)
    }

    /// Puts subscriptions into the tenant's index, under these patterns.
    pub(super) async fn link_patterns<'a>(
        &self,
        tenant: &TenantId,
        links: impl Iterator<Item = (&'a SubscriptionId, &'a [Pattern])>,
    ) -> Result<(), StoreError> {
        let mut by_pattern: BTreeMap<&Pattern, Vec<String>> = BTreeMap::new();
        let mut ids = Vec::new();
        for (id, patterns) in links.filter(|(_, patterns)| !patterns.is_empty()) {
            ids.push((0, id.to_string()));
            for pattern in patterns {
                by_pattern.entry(pattern).or_default().push(id.to_string());
            }
        }
        if ids.is_empty() {
            return Ok(());
        }
        let mut link = self.link.clone();
        let mut pipe = redis::pipe();
        pipe.atomic();
        pipe.cmd("ZADD").arg(self.keys.subscriptions(tenant)).arg(ids).ignore();
        for (pattern, ids) in by_pattern {
            pipe.cmd("SADD").arg(self.keys.pattern(tenant, pattern)).arg(ids).ignore();
            pipe.cmd("SADD").arg(self.keys.patterns(tenant)).arg(pattern.as_str()).ignore();
        }
        pipe.query_async::<()>(&mut link).await?;
        Ok(())
    }

    async fn unlink_patterns(
        &self,
        tenant: &TenantId,
        id: &SubscriptionId,
        patterns: &[Pattern],
    ) -> Result<(), StoreError> {
        if patterns.is_empty() {
            return Ok(());
        }
        let mut link = self.link.clone();
        let mut eval = redis::cmd("EVAL");
        eval.arg(UNLINK).arg(patterns.len() + 1).arg(self.keys.patterns(tenant));
        for pattern in patterns {
            eval.arg(self.keys.pattern(tenant, pattern));
        }
        eval.arg(id.to_string());
        for pattern in patterns {
            eval.arg(pattern.as_str());
        }
        eval.query_async::<Value>(&mut link).await?;
        Ok(())
    }

    async fn announce(
        &self,
        subscription: &Subscription,
        index_too: bool,
    ) -> Result<(), StoreError> {
        self.announce_change(&Change::Slot(subscription.id.slot())).await?;
        if index_too {
            self.announce_change(&Change::Tenant(subscription.tenant.clone())).await?;
        }
        Ok(())
    }

    async fn log(&self, subscription: &Subscription, index_too: bool) -> Result<(), StoreError> {
        self.log_change(&Change::Slot(subscription.id.slot())).await?;
        if index_too {
            self.log_change(&Change::Tenant(subscription.tenant.clone())).await?;
        }
        Ok(())
    }
}

fn corrupt(id: &SubscriptionId, error: serde_json::Error) -> StoreError {
    StoreError::Corrupt { key: id.to_string(), error }
}
