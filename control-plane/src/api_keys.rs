//! API keys over HTTP. Those that are bound to a tenant are made, and can be managed, beneath it.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use doorbell_common::api_key::{ApiKey, ApiKeyId, ApiKeyText, Grant, Scope};
use doorbell_common::ids::TenantId;
use doorbell_common::json::pointer;
use doorbell_common::time::Timestamp;
use doorbell_platform::clock;
use doorbell_platform::http::{Members, read_body};
use doorbell_platform::problem::{FieldError, Problem};
use doorbell_platform::store::api_keys::StoredApiKey;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::audit::Done;
use crate::list::{self, ListQuery, page};
use crate::routes::{Api, trouble};
use crate::tenants::tenant_id;

const MAX_BODY: usize = 16 * 1024;
const MAX_LABEL: usize = 200;
/// How many keys may be bound to one tenant: its own may make them, too.
const MOST_OF_A_TENANT: usize = 1000;

pub(crate) async fn create(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    create_for(&api, None, &headers, body).await
}

pub(crate) async fn create_of_tenant(
    State(api): State<Api>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    create_for(&api, Some(tenant_id(&tenant)?), &headers, body).await
}

pub(crate) async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    list_of(&api, None, query).await
}

pub(crate) async fn list_of_tenant(
    State(api): State<Api>,
    Path(tenant): Path<String>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    list_of(&api, Some(&tenant_id(&tenant)?), query).await
}

