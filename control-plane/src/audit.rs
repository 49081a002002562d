//! Notes who changed what, when, and from where: after each call that has changed something, or shown a
//! secret. Entries are bounded, in size and number, and have no secret in them.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Extension, MatchedPath, Query, RawPathParams, Request, State};
use axum::http::{HeaderMap, Method};
use axum::middleware::Next;
use axum::response::Response;
use doorbell_platform::auth::Caller;
use doorbell_platform::clock;
use doorbell_platform::http::RequestId;
use doorbell_platform::problem::Problem;
use doorbell_platform::store::audit::AuditEntry;
use serde_json::{Map, Value, json};

use crate::list::{self, ListQuery, page};
use crate::routes::{Api, trouble};

/// The longest value that is noted as it is.
const MAX_VALUE: usize = 1000;
/// The longest that is noted of what a proxy says.
const MAX_FORWARDED: usize = 200;

/// What a call has done, for its entry. Calls put it into their answer's extensions; those that were
/// cut off in the middle do, too.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Done {
    /// What it was done to, where the path does not say it.
    pub(crate) subject: Option<String>,
    /// Whose that is, where the path does not say it.
    pub(crate) tenant: Option<String>,
    changes: Value,
    /// Whether it was as it was to be already.
    is_nothing: bool,
}

impl Done {
    /// It was as it was to be already.
    pub(crate) fn nothing() -> Self {
        Self { is_nothing: true, ..Self::default() }
    }

    /// What differs between two states as the API shows them; `null` is one that is not there.
    pub(crate) fn to(subject: &impl ToString, before: &Value, after: &Value) -> Self {
        Self {
            subject: Some(subject.to_string()),
            changes: differences(before, after, redacted),
            ..Self::default()
        }
    }

    /// The same, of this tenant's.
    pub(crate) fn of(mut self, tenant: &impl ToString) -> Self {
        self.tenant = Some(tenant.to_string());
        self
    }
}

/// What differs between two states as the API shows them, from what to what, each value as it is to be
/// shown.
pub(crate) fn differences(
    before: &Value,
    after: &Value,
    show: impl Fn(&str, &Value) -> Value,
) -> Value {
    let mut changes = Map::new();
    let none = Map::new();
    let (before, after) = (before.as_object().unwrap_or(&none), after.as_object().unwrap_or(&none));
    for name in before.keys().chain(after.keys()) {
        let (from, to) = (before.get(name), after.get(name));
        if from != to && name != "updated_at" && !changes.contains_key(name) {
            let shown =
                |value: Option<&Value>| value.map_or(Value::Null, |value| show(name, value));
            changes.insert(name.clone(), json!({ "from": shown(from), "to": shown(to) }));
        }
    }
    Value::Object(changes)
}

/// A value without what only its holder should know, and not too long.
fn redacted(name: &str, value: &Value) -> Value {
    let value = match (name, value) {
        ("headers", Value::Object(headers)) => {
            headers.keys().map(|name| (name.clone(), "***".into())).collect::<Map<_, _>>().into()
        }
        // Queries often have tokens in them.
        ("url", Value::String(url)) => match url.split_once('?') {
            Some((address, _)) => format!("{address}?***").into(),
            None => value.clone(),
        },
        _ => value.clone(),
    };
    let length = value.to_string().len();
    if length > MAX_VALUE { format!("({length} bytes)").into() } else { value }
}

/// What a call does, if an entry is due.
fn action(method: &Method, route: &str) -> Option<String> {
    let known = match (method.as_str(), route) {
        ("PUT", "/v1/tenants/{tenant}") => "tenant.create",
        ("DELETE", "/v1/tenants/{tenant}") => "tenant.delete",
        ("DELETE", "/v1/tenants/{tenant}/events/{id}") => "event.remove",
        ("POST", "/v1/tenants/{tenant}/subscriptions") => "subscription.create",
        ("POST", "/v1/tenants/{tenant}/subscriptions/bulk") => "subscription.create_many",
        ("POST", "/v1/tenants/{tenant}/subscriptions/bulk/delete") => "subscription.delete_many",
        ("POST", "/v1/tenants/{tenant}/subscriptions/bulk/update") => "subscription.update_many",
        ("PATCH", "/v1/tenants/{tenant}/subscriptions/{id}") => "subscription.update",
        ("DELETE", "/v1/tenants/{tenant}/subscriptions/{id}") => "subscription.delete",
        ("GET", "/v1/tenants/{tenant}/subscriptions/{id}/secret") => "subscription.read_secret",
        ("POST", "/v1/tenants/{tenant}/subscriptions/{id}/secret/rotate") => {
            "subscription.rotate_secret"
        }
        ("PUT", "/v1/tenants/{tenant}/limits") => "tenant.limit",
        ("PUT", "/v1/event-types/{name}") => "event_type.put",
        ("DELETE", "/v1/event-types/{name}") => "event_type.delete",
        ("PUT", "/v1/catalogue") => "catalogue.import",
        ("PUT", "/v1/config") => "config.apply",
        ("POST", "/v1/keys" | "/v1/tenants/{tenant}/keys") => "key.create",
        ("DELETE", "/v1/keys/{id}" | "/v1/tenants/{tenant}/keys/{id}") => "key.revoke",
        ("POST", "/v1/tenants/{tenant}/filters/test")
        | ("POST", "/v1/tenants/{tenant}/templates/preview")
        | ("POST", "/v1/tenants/{tenant}/subscriptions/{id}/test")
        | ("POST", "/v1/tenants/{tenant}/subscriptions/{id}/verify")
        | ("GET" | "HEAD", _) => return None,
        // One that was forgotten here is noted all the same.
        (method, route) => return Some(format!("{method} {route}")),
    };
    Some(known.to_owned())
}

