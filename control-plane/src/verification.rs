//! Has endpoints asked whether they want our POSTs: soon after a subscription or its URL is new, a few
//! times more if the answer is no, and whenever its holder asks for it. Until one has said yes its
//! deliveries are kept.
//!
//! Whom to ask is in the store, so it outlives us, and each replica asks some.

use std::collections::HashMap;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use doorbell_common::ids::TenantId;
use doorbell_common::subscription::Subscription;
use doorbell_platform::clock;
use doorbell_platform::problem::Problem;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::unverified::Due;
use doorbell_platform::store::{Store, StoreError};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use serde_json::{Value, json};

use crate::routes::Api;
use crate::subscriptions::{find, update};

/// Endpoints that are asked at once, and how many of these may be one tenant's.
const AT_ONCE: usize = 32;
const OF_ONE_TENANT: usize = 8;
/// How often to look who is to be asked, and while someone is.
const LOOK: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// When to ask where that fails by our own trouble: no dispatcher answers, most likely, or we die.
const AGAIN: Duration = Duration::from_secs(5);

/// Plans to ask those endpoints soon that must be: before the subscriptions are written, in case we die
/// over that, and not at once, because what is there until then needs no asking.
pub(crate) async fn ask_later(
    store: &Store,
    tenant: &TenantId,
    subscriptions: &[Subscription],
) -> Result<(), StoreError> {
    plan(store, tenant, subscriptions, AGAIN).await
}

/// The same once they are written: now. Should that not be planned, they are asked a little later.
pub(crate) async fn ask_now(store: &Store, tenant: &TenantId, subscriptions: &[Subscription]) {
    if let Err(error) = plan(store, tenant, subscriptions, Duration::ZERO).await {
        tracing::debug!(%error, "endpoints are asked a little later");
    }
}

async fn plan(
    store: &Store,
    tenant: &TenantId,
    subscriptions: &[Subscription],
    after: Duration,
) -> Result<(), StoreError> {
    let unverified = subscriptions.iter().filter(|subscription| !subscription.is_verified());
    let at = clock::now().plus(after);
    store.plan_to_ask(tenant, unverified.map(|each| &each.id), (at, 0)).await
}

/// Asks those whose time has come, several at once and in turn among tenants, until the service is told
/// to stop.
pub(crate) async fn ask_all(api: Api, shutdown: Shutdown) {
    let mut asking = FuturesUnordered::new();
    let mut of_tenants: HashMap<TenantId, usize> = HashMap::new();
    let mut pause = LOOK;
    loop {
        tokio::select! {
            () = shutdown.stopping() => return,
            Some(tenant) = asking.next() => {
                if let Some(count) = of_tenants.get_mut(&tenant) {
                    *count -= 1;
                }
                of_tenants.retain(|_, count| *count > 0);
            }
            () = tokio::time::sleep(pause) => {
                let room = AT_ONCE.saturating_sub(asking.len());
                let taken = take(&api.store, room, &of_tenants).await.unwrap_or_else(|error| {
                    tracing::debug!(%error, "nobody is asked");
                    vec![]
                });
                pause = if asking.is_empty() && taken.is_empty() { LOOK } else { LOOK_AGAIN };
                for (tenant, due) in taken {
                    *of_tenants.entry(tenant.clone()).or_default() += 1;
                    asking.push(ask_one(&api, tenant, due));
                }
            }
        }
    }
}

/// Some of those who are to be asked now.
async fn take(
    store: &Store,
    mut room: usize,
    of_tenants: &HashMap<TenantId, usize>,
) -> Result<Vec<(TenantId, Due)>, StoreError> {
    let (now, mut taken) = (clock::now(), Vec::new());
    if room == 0 || !store.is_up() {
        return Ok(taken);
    }
    for tenant in store.tenants_to_ask(now, AT_ONCE).await? {
        let begun = of_tenants.get(&tenant).copied().unwrap_or_default();
        let most = OF_ONE_TENANT.saturating_sub(begun).min(room);
        if most > 0 {
            let due = store.take_to_ask(&tenant, now, most).await?;
            room -= due.len();
            taken.extend(due.into_iter().map(|due| (tenant.clone(), due)));
        }
    }
    Ok(taken)
}

async fn ask_one(api: &Api, tenant: TenantId, due: Due) -> TenantId {
    let path = (tenant.to_string(), due.id.to_string());
    let asked = ask(api, &path).await;
    tracing::debug!(subscription.id = path.1, tries = due.tries, ?asked, "endpoint asked");
    let settled = match next(&asked, due.tries) {
        Next::AsPlanned => Ok(()),
        Next::Never => api.store.is_asked(&tenant, &due).await,
        Next::Soon => {
            let again = (clock::now().plus(AGAIN), due.tries);
            api.store.plan_to_ask(&tenant, std::iter::once(&due.id), again).await
        }
    };
    if let Err(error) = settled {
        tracing::debug!(%error, "an endpoint is asked once more");
    }
    tenant
}

/// When an endpoint is asked again that has just been asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// When that was planned anyway.
    AsPlanned,
    /// As if it had not been asked.
    Soon,
    Never,
}

fn next(asked: &Result<Value, Problem>, tries: u64) -> Next {
    match asked {
        Ok(answer) if answer["verified"] == true => Next::Never,
        Ok(_) => Next::AsPlanned,
        Err(problem) if problem.status() != StatusCode::NOT_FOUND.as_u16() => Next::Soon,
        // Not there yet, or not any more.
        Err(_) if tries == 0 => Next::AsPlanned,
        Err(_) => Next::Never,
    }
}

pub(crate) async fn verify(
    State(api): State<Api>,
    Path(path): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    ask(&api, &path).await.map(Json)
}

/// Asks an endpoint, and remembers a yes.
async fn ask(api: &Api, path: &(String, String)) -> Result<Value, Problem> {
    let stored = find(api, path).await?;
    if stored.subscription.is_verified() {
        return Ok(json!({ "verified": true, "detail": "" }));
    }
    let answer = api.errands.verify(&stored.subscription).await?;
    let endpoint = answer["endpoint"].as_str().unwrap_or_default().to_owned();
    let mut verified = answer["verified"] == true;
    if verified {
        let (_, changed) = update(api, path, |stored| {
            let mut changed = stored.subscription.clone();
            changed.verified_endpoint = Some(endpoint.clone());
            Ok(changed)
        })
        .await?;
        // Another URL than the one that was asked is another endpoint.
        verified = changed.is_verified();
    }
    Ok(json!({ "verified": verified, "detail": answer["detail"] }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_yes_and_what_is_gone_are_not_asked_again() {
        let failed = |status| Err(Problem::new(status, "it failed"));
        for (asked, tries, expected) in [
            (Ok(json!({"verified": true})), 0, Next::Never),
            (Ok(json!({"verified": false})), 3, Next::AsPlanned),
            (failed(StatusCode::NOT_FOUND), 0, Next::AsPlanned),
            (failed(StatusCode::NOT_FOUND), 1, Next::Never),
            (failed(StatusCode::SERVICE_UNAVAILABLE), 1, Next::Soon),
            // So many of the tenant's endpoints are being called.
            (failed(StatusCode::TOO_MANY_REQUESTS), 1, Next::Soon),
            (failed(StatusCode::CONFLICT), 1, Next::Soon),
        ] {
            assert_eq!(next(&asked, tries), expected, "{asked:?}");
        }
    }
}
