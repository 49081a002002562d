//! Reads a part of the stream of held deliveries, and hands on what waits there. How far that came is saved as it
//! goes, and noted in the stream itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::held::{HeldIndex, Resumed, Turn};
use doorbell_common::ids::{Addressee, SubscriptionId};
use doorbell_common::time::Timestamp;
use doorbell_common::work::{Bundle, Delivery, DeliveryState, Parcel};
use doorbell_platform::broker::stream::{From, StreamReader};
use doorbell_platform::broker::topology::{HELD, SIDELINE_RETRIES};
use doorbell_platform::broker::{Message, Received};
use futures_util::future::try_join_all;
use tokio::time::Instant;

use crate::compact::Compaction;
use crate::held::{Entry, Held, size_of};
use crate::pace::Pace;
use crate::resume::Resumer;
use crate::schedule::count;

/// How long the stream may say nothing although there is more to read.
const SILENCE: Duration = Duration::from_secs(30);
/// Subscriptions named in one note.
const NAMED_AT_ONCE: usize = 1000;

/// What is to be handed on of the stream.
pub(crate) struct Part {
    pub(crate) turn: Turn,
    /// Only what was held before this time, and nothing after the first that was not.
    pub(crate) held_before: Option<Timestamp>,
    /// For so long; the rest later.
    pub(crate) time: Duration,
    pub(crate) whereto: Whereto,
}

/// Where it goes.
pub(crate) enum Whereto {
    /// To be decided about anew, no faster than others' retries bear.
    Retries,
    /// To the stream's end, or up.
    End(Compaction),
}

impl Part {
    /// All that is read in a turn of this length goes to be decided about anew.
    pub(crate) fn of(turn: Turn, time: Duration) -> Self {
        Self { turn, held_before: None, time, whereto: Whereto::Retries }
    }

    fn goes_on(&self, offset: u64, entry: &Entry) -> bool {
        let is_old = match (entry, self.held_before) {
            (Entry::Held(parcel), Some(before)) => parcel
                .states
                .iter()
                .all(|state| state.held_since.is_none_or(|since| since < before)),
            (Entry::Held(_) | Entry::Resumed(_) | Entry::Foreign, _) => true,
        };
        is_old && offset <= self.turn.last
    }

    /// What is left of a parcel of those whose turn it is, and that still wait.
    fn waiting(&self, mut parcel: Parcel, offset: u64, index: &HeldIndex) -> Option<Parcel> {
        parcel.states.retain(|DeliveryState { subscription, .. }| {
            let span = index.span(subscription);
            let waits = span.is_some_and(|span| span.first <= offset);
            waits && self.turn.ids.contains(subscription)
        });
        (!parcel.states.is_empty()).then_some(parcel)
    }
}

/// What was handed on.
pub(crate) struct Passed {
    /// The last offset that was looked at.
    pub(crate) through: u64,
    /// Whether that is all, or was as much as there was time for.
    pub(crate) is_all: bool,
    /// Whose deliveries there were.
    pub(crate) touched: BTreeSet<SubscriptionId>,
}

impl Resumer {
    /// Hands on what is in this part of the stream, and notes how far that came; nothing, if nothing of it is there.
    pub(crate) async fn hand_on(
        &self,
        held: &mut Held,
        part: Part,
    ) -> anyhow::Result<Option<Passed>> {
        // Before anything follows from the index: it may not be what Redis has any more.
        held.save().await?;
        let from = From::Offset(part.turn.first);
        let mut reader = StreamReader::open(&self.broker, HELD, from).await?;
        let passed = self.pass(held, &mut reader, part).await;
        reader.close().await;
        let passed = passed?;
        if let Some(Passed { through, touched, .. }) = &passed {
            self.note(touched, *through).await?;
        }
        Ok(passed)
    }

