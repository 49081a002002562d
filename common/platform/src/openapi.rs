//! Routes together with the `OpenAPI` 3.1 document that describes them
//! (<https://spec.openapis.org/oas/v3.1.1>): what is served is described, and what is described is served.

use axum::Router;
use axum::body::Bytes;
use axum::handler::Handler;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{MethodFilter, get, on};
use serde_json::{Map, Value, json};

mod docs;

/// Where a service shows its document.
pub const DOCUMENT: &str = "/openapi.json";

/// Routes, and what there is to say of them.
#[derive(Debug)]
pub struct Described<S> {
    router: Router<S>,
    paths: Map<String, Value>,
}

/// What a document has beside its operations.
#[derive(Clone, Debug)]
pub struct About {
    /// The API's name.
    pub title: &'static str,
    /// What it is for, in Markdown.
    pub description: String,
    /// The groups of operations: names, and what they are about.
    pub tags: Vec<(&'static str, &'static str)>,
    /// What operations refer to as `#/components/schemas/…`.
    pub schemas: Map<String, Value>,
}

/// What there is to say of one route and method.
#[derive(Clone, Debug)]
pub struct Operation {
    method: Method,
    path: &'static str,
    said: Map<String, Value>,
}

/// A body, of a request or an answer.
#[derive(Clone, Debug)]
pub struct Content {
    media_types: Vec<&'static str>,
    schema: Value,
    example: Value,
}

impl Content {
    /// JSON with the schema of this name.
    #[must_use]
    pub fn json(schema: &str, example: Value) -> Self {
        Self {
            media_types: vec!["application/json"],
            schema: reference("schemas", schema),
            example,
        }
    }

    /// Lines of JSON, of which each has the schema of this name.
    #[must_use]
    pub fn lines(schema: &str, lines: &[Value]) -> Self {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        Self {
            media_types: vec!["application/x-ndjson"],
            schema: json!({
                "type": "string",
                "description": format!("Lines; each is one JSON object, a {schema}."),
                "contentMediaType": "application/x-ndjson",
                "contentSchema": reference("schemas", schema),
            }),
            example: text.into(),
        }
    }

    /// The same, under this media type, too.
    #[must_use]
    pub fn or(mut self, media_type: &'static str) -> Self {
        self.media_types.push(media_type);
        self
    }

    fn shown(&self) -> Value {
        let media = json!({ "schema": self.schema, "example": self.example });
        let each = self.media_types.iter().map(|name| ((*name).to_owned(), media.clone()));
        Value::Object(each.collect())
    }
}

impl Operation {
    /// An operation: its id is one word for programs, its summary one line for people.
    #[must_use]
    pub fn new(method: Method, path: &'static str, (id, summary): (&str, &str)) -> Self {
        let mut said = Map::new();
        said.insert("operationId".to_owned(), id.into());
        said.insert("summary".to_owned(), summary.into());
        Self { method, path, said }
    }

    /// The group it is shown in.
    #[must_use]
    pub fn tag(mut self, tag: &str) -> Self {
        self.said.insert("tags".to_owned(), json!([tag]));
        self
    }

    /// More about it, in Markdown.
    #[must_use]
    pub fn described(mut self, text: &str) -> Self {
        self.said.insert("description".to_owned(), text.into());
        self
    }

    /// Whoever calls it needs a key, with this scope.
    #[must_use]
    pub fn needs(mut self, scope: &str) -> Self {
        self.said.insert("security".to_owned(), json!([{ "key": [scope] }]));
        self
    }

    /// One more parameter.
    #[must_use]
    pub fn parameter(mut self, parameter: Value) -> Self {
        let parameters = self.said.entry("parameters").or_insert_with(|| json!([]));
        if let Value::Array(parameters) = parameters {
            parameters.push(parameter);
        }
        self
    }

    /// The body that it must be called with.
    #[must_use]
    pub fn takes(mut self, content: &Content) -> Self {
        let body = json!({ "required": true, "content": content.shown() });
        self.said.insert("requestBody".to_owned(), body);
        self
    }

    /// The body that it may be called with.
    #[must_use]
    pub fn may_take(mut self, content: &Content) -> Self {
        let body = json!({ "required": false, "content": content.shown() });
        self.said.insert("requestBody".to_owned(), body);
        self
    }

    /// An answer if all goes well.
    #[must_use]
    pub fn answers(self, status: u16, description: &str, content: Option<&Content>) -> Self {
        let mut answer = json!({ "description": description });
        if let Some(content) = content {
            answer["content"] = content.shown();
        }
        self.answer(status, answer)
    }

    /// A header that the answer with this status has.
    #[must_use]
    pub fn with_header(mut self, status: u16, name: &str, description: &str) -> Self {
        if let Some(answer) =
            self.said.get_mut("responses").and_then(|all| all.get_mut(status.to_string()))
        {
            answer["headers"][name] =
                json!({ "description": description, "schema": { "type": "string" } });
        }
        self
    }

    /// Problems that it may answer.
    #[must_use]
    pub fn fails(mut self, statuses: &[u16]) -> Self {
        for status in statuses {
            self = self.answer(*status, reference("responses", &format!("Problem{status}")));
        }
        self
    }

