//! Follows the stream of held deliveries and keeps the index of it: who has deliveries there, and
//! where. One replica at a time does, by a lease; should two, only one can save.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::held::{HeldIndex, Measure, Resumed};
use doorbell_common::ids::SubscriptionId;
use doorbell_common::wire;
use doorbell_common::work::{DeliveryState, Parcel, Work};
use doorbell_platform::broker::stream::{From, StreamReader};
use doorbell_platform::broker::topology::HELD;
use doorbell_platform::broker::{Broker, Message, Publisher, Received};
use doorbell_platform::store::Store;
use doorbell_platform::store::held::{Place, SavedHeld};

/// How long a stream may take to show the message that was just put there.
const SILENCE: Duration = Duration::from_secs(10);
/// What a message takes of the stream beside its body, at most: its properties, and what RabbitMQ adds.
const BESIDE: u64 = 512;

/// How many bytes of the stream a message takes, about.
pub(crate) fn size_of(received: &Received) -> u64 {
    u64::try_from(received.body.len()).unwrap_or(u64::MAX).saturating_add(BESIDE)
}

/// What stands in the stream.
pub(crate) enum Entry {
    Held(Parcel),
    Resumed(Resumed),
    /// Not ours to understand.
    Foreign,
}

impl Entry {
    pub(crate) fn read(received: &Received) -> Self {
        if let Some(resumed) = received.resumed() {
            return Self::Resumed(resumed);
        }
        match wire::decode(&received.body) {
            Ok(Work::Parcel(parcel)) => Self::Held(parcel),
            Ok(Work::Event(_) | Work::Page(_) | Work::Bundle(_)) | Err(_) => Self::Foreign,
        }
    }
}

/// The index, as far as the stream was read.
#[derive(Debug)]
pub(crate) struct Held {
    store: Store,
    tail: StreamReader,
    pub(crate) index: HeldIndex,
    /// How large the stream is, from the first that may wait there.
    pub(crate) measure: Measure,
    /// Those that are new to the index here.
    news: BTreeSet<SubscriptionId>,
    place: Option<Place>,
    version: String,
}

impl Held {
    /// Goes on where the last one stopped reading, or begins at the stream's start. Its size is known to within a
    /// `step` of bytes.
    pub(crate) async fn open(
        broker: &Broker,
        publisher: &Publisher,
        store: Store,
        step: u64,
    ) -> anyhow::Result<Self> {
        let SavedHeld { index, place, measure, version } = store.held().await?;
        mark(publisher).await?;
        let news = index.subscriptions().cloned().collect();
        let afresh = || Measure::new(step);
        let Some(known) = place else {
            let tail = StreamReader::open(broker, HELD, From::First).await?;
            return Ok(Self { store, tail, index, measure: afresh(), news, place: None, version });
        };
        let mut tail = StreamReader::open(broker, HELD, From::Offset(known.offset)).await?;
        let first = tail.one(SILENCE).await?;
        let found = first.as_ref().map(place_of);
        // An offset beyond the known one: what stood there has aged out.
        let same = |found: &Place| *found == known || found.offset > known.offset;
        if found.is_some_and(|found| same(&found)) {
            let measure = measure.map_or_else(afresh, |known| known.with_step(step));
            let mut held = Self { store, tail, index, measure, news, place: Some(known), version };
            held.fold(first.as_slice())?;
            return Ok(held);
        }
        tail.close().await;
        tracing::warn!(
            "the stream of held deliveries is not the one that it was: reading it from its start"
        );
        let tail = StreamReader::open(broker, HELD, From::First).await?;
        let mut held = Self { store, tail, index, measure: afresh(), news, place: None, version };
        let gone: Vec<SubscriptionId> = held.index.subscriptions().cloned().collect();
        for id in gone {
            held.index.resumed(&id, u64::MAX);
        }
        Ok(held)
    }

    /// Reads what is new, waits so long for something, and saves what that changes; answers
    /// whether anything was new.
    pub(crate) async fn follow(&mut self, patience: Duration) -> anyhow::Result<bool> {
        let batch = self.tail.batch(patience).await?;
        if batch.is_empty() {
            return Ok(false);
        }
        self.fold(&batch)?;
        self.save().await?;
        Ok(true)
    }

    /// Makes sure that the stream still is the one that is read: what is put there comes.
    pub(crate) async fn prove(&mut self, publisher: &Publisher) -> anyhow::Result<()> {
        mark(publisher).await?;
        anyhow::ensure!(self.follow(SILENCE).await?, "what is put into the stream does not come");
        Ok(())
    }

    /// Those that have come into the index since this was last asked; all of them, the first time.
    pub(crate) fn take_news(&mut self) -> BTreeSet<SubscriptionId> {
        std::mem::take(&mut self.news)
    }

    fn fold(&mut self, batch: &[Received]) -> anyhow::Result<()> {
        for received in batch {
            let place = place_of(received);
            // The message where we stopped comes once more.
            if self.place.as_ref() == Some(&place) {
                continue;
            }
            let goes_on = self.place.as_ref().is_none_or(|known| known.offset < place.offset);
            anyhow::ensure!(goes_on, "the stream is another one");
            let size = size_of(received);
            self.measure.add(place.offset, size);
            match Entry::read(received) {
                Entry::Held(Parcel { event, states }) => {
                    let each = size / u64::try_from(states.len()).unwrap_or(1);
                    for DeliveryState { subscription, .. } in &states {
                        if self.index.span(subscription).is_none() {
                            self.news.insert(subscription.clone());
                        }
                        self.index.held(subscription, (place.offset, each), &event.tenant);
                    }
                }
                Entry::Resumed(resumed) => {
                    for id in &resumed.subscriptions {
                        self.index.resumed(id, resumed.through);
                    }
                }
                Entry::Foreign => {}
            }
            self.place = Some(place);
        }
        Ok(())
    }

    /// Saves what has changed since the last time.
    pub(crate) async fn save(&mut self) -> anyhow::Result<()> {
        let Some(place) = &self.place else { return Ok(()) };
        let changes = self.index.take_changes();
        let read = (place, &self.measure);
        let saved = self.store.save_held(&self.version, read, &changes).await?;
        self.version = saved.context("the index of held deliveries is not as we left it")?;
        Ok(())
    }

    pub(crate) async fn close(self) {
        self.tail.close().await;
    }
}

/// Puts a mark into the stream, so that something comes in any case.
async fn mark(publisher: &Publisher) -> anyhow::Result<()> {
    Ok(publisher.publish_surely(&Message::resumed(&Resumed::default())?).await?)
}

fn place_of(received: &Received) -> Place {
    let message_id = received.properties.message_id().as_ref();
    let message_id = message_id.map(|id| id.as_str().to_owned()).unwrap_or_default();
    Place { offset: received.stream_offset(), message_id }
}
