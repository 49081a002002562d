//! Subscriptions, one by one and many at once.

use doorbell_common::outcome::OutcomeClass;
use serde_json::{Value, json};

use super::{and_perhaps, number, of, or_null, part, text, whole};
use crate::{config, form};

pub(super) fn all() -> impl Iterator<Item = (&'static str, Value)> {
    single().into_iter().chain(many())
}

/// The fields of a subscription that people write, as they are read back.
fn written() -> Value {
    json!({
        "name": { "type": ["string", "null"], "pattern": "^[A-Za-z0-9._-]{1,100}$", "description": "By which its holder knows it." },
        "url": { "type": "string", "format": "uri", "description": "Where to POST: HTTPS, and a public address, unless the operator allows others." },
        "events": { "type": "array", "minItems": 1, "maxItems": form::MAX_PATTERNS, "items": of("Pattern"), "description": "The types of events that are wanted." },
        "filter": { "type": ["object", "null"], "description": "Which of these events, by what is in them: conditions in the shape of the event." },
        "template": or_null(&of("Template")),
        "status": { "enum": ["active", "paused", "disabled"], "description": "Whether deliveries are made, or kept." },
        "description": text(form::MAX_DESCRIPTION, "For people."),
        "metadata": { "type": "object", "description": "For programs; at most 16 KiB." },
        "payload": { "enum": ["envelope", "raw", "cloudevents"], "description": "The form of the body." },
        "headers": { "type": "object", "maxProperties": 32, "additionalProperties": { "type": "string", "maxLength": 2048 }, "description": "Further headers for each POST." },
        "timeout": { "allOf": [of("Duration")], "description": "One deadline over a whole attempt: 1s to 30s." },
        "retry": of("Retry"),
        "rate_limit": or_null(&of("RateLimit")),
        "max_concurrency": or_null(&number(1, 1024, "POSTs that may be in flight at once, if fewer than the operator allows.")),
        "signature": or_null(&of("OlderSignature")),
        "asymmetric_signature": { "type": "boolean", "description": "Whether POSTs are signed with ed25519, too (`v1a`)." },
        "verification": { "enum": ["none", "challenge", "cloudevents"], "description": "How its endpoint is asked whether it wants POSTs." },
    })
}

/// Any field may be null, which is its default.
fn may_be_null(fields: &Value, but: &[&str]) -> Value {
    let fields = fields.as_object().into_iter().flatten();
    let each = fields.map(|(name, schema)| {
        let is_fixed = but.contains(&name.as_str());
        (name.clone(), if is_fixed { schema.clone() } else { or_null(schema) })
    });
    Value::Object(each.collect())
}

fn subscription() -> Value {
    let mut fields = written();
    let read = json!({
        "id": of("SubscriptionId"),
        "status": { "enum": ["active", "paused", "disabled", "unverified"] },
        "disabled_reason": { "enum": ["gone", "failing", "manual", null] },
        "public_key": { "type": ["string", "null"], "description": "What receivers check `v1a` with." },
        "created_at": of("Timestamp"),
        "updated_at": of("Timestamp"),
    });
    for (name, schema) in read.as_object().into_iter().flatten() {
        fields[name] = schema.clone();
    }
    // Read back, a filter without conditions is one all the same; null only stands for none.
    whole(&fields)
}

fn patch() -> Value {
    let mut fields = may_be_null(&written(), &["url", "events"]);
    fields["headers"] = json!({ "type": ["object", "null"], "additionalProperties": { "type": ["string", "null"] }, "description": "Merged with what there is; null takes a header away." });
    part(&fields, &[])
}

