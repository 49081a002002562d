//! Some of a tenant's subscriptions: those with a certain status or name, or that want events of a type.

use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use doorbell_common::event::EventType;
use doorbell_common::ids::{SubscriptionId, TenantId};
use doorbell_common::subscription::Subscription;
use doorbell_platform::problem::{FieldError, Problem};
use doorbell_platform::store::Store;
use doorbell_platform::store::records::{LISTED, Listing};
use serde::Deserialize;

use crate::list::{ListQuery, Page, read_page, wrong_query};
use crate::routes::trouble;
use crate::view;

/// Subscriptions that are looked at for one answer. One that finds fewer than were asked for goes on
/// with its cursor: nobody waits for a million to be read.
const LOOKED_AT: usize = 5000;
/// And bytes of their records.
const READ: usize = 4 * LISTED;
/// Of these, read at once.
const BATCH: usize = 500;

/// The query of a list, and which are wanted of it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SelectQuery {
    limit: Option<String>,
    cursor: Option<String>,
    status: Option<String>,
    name: Option<String>,
    event_type: Option<String>,
}

/// Which subscriptions are wanted.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Selection {
    status: Option<String>,
    name: Option<String>,
    event_type: Option<EventType>,
}

impl Selection {
    fn takes(&self, subscription: &Subscription) -> bool {
        self.status.as_deref().is_none_or(|status| view::status(subscription) == status)
            && self.name.as_ref().is_none_or(|name| subscription.name.as_ref() == Some(name))
            && self.event_type.as_ref().is_none_or(|wanted| subscription.wants(wanted))
    }
}

/// Reads the query of a list.
pub(crate) fn read(
    query: Result<Query<SelectQuery>, QueryRejection>,
) -> Result<(Page<SubscriptionId>, Selection), Problem> {
    let Query(SelectQuery { limit, cursor, status, name, event_type }) =
        query.map_err(wrong_query)?;
    let mut errors = Vec::new();
    let page = read_page(&ListQuery { limit, cursor }).map_err(|wrong| errors.extend(wrong));
    if status.as_ref().is_some_and(|status| !view::STATUSES.contains(&status.as_str())) {
        let detail = format!("must be one of {}", view::STATUSES.join(", "));
        errors.push(FieldError::new("/status", detail));
    }
    let event_type = event_type.map(|text| text.parse::<EventType>()).transpose();
    let event_type =
        event_type.map_err(|error| errors.push(FieldError::new("/event_type", error.to_string())));
    match (page, event_type) {
        (Ok(page), Ok(event_type)) if errors.is_empty() => {
            Ok((page, Selection { status, name, event_type }))
        }
        (_, _) => Err(Problem::invalid(errors)),
    }
}

/// Those of a tenant's subscriptions that are wanted, from a place on, and where to go on.
pub(crate) async fn find(
    store: &Store,
    tenant: &TenantId,
    page: &Page<SubscriptionId>,
    selection: &Selection,
) -> Result<(Vec<Subscription>, Option<SubscriptionId>), Problem> {
    if *selection == Selection::default() {
        let listing = store.list_subscriptions(tenant, page.after.as_ref(), page.limit);
        let Listing { subscriptions, next, .. } = listing.await.map_err(trouble)?;
        return Ok((subscriptions, next));
    }
    let (mut found, mut after) = (Vec::new(), page.after.clone());
    let (mut looked_at, mut bytes) = (0, 0);
    loop {
        let listing = store.list_subscriptions(tenant, after.as_ref(), BATCH);
        let listing = listing.await.map_err(trouble)?;
        looked_at += BATCH;
        bytes += listing.bytes;
        for subscription in listing.subscriptions {
            if !selection.takes(&subscription) {
                continue;
            }
            let id = subscription.id.clone();
            found.push(subscription);
            if found.len() == page.limit {
                return Ok((found, Some(id)));
            }
        }
        after = listing.next;
        if after.is_none() || looked_at >= LOOKED_AT || bytes >= READ {
            return Ok((found, after));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        let query = |status: &str, event_type: &str| {
            read(Ok(Query(SelectQuery {
                status: Some(status.to_owned()),
                event_type: Some(event_type.to_owned()),
                ..SelectQuery::default()
            })))
        };
        assert!(query("unverified", "a.b").is_ok());
        let problem = serde_json::to_value(query("on", "a..b").unwrap_err()).unwrap();
        assert_eq!(problem["errors"][0]["pointer"], "/status");
        assert_eq!(problem["errors"][1]["pointer"], "/event_type");
    }
}
