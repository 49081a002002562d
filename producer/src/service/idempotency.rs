//! `Idempotency-Key` for events that have no id of their own: they get one that follows from the key, so
//! that a request that is sent again publishes nothing twice.
//! (<https://datatracker.ietf.org/doc/draft-ietf-httpapi-idempotency-key-header/>)

use axum::http::{HeaderValue, StatusCode};
use doorbell_platform::problem::Problem;
use sha2::{Digest as _, Sha256};

const MAX_KEY: usize = 255;
/// Bytes of a digest that an id has: enough that no two events meet.
const ID_BYTES: usize = 16;

/// A key that a request has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct IdempotencyKey(String);

impl IdempotencyKey {
    /// 400 for what is no key.
    pub(super) fn read(value: &HeaderValue) -> Result<Self, Problem> {
        let is_good = |text: &&str| (1..=MAX_KEY).contains(&text.len()) && !text.contains('\t');
        let text = value.to_str().ok().filter(is_good).ok_or_else(|| {
            let detail = "an Idempotency-Key has 1 to 255 printable ASCII characters";
            Problem::new(StatusCode::BAD_REQUEST, detail)
        })?;
        Ok(Self(text.to_owned()))
    }

    /// The id of an event that someone has sent with this key. Another event, another line, or someone
    /// else's has another id: nobody's event is taken for a copy that is none.
    pub(super) fn id_of(&self, caller: &str, line: usize, event: &[u8]) -> String {
        let mut digest = Sha256::new();
        for part in [self.0.as_bytes(), caller.as_bytes(), &line.to_be_bytes(), event] {
            // With its length, so that no two lists of parts look the same.
            digest.update(part.len().to_be_bytes());
            digest.update(part);
        }
        let digest = digest.finalize();
        let digits: String =
            digest.iter().take(ID_BYTES).map(|byte| format!("{byte:02x}")).collect();
        format!("evt_{digits}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_follows_from_all_that_tells_an_event() {
        let key = |text: &'static str| IdempotencyKey::read(&HeaderValue::from_static(text));
        let id = key("a").unwrap().id_of("operator", 0, b"{}");
        assert_eq!(id.len(), 36);
        assert!(id.parse::<doorbell_common::ids::EventId>().is_ok(), "{id}");
        assert_eq!(key("a").unwrap().id_of("operator", 0, b"{}"), id);
        for other in [
            key("b").unwrap().id_of("operator", 0, b"{}"),
            key("a").unwrap().id_of("key_1", 0, b"{}"),
            key("a").unwrap().id_of("operator", 1, b"{}"),
            key("a").unwrap().id_of("operator", 0, b"[]"),
        ] {
            assert_ne!(other, id);
        }
        assert!(key("").is_err() && key("a\tb").is_err());
        assert!(IdempotencyKey::read(&HeaderValue::from_bytes(&[b'x'; 256]).unwrap()).is_err());
        assert!(IdempotencyKey::read(&HeaderValue::from_bytes(b"\xff").unwrap()).is_err());
    }
}
