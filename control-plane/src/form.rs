//! Reads a subscription as people write it, whole (to create) or in part (a merge patch, RFC
//! 7396), and names every field that is wrong, all at once.

mod fields;

use std::collections::BTreeMap;

use doorbell_common::address::{AddressPolicy, EndpointUrl};
use doorbell_common::asymmetric::AsymmetricKey;
use doorbell_common::duration::DurationText;
use doorbell_common::filter::Filter;
use doorbell_common::json::pointer;
use doorbell_common::pattern::Pattern;
use doorbell_common::payload::Payload;
use doorbell_common::rate::RateLimit;
use doorbell_common::retry::RetryPolicy;
use doorbell_common::subscription::{DisabledReason, OlderSignature, Status, Subscription};
use doorbell_common::template::Template;
use doorbell_common::verification::Verification;
use doorbell_platform::clock;
use doorbell_platform::http::Members;
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

pub(crate) use fields::{MAX_DESCRIPTION, MAX_PATTERNS, sample_event};
use fields::{
    Wrong, description, max_concurrency, merge_headers, metadata, patterns, rate_limit, read,
    retry, signature, timeout, verification,
};

/// What the operator has to say of subscriptions.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rules {
    /// Where they may deliver to.
    pub(crate) addresses: AddressPolicy,
    /// How their endpoints are asked, if they say nothing else of it.
    pub(crate) verification: Verification,
}

/// Everything about a subscription that people write.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Form {
    pub(crate) name: Option<String>,
    pub(crate) url: EndpointUrl,
    pub(crate) events: Vec<Pattern>,
    pub(crate) filter: Option<Filter>,
    pub(crate) template: Option<Template>,
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
    /// Whether POSTs are signed with a key pair, too.
    pub(crate) asymmetric_signature: bool,
    pub(crate) verification: Verification,
}

impl Default for Form {
    fn default() -> Self {
        Self {
            name: None,
            url: EndpointUrl::default(),
            events: Vec::new(),
            filter: None,
            template: None,
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
            asymmetric_signature: false,
            verification: Verification::None,
        }
    }
}

impl From<&Subscription> for Form {
    fn from(subscription: &Subscription) -> Self {
        Self {
            name: subscription.name.clone(),
            url: subscription.url.clone(),
            events: subscription.events.clone(),
            filter: subscription.filter.clone(),
            template: subscription.template.as_deref().cloned(),
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
            asymmetric_signature: subscription.public_key().is_some(),
            verification: subscription.verification,
        }
    }
}

/// Reads a new subscription.
pub(crate) fn create(body: &[u8], rules: &Rules) -> Result<Form, Problem> {
    whole(&Members::read(body)?, rules).map_err(Problem::invalid)
}

/// Reads a subscription whole; what is not written has its default.
pub(crate) fn whole(members: &Members, rules: &Rules) -> Result<Form, Vec<FieldError>> {
    let missing: Vec<FieldError> = ["url", "events"]
        .iter()
        .filter(|name| !members.0.iter().any(|(given, _)| given == *name))
        .map(|name| FieldError::new(pointer(name), "is required"))
        .collect();
    let mut reading = Reading {
        form: Form { verification: rules.verification, ..Form::default() },
        rules,
        errors: missing,
    };
    reading.apply(members);
    reading.end()
}

/// Reads a change to a subscription.
pub(crate) fn patch(
    members: &Members,
    current: &Subscription,
    rules: &Rules,
) -> Result<Form, Problem> {
    let mut reading = Reading { form: current.into(), rules, errors: Vec::new() };
    reading.apply(members);
    reading.end().map_err(Problem::invalid)
}

impl Form {
    /// A subscription with what was written.
    pub(crate) fn changed(self, subscription: &Subscription) -> Subscription {
        let mut changed = subscription.clone();
        self.write_to(&mut changed, &clock::random_bytes());
        changed
    }

    /// Puts what was written into a subscription. `seed` is what a key pair is made of, if it needs
    /// a new one.
    pub(crate) fn write_to(self, subscription: &mut Subscription, seed: &[u8; 32]) {
        let newest = subscription.secrets.first_mut();
        match newest {
            Some(newest) if self.asymmetric_signature => {
                newest.asymmetric.get_or_insert_with(|| AsymmetricKey::from_seed(seed));
            }
            Some(_) | None => {
                subscription.secrets.iter_mut().for_each(|secret| secret.asymmetric = None);
            }
        }
        if self.status != subscription.status {
            subscription.disabled_reason =
                (self.status == Status::Disabled).then_some(DisabledReason::Manual);
        }
        subscription.name = self.name;
        subscription.url = self.url;
        subscription.events = self.events;
        subscription.filter = self.filter;
        subscription.template = self.template.map(Box::new);
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
        subscription.verification = self.verification;
    }
}

