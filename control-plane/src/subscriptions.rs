//! Subscriptions over HTTP.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use doorbell_common::asymmetric::AsymmetricKey;
use doorbell_common::ids::{SubscriptionId, TenantId};
use doorbell_common::signature::Secret;
use doorbell_common::subscription::{DisabledReason, SigningSecret, Status, Subscription};
use doorbell_platform::http::{Members, read_body, read_bytes};
use doorbell_platform::problem::Problem;
use doorbell_platform::store::Store;
use doorbell_platform::store::records::{Lookup, Stored};
use doorbell_platform::{clock, ids};
use serde_json::{Value, json};

use crate::audit::Done;
use crate::etag::{TRIES, check_match, contended, etag, if_match};
use crate::event_types;
use crate::form::{self, Form};
use crate::idempotency::Repeatable;
use crate::list;
use crate::room::Room;
use crate::rotation;
use crate::routes::{Api, trouble, turn};
use crate::select::{self, SelectQuery};
use crate::tenants::{existing, tenant_id};
use crate::verification::{ask_later, ask_now};
use crate::view;

/// The largest body of a subscription.
pub(crate) const MAX_BODY: usize = 128 * 1024;
/// How long a change takes at most to be in force in every dispatcher.
const IN_FORCE: Duration = Duration::from_secs(2);
/// How many secrets may sign at once.
const MAX_LIVE_SECRETS: usize = 10;

pub(crate) async fn create(
    State(api): State<Api>,
    Path(tenant): Path<String>,
    repeatable: Option<Extension<Repeatable>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let tenant = tenant_id(&tenant)?;
    let body = read_body(&headers, body, &["application/json"], MAX_BODY).await?;
    let form = api.in_turn(&tenant, || form::create(&body, &api.rules)).await?;
    let repeatable = repeatable.map(|Extension(repeatable)| repeatable);
    let subscription = create_once(&api.store, &tenant, repeatable, form).await?;
    let secret = newest_secret(&subscription)?;
    let mut answer = view::subscription(&subscription);
    let done = Done::to(&subscription.id, &Value::Null, &answer);
    add_warnings(&api, &subscription, &mut answer).await;
    answer["secret"] = secret.reveal().into();
    let location = format!("/v1/tenants/{}/subscriptions/{}", subscription.tenant, subscription.id);
    let headers = [(header::ETAG, etag(&subscription.version)), (header::LOCATION, location)];
    Ok((StatusCode::CREATED, headers, Extension(done), Json(answer)).into_response())
}

/// Writes a new subscription, or what is left to write of the one that the same request has begun before.
async fn create_once(
    store: &Store,
    tenant: &TenantId,
    repeatable: Option<Repeatable>,
    form: Form,
) -> Result<Subscription, Problem> {
    let making = match &repeatable {
        Some(repeatable) => repeatable.making(store).await?,
        None => None,
    };
    let mut begun = making.and_then(|id| id.parse::<SubscriptionId>().ok());
    if let Some(id) = &begun {
        match store.subscription(id).await.map_err(trouble)? {
            Lookup::Live(stored) => {
                let made = [stored.subscription];
                store.link_created(tenant, &made).await.map_err(trouble)?;
                let [made] = made;
                return Ok(made);
            }
            Lookup::Missing => {}
            // It was made, and someone has deleted it since.
            Lookup::Deleted => begun = None,
        }
    }
    let room = Room::of(store, tenant).await?;
    room.check(1)?;
    room.use_up(store, 1).await?;
    let id = match begun {
        Some(id) => id,
        None => {
            let new = store.new_subscription_ids(1).await.map_err(trouble)?.pop();
            new.ok_or_else(|| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "there is no id"))?
        }
    };
    if let Some(repeatable) = &repeatable {
        repeatable.make(store, &id.to_string()).await?;
    }
    let subscription = new_subscription(id, tenant.clone(), form)?;
    write(store, tenant, std::slice::from_ref(&subscription)).await?;
    Ok(subscription)
}

