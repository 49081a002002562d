//! Reads the fields of a subscription, one by one.

use std::collections::BTreeMap;

use doorbell_common::duration::DurationText;
use doorbell_common::filter::{Filter, InvalidFilter};
use doorbell_common::json::pointer;
use doorbell_common::pattern::Pattern;
use doorbell_common::rate::RateLimit;
use doorbell_common::retry::RetryPolicy;
use doorbell_common::subscription::OlderSignature;
use doorbell_common::template::{ContentType, Context, InvalidContentType, Template};
use doorbell_common::verification::{InvalidVerification, Verification};
use doorbell_platform::problem::FieldError;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::headers;

const MAX_NAME: usize = 100;
pub(crate) const MAX_PATTERNS: usize = 100;
pub(crate) const MAX_DESCRIPTION: usize = 2000;
const MAX_METADATA: usize = 16 * 1024;
const MAX_FILTER: usize = 16 * 1024;
const MAX_SAMPLE: usize = 16 * 1024;
const RATES: std::ops::RangeInclusive<u32> = 1..=10_000;
const CONCURRENCIES: std::ops::RangeInclusive<u32> = 1..=1024;
const TIMEOUTS: std::ops::RangeInclusive<u64> = 1000..=30_000;

/// What is wrong with one field: a sentence, or several places inside it.
pub(super) enum Wrong {
    Here(String),
    Inside(Vec<FieldError>),
}

impl Wrong {
    /// The places, of a field with this pointer.
    pub(super) fn at(self, pointer: &str) -> Vec<FieldError> {
        match self {
            Self::Here(detail) => vec![FieldError::new(pointer, detail)],
            Self::Inside(errors) => errors,
        }
    }
}

impl From<String> for Wrong {
    fn from(detail: String) -> Self {
        Self::Here(detail)
    }
}

impl From<&str> for Wrong {
    fn from(detail: &str) -> Self {
        Self::Here(detail.to_owned())
    }
}

pub(super) fn read<T: DeserializeOwned>(value: &RawValue, expected: &str) -> Result<T, Wrong> {
    serde_json::from_str(value.get()).map_err(|_| expected.into())
}

pub(super) fn patterns(value: &RawValue) -> Result<Vec<Pattern>, Wrong> {
    let texts: Vec<String> = read(value, "must be a list of patterns, such as [\"payment.*\"]")?;
    if texts.is_empty() || texts.len() > MAX_PATTERNS {
        return Err(format!("must have 1 to {MAX_PATTERNS} patterns").into());
    }
    let (mut patterns, mut errors) = (Vec::new(), Vec::new());
    for (i, text) in texts.iter().enumerate() {
        match text.parse::<Pattern>() {
            Ok(pattern) if patterns.contains(&pattern) => {}
            Ok(pattern) => patterns.push(pattern),
            Err(error) => errors.push(FieldError::new(format!("/events/{i}"), error.to_string())),
        }
    }
    if errors.is_empty() { Ok(patterns) } else { Err(Wrong::Inside(errors)) }
}

/// A template is written whole, and must work with its sample.
pub(super) fn template(value: &RawValue) -> Result<Template, Wrong> {
    let template = template_alone(value)?;
    let context = Context::of(&sample_event(&template.sample), template.sample.to_string().len());
    // It may take half a second, and others are served by this thread, too.
    match tokio::task::block_in_place(|| template.render(&context)) {
        Ok(_) => Ok(template),
        Err(error) => {
            let detail = format!(
                "with its sample, {error}; \"sample\" is the data of an event as it expects it"
            );
            Err(Wrong::Inside(vec![FieldError::new("/template/body", detail)]))
        }
    }
}

/// The same, whether it works or not.
pub(super) fn template_alone(value: &RawValue) -> Result<Template, Wrong> {
    let members: Map<String, Value> = read(
        value,
        "must be an object, such as {\"body\": \"{{ data.id }}\", \"content_type\": \"text/plain\"}",
    )?;
    let mut errors = Vec::new();
    let mut wrong = |place: &str, detail: String| {
        errors.push(FieldError::new(format!("/template{}", pointer(place)), detail));
    };
    let mut template = Template {
        body: String::new(),
        content_type: ContentType::default(),
        sample: Value::Object(Map::new()),
    };
    if !members.contains_key("body") {
        wrong("body", "is required".to_owned());
    }
    for (name, value) in members {
        match (name.as_str(), value) {
            ("body", Value::String(body)) => template.body = body,
            ("body", _) => wrong("body", "must be a string".to_owned()),
            ("content_type", value) => match serde_json::from_value(value) {
                Ok(content_type) => template.content_type = content_type,
                Err(_) => wrong("content_type", InvalidContentType.to_string()),
            },
            ("sample", value) if value.to_string().len() > MAX_SAMPLE => {
                wrong("sample", format!("may have at most {MAX_SAMPLE} bytes"));
            }
            ("sample", value) => template.sample = value,
            (name, _) => wrong(name, "is not a field of a template".to_owned()),
        }
    }
    if let Err(error) = template.check() {
        wrong("body", error.to_string());
    }
    if errors.is_empty() { Ok(template) } else { Err(Wrong::Inside(errors)) }
}