/// Reads a filter alone.
pub(crate) fn filter(value: &RawValue) -> Result<Filter, Vec<FieldError>> {
    fields::filter(value).map_err(|wrong| wrong.at("/filter"))
}

/// Reads a template alone. Whether it works with its sample is not asked.
pub(crate) fn template(value: &RawValue) -> Result<Template, Vec<FieldError>> {
    fields::template_alone(value).map_err(|wrong| wrong.at("/template"))
}

struct Reading<'a> {
    form: Form,
    rules: &'a Rules,
    errors: Vec<FieldError>,
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

    fn end(mut self) -> Result<Form, Vec<FieldError>> {
        if let Some(signature) = &self.form.signature
            && self.form.headers.contains_key(&signature.header.to_ascii_lowercase())
        {
            self.errors.push(FieldError::new(
                "/signature/header",
                "is one of the subscription's own headers",
            ));
        }
        if self.errors.is_empty() { Ok(self.form) } else { Err(self.errors) }
    }

    /// Reads one field; `null` brings back its default.
    fn field(&mut self, name: &str, value: &RawValue) -> Result<(), Wrong> {
        let default = Form::default();
        let form = &mut self.form;
        let null = value.get() == "null";
        match name {
            "url" => {
                let url: EndpointUrl = read(value, "must be a string")?;
                self.rules.addresses.check_url(&url).map_err(|refused| refused.to_string())?;
                form.url = url;
            }
            "events" => form.events = patterns(value)?,
            "name" if null => form.name = None,
            "name" => form.name = Some(fields::name(value)?),
            "template" if null => form.template = None,
            "template" => form.template = Some(fields::template(value)?),
            "filter" if null => form.filter = None,
            "filter" => form.filter = Some(fields::filter(value)?),
            "status" if null => form.status = default.status,
            "status" => form.status = read(value, "must be active, paused or disabled")?,
            "description" if null => form.description = default.description,
            "description" => form.description = description(value)?,
            "metadata" if null => form.metadata = default.metadata,
            "metadata" => form.metadata = metadata(&form.metadata, value)?,
            "payload" if null => form.payload = default.payload,
            "payload" => form.payload = read(value, "must be envelope, raw or cloudevents")?,
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
            "asymmetric_signature" if null => form.asymmetric_signature = false,
            "asymmetric_signature" => {
                form.asymmetric_signature = read(value, "must be true or false")?;
            }
            "verification" if null => form.verification = self.rules.verification,
            "verification" => form.verification = verification(value, self.rules.verification)?,
            "public_key" => return Err("is made by Doorbell, for \"asymmetric_signature\": true".into()),
            "id" | "disabled_reason" | "created_at" | "updated_at" => return Err("is set by Doorbell".into()),
            "secret" => return Err("is made by Doorbell; read it with GET …/secret, change it with POST …/secret/rotate".into()),
            _ => return Err("is not a field of a subscription".into()),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules() -> Rules {
        Rules::default()
    }

    fn wrong(body: &str) -> Vec<String> {
        let problem = serde_json::to_value(create(body.as_bytes(), &rules()).unwrap_err()).unwrap();
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_is_not_written_has_its_default() {
        let form =
            create(br#"{"url":"https://example.com/","events":["a.*","a.*"]}"#, &rules()).unwrap();
        assert_eq!(form.events.len(), 1);
        assert_eq!(Form { url: EndpointUrl::default(), events: vec![], ..form }, Form::default());
    }

    #[test]
    fn every_wrong_field_is_named_at_once() {
        let body = r#"{"url":"http://localhost/","events":["a..b","ok","*x"],"status":"on","payload":1,
            "headers":{"host":"x","ok":"1"},"timeout":"31s","retry":{"fixed":{"delay":"1s","attempts":0}},
            "rate_limit":{"burst":0,"x":1},"max_concurrency":0,"signature":{"header":"webhook-x","format":"sha256-hex"},
            "id":"x","filter":{"amount":1,"data":{"$x":1}},"colour":"red","metadata":[],"description":5}"#;
        let mut pointers = wrong(body);
        pointers.sort();
        let expected = [
            "/colour",
            "/description",
            "/events/0",
            "/events/2",
            "/filter/amount",
            "/filter/data/$x",
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
}
