//! Errors over HTTP: RFC 9457 `application/problem+json`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};

/// What went wrong with a request, for programs and people.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// A URI that names the kind of problem.
    #[serde(rename = "type")]
    kind: String,
    /// The kind, in words.
    title: String,
    /// The HTTP status.
    status: u16,
    /// What was wrong this time, and what to do.
    detail: String,
    /// The request's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    /// Each wrong place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    errors: Vec<FieldError>,
    #[serde(skip)]
    retry_after_seconds: Option<u32>,
}

/// One wrong place in a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// A JSON pointer (RFC 6901) to it.
    pub pointer: String,
    /// What is wrong with it.
    pub detail: String,
}

impl FieldError {
    /// What is wrong at a pointer.
    #[must_use]
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }
}

/// The most places that a problem names.
const MOST_ERRORS: usize = 200;

impl Problem {
    /// A problem of the kind that the status names.
    #[must_use]
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        let title = status.canonical_reason().unwrap_or("Problem");
        let slug = title.to_ascii_lowercase().replace(' ', "-");
        Self {
            kind: format!("urn:doorbell:problem:{slug}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            instance: None,
            errors: Vec::new(),
            retry_after_seconds: None,
        }
    }

    /// 422 with every wrong field, or as many as anyone reads.
    #[must_use]
    pub fn invalid(mut errors: Vec<FieldError>) -> Self {
        let more = errors.len().saturating_sub(MOST_ERRORS);
        if more > 0 {
            errors.truncate(MOST_ERRORS);
            errors.push(FieldError::new("", format!("has {more} more wrong places")));
        }
        let mut problem = Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "the request is well-formed, but these fields are wrong",
        );
        problem.errors = errors;
        problem
    }

    /// 503: something that we need is down. The request may be sent again.
    #[must_use]
    pub fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, detail).retry_after(2)
    }

    /// The same problem, with the advice to send the request again after so many seconds.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The same problem, of the request with this id.
    #[must_use]
    pub fn of_request(mut self, id: &str) -> Self {
        self.instance = Some(format!("urn:doorbell:request:{id}"));
        self
    }
}

const MEDIA_TYPE: &str = "application/problem+json";

/// Whether an answer is a problem already.
pub(crate) fn is_problem(response: &Response) -> bool {
    response.headers().get(header::CONTENT_TYPE).is_some_and(|value| value == MEDIA_TYPE)
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let retry_after = self.retry_after_seconds;
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_names_as_many_places_as_anyone_reads() {
        let named = |count: usize| {
            let errors = (0..count).map(|n| FieldError::new(format!("/{n}"), "is wrong"));
            Problem::invalid(errors.collect()).errors
        };
        assert_eq!(named(200).len(), 200);
        assert_eq!(named(205).len(), 201);
        assert_eq!(
            named(205).last().map(|last| last.detail.as_str()),
            Some("has 5 more wrong places")
        );
    }
}