pub(crate) async fn show(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Problem> {
    find(&api, None, &id).await.map(|found| Json(view(&found)))
}

pub(crate) async fn show_of_tenant(
    State(api): State<Api>,
    Path((tenant, id)): Path<(String, String)>,
) -> Result<Json<Value>, Problem> {
    find(&api, Some(&tenant_id(&tenant)?), &id).await.map(|found| Json(view(&found)))
}

pub(crate) async fn revoke(
    State(api): State<Api>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    revoke_of(&api, None, &id).await
}

pub(crate) async fn revoke_of_tenant(
    State(api): State<Api>,
    Path((tenant, id)): Path<(String, String)>,
) -> Result<Response, Problem> {
    revoke_of(&api, Some(&tenant_id(&tenant)?), &id).await
}

async fn create_for(
    api: &Api,
    tenant: Option<TenantId>,
    headers: &HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_body(headers, body, &["application/json"], MAX_BODY).await?;
    let now = clock::now();
    let Form { label, scopes, expires_at } = Form::read(&body, now)?;
    let text = ApiKeyText::mint(&api.key_environment, &clock::random_bytes());
    let key = ApiKey {
        id: text.id(),
        digest: text.digest(),
        label,
        grant: Grant { scopes, tenant },
        expires_at,
        created_at: now,
    };
    if let Some(tenant) = &key.grant.tenant {
        if api.store.count_api_keys(tenant).await.map_err(trouble)? >= MOST_OF_A_TENANT {
            let detail = format!(
                "tenant {tenant} has {MOST_OF_A_TENANT} keys: revoke those that nobody uses"
            );
            return Err(Problem::new(StatusCode::CONFLICT, detail));
        }
        api.store.ensure_tenant(tenant).await.map_err(trouble)?;
    }
    api.store.create_api_key(&key).await.map_err(trouble)?;
    let location = match &key.grant.tenant {
        Some(tenant) => format!("/v1/tenants/{tenant}/keys/{}", key.id),
        None => format!("/v1/keys/{}", key.id),
    };
    let mut answer = view(&StoredApiKey { key, last_used_at: None });
    let done = Done::to(&text.id(), &Value::Null, &answer);
    answer["key"] = text.reveal().into();
    let headers = [(header::LOCATION, location)];
    Ok((StatusCode::CREATED, headers, Extension(done), Json(answer)).into_response())
}

async fn list_of(
    api: &Api,
    tenant: Option<&TenantId>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let page = page::<ApiKeyId>(query)?;
    let listing = api.store.list_api_keys(tenant, page.after.as_ref(), page.limit);
    let (keys, next) = listing.await.map_err(trouble)?;
    let data: Vec<Value> = keys.iter().map(view).collect();
    Ok(list::answer(&data, next.as_ref().map(ToString::to_string).as_deref()))
}

/// A key, which must be this tenant's, if one is named.
async fn find(api: &Api, tenant: Option<&TenantId>, id: &str) -> Result<StoredApiKey, Problem> {
    let absent = || Problem::new(StatusCode::NOT_FOUND, "there is no such key");
    let id: ApiKeyId = id.parse().map_err(|_| absent())?;
    let found = api.store.api_key(&id).await.map_err(trouble)?;
    let is_theirs =
        |found: &StoredApiKey| tenant.is_none() || found.key.grant.tenant.as_ref() == tenant;
    found.filter(is_theirs).ok_or_else(absent)
}

async fn revoke_of(api: &Api, tenant: Option<&TenantId>, id: &str) -> Result<Response, Problem> {
    let found = find(api, tenant, id).await?;
    api.store.remove_api_key(&found.key).await.map_err(trouble)?;
    let done = Done::to(&found.key.id, &view(&found), &Value::Null);
    Ok((StatusCode::NO_CONTENT, Extension(done)).into_response())
}

fn view(StoredApiKey { key, last_used_at }: &StoredApiKey) -> Value {
    json!({
        "id": key.id,
        "label": key.label,
        "scopes": key.grant.scopes,
        "tenant": key.grant.tenant,
        "expires_at": key.expires_at,
        "created_at": key.created_at,
        "last_used_at": last_used_at,
    })
}

/// What people write of a new key.
#[derive(Debug, PartialEq)]
struct Form {
    label: String,
    scopes: Vec<Scope>,
    expires_at: Option<Timestamp>,
}

impl Form {
    fn read(body: &[u8], now: Timestamp) -> Result<Self, Problem> {
        let Members(members) = Members::read(body)?;
        let mut form = Self { label: String::new(), scopes: Vec::new(), expires_at: None };
        let is_missing = |name: &&&str| !members.iter().any(|(given, _)| given == **name);
        let mut errors: Vec<FieldError> = ["label", "scopes"]
            .iter()
            .filter(is_missing)
            .map(|name| FieldError::new(pointer(name), "is required"))
            .collect();
        for (name, value) in &members {
            if let Err(detail) = form.field(name, value, now) {
                errors.push(FieldError::new(pointer(name), detail));
            }
        }
        if errors.is_empty() { Ok(form) } else { Err(Problem::invalid(errors)) }
    }

    fn field(&mut self, name: &str, value: &RawValue, now: Timestamp) -> Result<(), String> {
        match name {
            "label" => {
                let label = serde_json::from_str::<String>(value.get()).ok();
                let fits = |label: &String| (1..=MAX_LABEL).contains(&label.chars().count());
                self.label = label
                    .filter(fits)
                    .ok_or(format!("must be a string of 1 to {MAX_LABEL} characters"))?;
            }
            "scopes" => {
                let mut scopes =
                    serde_json::from_str::<Vec<Scope>>(value.get()).unwrap_or_default();
                scopes.sort_unstable();
                scopes.dedup();
                if scopes.is_empty() {
                    let known = Scope::ALL.map(Scope::as_str).join(", ");
                    return Err(format!("must be a list of one or more of {known}"));
                }
                self.scopes = scopes;
            }
            "expires_at" if value.get() == "null" => {}
            "expires_at" => {
                let at = serde_json::from_str::<Timestamp>(value.get()).ok();
                let at = at.filter(|at| now < *at);
                self.expires_at = Some(
                    at.ok_or("must be a time that is still to come, such as 2030-01-31T00:00:00Z")?,
                );
            }
            "tenant" => {
                return Err("is not a field of a key: POST to /v1/tenants/{tenant}/keys for one that is bound to a tenant".to_owned());
            }
            _ => return Err("is not a field of a key".to_owned()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_wrong_field_is_named() {
        let now = Timestamp::from_seconds(1_000_000_000);
        let read = |body: &str| Form::read(body.as_bytes(), now);
        let form = read(
            r#"{"label":"CI","scopes":["replay","events:publish","replay"],"expires_at":"2030-01-01T00:00:00Z"}"#,
        );
        assert_eq!(form.unwrap().scopes, [Scope::EventsPublish, Scope::Replay]);
        assert_eq!(
            read(r#"{"label":"x","scopes":["admin"],"expires_at":null}"#).unwrap().expires_at,
            None
        );
        for (body, pointers) in [
            ("{}", vec!["/label", "/scopes"]),
            (r#"{"label":"","scopes":[],"x":1}"#, vec!["/label", "/scopes", "/x"]),
            (r#"{"label":"x","scopes":["all"]}"#, vec!["/scopes"]),
            (
                r#"{"label":"x","scopes":["admin"],"expires_at":"2001-01-01T00:00:00Z"}"#,
                vec!["/expires_at"],
            ),
            (r#"{"label":"x","scopes":["admin"],"tenant":"acme"}"#, vec!["/tenant"]),
        ] {
            let problem = serde_json::to_value(read(body).unwrap_err()).unwrap();
            let errors = problem["errors"].as_array().unwrap();
            let named: Vec<&str> = errors.iter().filter_map(|e| e["pointer"].as_str()).collect();
            assert_eq!(named, pointers, "{body}");
        }
    }
}
