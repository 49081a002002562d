//! Whose turn it is to have the stream of held deliveries read for them.

use std::collections::{BTreeMap, BTreeSet};

use super::{HeldIndex, Span};
use crate::ids::SubscriptionId;

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::held::tests::{hold, id};

    #[test]
    fn nobody_waits_until_all_that_another_has_is_read() {
        let mut index = HeldIndex::default();
        for (number, offset) in [(1, 5), (2, 8), (3, 1000), (1, 2000), (3, 1010)] {
            hold(&mut index, number, offset);
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

    proptest! {
        #[test]
        fn whoever_is_back_has_a_turn_and_turns_end(
            stands in prop::collection::vec(0_u8..4, 0..40), read_in_a_turn in 1_u64..20, back in prop::collection::btree_set(0_u8..4, 1..4),
        ) {
            let mut index = HeldIndex::default();
            for (offset, n) in (0_u64..).zip(&stands) {
                hold(&mut index, *n, offset);
            }
            let back: BTreeSet<SubscriptionId> = back.into_iter().map(id).collect();
            let mut turns = Turns::default();
            let mut missing: BTreeSet<_> = back.iter().filter(|id| index.span(id).is_some()).collect();
            for number in 0.. {
                prop_assert!(number <= 2 * stands.len(), "no end");
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
