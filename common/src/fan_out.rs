//! How an event for many subscriptions is split: into ranges of slots, each small enough to be
//! served as one page, or to be split again by whoever takes it.
//!
//! Ranges are halved at the largest power of two inside them, so an event that is split once more
//! after a crash falls apart at the same places, and the pages that come again have the names that
//! they had. Only what lies beyond the slots known at the first time is not part of it.

use serde::{Deserialize, Serialize};

use crate::ids::SlotNumber;

/// How many deliveries one message may ask for at most; a slot has no more subscriptions.
pub const PAGE: usize = 256;
/// Into how many ranges one message is split at most, so that splitting needs little memory
/// however many subscriptions there are.
const MOST: usize = 64;

/// Slots from `first` on, and before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlotRange {
    /// The first slot.
    pub first: u32,
    /// One past the last slot.
    pub end: u32,
}

impl SlotRange {
    /// Every slot there can be.
    pub const ALL: Self = Self { first: 0, end: SlotNumber::END };

    /// Whether a slot is among these.
    #[must_use]
    pub fn contains(self, slot: SlotNumber) -> bool {
        (self.first..self.end).contains(&slot.0)
    }

    /// How many slots these are.
    #[must_use]
    pub fn len(self) -> u32 {
        self.end.saturating_sub(self.first)
    }

    /// Whether these are none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The slots, one by one.
    pub fn slots(self) -> impl Iterator<Item = SlotNumber> {
        (self.first..self.end).map(SlotNumber)
    }

    /// Two parts that depend as little on where the range ends as can be; `None` for a single slot.
    fn halves(self) -> Option<[Self; 2]> {
        if self.len() < 2 {
            return None;
        }
        // The bit in which the first and the last slot differ first.
        let last = self.end - 1;
        let bit = 31 - (self.first ^ last).leading_zeros();
        let middle = (last >> bit) << bit;
        Some([Self { end: middle, ..self }, Self { first: middle, ..self }])
    }
}

/// Splits a range with more than a [`PAGE`] of deliveries into at most 64, in order. `count` says
/// how many deliveries a range may have; ranges that have none are left out. A range that needs no
/// splitting comes back as it is.
#[must_use]
pub fn split(range: SlotRange, count: impl Fn(SlotRange) -> usize) -> Vec<SlotRange> {
    let mut parts = vec![(count(range), range)];
    while parts.len() < MOST {
        let too_large = |(count, range): &&(usize, SlotRange)| *count > PAGE && range.len() > 1;
        let Some(largest) =
            parts.iter().filter(too_large).max_by_key(|(count, range)| (*count, range.len()))
        else {
            break;
        };
        let largest = largest.1;
        parts.retain(|(_, range)| *range != largest);
        let halves = largest.halves().into_iter().flatten();
        parts.extend(halves.map(|half| (count(half), half)).filter(|(count, _)| *count > 0));
    }
    parts.retain(|(count, _)| *count > 0);
    let mut ranges: Vec<SlotRange> = parts.into_iter().map(|(_, range)| range).collect();
    ranges.sort_unstable_by_key(|range| range.first);
    ranges
}

/// Whether an event that falls into these ranges is for very many: for more than 64 pages.
#[must_use]
pub fn is_large(parts: &[SlotRange]) -> bool {
    parts.len() >= MOST
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Splits all the way down, as the dispatchers do together.
    fn pages(range: SlotRange, count: &impl Fn(SlotRange) -> usize) -> Vec<SlotRange> {
        let parts = split(range, count);
        assert!(parts.len() <= MOST);
        if parts == [range] {
            return parts;
        }
        parts.into_iter().flat_map(|part| pages(part, count)).collect()
    }

    #[test]
    fn few_deliveries_are_one_page() {
        assert_eq!(split(SlotRange::ALL, |_| 256), [SlotRange::ALL]);
        assert_eq!(split(SlotRange::ALL, |_| 0), []);
        assert_eq!(
            split(SlotRange { first: 3, end: 3 }, |range| usize::try_from(range.len()).unwrap()),
            []
        );
    }

    #[test]
    fn a_broadcast_to_a_million_is_a_tree_of_single_slots() {
        let range = SlotRange { first: 0, end: 3907 };
        let full = |range: SlotRange| usize::try_from(range.len()).unwrap() * 256;
        assert_eq!(split(range, full).len(), 64);
        let pages = pages(range, &full);
        assert_eq!(pages.len(), 3907);
        assert!(pages.iter().all(|page| page.len() == 1));
    }

    proptest! {
        #[test]
        fn pages_cover_everyone_once_and_keep_their_places(
            slots in prop::collection::vec(0_u32..3000, 0..2000),
            later in prop::collection::vec(3000_u32..4000, 0..50),
        ) {
            let within = |slots: &[u32], range: SlotRange| slots.iter().filter(|slot| range.contains(SlotNumber(**slot))).count();
            let range = SlotRange { first: 0, end: 3000 };
            let before = pages(range, &|range| within(&slots, range));
            for page in &before {
                prop_assert!(within(&slots, *page) <= PAGE || page.len() == 1);
            }
            for pair in before.windows(2) {
                prop_assert!(pair[0].end <= pair[1].first);
            }
            prop_assert_eq!(before.iter().map(|page| within(&slots, *page)).sum::<usize>(), slots.len());
            // Subscriptions in slots beyond change nothing about the pages before them, but
            // perhaps how far the last one reaches.
            let more: Vec<u32> = slots.iter().chain(&later).copied().collect();
            let after = pages(range, &|range| within(&more, range));
            prop_assert_eq!(before, after);
        }
    }
}
