//! A subscription: a tenant's standing order for events of certain types, to be POSTed to one
//! URL, signed and retried in a certain way. This is the record as the store keeps it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::address::EndpointUrl;
use crate::asymmetric::AsymmetricKey;
use crate::duration::DurationText;
use crate::event::EventType;
use crate::filter::Filter;
use crate::ids::{EventId, SubscriptionId, TenantId};
use crate::pattern::Pattern;
use crate::payload::Payload;
use crate::rate::RateLimit;
use crate::retry::RetryPolicy;
use crate::signature::Secret;
use crate::template::Template;
use crate::time::Timestamp;
use crate::verification::Verification;

/// A tenant's standing order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subscription {
    /// Says where the record is stored, too.
    pub id: SubscriptionId,
    /// Whose it is.
    pub tenant: TenantId,
    /// By which its holder knows it, if it has one: documents of desired subscriptions do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where to POST.
    pub url: EndpointUrl,
    /// Which events are wanted: those whose type matches any of these.
    pub events: Vec<Pattern>,
    /// Which of these events are wanted, by what is in them; all, if there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<Filter>,
    /// Whether deliveries are made, kept for later, or not made at all.
    pub status: Status,
    /// Why the status is disabled; present exactly then.
    #[serde(default)]
    pub disabled_reason: Option<DisabledReason>,
    /// For people.
    #[serde(default)]
    pub description: String,
    /// For programs of the tenant's.
    #[serde(default)]
    pub metadata: serde_json::Map<String, serde_json::Value>,
    /// The form of the body.
    #[serde(default)]
    pub payload: Payload,
    /// What makes the body instead, if anything does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<Box<Template>>,
    /// Further headers for each POST, names in lower case.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// One deadline over a whole attempt: name, connection, request and answer.
    pub timeout: DurationText,
    /// When to try again.
    pub retry: RetryPolicy,
    /// How many attempts a second its endpoint takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// How many POSTs may be in flight at once, if fewer than the operator allows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_concurrency: Option<u32>,
    /// One more signature in an older style.
    #[serde(default)]
    pub signature: Option<OlderSignature>,
    /// How its endpoint is asked before anything is delivered to it.
    #[serde(default)]
    pub verification: Verification,
    /// The [endpoint](Subscription::endpoint) that has said yes last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verified_endpoint: Option<String>,
    /// Newest first. Empty only where a service has no use for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SigningSecret>,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was last changed.
    pub updated_at: Timestamp,
    /// A random token, another one after each change.
    pub version: String,
}

/// Whether deliveries are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// They are.
    Active,
    /// They are kept until its holder resumes it.
    Paused,
    /// Doorbell or an operator stopped it; see the reason.
    Disabled,
}

/// Why a subscription was disabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisabledReason {
    /// The endpoint answered 410: it wants no more, and what waits for it is cancelled.
    Gone,
    /// Nothing but failures for days; what waits is kept.
    Failing,
    /// Someone asked for it over the API; what waits is kept.
    Manual,
}

impl DisabledReason {
    /// Those for which Doorbell itself disables a subscription.
    pub const OURS: [Self; 2] = [Self::Gone, Self::Failing];

    /// The reason as it stands in metrics and JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Failing => "failing",
            Self::Manual => "manual",
        }
    }
}

/// A signing secret and when it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SigningSecret {
    /// The secret.
    pub secret: Secret,
    /// Signs beside it, if receivers are to check with a public key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asymmetric: Option<AsymmetricKey>,
    /// Set once a newer one has taken its place: it signs along until then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
}

/// A signature in the style of before Standard Webhooks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OlderSignature {
    /// The header that carries it.
    pub header: String,
    /// How it is written.
    pub format: SignatureFormat,
}

/// How an older signature is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SignatureFormat {
    /// `sha256=` and the hexadecimal HMAC-SHA256 of the body.
    #[serde(rename = "sha256-hex")]
    Sha256Hex,
}

impl Subscription {
    /// Whether an event of this type is wanted.
    #[must_use]
    pub fn wants(&self, event_type: &EventType) -> bool {
        self.events.iter().any(|pattern| pattern.matches(event_type))
    }

    /// The secrets that sign at `now`, newest first. The newest always does.
    pub fn live_secrets(&self, now: Timestamp) -> impl Iterator<Item = &SigningSecret> {
        self.secrets.iter().filter(move |secret| secret.expires_at.is_none_or(|end| now < end))
    }

    /// The value of `webhook-signature` for an attempt at `now`: a signature with each live secret,
    /// and with each key that goes along, separated by spaces.
    #[must_use]
    pub fn signatures(&self, id: &EventId, now: Timestamp, body: &[u8]) -> String {
        let at = now.as_seconds();
        let symmetric = self.live_secrets(now).map(|live| live.secret.sign(id, at, body));
        let keys = self.live_secrets(now).filter_map(|live| live.asymmetric.as_ref());
        let asymmetric = keys.map(|key| key.sign(id, at, body));
        symmetric.chain(asymmetric).reduce(|all, one| all + " " + &one).unwrap_or_default()
    }

    /// The public key that receivers check with, if they are to.
    #[must_use]
    pub fn public_key(&self) -> Option<String> {
        self.secrets.first()?.asymmetric.as_ref().map(AsymmetricKey::public)
    }

    /// A short digest of the URL: tells whether an answer came from the endpoint that the
    /// subscription has now, or from one that it had before.
    #[must_use]
    pub fn endpoint(&self) -> String {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(self.url.as_str());
        digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }

