//! Tries a filter on an event.

use axum::Json;
use axum::body::Body;
use axum::extract::Path;
use axum::http::HeaderMap;
use doorbell_platform::http::read_body;
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::{Value, json};

use crate::subscriptions::MAX_BODY;
use crate::tenants::tenant_id;
use crate::{form, trial};

pub(crate) async fn test(
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let tenant = tenant_id(&tenant)?;
    let body = read_body(&headers, body, &["application/json"], MAX_BODY).await?;
    let (filter, event) = trial::read(&body, tenant.as_str(), ("filter", form::filter))?;
    let required = || Problem::invalid(vec![FieldError::new("/event", "is required")]);
    Ok(Json(match filter.explain(&event.ok_or_else(required)?) {
        Ok(()) => json!({ "matches": true, "mismatch": null }),
        Err(mismatch) => json!({
            "matches": false,
            "mismatch": {
                "condition": mismatch.condition, "value": mismatch.value, "detail": mismatch.detail,
            },
        }),
    }))
}
