//! Tries a filter on an event.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use doorbell_common::ids::TenantId;
use doorbell_platform::http::read_body;
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::{Value, json};

use crate::routes::Api;
use crate::subscriptions::MAX_BODY;
use crate::tenants::tenant_id;
use crate::{form, trial};

pub(crate) async fn test(
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
    let (filter, event) = trial::read(body, tenant.as_str(), ("filter", form::filter))?;
    let required = || Problem::invalid(vec![FieldError::new("/event", "is required")]);
    Ok(match filter.explain(&event.ok_or_else(required)?) {
        Ok(()) => json!({ "matches": true, "mismatch": null }),
        Err(mismatch) => json!({
            "matches": false,
            "mismatch": {
                "condition": mismatch.condition, "value": mismatch.value, "detail": mismatch.detail,
            },
        }),
    })
}
