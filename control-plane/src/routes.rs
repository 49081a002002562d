//! What is where.

use std::sync::Arc;

use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use axum::routing::{get, post};
use doorbell_common::api_key::Environment;
use doorbell_platform::problem::Problem;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::{Store, StoreError};

use crate::errands::Errands;
use crate::form::Rules;
use crate::throttle::Throttle;
use crate::verification::Verifier;
use crate::{
    access, api_keys, audit, bulk, completion, config, event_types, filters, idempotency, limits,
    sealing, subscriptions, templates, tenants, throttle, verification,
};

/// What every route may use. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) store: Store,
    pub(crate) rules: Arc<Rules>,
    pub(crate) errands: Errands,
    pub(crate) verifier: Verifier,
    pub(crate) key_environment: Environment,
    /// How many entries of the audit are kept.
    pub(crate) audit_entries: usize,
}

/// The routes of bulk calls, whose answers have no end that could be kept.
pub(crate) const BULK: [&str; 2] =
    ["/v1/tenants/{tenant}/subscriptions/bulk", "/v1/tenants/{tenant}/subscriptions/bulk/delete"];

pub(crate) fn routes(api: Api, throttle: Throttle, shutdown: Shutdown) -> Router {
    Router::new()
        .route("/v1/tenants", get(tenants::list))
        .route("/v1/tenants/{tenant}", get(tenants::show).put(tenants::put).delete(tenants::delete))
        .route(
            "/v1/tenants/{tenant}/subscriptions",
            get(subscriptions::list).post(subscriptions::create),
        )
        .route(BULK[0], post(bulk::create))
        .route(BULK[1], post(bulk::delete))
        .route(
            "/v1/tenants/{tenant}/subscriptions/{id}",
            get(subscriptions::show).patch(subscriptions::patch).delete(subscriptions::delete),
        )
        .route("/v1/tenants/{tenant}/subscriptions/{id}/secret", get(subscriptions::secret))
        .route("/v1/tenants/{tenant}/subscriptions/{id}/secret/rotate", post(subscriptions::rotate))
        .route("/v1/tenants/{tenant}/subscriptions/{id}/test", post(subscriptions::test))
        .route("/v1/tenants/{tenant}/filters/test", post(filters::test))
        .route("/v1/tenants/{tenant}/templates/preview", post(templates::preview))
        .route("/v1/tenants/{tenant}/subscriptions/{id}/verify", post(verification::verify))
        .route("/v1/encryption", get(sealing::show))
        .route("/v1/tenants/{tenant}/limits", get(limits::show).put(limits::put))
        .route("/v1/keys", get(api_keys::list).post(api_keys::create))
        .route("/v1/keys/{id}", get(api_keys::show).delete(api_keys::revoke))
        .route(
            "/v1/tenants/{tenant}/keys",
            get(api_keys::list_of_tenant).post(api_keys::create_of_tenant),
        )
        .route(
            "/v1/tenants/{tenant}/keys/{id}",
            get(api_keys::show_of_tenant).delete(api_keys::revoke_of_tenant),
        )
        .route("/v1/event-types", get(event_types::list))
        .route(
            "/v1/event-types/{name}",
            get(event_types::show).put(event_types::put).delete(event_types::delete),
        )
        .route("/v1/catalogue", get(event_types::export).put(event_types::import))
        .route("/v1/config", get(config::show).put(config::put))
        .route("/v1/audit", get(audit::list))
        // The last one added is the first that a request meets.
        .route_layer(from_fn_with_state(api.clone(), audit::note))
        .route_layer(from_fn_with_state(api.clone(), idempotency::once))
        .route_layer(from_fn_with_state(shutdown, completion::carry_through))
        .route_layer(from_fn(access::check))
        .route_layer(from_fn_with_state(throttle, throttle::limit))
        .with_state(api)
}

/// The store's trouble is ours, not the caller's.
#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
pub(crate) fn trouble(error: StoreError) -> Problem {
    tracing::warn!(%error, "request not served");
    match error {
        StoreError::Redis(_) | StoreError::NotReady => {
            Problem::unavailable("Redis does not answer; try again")
        }
        StoreError::NotInitialised
        | StoreError::AnotherEpoch
        | StoreError::Lost(_)
        | StoreError::NotOpened { .. }
        | StoreError::NoSuchKey(_)
        | StoreError::Corrupt { .. } => Problem::unavailable(error.to_string()),
    }
}
