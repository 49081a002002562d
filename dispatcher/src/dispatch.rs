//! Takes messages in, works on each in a task of its own, and settles it once everything that
//! follows from it is confirmed.
//!
//! Trouble of our own (RabbitMQ, Redis) never spends a message: it stays in hand and is tried
//! again, and what waits for Redis is [moved aside](crate::unknown).

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use doorbell_common::event::Event;
use doorbell_common::ids::{Addressee, TenantId};
use doorbell_common::work::{DueEvent, Page, Work};
use doorbell_platform::broker::topology::{TESTS, lane_of};
use doorbell_platform::broker::{Incoming, Intake, Message, Publisher, Received};
use doorbell_platform::catalogue::{Judge, Judgement};
use doorbell_platform::clock;
use doorbell_platform::limits::Limits as TenantLimits;
use doorbell_platform::patience::before_handing_back;
use doorbell_platform::permits::{Permit, Permits};
use doorbell_platform::removals::Removals;
use doorbell_platform::seldom::Seldom;
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use doorbell_platform::store::notes::{Note, Taken};
use doorbell_platform::store::snapshots::Snapshots;
use doorbell_platform::workshop::Workshop;
use tokio::sync::Mutex;

use crate::gates::Gates;
use crate::hand::Hand;
use crate::ledger::{Ledger, LedgerPage};
use crate::limits::Limits;
use crate::metrics::{Final, Metrics};
use crate::outbox::Outbox;
use crate::recorder::Recorder;
use crate::sender::Sender;
use crate::serve::Came;
use crate::understand::{Identity, Load, Task, understand};
use crate::working::Working;

/// A message that came so often without an end is worked alone: it may be what ends us.
const SUSPECT_AFTER: u64 = 3;

/// How long a suspect message is worked alone. Not long: after hours without Redis all that was in hand is suspect, and
/// whatever waits for an endpoint takes all of this time.
const DANGEROUS: Duration = Duration::from_millis(200);

/// How often it is told that messages are rejected: how many are, the metrics say.
const REJECTED_TOLD_EACH: Duration = Duration::from_secs(1);

/// Everything that a message's task needs.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    pub(crate) publisher: Publisher,
    pub(crate) store: Store,
    pub(crate) snapshots: Snapshots,
    pub(crate) sender: Sender,
    pub(crate) recorder: Recorder,
    pub(crate) outbox: Outbox,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
    pub(crate) gates: Gates,
    pub(crate) limits: Limits,
    pub(crate) working: Working,
    /// One permit for each POST that may be in flight and is not slow.
    pub(crate) posts: Permits<Addressee>,
    /// One permit for each that may be in flight and is.
    pub(crate) slow_posts: Permits<Addressee>,
    /// One permit for each page that may be begun.
    pub(crate) pages: Permits<Addressee>,
    /// Where templates are rendered.
    pub(crate) workshop: Workshop<TenantId>,
    /// Where filters are asked that take long.
    pub(crate) filters: Workshop<TenantId>,
    pub(crate) ledger: Ledger,
    /// Held while a suspect message is worked.
    pub(crate) alone: Mutex<()>,
    pub(crate) judge: Judge,
    pub(crate) tenant_limits: TenantLimits,
    pub(crate) removals: Removals,
    pub(crate) max_event_bytes: usize,
    pub(crate) duplicate_window: Duration,
    /// Who we say that we are when we ask an endpoint whether it takes POSTs from us.
    pub(crate) origin: String,
}

/// What is left of the work on a message, until it is acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Pages of the ledger, which nobody will read any more.
    pub(crate) pages: Vec<LedgerPage>,
    /// The permit of the one POST that was made: should we end before, it is made again, and there may be no
    /// more of these than permits.
    pub(crate) permit: Option<Permit<Addressee>>,
}

impl Left {
    /// The message is acknowledged.
    fn end(self) {
        self.pages.into_iter().for_each(LedgerPage::close);
    }
}

/// How the work on a message ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// What follows from it is confirmed, or nothing does.
    Finished(Option<Left>),
    /// It was not begun, because the service is stopping, or not all of it, because RabbitMQ has taken it back.
    NotBegun,
    /// It can't be: what follows from it cannot be written at all.
    Stuck,
}

