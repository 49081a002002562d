//! What there is to say of the producer's routes, for its `OpenAPI` document.

use axum::http::Method;
use doorbell_common::api_key::Scope;
use doorbell_platform::openapi::{About, Content, Operation, reference};
use serde_json::{Map, Value, json};

const TAG: &str = "Events";

pub(super) fn publish() -> Operation {
    operation("/v1/events", ("publishEvent", "Publish an event"))
        .described(
            "Accepted once RabbitMQ has confirmed it. After a 503 the outcome is unknown: send it again with the same `id`.",
        )
        .takes(&Content::json("Event", event()))
        .fails(&[409])
        .answers(202, "It is accepted.", Some(&Content::json("Accepted", accepted())))
}

pub(super) fn publish_batch() -> Operation {
    let results = json!({ "results": [
        { "id": "evt_7", "status": 202 },
        { "status": 422, "problem": {
            "type": "urn:doorbell:problem:unprocessable-entity", "title": "Unprocessable Entity",
            "status": 422, "detail": "the request is well-formed, but these fields are wrong",
            "errors": [{ "pointer": "/type", "detail": "is required" }],
        } },
    ] });
    operation("/v1/events/batch", ("publishEvents", "Publish many events"))
        .described("An event on each line. One bad line does not spoil the others.")
        .takes(&Content::lines("Event", &[event(), json!({ "tenant": "acme", "data": 1 })]))
        .answers(
            200,
            "What became of each, in the order given.",
            Some(&Content::json("Results", results)),
        )
}

fn operation(path: &'static str, names: (&str, &str)) -> Operation {
    Operation::new(Method::POST, path, names)
        .tag(TAG)
        .needs(Scope::EventsPublish.as_str())
        .parameter(json!({
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "Events without an `id` get one that follows from this: the same request with the \
                same key publishes nothing twice.",
            "schema": { "type": "string", "maxLength": 255, "pattern": r"^[!-~]([ -~]*[!-~])?[ \t]*$" },
        }))
        .fails(&[400, 401, 403, 408, 413, 415, 422, 429, 503])
}

fn event() -> Value {
    json!({
        "tenant": "acme", "type": "payment.succeeded", "data": { "id": 7, "amount": 1999 }, "id": "evt_7",
    })
}

fn accepted() -> Value {
    json!({ "id": "evt_7", "duplicate": false })
}

/// What the document has beside the operations.
pub(super) fn about() -> About {
    let name = |pattern: &str, description: &str| json!({ "type": "string", "pattern": pattern, "description": description });
    let maybe = |schema: &Value| json!({ "anyOf": [schema, { "type": "null" }] });
    let time = |description: &str| json!({ "type": "string", "format": "date-time", "description": description });
    let warnings = json!({
        "type": "array", "items": { "type": "string" },
        "description": "What the catalogue of event types has to object.",
    });
    let id =
        name("^[A-Za-z0-9_-]{1,128}$", "Unique within the tenant: the same id is delivered once.");
    let schemas = [
        (
            "Event",
            json!({
                "type": "object",
                "required": ["tenant", "type", "data"],
                "properties": {
                    "tenant": name(r"^([A-Za-z0-9_-]{1,64}|\*)$", "Whose event it is; `*` for everyone."),
                    "type": {
                        "type": "string", "maxLength": 128,
                        "pattern": r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$", "description": "What happened.",
                    },
                    "data": { "description": "Any JSON; its bytes reach receivers as they are." },
                    "id": maybe(&id),
                    "timestamp": maybe(&time("When it happened; now, if it is not said.")),
                    "deliver_at": maybe(&time("Not before this time, at most 30 days ahead.")),
                },
                "additionalProperties": false,
            }),
        ),
        (
            "Accepted",
            json!({
                "type": "object",
                "required": ["id", "duplicate"],
                "properties": {
                    "id": id,
                    "duplicate": { "type": "boolean", "description": "Whether it had been accepted before." },
                    "warnings": warnings,
                },
                "additionalProperties": false,
            }),
        ),
        (
            "Results",
            json!({
                "type": "object",
                "required": ["results"],
                "properties": { "results": { "type": "array", "items": reference("schemas", "Result") } },
                "additionalProperties": false,
            }),
        ),
        (
            "Result",
            json!({ "oneOf": [
            {
                "type": "object",
                "required": ["id", "status"],
                "properties": {
                    "id": id, "status": { "const": 202 }, "duplicate": { "const": true }, "warnings": warnings,
                },
                "additionalProperties": false,
            },
            {
                "type": "object",
                "required": ["status", "problem"],
                "properties": { "status": { "type": "integer" }, "problem": { "type": "object" } },
                "additionalProperties": false,
            },
        ] }),
        ),
    ];
    About {
        title: "Doorbell: the producer",
        description: "Events come in here, and are accepted once RabbitMQ has them. Publishing to the exchange \
            `doorbell.events` over AMQP does the same."
            .to_owned(),
        tags: vec![(TAG, "What happened.")],
        schemas: schemas.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect::<Map<_, _>>(),
    }
}
