//! Subscriptions, one by one and many at once.

use axum::http::Method;
use doorbell_platform::openapi::{Content, Operation, reference};
use serde_json::json;

use super::examples::{self, SECRET, SUBSCRIPTION};
use super::{VERSION, operation, query, versioned};
use crate::routes::BULK;
use crate::view;

const TAG: &str = "Subscriptions";
const MANY: &str = "Many at once";
const ALL: &str = "/v1/tenants/{tenant}/subscriptions";
const ONE: &str = "/v1/tenants/{tenant}/subscriptions/{id}";
const CONFIG: &str = "/v1/config";

pub(crate) fn list() -> Operation {
    let page = Content::json("SubscriptionList", examples::page(&examples::subscription()));
    let status = json!({ "enum": view::STATUSES });
    let event_type = reference("schemas", "EventTypeName");
    super::list(ALL, ("listSubscriptions", "List a tenant's subscriptions"))
        .tag(TAG)
        .described("Of those that are selected, a page may have fewer than `limit`, or none: it goes on as long as `next` is not null.")
        .parameter(query("status", &status, "Only those with this status."))
        .parameter(query("name", &json!({ "type": "string" }), "Only those with this name."))
        .parameter(query("event_type", &event_type, "Only those that want events of this type."))
        .answers(200, "A page of them.", Some(&page))
}

pub(crate) fn create() -> Operation {
    let created = examples::with(examples::subscription(), "secret", SECRET);
    operation(&Method::POST, ALL, ("createSubscription", "Create a subscription"))
        .tag(TAG)
        .described(
            "In force in every dispatcher within two seconds. The secret signs what it is sent.",
        )
        .takes(&Content::json("SubscriptionForm", examples::subscription_form()))
        .answers(
            201,
            "The subscription, with its secret.",
            Some(&Content::json("SubscriptionCreated", created)),
        )
        .with_header(201, "Location", "Where it is.")
        .with_header(201, "ETag", VERSION)
}

pub(crate) fn show() -> Operation {
    let shown = Content::json("Subscription", examples::subscription());
    operation(&Method::GET, ONE, ("getSubscription", "Show a subscription"))
        .tag(TAG)
        .answers(200, "The subscription, without its secret.", Some(&shown))
        .with_header(200, "ETag", VERSION)
}

pub(crate) fn patch() -> Operation {
    let example = json!({ "status": "paused", "headers": { "x-team": "a" } });
    let changed = Content::json("SubscriptionChanged", examples::subscription());
    versioned(operation(&Method::PATCH, ONE, ("updateSubscription", "Change a subscription")))
        .tag(TAG)
        .described("A merge patch (RFC 7396): null brings back a field's default. `filter`, `template` and `retry` are written whole.")
        .takes(&Content::json("SubscriptionPatch", example).or("application/merge-patch+json"))
        .answers(200, "The subscription as it is now.", Some(&changed))
        .with_header(200, "ETag", VERSION)
        .fails(&[409])
}

pub(crate) fn delete() -> Operation {
    versioned(operation(&Method::DELETE, ONE, ("deleteSubscription", "Delete a subscription")))
        .tag(TAG)
        .described("What waits for it is cancelled.")
        .answers(204, "It is gone.", None)
        .fails(&[409])
}

pub(crate) fn secret() -> Operation {
    let secret = Content::json("SecretShown", json!({ "secret": SECRET }));
    operation(
        &Method::GET,
        "/v1/tenants/{tenant}/subscriptions/{id}/secret",
        ("getSecret", "Show a subscription's newest secret"),
    )
    .tag(TAG)
    .described("That it was shown is noted in the audit.")
    .answers(200, "The secret.", Some(&secret))
}

