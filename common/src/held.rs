//! Which subscriptions have deliveries in the stream of held ones, and where: what reading that
//! stream from its start comes to.
//!
//! The stream holds deliveries, and notes of how far some were handed on ([`Resumed`]). Folding
//! both in their order gives the same index whether it was done all along or is done afresh, so
//! the index may be lost.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::ids::{SlotNumber, SubscriptionId};

/// Where a subscription's held deliveries stand in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// None that still waits stands before this offset.
    pub first: u64,
    /// The last one stands here.
    pub last: u64,
}

/// A note in the stream: the deliveries of these subscriptions, up to an offset, were handed on.
/// With no subscription it says nothing, and only marks its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// Whose deliveries.
    pub subscriptions: Vec<SubscriptionId>,
    /// Up to this offset, which is included.
    pub through: u64,
}

/// Whose turn it is to have the stream read for them. What stands between a subscription's deliveries may be
/// long: nobody else waits until all of that is read.
#[derive(Clone, Debug, Default)]
pub struct Turns {
    taken: u64,
    last: BTreeMap<SubscriptionId, u64>,
}

/// Where to read next, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// From this offset on,
    pub first: u64,
    /// up to this one, which is included,
    pub last: u64,
    /// for these: none of their deliveries stands before.
    pub ids: BTreeSet<SubscriptionId>,
}

impl Turns {
    /// The next turn among subscriptions that have held deliveries: the one that has waited for longest leads,
    /// and takes along who has nothing before its first delivery. None if nobody has any.
    pub fn next<'a>(
        &mut self,
        index: &HeldIndex,
        ids: impl IntoIterator<Item = &'a SubscriptionId>,
    ) -> Option<Turn> {
        let spans: BTreeMap<_, _> =
            ids.into_iter().filter_map(|id| Some((id, index.span(id)?))).collect();
        self.last.retain(|id, _| spans.contains_key(id));
        let waited =
            |(id, span): &(&&SubscriptionId, &Span)| (self.last.get(id).copied(), span.first);
        let (_, Span { first, .. }) = spans.iter().min_by_key(waited)?;
        let along = || spans.iter().filter(|(_, span)| span.first >= *first);
        let turn = Turn {
            first: *first,
            last: along().map(|(_, span)| span.last).max().unwrap_or(*first),
            ids: along().map(|(id, _)| (*id).clone()).collect(),
        };
        self.taken += 1;
        self.last.extend(turn.ids.iter().map(|id| (id.clone(), self.taken)));
        Some(turn)
    }
}

/// Which subscriptions have held deliveries, and where; keeps account of what has changed since
/// it was last saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldIndex {
    spans: BTreeMap<SubscriptionId, Span>,
    changed: BTreeSet<SubscriptionId>,
}

impl HeldIndex {
    /// The index as it was saved.
    #[must_use]
    pub fn saved(spans: impl IntoIterator<Item = (SubscriptionId, Span)>) -> Self {
        Self { spans: spans.into_iter().collect(), changed: BTreeSet::new() }
    }

    /// A delivery of this subscription stands at this offset.
    pub fn held(&mut self, subscription: &SubscriptionId, offset: u64) {
        let span =
            self.spans.entry(subscription.clone()).or_insert(Span { first: offset, last: offset });
        span.last = span.last.max(offset);
        self.changed.insert(subscription.clone());
    }

    /// The deliveries of this subscription, up to an offset, were handed on.
    pub fn resumed(&mut self, subscription: &SubscriptionId, through: u64) {
        let Some(span) = self.spans.get_mut(subscription) else { return };
        if span.last <= through {
            self.spans.remove(subscription);
        } else if span.first <= through {
            span.first = through.saturating_add(1);
        } else {
            return;
        }
        self.changed.insert(subscription.clone());
    }

    /// There are none of this subscription up to an offset. That need not be saved, as long as there may be some
    /// after it: whoever does not know it reads more, and a million may be told so at once.
    pub fn passed(&mut self, subscription: &SubscriptionId, through: u64) {
        match self.spans.get_mut(subscription) {
            Some(span) if span.last <= through => self.resumed(subscription, through),
            Some(span) => span.first = span.first.max(through.saturating_add(1)),
            None => {}
        }
    }