/// Notes a call that has changed something.
pub(crate) async fn note(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    (route, params): (MatchedPath, RawPathParams),
    request: Request,
    next: Next,
) -> Response {
    let Some(action) = action(request.method(), route.as_str()) else {
        return next.run(request).await;
    };
    let param = |name: &str| {
        params.iter().find(|(given, _)| *given == name).map(|(_, value)| value.to_owned())
    };
    let mut entry = AuditEntry {
        at: clock::now(),
        actor: caller.name(),
        from: extension::<ConnectInfo<SocketAddr>>(&request).map(|from| from.0.ip().to_string()),
        forwarded_for: forwarded_for(request.headers()),
        request_id: extension::<RequestId>(&request).map(|id| id.0).unwrap_or_default(),
        action,
        tenant: param("tenant"),
        subject: param("id"),
        changes: Value::Null,
    };
    let mut response = next.run(request).await;
    let done = response.extensions_mut().remove::<Done>();
    if !response.status().is_success() && done.is_none() {
        return response;
    }
    if let Some(done) = done {
        if done.is_nothing {
            return response;
        }
        entry.subject = entry.subject.or(done.subject);
        entry.tenant = entry.tenant.or(done.tenant);
        entry.changes = done.changes;
    }
    tracing::info!(
        actor = entry.actor,
        action = entry.action,
        tenant = entry.tenant,
        subject = entry.subject,
        request.id = entry.request_id,
        "changed"
    );
    // It is done, whatever becomes of the note; the log above has it, too.
    if let Err(error) = api.store.record_audit(&entry, api.audit_entries).await {
        tracing::error!(%error, "a change is not in the audit");
    }
    response
}

fn extension<T: Clone + Send + Sync + 'static>(request: &Request) -> Option<T> {
    request.extensions().get::<T>().cloned()
}

fn forwarded_for(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("x-forwarded-for")?.to_str().ok()?;
    Some(text.chars().take(MAX_FORWARDED).collect())
}

/// Entries from the newest on.
pub(crate) async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let page = page::<EntryId>(query)?;
    let before = page.after.as_ref().map(|id| id.0.as_str());
    let (entries, next) = api.store.list_audit(before, page.limit).await.map_err(trouble)?;
    let data: Vec<Value> = entries.iter().map(|(id, entry)| view(id, entry)).collect();
    Ok(list::answer(&data, next.as_deref()))
}

fn view(id: &str, entry: &AuditEntry) -> Value {
    let mut shown = json!(entry);
    shown["id"] = id.into();
    shown
}

/// The id of an entry: two numbers.
#[derive(Debug)]
struct EntryId(String);

impl std::str::FromStr for EntryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (time, number) = text.split_once('-').ok_or(())?;
        // Not "+1", which Redis would not take for one.
        let is_number = |part: &str| {
            part.bytes().all(|byte| byte.is_ascii_digit()) && part.parse::<u64>().is_ok()
        };
        if is_number(time) && is_number(number) { Ok(Self(text.to_owned())) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_noted_and_no_secret() {
        let before = json!({
            "url": "https://a.example/x?token=1", "status": "active", "updated_at": 1,
            "headers": {"authorization": "Bearer hidden"}, "description": "same",
        });
        let mut after = before.clone();
        after["url"] = "https://b.example/y?token=2".into();
        after["headers"] = json!({"authorization": "Bearer other", "x-team": "a"});
        after["updated_at"] = 2.into();
        after["metadata"] = json!({"a": "x".repeat(2000)});
        let done = Done::to(&"sub_1", &before, &after);
        assert_eq!(
            done.changes,
            json!({
                "url": {"from": "https://a.example/x?***", "to": "https://b.example/y?***"},
                "headers": {"from": {"authorization": "***"}, "to": {"authorization": "***", "x-team": "***"}},
                "metadata": {"from": null, "to": "(2008 bytes)"},
            })
        );
        let created = Done::to(&"sub_1", &Value::Null, &json!({"status": "active"}));
        assert_eq!(created.changes, json!({"status": {"from": null, "to": "active"}}));
    }

    #[test]
    fn every_change_has_a_name_and_no_reading_but_that_of_a_secret() {
        let named = |method: Method, route: &str| action(&method, route);
        assert_eq!(named(Method::GET, "/v1/tenants"), None);
        let secret = "/v1/tenants/{tenant}/subscriptions/{id}/secret";
        assert_eq!(named(Method::GET, secret).as_deref(), Some("subscription.read_secret"));
        assert_eq!(named(Method::PUT, "/v1/new").as_deref(), Some("PUT /v1/new"));
    }

    #[test]
    fn a_cursor_is_the_id_of_an_entry() {
        for (text, good) in [
            ("1-0", true),
            ("1", false),
            ("a-b", false),
            ("+", false),
            ("+1-0", false),
            ("1-+0", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<EntryId>().is_ok(), good, "{text}");
        }
    }
}
