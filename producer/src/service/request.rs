//! Reading an event out of a request's JSON, naming every field that is wrong.

use doorbell_common::intake::Refusal;
use doorbell_common::json::pointer;
use doorbell_platform::http::Members;
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::value::RawValue;

use crate::event::{NewEvent, refusals};

/// The event that a JSON object describes. What its values mean is checked later, by the rules
/// of publishing; here only their names and kinds are, unless something is wrong with these: then
/// the rest is told, too.
pub(super) fn read_event(body: &[u8], max_bytes: usize) -> Result<NewEvent, Problem> {
    let Members(members) = Members::read_outer(body)?;
    let mut event = NewEvent::default();
    let mut errors = Vec::new();
    let (mut tenant, mut event_type, mut data) = (None, None, None);
    let mut seen: Vec<&str> = Vec::new();
    for (name, value) in &members {
        let wrong = match name.as_str() {
            name if seen.contains(&name) => Some("is there twice".to_owned()),
            "tenant" => text(value, &mut tenant),
            "type" => text(value, &mut event_type),
            "data" => {
                data = Some(value.get().as_bytes().to_vec());
                None
            }
            "id" => optional_text(value, &mut event.id),
            "timestamp" => optional_text(value, &mut event.timestamp),
            "deliver_at" => optional_text(value, &mut event.deliver_at),
            _ => {
                errors.push(FieldError::new(pointer(name), "is not a field of an event"));
                continue;
            }
        };
        errors.extend(wrong.map(|detail| FieldError::new(pointer(name), detail)));
        seen.push(name);
    }
    let missing = |name: &str, absent: bool| {
        (absent && !errors.iter().any(|e: &FieldError| e.pointer == pointer(name)))
            .then(|| FieldError::new(pointer(name), "is required"))
    };
    let absent = [
        missing("tenant", tenant.is_none()),
        missing("type", event_type.is_none()),
        missing("data", data.is_none()),
    ];
    errors.extend(absent.into_iter().flatten());
    event.tenant = tenant.unwrap_or_default();
    event.event_type = event_type.unwrap_or_default();
    event.data = data.unwrap_or_default();
    if errors.is_empty() {
        return Ok(event);
    }
    for wrong in refusals(&event, max_bytes).iter().map(wrong_field) {
        if !errors.iter().any(|known| known.pointer == wrong.pointer) {
            errors.push(wrong);
        }
    }
    Err(Problem::invalid(errors))
}

/// The field that is the reason of a refusal.
pub(super) fn wrong_field(refusal: &Refusal) -> FieldError {
    let pointer = match refusal {
        Refusal::EventType(_) => "/type",
        Refusal::NoTenant | Refusal::Tenant(_) => "/tenant",
        Refusal::Id(_) => "/id",
        Refusal::Timestamp(_) => "/timestamp",
        Refusal::DeliverAt(_) | Refusal::TooFarAhead => "/deliver_at",
        Refusal::Data(_) => "/data",
        Refusal::ContentType => "",
    };
    FieldError::new(pointer, refusal.to_string())
}

/// Puts a string into its place; answers what is wrong if it is none.
fn text(value: &RawValue, place: &mut Option<String>) -> Option<String> {
    match serde_json::from_str::<String>(value.get()) {
        Ok(text) => {
            *place = Some(text);
            None
        }
        Err(_) => Some("must be a string".to_owned()),
    }
}

/// The same for a field that may be null.
fn optional_text(value: &RawValue, place: &mut Option<String>) -> Option<String> {
    if value.get() == "null" { None } else { text(value, place) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(body: &str) -> String {
        serde_json::to_string(&read_event(body.as_bytes(), 100).unwrap_err()).unwrap()
    }

    #[test]
    fn data_keeps_its_bytes() {
        let event =
            read_event(br#"{"tenant":"t","type":"a","data": {"n": 1.0e2,  "n":2},"id":null}"#, 100)
                .unwrap();
        assert_eq!(event.data, br#"{"n": 1.0e2,  "n":2}"#);
        assert_eq!(event.id, None);
    }

    #[test]
    fn every_wrong_field_is_named() {
        let text = problem(r#"{"tenant":1,"typ":"a","id":[],"data":null}"#);
        for pointer in ["/tenant", "/typ", "/id", "/type"] {
            assert!(text.contains(&format!("\"{pointer}\"")), "{pointer} in {text}");
        }
        assert!(!text.contains("/data"));
        // Names, kinds and values, each place once.
        let text =
            problem(r#"{"tenant":"a b","typ":"a","id":"?","timestamp":"today","data":null}"#);
        for pointer in ["/tenant", "/typ", "/id", "/type", "/timestamp"] {
            assert_eq!(text.matches(&format!("\"{pointer}\"")).count(), 1, "{pointer} in {text}");
        }
        assert!(!text.contains("/data"));
        assert!(problem("[]").contains("422"));
        assert!(problem("{").contains("400"));
        assert!(problem(r#"{"tenant":"a","tenant":"b"}"#).contains("twice"));
        // But for what is the publisher's own.
        assert!(read_event(br#"{"tenant":"a","type":"b","data":{"c":1,"c":2}}"#, 100).is_ok());
    }
}
