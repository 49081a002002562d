//! Which of the subscriptions whose patterns match an event want it by what is in it.
//!
//! Mostly that is known in no time. But a tenant may have thousands of filters with a hundred conditions
//! each, and events with lists of a hundred thousand: these are asked on threads of their own, a few at once,
//! in turn among tenants ([`Workshop`](doorbell_platform::workshop::Workshop)), so that nobody else's
//! deliveries wait for them.

use std::sync::Arc;
use std::time::Duration;

use doorbell_common::ids::SubscriptionId;
use doorbell_common::subscription::Subscription;
use doorbell_platform::store::snapshots::Known;
use serde_json::Value;

use crate::dispatch::Dispatcher;
use crate::served::Served;

/// Comparisons that are made at once for an event, in less than a millisecond.
const QUICK: usize = 100_000;

/// Subscriptions, and what is known of each.
pub(crate) type Found = Vec<(SubscriptionId, Known)>;

/// The filter of a subscription that has one.
fn filtered(known: &Known) -> Option<&Arc<Subscription>> {
    match known {
        Known::Live(subscription) if subscription.filter.is_some() => Some(subscription),
        Known::Live(_) | Known::Deleted | Known::Missing => None,
    }
}

/// Whether any of these has a filter.
pub(crate) fn any_has_filter(found: &Found) -> bool {
    found.iter().any(|(_, known)| filtered(known).is_some())
}

/// Whether it takes long to ask these for an event whose lists have so many elements.
pub(crate) fn takes_long(found: &Found, elements: usize) -> bool {
    found.iter().map(|(_, known)| most_steps(known, elements)).sum::<usize>() > QUICK
}

fn most_steps(known: &Known, elements: usize) -> usize {
    let filter = filtered(known).and_then(|subscription| subscription.filter.as_ref());
    filter.map_or(0, |filter| filter.most_steps(elements))
}

fn is_wanted(known: &Known, event: &Value) -> bool {
    let filter = filtered(known).and_then(|subscription| subscription.filter.as_ref());
    filter.is_none_or(|filter| filter.matches(event))
}

/// Asks as many as it takes no time to ask; answers those that want the event, and those that were not
/// asked. Each is looked at once: a thousand subscriptions are too many to be at hand all the time.
fn keep_quickly(found: Found, event: &Value, elements: usize) -> (Found, Found) {
    let (mut kept, mut left) = (Vec::new(), QUICK);
    let mut found = found.into_iter();
    while let Some((id, known)) = found.next() {
        let Some(rest) = left.checked_sub(most_steps(&known, elements)) else {
            return (kept, std::iter::once((id, known)).chain(found).collect());
        };
        left = rest;
        if is_wanted(&known, event) {
            kept.push((id, known));
        }
    }
    (kept, Vec::new())
}

impl Dispatcher {
    /// Those that want the event; `None` if the service is told to stop before all are asked. One that cannot
    /// be looked into is wanted: rather one too many than one that nobody hears of.
    pub(crate) async fn filter(&self, served: &Served, found: Found) -> Option<Found> {
        if !any_has_filter(&found) {
            return Some(found);
        }
        let Some(event) = served.parts() else { return Some(found) };
        let before = found.len();
        let (mut kept, not_asked) = keep_quickly(found, event, served.elements());
        if !not_asked.is_empty() {
            kept.extend(self.filter_aside(event, not_asked).await?);
        }
        self.metrics.filtered.inc_by(u64::try_from(before - kept.len()).unwrap_or(0));
        Some(kept)
    }

    /// Asks them once it is their tenant's turn, all in one, so that what was begun is finished first. Those of
    /// a broadcast are of many tenants: it is the turn of one of them.
    async fn filter_aside(&self, event: &Arc<Value>, mut found: Found) -> Option<Found> {
        let owner = found.iter().find_map(|(_, known)| filtered(known));
        let Some(tenant) = owner.map(|subscription| subscription.tenant.clone()) else {
            return Some(found);
        };
        let entering = self.filters.enter(&tenant, Duration::MAX);
        let at_work = self.shutdown.until(entering).await?.ok()?;
        let event = Arc::clone(event);
        let asking = tokio::task::spawn_blocking(move || {
            found.retain(|(_, known)| is_wanted(known, &event));
            drop(at_work);
            found
        });
        asking.await.ok()
    }
}
