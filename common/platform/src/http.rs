//! What both HTTP APIs have in common: who is let in, request ids, problems for every error, bounds on
//! size and time, strict JSON objects.

use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use doorbell_common::json::{self, InvalidJson};
use futures_util::StreamExt as _;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::auth::Guard;
use crate::ids;
use crate::problem::{self, FieldError, Problem};

mod room;
mod server;

pub use room::{Room, keep};
pub use server::serve;

/// How long a request may take, its body included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(40);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A request's id, in its extensions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestId(pub String);

/// Wraps an API's routes in what every request goes through; the open ones are for everyone, with a key
/// or without.
pub fn api(routes: Router, open: Router, guard: Guard, max_body: usize) -> Router {
    routes
        .fallback(|| async { Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path") })
        .layer(DefaultBodyLimit::max(max_body))
        .layer(from_fn_with_state(guard, authenticate))
        .merge(open)
        .layer(from_fn(limit_time))
        .layer(from_fn(identify))
}

/// Lets a request through to its route together with who it is that calls.
async fn authenticate(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let authorization =
        request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match guard.admit(authorization).await {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(problem) => {
            discard(request.into_body()).await;
            problem.into_response()
        }
    }
}

async fn limit_time(request: Request, next: Next) -> Response {
    match tokio::time::timeout(REQUEST_TIMEOUT, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            Problem::new(StatusCode::REQUEST_TIMEOUT, "the request took too long").into_response()
        }
    }
}

/// Gives each request an id, each error the form of a problem, and each problem the id.
async fn identify(mut request: Request, next: Next) -> Response {
    let given = request.headers().get(&REQUEST_ID).and_then(|value| value.to_str().ok());
    let valid =
        |id: &&str| !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_graphic());
    let id = given.filter(valid).map_or_else(ids::token, str::to_owned);
    request.extensions_mut().insert(RequestId(id.clone()));
    let mut response = next.run(request).await;
    let status = response.status();
    let is_error = status.is_client_error() || status.is_server_error();
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        response = with_headers_of(&response, problem.of_request(&id).into_response());
    } else if is_error && !problem::is_problem(&response) {
        let problem = Problem::new(status, explain(status)).of_request(&id);
        response = with_headers_of(&response, problem.into_response());
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// An answer with what another one has to say beside its body.
fn with_headers_of(before: &Response, mut response: Response) -> Response {
    for (name, value) in before.headers() {
        if !response.headers().contains_key(name) && name != header::CONTENT_LENGTH {
            response.headers_mut().append(name, value.clone());
        }
    }
    response
}

/// Errors that the framework answers by itself.
fn explain(status: StatusCode) -> &'static str {
    match status {
        StatusCode::METHOD_NOT_ALLOWED => "this path has no such method",
        StatusCode::PAYLOAD_TOO_LARGE => "the request's body is too large",
        StatusCode::NOT_FOUND => "there is nothing at this path",
        _ => "the request could not be served",
    }
}

/// Reads a body that is refused and throws it away, up to a bound: a client that is still sending
/// when the connection closes would see a reset instead of the answer.
pub async fn discard(body: Body) {
    const MOST: usize = 16 * 1024 * 1024;
    let mut stream = body.into_data_stream();
    let mut read = 0;
    while read < MOST
        && let Some(Ok(chunk)) = stream.next().await
    {
        read += chunk.len();
    }
}

/// Answers the body, after a look at its content type, and at how it is coded: what is compressed may be anything once it
/// is not any more.
///
/// # Errors
/// 415 for another type or coding.
pub async fn check_type(
    headers: &HeaderMap,
    body: Body,
    media_types: &[&str],
) -> Result<Body, Problem> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let content_type = text(header::CONTENT_TYPE).unwrap_or_default();
    let media_type = content_type.split(';').next().unwrap_or_default().trim();
    let is_plain = !headers.contains_key(header::CONTENT_ENCODING)
        || text(header::CONTENT_ENCODING)
            .is_some_and(|coding| coding.eq_ignore_ascii_case("identity"));
    let detail = if !is_plain {
        "send the body as it is: without a content-encoding".to_owned()
    } else if media_types.iter().any(|known| known.eq_ignore_ascii_case(media_type)) {
        return Ok(body);
    } else {
        format!("send the body as {}", media_types.join(" or "))
    };
    discard(body).await;
    Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, detail))
}

