//! Creates, changes or deletes many subscriptions in one call: a form, an id and a merge patch, or an id
//! on each line comes in, a result on each line goes out while the next ones are read, so a million need
//! no more memory than a few.

use std::time::Duration;

use axum::body::{Body, BodyDataStream, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use doorbell_common::ids::{SubscriptionId, TenantId};
use doorbell_common::json::pointer;
use doorbell_common::subscription::Subscription;
use doorbell_platform::http::{Members, check_type};
use doorbell_platform::problem::{FieldError, Problem};
use doorbell_platform::store::Store;
use doorbell_platform::store::records::Stored;
use futures_util::StreamExt as _;
use serde_json::{Value, json};

use crate::form::{self, Form};
use crate::lines::{Line, Lines};
use crate::room::Room;
use crate::routes::Api;
use crate::subscriptions::{MAX_BODY, delete_one, newest_secret, update as update_one, write_all};
use crate::tenants::tenant_id;

const NDJSON: &str = "application/x-ndjson";
/// Subscriptions written in one go.
const BATCH: usize = 256;
/// How long the next lines may take to come.
const PATIENCE: Duration = Duration::from_secs(40);

/// What is done with each line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Create,
    Update,
    Delete,
}

impl Operation {
    /// What was done with a line, in the last line of the answer.
    fn done(self) -> &'static str {
        match self {
            Self::Create => "created",
            Self::Update => "updated",
            Self::Delete => "deleted",
        }
    }
}

pub(crate) async fn create(
    State(api): State<Api>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    answer(api, &tenant, (&headers, body), Operation::Create).await
}

pub(crate) async fn update(
    State(api): State<Api>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    answer(api, &tenant, (&headers, body), Operation::Update).await
}

pub(crate) async fn delete(
    State(api): State<Api>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    answer(api, &tenant, (&headers, body), Operation::Delete).await
}

async fn answer(
    api: Api,
    tenant: &str,
    (headers, body): (&HeaderMap, Body),
    operation: Operation,
) -> Result<Response, Problem> {
    let tenant = tenant_id(tenant)?;
    let body = check_type(headers, body, &[NDJSON]).await?;
    let bulk = Bulk {
        api,
        tenant,
        operation,
        body: body.into_data_stream(),
        lines: Lines::new(MAX_BODY),
        read: 0,
        done: 0,
        refused: 0,
        is_over: false,
    };
    let answer = futures_util::stream::unfold(bulk, |mut bulk| async move {
        let text = bulk.next().await?;
        Some((Ok::<Bytes, std::convert::Infallible>(text.into()), bulk))
    });
    Ok(([(header::CONTENT_TYPE, NDJSON)], Body::from_stream(answer)).into_response())
}

/// One call, as far as it has come.
struct Bulk {
    api: Api,
    tenant: TenantId,
    operation: Operation,
    body: BodyDataStream,
    lines: Lines,
    /// Lines read, empty ones included: what a text editor counts.
    read: u64,
    done: u64,
    refused: u64,
    is_over: bool,
}

impl Bulk {
    /// The results of the next lines; `None` after the last.
    async fn next(&mut self) -> Option<String> {
        if self.is_over {
            return None;
        }
        match tokio::time::timeout(PATIENCE, self.body.next()).await {
            Ok(Some(Ok(chunk))) => {
                let lines = self.lines.push(&chunk);
                Some(self.work(lines).await)
            }
            Ok(None) => {
                let last = self.lines.end();
                let mut text = self.work(last.into_iter().collect()).await;
                self.is_over = true;
                let done = self.operation.done();
                text.push_str(&line(&json!({ done: self.done, "refused": self.refused })));
                Some(text)
            }
            Ok(Some(Err(_))) => Some(self.break_off("the body broke off")),
            Err(_) => Some(self.break_off("the next line took too long to come")),
        }
    }

    /// Ends the call early. What has a result stands.
    fn break_off(&mut self, why: &str) -> String {
        self.is_over = true;
        line(&json!({ "problem": Problem::new(StatusCode::BAD_REQUEST, why) }))
    }

    /// The results of these lines.
    async fn work(&mut self, lines: Vec<Line>) -> String {
        let mut text = String::new();
        for batch in lines.chunks(BATCH) {
            match self.operation {
                Operation::Create => text.push_str(&self.create_lines(batch).await),
                Operation::Update | Operation::Delete => {
                    text.push_str(&self.change_lines(batch).await);
                }
            }
        }
        text
    }

