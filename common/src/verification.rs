//! Does whoever runs an endpoint want our POSTs? Two ways to ask, and what counts as a yes.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How an endpoint is asked before anything is delivered to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verification {
    /// It is not.
    #[default]
    None,
    /// By a POST with a challenge, which it has to send back.
    Challenge,
    /// By an `OPTIONS` request
    /// (<https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md#4-abuse-protection>).
    CloudEvents,
}

/// How long an endpoint has for its answer.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// How long after each time an endpoint is asked once more that has not said yes; then no more, but by
/// whoever asks for it.
pub const ASKED_AGAIN_AFTER: [Duration; 6] = [
    Duration::from_secs(10),
    Duration::from_secs(60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(3600),
    Duration::from_secs(6 * 3600),
    Duration::from_secs(24 * 3600),
];
/// In which header of an `OPTIONS` request we say who we are.
pub const REQUEST_ORIGIN: &str = "webhook-request-origin";
/// In which header of its answer the endpoint says whom it takes POSTs from.
pub const ALLOWED_ORIGIN: &str = "webhook-allowed-origin";

impl Verification {
    /// The way as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Challenge => "challenge",
            Self::CloudEvents => "cloudevents",
        }
    }
}

impl std::str::FromStr for Verification {
    type Err = InvalidVerification;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::None, Self::Challenge, Self::CloudEvents];
        all.into_iter().find(|way| way.as_str() == text).ok_or(InvalidVerification)
    }
}

/// A text that is no way to verify an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be none, challenge or cloudevents")]
pub struct InvalidVerification;

/// What is POSTed with a challenge.
#[must_use]
pub fn question(challenge: &str) -> Vec<u8> {
    json!({ "type": "url_verification", "challenge": challenge }).to_string().into_bytes()
}

/// Whether an answer's body sends the challenge back: as `{"challenge": …}`, or alone.
#[must_use]
pub fn is_answered(challenge: &str, body: &[u8]) -> bool {
    let body = body.trim_ascii();
    if body == challenge.as_bytes() {
        return true;
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(members)) => {
            members.get("challenge").and_then(Value::as_str) == Some(challenge)
        }
        Ok(Value::String(text)) => text == challenge,
        Ok(Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_)) | Err(_) => false,
    }
}

/// Whether the header of an answer allows POSTs from this origin.
#[must_use]
pub fn is_allowed(origin: &str, allowed: Option<&str>) -> bool {
    let mut origins = allowed.unwrap_or_default().split(',').map(str::trim);
    origins.any(|allowed| allowed == "*" || allowed.eq_ignore_ascii_case(origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_sent_back_in_one_of_three_forms() {
        let question: Value = serde_json::from_slice(&question("abc")).unwrap();
        assert_eq!(question, json!({"type": "url_verification", "challenge": "abc"}));
        for (body, answered) in [
            (&b"abc"[..], true),
            (b" abc\n", true),
            (b"\"abc\"", true),
            (b"{\"challenge\": \"abc\", \"x\": 1}", true),
            (b"{\"challenge\": \"abd\"}", false),
            (b"{\"type\": \"url_verification\"}", false),
            (b"abcd", false),
            (b"", false),
            (b"\xff", false),
            (b"[\"abc\"]", false),
        ] {
            assert_eq!(is_answered("abc", body), answered, "{}", String::from_utf8_lossy(body));
        }
    }

    #[test]
    fn an_origin_is_allowed_by_name_or_with_all_others() {
        for (header, allowed) in [
            (Some("*"), true),
            (Some("hooks.example.com"), true),
            (Some("other.example, Hooks.Example.com"), true),
            (Some("example.com"), false),
            (Some(""), false),
            (None, false),
        ] {
            assert_eq!(is_allowed("hooks.example.com", header), allowed, "{header:?}");
        }
    }

    #[test]
    fn a_way_is_written_as_it_reads() {
        for way in [Verification::None, Verification::Challenge, Verification::CloudEvents] {
            assert_eq!(way.as_str().parse(), Ok(way));
            assert_eq!(serde_json::to_value(way).unwrap(), way.as_str());
        }
        assert_eq!("Challenge".parse::<Verification>(), Err(InvalidVerification));
    }
}
