//! Has the payload of an event removed wherever it still is, and says when that is done; and when what a
//! deleted tenant had is gone.

use axum::Json;
use axum::extract::{Extension, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use doorbell_common::ids::{Addressee, EventId};
use doorbell_common::removal::{Removal, Removed};
use doorbell_platform::clock;
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::{Value, json};

use crate::audit::Done;
use crate::routes::{Api, trouble};
use crate::tenants::tenant_id;

/// Events that may be being removed at once: each service that has events in hand knows them all.
const MOST: usize = 10_000;

/// It is not asked whether there is such an event: nobody keeps a list of them.
pub(crate) async fn remove_event(
    State(api): State<Api>,
    Path((tenant, id)): Path<(String, String)>,
) -> Result<Response, Problem> {
    let (tenant, event) = event(&tenant, &id)?;
    let what = Removed::Event(tenant.clone(), event.clone());
    let removal = api.store.remove(&what, clock::now(), MOST).await.map_err(trouble)?;
    let removal = removal.ok_or_else(|| {
        let detail = format!("{MOST} events are being removed, which is the most at once");
        Problem::new(StatusCode::CONFLICT, detail)
    })?;
    let location = format!("/v1/tenants/{tenant}/events/{event}/removal");
    let headers = [(header::LOCATION, location)];
    let done = Done::to(&event, &Value::Null, &Value::Null);
    Ok((StatusCode::ACCEPTED, headers, Extension(done), Json(view(removal))).into_response())
}

pub(crate) async fn show_of_event(
    State(api): State<Api>,
    Path((tenant, id)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    let (tenant, event) = event(&tenant, &id)?;
    show(&api, &Removed::Event(tenant, event)).await
}

pub(crate) async fn show_of_tenant(
    State(api): State<Api>,
    Path(tenant): Path<String>,
) -> Result<Json<Value>, Problem> {
    show(&api, &Removed::Tenant(tenant_id(&tenant)?)).await
}

async fn show(api: &Api, what: &Removed) -> Result<Json<Value>, Problem> {
    let removal = api.store.removal(what).await.map_err(trouble)?;
    let absent = || Problem::new(StatusCode::NOT_FOUND, "nobody has asked for this to be removed");
    removal.map(|removal| Json(view(removal))).ok_or_else(absent)
}

/// The event in a path; the tenant may be `*`, for a broadcast.
fn event(tenant: &str, id: &str) -> Result<(Addressee, EventId), Problem> {
    let wrong = |place: &str, why: String| {
        FieldError::new(format!("/{place}"), format!("the {place} in the path {why}"))
    };
    let tenant: Result<Addressee, _> = tenant.parse();
    let id: Result<EventId, _> = id.parse();
    match (tenant, id) {
        (Ok(tenant), Ok(id)) => Ok((tenant, id)),
        (tenant, id) => Err(Problem::invalid(
            [
                tenant.err().map(|error| wrong("tenant", error.to_string())),
                id.err().map(|error| wrong("event", error.to_string())),
            ]
            .into_iter()
            .flatten()
            .collect(),
        )),
    }
}

fn view(removal: Removal) -> Value {
    let state = if removal.is_done(clock::now()) { "done" } else { "removing" };
    json!({ "state": state, "requested_at": removal.requested_at, "gone_by": removal.gone_by() })
}
