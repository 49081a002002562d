//! Tries a filter on an event, before anyone relies on it.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use doorbell_common::filter::{Filter, PARTS};
use doorbell_common::json::pointer;
use doorbell_platform::clock;
use doorbell_platform::http::{Members, read_body};
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::form;
use crate::routes::Api;
use crate::subscriptions::MAX_BODY;
use crate::tenants::tenant_id;

pub(crate) async fn test(
    State(_): State<Api>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let tenant = tenant_id(&tenant)?;
    let body = read_body(&headers, body, &["application/json"], MAX_BODY).await?;
    let (filter, event) = read(&body, tenant.as_str())?;
    Ok(Json(match filter.explain(&event) {
        Ok(()) => json!({ "matches": true, "mismatch": null }),
        Err(mismatch) => json!({
            "matches": false,
            "mismatch": {
                "condition": mismatch.condition, "value": mismatch.value, "detail": mismatch.detail,
            },
        }),
    }))
}

fn read(body: &[u8], tenant: &str) -> Result<(Filter, Value), Problem> {
    let Members(members) = Members::read(body)?;
    let (mut filter, mut event, mut errors) = (None, None, Vec::new());
    for (name, value) in &members {
        match name.as_str() {
            "filter" => match form::filter(value) {
                Ok(compiled) => filter = Some(compiled),
                Err(wrong) => errors.extend(wrong),
            },
            "event" => match sample(value, tenant) {
                Ok(sample) => event = Some(sample),
                Err(wrong) => errors.extend(wrong),
            },
            _ => errors.push(FieldError::new(pointer(name), "is not a field of a filter's test")),
        }
    }
    for name in ["filter", "event"] {
        if !members.iter().any(|(given, _)| given == name) {
            errors.push(FieldError::new(pointer(name), "is required"));
        }
    }
    match (filter, event) {
        (Some(filter), Some(event)) if errors.is_empty() => Ok((filter, event)),
        _ => Err(Problem::invalid(errors)),
    }
}

/// The event to try it on; what is not said of it is made up, but for its data.
pub(crate) fn sample(value: &RawValue, tenant: &str) -> Result<Value, Vec<FieldError>> {
    let Ok(given) = serde_json::from_str::<Map<String, Value>>(value.get()) else {
        return Err(vec![FieldError::new("/event", "must be an object, such as {\"data\": {}}")]);
    };
    let unknown = given.keys().filter(|name| !PARTS.contains(&name.as_str()));
    let mut errors: Vec<FieldError> = unknown
        .map(|name| FieldError::new(format!("/event{}", pointer(name)), "is no part of an event"))
        .collect();
    if !given.contains_key("data") {
        errors.push(FieldError::new("/event/data", "is required"));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut event = json!({
        "id": "evt_sample", "type": "doorbell.sample", "timestamp": clock::now(), "tenant": tenant,
    });
    for (name, value) in given {
        event[name] = value;
    }
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_needs_a_filter_and_an_event() {
        let whole = br#"{"filter":{"tenant":"acme","type":"a.b"},"event":{"type":"a.b","data":1}}"#;
        let (filter, event) = read(whole, "acme").unwrap();
        assert!(filter.matches(&event));
        for (body, pointers) in [
            ("{}", vec!["/filter", "/event"]),
            (r#"{"filter":{"x":1},"event":{"y":1}}"#, vec!["/filter/x", "/event/y", "/event/data"]),
            (r#"{"filter":1,"event":1,"z":1}"#, vec!["/filter", "/event", "/z"]),
        ] {
            let problem = serde_json::to_value(read(body.as_bytes(), "acme").unwrap_err()).unwrap();
            let errors = problem["errors"].as_array().unwrap();
            let named: Vec<&str> = errors.iter().filter_map(|e| e["pointer"].as_str()).collect();
            assert_eq!(named, pointers, "{body}");
        }
    }
}
