//! API keys: how they are written, and what their holders may do.
//!
//! A key is `db_<environment>_<random><checksum>`. The checksum tells a key that was cut or
//! mistyped without asking the store, and lets scanners of leaked secrets be sure of what they
//! found. Only a digest of a key is stored: 160 random bits need no slow hash.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::ids::TenantId;
use crate::text::serde_as_text;
use crate::time::Timestamp;

const PREFIX: &str = "db_";
/// Base 32 without letters that are easily confused (Crockford's), in lower case.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const RANDOM: usize = 32;
const CHECKSUM: usize = 6;

/// A key as its holder has it. Prints as stars.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKeyText(String);

/// Why a text is not an API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidApiKey {
    /// Not of the form that keys have.
    #[error("is not an API key: they look like db_live_…")]
    Form,
    /// It looks like one, but its end does not fit the rest.
    #[error("is not a whole API key: its checksum does not match")]
    Checksum,
}

impl ApiKeyText {
    /// A new key, from random bytes.
    #[must_use]
    pub fn mint(environment: &Environment, random: &[u8; RANDOM]) -> Self {
        let random: String = random.iter().map(|byte| letter(*byte)).collect();
        let body = format!("{PREFIX}{environment}_{random}");
        Self(format!("{body}{}", checksum(&body)))
    }

    /// The key in clear. Only the call that shows it to its new holder may use this.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// What is stored of it: its SHA-256, in hexadecimal digits.
    #[must_use]
    pub fn digest(&self) -> String {
        Sha256::digest(self.0.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The id under which it is stored: the beginning of its digest.
    #[must_use]
    pub fn id(&self) -> ApiKeyId {
        ApiKeyId(self.digest().chars().take(ApiKeyId::DIGITS).collect())
    }
}

impl FromStr for ApiKeyText {
    type Err = InvalidApiKey;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (environment, secret) = text
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split_once('_'))
            .ok_or(InvalidApiKey::Form)?;
        if environment.parse::<Environment>().is_err() {
            return Err(InvalidApiKey::Form);
        }
        let whole = secret.len() == RANDOM + CHECKSUM && secret.is_ascii();
        let body = text.get(..text.len().saturating_sub(CHECKSUM)).filter(|_| whole);
        match body {
            Some(body) if text.ends_with(&checksum(body)) => Ok(Self(text.to_owned())),
            Some(_) | None => Err(InvalidApiKey::Checksum),
        }
    }
}

impl fmt::Debug for ApiKeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKeyText(***)")
    }
}

fn letter(byte: u8) -> char {
    char::from(ALPHABET[usize::from(byte % 32)])
}

fn checksum(body: &str) -> String {
    Sha256::digest(body.as_bytes()).iter().take(CHECKSUM).map(|byte| letter(*byte)).collect()
}

/// Which deployment keys are for, written in each of them: 1–16 of `[a-z0-9]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment(String);

/// A text that is not the name of an environment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be 1 to 16 lower-case letters and digits, such as live or test")]
pub struct InvalidEnvironment;

impl FromStr for Environment {
    type Err = InvalidEnvironment;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fits = (1..=16).contains(&text.len());
        if fits && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidEnvironment)
        }
    }
}

impl fmt::Display for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An API key's id: `key_` and 24 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ApiKeyId(String);

impl ApiKeyId {
    const DIGITS: usize = 24;
}

/// A text that is not the id of an API key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is not the id of an API key (key_ and 24 hexadecimal digits)")]
pub struct InvalidApiKeyId;

impl FromStr for ApiKeyId {
    type Err = InvalidApiKeyId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("key_").ok_or(InvalidApiKeyId)?;
        let is_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if digits.len() == Self::DIGITS && digits.bytes().all(is_hex) {
            Ok(Self(digits.to_owned()))
        } else {
            Err(InvalidApiKeyId)
        }
    }
}

impl fmt::Display for ApiKeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key_{}", self.0)
    }
}

serde_as_text!(ApiKeyId);

