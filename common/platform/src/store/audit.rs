//! Who changed what: one capped stream of what was done over the API.

use doorbell_common::time::Timestamp;
use redis::Value;
use redis::streams::StreamRangeReply;
use serde::{Deserialize, Serialize};

use super::{Store, StoreError};

/// One thing that was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When.
    pub at: Timestamp,
    /// The id of the key with which it was done, or `operator`.
    pub actor: String,
    /// The address from which the request came.
    pub from: Option<String>,
    /// The addresses that a proxy, or whoever called, says were before that.
    pub forwarded_for: Option<String>,
    /// The request's id.
    pub request_id: String,
    /// What was done, such as `subscription.update`.
    pub action: String,
    /// To whose.
    pub tenant: Option<String>,
    /// To which.
    pub subject: Option<String>,
    /// What is different since, without secrets.
    pub changes: serde_json::Value,
}

impl Store {
    /// Adds an entry, and forgets old ones: about so many are kept.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn record_audit(&self, entry: &AuditEntry, kept: usize) -> Result<(), StoreError> {
        let key = self.keys.audit();
        let raw = serde_json::to_string(entry)
            .map_err(|error| StoreError::Corrupt { key: key.clone(), error })?;
        let mut add = redis::cmd("XADD");
        add.arg(key).arg("MAXLEN").arg("~").arg(kept).arg("*").arg("entry").arg(raw);
        add.query_async::<Value>(&mut self.link.clone()).await?;
        Ok(())
    }

    /// Entries from the newest on, or from the one before `before`; at most `limit`, each with its id.
    /// The second value is where to go on, if there is more.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn list_audit(
        &self,
        before: Option<&str>,
        limit: usize,
    ) -> Result<(Vec<(String, AuditEntry)>, Option<String>), StoreError> {
        let key = self.keys.audit();
        let end = before.map_or_else(|| "+".to_owned(), |before| format!("({before}"));
        let mut range = redis::pipe();
        range.cmd("XREVRANGE").arg(&key).arg(end).arg("-").arg("COUNT").arg(limit + 1);
        let (reply,): (StreamRangeReply,) = self.ask(range).await?;
        let mut entries = Vec::new();
        for found in &reply.ids {
            let raw: String = found.get("entry").unwrap_or_default();
            let entry = serde_json::from_str(&raw)
                .map_err(|error| StoreError::Corrupt { key: key.clone(), error })?;
            entries.push((found.id.clone(), entry));
        }
        let more = entries.len() > limit;
        entries.truncate(limit);
        let next = if more { entries.last().map(|(id, _)| id.clone()) } else { None };
        Ok((entries, next))
    }
}
