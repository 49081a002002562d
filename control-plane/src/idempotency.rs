//! `Idempotency-Key`: a POST that is sent again within a day is carried out once, and answered as it
//! was the first time (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>).

use std::sync::Arc;

use axum::body::{Body, to_bytes};
use axum::extract::{Extension, MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use doorbell_platform::auth::Caller;
use doorbell_platform::http::read_bytes;
use doorbell_platform::problem::Problem;
use doorbell_platform::store::Store;
use doorbell_platform::store::idempotency::{self, Answered, Before};
use sha2::{Digest as _, Sha256};

use crate::MAX_BODY;
use crate::routes::{Api, BULK, trouble};

const KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// Says that an answer is that of an earlier request.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");
const MAX_KEY: usize = 255;
/// The headers of an answer that belong to what was done.
const KEPT: [HeaderName; 3] = [header::CONTENT_TYPE, header::LOCATION, header::ETAG];

/// A request that has a key of its own: it may have been sent before, and nobody knows how that ended.
#[derive(Clone, Debug)]
pub(crate) struct Repeatable(idempotency::Request);

impl Repeatable {
    /// The id of what it was about to make then.
    pub(crate) async fn making(&self, store: &Store) -> Result<Option<String>, Problem> {
        store.making(&self.0).await.map_err(trouble)
    }

    /// It is about to make what has this id.
    pub(crate) async fn make(&self, store: &Store, id: &str) -> Result<(), Problem> {
        store.note_making(&self.0, id).await.map_err(trouble)
    }
}

/// Carries out what has a key of its own once.
pub(crate) async fn once(
    State(api): State<Api>,
    Extension(caller): Extension<Arc<Caller>>,
    route: MatchedPath,
    request: Request,
    next: Next,
) -> Response {
    let Some(key) = request.headers().get(KEY).cloned() else { return next.run(request).await };
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let served = async {
        let key = check_key(&key, route.as_str())?;
        let (parts, body) = request.into_parts();
        let body = read_bytes(body, MAX_BODY).await?;
        let asked = idempotency::Request {
            tenant: caller.grant.tenant.clone(),
            name: format!("{}/{}", caller.name(), digest(&[key.as_bytes()])),
            fingerprint: digest(&[parts.uri.to_string().as_bytes(), &body]),
        };
        match api.store.begin_request(&asked).await.map_err(trouble)? {
            Before::New => {}
            Before::WorkedOn => return Err(in_work()),
            Before::Another => return Err(reused()),
            Before::UsedUp => return Err(used_up()),
            Before::Answered(answered) => return Ok(replay(answered)),
        }
        let mut request = Request::from_parts(parts, Body::from(body));
        request.extensions_mut().insert(Repeatable(asked.clone()));
        let response = next.run(request).await;
        remember(&api, &asked, response).await
    };
    served.await.unwrap_or_else(|problem: Problem| problem.into_response())
}

fn check_key<'a>(key: &'a HeaderValue, route: &str) -> Result<&'a str, Problem> {
    let wrong = |detail: &str| Problem::new(StatusCode::BAD_REQUEST, detail);
    if BULK.contains(&route) {
        return Err(wrong(
            "bulk calls take no Idempotency-Key: their answer says what became of each line",
        ));
    }
    let is_good = |text: &&str| (1..=MAX_KEY).contains(&text.len()) && !text.contains('\t');
    let text = key.to_str().ok().filter(is_good);
    text.ok_or_else(|| wrong("an Idempotency-Key has 1 to 255 printable ASCII characters"))
}

/// Remembers an answer, unless the request came to nothing for a reason that may pass.
async fn remember(
    api: &Api,
    asked: &idempotency::Request,
    response: Response,
) -> Result<Response, Problem> {
    let status = response.status();
    let passes = [StatusCode::REQUEST_TIMEOUT, StatusCode::CONFLICT, StatusCode::TOO_MANY_REQUESTS];
    if status.is_server_error() || passes.contains(&status) {
        api.store.forget_request(asked).await.map_err(trouble)?;
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    // Our own answers are small, and whole already.
    let body = to_bytes(body, usize::MAX).await.unwrap_or_default();
    let answered = Answered {
        status: status.as_u16(),
        headers: kept(&parts.headers),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    // Should Redis be gone just now, it is done all the same, and was answered.
    if let Err(error) = api.store.end_request(asked, &answered).await {
        tracing::warn!(%error, "an answer is not remembered: sent again, the request is refused for a minute");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

fn kept(headers: &HeaderMap) -> Vec<(String, String)> {
    let value =
        |name: &HeaderName| Some((name.to_string(), headers.get(name)?.to_str().ok()?.to_owned()));
    KEPT.iter().filter_map(value).collect()
}

fn replay(Answered { status, headers, body }: Answered) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    // A problem says of which request it is, and this is another one.
    let problem = serde_json::from_str::<Problem>(&body).ok().filter(|_| status.is_client_error());
    let mut response = (status, body).into_response();
    if let Some(problem) = problem {
        response.extensions_mut().insert(problem);
    }
    response.headers_mut().remove(header::CONTENT_TYPE);
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            response.headers_mut().insert(name, value);
        }
    }
    response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

fn digest(parts: &[&[u8]]) -> String {
    let mut digest = Sha256::new();
    for part in parts {
        // With its length, so that no two lists of parts look the same.
        digest.update(part.len().to_be_bytes());
        digest.update(part);
    }
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn in_work() -> Problem {
    let detail =
        "a request with this Idempotency-Key is being worked on: send it again in a moment";
    Problem::new(StatusCode::CONFLICT, detail).retry_after(1)
}

fn used_up() -> Problem {
    let detail = "as much is remembered of this tenant's requests as may be within a day: send this one without an Idempotency-Key, or later";
    Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(3600)
}

fn reused() -> Problem {
    let detail =
        "this Idempotency-Key was used for another request within the last day: use a new one";
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_short_and_printable() {
        let check =
            |key: &[u8], route| check_key(&HeaderValue::from_bytes(key).unwrap(), route).is_ok();
        assert!(check(b"a b", "/v1/keys") && check(&[b'x'; 255], "/v1/keys"));
        assert!(!check(b"", "/v1/keys") && !check(&[b'x'; 256], "/v1/keys"));
        assert!(
            !check(b"\xff", "/v1/keys") && !check(b"a\tb", "/v1/keys") && !check(b"a", BULK[0])
        );
    }

    #[test]
    fn requests_differ_by_each_of_their_parts() {
        assert_eq!(digest(&[b"ab", b"c"]), digest(&[b"ab", b"c"]));
        assert_ne!(digest(&[b"ab", b"c"]), digest(&[b"a", b"bc"]));
    }
}