/// What a key allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Scope {
    /// Publish events.
    #[serde(rename = "events:publish")]
    EventsPublish,
    /// See tenants and subscriptions, but for secrets.
    #[serde(rename = "subscriptions:read")]
    SubscriptionsRead,
    /// Change subscriptions; see them and their secrets.
    #[serde(rename = "subscriptions:write")]
    SubscriptionsWrite,
    /// See what became of deliveries.
    #[serde(rename = "history:read")]
    HistoryRead,
    /// Have deliveries made again.
    #[serde(rename = "replay")]
    Replay,
    /// Everything, keys included.
    #[serde(rename = "admin")]
    Admin,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::EventsPublish,
        Self::SubscriptionsRead,
        Self::SubscriptionsWrite,
        Self::HistoryRead,
        Self::Replay,
        Self::Admin,
    ];

    /// The scope as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EventsPublish => "events:publish",
            Self::SubscriptionsRead => "subscriptions:read",
            Self::SubscriptionsWrite => "subscriptions:write",
            Self::HistoryRead => "history:read",
            Self::Replay => "replay",
            Self::Admin => "admin",
        }
    }

    /// Whether this scope is enough where `needed` is asked for.
    #[must_use]
    pub fn covers(self, needed: Self) -> bool {
        match self {
            Self::Admin => true,
            Self::SubscriptionsWrite => {
                matches!(needed, Self::SubscriptionsWrite | Self::SubscriptionsRead)
            }
            Self::EventsPublish | Self::SubscriptionsRead | Self::HistoryRead | Self::Replay => {
                self == needed
            }
        }
    }
}

/// What someone may do, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// What.
    pub scopes: Vec<Scope>,
    /// For this tenant alone; absent: for all of them, and for what is none's.
    pub tenant: Option<TenantId>,
}

/// For whom something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose<'a> {
    /// One tenant's own.
    Tenant(&'a TenantId),
    /// What concerns all tenants.
    Everyones,
    /// What is there for each of them.
    Anyones,
}

/// Why someone may not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// His key does not have the scope.
    #[error("this key does not have the scope {}", .0.as_str())]
    Scope(Scope),
    /// His key is another tenant's.
    #[error("this key is bound to another tenant")]
    AnotherTenant,
    /// His key is one tenant's, and this concerns all of them.
    #[error("this key is bound to a tenant, and this concerns all of them")]
    OneTenant,
}

impl Grant {
    /// Everything, for everyone.
    #[must_use]
    pub fn everything() -> Self {
        Self { scopes: vec![Scope::Admin], tenant: None }
    }

    /// Whether this is enough.
    ///
    /// # Errors
    /// It is not. What is asked for whom is judged first: someone else's business is not told by
    /// which scope it needs.
    pub fn check(&self, needed: Scope, whose: Whose<'_>) -> Result<(), Denied> {
        match (&self.tenant, whose) {
            (Some(own), Whose::Tenant(tenant)) if own != tenant => {
                return Err(Denied::AnotherTenant);
            }
            (Some(_), Whose::Everyones) => return Err(Denied::OneTenant),
            (Some(_), Whose::Tenant(_) | Whose::Anyones) | (None, _) => {}
        }
        if self.scopes.iter().any(|scope| scope.covers(needed)) {
            Ok(())
        } else {
            Err(Denied::Scope(needed))
        }
    }
}

