//! Makes room in the stream of held deliveries before RabbitMQ does, which forgets what is oldest, whosever it is.
//!
//! Once the stream is nearly full, from the first delivery that waits there on, what still waits where it is oldest is
//! put at its end again. But those who have more there than their [share] have the oldest of it given up instead
//! (`overflow`): who fills the stream does not push out what is others'.

use std::collections::HashMap;

use doorbell_common::held::{HeldIndex, Turns, share};
use doorbell_common::ids::Addressee;
use doorbell_common::next_move::DeadReason;
use doorbell_common::work::{Delivery, DeliveryState, Parcel, Work};
use doorbell_platform::broker::Message;
use doorbell_platform::broker::topology::HELD;

use crate::act::dead_letter;
use crate::held::Held;
use crate::pass::{Part, Passed, Whereto};
use crate::resume::{PASS, Resumer};
use crate::schedule::count;

/// It is known to within so many steps how large the stream is.
pub(crate) const STEPS: u64 = 256;
/// Eighths of what the stream may have: with more it is nearly full,
const NEARLY_FULL: u64 = 7;
/// so much of it is left then,
const LEFT: u64 = 6;
/// and so much may wait. The rest is what was handed on, or put at the end again, and is still there.
const WAITING: u64 = 5;

/// How it goes.
#[derive(Debug)]
pub(crate) struct Compaction {
    /// How many bytes of each owner are given up: of those who have more than their share.
    excess: HashMap<Addressee, u64>,
}

impl Compaction {
    /// Whether one that takes so many bytes is given up.
    fn gives_up(&mut self, owner: &Addressee, bytes: u64) -> bool {
        let Some(excess) = self.excess.get_mut(owner).filter(|excess| **excess > 0) else {
            return false;
        };
        *excess = excess.saturating_sub(bytes);
        true
    }
}

impl Resumer {
    /// Whether the stream may be nearly full: from the first delivery on that waited there when that was looked at last.
    pub(crate) fn is_nearly_full(&self, held: &Held) -> bool {
        held.measure.bytes() > NEARLY_FULL * (self.most_bytes / 8)
    }

    /// Makes room, if the stream is nearly full; answers whether there is enough now.
    pub(crate) async fn compact(&self, held: &mut Held) -> anyhow::Result<bool> {
        if self.is_nearly_full(held) {
            // All of it, if nobody has any.
            held.measure.forget_before(held.index.first().unwrap_or(u64::MAX));
        }
        let eighth = self.most_bytes / 8;
        let last = held.measure.last_before(LEFT * eighth).filter(|_| self.is_nearly_full(held));
        let Some(last) = last else { return Ok(true) };
        let turn = Turns::default().next(&held.index, held.index.subscriptions());
        let Some(mut turn) = turn else { return Ok(true) };
        turn.last = turn.last.min(last);
        let excess = share::excess(&held.index.usage(), WAITING * eighth);
        tracing::warn!(
            megabytes = held.measure.bytes() / 1_000_000,
            tenants_beyond_their_share = excess.len(),
            "the stream of held deliveries is nearly full: making room there"
        );
        let whereto = Whereto::End(Compaction { excess });
        let passed = self.hand_on(held, Part { whereto, ..Part::of(turn, PASS) }).await?;
        Ok(passed.is_none_or(|Passed { is_all, .. }| is_all))
    }

    /// Puts deliveries at the stream's end again, but for those that are given up.
    pub(crate) async fn to_the_end(
        &self,
        compaction: &mut Compaction,
        index: &HeldIndex,
        parcels: Vec<(Parcel, u64)>,
    ) -> anyhow::Result<()> {
        let (mut messages, mut moved, mut given_up) = (Vec::new(), 0, 0);
        for (Parcel { event, states }, bytes) in parcels {
            if self.removals.has(&event.tenant, &event.id) {
                self.metrics.removed.inc();
                self.metrics.cancelled(count(states.len()));
                continue;
            }
            let each = bytes / u64::try_from(states.len()).unwrap_or(1).max(1);
            let is_given_up = |state: &DeliveryState| {
                let owner = index.owner(&state.subscription).unwrap_or(&event.tenant);
                compaction.gives_up(owner, each)
            };
            let (dead, kept): (Vec<_>, Vec<_>) = states.into_iter().partition(is_given_up);
            given_up += dead.len();
            for state in dead {
                let delivery = Delivery { event: event.clone(), state };
                messages.push(dead_letter(DeadReason::Overflow, delivery)?);
            }
            if !kept.is_empty() {
                moved += kept.len();
                let kept = Parcel { event, states: kept };
                messages.push(Message::work(HELD, &Work::Parcel(kept).next())?);
            }
        }
        self.publish_all(&messages).await?;
        self.metrics.moved.inc_by(count(moved));
        (0..given_up).for_each(|_| self.metrics.dead(DeadReason::Overflow));
        Ok(())
    }
}