    /// Where a subscription's held deliveries stand, if it has any.
    #[must_use]
    pub fn span(&self, subscription: &SubscriptionId) -> Option<Span> {
        self.spans.get(subscription).copied()
    }

    /// Whether the stream was read up to this offset, from a subscription's first place on, and yet its
    /// last delivery was not `seen`: the stream has forgotten it.
    #[must_use]
    pub fn is_forgotten(&self, subscription: &SubscriptionId, seen: bool, through: u64) -> bool {
        !seen && self.span(subscription).is_some_and(|span| span.last <= through)
    }

    /// The subscriptions that have held deliveries.
    pub fn subscriptions(&self) -> impl Iterator<Item = &SubscriptionId> {
        self.spans.keys()
    }

    /// Those of them whose records are in this slot.
    pub fn in_slot(&self, slot: SlotNumber) -> impl Iterator<Item = &SubscriptionId> {
        let first = SubscriptionId::new(slot, 0);
        self.spans.range(first..).map(|(id, _)| id).take_while(move |id| id.slot() == slot)
    }

    /// What has changed since this was last asked: new places, or `None` where nothing waits.
    pub fn take_changes(&mut self) -> Vec<(SubscriptionId, Option<Span>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id.clone(), self.span(&id))).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u8) -> SubscriptionId {
        SubscriptionId::new(SlotNumber(1), u128::from(number))
    }

    #[test]
    fn what_was_handed_on_is_not_looked_for_again() {
        let mut index = HeldIndex::default();
        index.held(&id(1), 3);
        index.held(&id(2), 4);
        index.held(&id(1), 7);
        assert_eq!(index.span(&id(1)), Some(Span { first: 3, last: 7 }));
        index.resumed(&id(1), 4);
        assert_eq!(index.span(&id(1)), Some(Span { first: 5, last: 7 }));
        index.resumed(&id(1), 3);
        assert_eq!(index.span(&id(1)), Some(Span { first: 5, last: 7 }), "an older note");
        index.resumed(&id(1), 7);
        assert_eq!(index.span(&id(1)), None);
        let changes = index.take_changes();
        assert_eq!(changes, [(id(1), None), (id(2), Some(Span { first: 4, last: 4 }))]);
        assert_eq!(index.take_changes(), []);
    }

    #[test]
    fn what_was_passed_is_saved_only_at_the_end() {
        let mut index = HeldIndex::default();
        index.held(&id(1), 3);
        index.held(&id(1), 7);
        index.take_changes();
        index.passed(&id(1), 5);
        assert_eq!(index.span(&id(1)), Some(Span { first: 6, last: 7 }));
        index.passed(&id(1), 2);
        assert_eq!(index.span(&id(1)), Some(Span { first: 6, last: 7 }), "that was known");
        assert_eq!(index.take_changes(), []);
        index.passed(&id(1), 7);
        assert_eq!(index.take_changes(), [(id(1), None)]);
        index.passed(&id(1), 8);
        assert_eq!(index.take_changes(), []);
    }

    #[test]
    fn what_a_stream_has_forgotten_is_noticed() {
        let mut index = HeldIndex::default();
        index.held(&id(1), 3);
        index.held(&id(1), 7);
        for (subscription, seen, through, is_forgotten) in [
            (1, true, 9, false),
            (1, false, 9, true),
            (1, false, 7, true),
            // Its last one is still to come.
            (1, false, 6, false),
            (2, false, 9, false),
        ] {
            let found = index.is_forgotten(&id(subscription), seen, through);
            assert_eq!(found, is_forgotten, "{subscription}, {seen}, {through}");
        }
    }

    #[test]
    fn those_of_a_slot_are_found() {
        let mut index = HeldIndex::default();
        let in_slot = |slot, number| SubscriptionId::new(SlotNumber(slot), number);
        let most = u128::MAX >> 56;
        for (slot, number) in [(1, most), (2, 0), (2, 7), (2, most), (3, 0)] {
            index.held(&in_slot(slot, number), 1);
        }
        let found: Vec<_> = index.in_slot(SlotNumber(2)).cloned().collect();
        assert_eq!(found, [in_slot(2, 0), in_slot(2, 7), in_slot(2, most)]);
        assert_eq!(index.in_slot(SlotNumber(4)).count(), 0);
    }

    #[test]
    fn nobody_waits_until_all_that_another_has_is_read() {
        let mut index = HeldIndex::default();
        for (number, offset) in [(1, 5), (2, 8), (3, 1000), (1, 2000), (3, 1010)] {
            index.held(&id(number), offset);
        }
        let all = [id(1), id(2), id(3), id(4)];
        let turn = |first, last, numbers: &[u8]| {
            Some(Turn { first, last, ids: numbers.iter().map(|number| id(*number)).collect() })
        };
        let mut turns = Turns::default();
        // The third is not back yet; the fourth has nothing.
        assert_eq!(
            turns.next(&index, all.iter().filter(|of| **of != id(3))),
            turn(5, 2000, &[1, 2])
        );
        for number in [1, 2] {
            index.resumed(&id(number), 900);
        }
        assert_eq!(index.span(&id(1)), Some(Span { first: 901, last: 2000 }));
        // Now it is, and comes first, although another's are before.
        assert_eq!(turns.next(&index, &all), turn(1000, 1010, &[3]));
        assert_eq!(turns.next(&index, &all), turn(901, 2000, &[1, 3]));
        index.resumed(&id(3), 1010);
        index.resumed(&id(1), 2000);
        assert_eq!(turns.next(&index, &all), None);
    }

    /// What stands in a stream: deliveries, and notes about offsets before their own.
    #[derive(Clone, Debug)]
    enum Entry {
        Held(u8),
        Resumed(u8, u64),
    }

    fn stream() -> impl Strategy<Value = Vec<Entry>> {
        let entry = prop_oneof![
            3 => (0_u8..4).prop_map(Entry::Held),
            1 => (0_u8..4, 0_u64..40).prop_map(|(id, through)| Entry::Resumed(id, through)),
        ];
        prop::collection::vec(entry, 0..40)
    }

    proptest! {
        #[test]
        fn every_delivery_that_was_not_handed_on_is_inside_its_span(entries in stream()) {
            let mut index = HeldIndex::default();
            let mut waiting = BTreeSet::new();
            let mut stored = BTreeMap::new();
            for (offset, entry) in (0_u64..).zip(entries) {
                match entry {
                    Entry::Held(n) => {
                        index.held(&id(n), offset);
                        waiting.insert((n, offset));
                    }
                    Entry::Resumed(n, through) => {
                        let through = through.min(offset);
                        index.resumed(&id(n), through);
                        waiting.retain(|(m, at)| *m != n || *at > through);
                    }
                }
                for (id, span) in index.take_changes() {
                    match span {
                        Some(span) => stored.insert(id, span),
                        None => stored.remove(&id),
                    };
                }
                for n in 0..4 {
                    let mine = || waiting.iter().filter(|(m, _)| *m == n).map(|(_, at)| *at);
                    let span = index.span(&id(n));
                    prop_assert_eq!(span.map(|span| span.last), mine().max());
                    prop_assert!(span.is_none_or(|span| Some(span.first) <= mine().min()));
                }
                // What was saved piece by piece is the whole.
                prop_assert_eq!(&HeldIndex::saved(stored.clone()), &index);
            }
        }

        #[test]
        fn whoever_is_back_has_a_turn_and_turns_end(
            entries in stream(), read_in_a_turn in 1_u64..20, back in prop::collection::btree_set(0_u8..4, 1..4),
        ) {
            let mut index = HeldIndex::default();
            for (offset, entry) in (0_u64..).zip(&entries) {
                if let Entry::Held(n) = entry {
                    index.held(&id(*n), offset);
                }
            }
            let back: BTreeSet<SubscriptionId> = back.into_iter().map(id).collect();
            let mut turns = Turns::default();
            let mut missing: BTreeSet<_> = back.iter().filter(|id| index.span(id).is_some()).collect();
            for number in 0.. {
                prop_assert!(number <= 2 * entries.len(), "no end");
                let Some(turn) = turns.next(&index, &back) else { break };
                missing.retain(|id| !turn.ids.contains(id));
                prop_assert!(number < 4 || missing.is_empty(), "{missing:?} had no turn");
                let through = turn.last.min(turn.first + read_in_a_turn);
                for id in &turn.ids {
                    prop_assert!(index.span(id).is_some_and(|span| span.first >= turn.first));
                    index.passed(id, through);
                }
            }
            prop_assert!(back.iter().all(|id| index.span(id).is_none()), "something is left");
        }
    }
}