impl FromIterator<Self> for Done {
    /// How the work on a message ended whose parts ended like this. If one of them is not finished, all pages of the
    /// ledger will be read again.
    fn from_iter<I: IntoIterator<Item = Self>>(parts: I) -> Self {
        let (mut left, mut unfinished) = (Left::default(), None);
        for part in parts {
            match part {
                Self::Finished(Some(Left { pages, permit })) => {
                    left.pages.extend(pages);
                    left.permit = left.permit.or(permit);
                }
                Self::Finished(None) => {}
                Self::NotBegun => {
                    unfinished.get_or_insert(Self::NotBegun);
                }
                Self::Stuck => unfinished = Some(Self::Stuck),
            }
        }
        unfinished.unwrap_or(Self::Finished(Some(left)))
    }
}

impl Dispatcher {
    /// Takes messages in until the service is told to stop, and finishes what it has begun.
    pub(crate) async fn dispatch(self: Arc<Self>, intake: Intake) {
        intake
            .for_each(|incoming| {
                let dispatcher = Arc::clone(&self);
                async move { dispatcher.settle(incoming).await }
            })
            .await;
    }

    /// Works on one message and settles it.
    async fn settle(&self, incoming: Incoming) {
        let Incoming { queue, received, settle } = incoming;
        let suspect = received.delivery_count() >= SUSPECT_AFTER;
        let done = {
            let hand = Hand::new(&settle);
            let working = std::pin::pin!(self.take_up(&queue, received, &hand));
            if suspect { self.work_alone(working).await } else { working.await }
        };
        match done {
            Done::Finished(None) => settle.ack(),
            Done::Finished(Some(left)) => settle.ack_and(Box::new(move || left.end())),
            Done::NotBegun => settle.requeue(),
            Done::Stuck => {
                before_handing_back(&self.shutdown).await;
                settle.requeue();
            }
        }
    }

    /// Works on a suspect message while no other suspect is worked on: if it ends us, the count of
    /// the others does not rise with it. One that outlives its first moments is no danger.
    async fn work_alone(&self, mut working: Pin<&mut impl Future<Output = Done>>) -> Done {
        let alone = self.alone.lock().await;
        match tokio::time::timeout(DANGEROUS, &mut working).await {
            Ok(done) => done,
            Err(_) => {
                drop(alone);
                working.await
            }
        }
    }

    async fn take_up(&self, queue: &str, received: Received, hand: &Hand<'_>) -> Done {
        if *queue == *TESTS {
            hand.expect(1);
            self.serve_errand(&received, &hand.begin()).await;
            return Done::Finished(None);
        }
        self.work(queue, received, hand).await
    }

    async fn work(&self, queue: &str, received: Received, hand: &Hand<'_>) -> Done {
        if self.shutdown.is_stopping() {
            return Done::NotBegun;
        }
        let understood = understand(queue, &received, self.max_event_bytes, clock::now());
        let judged = understood.and_then(|understood| self.judge(understood, &received));
        let (task, identity) = match judged {
            Ok(judged) => judged,
            Err(reason) => return self.reject(received, &reason).await,
        };
        let Some(task) = self.without_removed(task) else { return Done::Finished(None) };
        let notes = self.notes(&identity);
        let taken = self.store.take_all(&notes, received.arrival()).await;
        self.count_copies(&identity, &taken);
        let Some(task) = task.without_copies(&taken) else { return Done::Finished(None) };
        let (lane, redelivered) = (lane_of(queue), received.redelivered);
        // What was understood has the event's data, too, and may be in hand for long.
        drop(received);
        let came = Came { lane, redelivered, hand, notes: &notes };
        let done = match task {
            Task::HandOn(work, to) => to_done(self.outbox.hand_on(work, to).await),
            Task::FanOut(due) => self.serve_event(due, came).await,
            Task::Page(page) => self.serve_page(page, came).await,
            Task::Deliver(loads) => self.serve_loads(loads, came).await,
        };
        if let Done::Finished(_) = &done {
            self.store.finish_all(&notes, &taken).await;
        }
        done
    }

