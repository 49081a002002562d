//! Reads a subscription as people write it, whole (to create) or in part (a merge patch, RFC
//! 7396), and names every field that is wrong, all at once.

use std::collections::BTreeMap;

use axum::http::StatusCode;
use doorbell_common::address::AddressPolicy;
use doorbell_common::duration::DurationText;
use doorbell_common::pattern::Pattern;
use doorbell_common::payload::Payload;
use doorbell_common::rate::RateLimit;
use doorbell_common::retry::RetryPolicy;
use doorbell_common::subscription::{DisabledReason, OlderSignature, Status, Subscription};
use doorbell_platform::http::{Members, pointer};
use doorbell_platform::problem::{FieldError, Problem};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::headers;

const MAX_PATTERNS: usize = 100;
const MAX_DESCRIPTION: usize = 2000;
const MAX_METADATA: usize = 16 * 1024;
const RATES: std::ops::RangeInclusive<u32> = 1..=10_000;
const CONCURRENCIES: std::ops::RangeInclusive<u32> = 1..=1024;
const TIMEOUTS: std::ops::RangeInclusive<u64> = 1000..=30_000;

/// Everything about a subscription that people write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Form {
    pub(crate) url: String,
    pub(crate) events: Vec<Pattern>,
    pub(crate) status: Status,
    pub(crate) description: String,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) payload: Payload,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) timeout: DurationText,
    pub(crate) retry: RetryPolicy,
    pub(crate) rate_limit: Option<RateLimit>,
    pub(crate) max_concurrency: Option<u32>,
    pub(crate) signature: Option<OlderSignature>,
}

impl Default for Form {
    fn default() -> Self {
        Self {
            url: String::new(),
            events: Vec::new(),
            status: Status::Active,
            description: String::new(),
            metadata: Map::new(),
            payload: Payload::default(),
            headers: BTreeMap::new(),
            timeout: std::time::Duration::from_secs(15).into(),
            retry: RetryPolicy::default(),
            rate_limit: None,
            max_concurrency: None,
            signature: None,
        }
    }
}

impl From<&Subscription> for Form {
    fn from(subscription: &Subscription) -> Self {
        Self {
            url: subscription.url.clone(),
            events: subscription.events.clone(),
            status: subscription.status,
            description: subscription.description.clone(),
            metadata: subscription.metadata.clone(),
            payload: subscription.payload,
            headers: subscription.headers.clone(),
            timeout: subscription.timeout,
            retry: subscription.retry.clone(),
            rate_limit: subscription.rate_limit,
            max_concurrency: subscription.max_concurrency,
            signature: subscription.signature.clone(),
        }
    }
}

/// Reads a new subscription.
pub(crate) fn create(body: &[u8], policy: &AddressPolicy) -> Result<Form, Problem> {
    let members = Members::read(body)?;
    let missing: Vec<FieldError> = ["url", "events"]
        .iter()
        .filter(|name| !members.0.iter().any(|(given, _)| given == *name))
        .map(|name| FieldError::new(pointer(name), "is required"))
        .collect();
    let mut reading = Reading { form: Form::default(), policy, errors: missing };
    reading.apply(&members);
    reading.end()
}

/// Reads a change to a subscription.
pub(crate) fn patch(
    body: &[u8],
    current: &Subscription,
    policy: &AddressPolicy,
) -> Result<Form, Problem> {
    let members = Members::read(body)?;
    let mut reading = Reading { form: current.into(), policy, errors: Vec::new() };
    reading.apply(&members);
    reading.end()
}

impl Form {
    /// Puts what was written into a subscription.
    pub(crate) fn write_to(self, subscription: &mut Subscription) {
        if self.status != subscription.status {
            subscription.disabled_reason =
                (self.status == Status::Disabled).then_some(DisabledReason::Manual);
        }
        subscription.url = self.url;
        subscription.events = self.events;
        subscription.status = self.status;
        subscription.description = self.description;
        subscription.metadata = self.metadata;
        subscription.payload = self.payload;
        subscription.headers = self.headers;
        subscription.timeout = self.timeout;
        subscription.retry = self.retry;
        subscription.rate_limit = self.rate_limit;
        subscription.max_concurrency = self.max_concurrency;
        subscription.signature = self.signature;
    }
}

struct Reading<'a> {
    form: Form,
    policy: &'a AddressPolicy,
    errors: Vec<FieldError>,
}

