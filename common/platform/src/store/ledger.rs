//! Which subscriptions of a fan-out are done with. Sets that expire; losing them costs a
//! duplicate, never a loss.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use doorbell_common::ids::SubscriptionId;
use futures_util::future::join;
use redis::Value;

use super::Store;

/// How long a fan-out is remembered after its last entry.
const KEPT: Duration = Duration::from_secs(24 * 3600);

impl Store {
    /// Notes who is done with, by the fan-out's name, and forgets the fan-outs that are closed.
    pub async fn note_served(
        &self,
        served: &HashMap<Arc<str>, Vec<SubscriptionId>>,
        closed: &[Arc<str>],
    ) {
        if !self.is_up() {
            return;
        }
        let adding = served.iter().map(|(name, ids)| async move {
            let mut link = self.link.clone();
            let key = self.keys.ledger(name);
            let mut pipe = redis::pipe();
            let add = pipe.cmd("SADD").arg(&key);
            for id in ids {
                add.arg(id.as_str());
            }
            pipe.cmd("EXPIRE").arg(&key).arg(KEPT.as_secs());
            if let Err(error) = pipe.query_async::<Value>(&mut link).await {
                tracing::debug!(%error, "ledger not written");
            }
        });
        let closing = closed.iter().map(|name| async move {
            let mut link = self.link.clone();
            let mut unlink = redis::cmd("UNLINK");
            unlink.arg(self.keys.ledger(name));
            if let Err(error) = unlink.query_async::<Value>(&mut link).await {
                tracing::debug!(%error, "ledger not closed");
            }
        });
        let adding = futures_util::future::join_all(adding);
        join(adding, futures_util::future::join_all(closing)).await;
    }

    /// Who is done with in a fan-out; nobody, if Redis does not say.
    pub async fn served(&self, name: &str) -> HashSet<SubscriptionId> {
        if !self.is_up() {
            return HashSet::new();
        }
        let mut link = self.link.clone();
        let mut members = redis::cmd("SMEMBERS");
        members.arg(self.keys.ledger(name));
        match members.query_async::<Vec<String>>(&mut link).await {
            Ok(ids) => ids.iter().filter_map(|id| id.parse().ok()).collect(),
            Err(error) => {
                tracing::debug!(%error, "ledger not read");
                HashSet::new()
            }
        }
    }
}
