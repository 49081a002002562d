//! What a dispatcher or scheduler knows of subscriptions: slots and tenants' indexes, read when
//! first needed, kept until the log of changes says otherwise.
//!
//! With Redis away, what is known goes on being used; what is not known is an error, never an
//! empty answer.

mod changed;
mod counts;
mod follower;
mod load;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use doorbell_common::event::{Event, EventType};
use doorbell_common::fan_out::{self, SlotRange};
use doorbell_common::ids::{Addressee, SlotNumber, SubscriptionId, TenantId};
use doorbell_common::pattern::PatternTree;
use doorbell_common::subscription::{Standing, Subscription};
use futures_util::TryStreamExt as _;
use futures_util::stream::FuturesUnordered;
use moka::Entry;
use moka::future::Cache;
use moka::ops::compute::Op;

use super::{Store, StoreError};
use crate::shutdown::Shutdown;
use changed::Watched;
use counts::Changes;
use follower::Follower;

pub use changed::Changed;

/// What the indexes of tenants may weigh: a pattern of a subscription weighs 1, which is 16 bytes.
const INDEXES: u64 = 4 * 1024 * 1024;
/// How many subscriptions of a tenant are looked at before it is decided to split them: their filters
/// may leave few.
const MOST_FILTERED: usize = 4096;
/// What an index weighs that has nothing in it.
const EMPTY_INDEX: u32 = 64;

/// How much is known of subscriptions.
#[derive(Clone, Debug, clap::Args)]
pub struct SnapshotArgs {
    /// How many subscriptions are kept in memory, with some 1.5 KB each; others are read when they are needed.
    #[arg(long, env = "DOORBELL_SUBSCRIPTIONS_IN_MEMORY", default_value_t = 65_536)]
    subscriptions_in_memory: u64,
}

/// What is known of subscriptions. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Snapshots {
    store: Store,
    slots: Cache<SlotNumber, Arc<Slot>>,
    /// An event for more subscriptions than this reads them without keeping them.
    most_kept: usize,
    tenants: Cache<TenantId, Arc<Index>>,
    changes: Arc<Changes>,
    watched: Arc<Watched>,
    /// Tenants whose index is known as it was before a change.
    stale: Arc<Mutex<HashSet<TenantId>>>,
}

/// Those of a slot's subscriptions that someone has asked for: a tenant's lie in many slots, among
/// those of others.
type Slot = HashMap<SubscriptionId, Known>;
/// The ids of each pattern are sorted, and so in the order of their slots.
type Index = PatternTree<Vec<SubscriptionId>>;

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

/// The subscriptions in a range of slots whose patterns match an event.
#[derive(Clone, Debug)]
pub enum Matching {
    /// They are very many: each of these ranges has a part of them.
    Many(Vec<SlotRange>),
    /// They are these, whatever their status.
    Few {
        /// Missing are those that the index names, and that have neither a record nor a tombstone.
        found: Vec<(SubscriptionId, Known)>,
        /// If they are more than a page, the ranges that each have a part of them.
        parts: Vec<SlotRange>,
    },
}

impl Snapshots {
    /// Knows nothing yet; from now on it follows the changes and watches over the store's health.
    #[must_use]
    pub fn start(store: Store, args: &SnapshotArgs, shutdown: &Shutdown) -> Self {
        let weigh_slot = |_: &SlotNumber, slot: &Arc<Slot>| weight(slot.len());
        let weigh_index = |_: &TenantId, index: &Arc<Index>| {
            weight(index.values().map(Vec::len).sum()).saturating_add(EMPTY_INDEX)
        };
        let snapshots = Self {
            store,
            most_kept: usize::try_from(args.subscriptions_in_memory / 2).unwrap_or(usize::MAX),
            slots: Cache::builder()
                .weigher(weigh_slot)
                .max_capacity(args.subscriptions_in_memory)
                .build(),
            tenants: Cache::builder().weigher(weigh_index).max_capacity(INDEXES).build(),
            changes: Arc::default(),
            watched: Arc::default(),
            stale: Arc::default(),
        };
        let follower = Follower::new(snapshots.clone());
        shutdown.spawn_vital("follower of changes", follower.follow(shutdown.clone()));
        snapshots
    }

