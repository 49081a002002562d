//! What a document would change. Decides only; nothing here awaits.

use std::collections::HashMap;

use doorbell_common::event::EventType;
use doorbell_common::subscription::Subscription;
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::{Value, json};

use super::document::{Document, Entry};
use crate::audit::differences;
use crate::etag::version_of;
use crate::event_types;
use crate::form::Form;
use crate::view;

/// What is to be done.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) create: Vec<Form>,
    pub(super) update: Vec<Update>,
    pub(super) delete: Vec<Subscription>,
    unchanged: usize,
}

/// A subscription, and what it is to be.
#[derive(Debug)]
pub(super) struct Update {
    pub(super) before: Subscription,
    form: Form,
    says_status: bool,
}

impl Plan {
    /// What makes these subscriptions what the document says.
    ///
    /// # Errors
    /// 422 for each entry whose id is none of theirs, or whose name is that of several.
    pub(super) fn make(document: Document, current: Vec<Subscription>) -> Result<Self, Problem> {
        let (mut ids, mut names) = (HashMap::new(), HashMap::<String, Vec<usize>>::new());
        for (n, subscription) in current.iter().enumerate() {
            ids.insert(subscription.id.to_string(), n);
            if let Some(name) = &subscription.name {
                names.entry(name.clone()).or_default().push(n);
            }
        }
        let mut left: Vec<Option<Subscription>> = current.into_iter().map(Some).collect();
        let mut plan = Self { create: vec![], update: vec![], delete: vec![], unchanged: 0 };
        let mut errors = Vec::new();
        // Those that are told by their ids first: others may be given their names.
        let (by_id, by_name): (Vec<_>, Vec<_>) =
            document.entries.into_iter().enumerate().partition(|(_, entry)| entry.id.is_some());
        for (n, entry) in by_id.into_iter().chain(by_name) {
            let is_left = |place: &usize| matches!(left.get(*place), Some(Some(_)));
            let places: Vec<usize> = match (&entry.id, &entry.form.name) {
                (Some(id), _) => ids.get(&id.to_string()).into_iter().copied().collect(),
                (None, Some(name)) => names.get(name).into_iter().flatten().copied().collect(),
                (None, None) => vec![],
            };
            let places: Vec<usize> = places.into_iter().filter(is_left).collect();
            match (places.as_slice(), &entry.id) {
                ([place], _) => {
                    if let Some(before) = left.get_mut(*place).and_then(Option::take) {
                        plan.keep(before, entry);
                    }
                }
                ([], None) => plan.create.push(entry.form),
                ([], Some(_)) => errors.push(FieldError::new(
                    Entry::pointer(n, "/id"),
                    "is not the id of a subscription of this tenant",
                )),
                (_, _) => errors.push(FieldError::new(
                    Entry::pointer(n, "/name"),
                    "is the name of several subscriptions: say by \"id\" which one this is",
                )),
            }
        }
        plan.delete = left.into_iter().flatten().collect();
        if errors.is_empty() { Ok(plan) } else { Err(Problem::invalid(errors)) }
    }

    fn keep(&mut self, before: Subscription, Entry { mut form, says_status, .. }: Entry) {
        if !says_status {
            form.status = before.status;
        }
        if Form::from(&before) == form {
            self.unchanged += 1;
        } else {
            self.update.push(Update { before, form, says_status });
        }
    }

    /// What it comes to, before it is done.
    pub(super) fn shown(&self, types: &[EventType]) -> Value {
        let forms = self.create.iter().chain(self.update.iter().map(|update| &update.form));
        let warnings = forms.flat_map(|form| {
            let name = form.name.clone().unwrap_or_default();
            let warnings = event_types::warnings(types, &form.events).into_iter();
            warnings.map(move |warning| format!("{name}: {warning}"))
        });
        let created = self.create.iter().map(|form| json!({ "id": null, "name": form.name }));
        let updated = self.update.iter().map(Update::shown);
        let deleted = self
            .delete
            .iter()
            .map(|gone| json!({ "id": gone.id, "name": gone.name, "url": gone.url }));
        json!({
            "created": created.collect::<Vec<Value>>(),
            "updated": updated.collect::<Vec<Value>>(),
            "deleted": deleted.collect::<Vec<Value>>(),
            "unchanged": self.unchanged,
            "warnings": warnings.collect::<Vec<String>>(),
        })
    }
}

impl Update {
    /// The subscription as it is to be. A status that is not said stays as it is just now: it may have
    /// been disabled since it was compared.
    pub(super) fn changed(&self, current: &Subscription) -> Subscription {
        let mut form = self.form.clone();
        if !self.says_status {
            form.status = current.status;
        }
        form.changed(current)
    }

    fn shown(&self) -> Value {
        let after = self.changed(&self.before);
        let view = |subscription: &Subscription| {
            let mut shown = view::subscription(subscription);
            // One that is yet to be made is nobody's.
            shown["public_key"].take();
            shown
        };
        let changes = differences(&view(&self.before), &view(&after), |_, value| value.clone());
        json!({ "id": after.id, "name": after.name, "changes": changes })
    }
}

