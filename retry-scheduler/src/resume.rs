//! Lets held deliveries flow again once their subscription is back, and gives them up where it stays away.
//!
//! The [index](crate::held) says which subscriptions have deliveries in the stream, and where. For
//! those that are no longer suspended the stream is read from there, and each of their deliveries
//! is handed to `doorbell.retries`, where the usual decision is made about it. What others have between
//! its deliveries may be long, so they read in [turns](Turns). How far that has come is saved as it goes, and
//! noted in the stream itself, from which the index can be made anew. Each hand-off has its deterministic
//! name, so reading twice does no harm.
//!
//! A stream forgets without a word. So what has been held for too long is handed on, too, while it is still
//! there: the same decision gives it up.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::held::{HeldIndex, Resumed, Turn, Turns};
use doorbell_common::ids::SubscriptionId;
use doorbell_common::subscription::Standing;
use doorbell_common::time::Timestamp;
use doorbell_common::work::{DeliveryState, Work};
use doorbell_platform::broker::stream::{From, StreamReader};
use doorbell_platform::broker::topology::{HELD, RETRIES};
use doorbell_platform::broker::{Broker, Message, Publisher, Received};
use doorbell_platform::clock;
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use doorbell_platform::store::lease::Lease;
use doorbell_platform::store::snapshots::{Changed, Snapshots};
use tokio::time::Instant;

use crate::held::{Entry, Held};
use crate::metrics::Metrics;
use crate::pace::Pace;

/// How often to look who is back.
const EVERY: Duration = Duration::from_secs(5);
/// After so long without a sign another replica takes over.
const LEASE: Duration = Duration::from_secs(15);
/// How often to look what has been held for too long.
const EXPIRE_EVERY: Duration = Duration::from_secs(3600);
/// How long a silent stream is believed; then a mark is put there, which shows whether it is still the same.
const BELIEVED: Duration = Duration::from_secs(60);
/// How long to read before looking again who is back.
const PASS: Duration = Duration::from_secs(10);
/// How long to read for one before it is the next one's turn.
const TURN: Duration = Duration::from_secs(2);
/// How long to read what is new before reading on for who is back.
const CATCH_UP: Duration = Duration::from_secs(2);
/// Hand-offs in flight at once.
const AT_ONCE: usize = 100;
/// How long the stream may say nothing although there is more to read.
const SILENCE: Duration = Duration::from_secs(30);
/// Subscriptions looked up at once.
const LOOKED_UP_AT_ONCE: usize = 1000;
/// Subscriptions named in one note.
const NAMED_AT_ONCE: usize = 1000;

/// The job that lets held deliveries flow again, and gives up those that have waited for too long.
#[derive(Debug)]
pub(crate) struct Resumer {
    pub(crate) broker: Broker,
    pub(crate) publisher: Publisher,
    pub(crate) store: Store,
    pub(crate) snapshots: Snapshots,
    pub(crate) metrics: Metrics,
    /// How long a delivery is held.
    pub(crate) expire_after: Duration,
    /// Who we are, for the lease.
    pub(crate) owner: String,
}

/// What is to be handed on of the stream.
struct Part {
    turn: Turn,
    /// Only what was held before this time, and nothing after the first that was not.
    held_before: Option<Timestamp>,
    /// Until this time; the rest later.
    stop_at: Instant,
}

impl Part {
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
}

/// What was handed on.
struct Passed {
    /// The last offset that was looked at.
    through: u64,
    /// Whether that is all, or was as much as there was time for.
    is_all: bool,
    /// Whose deliveries there were.
    touched: BTreeSet<SubscriptionId>,
}

/// Who is back, as far as was looked, and whose turn it is.
#[derive(Default)]
struct Back {
    ids: BTreeSet<SubscriptionId>,
    turns: Turns,
}

impl Resumer {
    /// Takes its turn among the replicas, again and again, until the service is told to stop.
    pub(crate) async fn resume(self, shutdown: Shutdown) {
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut expire_at = Instant::now();
        while shutdown.until(tick.tick()).await.is_some() {
            if !self.store.is_up() {
                continue;
            }
            let mut held = None;
            let turn = self.take_turn(&mut held, &mut expire_at);
            if let Some(Err(error)) = shutdown.until(turn).await {
                let error = sentence(&error);
                tracing::warn!(error, "held deliveries are not watched over; trying again");
            }
            if let Some(held) = held {
                held.close().await;
            }
        }
    }

    /// Watches over the held deliveries for as long as the lease is ours. What is opened for that is left to
    /// be closed, however this ends.
    async fn take_turn(
        &self,
        held: &mut Option<Held>,
        expire_at: &mut Instant,
    ) -> anyhow::Result<()> {
        if !self.lease().await? {
            return Ok(());
        }
        let held =
            held.insert(Held::open(&self.broker, &self.publisher, self.store.clone()).await?);
        let (mut look_at, mut last_came) = (Instant::now() + EVERY, Instant::now());
        // All that is in the index is news at first, so nothing is missed of what changed before.
        let mut back = Back::default();
        loop {
            if last_came.elapsed() >= BELIEVED {
                held.prove(&self.publisher).await?;
                last_came = Instant::now();
            }
            if held.follow(look_at.saturating_duration_since(Instant::now())).await? {
                last_came = Instant::now();
            }
            if Instant::now() < look_at {
                continue;
            }
            if !self.lease().await? {
                return Ok(());
            }
            let is_all = self.look(held, &mut back).await?;
            let again_at = Instant::now() + if is_all { EVERY } else { CATCH_UP };
            if *expire_at <= Instant::now() {
                let is_all = self.expire(held).await?;
                let pause = (self.expire_after / 100).clamp(EVERY, EXPIRE_EVERY);
                *expire_at = Instant::now() + if is_all { pause } else { EVERY };
            }
            look_at = again_at;
        }
    }