    fn answer(mut self, status: u16, answer: Value) -> Self {
        let answers = self.said.entry("responses").or_insert_with(|| json!({}));
        answers[status.to_string()] = answer;
        self
    }
}

impl<S: Clone + Send + Sync + 'static> Default for Described<S> {
    fn default() -> Self {
        Self { router: Router::new(), paths: Map::new() }
    }
}

impl<S: Clone + Send + Sync + 'static> Described<S> {
    /// The same, and one more operation, which this handler serves.
    #[must_use]
    pub fn serve<H, T>(mut self, operation: Operation, handler: H) -> Self
    where
        H: Handler<T, S>,
        T: 'static,
    {
        // A method beyond these is none that we serve.
        let filter = MethodFilter::try_from(operation.method.clone()).unwrap_or(MethodFilter::GET);
        self.router = self.router.route(operation.path, on(filter, handler));
        let path = self.paths.entry(operation.path).or_insert_with(|| json!({}));
        path[operation.method.as_str().to_ascii_lowercase()] = Value::Object(operation.said);
        self
    }

    /// The routes, and the document.
    pub fn finish(self, about: About) -> (Router<S>, Value) {
        let mut schemas = about.schemas;
        schemas.insert("Problem".to_owned(), problem());
        let tags =
            about.tags.iter().map(|(name, text)| json!({ "name": name, "description": text }));
        let said = Value::Object(self.paths.clone()).to_string();
        let problems = problems(|name| said.contains(name));
        let document = json!({
            "openapi": "3.1.1",
            "info": {
                "title": about.title,
                "description": about.description,
                "version": env!("CARGO_PKG_VERSION"),
                "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
            },
            "servers": [{ "url": "/" }],
            "security": [{ "key": [] }],
            "tags": tags.collect::<Vec<Value>>(),
            "paths": self.paths,
            "components": {
                "schemas": schemas,
                "responses": problems,
                "securitySchemes": { "key": {
                    "type": "http", "scheme": "bearer",
                    "description": "The operator's key, or an API key that has the scope named.",
                } },
            },
        });
        (self.router, document)
    }
}

/// A reference to one of the document's components.
#[must_use]
pub fn reference(kind: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{kind}/{name}") })
}

/// The document, and a page that shows it, for everyone to read.
pub fn routes<S: Clone + Send + Sync + 'static>(document: &Value) -> Router<S> {
    let text = Bytes::from(document.to_string());
    let show = move || {
        let text = text.clone();
        async move { ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text) }
    };
    Router::new().route(DOCUMENT, get(show)).merge(docs::routes())
}

/// What answers with this status mean, wherever they come.
const PROBLEMS: [(u16, &str); 12] = [
    (
        400,
        "The request can't be read: its body is not JSON, or its path or headers are not what they must be.",
    ),
    (401, "There is no key, or one that is worth nothing."),
    (403, "The key does not allow this."),
    (404, "There is no such thing, or it is not this tenant's."),
    (408, "The request took too long to come."),
    (409, "It is in conflict with what there is, or with what others do just now."),
    (412, "It has changed since the version that `If-Match` names."),
    (413, "The body is too large."),
    (
        415,
        "The body's content type is not one of those that are taken, or it has a content encoding.",
    ),
    (422, "The request is well-formed, but wrong; each wrong place is named."),
    (429, "Too many requests, or events: wait as long as `retry-after` says."),
    (503, "Something that we need does not answer. Send it again, after `retry-after`."),
];

/// Those that operations refer to.
fn problems(is_used: impl Fn(&str) -> bool) -> Value {
    let content =
        json!({ "application/problem+json": { "schema": reference("schemas", "Problem") } });
    let each = PROBLEMS.iter().map(|(status, text)| {
        (format!("Problem{status}"), json!({ "description": text, "content": content }))
    });
    Value::Object(each.filter(|(name, _)| is_used(name)).collect())
}

fn problem() -> Value {
    json!({
        "description": "What went wrong (RFC 9457).",
        "type": "object",
        "required": ["type", "title", "status", "detail", "instance"],
        "properties": {
            "type": { "type": "string", "description": "The kind of problem, as a URN." },
            "title": { "type": "string", "description": "The kind, in words." },
            "status": { "type": "integer", "description": "The HTTP status." },
            "detail": { "type": "string", "description": "What was wrong this time, and what to do." },
            "instance": { "type": "string", "description": "The request's id." },
            "errors": {
                "type": "array",
                "description": "Each wrong place.",
                "items": {
                    "type": "object",
                    "required": ["pointer", "detail"],
                    "properties": {
                        "pointer": { "type": "string", "description": "A JSON pointer (RFC 6901) into the body, or the name of a parameter." },
                        "detail": { "type": "string", "description": "What is wrong there." },
                    },
                    "additionalProperties": false,
                },
            },
        },
        "additionalProperties": false,
    })
}

/// 404 for a file of the page that there is not.
fn not_found() -> Response {
    StatusCode::NOT_FOUND.into_response()
}
