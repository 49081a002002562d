//! The limits of tenants that have some: together on one node, with a log of whose have changed, so that the
//! services at the doors follow them at the same cost however many tenants there are.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use doorbell_common::ids::TenantId;
use doorbell_common::tenant_limits::TenantLimits;

use redis::Value;
use redis::streams::StreamRangeReply;

use super::{COUNT, Store, StoreError};

/// Puts limits, or none, in the place of those that were read, if these are there still, or of any (`*`).
const SWAP: &str = "if ARGV[2] ~= '*' and (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[4], '*', 'tenant', ARGV[1]) if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end return 1";
/// How long what was created is counted.
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How many changes are logged at least. Whoever has missed more reads all limits.
const LOGGED: usize = 10_000;
/// Limits, or changes of some, that are read in one go: others wait while Redis works on it.
const AT_ONCE: usize = 1000;
/// How often all limits are read, where that may have left some out.
const READS: usize = 3;

/// A tenant's limits as they were read, which tell whether they still are so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredLimits {
    /// The limits.
    pub limits: TenantLimits,
    /// Their record, another one after each change; empty, if nothing is limited.
    pub raw: String,
}

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
    /// Limits a tenant so from now on, whatever its limits are.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be limited so.
    pub async fn set_tenant_limits(
        &self,
        tenant: &TenantId,
        limits: &TenantLimits,
    ) -> Result<(), StoreError> {
        self.swap_tenant_limits(tenant, None, limits).await.map(|_| ())
    }

    /// Limits a tenant so from now on, if its limits still are as they were read; answers them as they are stored,
    /// or `None` if they are others by now.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be limited so.
    pub async fn replace_tenant_limits(
        &self,
        tenant: &TenantId,
        before: &StoredLimits,
        limits: &TenantLimits,
    ) -> Result<Option<StoredLimits>, StoreError> {
        self.swap_tenant_limits(tenant, Some(before), limits).await
    }

    async fn swap_tenant_limits(
        &self,
        tenant: &TenantId,
        before: Option<&StoredLimits>,
        limits: &TenantLimits,
    ) -> Result<Option<StoredLimits>, StoreError> {
        let raw = if limits.is_none() { Ok(String::new()) } else { serde_json::to_string(limits) };
        let raw = raw.map_err(|error| StoreError::Corrupt { key: tenant.to_string(), error })?;
        let mut eval = redis::cmd("EVAL");
        eval.arg(SWAP).arg(2).arg(self.keys.tenant_limits()).arg(self.keys.tenant_limits_changes());
        eval.arg(tenant.as_str()).arg(before.map_or("*", |before| before.raw.as_str()));
        eval.arg(&raw).arg(LOGGED);
        self.check_epoch().await?;
        let swapped = eval.query_async::<u8>(&mut self.link.clone()).await? == 1;
        Ok(swapped.then_some(StoredLimits { limits: *limits, raw }))
    }

    /// The limits of a tenant.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn tenant_limits(&self, tenant: &TenantId) -> Result<StoredLimits, StoreError> {
        let key = self.keys.tenant_limits();
        let mut get = redis::pipe();
        get.cmd("HGET").arg(&key).arg(tenant.as_str());
        let (raw,): (Option<String>,) = self.ask(get).await?;
        let limits = raw.as_ref().map(|raw| read(&key, raw)).transpose()?;
        Ok(StoredLimits { limits: limits.unwrap_or_default(), raw: raw.unwrap_or_default() })
    }

    /// The limits of all tenants that have some.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn all_tenant_limits(&self) -> Result<HashMap<TenantId, TenantLimits>, StoreError> {
        let (mut all, mut are_all) = self.read_tenant_limits().await?;
        for _ in 1..READS {
            if are_all {
                break;
            }
            (all, are_all) = self.read_tenant_limits().await?;
        }
        // Where tenants come all the time, those that came meanwhile are in the log.
        Ok(all)
    }

    /// Reads all limits, in pieces; and whether these are as many as there are. A replica that takes its master's
    /// place in between goes over them in another order.
    async fn read_tenant_limits(
        &self,
    ) -> Result<(HashMap<TenantId, TenantLimits>, bool), StoreError> {
        let key = self.keys.tenant_limits();
        let (mut all, mut cursor) = (HashMap::new(), 0_u64);
        loop {
            let mut scan = redis::pipe();
            scan.cmd("HSCAN").arg(&key).arg(cursor).arg("COUNT").arg(AT_ONCE);
            scan.cmd("HLEN").arg(&key);
            type Answer = ((u64, Vec<(String, String)>), usize);
            let ((next, some), count): Answer = self.ask(scan).await?;
            for (tenant, raw) in some {
                if let Ok(tenant) = tenant.parse() {
                    all.insert(tenant, read(&key, &raw)?);
                }
            }
            cursor = next;
            if cursor == 0 {
                let are_all = all.len() >= count;
                return Ok((all, are_all));
            }
        }
    }

    /// What has changed of these limits since a version: each tenant whose limits were written since, with those that
    /// it has now. `None` if the log does not go back so far.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn tenant_limits_since(
        &self,
        version: &str,
    ) -> Result<Option<HashMap<TenantId, TenantLimits>>, StoreError> {
        let (mut tenants, mut from) = (BTreeSet::new(), version.to_owned());
        loop {
            let mut range = redis::pipe();
            range.cmd("XRANGE").arg(self.keys.tenant_limits_changes());
            range.arg(&from).arg("+").arg("COUNT").arg(AT_ONCE);
            let (reply,): (StreamRangeReply,) = self.ask(range).await?;
            // It begins with the entry that was seen, unless that was trimmed or lost.
            let Some((known, news)) = reply.ids.split_first() else { return Ok(None) };
            if known.id != from {
                return Ok(None);
            }
            let changed = news.iter().filter_map(|entry| entry.get::<String>("tenant"));
            tenants.extend(changed.filter_map(|tenant| tenant.parse::<TenantId>().ok()));
            match news.last() {
                Some(last) => last.id.clone_into(&mut from),
                None => break,
            }
        }
        let tenants: Vec<TenantId> = tenants.into_iter().collect();
        let (key, mut limits) = (self.keys.tenant_limits(), HashMap::new());
        for some in tenants.chunks(AT_ONCE) {
            let mut get = redis::pipe();
            let names: Vec<&str> = some.iter().map(TenantId::as_str).collect();
            get.cmd("HMGET").arg(&key).arg(names);
            let (raw,): (Vec<Option<String>>,) = self.ask(get).await?;
            for (tenant, raw) in some.iter().zip(raw) {
                let now =
                    raw.map_or_else(|| Ok(TenantLimits::default()), |raw| read(&key, &raw))?;
                limits.insert(tenant.clone(), now);
            }
        }
        Ok(Some(limits))
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
        let mut last = redis::pipe();
        last.cmd("XREVRANGE").arg(self.keys.tenant_limits_changes());
        last.arg("+").arg("-").arg("COUNT").arg(1);
        let (reply,): (StreamRangeReply,) = self.ask(last).await?;
        Ok(reply.ids.into_iter().next().map(|entry| entry.id))
    }
}

fn read(key: &str, raw: &str) -> Result<TenantLimits, StoreError> {
    serde_json::from_str(raw).map_err(|error| StoreError::Corrupt { key: key.to_owned(), error })
}
