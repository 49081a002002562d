//! The event types that a deployment knows, and what it has to object to an event: that its type is
//! none of them, or that its data is not as the type's schema says.

use std::collections::HashMap;
use std::fmt;

use jsonschema::{PatternOptions, Validator};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::event::EventType;
use crate::json;
use crate::pattern::Pattern;
use crate::text::shortened;
use crate::time::Timestamp;

/// A type of events, as the catalogue has it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnownType {
    /// Its name.
    pub name: EventType,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// What the data of its events must be: a JSON Schema.
    #[serde(default)]
    pub schema: Option<Value>,
    /// The data of such an event.
    #[serde(default)]
    pub example: Option<Value>,
    /// Whether it is to be used no more.
    #[serde(default)]
    pub deprecated: bool,
    /// When it was added.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
}

/// What is done about events to which there is something to object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Enforcement {
    /// Nothing, and nobody looks.
    #[default]
    Off,
    /// They are counted, and their publisher is told.
    Warn,
    /// They are refused.
    Reject,
}

impl std::str::FromStr for Enforcement {
    type Err = InvalidEnforcement;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "warn" => Ok(Self::Warn),
            "reject" => Ok(Self::Reject),
            _ => Err(InvalidEnforcement),
        }
    }
}

/// A text that says nothing of what to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be off, warn or reject")]
pub struct InvalidEnforcement;

/// Why a JSON Schema is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not a JSON Schema: {0}")]
pub struct InvalidSchema(String);

/// What there is to object to an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Objection {
    /// Its type is not in the catalogue.
    UnknownType(EventType),
    /// Its data is not as the schema says: where, and why.
    Schema(Vec<(String, String)>),
}

/// The most places of an event's data that are named, and bytes of each: names of the event's own are in it.
const NAMED: usize = 10;
const NAMED_BYTES: usize = 200;

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownType(name) => write!(f, "event type {name} is not in the catalogue"),
            Self::Schema(places) => {
                f.write_str("data is not as the schema of its type says")?;
                places.iter().try_for_each(|(place, why)| write!(f, "; /data{place}: {why}"))
            }
        }
    }
}

/// The event types of a deployment, ready to judge events by.
#[derive(Debug, Default)]
pub struct Catalogue(HashMap<EventType, Option<Validator>>);

impl Catalogue {
    /// A catalogue of these types. A schema that is none, which does not come into the store, counts
    /// as absent.
    pub fn of<'a>(types: impl IntoIterator<Item = &'a KnownType>) -> Self {
        let ready = |known: &KnownType| {
            let schema = known.schema.as_ref().and_then(|schema| compile(schema).ok());
            (known.name.clone(), schema)
        };
        Self(types.into_iter().map(ready).collect())
    }

    /// What there is to object to an event of this type, with this data.
    #[must_use]
    pub fn objection(&self, event_type: &EventType, data: &[u8]) -> Option<Objection> {
        let Some(schema) = self.0.get(event_type) else {
            return Some(Objection::UnknownType(event_type.clone()));
        };
        let schema = schema.as_ref()?;
        match json::read(data) {
            Some(data) => violations(schema, &data).map(Objection::Schema),
            None => {
                let why = "has a number beyond all bounds, so it can't be compared".to_owned();
                Some(Objection::Schema(vec![(String::new(), why)]))
            }
        }
    }
}

impl KnownType {
    /// Checks the schema, and the example by it.
    ///
    /// # Errors
    /// The schema is none; or what is wrong with the example, each place with its reason.
    pub fn check(&self) -> Result<Vec<(String, String)>, InvalidSchema> {
        let Some(schema) = &self.schema else { return Ok(vec![]) };
        let schema = compile(schema)?;
        let example = self.example.as_ref();
        Ok(example.and_then(|example| violations(&schema, example)).unwrap_or_default())
    }
}

