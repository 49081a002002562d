//! What a dispatcher or scheduler knows of subscriptions: slots and tenants' indexes, read when
//! first needed, kept until the log of changes says otherwise.
//!
//! With Redis away, what is known goes on being used; what is not known is an error, never an
//! empty answer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use doorbell_common::event::EventType;
use doorbell_common::fan_out::{self, SlotRange};
use doorbell_common::ids::{Addressee, SlotNumber, SubscriptionId, TenantId};
use doorbell_common::pattern::{Pattern, PatternTree};
use doorbell_common::subscription::{Record, Standing, Subscription};
use moka::future::Cache;
use tokio::time::Instant;

use super::changes::{self, Change, News};
use super::{Store, StoreError};
use crate::health::Dependency;
use crate::shutdown::Shutdown;

/// How often the log is read.
const LOOK: Duration = Duration::from_millis(250);
/// How long after an announcement its change is looked for again: longer than a command may take.
const LATER: Duration = Duration::from_secs(5);
/// Slots kept in memory, of 256 subscriptions each.
const SLOTS: u64 = 512;
/// Tenants' indexes kept in memory.
const TENANTS: u64 = 100_000;

/// What is known of subscriptions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshots {
    store: Store,
    slots: Cache<SlotNumber, Arc<Slot>>,
    tenants: Cache<TenantId, Arc<Index>>,
    /// Raised with each change: a fill that began before one is not kept.
    changes: Arc<AtomicU64>,
}

type Slot = HashMap<SubscriptionId, Entry>;
/// The ids of each pattern are sorted, and so in the order of their slots.
type Index = PatternTree<Vec<SubscriptionId>>;

#[derive(Clone, Debug)]
enum Entry {
    Live(Arc<Subscription>),
    Deleted,
}

/// What is known under an id.
#[derive(Clone, Debug)]
pub enum Known {
    /// The subscription.
    Live(Arc<Subscription>),
    /// It was deleted.
    Deleted,
    /// There is neither a record nor a tombstone.
    Missing,
}

impl Known {
    /// What this means for a delivery.
    #[must_use]
    pub fn standing(&self) -> Standing<'_> {
        match self {
            Self::Live(subscription) => subscription.standing(),
            Self::Deleted => Standing::Cancelled,
            Self::Missing => Standing::Missing,
        }
    }
}

/// What is to be done about an event, for the subscriptions in a range of slots.
#[derive(Clone, Debug)]
pub enum Share {
    /// They are more than a page: each of these ranges has a part of them.
    Split(Vec<SlotRange>),
    /// These are to be served.
    Serve(Matches),
}

/// The subscriptions that want an event.
#[derive(Clone, Debug, Default)]
pub struct Matches {
    /// These, whatever their status.
    pub live: Vec<Arc<Subscription>>,
    /// The index names these, and there is neither a record nor a tombstone.
    pub missing: Vec<SubscriptionId>,
}

impl Snapshots {
    /// Knows nothing yet; from now on it follows the changes and watches over the store's health.
    #[must_use]
    pub fn start(store: Store, shutdown: &Shutdown) -> Self {
        let snapshots = Self {
            store,
            slots: Cache::new(SLOTS),
            tenants: Cache::new(TENANTS),
            changes: Arc::default(),
        };
        let following = snapshots.clone().follow(shutdown.clone());
        shutdown.spawn_vital("follower of changes", following);
        snapshots
    }

    /// The subscriptions in a range of slots that want an event of this type, or how to split
    /// them, if they are many.
    ///
    /// # Errors
    /// Something needed is not known, and Redis is away or not what it was.
    pub async fn share(
        &self,
        addressee: &Addressee,
        event_type: &EventType,
        range: SlotRange,
    ) -> Result<Share, Arc<StoreError>> {
        match addressee {
            Addressee::Tenant(tenant) => self.share_of_tenant(tenant, event_type, range).await,
            Addressee::Everyone => self.share_of_everyone(event_type, range).await,
        }
    }

