//! What is sent and answered, as JSON Schemas. That they are true is tested: every example is carried
//! out, and the answers are compared with them.

use serde_json::{Map, Value, json};

mod others;
mod subscriptions;

/// All of them, by their names.
pub(super) fn all() -> Map<String, Value> {
    let mut all = Map::new();
    let basics = basics().into_iter();
    for (name, schema) in basics.chain(subscriptions::all()).chain(others::all()) {
        all.insert(name.to_owned(), schema);
    }
    for (list, of) in [
        ("TenantList", "Tenant"),
        ("SubscriptionList", "Subscription"),
        ("KeyList", "Key"),
        ("EventTypeList", "EventType"),
        ("AuditList", "AuditEntry"),
    ] {
        all.insert(list.to_owned(), page(of));
    }
    all
}

fn of(name: &str) -> Value {
    doorbell_platform::openapi::reference("schemas", name)
}

fn or_null(schema: &Value) -> Value {
    json!({ "anyOf": [schema, { "type": "null" }] })
}

/// An object with exactly these fields, all of them.
fn whole(fields: &Value) -> Value {
    let required: Vec<&String> = fields.as_object().into_iter().flat_map(Map::keys).collect();
    json!({
        "type": "object", "required": required, "properties": fields, "additionalProperties": false,
    })
}

/// An object with some of these fields, and no others.
fn part(fields: &Value, required: &[&str]) -> Value {
    json!({
        "type": "object", "required": required, "properties": fields, "additionalProperties": false,
    })
}

/// The same as another one, and perhaps with these fields, too.
fn and_perhaps(mut schema: Value, fields: &Value) -> Value {
    for (name, field) in fields.as_object().into_iter().flatten() {
        schema["properties"][name] = field.clone();
    }
    schema
}

fn page(of_what: &str) -> Value {
    whole(&json!({
        "data": { "type": "array", "items": of(of_what) },
        "next": { "type": ["string", "null"], "description": "The cursor of the next page; null: there is none." },
    }))
}

fn text(most: usize, description: &str) -> Value {
    json!({ "type": "string", "maxLength": most, "description": description })
}

fn number(least: u32, most: u32, description: &str) -> Value {
    json!({ "type": "integer", "minimum": least, "maximum": most, "description": description })
}

fn basics() -> Vec<(&'static str, Value)> {
    vec![
        (
            "TenantId",
            json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$", "description": "A tenant's id." }),
        ),
        ("SubscriptionId", json!({ "type": "string", "pattern": "^sub_[0-9a-f]{24}$" })),
        ("EventId", json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{1,128}$" })),
        (
            "Removal",
            whole(&json!({
                "state": { "enum": ["removing", "done"] },
                "requested_at": of("Timestamp"),
                "gone_by": { "allOf": [of("Timestamp")], "description": "From when on nothing of it can be read any more." },
            })),
        ),
        ("KeyId", json!({ "type": "string", "pattern": "^key_[0-9a-f]{24}$" })),
        (
            "Timestamp",
            json!({ "type": "string", "format": "date-time", "description": "RFC 3339, UTC." }),
        ),
        (
            "Duration",
            json!({ "type": "string", "pattern": "^[0-9]{1,9}(ms|s|m|h|d)$", "description": "A whole number and a unit, such as 500ms, 5s, 10m, 2h or 1d." }),
        ),
        (
            "Pattern",
            json!({
                "type": "string", "maxLength": 128,
                "pattern": r"^([A-Za-z0-9_-]+|\*|#)(\.([A-Za-z0-9_-]+|\*|#))*$",
                "description": "Words with dots between; `*` is any one word, `#` any number of them.",
            }),
        ),
        (
            "EventTypeName",
            json!({
                "type": "string", "maxLength": 128, "pattern": r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$",
            }),
        ),
        (
            "Secret",
            json!({ "type": "string", "pattern": "^whsec_[A-Za-z0-9+/]+=*$", "description": "Signs POSTs." }),
        ),
        ("Tenant", whole(&json!({ "id": of("TenantId"), "created_at": of("Timestamp") }))),
        (
            "TenantForm",
            json!({ "type": "object", "additionalProperties": false, "description": "A tenant has no fields of its own." }),
        ),
        ("Limits", whole(&limits())),
        ("LimitsForm", part(&limits(), &[])),
        (
            "Warnings",
            json!({ "type": "array", "items": { "type": "string" }, "description": "What may be a mistake, and was done all the same." }),
        ),
    ]
}

fn limits() -> Value {
    let limit = |description: &str| or_null(&number(1, u32::MAX, description));
    json!({
        "max_subscriptions": limit("How many subscriptions it may have."),
        "max_event_bytes": limit("How many bytes the data of its events may have."),
        "events_per_second": limit("How many events a second it may publish over HTTP, at each producer, and twice as many at once."),
        "retention": or_null(&json!({ "allOf": [of("Duration")], "description": "How long a delivery may wait, all in all, before it is given up: 1s to 30d." })),
    })
}
