//! Versions as `ETag` and `If-Match` say them (RFC 9110 §8.8.3, §13.1.1).

use axum::http::StatusCode;
use doorbell_platform::problem::Problem;

/// 412 unless the caller's `If-Match` (if any) names this version.
pub(crate) fn check_match(if_match: Option<&str>, version: &str) -> Result<(), Problem> {
    let Some(tags) = if_match else { return Ok(()) };
    let matches = tags.split(',').map(str::trim).any(|tag| tag == "*" || tag == etag(version));
    if matches {
        return Ok(());
    }
    Err(Problem::new(
        StatusCode::PRECONDITION_FAILED,
        "this has changed since you read it: read it again",
    ))
}

/// The `ETag` of a version.
pub(crate) fn etag(version: &str) -> String {
    format!("\"{version}\"")
}

#[cfg(test)]
mod tests {
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
            assert_eq!(check_match(tags, "v").is_ok(), matches, "{tags:?}");
        }
    }
}
