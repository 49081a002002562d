//! Whether Redis may forget any key to make room for others. Then a tenant may lose its subscriptions, and look as if it
//! had none.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redis::{InfoDict, Value, from_redis_value};

use super::{Store, StoreError};
use crate::seldom::Seldom;

/// How often Redis is asked.
const EVERY: Duration = Duration::from_secs(10);

/// What Redis said last. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    asked: Seldom,
    said: Mutex<Said>,
}

#[derive(Debug, Default)]
struct Said {
    may_not_ask: bool,
    /// The policy by which it may forget what it should not.
    evicts: Option<String>,
}

impl Default for Memory {
    fn default() -> Self {
        Self(Arc::new(Inner { asked: Seldom::each(EVERY), said: Mutex::default() }))
    }
}

impl Store {
    /// Checks that Redis forgets nothing but what has a time to live. One that does not say (a user may be kept from
    /// asking) is believed.
    pub(super) async fn check_memory(&self) -> Result<(), StoreError> {
        if self.memory.is_to_be_asked() {
            let mut info = redis::cmd("INFO");
            info.arg("memory");
            match info.query_async::<Value>(&mut self.link.clone()).await {
                Ok(answer) => self.memory.set(policy_that_evicts(answer)),
                Err(error) if error.code() == Some("NOPERM") => {
                    tracing::warn!(
                        "Redis may not be asked whether it evicts keys (its ACL lacks +info): it must not"
                    );
                    self.memory.ask_no_more();
                }
                Err(error) => tracing::debug!(%error, "Redis does not say what it may forget"),
            }
        }
        self.memory.evicts().map_or(Ok(()), |policy| Err(StoreError::Evicts(policy)))
    }
}

impl Memory {
    fn is_to_be_asked(&self) -> bool {
        !self.said().may_not_ask && self.0.asked.is_time()
    }

    fn ask_no_more(&self) {
        self.said().may_not_ask = true;
    }

    fn set(&self, evicts: Option<String>) {
        self.said().evicts = evicts;
    }

    fn evicts(&self) -> Option<String> {
        self.said().evicts.clone()
    }

    fn said(&self) -> MutexGuard<'_, Said> {
        self.0.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The policy by which one of these servers may forget any key. A cluster answers for each of its masters.
fn policy_that_evicts(answer: Value) -> Option<String> {
    if let Value::Map(nodes) = answer {
        return nodes.into_iter().find_map(|(_, answer)| policy_that_evicts(answer));
    }
    let info = InfoDict::new(&from_redis_value::<String>(answer).ok()?);
    let policy: String = info.get("maxmemory_policy")?;
    // Without a bound there is nothing to make room for.
    let has_bound = info.get::<u64>("maxmemory").is_none_or(|bytes| bytes > 0);
    (has_bound && policy.starts_with("allkeys-")).then_some(policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_evicts_any_key_is_told() {
        let node = |bound: u64, policy: &str| {
            let info = format!("# Memory\r\nmaxmemory:{bound}\r\nmaxmemory_policy:{policy}\r\n");
            Value::BulkString(info.into_bytes())
        };
        let of = |policy: &str| Some(policy.to_owned());
        for (answer, expected) in [
            (node(0, "noeviction"), None),
            (node(1 << 30, "noeviction"), None),
            (node(0, "allkeys-lru"), None),
            (node(1 << 30, "allkeys-lru"), of("allkeys-lru")),
            (node(1 << 30, "allkeys-random"), of("allkeys-random")),
            (node(1 << 30, "volatile-lru"), None),
            (Value::SimpleString("maxmemory_policy:allkeys-lfu\r\n".to_owned()), of("allkeys-lfu")),
            (Value::Nil, None),
            (Value::Map(vec![(Value::Nil, node(9, "noeviction"))]), None),
            (
                Value::Map(vec![
                    (Value::Nil, node(9, "noeviction")),
                    (Value::Nil, node(9, "allkeys-lru")),
                ]),
                of("allkeys-lru"),
            ),
        ] {
            assert_eq!(policy_that_evicts(answer.clone()), expected, "{answer:?}");
        }
    }
}