    async fn share_of_tenant(
        &self,
        tenant: &TenantId,
        event_type: &EventType,
        range: SlotRange,
    ) -> Result<Share, Arc<StoreError>> {
        let index = self.index(tenant).await?;
        let matched = index.matching(event_type).into_iter();
        let lists: Vec<&[SubscriptionId]> = matched.map(|ids| within(ids, range)).collect();
        // Slots that come into use later are not part of it.
        let last = lists.iter().filter_map(|ids| ids.last()).map(|id| id.slot().0).max();
        let range = SlotRange { end: last.map_or(range.first, |last| last + 1), ..range };
        let parts =
            fan_out::split(range, |part| lists.iter().map(|ids| within(ids, part).len()).sum());
        if !parts.is_empty() && parts != [range] {
            return Ok(Share::Split(parts));
        }
        let ids: HashSet<&SubscriptionId> = lists.into_iter().flatten().collect();
        let mut matches = Matches::default();
        for id in ids {
            match self.get(id).await? {
                // The index may say too much; the record decides.
                Known::Live(subscription)
                    if subscription.tenant == *tenant && subscription.wants(event_type) =>
                {
                    matches.live.push(subscription);
                }
                Known::Live(_) | Known::Deleted => {}
                Known::Missing => matches.missing.push(id.clone()),
            }
        }
        Ok(Share::Serve(matches))
    }

    /// Reads slots as they are, without an index; each is as large as a page.
    async fn share_of_everyone(
        &self,
        event_type: &EventType,
        mut range: SlotRange,
    ) -> Result<Share, Arc<StoreError>> {
        if range == SlotRange::ALL {
            range.end = self.store.if_up(self.store.slots_in_use()).await?;
        }
        let parts = fan_out::split(range, |part| {
            usize::try_from(part.len()).unwrap_or(usize::MAX).saturating_mul(fan_out::PAGE)
        });
        if !parts.is_empty() && parts != [range] {
            return Ok(Share::Split(parts));
        }
        let mut matches = Matches::default();
        for number in range.slots() {
            // Not kept: a broadcast reads every slot once, and would drive out what others need.
            let slot = match self.slots.get(&number).await {
                Some(slot) => slot,
                None => self.store.if_up(self.store.load_slot(number)).await?,
            };
            matches.live.extend(slot.values().filter_map(|entry| match entry {
                Entry::Live(subscription) if subscription.wants(event_type) => {
                    Some(Arc::clone(subscription))
                }
                Entry::Live(_) | Entry::Deleted => None,
            }));
        }
        Ok(Share::Serve(matches))
    }

    /// What is known under an id.
    ///
    /// # Errors
    /// It is not known, and Redis is away or not what it was.
    pub async fn get(&self, id: &SubscriptionId) -> Result<Known, Arc<StoreError>> {
        let number = id.slot();
        let slot = self.known(&self.slots, &number, self.store.load_slot(number)).await?;
        Ok(match slot.get(id) {
            Some(Entry::Live(subscription)) => Known::Live(Arc::clone(subscription)),
            Some(Entry::Deleted) => Known::Deleted,
            None => Known::Missing,
        })
    }

    async fn index(&self, tenant: &TenantId) -> Result<Arc<Index>, Arc<StoreError>> {
        self.known(&self.tenants, tenant, self.store.load_index(tenant)).await
    }

    /// What a cache holds, or what `load` brings. That is kept only if nothing changed meanwhile:
    /// it may be from before the change.
    async fn known<K, V>(
        &self,
        cache: &Cache<K, Arc<V>>,
        key: &K,
        load: impl Future<Output = Result<Arc<V>, StoreError>>,
    ) -> Result<Arc<V>, Arc<StoreError>>
    where
        K: Clone + Eq + Hash + Send + Sync + 'static,
        V: Send + Sync + 'static,
    {
        if let Some(found) = cache.get(key).await {
            return Ok(found);
        }
        let before = self.changes.load(Ordering::Acquire);
        let found = cache.try_get_with_by_ref(key, self.store.if_up(load)).await?;
        if self.changes.load(Ordering::Acquire) != before {
            cache.invalidate(key).await;
        }
        Ok(found)
    }