/// A key as the store has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiKey {
    /// Its id.
    pub id: ApiKeyId,
    /// [`ApiKeyText::digest`]. Not a secret that anyone could use, and shown to nobody all the same.
    pub digest: String,
    /// For people.
    pub label: String,
    /// What it allows.
    #[serde(flatten)]
    pub grant: Grant,
    /// From when on it is worth nothing, if ever.
    pub expires_at: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl ApiKey {
    /// Whether it is worth something at `now`.
    #[must_use]
    pub fn is_live(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|end| now < end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn live() -> Environment {
        "live".parse().unwrap()
    }

    #[test]
    fn a_key_has_one_form_and_prints_as_stars() {
        let key = ApiKeyText::mint(&live(), &[7; 32]);
        assert_eq!(key.reveal(), format!("db_live_{}{}", "7".repeat(32), "5zrczk"));
        assert_eq!(format!("{key:?}"), "ApiKeyText(***)");
        assert_eq!(key.id().to_string().parse(), Ok(key.id()));
        for (wrong, why) in [
            ("", InvalidApiKey::Form),
            ("whsec_abc", InvalidApiKey::Form),
            ("db_live", InvalidApiKey::Form),
            ("db_LIVE_7", InvalidApiKey::Form),
            ("db_live_", InvalidApiKey::Checksum),
            ("db_live_ä", InvalidApiKey::Checksum),
            (&key.reveal().replace("live", "test"), InvalidApiKey::Checksum),
            (key.reveal().strip_suffix('k').unwrap(), InvalidApiKey::Checksum),
            (&format!("{}a", key.reveal()), InvalidApiKey::Checksum),
        ] {
            assert_eq!(wrong.parse::<ApiKeyText>(), Err(why), "{wrong}");
        }
        for wrong in
            ["", "key_", "key_00", "0123456789abcdef01234567", "key_0123456789abcdef0123456G"]
        {
            assert!(wrong.parse::<ApiKeyId>().is_err(), "{wrong}");
        }
        for wrong in ["", "Live", "a_b", "abcdefghijklmnopq"] {
            assert!(wrong.parse::<Environment>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn admin_covers_all_and_to_write_is_to_read() {
        for scope in Scope::ALL {
            assert!(Scope::Admin.covers(scope) && scope.covers(scope));
            assert_eq!(scope.covers(Scope::Admin), scope == Scope::Admin);
            let text = serde_json::to_string(&scope).unwrap();
            assert_eq!(text, format!("\"{}\"", scope.as_str()));
        }
        assert!(Scope::SubscriptionsWrite.covers(Scope::SubscriptionsRead));
        assert!(!Scope::SubscriptionsRead.covers(Scope::SubscriptionsWrite));
        assert!(!Scope::SubscriptionsWrite.covers(Scope::EventsPublish));
    }

    #[test]
    fn a_bound_key_is_for_its_tenant_alone() {
        let (acme, other): (TenantId, TenantId) = ("acme".parse().unwrap(), "b".parse().unwrap());
        let bound = Grant { scopes: vec![Scope::SubscriptionsRead], tenant: Some(acme.clone()) };
        let all = Grant { tenant: None, ..bound.clone() };
        let (read, write) = (Scope::SubscriptionsRead, Scope::SubscriptionsWrite);
        for (grant, scope, whose, expected) in [
            (&bound, read, Whose::Tenant(&acme), Ok(())),
            (&bound, read, Whose::Anyones, Ok(())),
            (&bound, write, Whose::Tenant(&acme), Err(Denied::Scope(write))),
            (&bound, write, Whose::Tenant(&other), Err(Denied::AnotherTenant)),
            (&bound, read, Whose::Everyones, Err(Denied::OneTenant)),
            (&all, read, Whose::Tenant(&other), Ok(())),
            (&all, read, Whose::Everyones, Ok(())),
            (&all, write, Whose::Everyones, Err(Denied::Scope(write))),
        ] {
            assert_eq!(grant.check(scope, whose), expected, "{scope:?} {whose:?}");
        }
        assert_eq!(Grant::everything().check(Scope::Replay, Whose::Everyones), Ok(()));
    }

    proptest! {
        #[test]
        fn what_is_minted_is_read_and_nothing_one_letter_off_is(
            random: [u8; 32], at in 0_usize..32, letter in 0_u8..32,
        ) {
            let key = ApiKeyText::mint(&live(), &random);
            prop_assert_eq!(key.reveal().parse::<ApiKeyText>(), Ok(key.clone()));
            let mut other = random;
            other[at] = letter;
            let off = ApiKeyText::mint(&live(), &other);
            let (body, _) = off.reveal().split_at(8 + RANDOM);
            let (_, checksum) = key.reveal().split_at(8 + RANDOM);
            let mixed = format!("{body}{checksum}");
            prop_assert_eq!(mixed.parse::<ApiKeyText>().is_ok(), off == key);
        }
    }
}