/// Writes new subscriptions, in the order of their forms, whatever room there is.
pub(crate) async fn write_all(
    store: &Store,
    tenant: &TenantId,
    room: &Room,
    forms: Vec<Form>,
) -> Result<Vec<Subscription>, Problem> {
    room.use_up(store, forms.len()).await?;
    let ids = store.new_subscription_ids(forms.len()).await.map_err(trouble)?;
    let subscriptions = ids
        .into_iter()
        .zip(forms)
        .map(|(id, form)| new_subscription(id, tenant.clone(), form))
        .collect::<Result<Vec<Subscription>, Problem>>()?;
    write(store, tenant, &subscriptions).await?;
    Ok(subscriptions)
}

async fn write(
    store: &Store,
    tenant: &TenantId,
    subscriptions: &[Subscription],
) -> Result<(), Problem> {
    ask_later(store, tenant, subscriptions).await.map_err(trouble)?;
    store.create_subscriptions(tenant, subscriptions).await.map_err(trouble)?;
    ask_now(store, tenant, subscriptions).await;
    Ok(())
}

/// The secret that a new subscription's receiver is to know.
pub(crate) fn newest_secret(subscription: &Subscription) -> Result<&Secret, Problem> {
    let newest = subscription.secrets.first().map(|newest| &newest.secret);
    newest.ok_or_else(|| {
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the subscription has no secret")
    })
}

pub(crate) async fn list(
    State(api): State<Api>,
    Path(tenant): Path<String>,
    query: Result<Query<SelectQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let (page, selection) = select::read(query)?;
    let tenant = existing(&api, &tenant).await?;
    let _turn = turn(&api.lists, &tenant.id).await?;
    let (found, next) = select::find(&api.store, &tenant.id, &page, &selection).await?;
    let data: Vec<Value> = found.iter().map(view::subscription).collect();
    Ok(list::answer(&data, next.as_ref().map(ToString::to_string).as_deref()))
}

pub(crate) async fn show(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
) -> Result<Response, Problem> {
    let stored = find(&api, &path).await?;
    Ok(shown(&stored.subscription))
}

pub(crate) async fn patch(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let types = ["application/merge-patch+json", "application/json"];
    let body = read_body(&headers, body, &types, MAX_BODY).await?;
    let members = Members::read(&body);
    let change = |stored: &Stored| {
        check_match(if_match(&headers).as_deref(), Some(&stored.subscription.version))?;
        let members = members.as_ref().map_err(Clone::clone)?;
        form::patch(members, &stored.subscription, &api.rules)
            .map(|form| form.changed(&stored.subscription))
    };
    let (before, changed) = update(&api, &path, change).await?;
    let mut answer = view::subscription(&changed);
    let done = Done::to(&changed.id, &view::subscription(&before), &answer);
    add_warnings(&api, &changed, &mut answer).await;
    let headers = [(header::ETAG, etag(&changed.version))];
    Ok((Extension(done), headers, Json(answer)).into_response())
}

pub(crate) async fn delete(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let deleted = delete_one(&api, &path, if_match(&headers).as_deref()).await?;
    let done = Done::to(&deleted.id, &view::subscription(&deleted), &Value::Null);
    Ok((StatusCode::NO_CONTENT, Extension(done)).into_response())
}

/// Deletes a subscription as it is now; answers what it was.
pub(crate) async fn delete_one(
    api: &Api,
    path: &(String, String),
    if_match: Option<&str>,
) -> Result<Subscription, Problem> {
    for _ in 0..TRIES {
        let stored = find(api, path).await?;
        check_match(if_match, Some(&stored.subscription.version))?;
        if api.store.delete_subscription(&stored, clock::now()).await.map_err(trouble)? {
            return Ok(stored.subscription);
        }
    }
    Err(contended("the subscription"))
}

pub(crate) async fn secret(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let stored = find(&api, &path).await?;
    Ok(Json(
        json!({ "secret": stored.subscription.secrets.first().map(|newest| newest.secret.reveal()) }),
    ))
}

pub(crate) async fn rotate(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let overlap = rotation::overlap(&read_bytes(body, MAX_BODY).await?)?;
    let secret = new_secret()?;
    let change = |stored: &Stored| {
        let now = clock::now();
        let mut changed = stored.subscription.clone();
        let end = now.plus(overlap);
        for older in &mut changed.secrets {
            older.expires_at = Some(older.expires_at.map_or(end, |earlier| earlier.min(end)));
        }
        changed.secrets.retain(|older| older.expires_at.is_some_and(|at| now < at));
        let asymmetric = stored.subscription.public_key().is_some();
        changed.secrets.insert(0, signing_secret(secret.clone(), asymmetric));
        if changed.secrets.len() > MAX_LIVE_SECRETS {
            let detail = format!(
                "{MAX_LIVE_SECRETS} secrets sign already: wait until one expires, or rotate with a shorter overlap"
            );
            return Err(Problem::new(StatusCode::CONFLICT, detail));
        }
        Ok(changed)
    };
    update(&api, &path, change).await?;
    // Whoever learns the new secret may use it at once, so every dispatcher signs with it first.
    tokio::time::sleep(IN_FORCE).await;
    Ok(Json(json!({ "secret": secret.reveal() })))
}