/// An event with this data.
pub(crate) fn sample_event(data: &Value) -> Value {
    json!({
        "id": "evt_sample", "type": "doorbell.sample", "timestamp": "2026-01-01T00:00:00Z",
        "tenant": "sample", "data": data,
    })
}

/// A filter is written whole, and so is its every condition: in a merge patch `null` would take a
/// condition away, and here it is one.
pub(super) fn filter(value: &RawValue) -> Result<Filter, Wrong> {
    if value.get().len() > MAX_FILTER {
        return Err(format!("may have at most {MAX_FILTER} bytes").into());
    }
    let source: Value = read(
        value,
        "must be an object of conditions, such as {\"data\": {\"amount\": {\"$gte\": 100}}}",
    )?;
    Filter::compile(&source).map_err(|wrong| {
        let place = |wrong: InvalidFilter| {
            FieldError::new(format!("/filter{}", wrong.pointer), wrong.detail)
        };
        Wrong::Inside(wrong.into_iter().map(place).collect())
    })
}

pub(super) fn name(value: &RawValue) -> Result<String, Wrong> {
    let expected = format!("must be 1 to {MAX_NAME} of the characters A-Z a-z 0-9 . _ -");
    let name: String = read(value, &expected)?;
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_good) {
        Ok(name)
    } else {
        Err(expected.into())
    }
}

pub(super) fn description(value: &RawValue) -> Result<String, Wrong> {
    let text: String = read(value, "must be a string")?;
    if text.chars().count() > MAX_DESCRIPTION {
        return Err(format!("may have at most {MAX_DESCRIPTION} characters").into());
    }
    Ok(text)
}

pub(super) fn metadata(
    current: &Map<String, Value>,
    value: &RawValue,
) -> Result<Map<String, Value>, Wrong> {
    let patch: Map<String, Value> = read(value, "must be an object")?;
    let mut merged = Value::Object(current.clone());
    merge(&mut merged, Value::Object(patch));
    if merged.to_string().len() > MAX_METADATA {
        return Err(format!("may have at most {MAX_METADATA} bytes").into());
    }
    if let Value::Object(metadata) = merged {
        Ok(metadata)
    } else {
        Err("must be an object".into())
    }
}

/// RFC 7396 §2.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(members) = target else { return };
    for (name, value) in patch {
        if value.is_null() {
            members.remove(&name);
        } else {
            merge(members.entry(name).or_insert(Value::Null), value);
        }
    }
}

pub(super) fn merge_headers(
    current: &BTreeMap<String, String>,
    value: &RawValue,
) -> Result<BTreeMap<String, String>, Wrong> {
    let patch: BTreeMap<String, Option<String>> = read(value, "must be an object of strings")?;
    let mut merged = current.clone();
    let mut given = BTreeMap::new();
    for (name, value) in patch {
        merged.remove(&name.to_ascii_lowercase());
        if let Some(value) = value {
            given.insert(name, value);
        }
    }
    merged.extend(headers::check(&given).map_err(Wrong::Inside)?);
    headers::check(&merged).map_err(Wrong::Inside)
}

pub(super) fn timeout(value: &RawValue) -> Result<DurationText, Wrong> {
    let text: String = read(value, "must be a duration, such as \"15s\"")?;
    let timeout: DurationText = text
        .parse()
        .map_err(|error: doorbell_common::duration::InvalidDuration| error.to_string())?;
    let millis = u64::try_from(timeout.0.as_millis()).unwrap_or(u64::MAX);
    if TIMEOUTS.contains(&millis) { Ok(timeout) } else { Err("must be between 1s and 30s".into()) }
}

/// A policy is written whole: merging one kind into another would only make nonsense. A kind
/// that is `null` is a merge patch's way to say that it is taken away.
pub(super) fn retry(value: &RawValue) -> Result<RetryPolicy, Wrong> {
    let mut policy: Map<String, Value> = read(value, "must be an object")?;
    policy.retain(|_, value| !value.is_null());
    serde_json::from_value(Value::Object(policy)).map_err(|error| error.to_string().into())
}

