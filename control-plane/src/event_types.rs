//! The catalogue of event types over HTTP: one by one, or as a whole.

use std::collections::{HashMap, HashSet};

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use doorbell_common::catalogue::{KnownType, unmatched};
use doorbell_common::event::EventType;
use doorbell_common::json::pointer;
use doorbell_common::pattern::Pattern;
use doorbell_common::time::Timestamp;
use doorbell_platform::clock;
use doorbell_platform::http::{Members, read_body};
use doorbell_platform::problem::{FieldError, Problem};
use doorbell_platform::store::event_types::StoredType;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::audit::Done;
use crate::etag::{TRIES, check_match, contended, etag, if_match, version_of};
use crate::list::{self, ListQuery, page};
use crate::routes::{Api, trouble};

/// The largest type, with its schema and example.
const MAX_TYPE: usize = 128 * 1024;
/// The largest catalogue that is written in one go, and the most types that it has.
const MAX_DOCUMENT: usize = 8 * 1024 * 1024;
pub(crate) const MAX_TYPES: usize = 10_000;
pub(crate) const MAX_DESCRIPTION: usize = 2000;

pub(crate) async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Json<Value>, Problem> {
    let page = page::<EventType>(query)?;
    let mut types = api.store.event_types().await.map_err(trouble)?.types;
    types.retain(|known| page.after.as_ref().is_none_or(|after| known.name > *after));
    let more = types.len() > page.limit;
    types.truncate(page.limit);
    let next = types.last().filter(|_| more).map(|known| known.name.as_str());
    let data: Vec<Value> = types.iter().map(|known| json!(known)).collect();
    Ok(list::answer(&data, next))
}

pub(crate) async fn show(
    State(api): State<Api>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    existing(&api, &name).await.map(|stored| shown(&stored))
}

pub(crate) async fn put(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let name: EventType = name.parse().map_err(|error| {
        Problem::invalid(vec![FieldError::new("/name", format!("the type in the path {error}"))])
    })?;
    let body = read_body(&headers, body, &["application/json"], MAX_TYPE).await?;
    let Members(members) = Members::read(&body)?;
    let now = clock::now();
    let mut known = read(name, &members, (now, now)).map_err(Problem::invalid)?;
    for _ in 0..TRIES {
        let before = api.store.event_type(&known.name).await.map_err(trouble)?;
        let version = before.as_ref().map(|before| version_of(&before.raw));
        check_match(if_match(&headers).as_deref(), version.as_deref())?;
        known.created_at = before.as_ref().map_or(now, |before| before.known.created_at);
        if before.is_none() {
            room_for_one(&api).await?;
        }
        let putting = api.store.put_event_type(before.as_ref(), known.clone());
        if let Some(stored) = putting.await.map_err(trouble)? {
            let status = if before.is_some() { StatusCode::OK } else { StatusCode::CREATED };
            let before = before.map(|before| before.known);
            let done = Done::to(&known.name, &json!(before), &json!(known));
            return Ok((status, Extension(done), shown(&stored)).into_response());
        }
    }
    Err(contended("the event type"))
}

async fn room_for_one(api: &Api) -> Result<(), Problem> {
    if api.store.event_type_names().await.map_err(trouble)?.len() < MAX_TYPES {
        return Ok(());
    }
    let detail = format!("the catalogue has {MAX_TYPES} types already, which is the most");
    Err(Problem::new(StatusCode::CONFLICT, detail))
}

pub(crate) async fn delete(
    State(api): State<Api>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    for _ in 0..TRIES {
        let stored = existing(&api, &name).await?;
        check_match(if_match(&headers).as_deref(), Some(&version_of(&stored.raw)))?;
        if api.store.remove_event_type(&stored).await.map_err(trouble)? {
            let done = Done::to(&stored.known.name, &json!(stored.known), &Value::Null);
            return Ok((StatusCode::NO_CONTENT, Extension(done)).into_response());
        }
    }
    Err(contended("the event type"))
}

