//! The catalogue of event types. All of it lies on one node, and each change gives it another version.

use doorbell_common::catalogue::KnownType;
use doorbell_common::event::EventType;
use redis::{Pipeline, Value};

use super::{Store, StoreError};

impl Store {
    /// Adds a type, or replaces it.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be there.
    pub async fn put_event_type(&self, known: &KnownType) -> Result<(), StoreError> {
        let mut pipe = self.changing_types();
        pipe.cmd("HSET").arg(self.keys.event_types()).arg(known.name.as_str()).arg(raw(known)?);
        self.change_types(pipe).await?;
        Ok(())
    }

    /// Removes a type; answers whether it was there.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be there.
    pub async fn remove_event_type(&self, name: &EventType) -> Result<bool, StoreError> {
        let mut pipe = self.changing_types();
        pipe.cmd("HDEL").arg(self.keys.event_types()).arg(name.as_str());
        Ok(self.change_types(pipe).await? == 1)
    }

    /// Puts these types in the place of all that are there.
    ///
    /// # Errors
    /// Redis did not answer: either these or the former are there.
    pub async fn replace_event_types(&self, types: &[KnownType]) -> Result<(), StoreError> {
        let mut pipe = self.changing_types();
        let key = self.keys.event_types();
        if types.is_empty() {
            pipe.cmd("DEL").arg(key);
        } else {
            pipe.cmd("DEL").arg(&key).ignore();
            let fields = types.iter().map(|known| Ok((known.name.to_string(), raw(known)?)));
            pipe.cmd("HSET").arg(key).arg(fields.collect::<Result<Vec<_>, StoreError>>()?);
        }
        self.change_types(pipe).await?;
        Ok(())
    }

    /// Reads a type.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn event_type(&self, name: &EventType) -> Result<Option<KnownType>, StoreError> {
        let key = self.keys.event_types();
        let mut get = redis::pipe();
        get.cmd("HGET").arg(&key).arg(name.as_str());
        let (raw,): (Option<String>,) = self.ask(get).await?;
        raw.map(|raw| read(&key, &raw)).transpose()
    }

    /// All types, in the order of their names.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn event_types(&self) -> Result<Vec<KnownType>, StoreError> {
        let key = self.keys.event_types();
        let mut get = redis::pipe();
        get.cmd("HVALS").arg(&key);
        let (raw,): (Vec<String>,) = self.ask(get).await?;
        let mut types = raw
            .iter()
            .map(|raw| read(&key, raw))
            .collect::<Result<Vec<KnownType>, StoreError>>()?;
        types.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(types)
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

    fn changing_types(&self) -> Pipeline {
        let mut pipe = redis::pipe();
        pipe.atomic();
        let version = self.keys.event_types_version();
        pipe.cmd("SET").arg(version).arg(crate::ids::token()).ignore();
        pipe
    }

    /// Makes a change, whose last command answers a number.
    async fn change_types(&self, pipe: Pipeline) -> Result<u64, StoreError> {
        self.check_epoch().await?;
        let answers: Vec<Value> = pipe.query_async(&mut self.link.clone()).await?;
        let last = answers.into_iter().next_back().unwrap_or(Value::Nil);
        Ok(redis::from_redis_value(last).map_err(redis::RedisError::from)?)
    }
}

fn raw(known: &KnownType) -> Result<String, StoreError> {
    serde_json::to_string(known)
        .map_err(|error| StoreError::Corrupt { key: known.name.to_string(), error })
}

fn read(key: &str, raw: &str) -> Result<KnownType, StoreError> {
    serde_json::from_str(raw).map_err(|error| StoreError::Corrupt { key: key.to_owned(), error })
}
