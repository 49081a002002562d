//! Reads a document of desired subscriptions, and shows what there is as one.

use std::collections::HashSet;

use doorbell_common::ids::{SubscriptionId, TenantId};
use doorbell_common::json::pointer;
use doorbell_common::subscription::{DisabledReason, Subscription};
use doorbell_platform::http::Members;
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use super::MAX_SUBSCRIPTIONS;
use crate::form::{self, Form, Rules};
use crate::view;

/// What a tenant is to have.
#[derive(Debug, PartialEq)]
pub(super) struct Document {
    pub(super) entries: Vec<Entry>,
}

/// One subscription as it is to be.
#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    /// The one that it is, if it must be there already.
    pub(super) id: Option<SubscriptionId>,
    pub(super) form: Form,
    /// Whether its status is said; otherwise it stays as it is.
    pub(super) says_status: bool,
}

impl Entry {
    /// Where an entry stands in the document.
    pub(super) fn pointer(n: usize, field: &str) -> String {
        format!("/subscriptions/{n}{field}")
    }
}

/// Whose document it is, and what is in it, yet to be read.
pub(super) fn open(body: &[u8]) -> Result<(TenantId, Option<Box<RawValue>>), Problem> {
    let Members(members) = Members::read(body)?;
    let (mut tenant, mut entries, mut errors) = (None, None, Vec::new());
    for (name, value) in members {
        match name.as_str() {
            "tenant" => match serde_json::from_str::<TenantId>(value.get()) {
                Ok(id) => tenant = Some(id),
                Err(_) => errors.push(FieldError::new(
                    "/tenant",
                    "must be a tenant's id: 1 to 64 of A-Z a-z 0-9 _ -",
                )),
            },
            "subscriptions" => entries = Some(value),
            _ => errors.push(FieldError::new(pointer(&name), "is not a field of a document")),
        }
    }
    match tenant {
        Some(tenant) if errors.is_empty() => Ok((tenant, entries)),
        None if errors.is_empty() => {
            Err(Problem::invalid(vec![FieldError::new("/tenant", "is required")]))
        }
        Some(_) | None => Err(Problem::invalid(errors)),
    }
}

/// The entries of a document, yet to be read.
pub(super) fn entries(entries: Option<&RawValue>) -> Result<Vec<Box<RawValue>>, Problem> {
    let wrong = |detail: &str| Problem::invalid(vec![FieldError::new("/subscriptions", detail)]);
    let raw = entries.ok_or_else(|| wrong("is required; [] is no subscription at all"))?;
    let raw: Vec<Box<RawValue>> =
        serde_json::from_str(raw.get()).map_err(|_| wrong("must be a list of subscriptions"))?;
    if raw.len() > MAX_SUBSCRIPTIONS {
        return Err(wrong(&format!("may have at most {MAX_SUBSCRIPTIONS} subscriptions")));
    }
    Ok(raw)
}

/// Entry by entry, as far as a document is read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    entries: Vec<Entry>,
    errors: Vec<FieldError>,
    names: HashSet<String>,
    ids: HashSet<SubscriptionId>,
    read: usize,
}

impl Reading {
    /// Reads the next entry.
    pub(super) fn read(&mut self, raw: &RawValue, rules: &Rules) {
        let n = self.read;
        self.read += 1;
        match entry(raw, rules) {
            Ok(entry) => {
                let mut twice = |field| {
                    self.errors.push(FieldError::new(Entry::pointer(n, field), "is there twice"))
                };
                if entry.form.name.as_ref().is_some_and(|name| !self.names.insert(name.clone())) {
                    twice("/name");
                }
                if entry.id.as_ref().is_some_and(|id| !self.ids.insert(id.clone())) {
                    twice("/id");
                }
                self.entries.push(entry);
            }
            Err(wrong) => self.errors.extend(
                wrong
                    .into_iter()
                    .map(|error| FieldError::new(Entry::pointer(n, &error.pointer), error.detail)),
            ),
        }
    }

    /// The document, or every place that is wrong.
    pub(super) fn end(self) -> Result<Document, Problem> {
        let Self { entries, errors, .. } = self;
        if errors.is_empty() { Ok(Document { entries }) } else { Err(Problem::invalid(errors)) }
    }
}

#[cfg(test)]
impl Document {
    /// Reads all entries.
    pub(super) fn read(raw: Option<&RawValue>, rules: &Rules) -> Result<Self, Problem> {
        let mut reading = Reading::default();
        entries(raw)?.iter().for_each(|raw| reading.read(raw, rules));
        reading.end()
    }
}

