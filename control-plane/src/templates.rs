//! Shows what a template makes of an event, before anyone relies on it.

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use doorbell_common::json::pointer;
use doorbell_common::template::{Context, Template};
use doorbell_platform::http::{Members, read_body};
use doorbell_platform::problem::{FieldError, Problem};
use serde_json::{Value, json};

use crate::filters::sample;
use crate::form;
use crate::routes::Api;
use crate::subscriptions::MAX_BODY;
use crate::tenants::tenant_id;

pub(crate) async fn preview(
    State(_): State<Api>,
    Path(tenant): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Value>, Problem> {
    let tenant = tenant_id(&tenant)?;
    let body = read_body(&headers, body, &["application/json"], MAX_BODY).await?;
    let (template, event) = read(&body, tenant.as_str())?;
    let event = event.unwrap_or_else(|| form::sample_event(&template.sample));
    let rendered =
        template.render(&Context::of(&event, event.to_string().len())).map_err(|error| {
            Problem::invalid(vec![FieldError::new("/template/body", error.to_string())])
        })?;
    Ok(Json(json!({
        "content_type": template.content_type,
        "body": String::from_utf8_lossy(&rendered),
    })))
}

/// The template and the event; its own sample is tried if there is none.
fn read(body: &[u8], tenant: &str) -> Result<(Template, Option<Value>), Problem> {
    let Members(members) = Members::read(body)?;
    let (mut template, mut event, mut errors) = (None, None, Vec::new());
    for (name, value) in &members {
        match name.as_str() {
            "template" => match form::template(value) {
                Ok(read) => template = Some(read),
                Err(wrong) => errors.extend(wrong),
            },
            "event" => match sample(value, tenant) {
                Ok(sample) => event = Some(sample),
                Err(wrong) => errors.extend(wrong),
            },
            _ => errors.push(FieldError::new(pointer(name), "is not a field of a preview")),
        }
    }
    if !members.iter().any(|(name, _)| name == "template") {
        errors.push(FieldError::new("/template", "is required"));
    }
    match template {
        Some(template) if errors.is_empty() => Ok((template, event)),
        _ => Err(Problem::invalid(errors)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preview_needs_a_template_at_least() {
        let (template, event) =
            read(br#"{"template":{"body":"{{ id }}","content_type":"text/plain"}}"#, "acme")
                .unwrap();
        assert_eq!((template.content_type.as_str(), event), ("text/plain", None));
        for (body, pointers) in [
            ("{}", vec!["/template"]),
            (
                r#"{"template":{"body":1},"event":{},"x":1}"#,
                vec!["/template/body", "/event/data", "/x"],
            ),
        ] {
            let problem = serde_json::to_value(read(body.as_bytes(), "acme").unwrap_err()).unwrap();
            let errors = problem["errors"].as_array().unwrap();
            let named: Vec<&str> = errors.iter().filter_map(|e| e["pointer"].as_str()).collect();
            assert_eq!(named, pointers, "{body}");
        }
    }
}
