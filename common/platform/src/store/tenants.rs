//! The records of tenants. A tenant's own record is written before it is listed and removed after
//! it is taken off the list, so "listed without a record" always means that Redis lost something.
//! Record and list may live on different nodes; so that this holds for someone who creates a
//! tenant while someone else removes it, either does its first step once more at the end.
//!
//! A tenant whose record is lost is not written anew, for its index is lost with it: that would look like a tenant
//! without subscriptions.

use std::collections::HashSet;
use std::time::Duration;

use doorbell_common::ids::TenantId;
use doorbell_common::time::Timestamp;
use futures_util::future::try_join_all;
use redis::Value;
use serde::{Deserialize, Serialize};

use super::changes::Change;
use super::{Store, StoreError};
use crate::clock;

/// How often it is looked for a record that should be there.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// Records that are looked at at once.
const AT_ONCE: usize = 256;

/// A tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its id.
    pub id: TenantId,
    /// When it was first used.
    pub created_at: Timestamp,
}

impl Store {
    /// Creates the tenant unless it is there; answers whether it was created now.
    ///
    /// # Errors
    /// Redis did not answer, is not the store that it was, or has lost this tenant's record.
    pub async fn ensure_tenant(&self, id: &TenantId) -> Result<bool, StoreError> {
        self.raw_tenant(id).await?;
        self.write_tenant(id).await
    }

    /// The tenants that are listed and have no record.
    pub(super) async fn lost_tenants(&self) -> Result<HashSet<TenantId>, StoreError> {
        let (mut lost, mut after) = (HashSet::new(), None);
        loop {
            let list = self.keys.tenants();
            let (ids, next) = self.page_of_ids::<TenantId>(list, after.as_ref(), AT_ONCE).await?;
            let are_lost = try_join_all(ids.iter().map(|id| self.is_lost(id))).await?;
            lost.extend(ids.into_iter().zip(are_lost).filter(|(_, is)| *is).map(|(id, _)| id));
            match next {
                Some(next) => after = Some(next),
                None => return Ok(lost),
            }
        }
    }

    async fn is_lost(&self, id: &TenantId) -> Result<bool, StoreError> {
        match self.raw_tenant(id).await {
            Err(StoreError::Lost(_)) => Ok(true),
            Ok(_) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes a tenant's record, if there is none, and lists it; answers whether there was none.
    pub(super) async fn write_tenant(&self, id: &TenantId) -> Result<bool, StoreError> {
        let mut link = self.link.clone();
        let tenant = Tenant { id: id.clone(), created_at: clock::now() };
        let raw = serde_json::to_string(&tenant)
            .map_err(|error| StoreError::Corrupt { key: id.to_string(), error })?;
        let mut write = redis::cmd("SETNX");
        write.arg(self.keys.tenant(id)).arg(raw);
        let created: bool = write.query_async(&mut link).await?;
        let mut list = redis::cmd("ZADD");
        list.arg(self.keys.tenants()).arg(0).arg(id.as_str());
        list.query_async::<Value>(&mut link).await?;
        write.query_async::<Value>(&mut link).await?;
        Ok(created)
    }

    /// Reads a tenant.
    ///
    /// # Errors
    /// Redis did not answer, is not the store that it was, or has lost this tenant's record.
    pub async fn tenant(&self, id: &TenantId) -> Result<Option<Tenant>, StoreError> {
        let raw = self.raw_tenant(id).await?;
        raw.map(|raw| serde_json::from_str(&raw))
            .transpose()
            .map_err(|error| StoreError::Corrupt { key: self.keys.tenant(id), error })
    }

    /// The record of a tenant; an error if Redis has lost it.
    pub(super) async fn raw_tenant(&self, id: &TenantId) -> Result<Option<String>, StoreError> {
        // One that is created or removed just now may look lost for a moment.
        for _ in 0..LOOKS {
            let mut get = redis::pipe();
            get.cmd("GET").arg(self.keys.tenant(id));
            let (raw,): (Option<String>,) = self.ask(get).await?;
            if raw.is_some() {
                return Ok(raw);
            }
            let mut score = redis::pipe();
            score.cmd("ZSCORE").arg(self.keys.tenants()).arg(id.as_str());
            let (listed,): (Option<f64>,) = self.ask(score).await?;
            if listed.is_none() {
                return Ok(None);
            }
            tokio::time::sleep(BETWEEN_LOOKS).await;
        }
        Err(StoreError::Lost(format!("the record of tenant {id}")))
    }

    /// Removes a tenant whose subscriptions are deleted; answers whether it was there.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be removed.
    pub async fn remove_tenant(&self, id: &TenantId) -> Result<bool, StoreError> {
        self.check_epoch().await?;
        let mut link = self.link.clone();
        let change = Change::Tenant(id.clone());
        self.announce_change(&change).await?;
        let mut unlist = redis::cmd("ZREM");
        unlist.arg(self.keys.tenants()).arg(id.as_str());
        unlist.query_async::<Value>(&mut link).await?;
        let removed: bool =
            redis::cmd("DEL").arg(self.keys.tenant(id)).query_async(&mut link).await?;
        unlist.query_async::<Value>(&mut link).await?;
        self.log_change(&change).await?;
        Ok(removed)
    }

    /// Tenants in the order of their ids, after one of them; at most `limit`. The second value is
    /// where to go on, if there is more.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn list_tenants(
        &self,
        after: Option<&TenantId>,
        limit: usize,
    ) -> Result<(Vec<Tenant>, Option<TenantId>), StoreError> {
        let (ids, next) = self.page_of_ids(self.keys.tenants(), after, limit).await?;
        let found = try_join_all(ids.iter().map(|id| self.tenant(id))).await?;
        Ok((found.into_iter().flatten().collect(), next))
    }
}
