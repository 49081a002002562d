//! How a receiver knows that a POST is ours and whole.
//!
//! Standard Webhooks 1.0.0 (`v1`, symmetric), and one older style that receivers may ask for.
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Sha256;

use crate::ids::EventId;

/// A signing secret, `whsec_` and base64, with its key prepared once. Prints as stars;
/// serialises in clear, for the store only.
#[derive(Clone)]
pub struct Secret {
    text: String,
    prepared: Hmac<Sha256>,
}

/// Why a text is not a signing secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSecret {
    /// It does not begin with `whsec_`.
    #[error("does not begin with whsec_")]
    Prefix,
    /// What follows is not standard base64.
    #[error("is not whsec_ followed by standard base64")]
    Base64,
    /// Fewer than 24 or more than 64 bytes of key.
    #[error("has a key of {0} bytes: 24 to 64 are allowed")]
    Length(usize),
}

const PREFIX: &str = "whsec_";

/// How long a `v1` signature is.
const SIGNATURE: usize = "v1,".len() + 44;

impl Secret {
    /// The secret with this key.
    ///
    /// # Errors
    /// The key has fewer than 24 or more than 64 bytes.
    pub fn from_key(key: &[u8]) -> Result<Self, InvalidSecret> {
        if !(24..=64).contains(&key.len()) {
            return Err(InvalidSecret::Length(key.len()));
        }
        let prepared = Hmac::new_from_slice(key).map_err(|_| InvalidSecret::Length(key.len()))?;
        Ok(Self { text: format!("{PREFIX}{}", STANDARD.encode(key)), prepared })
    }

    /// The secret as its holder sees it. Only the calls that exist to show it may use this.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// The Standard Webhooks signature of one attempt: `v1,` and base64 of the HMAC-SHA256 of
    /// `{id}.{timestamp}.{body}`; `timestamp` is in Unix seconds.
    #[must_use]
    pub fn sign(&self, id: &EventId, timestamp: i64, body: &[u8]) -> String {
        let mut mac = self.prepared.clone();
        mac.update(id.as_str().as_bytes());
        mac.update(format!(".{timestamp}.").as_bytes());
        mac.update(body);
        let mut text = String::with_capacity(SIGNATURE);
        text.push_str("v1,");
        STANDARD.encode_string(mac.finalize().into_bytes(), &mut text);
        text
    }

    /// The older style: `sha256=` and the hexadecimal HMAC-SHA256 of the body, keyed with the
    /// secret's text as shown, prefix included.
    #[must_use]
    pub fn sign_sha256_hex(&self, body: &[u8]) -> String {
        let mut text = String::from("sha256=");
        // Prepared each time: few ask for it, and a dispatcher keeps many secrets. HMAC takes a key
        // of any length.
        if let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(self.text.as_bytes()) {
            mac.update(body);
            for byte in mac.finalize().into_bytes() {
                text.push_str(&format!("{byte:02x}"));
            }
        }
        text
    }
}

impl FromStr for Secret {
    type Err = InvalidSecret;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let encoded = text.strip_prefix(PREFIX).ok_or(InvalidSecret::Prefix)?;
        let key = STANDARD.decode(encoded).map_err(|_| InvalidSecret::Base64)?;
        Self::from_key(&key)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Secret {}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_the_example_of_the_specification() {
        // The test vector that the reference libraries share.
        let secret: Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
        let id = "msg_p5jXN8AQM9LWM0D4loKWxJek".parse().unwrap();
        let signature = secret.sign(&id, 1_614_265_330, br#"{"test": 2432232314}"#);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn signs_the_older_style_with_the_text_as_key() {
        let secret: Secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().unwrap();
        // printf '{}' | openssl dgst -sha256 -hmac whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw
        assert_eq!(
            secret.sign_sha256_hex(b"{}"),
            "sha256=6cbbcdf2c8016ca85b50543b19e8e121ef16137967bdfa3ce660972922bafaeb"
        );
    }

    #[test]
    fn nonsense_is_refused_and_nothing_prints_the_key() {
        assert_eq!("x".parse::<Secret>(), Err(InvalidSecret::Prefix));
        assert_eq!("whsec_!".parse::<Secret>(), Err(InvalidSecret::Base64));
        assert_eq!(Secret::from_key(&[0; 23]), Err(InvalidSecret::Length(23)));
        assert_eq!(Secret::from_key(&[0; 65]), Err(InvalidSecret::Length(65)));
        assert_eq!(format!("{:?}", Secret::from_key(&[7; 32]).unwrap()), "Secret(***)");
    }
}
