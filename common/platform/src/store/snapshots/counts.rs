//! Counts changes, so that what was read while one was made is not kept.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

/// So many counters that a change seldom keeps others from being remembered.
const COUNTERS: u64 = 4096;

/// Counts changes, each in one of many counters that its slot or tenant leads to: what was read
/// while the counter of its own was raised is not kept, because it may be from before the change.
#[derive(Debug)]
pub(super) struct Changes {
    counters: Box<[AtomicU64]>,
    hasher: RandomState,
    /// How often everything changed at once.
    all: AtomicU64,
}

impl Default for Changes {
    fn default() -> Self {
        let counters = (0..COUNTERS).map(|_| AtomicU64::new(0)).collect();
        Self { counters, hasher: RandomState::new(), all: AtomicU64::new(0) }
    }
}

impl Changes {
    fn counter(&self, of: &impl Hash) -> &AtomicU64 {
        let hash = usize::try_from(self.hasher.hash_one(of) % COUNTERS).unwrap_or_default();
        &self.counters[hash]
    }

    pub(super) fn count(&self, of: &impl Hash) -> u64 {
        self.counter(of).load(Ordering::Acquire)
    }

    pub(super) fn raise(&self, of: &impl Hash) {
        self.counter(of).fetch_add(1, Ordering::AcqRel);
    }

    pub(super) fn count_of_all(&self) -> u64 {
        self.all.load(Ordering::Acquire)
    }

    pub(super) fn raise_all(&self) {
        self.all.fetch_add(1, Ordering::AcqRel);
        for counter in &self.counters {
            counter.fetch_add(1, Ordering::AcqRel);
        }
    }
}
