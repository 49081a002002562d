//! Remembers which slots have changed, for one who asks now and then.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use doorbell_common::ids::SlotNumber;

/// What has changed since someone last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Changed {
    /// Nobody knows: everything, perhaps.
    Everything,
    /// What is in these slots, and nothing else.
    Slots(BTreeSet<SlotNumber>),
}

/// What is to be answered next; nothing is remembered before somebody has asked.
#[derive(Debug)]
pub(super) struct Watched(Mutex<Changed>);

impl Default for Watched {
    fn default() -> Self {
        Self(Mutex::new(Changed::Everything))
    }
}

impl Watched {
    pub(super) fn slot(&self, number: SlotNumber) {
        if let Changed::Slots(slots) = &mut *self.lock() {
            slots.insert(number);
        }
    }

    pub(super) fn everything(&self) {
        *self.lock() = Changed::Everything;
    }

    pub(super) fn take(&self) -> Changed {
        std::mem::replace(&mut *self.lock(), Changed::Slots(BTreeSet::new()))
    }

    fn lock(&self) -> MutexGuard<'_, Changed> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_changed_is_told_once() {
        let watched = Watched::default();
        let slots = |numbers: &[u32]| {
            Changed::Slots(numbers.iter().map(|number| SlotNumber(*number)).collect())
        };
        // Before that nobody had asked.
        watched.slot(SlotNumber(1));
        assert_eq!(watched.take(), Changed::Everything);
        for number in [3, 2, 3] {
            watched.slot(SlotNumber(number));
        }
        assert_eq!(watched.take(), slots(&[2, 3]));
        assert_eq!(watched.take(), slots(&[]));
        watched.slot(SlotNumber(4));
        watched.everything();
        watched.slot(SlotNumber(5));
        assert_eq!(watched.take(), Changed::Everything);
        assert_eq!(watched.take(), slots(&[]));
    }
}
