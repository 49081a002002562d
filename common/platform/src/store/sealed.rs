//! Subscriptions as they stand in Redis: with their secrets and the values of their headers sealed,
//! if there is a key for it.
//!
//! A service that has no use for secrets does not open them, and carries them along as they are.

use std::collections::BTreeMap;
use std::sync::Arc;

use doorbell_common::sealing::{self, NotOpened, SealingKeys};
use doorbell_common::subscription::{Record, SigningSecret, Subscription};
use serde::{Deserialize, Serialize};

use super::{Store, StoreError};
use crate::clock;

/// What a service does about secrets.
#[derive(Clone, Debug, Default)]
pub(super) enum Secrets {
    /// It has no use for them.
    #[default]
    Unread,
    /// It opens and seals them.
    With(Arc<SealingKeys>),
}

impl Secrets {
    /// Whether all of these keys are there, if there is a use for them.
    pub(super) fn check(&self, in_use: Vec<String>) -> Result<(), StoreError> {
        match self {
            Self::Unread => Ok(()),
            Self::With(keys) => match in_use.into_iter().find(|id| !keys.has(id)) {
                Some(lacking) => Err(StoreError::NoSuchKey(lacking)),
                None => Ok(()),
            },
        }
    }
}

/// What is sealed of a subscription.
#[derive(Serialize, Deserialize)]
struct Hidden {
    secrets: Vec<SigningSecret>,
    headers: BTreeMap<String, String>,
}

/// A record, understood.
#[derive(Debug)]
pub(super) enum Opened {
    /// A subscription, and what is sealed of it, if anything is.
    Live(Box<Subscription>, Option<String>),
    Deleted,
}

impl Store {
    /// The same store, whose subscriptions are read with their secrets and written with them sealed.
    #[must_use]
    pub fn with_secrets(mut self, keys: SealingKeys) -> Self {
        self.secrets = Secrets::With(Arc::new(keys));
        self
    }

    /// Understands what a slot has under an id.
    pub(super) fn open(&self, slot: &str, id: &str, raw: &str) -> Result<Opened, StoreError> {
        let key = || format!("{slot} {id}");
        let corrupt = |error| StoreError::Corrupt { key: key(), error };
        // What is sealed is bound to the id that its record states, so that must be its own.
        let check_id = |subscription: &Subscription| {
            if subscription.id.to_string() == id {
                return Ok(());
            }
            Err(corrupt(serde::de::Error::custom("this is another subscription's record")))
        };
        match serde_json::from_str(raw).map_err(corrupt)? {
            Record::Deleted(_) => Ok(Opened::Deleted),
            Record::Live(subscription) => {
                check_id(&subscription)?;
                Ok(Opened::Live(subscription, None))
            }
            Record::Sealed(mut subscription, sealed) => {
                check_id(&subscription)?;
                if let Secrets::With(keys) = &self.secrets {
                    let opened = keys.open(&place(&subscription), &sealed);
                    let clear = opened.map_err(|error| not_opened(key(), error))?;
                    let hidden: Hidden = serde_json::from_slice(&clear).map_err(corrupt)?;
                    (subscription.secrets, subscription.headers) = (hidden.secrets, hidden.headers);
                }
                Ok(Opened::Live(subscription, Some(sealed)))
            }
        }
    }

    /// A subscription's record as it is to be written. `sealed` is what was sealed of it before.
    pub(super) fn seal(
        &self,
        subscription: &Subscription,
        sealed: Option<&String>,
    ) -> Result<String, StoreError> {
        let corrupt = |error| StoreError::Corrupt { key: subscription.id.to_string(), error };
        let mut open = Box::new(subscription.clone());
        let sealed = match &self.secrets {
            Secrets::Unread => sealed.cloned(),
            Secrets::With(keys) => {
                let hidden = Hidden {
                    secrets: std::mem::take(&mut open.secrets),
                    headers: std::mem::take(&mut open.headers),
                };
                let clear = serde_json::to_vec(&hidden).map_err(corrupt)?;
                let sealed = keys.seal(&place(subscription), clock::random_bytes(), &clear);
                if sealed.is_none() {
                    (open.secrets, open.headers) = (hidden.secrets, hidden.headers);
                }
                sealed
            }
        };
        let record = match sealed {
            Some(sealed) => Record::Sealed(open, sealed),
            None => Record::Live(open),
        };
        serde_json::to_string(&record).map_err(corrupt)
    }

    /// Whether what is sealed so would be sealed otherwise now.
    pub(super) fn is_sealed_otherwise(&self, sealed: Option<&str>) -> bool {
        match &self.secrets {
            Secrets::Unread => false,
            Secrets::With(keys) => sealed.and_then(sealing::sealed_with) != keys.active(),
        }
    }
}

/// What a sealing is bound to.
fn place(subscription: &Subscription) -> String {
    format!("subscription/{}/{}", subscription.tenant, subscription.id)
}

fn not_opened(key: String, error: NotOpened) -> StoreError {
    StoreError::NotOpened { key, error }
}