/// What is wrong with one field: a sentence, or several places inside it.
enum Wrong {
    Here(String),
    Inside(Vec<FieldError>),
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

impl Reading<'_> {
    fn apply(&mut self, Members(members): &Members) {
        for (name, value) in members {
            match self.field(name, value) {
                Ok(()) => {}
                Err(Wrong::Here(detail)) => {
                    self.errors.push(FieldError::new(pointer(name), detail))
                }
                Err(Wrong::Inside(errors)) => self.errors.extend(errors),
            }
        }
    }

    fn end(mut self) -> Result<Form, Problem> {
        if let Some(signature) = &self.form.signature
            && self.form.headers.contains_key(&signature.header.to_ascii_lowercase())
        {
            self.errors.push(FieldError::new(
                "/signature/header",
                "is one of the subscription's own headers",
            ));
        }
        if self.errors.is_empty() { Ok(self.form) } else { Err(Problem::invalid(self.errors)) }
    }

    /// Reads one field; `null` brings back its default.
    fn field(&mut self, name: &str, value: &RawValue) -> Result<(), Wrong> {
        let default = Form::default();
        let form = &mut self.form;
        let null = value.get() == "null";
        match name {
            "url" => {
                let url: String = read(value, "must be a string")?;
                self.policy.check_url(&url).map_err(|refused| refused.to_string())?;
                form.url = url;
            }
            "events" => form.events = patterns(value)?,
            "status" if null => form.status = default.status,
            "status" => form.status = read(value, "must be active, paused or disabled")?,
            "description" if null => form.description = default.description,
            "description" => form.description = description(value)?,
            "metadata" if null => form.metadata = default.metadata,
            "metadata" => form.metadata = metadata(&form.metadata, value)?,
            "payload" if null => form.payload = default.payload,
            "payload" => form.payload = read(value, "must be envelope or raw")?,
            "headers" if null => form.headers = default.headers,
            "headers" => form.headers = merge_headers(&form.headers, value)?,
            "timeout" if null => form.timeout = default.timeout,
            "timeout" => form.timeout = timeout(value)?,
            "retry" if null => form.retry = default.retry,
            "retry" => form.retry = retry(value)?,
            "signature" if null => form.signature = None,
            "signature" => form.signature = Some(signature(value)?),
            "rate_limit" if null => form.rate_limit = None,
            "rate_limit" => form.rate_limit = Some(rate_limit(form.rate_limit, value)?),
            "max_concurrency" if null => form.max_concurrency = None,
            "max_concurrency" => form.max_concurrency = Some(max_concurrency(value)?),
            "id" | "disabled_reason" | "created_at" | "updated_at" => return Err("is set by Doorbell".into()),
            "secret" => return Err("is made by Doorbell; read it with GET …/secret, change it with POST …/secret/rotate".into()),
            _ => return Err("is not a field of a subscription".into()),
        }
        Ok(())
    }
}

fn read<T: DeserializeOwned>(value: &RawValue, expected: &str) -> Result<T, Wrong> {
    serde_json::from_str(value.get()).map_err(|_| expected.into())
}

