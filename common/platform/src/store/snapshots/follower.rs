//! Follows the log of changes, and says meanwhile how the store is.
//!
//! Slots are read again at once. The index of a tenant may be a million entries, so indexes are read
//! again beside that, a few at a time: nobody else's changes wait for them.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::Pin;
use std::time::Duration;

use doorbell_common::ids::TenantId;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::time::Instant;

use super::Snapshots;
use crate::health::Dependency;
use crate::shutdown::Shutdown;
use crate::store::changes::{self, Change, News};
use crate::store::{LOOK, StoreError};

/// How long after an announcement its change is looked for again: longer than a command may take.
const LATER: Duration = Duration::from_secs(5);
/// Indexes that are read at once.
const INDEXES_AT_ONCE: usize = 8;

/// Has what is known read again when it changes.
pub(super) struct Follower {
    snapshots: Snapshots,
    /// The last entry seen.
    position: Option<String>,
    /// Announced changes to look for again, and when.
    later: VecDeque<(Instant, Change)>,
    indexes: Indexes,
}

/// The indexes that are being read again.
#[derive(Default)]
struct Indexes {
    /// Whose they are.
    begun: HashSet<TenantId>,
    reading: FuturesUnordered<Reading>,
    /// Those that could not be read, and why.
    failed: HashMap<TenantId, String>,
}

type Reading = Pin<Box<dyn Future<Output = (TenantId, Result<(), StoreError>)> + Send>>;

impl Follower {
    pub(super) fn new(snapshots: Snapshots) -> Self {
        let (later, indexes) = (VecDeque::new(), Indexes::default());
        Self { snapshots, position: None, later, indexes }
    }

    /// Looks until the service has finished.
    pub(super) async fn follow(mut self, shutdown: Shutdown) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                tick = shutdown.until_finished(look.tick()) => match tick {
                    Some(_) => self.look().await,
                    None => return,
                },
                Some((tenant, result)) = self.indexes.reading.next() => {
                    self.indexes.ended(&self.snapshots, tenant, result);
                }
            }
        }
    }

    async fn look(&mut self) {
        let store = self.snapshots.store.clone();
        let looked = self.read().await.map_err(|error| error.to_string());
        match looked.and_then(|()| self.indexes.result()) {
            Ok(()) => store.health.up(Dependency::Redis),
            Err(why) => store.health.down(Dependency::Redis, why),
        }
        // At the pace of looks, so that trouble is not met in a hot loop.
        self.indexes.begin(&self.snapshots);
    }

    async fn read(&mut self) -> Result<(), StoreError> {
        // First, so that an emptied or another store never clears what is known.
        self.snapshots.store.check().await?;
        while self.read_on().await? {}
        self.look_again().await
    }

    /// Reads the next entries of the log; answers whether there may be more.
    async fn read_on(&mut self) -> Result<bool, StoreError> {
        match self.snapshots.store.changes_since(self.position.as_deref()).await? {
            News::Entries { entries, position, more } => {
                let changed: HashSet<Change> =
                    entries.iter().map(|entry| entry.change.clone()).collect();
                for change in changed {
                    self.take_note(change).await?;
                }
                // Only now: after an error the same entries are read again.
                self.position = Some(position);
                for entry in entries {
                    self.note(entry);
                }
                Ok(more)
            }
            News::Lost(position) => {
                if self.position.is_some() {
                    tracing::warn!(
                        "the log of changes was trimmed or lost: reading subscriptions afresh"
                    );
                }
                self.forget_all();
                self.position = Some(position);
                Ok(false)
            }
        }
    }

    /// Has what has changed read again, if it is known at all.
    async fn take_note(&mut self, change: Change) -> Result<(), StoreError> {
        match change {
            Change::Slot(number) => self.snapshots.refresh_slot(number).await?,
            Change::Tenant(tenant) => self.snapshots.index_changed(tenant),
            Change::Initialised => self.forget_all(),
        }
        Ok(())
    }

    fn forget_all(&mut self) {
        self.snapshots.invalidate_all();
        self.indexes.failed.clear();
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
            let change = change.clone();
            self.take_note(change).await?;
            self.later.pop_front();
        }
        Ok(())
    }
}

impl Indexes {
    /// Begins to read those that are stale, but for those that are being read: their reading may have
    /// missed the last change, so they are read once more after that.
    fn begin(&mut self, snapshots: &Snapshots) {
        let room = INDEXES_AT_ONCE.saturating_sub(self.begun.len());
        let mut stale = snapshots.stale();
        let next = stale.iter().filter(|tenant| !self.begun.contains(*tenant)).take(room);
        for tenant in next.cloned().collect::<Vec<_>>() {
            stale.remove(&tenant);
            self.begun.insert(tenant.clone());
            self.reading.push(Box::pin(read(snapshots.clone(), tenant)));
        }
    }

    fn ended(&mut self, snapshots: &Snapshots, tenant: TenantId, result: Result<(), StoreError>) {
        self.begun.remove(&tenant);
        match result {
            Ok(()) => {
                self.failed.remove(&tenant);
            }
            Err(error) => {
                self.failed.insert(tenant.clone(), error.to_string());
                snapshots.stale().insert(tenant);
            }
        }
    }

    fn result(&self) -> Result<(), String> {
        self.failed.values().next().map_or(Ok(()), |why| Err(why.clone()))
    }
}

/// Reads an index again, and lets as much time go by as that took: one that changes all the time
/// costs half a core at most.
async fn read(snapshots: Snapshots, tenant: TenantId) -> (TenantId, Result<(), StoreError>) {
    let begun = Instant::now();
    let result = snapshots.refresh_index(&tenant).await;
    tokio::time::sleep(begun.elapsed()).await;
    (tenant, result)
}
