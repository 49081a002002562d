//! The examples of the document. Each is carried out by a test.

use serde_json::{Value, json};

pub(super) const TENANT: &str = "acme";
pub(super) const SUBSCRIPTION: &str = "sub_00000a0123456789abcdef01";
pub(super) const KEY: &str = "key_0123456789abcdef01234567";
pub(super) const EVENT: &str = "evt_gone";
pub(super) const EVENT_TYPE: &str = "payment.succeeded";
pub(super) const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo=";
const TIME: &str = "2026-11-21T09:30:00Z";

pub(super) fn tenant() -> Value {
    json!({ "id": TENANT, "created_at": TIME })
}

pub(super) fn limits() -> Value {
    json!({ "max_subscriptions": 100, "max_event_bytes": 65_536, "events_per_second": 50, "retention": "3d" })
}

pub(super) fn removal() -> Value {
    json!({ "state": "removing", "requested_at": TIME, "gone_by": "2026-12-24T09:30:00Z" })
}

/// A page with one entry.
pub(super) fn page(entry: &Value) -> Value {
    json!({ "data": [entry], "next": null })
}

pub(super) fn subscription_form() -> Value {
    json!({
        "name": "billing", "url": "https://example.com/hook", "events": ["payment.*", "refund.#"],
        "filter": { "data": { "amount": { "$gte": 100 } } },
        "rate_limit": { "per_second": 50, "burst": 100 },
    })
}

pub(super) fn subscription() -> Value {
    json!({
        "id": SUBSCRIPTION, "name": "billing", "url": "https://example.com/hook",
        "events": ["payment.*", "refund.#"], "filter": { "data": { "amount": { "$gte": 100 } } },
        "status": "active", "verification": "none", "disabled_reason": null, "description": "",
        "metadata": {}, "payload": "envelope", "template": null, "headers": {}, "timeout": "15s",
        "retry": { "schedule": ["5s", "5m", "30m", "2h", "5h", "10h", "14h", "20h", "24h"] },
        "rate_limit": { "per_second": 50, "burst": 100 }, "max_concurrency": null, "signature": null,
        "asymmetric_signature": false, "public_key": null, "created_at": TIME, "updated_at": TIME,
    })
}

/// An example with one more field.
pub(super) fn with(mut example: Value, name: &str, value: &str) -> Value {
    example[name] = value.into();
    example
}

pub(super) fn test_result() -> Value {
    json!({
        "outcome": "client_error", "status": 418, "duration_ms": 3, "headers": { "server": "kettle" },
        "body": "short and stout", "truncated": false, "detail": "the endpoint answered 418",
    })
}

pub(super) fn bulk_forms() -> [Value; 2] {
    ["a", "b"].map(
        |name| json!({ "url": format!("https://example.com/{name}"), "events": ["payment.*"] }),
    )
}

pub(super) fn bulk_created() -> [Value; 2] {
    [
        json!({ "line": 1, "status": 201, "id": SUBSCRIPTION, "secret": SECRET }),
        json!({ "created": 1, "refused": 0 }),
    ]
}

pub(super) fn bulk_updated() -> [Value; 2] {
    [json!({ "line": 1, "status": 200, "id": SUBSCRIPTION }), json!({ "updated": 1, "refused": 0 })]
}

pub(super) fn bulk_deleted() -> [Value; 2] {
    [json!({ "line": 1, "status": 204, "id": SUBSCRIPTION }), json!({ "deleted": 1, "refused": 0 })]
}

pub(super) fn document() -> Value {
    json!({ "tenant": TENANT, "subscriptions": [
        { "name": "billing", "url": "https://example.com/billing", "events": ["payment.*"] },
        { "name": "audit", "url": "https://example.com/audit", "events": ["#"], "status": "paused" },
    ] })
}

pub(super) fn document_result() -> Value {
    json!({
        "tenant": TENANT, "dry_run": false,
        "created": [{ "id": SUBSCRIPTION, "name": "audit", "secret": SECRET }],
        "updated": [{ "id": SUBSCRIPTION, "name": "billing", "changes": {
            "url": { "from": "https://example.com/old", "to": "https://example.com/billing" },
        } }],
        "deleted": [], "unchanged": 0, "warnings": [],
    })
}

pub(super) fn filter_test() -> Value {
    json!({
        "filter": { "data": { "amount": { "$gt": 100 } } }, "event": { "data": { "amount": 99 } },
    })
}

pub(super) fn filter_result() -> Value {
    json!({ "matches": false, "mismatch": {
        "condition": "/data/amount/$gt", "value": "/data/amount", "detail": "99 is not greater than 100",
    } })
}

pub(super) fn template_preview() -> Value {
    json!({
        "template": { "body": "{\"text\": {{ \"Order \" ~ data.id }}}", "content_type": "application/json" },
        "event": { "data": { "id": 7 } },
    })
}

pub(super) fn template_result() -> Value {
    json!({ "content_type": "application/json", "body": "{\"text\": \"Order 7\"}" })
}

pub(super) fn key_form() -> Value {
    json!({ "label": "billing service", "scopes": ["events:publish"], "expires_at": "2036-01-01T00:00:00Z" })
}

pub(super) fn key(tenant: Option<&str>) -> Value {
    json!({
        "id": KEY, "label": "billing service", "scopes": ["events:publish"], "tenant": tenant,
        "expires_at": "2036-01-01T00:00:00Z", "created_at": TIME, "last_used_at": null,
    })
}

pub(super) fn event_type_form() -> Value {
    json!({
        "description": "A customer has paid.",
        "schema": { "type": "object", "required": ["id"], "properties": { "amount": { "type": "number" } } },
        "example": { "id": 7, "amount": 1999 }, "deprecated": false,
    })
}

pub(super) fn event_type() -> Value {
    let mut shown = with(event_type_form(), "name", EVENT_TYPE);
    shown["created_at"] = TIME.into();
    shown["updated_at"] = TIME.into();
    shown
}

pub(super) fn catalogue() -> Value {
    json!({ "event_types": [with(event_type_form(), "name", EVENT_TYPE)] })
}

pub(super) fn encryption() -> Value {
    json!({ "active_key": "2026-11", "round": {
        "state": "done", "active_key": "2026-11", "slots_done": 12, "slots": 12, "sealed": 0, "failed": 0,
        "started_at": TIME, "finished_at": TIME,
    } })
}

pub(super) fn audit_entry() -> Value {
    json!({
        "id": "1795253400000-0", "at": TIME, "actor": KEY, "from": "192.0.2.7", "forwarded_for": null,
        "request_id": "0f5d", "action": "subscription.update", "tenant": TENANT, "subject": SUBSCRIPTION,
        "changes": { "status": { "from": "active", "to": "paused" } },
    })
}
