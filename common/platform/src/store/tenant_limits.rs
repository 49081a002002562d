//! The limits of tenants that have some: together on one node, so that the services at the doors follow
//! them at the same cost however many tenants there are.

use std::collections::HashMap;
use std::time::Duration;

use doorbell_common::ids::TenantId;
use doorbell_common::tenant_limits::TenantLimits;

use redis::Value;

use super::{COUNT, Store, StoreError};

/// How long what was created is counted.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// What a tenant has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// So many subscriptions.
    pub subscriptions: usize,
    /// So many were created since the count began, whatever became of them.
    pub created: usize,
    /// The count begins anew after this time.
    pub until: Duration,
}

impl Store {
    /// Limits a tenant so from now on.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be limited so.
    pub async fn set_tenant_limits(
        &self,
        tenant: &TenantId,
        limits: &TenantLimits,
    ) -> Result<(), StoreError> {
        self.check_epoch().await?;
        let key = self.keys.tenant_limits();
        let mut pipe = redis::pipe();
        pipe.atomic();
        let version = self.keys.tenant_limits_version();
        pipe.cmd("SET").arg(version).arg(crate::ids::token()).ignore();
        if limits.is_none() {
            pipe.cmd("HDEL").arg(key).arg(tenant.as_str()).ignore();
        } else {
            let raw = serde_json::to_string(limits)
                .map_err(|error| StoreError::Corrupt { key: tenant.to_string(), error })?;
            pipe.cmd("HSET").arg(key).arg(tenant.as_str()).arg(raw).ignore();
        }
        pipe.query_async::<()>(&mut self.link.clone()).await?;
        Ok(())
    }

    /// The limits of a tenant.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn tenant_limits(&self, tenant: &TenantId) -> Result<TenantLimits, StoreError> {
        let key = self.keys.tenant_limits();
        let mut get = redis::pipe();
        get.cmd("HGET").arg(&key).arg(tenant.as_str());
        let (raw,): (Option<String>,) = self.ask(get).await?;
        raw.map_or_else(|| Ok(TenantLimits::default()), |raw| read(&key, &raw))
    }

    /// The limits of all tenants that have some.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn all_tenant_limits(&self) -> Result<HashMap<TenantId, TenantLimits>, StoreError> {
        let key = self.keys.tenant_limits();
        let mut get = redis::pipe();
        get.cmd("HGETALL").arg(&key);
        let (raw,): (Vec<(String, String)>,) = self.ask(get).await?;
        let mut all = HashMap::new();
        for (tenant, raw) in raw {
            if let Ok(tenant) = tenant.parse() {
                all.insert(tenant, read(&key, &raw)?);
            }
        }
        Ok(all)
    }

    /// What a tenant has, and has created within a day.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn usage(&self, tenant: &TenantId) -> Result<Usage, StoreError> {
        let created_lately = self.keys.created_lately(tenant);
        let mut get = redis::pipe();
        get.cmd("ZCARD").arg(self.keys.subscriptions(tenant));
        get.cmd("GET").arg(&created_lately);
        get.cmd("TTL").arg(&created_lately);
        let (subscriptions, created, seconds): (_, Option<_>, i64) = self.ask(get).await?;
        let until = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        Ok(Usage { subscriptions, created: created.unwrap_or(0), until })
    }

    /// Counts subscriptions that are about to be created for a tenant. They are forgotten a day after the
    /// first of them.
    ///
    /// # Errors
    /// Redis did not answer: they may or may not be counted.
    pub async fn count_created(&self, tenant: &TenantId, count: usize) -> Result<(), StoreError> {
        let mut eval = redis::cmd("EVAL");
        eval.arg(COUNT).arg(1).arg(self.keys.created_lately(tenant));
        eval.arg(count).arg(DAY.as_secs());
        eval.query_async::<Value>(&mut self.link.clone()).await?;
        Ok(())
    }

    /// Another text after each change of any tenant's limits; none, if there never was one.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn tenant_limits_version(&self) -> Result<Option<String>, StoreError> {
        let mut get = redis::pipe();
        get.cmd("GET").arg(self.keys.tenant_limits_version());
        let (version,) = self.ask(get).await?;
        Ok(version)
    }
}

fn read(key: &str, raw: &str) -> Result<TenantLimits, StoreError> {
    serde_json::from_str(raw).map_err(|error| StoreError::Corrupt { key: key.to_owned(), error })
}