    /// Reads on and hands on what belongs to a part of the stream; nothing, if nothing of it does.
    async fn pass(
        &self,
        held: &mut Held,
        reader: &mut StreamReader,
        mut part: Part,
    ) -> anyhow::Result<Option<Passed>> {
        let stop_at = Instant::now() + part.time;
        let (mut passed, mut pace): (Option<Passed>, _) = (None, Pace::default());
        loop {
            let batch = reader.batch(SILENCE).await?;
            let first =
                batch.first().map(Received::stream_offset).context("the stream is silent")?;
            let count = batch.len();
            let entries = batch
                .into_iter()
                .map(|came| (came.stream_offset(), size_of(&came), Entry::read(&came)));
            let entries: Vec<_> =
                entries.take_while(|(offset, _, entry)| part.goes_on(*offset, entry)).collect();
            let through = match entries.last() {
                Some((offset, ..)) => *offset,
                // All that was left of this part is forgotten.
                None if first > part.turn.last => part.turn.last,
                None => return Ok(passed.map(|passed| Passed { is_all: true, ..passed })),
            };
            let is_all = entries.len() < count || through >= part.turn.last;
            let is_end = is_all || Instant::now() >= stop_at;
            let mut parcels = Vec::new();
            for (offset, size, entry) in entries {
                if let Entry::Held(parcel) = entry
                    && let Some(parcel) = part.waiting(parcel, offset, &held.index)
                {
                    parcels.push((parcel, size));
                }
            }
            let ids = parcels.iter().flat_map(|(parcel, _)| &parcel.states);
            let touched: BTreeSet<_> = ids.map(|state| state.subscription.clone()).collect();
            match &mut part.whereto {
                _ if parcels.is_empty() => {}
                Whereto::Retries => {
                    pace.next(reader).await?;
                    self.to_retries(parcels).await?;
                }
                Whereto::End(compaction) => {
                    self.to_the_end(compaction, &held.index, parcels).await?;
                }
            }
            let nothing = Passed { through, is_all, touched: BTreeSet::new() };
            let so_far = passed.get_or_insert(nothing);
            (so_far.through, so_far.is_all) = (through, is_all);
            so_far.touched.extend(touched.iter().cloned());
            if is_end {
                self.tell_forgotten(&held.index, &part.turn, so_far);
            }
            // Only now is everything up to here confirmed.
            for id in &touched {
                held.index.resumed(id, through);
            }
            if is_end {
                // The next turn begins where this one ends, and not where it began.
                for id in &part.turn.ids {
                    held.index.passed(id, through);
                }
            }
            if is_end || !touched.is_empty() {
                held.save().await?;
                anyhow::ensure!(self.lease().await?, "another replica has taken over");
            }
            if is_end {
                return Ok(passed);
            }
        }
    }

    /// Others' retries do not wait behind them.
    async fn to_retries(&self, parcels: Vec<(Parcel, u64)>) -> anyhow::Result<()> {
        let mut resumed = 0;
        let mut of_each: BTreeMap<Addressee, Vec<Delivery>> = BTreeMap::new();
        for (parcel, _) in parcels {
            resumed += parcel.states.len();
            of_each.entry(parcel.event.tenant.clone()).or_default().extend(parcel.deliveries());
        }
        let works = of_each.into_values().flat_map(Bundle::pack);
        let messages = works.map(|work| Message::work(SIDELINE_RETRIES, &work.next()));
        let messages = messages.collect::<anyhow::Result<Vec<Message>>>()?;
        self.publish_all(&messages).await?;
        self.metrics.resumed.inc_by(count(resumed));
        Ok(())
    }

    /// Publishes these until they are confirmed.
    pub(crate) async fn publish_all(&self, messages: &[Message]) -> anyhow::Result<()> {
        try_join_all(messages.iter().map(|message| self.publisher.publish_surely(message))).await?;
        Ok(())
    }

    /// Tells whose deliveries the stream has forgotten, because others have filled it.
    fn tell_forgotten(&self, index: &HeldIndex, turn: &Turn, passed: &Passed) {
        let forgotten = |id: &&SubscriptionId| {
            index.is_forgotten(id, passed.touched.contains(*id), passed.through)
        };
        for id in turn.ids.iter().filter(forgotten) {
            tracing::error!(
                subscription.id = %id,
                "held deliveries are lost: their stream was full, and has forgotten them before their time"
            );
            self.metrics.forgotten.inc();
        }
    }

    /// Notes in the stream how far these were handed on, for whoever makes the index anew.
    async fn note(&self, ids: &BTreeSet<SubscriptionId>, through: u64) -> anyhow::Result<()> {
        let ids: Vec<SubscriptionId> = ids.iter().cloned().collect();
        for named in ids.chunks(NAMED_AT_ONCE) {
            let resumed = Resumed { subscriptions: named.to_vec(), through };
            self.publisher.publish_surely(&Message::resumed(&resumed)?).await?;
        }
        Ok(())
    }
}