/// The whole catalogue, in the form in which it can be put back.
pub(crate) async fn export(State(api): State<Api>) -> Result<Response, Problem> {
    let stored = api.store.event_types().await.map_err(trouble)?;
    let shown = stored.types.iter().map(|known| {
        json!({
            "name": known.name, "description": known.description, "schema": known.schema,
            "example": known.example, "deprecated": known.deprecated,
        })
    });
    let document = json!({ "event_types": shown.collect::<Vec<Value>>() });
    Ok(([(header::ETAG, etag(&stored.version))], Json(document)).into_response())
}

/// Puts a catalogue in the place of the one that is there, whole or not at all.
pub(crate) async fn import(
    State(api): State<Api>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let body = read_body(&headers, body, &["application/json"], MAX_DOCUMENT).await?;
    let now = clock::now();
    let mut types = read_all(&body, now)?;
    for _ in 0..TRIES {
        let before = api.store.event_types().await.map_err(trouble)?;
        check_match(if_match(&headers).as_deref(), Some(&before.version))?;
        let created: HashMap<&EventType, Timestamp> =
            before.types.iter().map(|before| (&before.name, before.created_at)).collect();
        for known in &mut types {
            known.created_at = created.get(&known.name).copied().unwrap_or(now);
        }
        let replacing = api.store.replace_event_types(&before, &types);
        if let Some(version) = replacing.await.map_err(trouble)? {
            let done = Done::to(&"catalogue", &names_of(&before.types), &names_of(&types));
            let headers = [(header::ETAG, etag(&version))];
            let answer = Json(json!({ "count": types.len() }));
            return Ok((Extension(done), headers, answer).into_response());
        }
    }
    Err(contended("the catalogue"))
}

fn names_of(types: &[KnownType]) -> Value {
    json!({ "names": types.iter().map(|known| &known.name).collect::<Vec<_>>() })
}

/// The types that the catalogue has; none, where that can't be told just now.
pub(crate) async fn names(api: &Api) -> Vec<EventType> {
    api.store.event_type_names().await.unwrap_or_default()
}

/// What there is to say of a subscription's patterns: those that match no type of the catalogue, if
/// there is one.
pub(crate) fn warnings(types: &[EventType], patterns: &[Pattern]) -> Vec<String> {
    if types.is_empty() {
        return vec![];
    }
    unmatched(patterns, types)
        .iter()
        .map(|pattern| format!("{pattern} matches no event type of the catalogue"))
        .collect()
}

fn shown(stored: &StoredType) -> Response {
    let headers = [(header::ETAG, etag(&version_of(&stored.raw)))];
    (headers, Json(json!(stored.known))).into_response()
}

async fn existing(api: &Api, name: &str) -> Result<StoredType, Problem> {
    let absent = || Problem::new(StatusCode::NOT_FOUND, "there is no such event type");
    let name: EventType = name.parse().map_err(|_| absent())?;
    api.store.event_type(&name).await.map_err(trouble)?.ok_or_else(absent)
}

fn read_all(body: &[u8], now: Timestamp) -> Result<Vec<KnownType>, Problem> {
    let Members(members) = Members::read(body)?;
    let [(name, value)] = members.as_slice() else {
        return Err(Problem::invalid(vec![FieldError::new(
            "/event_types",
            "is required, and nothing else",
        )]));
    };
    if name != "event_types" {
        return Err(Problem::invalid(vec![FieldError::new(
            pointer(name),
            "is not a field of a catalogue",
        )]));
    }
    let types: Vec<Box<RawValue>> = serde_json::from_str(value.get()).map_err(|_| {
        Problem::invalid(vec![FieldError::new("/event_types", "must be a list of event types")])
    })?;
    if types.len() > MAX_TYPES {
        let detail = format!("may have at most {MAX_TYPES} types");
        return Err(Problem::invalid(vec![FieldError::new("/event_types", detail)]));
    }
    let (mut read_types, mut errors) = (Vec::new(), Vec::new());
    let mut names = HashSet::new();
    for (n, raw) in types.iter().enumerate() {
        let at = |error: FieldError| {
            FieldError::new(format!("/event_types/{n}{}", error.pointer), error.detail)
        };
        match read_named(raw, now) {
            Ok(known) if names.insert(known.name.clone()) => read_types.push(known),
            Ok(_) => errors.push(at(FieldError::new("/name", "is there twice"))),
            Err(wrong) => errors.extend(wrong.into_iter().map(at)),
        }
    }
    if errors.is_empty() { Ok(read_types) } else { Err(Problem::invalid(errors)) }
}