/// Those of these patterns that match none of these types.
#[must_use]
pub fn unmatched<'a>(patterns: &'a [Pattern], types: &[EventType]) -> Vec<&'a Pattern> {
    let is_unmatched = |pattern: &&Pattern| !types.iter().any(|name| pattern.matches(name));
    patterns.iter().filter(is_unmatched).collect()
}

/// Regular expressions take a time that grows with the text, whatever they are; nothing is fetched.
fn compile(schema: &Value) -> Result<Validator, InvalidSchema> {
    jsonschema::options()
        .with_pattern_options(PatternOptions::regex())
        .build(schema)
        .map_err(|error| InvalidSchema(error.to_string()))
}

fn violations(schema: &Validator, data: &Value) -> Option<Vec<(String, String)>> {
    let short = |text: String| shortened(text, NAMED_BYTES);
    let named = |error: jsonschema::ValidationError<'_>| {
        (short(error.instance_path().to_string()), short(error.masked().to_string()))
    };
    let places: Vec<(String, String)> = schema.iter_errors(data).take(NAMED).map(named).collect();
    (!places.is_empty()).then_some(places)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn known(name: &str, schema: Value) -> KnownType {
        let at = Timestamp::from_seconds(1);
        KnownType {
            name: name.parse().unwrap(),
            description: String::new(),
            schema: Some(schema).filter(|schema| !schema.is_null()),
            example: None,
            deprecated: false,
            created_at: at,
            updated_at: at,
        }
    }

    #[test]
    fn an_event_is_judged_by_its_type() {
        let schema = json!({
            "type": "object", "required": ["id"],
            "properties": {"id": {"type": "integer", "minimum": 1}, "code": {"pattern": "^[A-Z]+$"}},
        });
        let catalogue = Catalogue::of(&[
            known("order.paid", schema),
            known("order.any", Value::Null),
            known("order.open", json!({"additionalProperties": {"type": "string"}})),
        ]);
        let objection =
            |name: &str, data: &str| catalogue.objection(&name.parse().unwrap(), data.as_bytes());
        assert_eq!(objection("order.paid", r#"{"id": 7, "code": "AB"}"#), None);
        assert_eq!(objection("order.any", "[]"), None);
        assert!(matches!(objection("order.lost", "{}"), Some(Objection::UnknownType(_))));
        let Some(Objection::Schema(places)) = objection("order.paid", r#"{"id": 0, "code": "a"}"#)
        else {
            panic!("nothing is wrong");
        };
        let places: Vec<&str> = places.iter().map(|(place, _)| place.as_str()).collect();
        assert!(places.contains(&"/id") && places.contains(&"/code"), "{places:?}");
        assert!(objection("order.paid", "1e999").is_some());
        let told = objection("order.paid", r#"{"id": "hidden"}"#).unwrap().to_string();
        assert!(told.contains("/data/id") && !told.contains("hidden"), "{told}");
        let names =
            (0..20).map(|n| format!("\"{n}{}\": 1", "x".repeat(10_000))).collect::<Vec<_>>();
        let long = format!("{{{}}}", names.join(","));
        let told = objection("order.open", &long).unwrap().to_string();
        assert!(told.len() < 20 * NAMED_BYTES * 2, "{}", told.len());
    }

    #[test]
    fn a_schema_and_its_example_are_checked() {
        let mut known = known("a", json!({"type": "integer"}));
        assert_eq!(known.check(), Ok(vec![]));
        known.example = Some(json!("x"));
        assert_eq!(known.check().unwrap().len(), 1);
        for wrong in
            [json!({"type": "nothing"}), json!(1), json!({"$ref": "https://example.com/x"})]
        {
            known.schema = Some(wrong.clone());
            assert!(known.check().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_pattern_that_matches_no_type_is_named() {
        let types = ["order.paid".parse().unwrap()];
        let patterns = ["order.*", "#", "refund.*"].map(|text| text.parse().unwrap());
        assert_eq!(unmatched(&patterns, &types), [&patterns[2]]);
    }
}