    /// Works on each line by itself, and on all of them at once.
    async fn change_lines(&mut self, lines: &[Line]) -> String {
        let mut numbered = Vec::new();
        for line in lines {
            self.read += 1;
            match line {
                Line::Text(bytes) if bytes.trim_ascii().is_empty() => {}
                Line::Text(_) | Line::TooLong => numbered.push((self.read, line)),
            }
        }
        let (api, tenant, operation) = (self.api.clone(), self.tenant.clone(), self.operation);
        let changing = numbered.into_iter().map(|(number, line)| {
            let (api, tenant) = (&api, &tenant);
            async move { (number, change_line(api, tenant, line, operation).await) }
        });
        let mut text = String::new();
        for (number, changed) in futures_util::future::join_all(changing).await {
            let result = match changed {
                Ok((status, id)) => {
                    self.done += 1;
                    json!({ "line": number, "status": status.as_u16(), "id": id })
                }
                Err(problem) => self.refuse(number, &problem),
            };
            text.push_str(&line(&result));
        }
        text
    }

    async fn create_lines(&mut self, lines: &[Line]) -> String {
        let (mut results, mut forms) = (Vec::new(), Vec::new());
        for entry in lines {
            self.read += 1;
            let form = match entry {
                Line::Text(bytes) if bytes.trim_ascii().is_empty() => continue,
                Line::Text(bytes) => {
                    let read = || form::create(bytes, &self.api.rules);
                    self.api.in_turn(&self.tenant, read).await
                }
                Line::TooLong => Err(too_long()),
            };
            match form {
                Ok(form) => {
                    results.push((self.read, Ok(forms.len())));
                    forms.push(form);
                }
                Err(problem) => results.push((self.read, Err(problem))),
            }
        }
        let created = create_forms(&self.api.store, &self.tenant, forms).await;
        let mut text = String::new();
        for (number, result) in results {
            text.push_str(&line(&self.answer(number, result, &created)));
        }
        text
    }

    /// The result of one line: what became of its form, which is at a place among those created.
    fn answer(
        &mut self,
        number: u64,
        form: Result<usize, Problem>,
        created: &Result<(Vec<Subscription>, Problem), Problem>,
    ) -> Value {
        let place = match form {
            Ok(place) => place,
            Err(problem) => return self.refuse(number, &problem),
        };
        let subscription = match created {
            Ok((created, used_up)) => match created.get(place) {
                Some(subscription) => subscription,
                None => return self.refuse(number, used_up),
            },
            Err(problem) => return self.refuse(number, problem),
        };
        match newest_secret(subscription) {
            Ok(secret) => {
                self.done += 1;
                json!({ "line": number, "status": 201, "id": subscription.id, "secret": secret.reveal() })
            }
            Err(problem) => self.refuse(number, &problem),
        }
    }

    fn refuse(&mut self, number: u64, problem: &Problem) -> Value {
        self.refused += 1;
        json!({ "line": number, "status": problem.status(), "problem": problem })
    }
}

/// Creates as many as the tenant may have; answers those, and the problem of the others.
async fn create_forms(
    store: &Store,
    tenant: &TenantId,
    mut forms: Vec<Form>,
) -> Result<(Vec<Subscription>, Problem), Problem> {
    let room = Room::of(store, tenant).await?;
    forms.truncate(room.left().unwrap_or(usize::MAX));
    let created =
        if forms.is_empty() { vec![] } else { write_all(store, tenant, &room, forms).await? };
    Ok((created, room.used_up()))
}

/// Changes or deletes the subscription that a line is about.
async fn change_line(
    api: &Api,
    tenant: &TenantId,
    line: &Line,
    operation: Operation,
) -> Result<(StatusCode, SubscriptionId), Problem> {
    let Line::Text(bytes) = line else { return Err(too_long()) };
    let (id, rest) = read_line(bytes)?;
    let path = (tenant.to_string(), id);
    if operation == Operation::Update {
        let patch = |stored: &Stored| {
            let form = form::patch(&rest, &stored.subscription, &api.rules)?;
            Ok(form.changed(&stored.subscription))
        };
        let (_, changed) = update_one(api, &path, patch).await?;
        return Ok((StatusCode::OK, changed.id));
    }
    if let Some((name, _)) = rest.0.first() {
        let detail = "is not a field of a line";
        return Err(Problem::invalid(vec![FieldError::new(pointer(name), detail)]));
    }
    let deleted = delete_one(api, &path, None).await?;
    Ok((StatusCode::NO_CONTENT, deleted.id))
}

/// The id on a line `{"id": "sub_…"}`, and what else there is.
fn read_line(bytes: &[u8]) -> Result<(String, Members), Problem> {
    let wrong = |detail| Problem::invalid(vec![FieldError::new("/id", detail)]);
    let Members(mut members) = Members::read(bytes)?;
    let place = members.iter().position(|(name, _)| name == "id");
    let id = members.remove(place.ok_or_else(|| wrong("is required"))?).1;
    let id = serde_json::from_str::<String>(id.get()).map_err(|_| wrong("must be a string"))?;
    Ok((id, Members(members)))
}

fn too_long() -> Problem {
    let detail = format!("a line may have at most {MAX_BODY} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
}

fn line(value: &Value) -> String {
    format!("{value}\n")
}
