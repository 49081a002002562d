//! What concerns a whole deployment: its event types, its encryption, its audit.

use axum::http::Method;
use doorbell_platform::openapi::{Content, Operation};
use serde_json::json;

use super::{VERSION, examples, operation, versioned};

const TYPES: &str = "Event types";
const TAG: &str = "Deployment";
const ALL: &str = "/v1/event-types";
const ONE: &str = "/v1/event-types/{name}";
const CATALOGUE: &str = "/v1/catalogue";

pub(crate) fn list_types() -> Operation {
    let page = Content::json("EventTypeList", examples::page(&examples::event_type()));
    super::list(ALL, ("listEventTypes", "List event types")).tag(TYPES).answers(
        200,
        "A page of them.",
        Some(&page),
    )
}

pub(crate) fn show_type() -> Operation {
    let shown = Content::json("EventType", examples::event_type());
    operation(&Method::GET, ONE, ("getEventType", "Show an event type"))
        .tag(TYPES)
        .answers(200, "The type.", Some(&shown))
        .with_header(200, "ETag", VERSION)
}

pub(crate) fn put_type() -> Operation {
    let shown = Content::json("EventType", examples::event_type());
    versioned(operation(&Method::PUT, ONE, ("putEventType", "Write an event type")))
        .tag(TYPES)
        .described("Written whole. The example must be as the schema says.")
        .takes(&Content::json("EventTypeForm", examples::event_type_form()))
        .answers(200, "It was there, and is so from now on.", Some(&shown))
        .with_header(200, "ETag", VERSION)
        .answers(201, "It is new.", Some(&shown))
        .with_header(201, "ETag", VERSION)
        .fails(&[409])
}

pub(crate) fn delete_type() -> Operation {
    versioned(operation(&Method::DELETE, ONE, ("deleteEventType", "Delete an event type")))
        .tag(TYPES)
        .answers(204, "It is gone.", None)
        .fails(&[409])
}

pub(crate) fn export_catalogue() -> Operation {
    let catalogue = Content::json("Catalogue", examples::catalogue());
    operation(&Method::GET, CATALOGUE, ("getCatalogue", "Show all event types as one document"))
        .tag(TYPES)
        .answers(200, "A document that can be put back.", Some(&catalogue))
        .with_header(200, "ETag", VERSION)
}

pub(crate) fn import_catalogue() -> Operation {
    let result = Content::json("CatalogueResult", json!({ "count": 1 }));
    versioned(operation(
        &Method::PUT,
        CATALOGUE,
        ("putCatalogue", "Put a catalogue in the place of what there is"),
    ))
    .tag(TYPES)
    .described("Whole, or not at all.")
    .takes(&Content::json("Catalogue", examples::catalogue()))
    .answers(200, "How many types there are now.", Some(&result))
    .with_header(200, "ETag", VERSION)
    .fails(&[409])
}

pub(crate) fn encryption() -> Operation {
    let shown = Content::json("Encryption", examples::encryption());
    operation(&Method::GET, "/v1/encryption", ("getEncryption", "Show how secrets are encrypted"))
        .tag(TAG)
        .answers(
            200,
            "The key in use, and how far what other keys have encrypted is encrypted anew.",
            Some(&shown),
        )
}

pub(crate) fn audit() -> Operation {
    let page = Content::json("AuditList", examples::page(&examples::audit_entry()));
    super::list("/v1/audit", ("listAudit", "List what was changed, the latest first"))
        .tag(TAG)
        .answers(200, "A page of it.", Some(&page))
}
