//! What there is to say of each route, for the API's `OpenAPI` document. [`routes`](crate::routes) puts each
//! operation and its handler together; which scope it needs is [`access`]'s to say.

use axum::http::Method;
use doorbell_platform::openapi::{About, Operation, reference};
use serde_json::{Value, json};

use crate::access;
use crate::routes::BULK;

pub(crate) mod deployment;
mod examples;
pub(crate) mod keys;
pub(crate) mod removals;
mod schemas;
pub(crate) mod subscriptions;
pub(crate) mod tenants;
pub(crate) mod trials;

/// What the document has beside the operations.
pub(crate) fn about() -> About {
    About {
        title: "Doorbell: the control-plane",
        description: "Tenants, their subscriptions, and the keys of those who manage them. Errors are problems \
            (RFC 9457) that name each wrong place, lists are read by cursors, and every answer has an \
            `x-request-id`. A POST with an `Idempotency-Key` is carried out once in 24 hours."
            .to_owned(),
        tags: vec![
            ("Tenants", "Whose events and subscriptions there are."),
            ("Subscriptions", "Which events go where, and how."),
            ("Many at once", "Subscriptions by the thousand, or as one document."),
            ("Trying things", "Filters and templates, before anyone relies on them."),
            ("Keys", "Who may call this API and publish events."),
            ("Event types", "Which types of events there are."),
            ("Removing data", "Payloads that are to be kept no longer."),
            ("Deployment", "For the operator."),
        ],
        schemas: schemas::all(),
    }
}

/// An operation with all that follows from its method, its path and whether it takes a body.
fn operation(method: &Method, path: &'static str, names: (&str, &str)) -> Operation {
    let mut operation = Operation::new(method.clone(), path, names)
        .needs(access::needed(method, path).as_str())
        .fails(&[401, 403, 408, 429, 503]);
    for name in path.split(['{', '}']).skip(1).step_by(2) {
        operation = operation.parameter(path_parameter(path, name)).fails(&[400, 404, 422]);
    }
    if method == Method::POST && !BULK.contains(&path) {
        operation = operation.parameter(header(
            "Idempotency-Key",
            "Sent again with the same one, it is carried out once, and answered as it was.",
            &json!({ "type": "string", "maxLength": 255, "pattern": r"^[!-~]([ -~]*[!-~])?[ \t]*$" }),
        ));
        operation = operation.fails(&[400, 409, 422]);
    }
    if [Method::POST, Method::PUT, Method::PATCH].contains(method) {
        operation = operation.fails(&[400, 413, 415, 422]);
    }
    operation
}

fn path_parameter(path: &str, name: &str) -> Value {
    let (schema, example) = match name {
        "tenant" => ("TenantId", examples::TENANT),
        "id" if path.contains("/keys/") => ("KeyId", examples::KEY),
        "id" if path.contains("/events/") => ("EventId", examples::EVENT),
        "id" => ("SubscriptionId", examples::SUBSCRIPTION),
        _ => ("EventTypeName", examples::EVENT_TYPE),
    };
    json!({
        "name": name, "in": "path", "required": true, "schema": reference("schemas", schema),
        "example": example,
    })
}

fn header(name: &str, description: &str, schema: &Value) -> Value {
    json!({ "name": name, "in": "header", "required": false, "description": description, "schema": schema })
}

fn query(name: &str, schema: &Value, description: &str) -> Value {
    json!({ "name": name, "in": "query", "required": false, "description": description, "schema": schema })
}

/// An operation that answers a list.
fn list(path: &'static str, names: (&str, &str)) -> Operation {
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": 1000, "default": 50 });
    operation(&Method::GET, path, names)
        .parameter(query("limit", &limit, "How many."))
        .parameter(query(
            "cursor",
            &json!({ "type": "string" }),
            "What the page before said is `next`.",
        ))
        .fails(&[422])
}

/// What is said of an `ETag`.
const VERSION: &str = "Its version, for `If-Match`.";

/// An operation that is done only to the version that the caller knows.
fn versioned(operation: Operation) -> Operation {
    let text = "Do it only if it has this `ETag` still.";
    operation.parameter(header("If-Match", text, &json!({ "type": "string" }))).fails(&[412])
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_example_is_as_its_schema_says() {
        let document = crate::routes::document();
        let mut looked_at = 0;
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let answers = operation["responses"].as_object().unwrap().values();
                for described in answers.chain([&operation["requestBody"]]) {
                    for media in
                        described["content"].as_object().into_iter().flat_map(|c| c.values())
                    {
                        let mut schema = media["schema"].clone();
                        schema["components"] = document["components"].clone();
                        let validator = jsonschema::validator_for(&schema).unwrap();
                        let wrong: Vec<String> = validator
                            .iter_errors(&media["example"])
                            .map(|e| e.to_string())
                            .collect();
                        assert!(wrong.is_empty(), "{method} {path}: {wrong:?}");
                        looked_at += 1;
                    }
                }
                assert!(operation["tags"].is_array() && operation["security"].is_array(), "{path}");
            }
        }
        assert!(looked_at > 40, "{looked_at}");
    }
}
