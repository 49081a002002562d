//! Versions as `ETag` and `If-Match` say them (RFC 9110 §8.8.3, §13.1.1), and what is changed only if it has the
//! version still that was read.

use std::borrow::Cow;

use axum::http::{HeaderMap, StatusCode, header};
use doorbell_platform::problem::Problem;
use sha2::{Digest as _, Sha256};

/// How often a change is tried again over someone else's.
pub(crate) const TRIES: usize = 10;

/// What the caller says that the version must be. What is no text is no version of ours, and must not
/// look as if nothing had been said.
pub(crate) fn if_match(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    headers.get(header::IF_MATCH).map(|value| String::from_utf8_lossy(value.as_bytes()))
}

/// 412 unless the caller's `If-Match` (if any) names this version, `None` of what is not there.
pub(crate) fn check_match(if_match: Option<&str>, version: Option<&str>) -> Result<(), Problem> {
    let Some(tags) = if_match else { return Ok(()) };
    let names =
        |version| tags.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag(version));
    if version.is_some_and(names) {
        return Ok(());
    }
    let detail = if version.is_some() {
        "this has changed since you read it: read it again"
    } else {
        "this is not there, and so has no version: leave If-Match out to make it"
    };
    Err(Problem::new(StatusCode::PRECONDITION_FAILED, detail))
}

/// The answer to a change that others were quicker than, again and again.
pub(crate) fn contended(what: &str) -> Problem {
    let detail = format!("{what} is being changed by others at the same time: try again");
    Problem::new(StatusCode::CONFLICT, detail)
}

/// The version of what is written so.
pub(crate) fn version_of(record: &str) -> String {
    Sha256::digest(record).iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The `ETag` of a version.
pub(crate) fn etag(version: &str) -> String {
    format!("\"{version}\"")
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_a_tag_that_is_named_matches() {
        assert_eq!(etag("v"), "\"v\"");
        for (tags, matches) in [
            (None, true),
            (Some("*"), true),
            (Some("\"v\""), true),
            (Some("\"u\", \"v\""), true),
            (Some("\"u\""), false),
            (Some("v"), false),
            (Some(""), false),
        ] {
            assert_eq!(check_match(tags, Some("v")).is_ok(), matches, "{tags:?}");
            assert_eq!(check_match(tags, None).is_ok(), tags.is_none(), "{tags:?} of nothing");
        }
        assert_ne!(version_of("v"), version_of("u"));
        let mut headers = HeaderMap::new();
        assert_eq!(if_match(&headers), None);
        headers.insert(header::IF_MATCH, HeaderValue::from_bytes(b"\"v\", \xd7").unwrap());
        assert!(check_match(if_match(&headers).as_deref(), Some("v")).is_ok());
        headers.insert(header::IF_MATCH, HeaderValue::from_bytes(b"\xd7").unwrap());
        assert!(check_match(if_match(&headers).as_deref(), Some("v")).is_err());
    }
}
