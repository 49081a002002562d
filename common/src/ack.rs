//! Which acknowledgements to send for the deliveries of one channel, so that one frame covers as
//! many as it can and never one too many.
//!
//! `multiple` acknowledges everything up to its tag. It is used only up to the end of the
//! contiguous run of settled tags; what is settled beyond a straggler is acknowledged singly, so
//! that one slow delivery does not keep the prefetch window full.

use std::collections::BTreeMap;

/// The tags of one channel: they start at 1 and rise by 1 with each delivery.
#[derive(Debug)]
pub struct AckLedger {
    /// The lowest tag that is not settled.
    next: u64,
    /// Settled tags above it, and whether the broker has been told.
    ahead: BTreeMap<u64, bool>,
}

/// One acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    /// The delivery's tag.
    pub tag: u64,
    /// Whether it stands for every lower tag too.
    pub multiple: bool,
}

impl Default for AckLedger {
    fn default() -> Self {
        Self { next: 1, ahead: BTreeMap::new() }
    }
}

impl AckLedger {
    /// Notes tags that the broker was told of in another way (handed back), which need no
    /// acknowledgement.
    pub fn forget(&mut self, tag: u64) {
        self.ahead.insert(tag, true);
    }

    /// Takes tags whose messages are settled, in any order; answers what to send now.
    pub fn settle(&mut self, tags: &[u64]) -> Vec<Ack> {
        for tag in tags {
            self.ahead.entry(*tag).or_insert(false);
        }
        let mut acks = Vec::new();
        // The highest tag of the contiguous run that the broker still waits for: naming one that
        // it was told of already would close the channel.
        let mut last_open = None;
        while let Some(told) = self.ahead.remove(&self.next) {
            if !told {
                last_open = Some(self.next);
            }
            self.next += 1;
        }
        acks.extend(last_open.map(|tag| Ack { tag, multiple: true }));
        // None but these: behind a message that takes seconds there may be a hundred thousand.
        for tag in tags {
            if let Some(told @ false) = self.ahead.get_mut(tag) {
                *told = true;
                acks.push(Ack { tag: *tag, multiple: false });
            }
        }
        acks
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_contiguous_run_takes_one_frame_and_stragglers_stop_nobody() {
        let mut ledger = AckLedger::default();
        let one = |tag| Ack { tag, multiple: false };
        let upto = |tag| Ack { tag, multiple: true };
        assert_eq!(ledger.settle(&[2, 1, 3]), [upto(3)]);
        assert_eq!(ledger.settle(&[5, 6]), [one(5), one(6)]);
        assert_eq!(ledger.settle(&[4]), [upto(4)]);
        assert_eq!(ledger.settle(&[7]), [upto(7)]);
        ledger.forget(8);
        assert_eq!(ledger.settle(&[]), []);
        assert_eq!(ledger.settle(&[9]), [upto(9)]);
    }

    /// Were what is ahead of the straggler looked at each time, this would take minutes.
    #[test]
    fn a_straggler_makes_nothing_that_comes_later_dearer() {
        const LATER: u64 = 300_000;
        let mut ledger = AckLedger::default();
        for tag in 2..=LATER {
            assert_eq!(ledger.settle(&[tag]), [Ack { tag, multiple: false }]);
        }
        assert_eq!(ledger.settle(&[1]), [Ack { tag: 1, multiple: true }]);
        assert!(ledger.ahead.is_empty());
    }

    proptest! {
        /// A broker of a few lines: refuses an unknown tag, as the real one closes the channel.
        #[test]
        fn the_broker_is_told_of_each_settled_tag_once_and_of_no_other(
            order in Just((1_u64..=60).collect::<Vec<_>>()).prop_shuffle(),
            returned in prop::collection::btree_set(1_u64..=60, 0..10),
            batch in 1_usize..9,
        ) {
            let mut ledger = AckLedger::default();
            let mut open: BTreeSet<u64> = (1..=60).collect();
            let mut settled = BTreeSet::new();
            for tags in order.chunks(batch) {
                let mut acks = Vec::new();
                for tag in tags {
                    settled.insert(*tag);
                    if returned.contains(tag) {
                        open.remove(tag);
                        ledger.forget(*tag);
                    }
                }
                let mine: Vec<u64> = tags.iter().copied().filter(|tag| !returned.contains(tag)).collect();
                acks.extend(ledger.settle(&mine));
                for ack in acks {
                    prop_assert!(open.contains(&ack.tag), "unknown tag {ack:?}");
                    let covered: Vec<u64> = if ack.multiple { open.range(..=ack.tag).copied().collect() } else { vec![ack.tag] };
                    for tag in covered {
                        prop_assert!(settled.contains(&tag), "{ack:?} covers {tag}");
                        open.remove(&tag);
                    }
                }
                // Nothing that is settled is kept from the broker.
                prop_assert!(open.intersection(&settled).next().is_none());
            }
            prop_assert!(open.is_empty());
        }
    }
}
