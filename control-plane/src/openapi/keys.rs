//! API keys: of all tenants, and of one.

use axum::http::Method;
use doorbell_platform::openapi::{Content, Operation};

use super::examples::{self, TENANT};
use super::operation;

const TAG: &str = "Keys";
const ALL: &str = "/v1/keys";
const ONE: &str = "/v1/keys/{id}";
const ALL_OF_TENANT: &str = "/v1/tenants/{tenant}/keys";
const ONE_OF_TENANT: &str = "/v1/tenants/{tenant}/keys/{id}";
const KEY: &str = "db_live_4fTq8Zk2vNc7Wd1pRs6Yh3Jm9Xb5Lg0aQeKuTi";

pub(crate) fn list() -> Operation {
    listed(ALL, None, ("listKeys", "List keys"))
}

pub(crate) fn list_of_tenant() -> Operation {
    listed(ALL_OF_TENANT, Some(TENANT), ("listTenantKeys", "List a tenant's keys"))
}

pub(crate) fn create() -> Operation {
    created(ALL, None, ("createKey", "Make a key for all tenants"))
}

pub(crate) fn create_of_tenant() -> Operation {
    created(
        ALL_OF_TENANT,
        Some(TENANT),
        ("createTenantKey", "Make a key that is bound to a tenant"),
    )
}

pub(crate) fn show() -> Operation {
    shown(ONE, None, ("getKey", "Show a key"))
}

pub(crate) fn show_of_tenant() -> Operation {
    shown(ONE_OF_TENANT, Some(TENANT), ("getTenantKey", "Show a tenant's key"))
}

pub(crate) fn revoke() -> Operation {
    revoked(ONE, ("revokeKey", "Revoke a key"))
}

pub(crate) fn revoke_of_tenant() -> Operation {
    revoked(ONE_OF_TENANT, ("revokeTenantKey", "Revoke a tenant's key"))
}

fn listed(path: &'static str, tenant: Option<&str>, names: (&str, &str)) -> Operation {
    let page = Content::json("KeyList", examples::page(&examples::key(tenant)));
    super::list(path, names).tag(TAG).answers(200, "A page of them.", Some(&page))
}

fn created(path: &'static str, tenant: Option<&str>, names: (&str, &str)) -> Operation {
    let created = examples::with(examples::key(tenant), "key", KEY);
    operation(&Method::POST, path, names)
        .tag(TAG)
        .takes(&Content::json("KeyForm", examples::key_form()))
        .answers(201, "The key, shown this once.", Some(&Content::json("KeyCreated", created)))
        .with_header(201, "Location", "Where it is.")
}

fn shown(path: &'static str, tenant: Option<&str>, names: (&str, &str)) -> Operation {
    let shown = Content::json("Key", examples::key(tenant));
    operation(&Method::GET, path, names).tag(TAG).answers(200, "What is known of it.", Some(&shown))
}

fn revoked(path: &'static str, names: (&str, &str)) -> Operation {
    operation(&Method::DELETE, path, names)
        .tag(TAG)
        .described("Refused by every service within two seconds.")
        .answers(204, "It is worth nothing any more.", None)
}
