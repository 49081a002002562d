//! Signatures that whoever has the public key can check, and nobody else can make: Standard Webhooks
//! `v1a`, ed25519, beside `v1`.
//! Source: <https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md>.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signer as _, SigningKey};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::ids::EventId;

/// A key pair. Prints as stars; serialises in clear, for the store only.
#[derive(Clone, PartialEq, Eq)]
pub struct AsymmetricKey(Box<SigningKey>);

const SECRET_PREFIX: &str = "whsk_";
const PUBLIC_PREFIX: &str = "whpk_";

impl AsymmetricKey {
    /// The pair that these 32 bytes of chance make.
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(Box::new(SigningKey::from_bytes(seed)))
    }

    /// The public key as receivers get it: `whpk_` and base64.
    #[must_use]
    pub fn public(&self) -> String {
        format!("{PUBLIC_PREFIX}{}", STANDARD.encode(self.0.verifying_key().as_bytes()))
    }

    /// The signature of one attempt: `v1a,` and base64 of ed25519 over `{id}.{timestamp}.{body}`;
    /// `timestamp` is in Unix seconds.
    #[must_use]
    pub fn sign(&self, id: &EventId, timestamp: i64, body: &[u8]) -> String {
        let signed = [format!("{id}.{timestamp}.").as_bytes(), body].concat();
        format!("v1a,{}", STANDARD.encode(self.0.sign(&signed).to_bytes()))
    }
}

impl fmt::Debug for AsymmetricKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AsymmetricKey(***)")
    }
}

impl Serialize for AsymmetricKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer
            .collect_str(&format_args!("{SECRET_PREFIX}{}", STANDARD.encode(self.0.to_bytes())))
    }
}

impl<'de> Deserialize<'de> for AsymmetricKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let seed = text.strip_prefix(SECRET_PREFIX).and_then(|text| STANDARD.decode(text).ok());
        let seed = seed.and_then(|seed| <[u8; 32]>::try_from(seed).ok());
        seed.map(|seed| Self::from_seed(&seed))
            .ok_or_else(|| D::Error::custom("not whsk_ and base64 of 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signature, VerifyingKey};

    use super::*;

    #[test]
    fn the_public_key_alone_verifies() {
        let key = AsymmetricKey::from_seed(&[7; 32]);
        let id = "evt".parse().unwrap();
        let signature = key.sign(&id, 5, b"{}");
        let signature = STANDARD.decode(signature.strip_prefix("v1a,").unwrap()).unwrap();
        let public = STANDARD.decode(key.public().strip_prefix("whpk_").unwrap()).unwrap();
        let public = VerifyingKey::from_bytes(&public.try_into().unwrap()).unwrap();
        let signature = Signature::from_slice(&signature).unwrap();
        assert!(public.verify_strict(b"evt.5.{}", &signature).is_ok());
        assert!(public.verify_strict(b"evt.6.{}", &signature).is_err());
    }

    #[test]
    fn it_signs_the_first_example_of_rfc_8032() {
        // RFC 8032 §7.1, TEST 1: the public key of this secret one.
        let seed = [
            0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec,
            0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03,
            0x1c, 0xae, 0x7f, 0x60,
        ];
        let public = AsymmetricKey::from_seed(&seed).public();
        assert_eq!(public, "whpk_11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
    }

    #[test]
    fn it_reads_back_and_prints_as_stars() {
        let key = AsymmetricKey::from_seed(&[7; 32]);
        let text = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<AsymmetricKey>(&text).unwrap(), key);
        assert_eq!(format!("{key:?}"), "AsymmetricKey(***)");
        for wrong in ["\"\"", "\"whsk_\"", "\"whsk_AAAA\"", "1"] {
            assert!(serde_json::from_str::<AsymmetricKey>(wrong).is_err(), "{wrong}");
        }
    }
}
