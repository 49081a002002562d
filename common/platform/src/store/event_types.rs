//! The catalogue of event types. All of it lies on one node, and each change gives it another version.

use doorbell_common::catalogue::KnownType;
use doorbell_common::event::EventType;

use super::{Store, StoreError};

/// Puts a record, or none, in the place of the one that was read, if that is still there.
const SWAP: &str = "if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then return 0 end if ARGV[3] == '' then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], ARGV[3]) end redis.call('SET', KEYS[2], ARGV[4]) return 1";
/// Puts records in the place of all that are there, if these have the version still that was read.
const SWAP_ALL: &str = "if (redis.call('GET', KEYS[2]) or '') ~= ARGV[1] then return 0 end redis.call('DEL', KEYS[1]) for i = 3, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end redis.call('SET', KEYS[2], ARGV[2]) return 1";

/// A type as it was read, which tells whether it still is so.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredType {
    /// The type.
    pub known: KnownType,
    /// Its record, another one after each change.
    pub raw: String,
}

/// All types as they were read, in the order of their names.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTypes {
    /// The types.
    pub types: Vec<KnownType>,
    /// Another text after each change of any of them; empty, if there never was one.
    pub version: String,
}

impl Store {
    /// Puts a type in the place of what was read under its name, be it none; answers it as it is stored, or
    /// `None` if something else is there by now.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be there.
    pub async fn put_event_type(
        &self,
        before: Option<&StoredType>,
        known: KnownType,
    ) -> Result<Option<StoredType>, StoreError> {
        let raw = raw(&known)?;
        let swapped = self.swap_event_type(&known.name, before, &raw).await?;
        Ok(swapped.then_some(StoredType { known, raw }))
    }

    /// Removes a type; answers whether it was there as it was read.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be there.
    pub async fn remove_event_type(&self, stored: &StoredType) -> Result<bool, StoreError> {
        self.swap_event_type(&stored.known.name, Some(stored), "").await
    }

    async fn swap_event_type(
        &self,
        name: &EventType,
        before: Option<&StoredType>,
        raw: &str,
    ) -> Result<bool, StoreError> {
        let mut eval = redis::cmd("EVAL");
        eval.arg(SWAP).arg(2).arg(self.keys.event_types()).arg(self.keys.event_types_version());
        eval.arg(name.as_str()).arg(before.map_or("", |before| before.raw.as_str())).arg(raw);
        eval.arg(crate::ids::token());
        self.check_epoch().await?;
        Ok(eval.query_async::<u8>(&mut self.link.clone()).await? == 1)
    }

    /// Puts these types in the place of all that were read; answers their version, or `None` if others are there by
    /// now.
    ///
    /// # Errors
    /// Redis did not answer: either these or the former are there.
    pub async fn replace_event_types(
        &self,
        before: &StoredTypes,
        types: &[KnownType],
    ) -> Result<Option<String>, StoreError> {
        let version = crate::ids::token();
        let mut eval = redis::cmd("EVAL");
        eval.arg(SWAP_ALL).arg(2).arg(self.keys.event_types()).arg(self.keys.event_types_version());
        eval.arg(&before.version).arg(&version);
        for known in types {
            eval.arg(known.name.as_str()).arg(raw(known)?);
        }
        self.check_epoch().await?;
        let replaced = eval.query_async::<u8>(&mut self.link.clone()).await? == 1;
        Ok(replaced.then_some(version))
    }

    /// Reads a type.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn event_type(&self, name: &EventType) -> Result<Option<StoredType>, StoreError> {
        let key = self.keys.event_types();
        let mut get = redis::pipe();
        get.cmd("HGET").arg(&key).arg(name.as_str());
        let (raw,): (Option<String>,) = self.ask(get).await?;
        raw.map(|raw| Ok(StoredType { known: read(&key, &raw)?, raw })).transpose()
    }

    /// All types.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn event_types(&self) -> Result<StoredTypes, StoreError> {
        let key = self.keys.event_types();
        let mut get = redis::pipe();
        // The version first: one that is too old for what was read is only asked for once more.
        get.cmd("GET").arg(self.keys.event_types_version());
        get.cmd("HVALS").arg(&key);
        let (version, raw): (Option<String>, Vec<String>) = self.ask(get).await?;
        let mut types = raw
            .iter()
            .map(|raw| read(&key, raw))
            .collect::<Result<Vec<KnownType>, StoreError>>()?;
        types.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(StoredTypes { types, version: version.unwrap_or_default() })
    }

    /// The names of all types.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn event_type_names(&self) -> Result<Vec<EventType>, StoreError> {
        let mut get = redis::pipe();
        get.cmd("HKEYS").arg(self.keys.event_types());
        let (names,): (Vec<String>,) = self.ask(get).await?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    /// Another text after each change of the catalogue; none, if there never was one.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn event_types_version(&self) -> Result<Option<String>, StoreError> {
        let mut get = redis::pipe();
        get.cmd("GET").arg(self.keys.event_types_version());
        let (version,) = self.ask(get).await?;
        Ok(version)
    }
}

fn raw(known: &KnownType) -> Result<String, StoreError> {
    serde_json::to_string(known)
        .map_err(|error| StoreError::Corrupt { key: known.name.to_string(), error })
}

fn read(key: &str, raw: &str) -> Result<KnownType, StoreError> {
    serde_json::from_str(raw).map_err(|error| StoreError::Corrupt { key: key.to_owned(), error })
}
