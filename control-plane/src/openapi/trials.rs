//! Filters and templates, tried before anyone relies on them.

use axum::http::Method;
use doorbell_platform::openapi::{Content, Operation};

use super::{examples, operation};

const TAG: &str = "Trying things";

pub(crate) fn filter() -> Operation {
    operation(
        &Method::POST,
        "/v1/tenants/{tenant}/filters/test",
        ("testFilter", "Try a filter on an event"),
    )
    .tag(TAG)
    .takes(&Content::json("FilterTest", examples::filter_test()))
    .answers(
        200,
        "Whether it matches, and why not.",
        Some(&Content::json("FilterResult", examples::filter_result())),
    )
}

pub(crate) fn template() -> Operation {
    operation(
        &Method::POST,
        "/v1/tenants/{tenant}/templates/preview",
        ("previewTemplate", "Show what a template makes of an event"),
    )
    .tag(TAG)
    .takes(&Content::json("TemplatePreview", examples::template_preview()))
    .answers(
        200,
        "What it makes.",
        Some(&Content::json("TemplateResult", examples::template_result())),
    )
}