    async fn follow(self, shutdown: Shutdown) {
        let mut follower = Follower { snapshots: self, position: None, later: VecDeque::new() };
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.until_finished(look.tick()).await.is_some() {
            follower.look().await;
        }
    }

    /// Reads again what has changed, if it is known at all. What is known stays until the new is
    /// there, so that a Redis that goes away in between takes nothing with it.
    async fn refresh(&self, change: &Change) -> Result<(), StoreError> {
        // First, so that whoever reads just now does not keep what it finds.
        self.changes.fetch_add(1, Ordering::AcqRel);
        match change {
            Change::Slot(slot) if self.slots.contains_key(slot) => {
                let fresh = self.store.load_slot(*slot).await?;
                self.slots.insert(*slot, fresh).await;
            }
            Change::Tenant(tenant) if self.tenants.contains_key(tenant) => {
                let fresh = self.store.load_index(tenant).await?;
                self.tenants.insert(tenant.clone(), fresh).await;
            }
            Change::Slot(_) | Change::Tenant(_) => {}
            Change::Initialised => self.invalidate_all(),
        }
        Ok(())
    }

    fn invalidate_all(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.slots.invalidate_all();
        self.tenants.invalidate_all();
    }
}

/// Those of these sorted ids that are in a range of slots.
fn within(ids: &[SubscriptionId], range: SlotRange) -> &[SubscriptionId] {
    let from = ids.partition_point(|id| id.slot().0 < range.first);
    let ids = ids.get(from..).unwrap_or_default();
    let to = ids.partition_point(|id| id.slot().0 < range.end);
    ids.get(..to).unwrap_or_default()
}

struct Follower {
    snapshots: Snapshots,
    /// The last entry seen.
    position: Option<String>,
    /// Announced changes to look for again, and when.
    later: VecDeque<(Instant, Change)>,
}

impl Follower {
    async fn look(&mut self) {
        let store = self.snapshots.store.clone();
        match self.read().await {
            Ok(()) => store.health.up(Dependency::Redis),
            Err(error) => store.health.down(Dependency::Redis, error.to_string()),
        }
    }

    async fn read(&mut self) -> Result<(), StoreError> {
        let store = &self.snapshots.store;
        // First, so that an emptied or another store never clears what is known.
        store.check_epoch().await?;
        match store.changes_since(self.position.as_deref()).await? {
            News::Entries(entries, position) => {
                let changed: HashSet<&Change> = entries.iter().map(|entry| &entry.change).collect();
                for change in changed {
                    self.snapshots.refresh(change).await?;
                }
                // Only now: after an error the same entries are read again.
                self.position = Some(position);
                for entry in entries {
                    self.note(entry);
                }
            }
            News::Lost(position) => {
                if self.position.is_some() {
                    tracing::warn!(
                        "the log of changes was trimmed or lost: reading subscriptions afresh"
                    );
                }
                self.snapshots.invalidate_all();
                self.position = Some(position);
            }
        }
        self.look_again().await
    }

    /// Remembers an announcement until the change that it announces is logged.
    fn note(&mut self, entry: changes::Entry) {
        if entry.announced {
            self.later.push_back((Instant::now() + LATER, entry.change));
        } else if let Some(place) =
            self.later.iter().position(|(_, change)| *change == entry.change)
        {
            self.later.remove(place);
        }
    }

    /// Looks again for changes that were announced and never logged: their writer has died, after
    /// the change or before it.
    async fn look_again(&mut self) -> Result<(), StoreError> {
        while let Some((due, change)) = self.later.front() {
            if *due > Instant::now() {
                break;
            }
            self.snapshots.refresh(change).await?;
            self.later.pop_front();
        }
        Ok(())
    }
}

impl Store {
    /// Watches over the store's health alone, for services that keep no snapshots.
    pub fn watch(&self, shutdown: &Shutdown) {
        let watching = self.clone().keep_watch(shutdown.clone());
        shutdown.spawn_vital("watch over Redis", watching);
    }