/// The version of all of them together.
pub(super) fn version(subscriptions: &[Subscription]) -> String {
    let each = subscriptions.iter().map(|one| format!("{} {}\n", one.id, one.version));
    version_of(&each.collect::<String>())
}

#[cfg(test)]
mod tests {
    use doorbell_common::subscription::{DisabledReason, Status};
    use serde_json::value::RawValue;

    use super::*;
    use crate::form::Rules;
    use crate::subscriptions::new_subscription;

    fn document(entries: &Value) -> Document {
        let raw: Box<RawValue> = serde_json::value::to_raw_value(entries).unwrap();
        Document::read(Some(&raw), &Rules::default()).unwrap()
    }

    fn there(n: u8, entry: &Value) -> Subscription {
        let Entry { form, .. } = document(&json!([entry])).entries.remove(0);
        let id = format!("sub_00000{n}0123456789abcdef01").parse().unwrap();
        new_subscription(id, "acme".parse().unwrap(), form).unwrap()
    }

    fn entry(name: &str, events: &[&str]) -> Value {
        json!({"name": name, "url": "https://example.com/", "events": events})
    }

    fn brief(plan: &Plan) -> (usize, usize, usize, usize) {
        (plan.create.len(), plan.update.len(), plan.delete.len(), plan.unchanged)
    }

    #[test]
    fn only_what_differs_is_done() {
        let current = || vec![there(1, &entry("a", &["x"])), there(2, &entry("b", &["x"]))];
        let make = |entries: Value| Plan::make(document(&entries), current());
        let plan = make(json!([entry("a", &["x"]), entry("b", &["x"])])).unwrap();
        assert_eq!(brief(&plan), (0, 0, 0, 2));
        let plan = make(json!([entry("b", &["y"]), entry("c", &["x"])])).unwrap();
        assert_eq!(brief(&plan), (1, 1, 1, 0));
        let shown = plan.shown(&["x".parse().unwrap()]);
        assert_eq!(shown["updated"][0]["changes"], json!({"events": {"from": ["x"], "to": ["y"]}}));
        assert_eq!(shown["deleted"][0]["name"], "a");
        assert_eq!(shown["warnings"], json!(["b: y matches no event type of the catalogue"]));
        assert_eq!(brief(&make(json!([])).unwrap()), (0, 0, 2, 0));
        // Names may be exchanged, by ids.
        let mut swapped = [entry("b", &["x"]), entry("a", &["x"])];
        swapped[0]["id"] = "sub_0000010123456789abcdef01".into();
        swapped[1]["id"] = "sub_0000020123456789abcdef01".into();
        assert_eq!(brief(&make(json!(swapped)).unwrap()), (0, 2, 0, 0));
        swapped[0]["id"] = "sub_0000030123456789abcdef01".into();
        assert!(make(json!(swapped)).is_err());
        let twice = || vec![there(1, &entry("a", &["x"])), there(2, &entry("a", &["x"]))];
        assert!(Plan::make(document(&json!([entry("a", &["x"])])), twice()).is_err());
        let mut first = entry("a", &["x"]);
        first["id"] = "sub_0000010123456789abcdef01".into();
        assert_eq!(brief(&Plan::make(document(&json!([first])), twice()).unwrap()), (0, 0, 1, 1));
    }

    #[test]
    fn a_status_that_is_not_said_stays() {
        let mut paused = entry("a", &["x"]);
        paused["status"] = "paused".into();
        let make =
            |entry: &Value| Plan::make(document(&json!([entry])), vec![there(1, &paused)]).unwrap();
        assert_eq!(brief(&make(&entry("a", &["x"]))), (0, 0, 0, 1));
        let mut active = entry("a", &["x"]);
        active["status"] = "active".into();
        assert_eq!(brief(&make(&active)), (0, 1, 0, 0));
        // Nor is one disturbed that is disabled after it was compared.
        let other = make(&entry("a", &["y"]));
        let mut disabled = there(1, &active);
        disabled.status = Status::Disabled;
        disabled.disabled_reason = Some(DisabledReason::Gone);
        let changed = other.update[0].changed(&disabled);
        assert_eq!(changed.status, Status::Disabled);
        assert_eq!(changed.disabled_reason, Some(DisabledReason::Gone));
    }

    #[test]
    fn what_is_shown_can_be_put_back() {
        let mut whole = entry("a", &["x"]);
        whole["headers"] = json!({"x-team": "a"});
        whole["filter"] = json!({"data": {"amount": {"$gte": 1}}});
        whole["rate_limit"] = json!({"per_second": 5, "burst": 6});
        whole["asymmetric_signature"] = true.into();
        let mut unnamed = there(2, &entry("b", &["x"]));
        unnamed.name = None;
        let current = vec![there(1, &whole), unnamed];
        let shown = super::super::document::show(&"acme".parse().unwrap(), &current);
        let again = Plan::make(document(&shown["subscriptions"]), current).unwrap();
        assert_eq!(brief(&again), (0, 0, 0, 2), "{shown}");
    }
}
