//! Has every secret sealed with the active key, in the background: after a start, and every hour.
//! Whoever changes the list of keys restarts the control-plane, and watches here until that is done.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use doorbell_common::ids::SlotNumber;
use doorbell_platform::problem::Problem;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::lease::Lease;
use doorbell_platform::store::sealing::SealingRound;
use doorbell_platform::store::{Store, StoreError};
use doorbell_platform::{clock, ids};
use serde_json::{Value, json};

use crate::routes::{Api, trouble};

/// Between two rounds, of which the second mostly finds nothing to do.
const EVERY: Duration = Duration::from_secs(3600);
/// Between two tries, if another replica is at it, or something went wrong.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a replica that has died keeps others from it.
const LEASE: Duration = Duration::from_secs(30);
/// Slots between two notes of how far it has come.
const NOTED: u32 = 64;

pub(crate) async fn show(State(api): State<Api>) -> Result<Json<Value>, Problem> {
    let round = api.store.sealing().await.map_err(trouble)?.unwrap_or_default();
    let state = match (&round.started_at, &round.finished_at) {
        (None, _) => "not begun",
        (Some(_), None) => "sealing",
        (Some(_), Some(_)) => "done",
    };
    Ok(Json(json!({
        "active_key": api.store.active_sealing_key(),
        "round": {
            "state": state,
            "active_key": round.active_key,
            "slots_done": round.slots_done,
            "slots": round.slots,
            "sealed": round.sealed,
            "failed": round.failed,
            "started_at": round.started_at,
            "finished_at": round.finished_at,
        },
    })))
}

/// Seals anew until the service is told to stop.
pub(crate) async fn keep_sealed(store: Store, shutdown: Shutdown) {
    let owner = ids::token();
    while let Some(result) = shutdown.until(round(&store, &owner)).await {
        let pause = match result {
            Ok(true) => EVERY,
            Ok(false) => AGAIN,
            Err(error) => {
                tracing::debug!(%error, "not everything is sealed anew");
                AGAIN
            }
        };
        if shutdown.until(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}

/// Goes over all subscriptions, if nobody else does; answers whether it came to its end.
async fn round(store: &Store, owner: &str) -> Result<bool, StoreError> {
    store.announce_sealing_key().await?;
    if !store.lease(Lease::Sealing, owner, LEASE).await? {
        return Ok(false);
    }
    let mut round = SealingRound {
        active_key: store.active_sealing_key().map(str::to_owned),
        slots: store.slots_in_use().await?,
        started_at: Some(clock::now()),
        ..SealingRound::default()
    };
    store.save_sealing(&round).await?;
    for slot in 0..round.slots {
        store.reseal_slot(SlotNumber(slot), &mut round).await?;
        round.slots_done = slot + 1;
        if round.slots_done.is_multiple_of(NOTED) {
            store.save_sealing(&round).await?;
            if !store.lease(Lease::Sealing, owner, LEASE).await? {
                return Ok(false);
            }
        }
    }
    if round.failed == 0 {
        store.retire_sealing_keys().await?;
    }
    round.finished_at = Some(clock::now());
    store.save_sealing(&round).await?;
    if round.sealed > 0 || round.failed > 0 {
        tracing::info!(sealed = round.sealed, failed = round.failed, "secrets are sealed anew");
    }
    Ok(true)
}
