//! The whole desired state of a tenant's subscriptions as one document: shown, compared with what there
//! is, and carried out. An entry is known by its name, so a document that is sent again changes nothing,
//! and one that was carried out in part is carried on with by sending it again.

mod document;
mod plan;

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use doorbell_common::api_key::{Scope, Whose};
use doorbell_common::ids::TenantId;
use doorbell_common::subscription::Subscription;
use doorbell_platform::auth::Caller;
use doorbell_platform::http::read_body;
use doorbell_platform::ids;
use doorbell_platform::problem::{FieldError, Problem};
use doorbell_platform::store::lease::Lease;
use doorbell_platform::store::records::Stored;
use futures_util::{StreamExt as _, TryStreamExt as _};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::audit::Done;
use crate::etag::etag;
use crate::event_types;
use crate::list::wrong_query;
use crate::room::Room;
use crate::routes::{Api, trouble, turn};
use crate::subscriptions::{delete_one, newest_secret, update, write_all};
use crate::tenants::{check_match_of, existing, tenant_id};
use document::{Document, Reading};
use plan::Plan;

/// The largest document, in bytes and in entries; a tenant that has more subscriptions is none for one.
pub(crate) const MAX_DOCUMENT: usize = 8 * 1024 * 1024;
pub(crate) const MAX_SUBSCRIPTIONS: usize = 10_000;
/// As they are stored, with their secrets and all that was left out.
const MAX_RECORDS: usize = 3 * MAX_DOCUMENT;
/// How long a replica that has died keeps others from a tenant's document.
const LEASE: Duration = Duration::from_secs(15);
/// How long a document may take to read: a caller that has given up is not to keep us at its templates.
const READING: Duration = Duration::from_secs(35);
/// Subscriptions that are written at once, or between two renewals of the lease.
const AT_ONCE: usize = 64;
const BATCH: usize = 256;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShowQuery {
    tenant: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PutQuery {
    dry_run: Option<String>,
}

/// What there is, as a document that can be put back.
pub(crate) async fn show(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    query: Result<Query<ShowQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let Query(query) = query.map_err(wrong_query)?;
    let required = || Problem::invalid(vec![FieldError::new("/tenant", "is required")]);
    let tenant = tenant_id(&query.tenant.ok_or_else(required)?)?;
    caller.check(Scope::SubscriptionsRead, Whose::Tenant(&tenant))?;
    existing(&api, tenant.as_str()).await?;
    let _turn = turn(&api.documents, &tenant).await?;
    let current = read_all(&api, &tenant).await?;
    let document = document::show(&tenant, &current);
    Ok(([(header::ETAG, etag(&plan::version(&current)))], Json(document)).into_response())
}

/// Makes a tenant's subscriptions what the document says, or says what that would change.
pub(crate) async fn put(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    query: Result<Query<PutQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_body(&headers, body, &["application/json"], MAX_DOCUMENT).await?;
    let dry_run = dry_run(query)?;
    let (tenant, entries) = document::open(&body)?;
    caller.check(Scope::SubscriptionsWrite, Whose::Tenant(&tenant))?;
    let reading = tokio::time::timeout(READING, read(&api, &tenant, entries.as_deref()));
    let document = reading.await.map_err(|_| {
        let detail = "the document takes too long to read: its templates do with their samples";
        Problem::new(StatusCode::REQUEST_TIMEOUT, detail)
    })??;
    let limits = api.store.tenant_limits(&tenant).await.map_err(trouble)?.limits;
    if !limits.allows_subscriptions(document.entries.len()) {
        let most = limits.max_subscriptions.unwrap_or_default();
        let detail = format!("tenant {tenant} may have {most} subscriptions");
        return Err(Problem::new(StatusCode::CONFLICT, detail));
    }
    let _turn = turn(&api.documents, &tenant).await?;
    if dry_run {
        let plan = make_plan(&api, &tenant, document, &headers).await?;
        let answer = plan.shown(&event_types::names(&api).await);
        return Ok(
            (Extension(Done::nothing()), Json(answered(&tenant, true, answer))).into_response()
        );
    }
    let (lease, owner) = (Lease::Config(&tenant), ids::token());
    if !api.store.lease(lease, &owner, LEASE).await.map_err(trouble)? {
        let detail = "another document of this tenant is being carried out: try again";
        return Err(Problem::new(StatusCode::CONFLICT, detail).retry_after(1));
    }
    let carried_out = async {
        let plan = make_plan(&api, &tenant, document, &headers).await?;
        let room = Room::of(&api.store, &tenant).await?;
        room.check_creations(plan.create.len())?;
        let mut answer = plan.shown(&event_types::names(&api).await);
        api.store.ensure_tenant(&tenant).await.map_err(trouble)?;
        let carried_out = carry_out(&api, (&tenant, &room), plan, &owner, &mut answer).await;
        // Cut off, some of it may have been done: that is noted, too.
        let done = Extension(Done::to(&"config", &Value::Null, &summary(&answer)).of(&tenant));
        Ok(match carried_out {
            Ok(()) => (done, Json(answered(&tenant, false, answer))).into_response(),
            Err(problem) => (done, problem).into_response(),
        })
    };
    let carried_out: Result<Response, Problem> = carried_out.await;
    if let Err(error) = api.store.release(lease, &owner).await {
        tracing::debug!(%error, "a lease ends by itself");
    }
    carried_out
}

async fn read(
    api: &Api,
    tenant: &TenantId,
    entries: Option<&RawValue>,
) -> Result<Document, Problem> {
    let mut reading = Reading::default();
    for raw in document::entries(entries)? {
        api.in_turn(tenant, || {
            reading.read(&raw, &api.rules);
            Ok(())
        })
        .await?;
    }
    reading.end()
}

fn dry_run(query: Result<Query<PutQuery>, QueryRejection>) -> Result<bool, Problem> {
    let Query(query) = query.map_err(wrong_query)?;
    match query.dry_run.as_deref() {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => {
            Err(Problem::invalid(vec![FieldError::new("/dry_run", "must be true or false")]))
        }
    }
}

async fn make_plan(
    api: &Api,
    tenant: &TenantId,
    document: Document,
    headers: &HeaderMap,
) -> Result<Plan, Problem> {
    let current = read_all(api, tenant).await?;
    check_match_of(api, tenant, headers, &plan::version(&current)).await?;
    Plan::make(document, current)
}

async fn read_all(api: &Api, tenant: &TenantId) -> Result<Vec<Subscription>, Problem> {
    let (mut all, mut after, mut bytes) = (Vec::new(), None, 0);
    loop {
        let listing = api.store.list_subscriptions(tenant, after.as_ref(), BATCH);
        let listing = listing.await.map_err(trouble)?;
        all.extend(listing.subscriptions);
        bytes += listing.bytes;
        if all.len() > MAX_SUBSCRIPTIONS || bytes > MAX_RECORDS {
            let detail = format!(
                "tenant {tenant} has more than {MAX_SUBSCRIPTIONS} subscriptions, or more than {} MiB of them, too many for one document: use the bulk calls",
                MAX_RECORDS >> 20
            );
            return Err(Problem::new(StatusCode::CONFLICT, detail));
        }
        match listing.next {
            Some(next) => after = Some(next),
            None => return Ok(all),
        }
    }
}

/// Changes and creates first, so that what moves from one subscription to another is not missing
/// in between.
async fn carry_out(
    api: &Api,
    (tenant, room): (&TenantId, &Room),
    plan: Plan,
    owner: &str,
    answer: &mut Value,
) -> Result<(), Problem> {
    let path = |subscription: &Subscription| (tenant.to_string(), subscription.id.to_string());
    for batch in plan.update.chunks(BATCH) {
        keep_lease(api, tenant, owner).await?;
        let changing = batch.iter().map(|wanted| async {
            let change = |stored: &Stored| Ok(wanted.changed(&stored.subscription));
            update(api, &path(&wanted.before), change).await.map(|_| ())
        });
        let changing: Vec<_> = changing.collect();
        futures_util::stream::iter(changing).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    }
    let mut created = Vec::new();
    for batch in plan.create.chunks(BATCH) {
        keep_lease(api, tenant, owner).await?;
        for subscription in write_all(&api.store, tenant, room, batch.to_vec()).await? {
            let secret = newest_secret(&subscription)?.reveal();
            created.push(json!({
                "id": subscription.id, "name": subscription.name, "secret": secret,
            }));
        }
    }
    answer["created"] = created.into();
    for batch in plan.delete.chunks(BATCH) {
        keep_lease(api, tenant, owner).await?;
        let deleting = batch.iter().map(|subscription| async {
            match delete_one(api, &path(subscription), None).await {
                // Someone else was quicker.
                Err(problem) if problem.status() == StatusCode::NOT_FOUND.as_u16() => Ok(()),
                deleted => deleted.map(|_| ()),
            }
        });
        let deleting: Vec<_> = deleting.collect();
        futures_util::stream::iter(deleting).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    }
    Ok(())
}

async fn keep_lease(api: &Api, tenant: &TenantId, owner: &str) -> Result<(), Problem> {
    if api.store.lease(Lease::Config(tenant), owner, LEASE).await.map_err(trouble)? {
        return Ok(());
    }
    let detail = "another document of this tenant is being carried out by now: send this one again";
    Err(Problem::new(StatusCode::CONFLICT, detail))
}

fn answered(tenant: &TenantId, dry_run: bool, mut answer: Value) -> Value {
    answer["tenant"] = json!(tenant);
    answer["dry_run"] = dry_run.into();
    answer
}

/// What the audit has of it: who has changed, without what.
fn summary(answer: &Value) -> Value {
    let ids = |part: &str| {
        let entries = answer[part].as_array().into_iter().flatten();
        entries.map(|entry| entry["id"].clone()).collect::<Vec<Value>>()
    };
    json!({ "created": ids("created"), "updated": ids("updated"), "deleted": ids("deleted") })
}