    async fn lease(&self) -> anyhow::Result<bool> {
        Ok(self.store.lease(Lease::Held, &self.owner, LEASE).await?)
    }

    /// Looks who is back, and hands their deliveries on; answers whether that was all.
    async fn look(&self, held: &mut Held, back: &mut Back) -> anyhow::Result<bool> {
        self.look_who_is_back(held, &mut back.ids).await?;
        let (stop_at, mut touched) = (Instant::now() + PASS, BTreeSet::new());
        let mut is_all = false;
        while !is_all && Instant::now() < stop_at {
            let passed = match back.turns.next(&held.index, &back.ids) {
                Some(turn) => self.hand_on(held, turn, None, TURN).await?,
                None => None,
            };
            match passed {
                Some(passed) => touched.extend(passed.touched),
                // Nobody has anything any more.
                None => is_all = true,
            }
        }
        if !touched.is_empty() {
            tracing::info!(subscriptions = touched.len(), "held deliveries flow again");
        }
        Ok(is_all)
    }

    /// Looks who is no longer suspended, of those that are new to the index or may have changed: all may be a
    /// million.
    async fn look_who_is_back(
        &self,
        held: &mut Held,
        back: &mut BTreeSet<SubscriptionId>,
    ) -> anyhow::Result<()> {
        let mut asked = held.take_news();
        match self.snapshots.take_changed() {
            Changed::Everything => asked.extend(held.index.subscriptions().cloned()),
            Changed::Slots(slots) => {
                asked.extend(slots.into_iter().flat_map(|slot| held.index.in_slot(slot)).cloned());
            }
        }
        let asked: Vec<SubscriptionId> = asked.into_iter().collect();
        for ids in asked.chunks(LOOKED_UP_AT_ONCE) {
            for (id, known) in self.snapshots.get_all(ids.to_vec()).await? {
                match known.standing() {
                    Standing::Suspended(_) | Standing::Missing => back.remove(&id),
                    Standing::Active(_) | Standing::Cancelled => back.insert(id),
                };
            }
        }
        back.retain(|id| held.index.span(id).is_some());
        Ok(())
    }

    /// Hands on what has been held for too long: it is given up, unless its subscription is back. Answers
    /// whether that was all.
    async fn expire(&self, held: &mut Held) -> anyhow::Result<bool> {
        // Somewhat longer: whoever decides about them may have another clock.
        let before = clock::now().minus(self.expire_after + self.expire_after / 100);
        let turn = Turns::default().next(&held.index, held.index.subscriptions());
        let Some(turn) = turn else { return Ok(true) };
        let Some(passed) = self.hand_on(held, turn, Some(before), PASS).await? else {
            return Ok(true);
        };
        if !passed.touched.is_empty() {
            let subscriptions = passed.touched.len();
            tracing::info!(subscriptions, "deliveries were held for too long");
        }
        Ok(passed.is_all)
    }

    /// Hands on what is in this part of the stream, or what of it was held before a time, for so long at most,
    /// and notes how far that came.
    async fn hand_on(
        &self,
        held: &mut Held,
        turn: Turn,
        held_before: Option<Timestamp>,
        time: Duration,
    ) -> anyhow::Result<Option<Passed>> {
        // Before anything follows from the index: it may not be what Redis has any more.
        held.save().await?;
        let mut reader = StreamReader::open(&self.broker, HELD, From::Offset(turn.first)).await?;
        let part = Part { turn, held_before, stop_at: Instant::now() + time };
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
        part: Part,
    ) -> anyhow::Result<Option<Passed>> {
        let (mut passed, mut pace): (Option<Passed>, _) = (None, Pace::default());
        loop {
            let batch = reader.batch(AT_ONCE, SILENCE).await?;
            let first =
                batch.first().map(Received::stream_offset).context("the stream is silent")?;
            let entries = batch.iter().map(|came| (came.stream_offset(), Entry::read(came)));
            let entries: Vec<_> =
                entries.take_while(|(offset, entry)| part.goes_on(*offset, entry)).collect();
            let through = match entries.last() {
                Some((offset, _)) => *offset,
                // All that was left of this part is forgotten.
                None if first > part.turn.last => part.turn.last,
                None => return Ok(passed.map(|passed| Passed { is_all: true, ..passed })),
            };
            let is_all = entries.len() < batch.len() || through >= part.turn.last;
            let is_end = is_all || Instant::now() >= part.stop_at;
            let (mut messages, mut resumed) = (Vec::new(), 0);
            let mut touched = BTreeSet::new();
            for (offset, entry) in entries {
                let Entry::Held(mut parcel) = entry else { continue };
                parcel.states.retain(|DeliveryState { subscription, .. }| {
                    let span = held.index.span(subscription);
                    let waits = span.is_some_and(|span| span.first <= offset);
                    waits && part.turn.ids.contains(subscription)
                });
                if parcel.states.is_empty() {
                    continue;
                }
                resumed += parcel.states.len();
                touched.extend(parcel.states.iter().map(|state| state.subscription.clone()));
                messages.push(Message::work(RETRIES, &Work::Parcel(parcel).next())?);
            }
            if !messages.is_empty() {
                pace.next(reader).await?;
            }
            let handing_on = messages.iter().map(|message| self.publisher.publish_surely(message));
            futures_util::future::try_join_all(handing_on).await?;
            self.metrics.resumed.inc_by(u64::try_from(resumed)?);
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
