//! Which subscriptions of a fan-out are done with. Sets that expire; losing them costs a
//! duplicate, never a loss.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use doorbell_common::ids::SubscriptionId;
use redis::Pipeline;

use super::{Store, StoreError};

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
        let mut pipes = vec![transaction()];
        for (name, ids) in served {
            let (pipe, key) = (self.pipe_for_key(&mut pipes), self.keys.ledger(name));
            let add = pipe.cmd("SADD").arg(&key);
            for id in ids {
                add.arg(id.to_string());
            }
            add.ignore();
            pipe.cmd("EXPIRE").arg(&key).arg(KEPT.as_secs()).ignore();
        }
        for name in closed {
            self.pipe_for_key(&mut pipes).cmd("UNLINK").arg(self.keys.ledger(name)).ignore();
        }
        let writing = pipes.iter().filter(|pipe| !pipe.is_empty()).map(|pipe| async move {
            let mut link = self.link.clone();
            if let Err(error) = pipe.query_async::<()>(&mut link).await {
                tracing::debug!(%error, "ledger not written");
            }
        });
        futures_util::future::join_all(writing).await;
    }

    /// Where to put the commands of one more key: one pipeline takes them all, unless each key may
    /// live on another node.
    fn pipe_for_key<'a>(&self, pipes: &'a mut Vec<Pipeline>) -> &'a mut Pipeline {
        if self.link.is_cluster() {
            pipes.push(transaction());
        }
        let last = pipes.len() - 1;
        &mut pipes[last]
    }

    /// Who is done with in a fan-out.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn served(&self, name: &str) -> Result<HashSet<SubscriptionId>, StoreError> {
        let reading = async {
            let mut members = redis::cmd("SMEMBERS");
            members.arg(self.keys.ledger(name));
            Ok(members.query_async::<Vec<String>>(&mut self.link.clone()).await?)
        };
        let ids = self.if_up(reading).await?;
        Ok(ids.iter().filter_map(|id| id.parse().ok()).collect())
    }
}

/// All of it or nothing: a key that is there has its time to live, whenever Redis is killed.
fn transaction() -> Pipeline {
    let mut pipe = redis::pipe();
    pipe.atomic();
    pipe
}
