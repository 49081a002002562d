//! The log of changes: one capped stream that every reader follows at its own pace, so keeping up
//! costs the same for ten tenants and for a million.
//!
//! A writer notes what it is about to change, changes it, and notes it again. A writer that dies
//! in between has left its first note, upon which readers look twice: at once, and a little later.

use doorbell_common::ids::{SlotNumber, TenantId};
use redis::Value;
use redis::streams::{StreamId, StreamRangeReply};

use super::{Store, StoreError};

/// How many changes the log keeps at least. A reader that missed more starts afresh.
const KEPT: usize = 100_000;
/// How many are read in one go.
const BATCH: usize = 1000;

/// What changed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Change {
    /// The store itself: nothing that was read before it counts.
    Initialised,
    /// The records of a slot.
    Slot(SlotNumber),
    /// A tenant's record or its index of patterns.
    Tenant(TenantId),
}

/// One entry of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) change: Change,
    /// Written before the change, so it may not be visible yet.
    pub(super) announced: bool,
}

/// What a look at the log brought.
#[derive(Debug)]
pub(super) enum News {
    /// These entries, in order; the position after them, and whether there may be more.
    Entries { entries: Vec<Entry>, position: String, more: bool },
    /// The log no longer knows the position: everything may have changed. The new position.
    Lost(String),
}

impl Store {
    pub(super) async fn announce_change(&self, change: &Change) -> Result<(), StoreError> {
        self.write_change(change, true).await
    }

    pub(super) async fn log_change(&self, change: &Change) -> Result<(), StoreError> {
        self.write_change(change, false).await
    }

    async fn write_change(&self, change: &Change, announced: bool) -> Result<(), StoreError> {
        let mut link = self.link.clone();
        let (kind, value) = match change {
            Change::Initialised => ("init", String::new()),
            Change::Slot(slot) => ("slot", slot.0.to_string()),
            Change::Tenant(tenant) => ("tenant", tenant.to_string()),
        };
        let mut add = redis::cmd("XADD");
        add.arg(self.keys.changes()).arg("MAXLEN").arg("~").arg(KEPT).arg("*").arg(kind).arg(value);
        if announced {
            add.arg("announced").arg("1");
        }
        add.query_async::<Value>(&mut link).await?;
        Ok(())
    }

    /// What was logged since `position`, which is an entry that was seen. Reading begins with
    /// that entry itself: if it is not there, the log was trimmed past it or lost.
    pub(super) async fn changes_since(&self, position: Option<&str>) -> Result<News, StoreError> {
        let mut link = self.link.clone();
        let key = self.keys.changes();
        let Some(position) = position else { return self.newest_position().await.map(News::Lost) };
        let mut range = redis::cmd("XRANGE");
        range.arg(&key).arg(position).arg("+").arg("COUNT").arg(BATCH);
        let reply: StreamRangeReply = range.query_async(&mut link).await?;
        let Some((first, rest)) = reply.ids.split_first() else {
            return self.newest_position().await.map(News::Lost);
        };
        if first.id != position {
            return self.newest_position().await.map(News::Lost);
        }
        let newest = rest.last().map_or(position, |entry| &entry.id).to_owned();
        Ok(News::Entries {
            entries: rest.iter().filter_map(entry).collect(),
            position: newest,
            more: reply.ids.len() == BATCH,
        })
    }

    async fn newest_position(&self) -> Result<String, StoreError> {
        let mut link = self.link.clone();
        let mut last = redis::cmd("XREVRANGE");
        last.arg(self.keys.changes()).arg("+").arg("-").arg("COUNT").arg(1);
        let reply: StreamRangeReply = last.query_async(&mut link).await?;
        reply.ids.first().map(|entry| entry.id.clone()).ok_or(StoreError::NotInitialised)
    }
}

/// An entry that a newer version wrote and we don't know tells us nothing; the store's layout has
/// its own version for that.
fn entry(id: &StreamId) -> Option<Entry> {
    let announced = id.map.contains_key("announced");
    let change = if let Some(slot) = id.get::<u32>("slot") {
        Change::Slot(SlotNumber(slot))
    } else if let Some(tenant) = id.get::<String>("tenant") {
        Change::Tenant(tenant.parse().ok()?)
    } else if id.map.contains_key("init") {
        Change::Initialised
    } else {
        return None;
    };
    Some(Entry { change, announced })
}
