//! What was seen lately, to do something about each only once in a while.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Things seen within a period; all are forgotten at its end, or when they are too many. It keeps
/// their hashes alone: should two be equal, which will not happen, only one of them counts.
#[derive(Debug)]
pub struct Recent {
    period: Duration,
    most: usize,
    hasher: RandomState,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    hashes: HashSet<u64>,
}

impl Recent {
    /// For at most so many things, and so long.
    #[must_use]
    pub fn new(period: Duration, most: usize) -> Self {
        let seen = Mutex::new(Seen { since: Instant::now(), hashes: HashSet::new() });
        Self { period, most, hasher: RandomState::new(), seen }
    }

    /// Whether it was seen.
    pub fn contains(&self, thing: &impl Hash) -> bool {
        self.current().hashes.contains(&self.hasher.hash_one(thing))
    }

    /// It is seen now.
    pub fn insert(&self, thing: &impl Hash) {
        let mut seen = self.current();
        if seen.hashes.len() >= self.most {
            seen.hashes.clear();
        }
        seen.hashes.insert(self.hasher.hash_one(thing));
    }

    fn current(&self) -> MutexGuard<'_, Seen> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.since.elapsed() > self.period {
            *seen = Seen { since: Instant::now(), hashes: HashSet::new() };
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_was_seen_is_forgotten_in_time_and_when_it_is_too_much() {
        let recent = Recent::new(Duration::from_secs(10), 2);
        recent.insert(&1);
        assert!(recent.contains(&1) && !recent.contains(&2));
        recent.insert(&2);
        assert!(recent.contains(&1) && recent.contains(&2));
        recent.insert(&3);
        assert!(!recent.contains(&1) && recent.contains(&3));
        tokio::time::advance(Duration::from_secs(11)).await;
        assert!(!recent.contains(&3));
    }
}
