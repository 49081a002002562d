//! API keys. All that concerns them lies on one node, so each change is there whole or not at all.

use doorbell_common::api_key::{ApiKey, ApiKeyId};
use doorbell_common::ids::TenantId;
use doorbell_common::time::Timestamp;
use redis::Value;

use super::{Store, StoreError};

/// Notes a use, unless the key was taken away meanwhile.
const NOTE_USE: &str = "if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end";

/// An API key and when it was last used, to the minute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredApiKey {
    /// The key's record.
    pub key: ApiKey,
    /// Absent if it never was.
    pub last_used_at: Option<Timestamp>,
}

impl Store {
    /// Adds a key.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be there.
    pub async fn create_api_key(&self, key: &ApiKey) -> Result<(), StoreError> {
        self.check_epoch().await?;
        let (id, raw) = (key.id.to_string(), serde_json::to_string(key));
        let raw = raw.map_err(|error| StoreError::Corrupt { key: id.clone(), error })?;
        let mut pipe = redis::pipe();
        pipe.atomic();
        pipe.cmd("HSET").arg(self.keys.api_keys()).arg(&id).arg(raw).ignore();
        for ids in self.lists_of(key) {
            pipe.cmd("ZADD").arg(ids).arg(0).arg(&id).ignore();
        }
        pipe.query_async::<()>(&mut self.link.clone()).await?;
        Ok(())
    }

    /// Takes a key away; answers whether it was there.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be there.
    pub async fn remove_api_key(&self, key: &ApiKey) -> Result<bool, StoreError> {
        self.check_epoch().await?;
        let id = key.id.to_string();
        let mut pipe = redis::pipe();
        pipe.atomic();
        pipe.cmd("HDEL").arg(self.keys.api_keys()).arg(&id);
        pipe.cmd("HDEL").arg(self.keys.api_key_uses()).arg(&id).ignore();
        for ids in self.lists_of(key) {
            pipe.cmd("ZREM").arg(ids).arg(&id).ignore();
        }
        let (removed,) = pipe.query_async(&mut self.link.clone()).await?;
        Ok(removed)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn api_key(&self, id: &ApiKeyId) -> Result<Option<StoredApiKey>, StoreError> {
        let mut get = redis::pipe();
        get.cmd("HGET").arg(self.keys.api_keys()).arg(id.to_string());
        get.cmd("HGET").arg(self.keys.api_key_uses()).arg(id.to_string());
        let (raw, used): (Option<String>, Option<i64>) = self.ask(get).await?;
        let Some(raw) = raw else { return Ok(None) };
        let key = serde_json::from_str(&raw)
            .map_err(|error| StoreError::Corrupt { key: id.to_string(), error })?;
        Ok(Some(StoredApiKey { key, last_used_at: used.map(Timestamp::from_millis) }))
    }

    /// Keys in the order of their ids, after one of them; at most `limit`: all, or those that are
    /// bound to one tenant. The second value is where to go on, if there is more.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn list_api_keys(
        &self,
        tenant: Option<&TenantId>,
        after: Option<&ApiKeyId>,
        limit: usize,
    ) -> Result<(Vec<StoredApiKey>, Option<ApiKeyId>), StoreError> {
        let list = self.keys.api_key_ids(tenant);
        let (ids, next) = self.page_of_ids(list, after, limit).await?;
        let reads = ids.iter().map(|id| self.api_key(id));
        let found = futures_util::future::try_join_all(reads).await?;
        Ok((found.into_iter().flatten().collect(), next))
    }

    /// How many keys are bound to a tenant.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn count_api_keys(&self, tenant: &TenantId) -> Result<usize, StoreError> {
        let mut get = redis::pipe();
        get.cmd("ZCARD").arg(self.keys.api_key_ids(Some(tenant)));
        let (count,) = self.ask(get).await?;
        Ok(count)
    }

    /// Notes that a key was used.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn note_api_key_use(&self, id: &ApiKeyId, now: Timestamp) -> Result<(), StoreError> {
        let mut note = redis::cmd("EVAL");
        note.arg(NOTE_USE).arg(2).arg(self.keys.api_keys()).arg(self.keys.api_key_uses());
        note.arg(id.to_string()).arg(now.as_millis());
        note.query_async::<Value>(&mut self.link.clone()).await?;
        Ok(())
    }

    fn lists_of(&self, key: &ApiKey) -> Vec<String> {
        let mut lists = vec![self.keys.api_key_ids(None)];
        lists.extend(key.grant.tenant.as_ref().map(|tenant| self.keys.api_key_ids(Some(tenant))));
        lists
    }
}
