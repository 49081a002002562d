//! Tenants over HTTP.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use doorbell_common::ids::TenantId;
use doorbell_common::json::pointer;
use doorbell_common::removal::Removed;
use doorbell_common::tenant_limits::TenantLimits;
use doorbell_platform::auth::Caller;
use doorbell_platform::clock;
use doorbell_platform::http::{Members, read_bytes};
use doorbell_platform::problem::{FieldError, Problem};
use doorbell_platform::store::StoreError;
use doorbell_platform::store::api_keys::StoredApiKey;
use doorbell_platform::store::records::{Listing, Lookup, Stored};
use doorbell_platform::store::tenants::Tenant;
use serde_json::{Value, json};

use crate::audit::Done;
use crate::etag::{check_match, if_match};
use crate::list::{self, ListQuery, page};
use crate::routes::{Api, trouble};

/// The largest body of a tenant.
const MAX_BODY: usize = 16 * 1024;
/// Subscriptions deleted in one go with their tenant.
const BATCH: usize = 500;

pub(crate) async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let page = page::<TenantId>(query)?;
    let (tenants, next) =
        api.store.list_tenants(page.after.as_ref(), page.limit).await.map_err(trouble)?;
    Ok(list::answer(
        &tenants.iter().map(view).collect::<Vec<_>>(),
        next.as_ref().map(TenantId::as_str),
    ))
}

pub(crate) async fn show(
    State(api): State<Api>,
    Path(tenant): Path<String>,
) -> Result<Json<Value>, Problem> {
    let tenant = existing(&api, &tenant).await?;
    Ok(Json(view(&tenant)))
}

pub(crate) async fn put(
    State(api): State<Api>,
    Path(tenant): Path<String>,
    body: Body,
) -> Result<Response, Problem> {
    let id = tenant_id(&tenant)?;
    let body = read_bytes(body, MAX_BODY).await?;
    if !body.trim_ascii().is_empty() {
        let Members(members) = Members::read(&body)?;
        let unknown =
            |(name, _): &(String, _)| FieldError::new(pointer(name), "is not a field of a tenant");
        let errors: Vec<FieldError> = members.iter().map(unknown).collect();
        if !errors.is_empty() {
            return Err(Problem::invalid(errors));
        }
    }
    let created = api.store.ensure_tenant(&id).await.map_err(trouble)?;
    let tenant = existing(&api, id.as_str()).await?;
    let tenant = Json(view(&tenant));
    if created {
        return Ok((StatusCode::CREATED, tenant).into_response());
    }
    Ok((Extension(Done::nothing()), tenant).into_response())
}

/// Deletes a tenant with its keys and all its subscriptions: what waits for them is cancelled.
pub(crate) async fn delete(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    Path(tenant): Path<String>,
) -> Result<Response, Problem> {
    let tenant = existing(&api, &tenant).await?;
    // From now on it can be asked when the last of its payloads is gone.
    let removed = Removed::Tenant(tenant.id.clone());
    api.store.remove(&removed, clock::now(), usize::MAX).await.map_err(trouble)?;
    // Nobody gets rid of his limits by deleting himself.
    let limits_too = caller.grant.tenant.is_none();
    // Cut off, some of it may have been done: that is noted, too.
    let done = Extension(Done::default());
    Ok(match delete_all(&api, &tenant.id, limits_too).await.map_err(trouble) {
        Ok(()) => {
            let location = format!("/v1/tenants/{}/removal", tenant.id);
            (StatusCode::NO_CONTENT, done, [(header::LOCATION, location)]).into_response()
        }
        Err(problem) => (done, problem).into_response(),
    })
}

async fn delete_all(api: &Api, tenant: &TenantId, limits_too: bool) -> Result<(), StoreError> {
    revoke_keys(api, tenant).await?;
    if limits_too {
        api.store.set_tenant_limits(tenant, &TenantLimits::default()).await?;
    }
    delete_subscriptions(api, tenant).await?;
    loop {
        api.store.remove_tenant(tenant).await?;
        // One that someone has created just now must not be left behind without its tenant.
        if delete_subscriptions(api, tenant).await? == 0 {
            return Ok(());
        }
    }
}

async fn revoke_keys(api: &Api, tenant: &TenantId) -> Result<(), StoreError> {
    loop {
        let (keys, _) = api.store.list_api_keys(Some(tenant), None, BATCH).await?;
        if keys.is_empty() {
            return Ok(());
        }
        for StoredApiKey { key, .. } in &keys {
            api.store.remove_api_key(key).await?;
        }
    }
}

/// Deletes a tenant's subscriptions; answers how many there were.
async fn delete_subscriptions(api: &Api, tenant: &TenantId) -> Result<usize, StoreError> {
    let (mut count, mut after) = (0, None);
    loop {
        let Listing { subscriptions, next, .. } =
            api.store.list_subscriptions(tenant, after.as_ref(), BATCH).await?;
        count += subscriptions.len();
        let deleting = subscriptions.iter().map(|subscription| async {
            // One that changes just now is met again in the next round.
            if let Lookup::Live(stored) = api.store.subscription(&subscription.id).await? {
                let stored: &Stored = &stored;
                api.store.delete_subscription(stored, clock::now()).await?;
            }
            Ok::<(), StoreError>(())
        });
        futures_util::future::try_join_all(deleting).await?;
        match next {
            Some(next) => after = Some(next),
            None => return Ok(count),
        }
    }
}

/// The id in a path.
pub(crate) fn tenant_id(text: &str) -> Result<TenantId, Problem> {
    text.parse().map_err(|error| {
        Problem::invalid(vec![FieldError::new(
            "/tenant",
            format!("the tenant in the path {error}"),
        )])
    })
}

/// The tenant in a path, which must be there.
pub(crate) async fn existing(api: &Api, text: &str) -> Result<Tenant, Problem> {
    let id = tenant_id(text)?;
    let tenant = api.store.tenant(&id).await.map_err(trouble)?;
    tenant.ok_or_else(|| Problem::new(StatusCode::NOT_FOUND, format!("there is no tenant {id}")))
}

/// 412 unless the caller's `If-Match` (if any) names this version of what the tenant has: one that is not there has
/// nothing (RFC 9110 §13.1.1).
pub(crate) async fn check_match_of(
    api: &Api,
    tenant: &TenantId,
    headers: &HeaderMap,
    version: &str,
) -> Result<(), Problem> {
    let tags = if_match(headers);
    let is_there = tags.is_none() || api.store.tenant(tenant).await.map_err(trouble)?.is_some();
    check_match(tags.as_deref(), is_there.then_some(version))
}

fn view(tenant: &Tenant) -> Value {
    json!({ "id": tenant.id, "created_at": tenant.created_at })
}