    /// What is left of a task without events that were removed.
    fn without_removed(&self, task: Task) -> Option<Task> {
        let is_left = |event: &Event| self.removals.spare(event, &self.metrics.removed);
        let is_load_left = |Load { parcel, .. }: &Load| {
            let is_left = is_left(&parcel.event);
            if !is_left {
                parcel.states.iter().for_each(|_| self.metrics.ended(Final::Cancelled));
            }
            is_left
        };
        match task {
            Task::Deliver(mut loads) => {
                loads.retain(is_load_left);
                (!loads.is_empty()).then_some(Task::Deliver(loads))
            }
            Task::FanOut(DueEvent { ref event, .. }) | Task::Page(Page { ref event, .. }) => {
                is_left(event).then_some(task)
            }
            Task::HandOn(ref work, _) => is_left(work.first_event()).then_some(task),
        }
    }

    fn count_copies(&self, identity: &Identity, taken: &[Taken]) {
        let copies = taken.iter().filter(|taken| **taken == Taken::Copy).count();
        let counter = match identity {
            Identity::Work(_) => &self.metrics.copies,
            Identity::Event(_) | Identity::Unique => &self.metrics.duplicate,
        };
        counter.inc_by(u64::try_from(copies).unwrap_or(u64::MAX));
    }

    /// Whether an event may go on: not one to which the catalogue objects, or that is too large for its tenant, and may
    /// be published anew under the same id. What the producer has accepted, and what is on its way already, is not
    /// judged again.
    fn judge(
        &self,
        (task, identity): (Task, Identity),
        received: &Received,
    ) -> Result<(Task, Identity), String> {
        let event = match &task {
            Task::FanOut(due) | Task::HandOn(Work::Event(due), _) => &due.event,
            Task::HandOn(..) | Task::Page(_) | Task::Deliver(_) => return Ok((task, identity)),
        };
        if received.is_work() || received.is_judged() {
            return Ok((task, identity));
        }
        if !self.tenant_limits.of(&event.tenant).allows_bytes(event.data.len()) {
            return Err(format!(
                "data is {} bytes, more than this tenant's events may have",
                event.data.len()
            ));
        }
        match self.judge.judge(&event.event_type, &event.data) {
            Judgement::Good | Judgement::Warned(_) => Ok((task, identity)),
            Judgement::Refused(objection) => Err(objection.to_string()),
        }
    }

    fn notes(&self, identity: &Identity) -> Vec<Note> {
        match identity {
            Identity::Event(event) => {
                vec![self.store.event_note(&event.tenant, &event.id, self.duplicate_window)]
            }
            Identity::Work(hand_offs) => {
                hand_offs.iter().map(|hand_off| self.store.work_note(hand_off)).collect()
            }
            Identity::Unique => Vec::new(),
        }
    }

    async fn reject(&self, received: Received, reason: &str) -> Done {
        static TOLD: Seldom = Seldom::each(REJECTED_TOLD_EACH);
        if TOLD.is_time() {
            tracing::info!(reason, routing_key = received.routing_key, "message rejected");
        }
        self.metrics.rejected.inc();
        to_done(
            self.publisher
                .publish_surely(&Message::rejected(received, reason))
                .await
                .map_err(Into::into),
        )
    }
}

/// A failure that is not waiting for anything better: a message that cannot be written at all.
pub(crate) fn to_done(result: anyhow::Result<()>) -> Done {
    match result {
        Ok(()) => Done::Finished(None),
        Err(error) => {
            tracing::error!(error = sentence(&error), "a message cannot be settled");
            Done::Stuck
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_finished_once_all_parts_are() {
        let finished = || Done::Finished(None);
        for (parts, expected) in [
            (vec![], "finished"),
            (vec![finished(), Done::Finished(Some(Left::default()))], "finished"),
            (vec![finished(), Done::NotBegun, finished()], "not begun"),
            (vec![Done::NotBegun, Done::Stuck], "stuck"),
            (vec![Done::Stuck, Done::NotBegun, finished()], "stuck"),
        ] {
            let name = match parts.into_iter().collect() {
                Done::Finished(_) => "finished",
                Done::NotBegun => "not begun",
                Done::Stuck => "stuck",
            };
            assert_eq!(name, expected);
        }
    }
}
