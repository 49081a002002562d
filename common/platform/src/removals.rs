//! The events that are being removed, as services know them that have events in hand.

use doorbell_common::event::Event;
use doorbell_common::ids::{Addressee, EventId};
use doorbell_common::removal::RemovedEvents;
use prometheus::IntCounter;

use crate::clock;
use crate::followed::{Followed, Versioned};
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError};

/// The events that are being removed. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Removals(Followed<RemovedEvents>);

impl Removals {
    /// Follows them from now on. Until they were read first, none is known.
    #[must_use]
    pub fn start(store: Store, shutdown: &Shutdown) -> Self {
        Self(Followed::start(store, shutdown))
    }

    /// Waits until they are known; `None` if the service is told to stop first. Whoever takes events in
    /// before that would not drop what is to be dropped.
    pub async fn until_known(&self, shutdown: &Shutdown) -> Option<()> {
        self.0.until_read(shutdown).await
    }

    /// Whether this event is being removed: nothing is done with it any more.
    #[must_use]
    pub fn has(&self, tenant: &Addressee, event: &EventId) -> bool {
        self.0.ask(|removed| removed.has(tenant, event)).unwrap_or(false)
    }

    /// Whether an event that came stays; one that is being removed is counted here.
    #[must_use]
    pub fn spare(&self, event: &Event, removed: &IntCounter) -> bool {
        let is_removed = self.has(&event.tenant, &event.id);
        removed.inc_by(u64::from(is_removed));
        !is_removed
    }
}

impl Versioned for RemovedEvents {
    const NAME: &'static str = "follower of removals";

    async fn version(store: &Store) -> Result<Option<String>, StoreError> {
        store.removals_version().await
    }

    async fn read(store: &Store, _: Option<(&Self, &str)>) -> Result<Self, StoreError> {
        store.removed_events(clock::now()).await
    }
}