/// Merged into what there is, if there is any, as a merge patch asks.
pub(super) fn rate_limit(current: Option<RateLimit>, value: &RawValue) -> Result<RateLimit, Wrong> {
    let members: Map<String, Value> =
        read(value, "must be an object, such as {\"per_second\": 50, \"burst\": 100}")?;
    let mut per_second = current.map(|limit| limit.per_second);
    let mut burst = current.map(|limit| limit.burst);
    let mut errors = Vec::new();
    for (name, value) in &members {
        let place = || format!("/rate_limit{}", pointer(name));
        let known = match name.as_str() {
            "per_second" => &mut per_second,
            "burst" => &mut burst,
            _ => {
                errors.push(FieldError::new(place(), "is not a field of a rate limit"));
                continue;
            }
        };
        match (value.as_u64().and_then(|number| u32::try_from(number).ok()), value.is_null()) {
            (_, true) => *known = None,
            (Some(number), _) if RATES.contains(&number) => *known = Some(number),
            (Some(_) | None, false) => errors.push(FieldError::new(
                place(),
                format!("must be a whole number from {} to {}", RATES.start(), RATES.end()),
            )),
        }
    }
    let Some(per_second) = per_second else {
        if !errors.iter().any(|error| error.pointer == "/rate_limit/per_second") {
            errors.push(FieldError::new("/rate_limit/per_second", "is required"));
        }
        return Err(Wrong::Inside(errors));
    };
    if errors.is_empty() {
        Ok(RateLimit { per_second, burst: burst.unwrap_or(per_second) })
    } else {
        Err(Wrong::Inside(errors))
    }
}

pub(super) fn max_concurrency(value: &RawValue) -> Result<u32, Wrong> {
    let expected =
        format!("must be a whole number from {} to {}", CONCURRENCIES.start(), CONCURRENCIES.end());
    let number: u32 = read(value, &expected)?;
    if CONCURRENCIES.contains(&number) { Ok(number) } else { Err(expected.into()) }
}

pub(super) fn verification(value: &RawValue, least: Verification) -> Result<Verification, Wrong> {
    let text: String = read(value, &InvalidVerification.to_string())?;
    let way: Verification = text.parse().map_err(|error: InvalidVerification| error.to_string())?;
    if way == Verification::None && least != Verification::None {
        return Err("must be challenge or cloudevents: here every endpoint is asked".into());
    }
    Ok(way)
}

pub(super) fn signature(value: &RawValue) -> Result<OlderSignature, Wrong> {
    let mut signature: OlderSignature = serde_json::from_str(value.get()).map_err(|_| {
        "must be an object with header and format, such as {\"header\": \"X-Signature\", \"format\": \"sha256-hex\"}"
    })?;
    headers::check_name(&signature.header)
        .map_err(|detail| Wrong::Inside(vec![FieldError::new("/signature/header", detail)]))?;
    signature.header = signature.header.trim().to_owned();
    Ok(signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_patch_merges() {
        let mut merged = serde_json::json!({"a": {"b": 1, "c": 2}, "d": 3});
        merge(&mut merged, serde_json::json!({"a": {"b": null, "e": {"f": null}}, "d": [1]}));
        assert_eq!(merged, serde_json::json!({"a": {"c": 2, "e": {}}, "d": [1]}));
        let current = BTreeMap::from([
            ("x-a".to_owned(), "1".to_owned()),
            ("x-b".to_owned(), "2".to_owned()),
        ]);
        let raw: Box<RawValue> = serde_json::from_str(r#"{"X-A": null, "x-c": "3"}"#).unwrap();
        let Ok(headers) = merge_headers(&current, &raw) else { panic!("not merged") };
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["x-b", "x-c"]);
    }

    #[test]
    fn a_rate_limit_is_whole() {
        let raw = |text: &str| -> Box<RawValue> { serde_json::from_str(text).unwrap() };
        let read = |current, text: &str| rate_limit(current, &raw(text)).ok();
        let limit = |per_second, burst| RateLimit { per_second, burst };
        assert_eq!(read(None, r#"{"per_second":50}"#), Some(limit(50, 50)));
        assert_eq!(read(None, r#"{"per_second":50,"burst":1}"#), Some(limit(50, 1)));
        let current = Some(limit(5, 7));
        assert_eq!(read(current, r#"{"per_second":6}"#), Some(limit(6, 7)));
        assert_eq!(read(current, r#"{"burst":null}"#), Some(limit(5, 5)));
        for wrong in [r#"{"burst":5}"#, r#"{"per_second":0}"#, r#"{"per_second":1.5}"#, "5", "[]"] {
            assert_eq!(read(None, wrong), None, "{wrong}");
        }
        assert_eq!(read(current, r#"{"per_second":null}"#), None);
        assert_eq!(max_concurrency(&raw("32")).ok(), Some(32));
        for wrong in ["0", "1025", "-1", "\"5\""] {
            assert!(max_concurrency(&raw(wrong)).is_err(), "{wrong}");
        }
    }
}
