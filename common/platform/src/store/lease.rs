//! Who does what only one replica at a time need do. Two that do it at once do no harm: a lease saves
//! work, and nothing relies on it.

use std::fmt;
use std::time::Duration;

use doorbell_common::ids::TenantId;

use super::{Store, StoreError};

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease<'a> {
    /// Reading held deliveries.
    Held,
    /// Sealing secrets anew.
    Sealing,
    /// Making a tenant's subscriptions what a document says.
    Config(&'a TenantId),
}

impl fmt::Display for Lease<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Held => f.write_str("held"),
            Self::Sealing => f.write_str("sealing"),
            Self::Config(tenant) => write!(f, "config:{tenant}"),
        }
    }
}

/// Takes or renews a lease.
const LEASE: &str = "local v = redis.call('GET', KEYS[1]) if not v or v == ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1 end return 0";

/// Gives a lease back, if it is still its owner's.
const RELEASE: &str =
    "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end return 0";

impl Store {
    /// Takes or renews a lease; answers whether it is its owner's now.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn lease(
        &self,
        lease: Lease<'_>,
        owner: &str,
        length: Duration,
    ) -> Result<bool, StoreError> {
        let mut eval = redis::cmd("EVAL");
        eval.arg(LEASE).arg(1).arg(self.keys.lease(lease));
        eval.arg(owner).arg(length.as_millis().to_string());
        Ok(eval.query_async::<u8>(&mut self.link.clone()).await? == 1)
    }

    /// Gives a lease back before its time.
    ///
    /// # Errors
    /// Redis did not answer: it ends by itself.
    pub async fn release(&self, lease: Lease<'_>, owner: &str) -> Result<(), StoreError> {
        let mut eval = redis::cmd("EVAL");
        eval.arg(RELEASE).arg(1).arg(self.keys.lease(lease)).arg(owner);
        eval.query_async::<u8>(&mut self.link.clone()).await?;
        Ok(())
    }
}
