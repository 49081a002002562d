//! Something tried on an event before anyone relies on it: `{"filter": …, "event": …}`, and the like.

use doorbell_common::filter::PARTS;
use doorbell_common::json::pointer;
use doorbell_platform::clock;
use doorbell_platform::http::Members;
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// Reads what is tried.
type ReadTried<T> = fn(&RawValue) -> Result<T, Vec<FieldError>>;

/// What is tried, which has this name, and the event, if there is one.
pub(crate) fn read<T>(
    body: &[u8],
    tenant: &str,
    (tried_name, read_tried): (&str, ReadTried<T>),
) -> Result<(T, Option<Value>), Problem> {
    let Members(members) = Members::read(body)?;
    let (mut tried, mut event, mut errors) = (None, None, Vec::new());
    for (name, value) in &members {
        if name == tried_name {
            match read_tried(value) {
                Ok(read) => tried = Some(read),
                Err(wrong) => errors.extend(wrong),
            }
        } else if name == "event" {
            match sample(value, tenant) {
                Ok(sample) => event = Some(sample),
                Err(wrong) => errors.extend(wrong),
            }
        } else {
            errors.push(FieldError::new(pointer(name), "is not a field of this"));
        }
    }
    if !members.iter().any(|(name, _)| name == tried_name) {
        errors.push(FieldError::new(pointer(tried_name), "is required"));
    }
    match tried {
        Some(tried) if errors.is_empty() => Ok((tried, event)),
        _ => Err(Problem::invalid(errors)),
    }
}

/// The event to try it on; what is not said of it is made up, but for its data.
fn sample(value: &RawValue, tenant: &str) -> Result<Value, Vec<FieldError>> {
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
    use crate::form;

    #[test]
    fn every_wrong_place_is_named() {
        let read = |body: &str| read(body.as_bytes(), "acme", ("filter", form::filter));
        let (filter, event) =
            read(r#"{"filter":{"tenant":"acme","type":"a.b"},"event":{"type":"a.b","data":1}}"#)
                .unwrap();
        assert!(filter.matches(&event.unwrap()));
        assert_eq!(read(r#"{"filter":{"type":"a.b"}}"#).unwrap().1, None);
        for (body, pointers) in [
            ("{}", vec!["/filter"]),
            (r#"{"filter":{"x":1},"event":{"y":1}}"#, vec!["/filter/x", "/event/y", "/event/data"]),
            (r#"{"filter":1,"event":1,"z":1}"#, vec!["/filter", "/event", "/z"]),
        ] {
            let problem = serde_json::to_value(read(body).unwrap_err()).unwrap();
            let errors = problem["errors"].as_array().unwrap();
            let named: Vec<&str> = errors.iter().filter_map(|e| e["pointer"].as_str()).collect();
            assert_eq!(named, pointers, "{body}");
        }
    }
}
