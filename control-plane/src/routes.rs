//! What is where.

use std::sync::Arc;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::Response;
use doorbell_common::api_key::Environment;
use doorbell_common::ids::TenantId;
use doorbell_platform::http::Room;
use doorbell_platform::openapi::Described;
use doorbell_platform::permits::{Permit, Permits};
use doorbell_platform::problem::Problem;
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::{Store, StoreError};
use doorbell_platform::workshop::Workshop;
use serde_json::Value;

use crate::config::MAX_DOCUMENT;
use crate::errands::Errands;
use crate::form::Rules;
use crate::throttle::Throttle;
use crate::{
    access, api_keys, audit, bulk, completion, config, event_types, filters, idempotency, limits,
    openapi, removals, sealing, subscriptions, templates, tenants, throttle, verification,
};

/// What every route may use. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) rules: Arc<Rules>,
    pub(crate) errands: Errands,
    /// Where what tenants have written is read.
    pub(crate) workshop: Workshop<TenantId>,
    /// One permit for each list that is put together, and for each document: they take memory.
    pub(crate) lists: Permits<TenantId>,
    pub(crate) documents: Permits<TenantId>,
    pub(crate) key_environment: Environment,
    /// How many entries of the audit are kept.
    pub(crate) audit_entries: usize,
}

/// How many lists, and documents, are put together at once.
pub(crate) const LISTS: usize = 16;
pub(crate) const DOCUMENTS: usize = 4;

/// Waits for a tenant's turn.
pub(crate) async fn turn(
    permits: &Permits<TenantId>,
    tenant: &TenantId,
) -> Result<Permit<TenantId>, Problem> {
    permits.acquire(tenant).await.map_err(|error| Problem::unavailable(sentence(&error)))
}

/// The routes of bulk calls, whose answers have no end that could be kept.
pub(crate) const BULK: [&str; 3] = [
    "/v1/tenants/{tenant}/subscriptions/bulk",
    "/v1/tenants/{tenant}/subscriptions/bulk/delete",
    "/v1/tenants/{tenant}/subscriptions/bulk/update",
];

/// The routes, and the document that describes them.
pub(crate) fn routes(api: Api, throttle: Throttle, shutdown: Shutdown) -> (Router, Value) {
    let (router, document) = described().finish(openapi::about());
    let router = router
        // The last one added is the first that a request meets.
        .route_layer(from_fn_with_state(api.clone(), audit::note))
        .route_layer(from_fn_with_state(api.clone(), idempotency::once))
        .route_layer(from_fn_with_state(Room::new(MAX_DOCUMENT), keep_room))
        .route_layer(from_fn_with_state(shutdown, completion::carry_through))
        .route_layer(from_fn(access::check))
        .route_layer(from_fn_with_state(throttle, throttle::limit))
        .with_state(api);
    (router, document)
}

/// Bulk calls keep no more than a few lines of what comes.
async fn keep_room(
    State(room): State<Room>,
    route: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    if BULK.contains(&route.as_str()) {
        return next.run(request).await;
    }
    room.keep(request, next).await
}

/// The document alone.
#[cfg(test)]
pub(crate) fn document() -> Value {
    described().finish(openapi::about()).1
}

fn described() -> Described<Api> {
    Described::default()
        .serve(openapi::tenants::list(), tenants::list)
        .serve(openapi::tenants::show(), tenants::show)
        .serve(openapi::tenants::put(), tenants::put)
        .serve(openapi::tenants::delete(), tenants::delete)
        .serve(openapi::removals::of_tenant(), removals::show_of_tenant)
        .serve(openapi::removals::remove_event(), removals::remove_event)
        .serve(openapi::removals::of_event(), removals::show_of_event)
        .serve(openapi::tenants::show_limits(), limits::show)
        .serve(openapi::tenants::put_limits(), limits::put)
        .serve(openapi::subscriptions::list(), subscriptions::list)
        .serve(openapi::subscriptions::create(), subscriptions::create)
        .serve(openapi::subscriptions::show(), subscriptions::show)
        .serve(openapi::subscriptions::patch(), subscriptions::patch)
        .serve(openapi::subscriptions::delete(), subscriptions::delete)
        .serve(openapi::subscriptions::secret(), subscriptions::secret)
        .serve(openapi::subscriptions::rotate(), subscriptions::rotate)
        .serve(openapi::subscriptions::test(), subscriptions::test)
        .serve(openapi::subscriptions::verify(), verification::verify)
        .serve(openapi::subscriptions::create_many(), bulk::create)
        .serve(openapi::subscriptions::delete_many(), bulk::delete)
        .serve(openapi::subscriptions::update_many(), bulk::update)
        .serve(openapi::subscriptions::show_config(), config::show)
        .serve(openapi::subscriptions::put_config(), config::put)
        .serve(openapi::trials::filter(), filters::test)
        .serve(openapi::trials::template(), templates::preview)
        .serve(openapi::keys::list(), api_keys::list)
        .serve(openapi::keys::create(), api_keys::create)
        .serve(openapi::keys::show(), api_keys::show)
        .serve(openapi::keys::revoke(), api_keys::revoke)
        .serve(openapi::keys::list_of_tenant(), api_keys::list_of_tenant)
        .serve(openapi::keys::create_of_tenant(), api_keys::create_of_tenant)
        .serve(openapi::keys::show_of_tenant(), api_keys::show_of_tenant)
        .serve(openapi::keys::revoke_of_tenant(), api_keys::revoke_of_tenant)
        .serve(openapi::deployment::list_types(), event_types::list)
        .serve(openapi::deployment::show_type(), event_types::show)
        .serve(openapi::deployment::put_type(), event_types::put)
        .serve(openapi::deployment::delete_type(), event_types::delete)
        .serve(openapi::deployment::export_catalogue(), event_types::export)
        .serve(openapi::deployment::import_catalogue(), event_types::import)
        .serve(openapi::deployment::encryption(), sealing::show)
        .serve(openapi::deployment::audit(), audit::list)
}

/// The store's trouble is ours, not the caller's.
pub(crate) fn trouble(error: StoreError) -> Problem {
    tracing::warn!(%error, "request not served");
    Problem::unavailable(error.for_caller())
}