fn patterns(value: &RawValue) -> Result<Vec<Pattern>, Wrong> {
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

fn description(value: &RawValue) -> Result<String, Wrong> {
    let text: String = read(value, "must be a string")?;
    if text.chars().count() > MAX_DESCRIPTION {
        return Err(format!("may have at most {MAX_DESCRIPTION} characters").into());
    }
    Ok(text)
}

fn metadata(current: &Map<String, Value>, value: &RawValue) -> Result<Map<String, Value>, Wrong> {
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

fn merge_headers(
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

fn timeout(value: &RawValue) -> Result<DurationText, Wrong> {
    let text: String = read(value, "must be a duration, such as \"15s\"")?;
    let timeout: DurationText = text
        .parse()
        .map_err(|error: doorbell_common::duration::InvalidDuration| error.to_string())?;
    let millis = u64::try_from(timeout.0.as_millis()).unwrap_or(u64::MAX);
    if TIMEOUTS.contains(&millis) { Ok(timeout) } else { Err("must be between 1s and 30s".into()) }
}

/// A policy is written whole: merging one kind into another would only make nonsense. A kind
/// that is `null` is a merge patch's way to say that it is taken away.
fn retry(value: &RawValue) -> Result<RetryPolicy, Wrong> {
    let mut policy: Map<String, Value> = read(value, "must be an object")?;
    policy.retain(|_, value| !value.is_null());
    serde_json::from_value(Value::Object(policy)).map_err(|error| error.to_string().into())
}

/// Merged into what there is, if there is any, as a merge patch asks.
fn rate_limit(current: Option<RateLimit>, value: &RawValue) -> Result<RateLimit, Wrong> {
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

fn max_concurrency(value: &RawValue) -> Result<u32, Wrong> {
    let expected =
        format!("must be a whole number from {} to {}", CONCURRENCIES.start(), CONCURRENCIES.end());
    let number: u32 = read(value, &expected)?;
    if CONCURRENCIES.contains(&number) { Ok(number) } else { Err(expected.into()) }
}

fn signature(value: &RawValue) -> Result<OlderSignature, Wrong> {
    let mut signature: OlderSignature = serde_json::from_str(value.get()).map_err(|_| {
        "must be an object with header and format, such as {\"header\": \"X-Signature\", \"format\": \"sha256-hex\"}"
    })?;
    headers::check_name(&signature.header)
        .map_err(|detail| Wrong::Inside(vec![FieldError::new("/signature/header", detail)]))?;
    signature.header = signature.header.trim().to_owned();
    Ok(signature)
}

/// Whether a request's body is of a type that this call takes is checked by the caller; an empty
/// one is only fine where a body is optional.
pub(crate) fn overlap(body: &[u8]) -> Result<std::time::Duration, Problem> {
    const DEFAULT: std::time::Duration = std::time::Duration::from_secs(24 * 3600);
    const LONGEST: std::time::Duration = std::time::Duration::from_secs(7 * 24 * 3600);
    if body.trim_ascii().is_empty() {
        return Ok(DEFAULT);
    }
    let Members(members) = Members::read(body)?;
    let mut overlap = DEFAULT;
    let mut errors = Vec::new();
    for (name, value) in &members {
        if name != "overlap" {
            errors.push(FieldError::new(pointer(name), "is not a field of a rotation"));
            continue;
        }
        match serde_json::from_str::<DurationText>(value.get()) {
            Ok(text) if text.0 <= LONGEST => overlap = text.0,
            Ok(_) => errors.push(FieldError::new("/overlap", "must be at most 7d")),
            Err(_) => {
                errors.push(FieldError::new("/overlap", "must be a duration, such as \"24h\""))
            }
        }
    }
    if errors.is_empty() { Ok(overlap) } else { Err(Problem::invalid(errors)) }
}

/// 412 unless the caller's `If-Match` (if any) names this version.
pub(crate) fn check_match(if_match: Option<&str>, version: &str) -> Result<(), Problem> {
    let Some(tags) = if_match else { return Ok(()) };
    let matches = tags.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag(version));
    if matches {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::PRECONDITION_FAILED,
        "the subscription has changed since you read it: read it again",
    ))
}

/// The `ETag` of a version.
pub(crate) fn etag(version: &str) -> String {
    format!("\"{version}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> AddressPolicy {
        AddressPolicy::default()
    }

    fn wrong(body: &str) -> Vec<String> {
        let problem =
            serde_json::to_value(create(body.as_bytes(), &policy()).unwrap_err()).unwrap();
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_is_not_written_has_its_default() {
        let form =
            create(br#"{"url":"https://example.com/","events":["a.*","a.*"]}"#, &policy()).unwrap();
        assert_eq!(form.events.len(), 1);
        assert_eq!(Form { url: String::new(), events: vec![], ..form }, Form::default());
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let body = r#"{"url":"http://localhost/","events":["a..b","ok","*x"],"status":"on","payload":1,
            "headers":{"host":"x","ok":"1"},"timeout":"31s","retry":{"fixed":{"delay":"1s","attempts":0}},
            "rate_limit":{"burst":0,"x":1},"max_concurrency":0,"signature":{"header":"webhook-x","format":"sha256-hex"},
            "id":"x","colour":"red","metadata":[],"description":5}"#;
        let mut pointers = wrong(body);
        pointers.sort();
        let expected = [
            "/colour",
            "/description",
            "/events/0",
            "/events/2",
            "/headers/host",
            "/id",
            "/max_concurrency",
            "/metadata",
            "/payload",
            "/rate_limit/burst",
            "/rate_limit/per_second",
            "/rate_limit/x",
            "/retry",
            "/signature/header",
            "/status",
            "/timeout",
            "/url",
        ];
        assert_eq!(pointers, expected);
        assert_eq!(wrong("{}"), ["/url", "/events"]);
        assert_eq!(wrong(r#"{"url":"https://example.com/","events":[]}"#), ["/events"]);
    }

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

    #[test]
    fn an_overlap_is_up_to_seven_days() {
        assert_eq!(overlap(b"").unwrap().as_secs(), 86_400);
        assert_eq!(overlap(br#"{"overlap":"0s"}"#).unwrap().as_secs(), 0);
        for wrong in [r#"{"overlap":"8d"}"#, r#"{"overlap":1}"#, r#"{"x":1}"#, "[]", "{"] {
            assert!(overlap(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
