//! Takes messages in, works on each in a task of its own, and settles it once everything that
//! follows from it is confirmed.
//!
//! Trouble of our own (RabbitMQ, Redis) never spends a message: it stays in hand and is tried
//! again, and after minutes its channel is closed so that another replica may have it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use doorbell_common::event::Event;
use doorbell_common::fan_out::{self, PAGE, SlotRange};
use doorbell_common::ids::{Addressee, SubscriptionId, TenantId};
use doorbell_common::sideline;
use doorbell_common::work::{DeliveryState, DueEvent, Page, Parcel, Work};
use doorbell_platform::broker::topology::{DELIVERIES, PAGES, RETRIES, SIDELINE_PAGES, TESTS};
use doorbell_platform::broker::{Incoming, Intake, Message, Publisher, Received};
use doorbell_platform::catalogue::{Judge, Judgement};
use doorbell_platform::clock;
use doorbell_platform::limits::Limits as TenantLimits;
use doorbell_platform::patience::{Unanswered, patiently};
use doorbell_platform::permits::Permits;
use doorbell_platform::removals::Removals;
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use doorbell_platform::store::notes::{Note, Taken};
use doorbell_platform::store::snapshots::{Known, Matching, Snapshots};
use doorbell_platform::workshop::Workshop;
use futures_util::future::try_join_all;
use tokio::sync::Mutex;

use crate::fan_out::Target;
use crate::filtering::{Found, any_has_filter, takes_long};
use crate::gates::Gates;
use crate::ledger::{Ledger, LedgerPage};
use crate::limits::Limits;
use crate::metrics::Metrics;
use crate::recorder::Recorder;
use crate::sender::Sender;
use crate::served::Served;
use crate::understand::{Destination, Identity, Lane, Task, understand};
use crate::working::Working;

/// A message that came so often without an end is worked alone: it may be what ends us.
const SUSPECT_AFTER: u64 = 3;

/// Pages of one event that wait for their confirm at once.
const PAGES_HANDED_ON_AT_ONCE: usize = 8;

/// How long a suspect message is worked alone. Not long: after hours without Redis all that was in hand is suspect, and
/// whatever waits for an endpoint takes all of this time.
const DANGEROUS: Duration = Duration::from_millis(200);

