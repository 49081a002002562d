//! Which subscriptions have deliveries in the stream of held ones, and where: what reading that
//! stream from its start comes to.
//!
//! The stream holds deliveries, and notes of how far some were handed on ([`Resumed`]). Folding
//! both in their order gives the same index whether it was done all along or is done afresh, so
//! the index may be lost.
//!
//! The stream forgets what is oldest once it is full. So it is [measured](Measure), and what still waits where it is
//! oldest is put at its end again before that, but for what its tenants have there beyond their [share].

mod measure;
pub mod share;
mod turns;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};

use crate::ids::{Addressee, SlotNumber, SubscriptionId};

pub use measure::Measure;
pub use turns::{Turn, Turns};

/// Where a subscription's held deliveries stand in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// None that still waits stands before this offset.
    pub first: u64,
    /// The last one stands here.
    pub last: u64,
}

/// What a subscription has in the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// Where.
    pub span: Span,
    /// How many bytes of the stream that takes, about.
    pub bytes: u64,
    /// Whose it is: the tenant of its events, or everyone, as long as all of them were broadcasts.
    pub owner: Addressee,
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

/// Which subscriptions have held deliveries, and where; keeps account of what has changed since
/// it was last saved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeldIndex {
    waiting: BTreeMap<SubscriptionId, Waiting>,
    changed: BTreeSet<SubscriptionId>,
}

impl HeldIndex {
    /// The index as it was saved.
    #[must_use]
    pub fn saved(waiting: impl IntoIterator<Item = (SubscriptionId, Waiting)>) -> Self {
        Self { waiting: waiting.into_iter().collect(), changed: BTreeSet::new() }
    }

    /// A delivery of this subscription stands at this offset, where it takes so many bytes; its event is for
    /// `addressee`.
    pub fn held(
        &mut self,
        subscription: &SubscriptionId,
        (offset, bytes): (u64, u64),
        addressee: &Addressee,
    ) {
        let none = || {
            let span = Span { first: offset, last: offset };
            Waiting { span, bytes: 0, owner: addressee.clone() }
        };
        let waiting = self.waiting.entry(subscription.clone()).or_insert_with(none);
        waiting.span.last = waiting.span.last.max(offset);
        waiting.bytes = waiting.bytes.saturating_add(bytes);
        if waiting.owner == Addressee::Everyone {
            waiting.owner.clone_from(addressee);
        }
        self.changed.insert(subscription.clone());
    }

    /// The deliveries of this subscription, up to an offset, were handed on.
    pub fn resumed(&mut self, subscription: &SubscriptionId, through: u64) {
        let Some(Waiting { span, bytes, .. }) = self.waiting.get_mut(subscription) else { return };
        if span.last <= through {
            self.waiting.remove(subscription);
        } else if span.first <= through {
            // As if they stood there evenly.
            let (left, all) = (span.last - through, span.last - span.first + 1);
            let left = u128::from(*bytes) * u128::from(left) / u128::from(all);
            *bytes = u64::try_from(left).unwrap_or(*bytes);
            span.first = through.saturating_add(1);
        } else {
            return;
        }
        self.changed.insert(subscription.clone());
    }

    /// There are none of this subscription up to an offset. That need not be saved, as long as there may be some
    /// after it: whoever does not know it reads more, and a million may be told so at once.
    pub fn passed(&mut self, subscription: &SubscriptionId, through: u64) {
        match self.waiting.get_mut(subscription).map(|waiting| &mut waiting.span) {
            Some(span) if span.last <= through => self.resumed(subscription, through),
            Some(span) => span.first = span.first.max(through.saturating_add(1)),
            None => {}
        }
    }

    /// Where a subscription's held deliveries stand, if it has any.
    #[must_use]
    pub fn span(&self, subscription: &SubscriptionId) -> Option<Span> {
        self.waiting.get(subscription).map(|waiting| waiting.span)
    }

    /// The first place at which anyone's may stand.
    #[must_use]
    pub fn first(&self) -> Option<u64> {
        self.waiting.values().map(|waiting| waiting.span.first).min()
    }

    /// How many bytes each owner has.
    #[must_use]
    pub fn usage(&self) -> HashMap<Addressee, u64> {
        let mut usage = HashMap::new();
        for Waiting { bytes, owner, .. } in self.waiting.values() {
            match usage.get_mut(owner) {
                Some(sum) => *sum += bytes,
                None => drop(usage.insert(owner.clone(), *bytes)),
            }
        }
        usage
    }

    /// Whose a subscription's are, if it has any.
    #[must_use]
    pub fn owner(&self, subscription: &SubscriptionId) -> Option<&Addressee> {
        self.waiting.get(subscription).map(|waiting| &waiting.owner)
    }

