//! Going on without what Redis has lost.
//!
//! The records of subscriptions are the truth, and what a tenant's index says follows from them: one that is lost is made
//! anew of those that are left.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use doorbell_common::ids::{SlotNumber, TenantId};
use doorbell_common::subscription::Subscription;

use super::changes::Change;
use super::snapshots::Known;
use super::{Store, StoreError};

/// What Redis has lost, and what of it was put together again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Losses {
    /// Tenants of whose subscriptions nothing was known.
    pub tenants: usize,
    /// Subscriptions of theirs that are left.
    pub left: usize,
    /// Slots of which all subscriptions were gone, or all but those that were created since.
    pub slots: usize,
}

impl Store {
    /// Goes on with what is left of a store that is initialised and has lost a part that can't be restored.
    ///
    /// # Errors
    /// Redis did not answer, or is not initialised. Doing it again goes on where it was.
    pub async fn accept_losses(&self) -> Result<Losses, StoreError> {
        self.check_epoch().await?;
        let slots = self.mark_lost_slots().await?;
        let lost = self.lost_tenants().await?;
        let left = if lost.is_empty() { 0 } else { self.link_again(&lost).await? };
        // Last, for with its record a tenant's index is believed.
        for tenant in &lost {
            self.write_tenant(tenant).await?;
        }
        self.log_change(&Change::Initialised).await?;
        Ok(Losses { tenants: lost.len(), left, slots })
    }

    /// Puts all subscriptions of these tenants into their indexes; answers how many there are.
    async fn link_again(&self, tenants: &HashSet<TenantId>) -> Result<usize, StoreError> {
        let mut count = 0;
        for slot in 0..self.slots_in_use().await? {
            let mut theirs: BTreeMap<TenantId, Vec<Arc<Subscription>>> = BTreeMap::new();
            for (_, known) in self.load_slot(SlotNumber(slot)).await? {
                if let Known::Live(subscription) = known
                    && tenants.contains(&subscription.tenant)
                {
                    theirs.entry(subscription.tenant.clone()).or_default().push(subscription);
                }
            }
            for (tenant, subscriptions) in theirs {
                count += subscriptions.len();
                let links = subscriptions.iter().map(|one| (&one.id, one.events.as_slice()));
                self.link_patterns(&tenant, links).await?;
            }
        }
        Ok(count)
    }
}