pub(crate) async fn test(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let stored = find(&api, &path).await?;
    api.errands.test(&stored.subscription).await.map(Json)
}

/// The subscription in a path, which must be there and the tenant's own.
pub(crate) async fn find(api: &Api, (tenant, id): &(String, String)) -> Result<Stored, Problem> {
    let tenant = tenant_id(tenant)?;
    let absent =
        || Problem::new(StatusCode::NOT_FOUND, format!("tenant {tenant} has no such subscription"));
    let id: SubscriptionId = id.parse().map_err(|_| absent())?;
    match api.store.subscription(&id).await.map_err(trouble)? {
        Lookup::Live(stored) if stored.subscription.tenant == tenant => Ok(*stored),
        Lookup::Live(_) | Lookup::Deleted | Lookup::Missing => Err(absent()),
    }
}

/// Changes a subscription as it is now, again if someone else was quicker; answers what it was before,
/// and what it is now.
pub(crate) async fn update(
    api: &Api,
    path: &(String, String),
    change: impl Fn(&Stored) -> Result<Subscription, Problem>,
) -> Result<(Subscription, Subscription), Problem> {
    for _ in 0..TRIES {
        let stored = find(api, path).await?;
        let tenant = &stored.subscription.tenant;
        let mut changed = api.in_turn(tenant, || change(&stored)).await?;
        changed.updated_at = clock::now();
        changed.version = ids::token();
        let (store, tenant) = (&api.store, &changed.tenant);
        let one = std::slice::from_ref(&changed);
        ask_later(store, tenant, one).await.map_err(trouble)?;
        if store.update_subscription(&stored, &changed).await.map_err(trouble)? {
            ask_now(store, tenant, one).await;
            return Ok((stored.subscription, changed));
        }
    }
    Err(contended("the subscription"))
}

/// Says what may be a mistake, and is done all the same.
async fn add_warnings(api: &Api, subscription: &Subscription, answer: &mut Value) {
    let warnings = event_types::warnings(&event_types::names(api).await, &subscription.events);
    if !warnings.is_empty() {
        answer["warnings"] = json!(warnings);
    }
}

fn shown(subscription: &Subscription) -> Response {
    ([(header::ETAG, etag(&subscription.version))], Json(view::subscription(subscription)))
        .into_response()
}

fn new_secret() -> Result<Secret, Problem> {
    Secret::from_key(&clock::random_bytes::<32>())
        .map_err(|error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))
}

fn signing_secret(secret: Secret, asymmetric: bool) -> SigningSecret {
    let asymmetric = asymmetric.then(|| AsymmetricKey::from_seed(&clock::random_bytes()));
    SigningSecret { secret, asymmetric, expires_at: None }
}

pub(crate) fn new_subscription(
    id: SubscriptionId,
    tenant: TenantId,
    form: Form,
) -> Result<Subscription, Problem> {
    let (now, secret) = (clock::now(), new_secret()?);
    Ok(Subscription {
        id,
        tenant,
        name: form.name,
        url: form.url,
        events: form.events,
        filter: form.filter,
        template: form.template.map(Box::new),
        status: form.status,
        disabled_reason: (form.status == Status::Disabled).then_some(DisabledReason::Manual),
        description: form.description,
        metadata: form.metadata,
        payload: form.payload,
        headers: form.headers,
        timeout: form.timeout,
        retry: form.retry,
        rate_limit: form.rate_limit,
        max_concurrency: form.max_concurrency,
        signature: form.signature,
        verification: form.verification,
        verified_endpoint: None,
        secrets: vec![signing_secret(secret, form.asymmetric_signature)],
        created_at: now,
        updated_at: now,
        version: ids::token(),
    })
}
