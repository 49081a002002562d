//! Reads what is asked of a rotation of secrets.

use std::time::Duration;

use doorbell_common::duration::DurationText;
use doorbell_common::json::pointer;
use doorbell_platform::http::Members;
use doorbell_platform::problem::{FieldError, Problem};

const DEFAULT: Duration = Duration::from_secs(24 * 3600);
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3600);

/// How long the old secret signs along; the default, if there is no body.
pub(crate) fn overlap(body: &[u8]) -> Result<Duration, Problem> {
    if body.trim_ascii().is_empty() {
        return Ok(DEFAULT);
    }
    let Members(members) = Members::read(body)?;
    let mut overlap = DEFAULT;
    let mut errors = Vec::new();
    for (name, value) in &members {
        if name != "overlap" {
            errors.push(FieldError::new(pointer(name), "is not a field of a rotation"));
            continue;
        }
        match serde_json::from_str::<DurationText>(value.get()) {
            Ok(text) if text.0 <= LONGEST => overlap = text.0,
            Ok(_) => errors.push(FieldError::new("/overlap", "must be at most 7d")),
            Err(_) => {
                errors.push(FieldError::new("/overlap", "must be a duration, such as \"24h\""))
            }
        }
    }
    if errors.is_empty() { Ok(overlap) } else { Err(Problem::invalid(errors)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overlap_is_up_to_seven_days() {
        assert_eq!(overlap(b"").unwrap().as_secs(), 86_400);
        assert_eq!(overlap(br#"{"overlap":"0s"}"#).unwrap().as_secs(), 0);
        for wrong in [r#"{"overlap":"8d"}"#, r#"{"overlap":1}"#, r#"{"x":1}"#, "[]", "{"] {
            assert!(overlap(wrong.as_bytes()).is_err(), "{wrong}");
        }
    }
}
