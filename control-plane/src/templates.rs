//! Shows what a template makes of an event.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use doorbell_common::ids::TenantId;
use doorbell_common::template::Context;
use doorbell_platform::http::read_body;
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::{Value, json};

use crate::routes::Api;
use crate::subscriptions::MAX_BODY;
use crate::tenants::tenant_id;
use crate::{form, trial};

/// Without an event, the template's own sample is tried.
pub(crate) async fn preview(
    State(api): State<Api>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let tenant = tenant_id(&tenant)?;
    let body = read_body(&headers, body, &["application/json"], MAX_BODY).await?;
    api.in_turn(&tenant, || tokio::task::block_in_place(|| try_on(&body, &tenant))).await.map(Json)
}

fn try_on(body: &[u8], tenant: &TenantId) -> Result<Value, Problem> {
    let (template, event) = trial::read(body, tenant.as_str(), ("template", form::template))?;
    let event = event.unwrap_or_else(|| form::sample_event(&template.sample));
    let context = Context::of(&event, event.to_string().len());
    let rendered = template.render(&context).map_err(|error| {
        Problem::invalid(vec![FieldError::new("/template/body", error.to_string())])
    })?;
    Ok(json!({
        "content_type": template.content_type,
        "body": String::from_utf8_lossy(&rendered),
    }))
}