    /// Whether the stream was read up to this offset, from a subscription's first place on, and yet its
    /// last delivery was not `seen`: the stream has forgotten it.
    #[must_use]
    pub fn is_forgotten(&self, subscription: &SubscriptionId, seen: bool, through: u64) -> bool {
        !seen && self.span(subscription).is_some_and(|span| span.last <= through)
    }

    /// The subscriptions that have held deliveries.
    pub fn subscriptions(&self) -> impl Iterator<Item = &SubscriptionId> {
        self.waiting.keys()
    }

    /// Those of them whose records are in this slot.
    pub fn in_slot(&self, slot: SlotNumber) -> impl Iterator<Item = &SubscriptionId> {
        let first = SubscriptionId::new(slot, 0);
        self.waiting.range(first..).map(|(id, _)| id).take_while(move |id| id.slot() == slot)
    }

    /// What has changed since this was last asked: new places, or `None` where nothing waits.
    pub fn take_changes(&mut self) -> Vec<(SubscriptionId, Option<Waiting>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|id| (id.clone(), self.waiting.get(&id).cloned())).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(super) fn id(number: u8) -> SubscriptionId {
        SubscriptionId::new(SlotNumber(1), u128::from(number))
    }

    fn acme() -> Addressee {
        "acme".parse().unwrap()
    }

    /// Notes a delivery of ten bytes.
    pub(super) fn hold(index: &mut HeldIndex, number: u8, offset: u64) {
        index.held(&id(number), (offset, 10), &acme());
    }

    #[test]
    fn what_was_handed_on_is_not_looked_for_again() {
        let mut index = HeldIndex::default();
        hold(&mut index, 1, 3);
        hold(&mut index, 2, 4);
        hold(&mut index, 1, 7);
        assert_eq!(index.span(&id(1)), Some(Span { first: 3, last: 7 }));
        index.resumed(&id(1), 4);
        assert_eq!(index.span(&id(1)), Some(Span { first: 5, last: 7 }));
        index.resumed(&id(1), 3);
        assert_eq!(index.span(&id(1)), Some(Span { first: 5, last: 7 }), "an older note");
        index.resumed(&id(1), 7);
        assert_eq!(index.span(&id(1)), None);
        let changes = index.take_changes();
        let waiting = Waiting { span: Span { first: 4, last: 4 }, bytes: 10, owner: acme() };
        assert_eq!(changes, [(id(1), None), (id(2), Some(waiting))]);
        assert_eq!(index.take_changes(), []);
    }

    #[test]
    fn what_was_passed_is_saved_only_at_the_end() {
        let mut index = HeldIndex::default();
        hold(&mut index, 1, 3);
        hold(&mut index, 1, 7);
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
        hold(&mut index, 1, 3);
        hold(&mut index, 1, 7);
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
    fn bytes_are_counted_for_whose_they_are() {
        let mut index = HeldIndex::default();
        let other: Addressee = "other".parse().unwrap();
        for (number, place, addressee) in [
            (1, (10, 100), &Addressee::Everyone),
            (1, (19, 300), &acme()),
            (1, (20, 1), &Addressee::Everyone),
            (2, (12, 50), &other),
            (3, (13, 7), &Addressee::Everyone),
        ] {
            index.held(&id(number), place, addressee);
        }
        let usage = |index: &HeldIndex| {
            let usage = index.usage();
            [acme(), other.clone(), Addressee::Everyone].map(|owner| usage.get(&owner).copied())
        };
        assert_eq!(usage(&index), [Some(401), Some(50), Some(7)]);
        assert_eq!((index.first(), index.owner(&id(1))), (Some(10), Some(&acme())));
        // Six of the eleven places between the first and the last are left.
        index.resumed(&id(1), 14);
        index.resumed(&id(2), 14);
        assert_eq!(usage(&index), [Some(401 * 6 / 11), None, Some(7)]);
        assert_eq!(index.first(), Some(13));
    }

    #[test]
    fn those_of_a_slot_are_found() {
        let mut index = HeldIndex::default();
        let in_slot = |slot, number| SubscriptionId::new(SlotNumber(slot), number);
        let most = u128::MAX >> 56;
        for (slot, number) in [(1, most), (2, 0), (2, 7), (2, most), (3, 0)] {
            index.held(&in_slot(slot, number), (1, 10), &acme());
        }
        let found: Vec<_> = index.in_slot(SlotNumber(2)).cloned().collect();
        assert_eq!(found, [in_slot(2, 0), in_slot(2, 7), in_slot(2, most)]);
        assert_eq!(index.in_slot(SlotNumber(4)).count(), 0);
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
                        hold(&mut index, n, offset);
                        waiting.insert((n, offset));
                    }
                    Entry::Resumed(n, through) => {
                        let through = through.min(offset);
                        index.resumed(&id(n), through);
                        waiting.retain(|(m, at)| *m != n || *at > through);
                    }
                }
                for (id, waiting) in index.take_changes() {
                    match waiting {
                        Some(waiting) => stored.insert(id, waiting),
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
    }
}