/// Reads a request's body, after a look at its content type.
///
/// # Errors
/// 415 for another type, 413 for too many bytes, 503 for want of [`Room`], 400 for a body that breaks off.
pub async fn read_body(
    headers: &HeaderMap,
    body: Body,
    media_types: &[&str],
    max: usize,
) -> Result<Bytes, Problem> {
    read_bytes(check_type(headers, body, media_types).await?, max).await
}

/// Reads a request's body, whatever it is said to be.
///
/// # Errors
/// 413 for too many bytes, 503 for want of [`Room`], 400 for a body that breaks off.
pub async fn read_bytes(body: Body, max: usize) -> Result<Bytes, Problem> {
    let mut stream = body.into_data_stream();
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => {
                let Some(no_room) = room::unread(&error) else {
                    return Err(Problem::new(StatusCode::BAD_REQUEST, "the body broke off"));
                };
                discard(Body::from_stream(stream)).await;
                return Err(no_room);
            }
        };
        if bytes.len() + chunk.len() > max {
            discard(Body::from_stream(stream)).await;
            let detail = format!("the body may have at most {max} bytes");
            return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.into())
}

/// The members of a JSON object, in order, each value exactly as it was written.
#[derive(Debug)]
pub struct Members(pub Vec<(String, Box<RawValue>)>);

/// How deep a request may nest that is all ours to read. What is kept of it, or said of it in the audit, nests
/// a few levels deeper, and nobody reads more than 127 (`serde_json`): a record that is deeper would be lost to
/// everyone, with the whole slot or catalogue that it stands in.
const MAX_DEPTH: usize = 100;
/// How deep one may nest that brings an event: its data, in an object.
const MAX_EVENT_DEPTH: usize = doorbell_common::intake::MAX_DEPTH + 1;

impl Members {
    /// Reads a body that must be one JSON object, and in which no object has a name twice.
    ///
    /// # Errors
    /// 400 if it is not JSON, 422 if it is JSON, but not such an object.
    pub fn read(bytes: &[u8]) -> Result<Self, Problem> {
        let members = Self::read_within(bytes, MAX_DEPTH)?;
        json::twice(bytes).map_or(Ok(members), |place| {
            Err(Problem::invalid(vec![FieldError::new(place, "is there twice")]))
        })
    }

    /// The same, but for what is in its values, which are not ours to judge; its own names may be there
    /// twice.
    ///
    /// # Errors
    /// As above.
    pub fn read_outer(bytes: &[u8]) -> Result<Self, Problem> {
        Self::read_within(bytes, MAX_EVENT_DEPTH)
    }

    fn read_within(bytes: &[u8], max_depth: usize) -> Result<Self, Problem> {
        json::check(bytes, usize::MAX, max_depth).map_err(|error| match error {
            InvalidJson::TooDeep { .. } => {
                Problem::invalid(vec![FieldError::new("", error.to_string())])
            }
            InvalidJson::Empty
            | InvalidJson::TooLarge { .. }
            | InvalidJson::NotUtf8
            | InvalidJson::Syntax(_) => {
                Problem::new(StatusCode::BAD_REQUEST, format!("the body {error}"))
            }
        })?;
        serde_json::from_slice(bytes)
            .map_err(|_| Problem::invalid(vec![FieldError::new("", "must be an object")]))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_object_in_which_no_name_is_twice_is_read() {
        let members = Members::read(br#"{"a": [1, 2.0e1], "b": null}"#).unwrap();
        assert_eq!(members.0[0].1.get(), "[1, 2.0e1]");
        for wrong in ["[]", "1", "null", "{", "", &"[".repeat(100_000)] {
            assert!(Members::read_outer(wrong.as_bytes()).is_err(), "{wrong:.20}");
            assert!(Members::read(wrong.as_bytes()).is_err(), "{wrong:.20}");
        }
        for (twice, place) in [(r#"{"a":1,"a":2}"#, "/a"), (r#"{"a":[{"b":1,"b":1}]}"#, "/a/0/b")] {
            let problem = serde_json::to_value(Members::read(twice.as_bytes()).unwrap_err());
            assert_eq!(problem.unwrap()["errors"][0]["pointer"], place, "{twice}");
            assert!(Members::read_outer(twice.as_bytes()).is_ok(), "{twice}");
        }
    }
}
