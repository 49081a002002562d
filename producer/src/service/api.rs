//! The producer's routes: one event, or a batch of them.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Extension, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::response::{IntoResponse as _, Response};
use axum::{Json, Router};
use doorbell_common::catalogue::Objection;
use doorbell_common::intake::Refusal;
use doorbell_common::json::InvalidJson;
use doorbell_platform::auth::Caller;
use doorbell_platform::http::{self, Room, read_body};
use doorbell_platform::openapi::Described;
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::{Value, json};

use super::accept::{Accepted, Acceptor, NotAccepted};
use super::idempotency::IdempotencyKey;
use super::openapi;
use super::request::{read_event, wrong_field};

/// The most bytes that a batch may have.
pub(super) const MAX_BATCH_BYTES: usize = 5 * 1024 * 1024;
/// The most events that a batch may have.
const MAX_BATCH_EVENTS: usize = 1000;
/// What a request may have beside the event's data.
const ENVELOPE_BYTES: usize = 16 * 1024;

/// The API's routes, and the document that describes them.
pub(super) fn routes(acceptor: Acceptor) -> (Router, Value) {
    let described = Described::default()
        .serve(openapi::publish(), publish)
        .serve(openapi::publish_batch(), publish_batch);
    let (router, document) = described.finish(openapi::about());
    let room = Room::new(MAX_BATCH_BYTES.max(acceptor.max_event_bytes + ENVELOPE_BYTES));
    let router = router.route_layer(from_fn_with_state(room, http::keep));
    (router.with_state(Arc::new(acceptor)), document)
}

async fn publish(
    State(acceptor): State<Arc<Acceptor>>,
    Extension(caller): Extension<Arc<Caller>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let max = acceptor.max_event_bytes + ENVELOPE_BYTES;
    let body = read_body(&headers, body, &["application/json"], max).await?;
    let carried = Carried::read(&headers)?;
    let accepted = accept(&acceptor, &caller, &carried, (0, &body)).await?;
    let mut answer = json!({ "id": accepted.id, "duplicate": accepted.duplicate });
    if let Some(warning) = &accepted.warning {
        answer["warnings"] = json!([warning.to_string()]);
    }
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

async fn publish_batch(
    State(acceptor): State<Arc<Acceptor>>,
    Extension(caller): Extension<Arc<Caller>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let body = read_body(&headers, body, &["application/x-ndjson"], MAX_BATCH_BYTES).await?;
    let lines: Vec<Bytes> = body
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.trim_ascii().is_empty())
        .map(|line| body.slice_ref(line))
        .collect();
    if lines.len() > MAX_BATCH_EVENTS {
        let detail = format!(
            "a batch may have at most {MAX_BATCH_EVENTS} events; this one has {}",
            lines.len()
        );
        return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
    }
    // With RabbitMQ away, one answer says more than a thousand.
    acceptor.publisher.check().map_err(|error| NotAccepted::Broker(error).into_problem())?;
    let carried = Carried::read(&headers)?;
    let numbered = lines.iter().enumerate();
    let accepting =
        numbered.map(|(n, line)| accept(&acceptor, &caller, &carried, (n, line.as_ref())));
    let results = futures_util::future::join_all(accepting).await.into_iter().map(batch_result);
    Ok(Json(json!({ "results": results.collect::<Vec<Value>>() })))
}

fn batch_result(result: Result<Accepted, Problem>) -> Value {
    match result {
        Ok(Accepted { id, duplicate, warning }) => {
            let mut result = json!({ "id": id, "status": 202 });
            if duplicate {
                result["duplicate"] = true.into();
            }
            if let Some(warning) = warning {
                result["warnings"] = json!([warning.to_string()]);
            }
            result
        }
        Err(problem) => {
            let status = problem.status();
            json!({ "status": status, "problem": problem })
        }
    }
}

/// What the headers of a request say of its events.
struct Carried {
    traceparent: Option<String>,
    tracestate: Option<String>,
    idempotency_key: Option<IdempotencyKey>,
}

impl Carried {
    fn read(headers: &HeaderMap) -> Result<Self, Problem> {
        let text =
            |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let idempotency_key = headers.get("idempotency-key").map(IdempotencyKey::read);
        Ok(Self {
            traceparent: text("traceparent"),
            tracestate: text("tracestate"),
            idempotency_key: idempotency_key.transpose()?,
        })
    }
}

async fn accept(
    acceptor: &Acceptor,
    caller: &Caller,
    carried: &Carried,
    (line, body): (usize, &[u8]),
) -> Result<Accepted, Problem> {
    let read = read_event(body, acceptor.max_event_bytes);
    let mut event = read.inspect_err(|_| acceptor.metrics.rejected.inc())?;
    event.traceparent.clone_from(&carried.traceparent);
    event.tracestate.clone_from(&carried.tracestate);
    if let (None, Some(key)) = (&event.id, &carried.idempotency_key) {
        event.id = Some(key.id_of(&caller.name(), line, body));
    }
    acceptor.accept(&event, caller).await.map_err(NotAccepted::into_problem)
}

impl NotAccepted {
    fn into_problem(self) -> Problem {
        match self {
            Self::Broker(error) => {
                let what = error.for_caller();
                Problem::unavailable(format!("{what}; send the event again with the same id"))
            }
            Self::Objected(objection) => Problem::invalid(match objection {
                Objection::UnknownType(_) => {
                    vec![FieldError::new("/type", "is not in the catalogue of event types")]
                }
                Objection::Schema(places) => places
                    .into_iter()
                    .map(|(place, why)| FieldError::new(format!("/data{place}"), why))
                    .collect(),
            }),
            error @ Self::TooLarge(_) => {
                Problem::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            error @ Self::TooMany(_) => {
                Problem::new(StatusCode::TOO_MANY_REQUESTS, error.to_string()).retry_after(1)
            }
            error @ Self::Removed => Problem::new(StatusCode::CONFLICT, error.to_string()),
            Self::Denied(denied) => Problem::new(StatusCode::FORBIDDEN, denied.to_string()),
            Self::Refused(refusals) => refused(&refusals),
        }
    }
}

/// 413 for too much, whatever other rule is broken; else every field that breaks one.
fn refused(refusals: &[Refusal]) -> Problem {
    for refusal in refusals {
        if let Refusal::Data(error @ InvalidJson::TooLarge { .. }) = refusal {
            return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("data {error}"));
        }
    }
    Problem::invalid(refusals.iter().map(wrong_field).collect())
}
