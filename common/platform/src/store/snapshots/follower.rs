//! Follows the log of changes, and says meanwhile how the store is.

use std::collections::{HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::Snapshots;
use crate::health::Dependency;
use crate::shutdown::Shutdown;
use crate::store::changes::{self, Change, News};
use crate::store::{LOOK, StoreError};

/// How long after an announcement its change is looked for again: longer than a command may take.
const LATER: Duration = Duration::from_secs(5);

/// Has what is known read again when it changes.
pub(super) struct Follower {
    snapshots: Snapshots,
    /// The last entry seen.
    position: Option<String>,
    /// Announced changes to look for again, and when.
    later: VecDeque<(Instant, Change)>,
}

impl Follower {
    pub(super) fn new(snapshots: Snapshots) -> Self {
        Self { snapshots, position: None, later: VecDeque::new() }
    }

    /// Looks until the service has finished.
    pub(super) async fn follow(mut self, shutdown: Shutdown) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.until_finished(look.tick()).await.is_some() {
            self.look().await;
        }
    }

    async fn look(&mut self) {
        let store = self.snapshots.store.clone();
        match self.read().await {
            Ok(()) => store.health.up(Dependency::Redis),
            Err(error) => store.health.down(Dependency::Redis, error.to_string()),
        }
    }

    async fn read(&mut self) -> Result<(), StoreError> {
        // First, so that an emptied or another store never clears what is known.
        self.snapshots.store.check_epoch().await?;
        while self.read_on().await? {}
        self.look_again().await
    }

    /// Reads the next entries of the log; answers whether there may be more.
    async fn read_on(&mut self) -> Result<bool, StoreError> {
        match self.snapshots.store.changes_since(self.position.as_deref()).await? {
            News::Entries { entries, position, more } => {
                let changed: HashSet<&Change> = entries.iter().map(|entry| &entry.change).collect();
                for change in changed {
                    self.snapshots.refresh(change).await?;
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
                self.snapshots.invalidate_all();
                self.position = Some(position);
                Ok(false)
            }
        }
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