    /// The subscriptions in a range of slots whose patterns match an event, or how to split them, if they are
    /// many.
    ///
    /// # Errors
    /// Something needed is not known, and Redis is away or not what it was.
    pub async fn matching(
        &self,
        event: &Event,
        range: SlotRange,
    ) -> Result<Matching, Arc<StoreError>> {
        let event_type = &event.event_type;
        match &event.tenant {
            Addressee::Tenant(tenant) => self.matching_of_tenant(tenant, event_type, range).await,
            Addressee::Everyone => self.matching_of_everyone(event_type, range).await,
        }
    }

    async fn matching_of_tenant(
        &self,
        tenant: &TenantId,
        event_type: &EventType,
        range: SlotRange,
    ) -> Result<Matching, Arc<StoreError>> {
        let index = self.index(tenant).await?;
        let matched = index.matching(event_type);
        let are_kept = matched.iter().map(|ids| ids.len()).sum::<usize>() <= self.most_kept;
        let lists: Vec<&[SubscriptionId]> =
            matched.into_iter().map(|ids| within(ids, range)).collect();
        // Slots that come into use later are not part of it.
        let last = lists.iter().filter_map(|ids| ids.last()).map(|id| id.slot().0).max();
        let range = SlotRange { end: last.map_or(range.first, |last| last + 1), ..range };
        let parts =
            fan_out::split(range, |part| lists.iter().map(|ids| within(ids, part).len()).sum());
        let splits = !parts.is_empty() && parts != [range];
        let count: usize = lists.iter().map(|ids| ids.len()).sum();
        if splits && (count > MOST_FILTERED || !are_kept) {
            return Ok(Matching::Many(parts));
        }
        let mut ids: Vec<SubscriptionId> = lists.into_iter().flatten().cloned().collect();
        ids.sort_unstable();
        ids.dedup();
        // What is read once for each of many pages would drive out what others need.
        let found = if are_kept { self.get_all(ids).await? } else { self.read_all(&ids).await? };
        // The index may say too much; the record decides.
        let found = found.into_iter().filter(|(_, known)| match known {
            Known::Live(subscription) => {
                subscription.tenant == *tenant && subscription.wants(event_type)
            }
            Known::Deleted => false,
            Known::Missing => true,
        });
        let parts = if splits { parts } else { Vec::new() };
        Ok(Matching::Few { found: found.collect(), parts })
    }

    /// Reads slots as they are, without an index; each is as large as a page.
    async fn matching_of_everyone(
        &self,
        event_type: &EventType,
        mut range: SlotRange,
    ) -> Result<Matching, Arc<StoreError>> {
        if range == SlotRange::ALL {
            range.end = self.store.if_up(self.store.slots_in_use()).await?;
        }
        let parts = fan_out::split(range, |part| {
            usize::try_from(part.len()).unwrap_or(usize::MAX).saturating_mul(fan_out::PAGE)
        });
        if !parts.is_empty() && parts != [range] {
            return Ok(Matching::Many(parts));
        }
        let mut found = Vec::new();
        for number in range.slots() {
            // Not kept: a broadcast reads every slot once, and would drive out what others need.
            found.extend(self.store.if_up(self.store.load_slot(number)).await?);
        }
        found.retain(|(_, known)| match known {
            Known::Live(subscription) => subscription.wants(event_type),
            Known::Deleted | Known::Missing => false,
        });
        Ok(Matching::Few { found, parts: Vec::new() })
    }

    /// What is known under an id.
    ///
    /// # Errors
    /// It is not known, and Redis is away or not what it was.
    pub async fn get(&self, id: &SubscriptionId) -> Result<Known, Arc<StoreError>> {
        let found = self.get_in_slot(id.slot(), std::slice::from_ref(id)).await?;
        Ok(found.into_iter().next().map_or(Known::Missing, |(_, known)| known))
    }

