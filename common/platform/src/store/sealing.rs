//! Sealing anew what was sealed with another key than the active one, or not at all; and which keys
//! are in use, so that a service that lacks one is not ready, rather than without secrets.

use doorbell_common::ids::SlotNumber;
use doorbell_common::time::Timestamp;
use redis::Value;
use serde::{Deserialize, Serialize};

use super::changes::Change;
use super::records::REPLACE;
use super::sealed::{Opened, Secrets};
use super::slots::MARK;
use super::{Store, StoreError};

/// How far a round over all subscriptions has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealingRound {
    /// The key that seals in this round.
    pub active_key: Option<String>,
    /// Slots that have been looked at.
    pub slots_done: u32,
    /// How many there are.
    pub slots: u32,
    /// Subscriptions that were sealed anew.
    pub sealed: u64,
    /// Subscriptions that could not be: they cannot be opened.
    pub failed: u64,
    /// When the round began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
}

impl Store {
    /// Says that the active key is in use from now on. Whoever lacks it is not ready.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn announce_sealing_key(&self) -> Result<(), StoreError> {
        self.check_epoch().await?;
        let Some(active) = self.active_sealing_key() else { return Ok(()) };
        let mut add = redis::cmd("SADD");
        add.arg(self.keys.sealing_keys()).arg(active);
        add.query_async::<Value>(&mut self.link.clone()).await?;
        Ok(())
    }

    /// Says that no other key than the active one is in use any more.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn retire_sealing_keys(&self) -> Result<(), StoreError> {
        let mut pipe = redis::pipe();
        pipe.atomic().cmd("DEL").arg(self.keys.sealing_keys()).ignore();
        if let Some(active) = self.active_sealing_key() {
            pipe.cmd("SADD").arg(self.keys.sealing_keys()).arg(active).ignore();
        }
        pipe.query_async::<()>(&mut self.link.clone()).await?;
        Ok(())
    }

    /// The key that seals, if one does.
    #[must_use]
    pub fn active_sealing_key(&self) -> Option<&str> {
        match &self.secrets {
            Secrets::Unread => None,
            Secrets::With(keys) => keys.active(),
        }
    }

    /// Seals anew what in a slot is sealed otherwise than it would be now; adds that up.
    ///
    /// # Errors
    /// Redis did not answer: some may be sealed anew, others not.
    pub async fn reseal_slot(
        &self,
        slot: SlotNumber,
        round: &mut SealingRound,
    ) -> Result<(), StoreError> {
        let key = self.keys.slot(slot);
        let mut get = redis::pipe();
        get.cmd("HGETALL").arg(&key);
        let (records,): (Vec<(String, String)>,) = self.ask(get).await?;
        let mut changed = Vec::new();
        for (id, raw) in records.into_iter().filter(|(field, _)| field != MARK) {
            match self.resealed(&key, &id, &raw) {
                Ok(Some(after)) => changed.push((id, raw, after)),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(%error, "not sealed anew");
                    round.failed += 1;
                }
            }
        }
        if changed.is_empty() {
            return Ok(());
        }
        // Whoever could not open one looks again.
        self.announce_change(&Change::Slot(slot)).await?;
        for (id, before, after) in changed {
            let mut eval = redis::cmd("EVAL");
            eval.arg(REPLACE).arg(1).arg(&key).arg(id).arg(before).arg(after);
            // One that someone has changed meanwhile was sealed by that.
            round.sealed += eval.query_async::<u64>(&mut self.link.clone()).await?;
        }
        self.log_change(&Change::Slot(slot)).await
    }

    fn resealed(&self, slot: &str, id: &str, raw: &str) -> Result<Option<String>, StoreError> {
        match self.open(slot, id, raw)? {
            Opened::Live(subscription, sealed) if self.is_sealed_otherwise(sealed.as_deref()) => {
                self.seal(&subscription, None).map(Some)
            }
            Opened::Live(..) | Opened::Deleted => Ok(None),
        }
    }

    /// Remembers how far a round has come.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn save_sealing(&self, round: &SealingRound) -> Result<(), StoreError> {
        let key = self.keys.sealing();
        let raw = serde_json::to_string(round)
            .map_err(|error| StoreError::Corrupt { key: key.clone(), error })?;
        redis::cmd("SET").arg(key).arg(raw).query_async::<Value>(&mut self.link.clone()).await?;
        Ok(())
    }

    /// How far the last round has come; none, if there never was one.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was.
    pub async fn sealing(&self) -> Result<Option<SealingRound>, StoreError> {
        let key = self.keys.sealing();
        let mut get = redis::pipe();
        get.cmd("GET").arg(&key);
        let (raw,): (Option<String>,) = self.ask(get).await?;
        raw.map(|raw| serde_json::from_str(&raw))
            .transpose()
            .map_err(|error| StoreError::Corrupt { key, error })
    }
}