    async fn keep_watch(self, shutdown: Shutdown) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.until_finished(look.tick()).await.is_some() {
            match self.check_epoch().await {
                Ok(()) => self.health.up(Dependency::Redis),
                Err(error) => self.health.down(Dependency::Redis, error.to_string()),
            }
        }
    }

    /// What the future gives, if the store can be asked just now: a command to a Redis that is away
    /// would only keep its caller waiting.
    async fn if_up<T>(
        &self,
        loading: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        if self.is_up() { loading.await } else { Err(StoreError::NotReady) }
    }

    /// One past the last slot in which a subscription was created.
    async fn slots_in_use(&self) -> Result<u32, StoreError> {
        let mut link = self.link.clone();
        let created: Option<u64> =
            redis::cmd("GET").arg(self.keys.created()).query_async(&mut link).await?;
        self.check_epoch().await?;
        let slots = created.unwrap_or(0).div_ceil(SlotNumber::CAPACITY);
        Ok(u32::try_from(slots).map_or(SlotNumber::END, |slots| slots.min(SlotNumber::END)))
    }

    async fn load_slot(&self, number: SlotNumber) -> Result<Arc<Slot>, StoreError> {
        let mut link = self.link.clone();
        let key = self.keys.slot(number);
        let records: Vec<(String, String)> =
            redis::cmd("HGETALL").arg(&key).query_async(&mut link).await?;
        // After the reading: a store emptied before it is found out here.
        self.check_epoch().await?;
        let mut slot = Slot::new();
        for (id, raw) in records {
            match (id.parse(), serde_json::from_str(&raw)) {
                (Ok(id), Ok(Record::Live(subscription))) => {
                    slot.insert(id, Entry::Live(Arc::new(*subscription)));
                }
                (Ok(id), Ok(Record::Deleted(_))) => {
                    slot.insert(id, Entry::Deleted);
                }
                // It counts as missing: its deliveries are held, the others go on.
                (_, Err(error)) => tracing::error!(key, id, %error, "record is not understood"),
                (Err(error), _) => tracing::error!(key, id, %error, "record has no valid id"),
            }
        }
        Ok(Arc::new(slot))
    }

    async fn load_index(&self, tenant: &TenantId) -> Result<Arc<Index>, StoreError> {
        let mut link = self.link.clone();
        let mut pipe = redis::pipe();
        pipe.cmd("EXISTS").arg(self.keys.tenant(tenant));
        pipe.cmd("SMEMBERS").arg(self.keys.patterns(tenant));
        let (exists, patterns): (bool, Vec<String>) = pipe.query_async(&mut link).await?;
        let patterns: Vec<Pattern> =
            patterns.iter().filter_map(|pattern| pattern.parse().ok()).collect();
        let mut index = Index::default();
        if !patterns.is_empty() {
            let mut pipe = redis::pipe();
            for pattern in &patterns {
                pipe.cmd("SMEMBERS").arg(self.keys.pattern(tenant, pattern));
            }
            let sets: Vec<Vec<String>> = pipe.query_async(&mut link).await?;
            for (pattern, ids) in patterns.into_iter().zip(sets) {
                let mut ids: Vec<SubscriptionId> =
                    ids.iter().filter_map(|id| id.parse().ok()).collect();
                ids.sort_unstable();
                index.insert(&pattern, ids);
            }
        }
        // After the reading, as above. On a cluster the epoch may be there although this tenant's
        // node was emptied: then the tenant is listed, but has no record.
        self.check_epoch().await?;
        if !exists {
            let mut score = redis::cmd("ZSCORE");
            score.arg(self.keys.tenants()).arg(tenant.as_str());
            let listed: Option<f64> = score.query_async(&mut link).await?;
            if listed.is_some() {
                return Err(StoreError::Lost(tenant.to_string()));
            }
        }
        Ok(Arc::new(index))
    }
}