    /// The same for many, each once.
    ///
    /// # Errors
    /// As above, for any of them.
    pub async fn get_all(
        &self,
        mut ids: Vec<SubscriptionId>,
    ) -> Result<Vec<(SubscriptionId, Known)>, Arc<StoreError>> {
        ids.sort_unstable();
        ids.dedup();
        collect(by_slot(&ids).map(|(number, ids)| self.get_in_slot(number, ids))).await
    }

    /// Which slots have changed since this was last asked: whoever asks this need not look at all that it knows
    /// of again and again. What is read of them from now on is what they are since.
    #[must_use]
    pub fn take_changed(&self) -> Changed {
        self.watched.take()
    }

    /// The same of sorted ones, read anew and not kept.
    async fn read_all(
        &self,
        ids: &[SubscriptionId],
    ) -> Result<Vec<(SubscriptionId, Known)>, Arc<StoreError>> {
        let load = |(number, ids): (_, &[SubscriptionId])| {
            self.store.if_up(self.store.load_known(number, ids.to_vec()))
        };
        Ok(collect(by_slot(ids).map(load)).await?)
    }

    async fn get_in_slot(
        &self,
        number: SlotNumber,
        ids: &[SubscriptionId],
    ) -> Result<Vec<(SubscriptionId, Known)>, Arc<StoreError>> {
        if let Some(slot) = self.slots.get(&number).await
            && let Some(found) = all_of(ids, &slot)
        {
            return Ok(found);
        }
        let slot = self.fill(number, ids).await?;
        let known = |id| slot.get(id).cloned().unwrap_or(Known::Missing);
        Ok(ids.iter().map(|id| (id.clone(), known(id))).collect())
    }

    /// Reads what is not known yet of a slot under these ids; answers what is known of it then.
    async fn fill(
        &self,
        number: SlotNumber,
        ids: &[SubscriptionId],
    ) -> Result<Arc<Slot>, Arc<StoreError>> {
        let (mut found, mut before) = (Arc::default(), None);
        // One after the other for each slot: what the first one finds, the next ones need not ask.
        let filling = self.slots.entry(number).and_try_compute_with(|known| {
            let (found, before) = (&mut found, &mut before);
            async move {
                let slot = known.map(Entry::into_value).unwrap_or_default();
                let unknown: Vec<_> =
                    ids.iter().filter(|id| !slot.contains_key(id)).cloned().collect();
                if unknown.is_empty() {
                    *found = slot;
                    return Ok(Op::Nop);
                }
                let changes = *before.insert(self.changes.count(&number));
                let fresh = self.store.if_up(self.store.load_known(number, unknown)).await?;
                let mut slot = Arc::unwrap_or_clone(slot);
                slot.extend(fresh);
                *found = Arc::new(slot);
                let is_current = self.changes.count(&number) == changes;
                Ok::<_, StoreError>(if is_current { Op::Put(Arc::clone(found)) } else { Op::Nop })
            }
        });
        filling.await?;
        // What was read may be from before a change, even if it was put there a moment ago.
        if before.is_some_and(|before| self.changes.count(&number) != before) {
            self.slots.invalidate(&number).await;
        }
        Ok(found)
    }

    async fn index(&self, tenant: &TenantId) -> Result<Arc<Index>, Arc<StoreError>> {
        if let Some(index) = self.tenants.get(tenant).await {
            return Ok(index);
        }
        let before = (self.changes.count_of_all(), self.changes.count(tenant));
        let loading = self.store.if_up(self.store.load_index(tenant));
        let index = self.tenants.try_get_with_by_ref(tenant, loading).await?;
        self.check_index(tenant, before).await;
        Ok(index)
    }

