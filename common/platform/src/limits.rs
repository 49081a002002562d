//! The limits of tenants, as the services at the doors know them.

use std::collections::HashMap;

use doorbell_common::ids::{Addressee, TenantId};
use doorbell_common::tenant_limits::TenantLimits;

use crate::followed::{Followed, Versioned};
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError};

/// The limits of all tenants that have some. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Limits(Followed<AllLimits>);

#[derive(Debug)]
struct AllLimits(HashMap<TenantId, TenantLimits>);

impl Limits {
    /// Follows them from now on. Until they were read first, nobody is limited.
    #[must_use]
    pub fn start(store: Store, shutdown: &Shutdown) -> Self {
        Self(Followed::start(store, shutdown))
    }

    /// Waits until they are known; `None` if the service is told to stop first.
    pub async fn until_known(&self, shutdown: &Shutdown) -> Option<()> {
        self.0.until_read(shutdown).await
    }

    /// What is allowed to whoever an event is for.
    #[must_use]
    pub fn of(&self, addressee: &Addressee) -> TenantLimits {
        let Addressee::Tenant(tenant) = addressee else { return TenantLimits::default() };
        let limits = self.0.current().and_then(|all| all.0.get(tenant).copied());
        limits.unwrap_or_default()
    }
}

impl Versioned for AllLimits {
    const NAME: &'static str = "follower of tenants' limits";

    async fn version(store: &Store) -> Result<Option<String>, StoreError> {
        store.tenant_limits_version().await
    }

    async fn read(store: &Store, before: Option<(&Self, &str)>) -> Result<Self, StoreError> {
        if let Some((Self(before), version)) = before
            && let Some(changed) = store.tenant_limits_since(version).await?
        {
            let mut all = before.clone();
            for (tenant, limits) in changed {
                if limits.is_none() {
                    all.remove(&tenant);
                } else {
                    all.insert(tenant, limits);
                }
            }
            return Ok(Self(all));
        }
        store.all_tenant_limits().await.map(Self)
    }
}
