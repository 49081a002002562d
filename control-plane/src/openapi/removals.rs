//! Payloads that are to be kept no longer.

use axum::http::Method;
use doorbell_platform::openapi::{Content, Operation};

use super::{examples, operation};

const TAG: &str = "Removing data";
const EVENT: &str = "/v1/tenants/{tenant}/events/{id}";
const OF_EVENT: &str = "/v1/tenants/{tenant}/events/{id}/removal";
const OF_TENANT: &str = "/v1/tenants/{tenant}/removal";

pub(crate) fn remove_event() -> Operation {
    let shown = Content::json("Removal", examples::removal());
    operation(&Method::DELETE, EVENT, ("removeEvent", "Remove an event's payload"))
        .tag(TAG)
        .described("Within two seconds it is delivered and retried no more, and its id is taken no more. What is kept of it is forgotten by age.")
        .answers(202, "It is being removed.", Some(&shown))
        .with_header(202, "Location", "Where it says whether that is done.")
        .fails(&[409])
}

pub(crate) fn of_event() -> Operation {
    let shown = Content::json("Removal", examples::removal());
    operation(
        &Method::GET,
        OF_EVENT,
        ("getEventRemoval", "Show whether an event's payload is gone"),
    )
    .tag(TAG)
    .answers(200, "Since when it is being removed, and until when.", Some(&shown))
}

pub(crate) fn of_tenant() -> Operation {
    let shown = Content::json("Removal", examples::removal());
    operation(
        &Method::GET,
        OF_TENANT,
        ("getTenantRemoval", "Show when a deleted tenant's payloads are gone"),
    )
    .tag(TAG)
    .answers(200, "Since when they are being removed, and until when.", Some(&shown))
}
