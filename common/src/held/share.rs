//! How much of what there is room for each may have.

use std::collections::HashMap;
use std::hash::Hash;

/// The most that each may have, so that all together have no more than there is room for: who has less than that keeps
/// all of it, and what these leave is the others' in equal parts (max-min fairness).
#[must_use]
pub fn fair_share(has: impl IntoIterator<Item = u64>, room: u64) -> u64 {
    let mut has: Vec<u64> = has.into_iter().collect();
    has.sort_unstable();
    let (mut left, mut others) = (room, u64::try_from(has.len()).unwrap_or(u64::MAX));
    for one in has {
        let each = left / others.max(1);
        if one > each {
            return each;
        }
        left -= one;
        others -= 1;
    }
    u64::MAX
}

/// How much more than their share those have who have more.
#[must_use]
pub fn excess<K: Clone + Eq + Hash>(has: &HashMap<K, u64>, room: u64) -> HashMap<K, u64> {
    let share = fair_share(has.values().copied(), room);
    let beyond = has.iter().filter(|(_, has)| **has > share);
    beyond.map(|(who, has)| (who.clone(), has - share)).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_has_little_keeps_it() {
        for (has, room, share) in [
            (vec![], 100, u64::MAX),
            (vec![100], 100, u64::MAX),
            (vec![101], 100, 100),
            (vec![1000, 5, 10], 100, 85),
            (vec![1000, 45, 10, 800], 100, 30),
            (vec![60, 60], 100, 50),
            (vec![1, 1, 1], 2, 0),
        ] {
            assert_eq!(fair_share(has.clone(), room), share, "{has:?}");
        }
        let has = HashMap::from([("flood", 1000), ("other", 5)]);
        assert_eq!(excess(&has, 100), HashMap::from([("flood", 905)]));
        assert_eq!(excess(&has, 2000), HashMap::new());
    }

    proptest! {
        #[test]
        fn all_together_have_what_there_is_room_for(
            has in prop::collection::vec(0_u64..1000, 0..50), room in 0_u64..10_000,
        ) {
            let share = fair_share(has.iter().copied(), room);
            let kept: u64 = has.iter().map(|one| (*one).min(share)).sum();
            prop_assert!(kept <= room);
            let (all, people) = (has.iter().sum::<u64>(), u64::try_from(has.len()).unwrap());
            // Nothing is left that one could have had, but for what cannot be parted.
            prop_assert!(kept == all || kept + people > room);
        }
    }
}