/// Everything that a message's task needs.
#[derive(Debug)]
pub(crate) struct Dispatcher {
    pub(crate) publisher: Publisher,
    pub(crate) store: Store,
    pub(crate) snapshots: Snapshots,
    pub(crate) sender: Sender,
    pub(crate) recorder: Recorder,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
    pub(crate) gates: Gates,
    pub(crate) limits: Limits,
    pub(crate) working: Working,
    /// One permit for each POST that may be in flight.
    pub(crate) posts: Permits<Addressee>,
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

/// How a message came to us.
#[derive(Clone, Copy, Debug)]
struct Came {
    lane: Lane,
    /// It may have been begun before.
    redelivered: bool,
}

/// What is to be done about an event, for the subscriptions in a range of slots.
enum Share {
    /// Those who want it are more than a page: each of these ranges has a part of them.
    Split(Vec<SlotRange>),
    /// These are to be served.
    Serve(Found),
}

/// How the work on a message ended.
#[derive(Debug)]
enum Done {
    /// What follows from it is confirmed, or nothing does. A page of the ledger is of no use any
    /// more once the message is acknowledged.
    Finished(Option<LedgerPage>),
    /// It was not begun, because the service is stopping.
    NotBegun,
    /// Our own trouble has lasted too long.
    Stuck,
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
        let working = std::pin::pin!(self.serve(&queue, received));
        let done = if suspect { self.work_alone(working).await } else { working.await };
        match done {
            Done::Finished(None) => settle.ack(),
            Done::Finished(Some(page)) => settle.ack_and(Box::new(move || page.close())),
            Done::NotBegun => settle.requeue(),
            Done::Stuck => settle.recycle(),
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

    async fn serve(&self, queue: &str, received: Received) -> Done {
        if *queue == *TESTS {
            self.serve_errand(&received).await;
            return Done::Finished(None);
        }
        self.work(queue, received).await
    }

    async fn work(&self, queue: &str, received: Received) -> Done {
        if self.shutdown.is_stopping() {
            return Done::NotBegun;
        }
        let understood = understand(queue, &received, self.max_event_bytes, clock::now());
        let (task, identity) = self.judge(understood, &received);
        if let Some(event) = task.event()
            && self.removals.has(&event.tenant, &event.id)
        {
            self.metrics.removed.inc();
            return Done::Finished(None);
        }
        let notes = self.notes(&identity);
        let taken = self.store.take_all(&notes, received.redelivered).await;
        self.count_copies(&identity, &taken);
        let Some(task) = task.without_copies(&taken) else { return Done::Finished(None) };
        let came = Came { lane: Lane::of(queue), redelivered: received.redelivered };
        let done = match task {
            Task::Reject(reason) => self.reject(received, &reason).await,
            Task::HandOn(work, to) => to_done(self.hand_on(work, to).await),
            Task::FanOut(due) => self.serve_event(due, came).await,
            Task::Page(page) => self.serve_page(page, came).await,
            Task::Deliver(parcel, name) => self.serve_parcel(parcel, &name, came.redelivered).await,
        };
        if let Done::Finished(_) = &done {
            self.store.finish_all(&notes, &taken).await;
        }
        done
    }

    fn count_copies(&self, identity: &Identity, taken: &[Taken]) {
        let copies = taken.iter().filter(|taken| **taken == Taken::Copy).count();
        let counter = match identity {
            Identity::Work(_) => &self.metrics.copies,
            Identity::Event(_) | Identity::Unique => &self.metrics.duplicate,
        };
        counter.inc_by(u64::try_from(copies).unwrap_or(u64::MAX));
    }

    /// Rejects an event to which the catalogue objects, or that is too large for its tenant. What the
    /// producer has accepted, and what is on its way already, is not judged again.
    fn judge(&self, (task, identity): (Task, Identity), received: &Received) -> (Task, Identity) {
        let event = match &task {
            Task::FanOut(due) | Task::HandOn(Work::Event(due), _) => &due.event,
            Task::Reject(_) | Task::HandOn(..) | Task::Page(_) | Task::Deliver(..) => {
                return (task, identity);
            }
        };
        if received.is_work() || received.is_judged() {
            return (task, identity);
        }
        let limits = self.tenant_limits.of(&event.tenant);
        let why = match self.judge.judge(&event.event_type, &event.data) {
            _ if !limits.allows_bytes(event.data.len()) => {
                format!(
                    "data is {} bytes, more than this tenant's events may have",
                    event.data.len()
                )
            }
            Judgement::Good | Judgement::Warned(_) => return (task, identity),
            Judgement::Refused(objection) => objection.to_string(),
        };
        // It may be published anew under the same id.
        (Task::Reject(why), Identity::Unique)
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
        tracing::info!(reason, routing_key = received.routing_key, "message rejected");
        self.metrics.rejected.inc();
        to_done(
            self.publisher
                .publish_surely(&Message::rejected(received, reason))
                .await
                .map_err(Into::into),
        )
    }

    /// Serves an event, or moves it aside.
    async fn serve_event(&self, due: DueEvent, came: Came) -> Done {
        let served = Served::new(Arc::clone(&due.event));
        let matching = match self.matching(&served, SlotRange::ALL).await {
            Ok(matching) => matching,
            Err(done) => return done,
        };
        let is_main = came.lane == Lane::Main;
        if is_main && self.filters_go_aside(&served, &matching, came.redelivered) {
            return to_done(self.hand_on(Work::Event(due), Destination::Sideline).await);
        }
        let share = match self.share(&served, matching).await {
            Ok(share) => share,
            Err(done) => return done,
        };
        if is_main && self.goes_aside(&served.event.tenant, &share, came.redelivered) {
            return to_done(self.hand_on(Work::Event(due), Destination::Sideline).await);
        }
        // It may have been begun before it was moved aside.
        let came = Came { redelivered: came.redelivered || due.sequence > 0, ..came };
        let done = self.serve_share(&served, SlotRange::ALL, share, came).await;
        if matches!(done, Done::Finished(_)) {
            self.metrics.events.inc();
        }
        done
    }

    /// Whether an event goes aside before its filters are asked.
    fn filters_go_aside(&self, served: &Served, matching: &Matching, redelivered: bool) -> bool {
        let (Matching::Few { found, .. }, Addressee::Tenant(tenant)) =
            (matching, &served.event.tenant)
        else {
            return false;
        };
        // Looking at all of them takes time: only if so many wait.
        sideline::is_too_much(self.filters.waiting(tenant), redelivered)
            && any_has_filter(found)
            && takes_long(found, served.elements())
    }

    fn goes_aside(&self, tenant: &Addressee, share: &Share, redelivered: bool) -> bool {
        let deliveries = match share {
            Share::Serve(targets) => targets.len(),
            Share::Split(parts) => parts.len().saturating_mul(PAGE),
        };
        let waiting = self.posts.waiting(tenant).max(self.pages.waiting(tenant));
        sideline::goes_aside(deliveries, waiting, redelivered)
    }

    /// The subscriptions in a range of slots whose patterns match an event.
    async fn matching(&self, served: &Served, range: SlotRange) -> Result<Matching, Done> {
        self.patiently(|| self.snapshots.matching(&served.event, range)).await
    }

    /// What is to be done about an event, whose filters may leave so few that it need not be split.
    async fn share(&self, served: &Served, matching: Matching) -> Result<Share, Done> {
        let (found, parts) = match matching {
            Matching::Many(parts) => return Ok(Share::Split(parts)),
            Matching::Few { found, parts } => (found, parts),
        };
        if !parts.is_empty() && !any_has_filter(&found) {
            return Ok(Share::Split(parts));
        }
        let wanted = self.filter(served, found).await.ok_or(Done::NotBegun)?;
        Ok(if !parts.is_empty() && wanted.len() > PAGE {
            Share::Split(parts)
        } else {
            Share::Serve(wanted)
        })
    }

    /// Serves the subscriptions in a range of slots, or splits them among pages.
    async fn serve_share(
        &self,
        served: &Served,
        range: SlotRange,
        share: Share,
        came: Came,
    ) -> Done {
        let event = &served.event;
        match share {
            Share::Serve(targets) => {
                let name = format!("{}/{}-{}", event.name(), range.first, range.end);
                let begin = |(id, known)| (Target::Begin(id), known);
                let targets = targets.into_iter().map(begin).collect();
                self.serve_all(served, targets, &name, came.redelivered).await
            }
            Share::Split(parts) => to_done(self.split(event, parts, came.lane).await),
        }
    }

    /// Hands each part of an event's subscriptions on as a page. The pages have the same names
    /// whenever this event is split.
    async fn split(
        &self,
        event: &Arc<Event>,
        parts: Vec<SlotRange>,
        lane: Lane,
    ) -> anyhow::Result<()> {
        // What comes from the sideline stays there, and those of a few pages do not wait behind
        // those of thousands.
        let to = if lane == Lane::Sideline || fan_out::is_large(&parts) {
            Destination::SidelinePages
        } else {
            Destination::Pages
        };
        for parts in parts.chunks(PAGES_HANDED_ON_AT_ONCE) {
            let pages = parts.iter().map(|range| {
                Work::Page(Page { event: Arc::clone(event), slots: *range, sequence: 0 })
            });
            try_join_all(pages.map(|page| self.hand_on(page, to))).await?;
        }
        Ok(())
    }

    async fn serve_page(&self, page: Page, came: Came) -> Done {
        let turn = match self.pages.acquire(&page.event.tenant).await {
            Ok(turn) => turn,
            Err(error) => return to_done(Err(error)),
        };
        if self.shutdown.is_stopping() {
            return Done::NotBegun;
        }
        let served = Served::new(page.event);
        let share = match self.matching(&served, page.slots).await {
            Ok(matching) => self.share(&served, matching).await,
            Err(done) => Err(done),
        };
        let done = match share {
            Ok(share) => self.serve_share(&served, page.slots, share, came).await,
            Err(done) => done,
        };
        drop(turn);
        done
    }

    /// Serves these subscriptions, but for those that the ledger of this name says were served
    /// before a crash.
    async fn serve_all(
        &self,
        served: &Served,
        mut targets: Vec<(Target, Known)>,
        name: &str,
        redelivered: bool,
    ) -> Done {
        // The acknowledgement says enough about a single one.
        let ledger = (targets.len() > 1).then(|| self.ledger.page(name));
        if let Some(page) = &ledger
            && redelivered
        {
            let done_with = page.served().await;
            let before = targets.len();
            targets.retain(|(target, _)| !done_with.contains(target.id()));
            self.metrics.ledger_hits.inc_by(u64::try_from(before - targets.len()).unwrap_or(0));
        }
        match self.fan_out(served, targets, ledger.clone()).await {
            Ok(()) => Done::Finished(ledger),
            Err(error) => to_done(Err(error)),
        }
    }

    async fn serve_parcel(&self, parcel: Parcel, name: &str, redelivered: bool) -> Done {
        let ids = || parcel.states.iter().map(|state| state.subscription.clone()).collect();
        let known = match self.patiently(|| self.snapshots.get_all(ids())).await {
            Ok(known) => known,
            Err(done) => return done,
        };
        let served = Served::new(Arc::clone(&parcel.event));
        let known: HashMap<SubscriptionId, Known> = known.into_iter().collect();
        let go_on = |state: DeliveryState| {
            let known = known.get(&state.subscription).cloned().unwrap_or(Known::Missing);
            (self.target(state, &known), known)
        };
        let targets = parcel.states.into_iter().map(go_on).collect();
        self.serve_all(&served, targets, name, redelivered).await
    }

    /// A delivery that goes on.
    fn target(&self, state: DeliveryState, known: &Known) -> Target {
        let has_limit =
            matches!(known, Known::Live(subscription) if subscription.rate_limit.is_some());
        let waits = has_limit || self.gates.closed(&state.subscription).is_some();
        Target::GoOn { state: Box::new(state), waits }
    }

    async fn patiently<T, E, F>(&self, ask: impl Fn() -> F) -> Result<T, Done>
    where
        F: Future<Output = Result<T, E>>,
        E: std::fmt::Display,
    {
        patiently(&self.shutdown, ask).await.map_err(|unanswered| match unanswered {
            Unanswered::Stopping => Done::NotBegun,
            Unanswered::Stuck => Done::Stuck,
        })
    }

    /// Publishes work under its next name, until it is confirmed.
    pub(crate) async fn hand_on(&self, work: Work, to: Destination) -> anyhow::Result<()> {
        let work = work.next();
        let message = match to {
            Destination::Retries => Message::work(RETRIES, &work),
            Destination::Deliveries => Message::work(DELIVERIES, &work),
            Destination::Pages => Message::work(PAGES, &work),
            Destination::Sideline => Message::aside(&work),
            Destination::SidelinePages => Message::work(SIDELINE_PAGES, &work),
            Destination::Delay(rung) => Message::work(&rung.queue(), &work),
        }?;
        self.publisher.publish_surely(&message).await?;
        self.metrics.handed_on.with_label_values(&[to.as_str()]).inc();
        Ok(())
    }
}

/// A failure that is not waiting for anything better: a message that cannot be written at all.
fn to_done(result: anyhow::Result<()>) -> Done {
    match result {
        Ok(()) => Done::Finished(None),
        Err(error) => {
            tracing::error!(error = sentence(&error), "a message cannot be settled");
            Done::Stuck
        }
    }
}