pub(crate) fn rotate() -> Operation {
    let secret = Content::json("SecretShown", json!({ "secret": SECRET }));
    operation(&Method::POST, "/v1/tenants/{tenant}/subscriptions/{id}/secret/rotate", ("rotateSecret", "Give a subscription a new secret"))
        .tag(TAG)
        .described("Answered after two seconds, when every dispatcher signs with it. The old one signs along for a while.")
        .may_take(&Content::json("Rotation", json!({ "overlap": "24h" })))
        .answers(200, "The new secret.", Some(&secret))
}

pub(crate) fn test() -> Operation {
    operation(
        &Method::POST,
        "/v1/tenants/{tenant}/subscriptions/{id}/test",
        ("testSubscription", "Send a test event"),
    )
    .tag(TAG)
    .described("One attempt by a dispatcher, without retries, and nothing is counted.")
    .answers(
        200,
        "What came of it, whatever the endpoint said.",
        Some(&Content::json("TestResult", examples::test_result())),
    )
}

pub(crate) fn verify() -> Operation {
    let result = json!({ "verified": false, "detail": "the answer does not have the challenge" });
    operation(
        &Method::POST,
        "/v1/tenants/{tenant}/subscriptions/{id}/verify",
        ("verifySubscription", "Ask an endpoint whether it wants POSTs"),
    )
    .tag(TAG)
    .answers(200, "Whether it does.", Some(&Content::json("VerificationResult", result)))
}

pub(crate) fn create_many() -> Operation {
    operation(&Method::POST, BULK[0], ("createSubscriptions", "Create many subscriptions"))
        .tag(MANY)
        .described("A subscription on each line, any number of them; a result on each line of the answer comes while the next ones are read, so read it as it comes.")
        .takes(&Content::lines("BulkForm", &examples::bulk_forms()))
        .answers(200, "What became of each line.", Some(&Content::lines("BulkResult", &examples::bulk_created())))
}

pub(crate) fn delete_many() -> Operation {
    operation(&Method::POST, BULK[1], ("deleteSubscriptions", "Delete many subscriptions"))
        .tag(MANY)
        .takes(&Content::lines("BulkId", &[json!({ "id": SUBSCRIPTION })]))
        .answers(
            200,
            "What became of each line.",
            Some(&Content::lines("BulkResult", &examples::bulk_deleted())),
        )
}

pub(crate) fn update_many() -> Operation {
    let line = json!({ "id": SUBSCRIPTION, "status": "paused" });
    operation(&Method::POST, BULK[2], ("updateSubscriptions", "Change many subscriptions"))
        .tag(MANY)
        .described("An id and a merge patch on each line.")
        .takes(&Content::lines("BulkPatch", &[line]))
        .answers(
            200,
            "What became of each line.",
            Some(&Content::lines("BulkResult", &examples::bulk_updated())),
        )
}

pub(crate) fn show_config() -> Operation {
    let tenant = json!({
        "name": "tenant", "in": "query", "required": true, "schema": reference("schemas", "TenantId"),
        "example": examples::TENANT,
    });
    operation(&Method::GET, CONFIG, ("getConfig", "Show a tenant's subscriptions as one document"))
        .tag(MANY)
        .parameter(tenant)
        .answers(
            200,
            "A document that can be put back.",
            Some(&Content::json("Document", examples::document())),
        )
        .with_header(200, "ETag", VERSION)
        .fails(&[404, 409, 422])
}

pub(crate) fn put_config() -> Operation {
    let text = "Answer what it would change, and change nothing.";
    versioned(operation(
        &Method::PUT,
        CONFIG,
        ("putConfig", "Make a tenant's subscriptions what a document says"),
    ))
    .tag(MANY)
    .described(
        "An entry is known by its `name`, or its `id`. A subscription without an entry is deleted.",
    )
    .parameter(query("dry_run", &json!({ "type": "boolean", "default": false }), text))
    .takes(&Content::json("Document", examples::document()))
    .answers(
        200,
        "What was changed.",
        Some(&Content::json("DocumentResult", examples::document_result())),
    )
    .fails(&[409])
}
