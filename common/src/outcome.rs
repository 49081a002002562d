//! What an attempt meant: success, or a failure of one class. One enum, filled in one place;
//! everyone else matches on it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::time::Timestamp;

/// What an attempt meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutcomeClass {
    /// 2xx, whatever the body.
    Delivered,
    /// 3xx: never followed.
    Redirect,
    /// 410: the endpoint wants no more.
    Gone,
    /// 429, or a busy answer with `Retry-After`.
    Throttled,
    /// Any other 4xx.
    ClientError,
    /// Any other 5xx.
    ServerError,
    /// The deadline over name, connection, request and answer ran out.
    Timeout,
    /// The name could not be resolved.
    Dns,
    /// Refused, reset or unreachable.
    Connect,
    /// The TLS handshake or the certificate failed.
    Tls,
    /// The answer was not HTTP, or its headers were too many or too large.
    Protocol,
    /// The address may not be called.
    Blocked,
    /// The subscription's template made no body, so nothing was sent.
    Template,
}

impl OutcomeClass {
    /// Every class, for metrics that show each one from the start.
    pub const ALL: [Self; 13] = [
        Self::Delivered,
        Self::Redirect,
        Self::Gone,
        Self::Throttled,
        Self::ClientError,
        Self::ServerError,
        Self::Timeout,
        Self::Dns,
        Self::Connect,
        Self::Tls,
        Self::Protocol,
        Self::Blocked,
        Self::Template,
    ];

    /// The class as it stands in metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Redirect => "redirect",
            Self::Gone => "gone",
            Self::Throttled => "throttled",
            Self::ClientError => "client_error",
            Self::ServerError => "server_error",
            Self::Timeout => "timeout",
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Protocol => "protocol",
            Self::Blocked => "blocked",
            Self::Template => "template",
        }
    }
}

/// The longest `Retry-After` that is honoured.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// By how much an endpoint's clock may differ from ours and is still taken for right: dates have seconds, and an answer
/// takes its time.
const SAME_TIME: Duration = Duration::from_secs(5);

/// The time of an endpoint's answer as its own clock has it, by the header `Date` (RFC 9110 §6.6.1): from that the
/// date in a `Retry-After` counts, whichever of us is wrong. Ours, where they agree or it does not say.
#[must_use]
pub fn time_of_answer(date: Option<&str>, now: Timestamp) -> Timestamp {
    let theirs = date.and_then(parse_date).unwrap_or(now);
    let differ = theirs.since(now).max(now.since(theirs));
    if differ > SAME_TIME { theirs } else { now }
}

/// What an endpoint's answer means. `retry_after` is the header's value, `now` the [time at which
/// it came](time_of_answer). The wait returned is at most [`MAX_RETRY_AFTER`], and only there for answers that
/// ask to be left alone for a while (429, 502, 503, 504).
#[must_use]
pub fn classify(
    status: u16,
    retry_after: Option<&str>,
    now: Timestamp,
) -> (OutcomeClass, Option<Duration>) {
    let wait = match status {
        429 | 502..=504 => retry_after.and_then(|value| parse_retry_after(value, now)),
        _ => None,
    };
    let class = match status {
        200..=299 => OutcomeClass::Delivered,
        300..=399 => OutcomeClass::Redirect,
        410 => OutcomeClass::Gone,
        429 => OutcomeClass::Throttled,
        400..=499 => OutcomeClass::ClientError,
        502..=504 if wait.is_some() => OutcomeClass::Throttled,
        500..=599 => OutcomeClass::ServerError,
        _ => OutcomeClass::Protocol,
    };
    (class, wait)
}

/// Reads `Retry-After` in either of its forms (RFC 9110 §10.2.3): seconds, or an HTTP date (in
/// any of the three formats that a recipient must accept). A date in the past is no wait at all;
/// what is neither is ignored.
#[must_use]
pub fn parse_retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    let value = value.trim();
    let wait = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // Digits that do not fit are a very long wait.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        parse_date(value)?.since(now)
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

fn parse_date(value: &str) -> Option<Timestamp> {
    let date = httpdate::parse_http_date(value.trim()).ok()?;
    let seconds = date.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs();
    Some(Timestamp::from_seconds(seconds))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: &str = "2026-11-20T10:00:00Z";

    #[test]
    fn every_answer_has_its_class() {
        use OutcomeClass as C;
        let wait = Some(Duration::from_secs(7));
        for (status, retry_after, class, expected_wait) in [
            (200, None, C::Delivered, None),
            (204, Some("7"), C::Delivered, None),
            (301, None, C::Redirect, None),
            (304, Some("7"), C::Redirect, None),
            (400, None, C::ClientError, None),
            (404, Some("7"), C::ClientError, None),
            (410, Some("7"), C::Gone, None),
            (429, None, C::Throttled, None),
            (429, Some("7"), C::Throttled, wait),
            (500, Some("7"), C::ServerError, None),
            (502, None, C::ServerError, None),
            (503, None, C::ServerError, None),
            (503, Some("7"), C::Throttled, wait),
            (503, Some("soon"), C::ServerError, None),
            (504, Some("7"), C::Throttled, wait),
            (599, None, C::ServerError, None),
            (600, None, C::Protocol, None),
            (101, None, C::Protocol, None),
        ] {
            assert_eq!(
                classify(status, retry_after, NOW.parse().unwrap()),
                (class, expected_wait),
                "{status} {retry_after:?}"
            );
        }
    }

    #[test]
    fn retry_after_comes_in_two_forms() {
        let seconds = |n| Some(Duration::from_secs(n));
        for (value, wait) in [
            ("0", seconds(0)),
            (" 120 ", seconds(120)),
            ("86401", seconds(86_400)),
            ("99999999999999999999999", seconds(86_400)),
            ("Fri, 20 Nov 2026 10:00:30 GMT", seconds(30)),
            ("Friday, 20-Nov-26 10:00:30 GMT", seconds(30)),
            ("Fri Nov 20 10:00:30 2026", seconds(30)),
            ("Fri, 20 Nov 2026 09:00:00 GMT", seconds(0)),
            ("Thu, 01 Jan 1970 00:00:00 GMT", seconds(0)),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(parse_retry_after(value, NOW.parse().unwrap()), wait, "{value}");
        }
    }

    #[test]
    fn a_date_to_wait_for_counts_from_the_date_of_the_answer() {
        let now: Timestamp = NOW.parse().unwrap();
        for (date, after_ours) in [
            (None, 30),
            (Some("now"), 30),
            (Some("Fri, 20 Nov 2026 09:59:59 GMT"), 30),
            (Some("Fri, 20 Nov 2026 10:00:04 GMT"), 30),
            // Their clock is ten minutes late, or a minute early.
            (Some("Fri, 20 Nov 2026 09:50:00 GMT"), 630),
            (Some("Fri, 20 Nov 2026 10:01:00 GMT"), 0),
        ] {
            let from = time_of_answer(date, now);
            let wait = parse_retry_after("Fri, 20 Nov 2026 10:00:30 GMT", from);
            assert_eq!(wait, Some(Duration::from_secs(after_ours)), "{date:?}");
        }
    }

    proptest! {
        #[test]
        fn no_header_panics_or_waits_beyond_a_day(value in ".*", millis: i64) {
            if let Some(wait) = parse_retry_after(&value, Timestamp::from_millis(millis)) {
                prop_assert!(wait <= MAX_RETRY_AFTER);
            }
        }
    }
}
