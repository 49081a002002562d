//! Who does what only one replica at a time need do. Two that do it at once do no harm: a lease saves
//! work, and nothing relies on it.

use std::time::Duration;

use super::{Store, StoreError};

/// What a lease is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// Reading held deliveries.
    Held,
    /// Sealing secrets anew.
    Sealing,
}

impl Lease {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Sealing => "sealing",
        }
    }
}

/// Takes or renews a lease.
const LEASE: &str = "local v = redis.call('GET', KEYS[1]) if not v or v == ARGV[1] then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) return 1 end return 0";

impl Store {
    /// Takes or renews a lease; answers whether it is its owner's now.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn lease(
        &self,
        lease: Lease,
        owner: &str,
        length: Duration,
    ) -> Result<bool, StoreError> {
        let mut eval = redis::cmd("EVAL");
        eval.arg(LEASE).arg(1).arg(self.keys.lease(lease));
        eval.arg(owner).arg(length.as_millis().to_string());
        Ok(eval.query_async::<u8>(&mut self.link.clone()).await? == 1)
    }
}
