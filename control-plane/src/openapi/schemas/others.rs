//! Keys, event types, and what concerns a whole deployment.

use doorbell_common::api_key::Scope;
use serde_json::{Value, json};

use super::{and_perhaps, of, or_null, part, text, whole};
use crate::event_types;

fn key() -> Value {
    json!({
        "label": { "type": "string", "minLength": 1, "maxLength": 200, "description": "For people." },
        "scopes": { "type": "array", "minItems": 1, "items": { "enum": Scope::ALL.map(Scope::as_str) } },
        "expires_at": or_null(&of("Timestamp")),
    })
}

fn key_shown() -> Value {
    let read = json!({
        "id": of("KeyId"), "tenant": or_null(&of("TenantId")), "created_at": of("Timestamp"),
        "last_used_at": or_null(&of("Timestamp")),
    });
    let mut fields = key();
    for (name, schema) in read.as_object().into_iter().flatten() {
        fields[name] = schema.clone();
    }
    whole(&fields)
}

fn event_type() -> Value {
    json!({
        "description": text(event_types::MAX_DESCRIPTION, "For people."),
        "schema": { "type": ["object", "boolean", "null"], "description": "A JSON Schema of its events' data." },
        "example": { "description": "The data of such an event." },
        "deprecated": { "type": "boolean", "description": "Whether it is to be used no more." },
    })
}

pub(super) fn all() -> Vec<(&'static str, Value)> {
    let named =
        and_perhaps(part(&event_type(), &["name"]), &json!({ "name": of("EventTypeName") }));
    let mut shown = event_type();
    shown["name"] = of("EventTypeName");
    shown["created_at"] = of("Timestamp");
    shown["updated_at"] = of("Timestamp");
    let event = part(
        &json!({
            "id": {}, "type": {}, "timestamp": {}, "tenant": {}, "data": { "description": "Its data." },
        }),
        &["data"],
    );
    let count = json!({ "type": "integer" });
    let maybe = json!({ "type": ["string", "null"] });
    vec![
        ("Key", key_shown()),
        (
            "KeyCreated",
            and_perhaps(
                key_shown(),
                &json!({ "key": { "type": "string", "description": "The key, which is shown this once." } }),
            ),
        ),
        ("KeyForm", part(&key(), &["label", "scopes"])),
        ("EventType", whole(&shown)),
        ("EventTypeForm", part(&event_type(), &[])),
        (
            "Catalogue",
            whole(
                &json!({ "event_types": { "type": "array", "maxItems": event_types::MAX_TYPES, "items": named } }),
            ),
        ),
        ("CatalogueResult", whole(&json!({ "count": count }))),
        (
            "FilterTest",
            part(&json!({ "filter": { "type": "object" }, "event": event }), &["filter", "event"]),
        ),
        (
            "FilterResult",
            whole(&json!({
                "matches": { "type": "boolean" },
                "mismatch": or_null(&whole(&json!({
                    "condition": { "type": "string", "description": "Where in the filter." },
                    "value": { "type": "string", "description": "Where in the event." },
                    "detail": { "type": "string" },
                }))),
            })),
        ),
        (
            "TemplatePreview",
            part(&json!({ "template": of("Template"), "event": event }), &["template"]),
        ),
        (
            "TemplateResult",
            whole(&json!({ "content_type": { "type": "string" }, "body": { "type": "string" } })),
        ),
        (
            "Encryption",
            whole(&json!({
                "active_key": maybe,
                "round": whole(&json!({
                    "state": { "enum": ["not begun", "sealing", "done"] },
                    "active_key": maybe, "slots_done": count, "slots": count, "sealed": count, "failed": count,
                    "started_at": or_null(&of("Timestamp")), "finished_at": or_null(&of("Timestamp")),
                })),
            })),
        ),
        (
            "AuditEntry",
            whole(&json!({
                "id": { "type": "string" },
                "at": of("Timestamp"),
                "actor": { "type": "string", "description": "A key's id, or `operator`." },
                "from": maybe, "forwarded_for": maybe,
                "request_id": { "type": "string" },
                "action": { "type": "string" },
                "tenant": maybe, "subject": maybe,
                "changes": { "anyOf": [of("Changes"), { "type": "null" }] },
            })),
        ),
    ]
}
