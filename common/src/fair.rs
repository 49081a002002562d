//! A line in which everyone's turn comes as often as everyone else's, however many have lined up
//! behind one of them: each has a line of their own, and these are served in turn. Who is first in a line
//! stays there until all that he came for is served.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::num::NonZeroUsize;

/// Lines by whose they are, served in turn.
#[derive(Clone, Debug)]
pub struct FairLine<K, T> {
    lines: HashMap<K, VecDeque<Lined<T>>>,
    /// Whose turn is next; each who has a line, once.
    turns: VecDeque<K>,
}

#[derive(Clone, Debug)]
struct Lined<T> {
    item: T,
    /// How many turns it still wants.
    turns: NonZeroUsize,
}

impl<K, T> Default for FairLine<K, T> {
    fn default() -> Self {
        Self { lines: HashMap::new(), turns: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, T: Clone> FairLine<K, T> {
    /// Lines up behind those of the same owner, for so many turns.
    pub fn push(&mut self, owner: &K, item: T, turns: NonZeroUsize) {
        let lined = Lined { item, turns };
        if let Some(line) = self.lines.get_mut(owner) {
            line.push_back(lined);
            return;
        }
        self.lines.insert(owner.clone(), VecDeque::from([lined]));
        self.turns.push_back(owner.clone());
    }

    /// How many are in this one's line.
    #[must_use]
    pub fn len_of(&self, owner: &K) -> usize {
        self.lines.get(owner).map_or(0, VecDeque::len)
    }

    /// A turn of the first of whose turn it is, among those who may have one now; the others let it pass.
    pub fn pop(&mut self, may: impl Fn(&K) -> bool) -> Option<(K, T)> {
        let place = self.turns.iter().position(may)?;
        self.turns.rotate_left(place);
        let owner = self.turns.pop_front()?;
        let line = self.lines.get_mut(&owner)?;
        let first = line.front_mut()?;
        let item = first.item.clone();
        match NonZeroUsize::new(first.turns.get() - 1) {
            Some(left) => first.turns = left,
            None => drop(line.pop_front()),
        }
        if line.is_empty() {
            self.lines.remove(&owner);
        } else {
            self.turns.push_back(owner.clone());
        }
        Some((owner, item))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONCE: NonZeroUsize = NonZeroUsize::MIN;

    #[test]
    fn one_who_comes_late_waits_for_one_of_each_only() {
        let mut line = FairLine::default();
        for n in 0..1000 {
            line.push(&"flood", n, ONCE);
        }
        line.push(&"late", 1, ONCE);
        line.push(&"later", 2, ONCE);
        assert_eq!(
            [line.len_of(&"flood"), line.len_of(&"late"), line.len_of(&"none")],
            [1000, 1, 0]
        );
        let order = std::iter::from_fn(|| line.pop(|_| true)).take(4);
        assert_eq!(order.map(|(_, item)| item).collect::<Vec<_>>(), [0, 1, 2, 1]);
        assert_eq!(line.pop(|owner| *owner == "late"), None);
        line.push(&"late", 3, ONCE);
        assert_eq!(line.pop(|owner| *owner == "late"), Some(("late", 3)));
        assert_eq!(line.pop(|_| true), Some(("flood", 2)));
    }

    #[test]
    fn who_is_first_stays_so_until_all_is_served() {
        let mut line = FairLine::default();
        for (owner, item, turns) in [("a", 1, 3), ("a", 2, 1), ("b", 3, 2)] {
            line.push(&owner, item, NonZeroUsize::new(turns).unwrap());
        }
        assert_eq!([line.len_of(&"a"), line.len_of(&"b")], [2, 1]);
        let order: Vec<_> =
            std::iter::from_fn(|| line.pop(|_| true)).map(|(_, item)| item).collect();
        assert_eq!(order, [1, 3, 1, 3, 1, 2]);
    }

    proptest! {
        /// Everyone's items come out in their order, and nobody gets two turns between two of
        /// anyone who waits.
        #[test]
        fn turns_are_fair(owners in prop::collection::vec(0_u8..5, 0..100)) {
            let mut line = FairLine::default();
            let mut left = HashMap::<u8, usize>::new();
            for (n, owner) in owners.iter().enumerate() {
                line.push(owner, (*owner, n), ONCE);
                *left.entry(*owner).or_default() += 1;
            }
            let mut last = HashMap::<u8, usize>::new();
            let mut turns = Vec::new();
            while let Some((owner, (_, n))) = line.pop(|_| true) {
                prop_assert!(last.insert(owner, n).is_none_or(|before| before < n));
                turns.push(owner);
            }
            prop_assert_eq!(turns.len(), owners.len());
            for (i, owner) in turns.iter().enumerate() {
                let waiting = left.values().filter(|left| **left > 0).count();
                let next = turns.iter().skip(i + 1).position(|other| other == owner);
                if let Some(apart) = next {
                    prop_assert!(apart < waiting, "{turns:?}");
                }
                *left.entry(*owner).or_default() -= 1;
            }
        }
    }
}