    /// What was read of an index since these counts may be from before a change: then it is read
    /// again, or forgotten where everything has changed.
    async fn check_index(&self, tenant: &TenantId, (all, changes): (u64, u64)) {
        if self.changes.count_of_all() != all {
            self.tenants.invalidate(tenant).await;
        } else if self.changes.count(tenant) != changes {
            self.stale().insert(tenant.clone());
        }
    }

    fn stale(&self) -> MutexGuard<'_, HashSet<TenantId>> {
        self.stale.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A slot has changed: reads again what is known of it. That stays until the new is there, so
    /// that a Redis that goes away in between takes nothing with it.
    async fn refresh_slot(&self, number: SlotNumber) -> Result<(), StoreError> {
        // Counted first, so that whoever reads just now does not keep what it finds.
        self.changes.raise(&number);
        if self.slots.contains_key(&number) {
            self.read_slot_again(number).await?;
        }
        self.watched.slot(number);
        Ok(())
    }

    async fn read_slot_again(&self, number: SlotNumber) -> Result<(), StoreError> {
        let refreshing = |known: Option<Entry<SlotNumber, Arc<Slot>>>| async move {
            let Some(known) = known else { return Ok(Op::Nop) };
            let ids = known.value().keys().cloned().collect();
            let fresh = self.store.load_known(number, ids).await?;
            Ok::<_, StoreError>(Op::Put(Arc::new(fresh)))
        };
        self.slots.entry(number).and_try_compute_with(refreshing).await?;
        Ok(())
    }

    /// A tenant's index has changed: if it is known, it is to be [read again](Self::refresh_index).
    fn index_changed(&self, tenant: TenantId) {
        self.changes.raise(&tenant);
        if self.tenants.contains_key(&tenant) {
            self.stale().insert(tenant);
        }
    }

    /// Reads a tenant's index again, if it is still known. That stays until the new is there.
    async fn refresh_index(&self, tenant: &TenantId) -> Result<(), StoreError> {
        let before = (self.changes.count_of_all(), self.changes.count(tenant));
        if self.tenants.contains_key(tenant) {
            let fresh = self.store.load_index(tenant).await?;
            self.tenants.insert(tenant.clone(), fresh).await;
            self.check_index(tenant, before).await;
        }
        Ok(())
    }

    fn invalidate_all(&self) {
        self.changes.raise_all();
        self.slots.invalidate_all();
        self.tenants.invalidate_all();
        self.stale().clear();
        self.watched.everything();
    }
}

fn weight(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX).max(1)
}

/// Sorted ids, as the slots have them.
fn by_slot(ids: &[SubscriptionId]) -> impl Iterator<Item = (SlotNumber, &[SubscriptionId])> {
    let parts = ids.chunk_by(|one, next| one.slot() == next.slot());
    parts.filter_map(|ids| Some((ids.first()?.slot(), ids)))
}

/// What is known under all of these ids; none if one of them is not known.
fn all_of(ids: &[SubscriptionId], slot: &Slot) -> Option<Vec<(SubscriptionId, Known)>> {
    ids.iter().map(|id| Some((id.clone(), slot.get(id)?.clone()))).collect()
}

/// What all of them find.
async fn collect<F, K, E>(asked: impl Iterator<Item = F>) -> Result<Vec<(SubscriptionId, Known)>, E>
where
    F: Future<Output = Result<K, E>>,
    K: IntoIterator<Item = (SubscriptionId, Known)>,
{
    let mut asked: FuturesUnordered<F> = asked.collect();
    let mut found = Vec::new();
    while let Some(known) = asked.try_next().await? {
        found.extend(known);
    }
    Ok(found)
}

/// Those of these sorted ids that are in a range of slots.
fn within(ids: &[SubscriptionId], range: SlotRange) -> &[SubscriptionId] {
    let from = ids.partition_point(|id| id.slot().0 < range.first);
    let ids = ids.get(from..).unwrap_or_default();
    let to = ids.partition_point(|id| id.slot().0 < range.end);
    ids.get(..to).unwrap_or_default()
}