fn entry(raw: &RawValue, rules: &Rules) -> Result<Entry, Vec<FieldError>> {
    let Ok(Members(mut members)) = serde_json::from_str::<Members>(raw.get()) else {
        return Err(vec![FieldError::new("", "must be an object")]);
    };
    let mut errors = Vec::new();
    let place = members.iter().position(|(name, _)| name == "id");
    let id = place.map(|place| serde_json::from_str(members.remove(place).1.get()));
    if matches!(id, Some(Err(_))) {
        errors.push(FieldError::new("/id", "must be the id of a subscription of this tenant"));
    }
    let members = Members(members);
    let says_status = members.0.iter().any(|(name, _)| name == "status");
    let form = form::whole(&members, rules).map_err(|wrong| errors.extend(wrong));
    match (form, id.transpose()) {
        (Ok(form), Ok(id)) if form.name.is_some() || id.is_some() => {
            Ok(Entry { id, form, says_status })
        }
        (Ok(_), Ok(_)) => {
            Err(vec![FieldError::new("/name", "is required: it tells which is which")])
        }
        (_, _) => Err(errors),
    }
}

/// What a tenant has, in the form in which it can be put back.
pub(super) fn show(tenant: &TenantId, subscriptions: &[Subscription]) -> Value {
    let entries: Vec<Value> = subscriptions.iter().map(show_entry).collect();
    json!({ "tenant": tenant, "subscriptions": entries })
}

fn show_entry(subscription: &Subscription) -> Value {
    let mut shown = view::subscription(subscription);
    let ours = subscription.disabled_reason.is_some_and(|why| why != DisabledReason::Manual);
    if let Value::Object(fields) = &mut shown {
        fields.insert("status".to_owned(), json!(subscription.status));
        fields.retain(|name, value| match name.as_str() {
            "disabled_reason" | "public_key" | "created_at" | "updated_at" => false,
            // One that we have disabled is not to be disabled by whoever puts this back.
            "status" => !ours,
            // The name says which it is, where there is one, in another deployment, too.
            "id" => subscription.name.is_none(),
            _ => !value.is_null(),
        });
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pointers(problem: &Problem) -> Vec<String> {
        let problem = serde_json::to_value(problem).unwrap();
        let errors = problem["errors"].as_array().cloned().unwrap_or_default();
        errors.iter().map(|error| error["pointer"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn whose_it_is_comes_first() {
        let (tenant, entries) = open(br#"{"tenant":"acme","subscriptions":[1]}"#).unwrap();
        assert_eq!((tenant.as_str(), entries.unwrap().get()), ("acme", "[1]"));
        for (body, wrong) in [
            ("{}", vec!["/tenant"]),
            (r#"{"tenant":"*"}"#, vec!["/tenant"]),
            (r#"{"tenant":"acme","x":1}"#, vec!["/x"]),
        ] {
            assert_eq!(pointers(&open(body.as_bytes()).unwrap_err()), wrong, "{body}");
        }
    }

    #[test]
    fn every_wrong_place_of_every_entry_is_named() {
        let read = |text: &str| {
            let raw: Box<RawValue> = serde_json::from_str(text).unwrap();
            Document::read(Some(&raw), &Rules::default())
        };
        let good = r#"[{"name":"a","url":"https://example.com/","events":["x"]},
            {"id":"sub_00000a0123456789abcdef01","url":"https://example.com/","events":["x"],"status":"paused"}]"#;
        let entries = read(good).unwrap().entries;
        assert_eq!((entries[0].says_status, entries[1].says_status), (false, true));
        assert!(entries[0].id.is_none() && entries[1].id.is_some());
        assert_eq!(read("[]").unwrap().entries, []);
        for (text, wrong) in [
            ("1", vec!["/subscriptions"]),
            ("[1]", vec!["/subscriptions/0"]),
            (
                r#"[{"name":"a b","id":7,"events":["x"],"x":1}]"#,
                vec![
                    "/subscriptions/0/id",
                    "/subscriptions/0/url",
                    "/subscriptions/0/name",
                    "/subscriptions/0/x",
                ],
            ),
            (r#"[{"url":"https://example.com/","events":["x"]}]"#, vec!["/subscriptions/0/name"]),
            (
                r#"[{"name":"a","url":"https://example.com/","events":["x"]},{"name":"a","url":"https://example.com/","events":["x"]}]"#,
                vec!["/subscriptions/1/name"],
            ),
        ] {
            assert_eq!(pointers(&read(text).unwrap_err()), wrong, "{text}");
        }
        assert_eq!(
            pointers(&Document::read(None, &Rules::default()).unwrap_err()),
            ["/subscriptions"]
        );
    }
}
