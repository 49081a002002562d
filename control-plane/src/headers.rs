//! Which headers a subscription may add to its POSTs.

use std::collections::BTreeMap;

use axum::http::{HeaderName, HeaderValue};
use doorbell_common::json::pointer;
use doorbell_platform::problem::FieldError;

/// Headers that a subscription may have at most.
const MAX_HEADERS: usize = 32;
/// The longest name and the longest value.
const MAX_NAME: usize = 128;
const MAX_VALUE: usize = 2048;

/// Hop-by-hop headers (RFC 9110 §7.6.1) and others that are the connection's business.
const CONNECTIONS_OWN: [&str; 11] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "host",
    "expect",
];
/// Beginnings of names that are ours.
const OURS: [&str; 3] = ["content-", "webhook-", "doorbell-"];

/// Checks a header's name and gives it in lower case.
pub(crate) fn check_name(name: &str) -> Result<String, String> {
    let lower = name.to_ascii_lowercase();
    if name.len() > MAX_NAME || HeaderName::from_bytes(lower.as_bytes()).is_err() {
        return Err("is not a valid header name".to_owned());
    }
    if CONNECTIONS_OWN.contains(&lower.as_str()) {
        return Err(format!("{lower} belongs to the connection and may not be set"));
    }
    if let Some(prefix) = OURS.iter().find(|prefix| lower.starts_with(**prefix)) {
        return Err(format!("headers that begin with {prefix} are set by Doorbell"));
    }
    Ok(lower)
}

/// Checks a subscription's headers and gives their names in lower case.
pub(crate) fn check(
    headers: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, String>, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut checked = BTreeMap::new();
    if headers.len() > MAX_HEADERS {
        errors.push(FieldError::new("/headers", format!("may have at most {MAX_HEADERS} headers")));
    }
    for (name, value) in headers {
        let place = format!("/headers{}", pointer(name));
        let printable = HeaderValue::from_str(value).is_ok() && value.is_ascii();
        if !printable || value.len() > MAX_VALUE {
            errors.push(FieldError::new(
                &place,
                format!("must be at most {MAX_VALUE} printable ASCII characters"),
            ));
        }
        match check_name(name) {
            Ok(lower) => {
                if checked.insert(lower, value.clone()).is_some() {
                    errors.push(FieldError::new(place, "is there twice, in different cases"));
                }
            }
            Err(detail) => errors.push(FieldError::new(place, detail)),
        }
    }
    if errors.is_empty() { Ok(checked) } else { Err(errors) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_or_the_connections_may_not_be_set() {
        for name in ["x-team", "Authorization", "user-agent", "x_y"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in [
            "Host",
            "connection",
            "TE",
            "content-type",
            "Content-Length",
            "webhook-id",
            "doorbell-attempt",
            "a b",
            "",
            "é",
            "a\r\nb",
            "transfer-encoding",
        ] {
            assert!(check_name(name).is_err(), "{name}");
        }
        let headers = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
        };
        assert!(check(&headers(&[("X-A", "1")])).unwrap().contains_key("x-a"));
        for wrong in [
            &[("X-A", "1"), ("x-a", "2")][..],
            &[("x-a", "1\r\nx-b: 2")],
            &[("x-a", "é")],
            &[("x-a", "\0")],
        ] {
            assert!(check(&headers(wrong)).is_err(), "{wrong:?}");
        }
    }
}