fn read_named(raw: &RawValue, now: Timestamp) -> Result<KnownType, Vec<FieldError>> {
    let Ok(Members(mut members)) = serde_json::from_str::<Members>(raw.get()) else {
        return Err(vec![FieldError::new("", "must be an object")]);
    };
    let place = members.iter().position(|(name, _)| name == "name");
    let name = place.map(|place| members.remove(place).1);
    let name = name.and_then(|name| serde_json::from_str::<EventType>(name.get()).ok());
    let Some(name) = name else {
        return Err(vec![FieldError::new(
            "/name",
            "must be an event type, such as payment.succeeded",
        )]);
    };
    read(name, &members, (now, now))
}

fn read(
    name: EventType,
    members: &[(String, Box<RawValue>)],
    (created_at, updated_at): (Timestamp, Timestamp),
) -> Result<KnownType, Vec<FieldError>> {
    let mut known = KnownType {
        name,
        description: String::new(),
        schema: None,
        example: None,
        deprecated: false,
        created_at,
        updated_at,
    };
    let mut errors = Vec::new();
    for (name, value) in members {
        if let Err(detail) = field(&mut known, name, value) {
            errors.push(FieldError::new(pointer(name), detail));
        }
    }
    match known.check() {
        Ok(places) => errors.extend(
            places.into_iter().map(|(place, why)| FieldError::new(format!("/example{place}"), why)),
        ),
        Err(error) => errors.push(FieldError::new("/schema", error.to_string())),
    }
    if errors.is_empty() { Ok(known) } else { Err(errors) }
}

fn field(known: &mut KnownType, name: &str, value: &RawValue) -> Result<(), String> {
    let value: Value = serde_json::from_str(value.get()).map_err(|error| error.to_string())?;
    match (name, value) {
        ("description", Value::String(text)) if text.chars().count() <= MAX_DESCRIPTION => {
            known.description = text;
        }
        ("description", _) => {
            return Err(format!("must be a string of at most {MAX_DESCRIPTION} characters"));
        }
        ("schema", value) => known.schema = Some(value).filter(|value| !value.is_null()),
        ("example", value) => known.example = Some(value).filter(|value| !value.is_null()),
        ("deprecated", Value::Bool(deprecated)) => known.deprecated = deprecated,
        ("deprecated", _) => return Err("must be true or false".to_owned()),
        ("name" | "created_at" | "updated_at", _) => return Err("is not written here".to_owned()),
        (_, _) => return Err("is not a field of an event type".to_owned()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_catalogue_is_read_whole_or_every_wrong_place_is_named() {
        let now = Timestamp::from_seconds(1);
        let whole = br#"{"event_types":[{"name":"a.b","schema":{"type":"object"},"example":{}},{"name":"c"}]}"#;
        assert_eq!(read_all(whole, now).unwrap().len(), 2);
        for (body, pointers) in [
            ("{}", vec!["/event_types"]),
            (r#"{"types":[]}"#, vec!["/types"]),
            (r#"{"event_types":{}}"#, vec!["/event_types"]),
            (
                r#"{"event_types":[{"name":"a"},{"name":"a"},{"name":"a..b"},1,{"name":"c","schema":{"type":"x"},"x":1},{"name":"d","schema":{"type":"object"},"example":1}]}"#,
                vec![
                    "/event_types/1/name",
                    "/event_types/2/name",
                    "/event_types/3",
                    "/event_types/4/x",
                    "/event_types/4/schema",
                    "/event_types/5/example",
                ],
            ),
        ] {
            let problem =
                serde_json::to_value(read_all(body.as_bytes(), now).unwrap_err()).unwrap();
            let errors = problem["errors"].as_array().unwrap();
            let named: Vec<&str> = errors.iter().filter_map(|e| e["pointer"].as_str()).collect();
            assert_eq!(named, pointers, "{body}");
        }
    }
}