    /// Whether its endpoint, as it is now, has said yes, or need not be asked.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        match self.verification {
            Verification::None => true,
            Verification::Challenge | Verification::CloudEvents => {
                self.verified_endpoint.as_deref() == Some(&self.endpoint())
            }
        }
    }

    /// What this subscription's state means for a delivery.
    #[must_use]
    pub fn standing(&self) -> Standing<'_> {
        match (self.status, self.disabled_reason) {
            (Status::Active, _) if self.is_verified() => Standing::Active(&self.retry),
            (Status::Disabled, Some(DisabledReason::Gone)) => Standing::Cancelled,
            (Status::Active | Status::Paused | Status::Disabled, _) => {
                Standing::Suspended(&self.retry)
            }
        }
    }
}

/// What a subscription's state means for its deliveries.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Standing<'a> {
    /// They are made, and retried by this policy.
    Active(&'a RetryPolicy),
    /// They are kept for its return.
    Suspended(&'a RetryPolicy),
    /// They end: it was deleted (a tombstone says so), or its endpoint is gone.
    Cancelled,
    /// There is no record and no tombstone. A store that lost something looks like this, so the
    /// delivery is kept.
    Missing,
}

/// What a slot holds under a subscription's id.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Record {
    /// The subscription.
    Live(Box<Subscription>),
    /// The subscription, but for its secrets and headers, and these, sealed
    /// ([`sealing`](crate::sealing)).
    Sealed(Box<Subscription>, String),
    /// It was deleted, at this time. Never taken away, so that "deleted" and "lost" differ.
    Deleted(Timestamp),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subscription() -> Subscription {
        let at = Timestamp::from_seconds(100);
        let secret = |byte| Secret::from_key(&[byte; 24]).unwrap();
        Subscription {
            id: "sub_00000a0123456789abcdef01".parse().unwrap(),
            tenant: "acme".parse().unwrap(),
            name: None,
            url: "https://example.com/hook".to_owned().into(),
            events: vec!["payment.*".parse().unwrap()],
            status: Status::Active,
            disabled_reason: None,
            description: String::new(),
            metadata: serde_json::Map::new(),
            payload: Payload::Envelope,
            headers: BTreeMap::new(),
            timeout: "15s".parse().unwrap(),
            retry: RetryPolicy::default(),
            rate_limit: None,
            max_concurrency: None,
            signature: None,
            filter: None,
            template: None,
            verification: Verification::None,
            verified_endpoint: None,
            secrets: vec![
                SigningSecret { secret: secret(2), asymmetric: None, expires_at: None },
                SigningSecret {
                    secret: secret(1),
                    asymmetric: None,
                    expires_at: Some(Timestamp::from_seconds(200)),
                },
            ],
            created_at: at,
            updated_at: at,
            version: "v".to_owned(),
        }
    }

    #[test]
    fn an_old_secret_signs_along_until_it_expires() {
        let subscription = subscription();
        assert_eq!(subscription.live_secrets(Timestamp::from_seconds(199)).count(), 2);
        assert_eq!(subscription.live_secrets(Timestamp::from_seconds(200)).count(), 1);
    }

    #[test]
    fn every_live_secret_signs_and_every_key_beside_it() {
        let mut subscription = subscription();
        let (id, early, late) =
            ("evt".parse().unwrap(), Timestamp::from_seconds(150), Timestamp::from_seconds(200));
        let secrets = subscription.secrets.clone();
        let v1 = |n: usize, now: Timestamp| secrets[n].secret.sign(&id, now.as_seconds(), b"x");
        let both = format!("{} {}", v1(0, early), v1(1, early));
        assert_eq!(subscription.signatures(&id, early, b"x"), both);
        assert_eq!(
            (subscription.signatures(&id, late, b"x"), subscription.public_key()),
            (v1(0, late), None)
        );
        let key = AsymmetricKey::from_seed(&[1; 32]);
        subscription.secrets[0].asymmetric = Some(key.clone());
        assert_eq!(
            subscription.signatures(&id, early, b"x"),
            format!("{both} {}", key.sign(&id, early.as_seconds(), b"x"))
        );
        assert_eq!(subscription.public_key(), Some(key.public()));
    }

    #[test]
    fn only_a_gone_endpoint_cancels() {
        let mut subscription = subscription();
        assert!(matches!(subscription.standing(), Standing::Active(_)));
        subscription.status = Status::Paused;
        assert!(matches!(subscription.standing(), Standing::Suspended(_)));
        subscription.status = Status::Disabled;
        for (reason, cancelled) in [
            (DisabledReason::Manual, false),
            (DisabledReason::Failing, false),
            (DisabledReason::Gone, true),
        ] {
            subscription.disabled_reason = Some(reason);
            assert_eq!(subscription.standing() == Standing::Cancelled, cancelled, "{reason:?}");
        }
    }

    #[test]
    fn another_url_is_asked_again() {
        let mut subscription = subscription();
        subscription.verification = Verification::Challenge;
        assert!(matches!(subscription.standing(), Standing::Suspended(_)));
        subscription.verified_endpoint = Some(subscription.endpoint());
        assert!(matches!(subscription.standing(), Standing::Active(_)));
        subscription.url = "https://example.com/other".to_owned().into();
        assert!(matches!(subscription.standing(), Standing::Suspended(_)));
        subscription.verification = Verification::None;
        assert!(matches!(subscription.standing(), Standing::Active(_)));
    }

    #[test]
    fn a_record_reads_back_and_its_debug_shows_no_secret() {
        let record = Record::Live(Box::new(subscription()));
        let json = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&json).unwrap(), record);
        assert!(!format!("{record:?}").contains("whsec_"));
    }
}
