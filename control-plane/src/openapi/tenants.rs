//! Tenants and their limits.

use axum::http::Method;
use doorbell_platform::openapi::{Content, Operation};
use serde_json::json;

use super::{VERSION, examples, operation, versioned};

const TAG: &str = "Tenants";
const ALL: &str = "/v1/tenants";
const ONE: &str = "/v1/tenants/{tenant}";
const LIMITS: &str = "/v1/tenants/{tenant}/limits";

pub(crate) fn list() -> Operation {
    let page = Content::json("TenantList", examples::page(&examples::tenant()));
    super::list(ALL, ("listTenants", "List tenants")).tag(TAG).answers(
        200,
        "A page of them.",
        Some(&page),
    )
}

pub(crate) fn show() -> Operation {
    operation(&Method::GET, ONE, ("getTenant", "Show a tenant")).tag(TAG).answers(
        200,
        "The tenant.",
        Some(&Content::json("Tenant", examples::tenant())),
    )
}

pub(crate) fn put() -> Operation {
    let tenant = Content::json("Tenant", examples::tenant());
    operation(&Method::PUT, ONE, ("putTenant", "Create a tenant"))
        .tag(TAG)
        .described("A tenant is created by its first subscription, too.")
        .may_take(&Content::json("TenantForm", json!({})))
        .answers(200, "It was there.", Some(&tenant))
        .answers(201, "It is there from now on.", Some(&tenant))
}

pub(crate) fn delete() -> Operation {
    operation(
        &Method::DELETE,
        ONE,
        ("deleteTenant", "Delete a tenant, its keys and its subscriptions"),
    )
    .tag(TAG)
    .described("What waits for its subscriptions is cancelled.")
    .answers(204, "It is gone.", None)
    .with_header(204, "Location", "Where it says when the last of its payloads is gone.")
}

pub(crate) fn show_limits() -> Operation {
    let limits = Content::json("Limits", examples::limits());
    operation(&Method::GET, LIMITS, ("getLimits", "Show what a tenant may have"))
        .tag(TAG)
        .answers(200, "Its limits; null is none.", Some(&limits))
        .with_header(200, "ETag", VERSION)
}

pub(crate) fn put_limits() -> Operation {
    let limits = Content::json("Limits", examples::limits());
    versioned(operation(&Method::PUT, LIMITS, ("putLimits", "Say what a tenant may have")))
        .tag(TAG)
        .described("Written whole: what is left out is not limited. In force within two seconds.")
        .takes(&Content::json("LimitsForm", examples::limits()))
        .answers(200, "Its limits from now on.", Some(&limits))
        .with_header(200, "ETag", VERSION)
        .fails(&[409])
}
