//! What the operator allows a tenant.

use std::ops::RangeInclusive;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use doorbell_common::duration::DurationText;
use doorbell_common::json::pointer;
use doorbell_common::tenant_limits::TenantLimits;
use doorbell_platform::http::{Members, read_body};
use doorbell_platform::problem::{FieldError, Problem};
use doorbell_platform::store::tenant_limits::StoredLimits;
use serde_json::json;

use crate::audit::Done;
use crate::etag::{TRIES, contended, etag, version_of};
use crate::routes::{Api, trouble};
use crate::tenants::{check_match_of, existing, tenant_id};

const MAX_BODY: usize = 16 * 1024;
const RETENTIONS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(30 * 24 * 3600);

pub(crate) async fn show(
    State(api): State<Api>,
    Path(tenant): Path<String>,
) -> Result<Response, Problem> {
    let tenant = existing(&api, &tenant).await?;
    let limits = api.store.tenant_limits(&tenant.id).await.map_err(trouble)?;
    Ok(shown(&limits))
}

/// Limits are written whole: what is left out is not limited.
pub(crate) async fn put(
    State(api): State<Api>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let tenant = tenant_id(&tenant)?;
    let body = read_body(&headers, body, &["application/json"], MAX_BODY).await?;
    let limits = read(&body)?;
    for _ in 0..TRIES {
        let before = api.store.tenant_limits(&tenant).await.map_err(trouble)?;
        check_match_of(&api, &tenant, &headers, &version_of(&before.raw)).await?;
        api.store.ensure_tenant(&tenant).await.map_err(trouble)?;
        let replacing = api.store.replace_tenant_limits(&tenant, &before, &limits);
        if let Some(stored) = replacing.await.map_err(trouble)? {
            let done = Done::to(&tenant, &json!(before.limits), &json!(limits));
            return Ok((Extension(done), shown(&stored)).into_response());
        }
    }
    Err(contended("the tenant's limits"))
}

fn shown(stored: &StoredLimits) -> Response {
    let headers = [(header::ETAG, etag(&version_of(&stored.raw)))];
    (headers, Json(json!(stored.limits))).into_response()
}

fn read(body: &[u8]) -> Result<TenantLimits, Problem> {
    let Members(members) = Members::read(body)?;
    let (mut limits, mut errors) = (TenantLimits::default(), Vec::new());
    for (name, value) in &members {
        let place = match name.as_str() {
            "max_subscriptions" => &mut limits.max_subscriptions,
            "max_event_bytes" => &mut limits.max_event_bytes,
            "events_per_second" => &mut limits.events_per_second,
            "retention" => {
                match serde_json::from_str::<Option<DurationText>>(value.get()) {
                    Ok(Some(text)) if !RETENTIONS.contains(&text.0) => {
                        errors.push(FieldError::new(pointer(name), "must be between 1s and 30d"))
                    }
                    Ok(text) => limits.retention = text,
                    Err(_) => errors.push(FieldError::new(
                        pointer(name),
                        "must be a duration, such as \"3d\", or null",
                    )),
                }
                continue;
            }
            _ => {
                errors.push(FieldError::new(pointer(name), "is not a limit of a tenant"));
                continue;
            }
        };
        match serde_json::from_str::<Option<u32>>(value.get()) {
            Ok(Some(0)) | Err(_) => {
                errors.push(FieldError::new(
                    pointer(name),
                    "must be a whole number from 1 on, or null",
                ));
            }
            Ok(number) => *place = number,
        }
    }
    if errors.is_empty() { Ok(limits) } else { Err(Problem::invalid(errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_whole_number_or_none() {
        let limits =
            read(br#"{"max_subscriptions": 5, "max_event_bytes": null, "retention": "3d"}"#)
                .unwrap();
        assert_eq!((limits.max_subscriptions, limits.max_event_bytes), (Some(5), None));
        assert_eq!(limits.retention.map(|text| text.0.as_secs()), Some(3 * 86_400));
        assert!(read(b"{}").unwrap().is_none());
        for wrong in [
            r#"{"max_subscriptions":0}"#,
            r#"{"x":1}"#,
            r#"{"events_per_second":1.5}"#,
            r#"{"events_per_second":-1}"#,
            r#"{"retention":"31d"}"#,
            r#"{"retention":"0s"}"#,
            r#"{"retention":3}"#,
        ] {
            assert!(read(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