/// One by one.
fn single() -> Vec<(&'static str, Value)> {
    let form = may_be_null(&written(), &["url", "events"]);
    let warned = and_perhaps(subscription(), &json!({ "warnings": of("Warnings") }));
    let created = and_perhaps(warned.clone(), &json!({ "secret": of("Secret") }));
    let attempts = number(1, 100, "Every POST, the first included.");
    let kind = |name: &str, schema: Value| part(&json!({ (name): schema }), &[name]);
    vec![
        ("Subscription", subscription()),
        ("SubscriptionCreated", created),
        ("SubscriptionChanged", warned),
        ("SubscriptionForm", part(&form, &["url", "events"])),
        ("SubscriptionPatch", patch()),
        (
            "Retry",
            json!({ "oneOf": [
            kind("schedule", json!({ "type": "array", "maxItems": 99, "items": of("Duration") })),
            kind("exponential", whole(&json!({ "initial": of("Duration"), "factor": { "type": "number", "minimum": 1, "maximum": 10 }, "max": of("Duration"), "attempts": attempts }))),
            kind("fixed", whole(&json!({ "delay": of("Duration"), "attempts": attempts }))),
            kind("fibonacci", whole(&json!({ "unit": of("Duration"), "attempts": attempts }))),
        ], "description": "When a failed delivery is tried again; no delay longer than 7d." }),
        ),
        (
            "RateLimit",
            part(
                &json!({
                    "per_second": number(1, 10_000, "Attempts a second."),
                    "burst": number(1, 10_000, "Attempts at once; as many as a second's, if it is not said."),
                }),
                &["per_second"],
            ),
        ),
        (
            "OlderSignature",
            whole(
                &json!({ "header": text(128, "The header that carries it."), "format": { "const": "sha256-hex" } }),
            ),
        ),
        (
            "Template",
            part(
                &json!({
                    "body": text(8192, "MiniJinja, over {id, type, timestamp, tenant, data}."),
                    "content_type": { "type": "string", "description": "What it makes; application/json, if it is not said." },
                    "sample": { "description": "The data of an event as it expects it." },
                }),
                &["body"],
            ),
        ),
        ("SecretShown", whole(&json!({ "secret": of("Secret") }))),
        (
            "Rotation",
            part(
                &json!({ "overlap": { "allOf": [of("Duration")], "description": "How long the old secret signs along: up to 7d; 24h, if it is not said." } }),
                &[],
            ),
        ),
        (
            "TestResult",
            whole(&json!({
                "outcome": { "enum": OutcomeClass::ALL.map(OutcomeClass::as_str) },
                "status": { "type": ["integer", "null"] },
                "duration_ms": { "type": "integer" },
                "headers": { "type": "object", "additionalProperties": { "type": "string" } },
                "body": { "type": "string" },
                "truncated": { "type": "boolean", "description": "Whether the body was longer, or there were more headers." },
                "detail": { "type": "string" },
            })),
        ),
        (
            "VerificationResult",
            whole(
                &json!({ "verified": { "type": "boolean" }, "detail": { "type": "string", "description": "Why not." } }),
            ),
        ),
    ]
}

/// Many at once.
fn many() -> Vec<(&'static str, Value)> {
    let form = part(&may_be_null(&written(), &["url", "events"]), &["url", "events"]);
    let with_id = and_perhaps(form.clone(), &json!({ "id": of("SubscriptionId") }));
    vec![
        ("BulkForm", form),
        ("BulkPatch", {
            let mut line = and_perhaps(patch(), &json!({ "id": { "type": "string" } }));
            line["required"] = json!(["id"]);
            line
        }),
        ("BulkId", whole(&json!({ "id": { "type": "string" } }))),
        (
            "BulkResult",
            json!({
                "description": "What became of a line; the last one says how many were done and how many refused.",
                "anyOf": [
                    part(&json!({ "line": { "type": "integer" }, "status": { "type": "integer" }, "id": of("SubscriptionId"), "secret": of("Secret"), "problem": { "type": "object" } }), &["line", "status"]),
                    part(&json!({ "created": { "type": "integer" }, "updated": { "type": "integer" }, "deleted": { "type": "integer" }, "refused": { "type": "integer" } }), &["refused"]),
                    part(&json!({ "problem": { "type": "object" } }), &["problem"]),
                ],
            }),
        ),
        (
            "Document",
            part(
                &json!({
                    "tenant": of("TenantId"),
                    "subscriptions": { "type": "array", "maxItems": config::MAX_SUBSCRIPTIONS, "items": with_id },
                }),
                &["tenant", "subscriptions"],
            ),
        ),
        (
            "DocumentResult",
            whole(&json!({
                "tenant": of("TenantId"),
                "dry_run": { "type": "boolean" },
                "created": { "type": "array", "items": part(&json!({ "id": or_null(&of("SubscriptionId")), "name": { "type": ["string", "null"] }, "secret": of("Secret") }), &["id", "name"]) },
                "updated": { "type": "array", "items": whole(&json!({ "id": of("SubscriptionId"), "name": { "type": ["string", "null"] }, "changes": of("Changes") })) },
                "deleted": { "type": "array", "items": whole(&json!({ "id": of("SubscriptionId"), "name": { "type": ["string", "null"] }, "url": { "type": "string" } })) },
                "unchanged": { "type": "integer" },
                "warnings": of("Warnings"),
            })),
        ),
        (
            "Changes",
            json!({ "type": "object", "additionalProperties": whole(&json!({ "from": {}, "to": {} })), "description": "Each field that differs, from what to what." }),
        ),
    ]
}
