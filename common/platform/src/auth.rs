//! Who calls, and what he may do: the operator, by the admin key of a flag or a file, or the holder
//! of an API key.
//!
//! What the store says of a key is believed for a second, so a revocation is in force within two,
//! and a key costs Redis the same whether it is used once a second or ten thousand times. While
//! Redis is away, keys that were known go on being good.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use doorbell_common::api_key::{
    ApiKey, ApiKeyId, ApiKeyText, Denied, Grant, InvalidApiKey, Scope, Whose,
};
use moka::future::Cache;
use tokio::time::Instant;

use crate::clock;
use crate::problem::Problem;
use crate::store::api_keys::StoredApiKey;
use crate::store::{Store, StoreError};

mod admin_key;

pub use admin_key::{AdminKey, AdminKeyArgs};

/// How long what the store says of a key is believed.
const FRESH: Duration = Duration::from_secs(1);
/// How long a key is known that nobody uses; all of that time it is good while Redis is away.
const KNOWN: Duration = Duration::from_secs(24 * 3600);
/// How many keys are known at most, unknown ones that someone tries among them.
const MOST_KNOWN: u64 = 100_000;
/// How exactly the last use of a key is noted.
const USES: Duration = Duration::from_secs(60);

/// Decides who is let in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Guard {
    admin: AdminKey,
    operator: Arc<Caller>,
    store: Store,
    known: Cache<[u8; 32], Known>,
}

/// What is known of a key that someone has sent.
#[derive(Clone, Debug)]
struct Known {
    /// None: there is no such key.
    key: Option<Arc<ApiKey>>,
    caller: Option<Arc<Caller>>,
    read_at: Instant,
}

/// Someone who was let in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// What he may do.
    pub grant: Grant,
    /// His key; absent: the operator's.
    pub key: Option<ApiKeyId>,
}

impl Caller {
    /// The id of his key, or `operator`.
    #[must_use]
    pub fn name(&self) -> String {
        self.key.as_ref().map_or_else(|| "operator".to_owned(), ToString::to_string)
    }

    /// 403 unless he may do this.
    ///
    /// # Errors
    /// He may not.
    pub fn check(&self, needed: Scope, whose: Whose<'_>) -> Result<(), Problem> {
        let denied = |denied: Denied| Problem::new(StatusCode::FORBIDDEN, denied.to_string());
        self.grant.check(needed, whose).map_err(denied)
    }
}

impl Guard {
    /// Lets in the holder of this key, and of those in the store.
    #[must_use]
    pub fn new(admin: AdminKey, store: Store) -> Self {
        let operator = Arc::new(Caller { grant: Grant::everything(), key: None });
        let known = Cache::builder().max_capacity(MOST_KNOWN).time_to_idle(KNOWN).build();
        Self { admin, operator, store, known }
    }

    /// Who it is that sent this value of a header `Authorization`.
    ///
    /// # Errors
    /// 401 for whoever has no key that is worth something, 503 where that can't be said just now.
    pub async fn admit(&self, authorization: Option<&str>) -> Result<Arc<Caller>, Problem> {
        let key = authorization.and_then(bearer).ok_or_else(|| {
            Problem::new(StatusCode::UNAUTHORIZED, "send a key as `Authorization: Bearer …`")
        })?;
        let digest = admin_key::digest(key);
        if self.admin.is(&digest) {
            return Ok(Arc::clone(&self.operator));
        }
        let known = match self.known.get(&digest).await {
            Some(known) if known.read_at.elapsed() < FRESH => known,
            known => self.look_up(key, digest, known).await?,
        };
        let (Some(key), Some(caller)) = (known.key, known.caller) else {
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "there is no such key (any more)"));
        };
        if !key.is_live(clock::now()) {
            return Err(Problem::new(StatusCode::UNAUTHORIZED, "this key has expired"));
        }
        Ok(caller)
    }

    async fn look_up(
        &self,
        key: &str,
        digest: [u8; 32],
        before: Option<Known>,
    ) -> Result<Known, Problem> {
        let text: ApiKeyText = key.parse().map_err(|wrong: InvalidApiKey| {
            Problem::new(StatusCode::UNAUTHORIZED, format!("what was sent {wrong}"))
        })?;
        let found = match self.store.if_up(self.read(&text)).await {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "key not looked up");
                return before.ok_or_else(|| {
                    Problem::unavailable("Redis does not answer, so the key cannot be checked")
                });
            }
        };
        let caller = found
            .as_ref()
            .map(|key| Arc::new(Caller { grant: key.grant.clone(), key: Some(key.id.clone()) }));
        let known = Known { key: found.map(Arc::new), caller, read_at: Instant::now() };
        self.known.insert(digest, known.clone()).await;
        Ok(known)
    }

    /// The key's record; notes its use, now and then.
    async fn read(&self, text: &ApiKeyText) -> Result<Option<ApiKey>, StoreError> {
        let found = self.store.api_key(&text.id()).await?;
        let Some(StoredApiKey { key, last_used_at }) =
            found.filter(|found| found.key.digest == text.digest())
        else {
            return Ok(None);
        };
        let now = clock::now();
        if last_used_at.is_none_or(|last| now.since(last) >= USES) {
            // Nobody is kept out because that can't be written just now.
            if let Err(error) = self.store.note_api_key_use(&key.id, now).await {
                tracing::debug!(%error, "the use of a key is not noted");
            }
        }
        Ok(Some(key))
    }
}

fn bearer(authorization: &str) -> Option<&str> {
    let (scheme, key) = authorization.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim()).filter(|key| !key.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_bearers() {
        for (value, key) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Bearer", None),
            ("Bearer ", None),
            ("Basic abc", None),
            ("abc", None),
            ("", None),
        ] {
            assert_eq!(bearer(value), key, "{value}");
        }
    }
}
