//! Has endpoints asked whether they want our POSTs: soon after a subscription or its URL is new, and
//! whenever its holder asks for it. Until one has said yes its deliveries are kept.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use doorbell_common::subscription::Subscription;
use doorbell_platform::problem::Problem;
use doorbell_platform::shutdown::Shutdown;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use crate::routes::Api;
use crate::subscriptions::{find, update};

/// Endpoints that may wait to be asked. What finds no room is asked when its holder wants it.
const WAITING: usize = 10_000;
/// How often that is tried, and the pause between, while no dispatcher can be reached.
const TRIES: u32 = 12;
const AGAIN: Duration = Duration::from_secs(5);
/// Endpoints that are asked at once.
const AT_ONCE: usize = 16;

/// Subscriptions whose endpoints are to be asked soon.
#[derive(Clone, Debug)]
pub(crate) struct Verifier(mpsc::Sender<(String, String)>);

/// The other end.
pub(crate) type Unverified = mpsc::Receiver<(String, String)>;

impl Verifier {
    pub(crate) fn new() -> (Self, Unverified) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Has an endpoint asked soon, if it must be.
    pub(crate) fn ask_soon(&self, subscription: &Subscription) {
        if subscription.is_verified() {
            return;
        }
        let path = (subscription.tenant.to_string(), subscription.id.to_string());
        if self.0.try_send(path).is_err() {
            tracing::warn!(subscription.id = %subscription.id, "too many endpoints wait to be verified: this one is not asked by itself");
        }
    }
}

/// Asks one endpoint after the other, several at once, until the service is told to stop.
pub(crate) async fn ask_all(api: Api, mut unverified: Unverified, shutdown: Shutdown) {
    let asking = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(Some(path)) = shutdown.until(unverified.recv()).await {
        let Ok(permit) = Arc::clone(&asking).acquire_owned().await else { return };
        let (api, stopping) = (api.clone(), shutdown.clone());
        shutdown.spawn(async move {
            let _stopped = stopping.until(ask_patiently(&api, &path)).await.is_none();
            drop(permit);
        });
    }
}

/// Asks an endpoint, again and again while that fails by our own trouble.
async fn ask_patiently(api: &Api, path: &(String, String)) {
    for _ in 0..TRIES {
        match ask(api, path).await {
            Ok(answer) => {
                tracing::debug!(subscription.id = path.1, %answer, "endpoint asked");
                return;
            }
            Err(problem) if problem.status() == StatusCode::SERVICE_UNAVAILABLE.as_u16() => {
                tokio::time::sleep(AGAIN).await;
            }
            // Deleted, most likely.
            Err(problem) => {
                tracing::debug!(subscription.id = path.1, ?problem, "endpoint not asked");
                return;
            }
        }
    }
    tracing::warn!(
        subscription.id = path.1,
        "an endpoint is not asked by itself: no dispatcher answers"
    );
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
    let verified = answer["verified"] == true;
    if verified {
        update(api, path, |stored| {
            let mut changed = stored.subscription.clone();
            // Another URL than the one that was asked is another endpoint.
            changed.verified_endpoint = Some(endpoint.clone());
            Ok(changed)
        })
        .await?;
    }
    Ok(json!({ "verified": verified, "detail": answer["detail"] }))
}
