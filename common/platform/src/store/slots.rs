//! Slots, in which subscriptions are: numbered, and filled one after the other.
//!
//! Each may be on a node of its own. A slot is marked before the first id in it is given away, so that one which has
//! nothing in it yet can be told from one that Redis has lost.

use std::ops::Range;

use doorbell_common::ids::{SlotNumber, SubscriptionId};
use futures_util::future::try_join_all;
use redis::Value;

use super::{Store, StoreError};
use crate::clock;

/// The field of a slot that is its mark.
pub(super) const MARK: &str = "slot";
/// Slots that are marked in one go, beyond those that are needed.
const AHEAD: u32 = 16;
/// Slots whose marks are written or looked at at once.
const AT_ONCE: usize = 64;

/// Gives ids away if their slots are marked. KEYS: how many were created, how many slots are marked. ARGV: how many ids, how
/// many a slot takes, how many slots there may be. Answers whether it did, how many are created then, and how many
/// slots are marked.
const RESERVE: &str = "\
    local marked = tonumber(redis.call('GET', KEYS[2]) or 0) \
    local created = tonumber(redis.call('GET', KEYS[1]) or 0) + ARGV[1] \
    if math.min(math.ceil(created / ARGV[2]), tonumber(ARGV[3])) > marked then return {0, created, marked} end \
    redis.call('INCRBY', KEYS[1], ARGV[1]) return {1, created, marked}";

/// Raises a number. KEYS: where it is. ARGV: to what, at least.
const RAISE: &str = "\
    if tonumber(redis.call('GET', KEYS[1]) or 0) < tonumber(ARGV[1]) then redis.call('SET', KEYS[1], ARGV[1]) end return 1";

impl Store {
    /// Ids for so many new subscriptions, in the slots whose turn it is.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn new_subscription_ids(
        &self,
        count: usize,
    ) -> Result<Vec<SubscriptionId>, StoreError> {
        let mut reserve = redis::cmd("EVAL");
        reserve.arg(RESERVE).arg(2).arg(self.keys.created()).arg(self.keys.slots_marked());
        reserve.arg(count).arg(SlotNumber::CAPACITY).arg(SlotNumber::END);
        let created = loop {
            let (is_done, created, marked): (bool, u64, u32) =
                reserve.query_async(&mut self.link.clone()).await?;
            if is_done {
                break created;
            }
            let end = slots_of(created).saturating_add(AHEAD).min(SlotNumber::END);
            self.mark_slots(marked..end).await?;
            let mut raise = redis::cmd("EVAL");
            raise.arg(RAISE).arg(1).arg(self.keys.slots_marked()).arg(end);
            raise.query_async::<Value>(&mut self.link.clone()).await?;
        };
        let first = created.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX));
        // Ids end after 2^32 subscriptions; then the last slot goes on growing.
        let last = SlotNumber(SlotNumber::END - 1);
        let slots = (first..created).map(|n| SlotNumber::of_nth(n).unwrap_or(last));
        Ok(slots.map(|slot| SubscriptionId::new(slot, clock::random_bits())).collect())
    }

    /// One past the last slot in which a subscription was created.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn slots_in_use(&self) -> Result<u32, StoreError> {
        let mut get = redis::pipe();
        get.cmd("GET").arg(self.keys.created());
        let (created,): (Option<u64>,) = self.ask(get).await?;
        Ok(slots_of(created.unwrap_or(0)))
    }

    /// Checks that a slot which has no mark was never marked, rather than lost.
    pub(super) async fn check_unmarked(&self, slot: SlotNumber) -> Result<(), StoreError> {
        if slot.0 < self.slots_marked().await? {
            return Err(StoreError::Lost(format!("slot {} of subscriptions", slot.0)));
        }
        Ok(())
    }

    /// Marks slots that have lost their marks; answers how many these were.
    pub(super) async fn mark_lost_slots(&self) -> Result<usize, StoreError> {
        let end = self.slots_marked().await?;
        self.mark_slots(0..end).await
    }

    async fn slots_marked(&self) -> Result<u32, StoreError> {
        let mut get = redis::pipe();
        get.cmd("GET").arg(self.keys.slots_marked());
        let (marked,): (Option<u32>,) = self.ask(get).await?;
        Ok(marked.unwrap_or(0))
    }

    async fn mark_slots(&self, slots: Range<u32>) -> Result<usize, StoreError> {
        let slots: Vec<u32> = slots.collect();
        let mut newly = 0;
        for slots in slots.chunks(AT_ONCE) {
            let marking = slots.iter().map(|slot| async {
                let mut mark = redis::cmd("HSETNX");
                mark.arg(self.keys.slot(SlotNumber(*slot))).arg(MARK).arg(1);
                mark.query_async::<usize>(&mut self.link.clone()).await
            });
            newly += try_join_all(marking).await?.into_iter().sum::<usize>();
        }
        Ok(newly)
    }
}

/// How many slots so many subscriptions take.
fn slots_of(created: u64) -> u32 {
    let slots = created.div_ceil(SlotNumber::CAPACITY);
    u32::try_from(slots).map_or(SlotNumber::END, |slots| slots.min(SlotNumber::END))
}
