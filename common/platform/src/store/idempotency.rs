//! Requests that may be sent twice and are carried out once: what became of each is remembered for a
//! day under the key that its sender gave it. Answers may have secrets in them, and are sealed.

use std::time::Duration;

use doorbell_common::ids::TenantId;
use redis::Value;
use serde::{Deserialize, Serialize};

use super::sealed::Secrets;
use super::{COUNT, Store, StoreError};
use crate::clock;

/// How long an answer is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 3600);
/// How long a request is thought to be worked on whose end nobody has noted: longer than any takes.
const WORKED_ON: Duration = Duration::from_secs(60);

/// The most that is remembered within such a time of what one tenant's keys are answered, in bytes: answers
/// may be long, and a tenant may ask for very many.
const SHARE: u64 = 64 * 1024 * 1024;

/// Notes that a request is worked on, unless something is known of it.
const BEGIN: &str = "local v = redis.call('GET', KEYS[1]) if not v then redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2]) end return v";

/// A request that was begun: whose it is, and what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose share of what is remembered it uses up; absent: nobody's.
    pub tenant: Option<TenantId>,
    /// Whose key it is, and the key that he gave it.
    pub name: String,
    /// A digest of all that it asks for.
    pub fingerprint: String,
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answered {
    /// The status.
    pub status: u16,
    /// The headers that belong to it.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

/// What is known of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Before {
    /// Nothing: it is ours to work on now.
    New,
    /// Someone works on it just now.
    WorkedOn,
    /// This was answered.
    Answered(Answered),
    /// Its key was given to another request.
    Another,
    /// Nothing, and its tenant has used up its share of what is remembered.
    UsedUp,
}

#[derive(Serialize, Deserialize)]
struct Remembered {
    fingerprint: String,
    /// Absent while it is worked on. Sealed, if `is_sealed`.
    answer: Option<String>,
    #[serde(default)]
    is_sealed: bool,
}

impl Store {
    /// Begins a request, unless it was begun before.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn begin_request(&self, request: &Request) -> Result<Before, StoreError> {
        self.check_epoch().await?;
        let key = self.keys.request(&request.name);
        let begun =
            Remembered { fingerprint: request.fingerprint.clone(), answer: None, is_sealed: false };
        let mut eval = redis::cmd("EVAL");
        eval.arg(BEGIN).arg(1).arg(&key).arg(write(&key, &begun)?).arg(WORKED_ON.as_secs());
        let known: Option<String> = eval.query_async(&mut self.link.clone()).await?;
        let Some(known) = known else {
            if self.has_used_up(request.tenant.as_ref()).await? {
                self.forget_request(request).await?;
                return Ok(Before::UsedUp);
            }
            return Ok(Before::New);
        };
        let corrupt = |error| StoreError::Corrupt { key: key.clone(), error };
        let known: Remembered = serde_json::from_str(&known).map_err(corrupt)?;
        if known.fingerprint != request.fingerprint {
            return Ok(Before::Another);
        }
        let Some(mut answer) = known.answer else { return Ok(Before::WorkedOn) };
        if known.is_sealed
            && let Secrets::With(keys) = &self.secrets
        {
            let opened = keys.open(&key, &answer);
            let opened =
                opened.map_err(|error| StoreError::NotOpened { key: key.clone(), error })?;
            answer = String::from_utf8_lossy(&opened).into_owned();
        }
        Ok(Before::Answered(serde_json::from_str(&answer).map_err(corrupt)?))
    }

    /// Remembers what was answered.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn end_request(
        &self,
        request: &Request,
        answered: &Answered,
    ) -> Result<(), StoreError> {
        let key = self.keys.request(&request.name);
        let clear = write(&key, answered)?;
        let sealed = match &self.secrets {
            Secrets::Unread => None,
            Secrets::With(keys) => keys.seal(&key, clock::random_bytes(), clear.as_bytes()),
        };
        let ended = Remembered {
            fingerprint: request.fingerprint.clone(),
            is_sealed: sealed.is_some(),
            answer: Some(sealed.unwrap_or(clear)),
        };
        let ended = write(&key, &ended)?;
        let mut end = redis::pipe();
        end.cmd("SET").arg(&key).arg(&ended).arg("EX").arg(REMEMBERED.as_secs()).ignore();
        end.cmd("DEL").arg(self.keys.making(&request.name)).ignore();
        end.query_async::<()>(&mut self.link.clone()).await?;
        if let Some(tenant) = &request.tenant {
            let mut count = redis::cmd("EVAL");
            count.arg(COUNT).arg(1).arg(self.keys.remembered(tenant));
            count.arg(key.len() + ended.len()).arg(REMEMBERED.as_secs());
            count.query_async::<Value>(&mut self.link.clone()).await?;
        }
        Ok(())
    }

    /// Notes what a request is about to make, should it be sent again because nobody knows how it ended.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn note_making(&self, request: &Request, id: &str) -> Result<(), StoreError> {
        let mut set = redis::cmd("SET");
        let what = format!("{} {id}", request.fingerprint);
        set.arg(self.keys.making(&request.name)).arg(what).arg("EX").arg(REMEMBERED.as_secs());
        set.query_async::<Value>(&mut self.link.clone()).await?;
        Ok(())
    }

    /// What the request was about to make that was sent before, and has no end that is known.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn making(&self, request: &Request) -> Result<Option<String>, StoreError> {
        let mut get = redis::pipe();
        get.cmd("GET").arg(self.keys.making(&request.name));
        let (what,): (Option<String>,) = self.ask(get).await?;
        // One that came to nothing may have asked for something else under the same key.
        let what = what.as_deref().and_then(|what| what.split_once(' '));
        Ok(what.filter(|what| what.0 == request.fingerprint).map(|(_, id)| id.to_owned()))
    }

    async fn has_used_up(&self, tenant: Option<&TenantId>) -> Result<bool, StoreError> {
        let Some(tenant) = tenant else { return Ok(false) };
        let mut get = redis::cmd("GET");
        get.arg(self.keys.remembered(tenant));
        let bytes: Option<u64> = get.query_async(&mut self.link.clone()).await?;
        Ok(bytes.is_some_and(|bytes| bytes >= SHARE))
    }

    /// Forgets a request that came to nothing: it may be sent again.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn forget_request(&self, request: &Request) -> Result<(), StoreError> {
        let key = self.keys.request(&request.name);
        redis::cmd("DEL").arg(key).query_async::<Value>(&mut self.link.clone()).await?;
        Ok(())
    }
}

fn write(key: &str, value: &impl Serialize) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt { key: key.to_owned(), error })
}
