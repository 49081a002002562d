//! Takes messages in, has each decided and acted upon, and settles it once what follows is
//! confirmed. Our own trouble keeps a message in hand, and what waits for Redis is moved aside.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use doorbell_common::event::Event;
use doorbell_common::ids::{Addressee, SubscriptionId, TenantId};
use doorbell_common::next_move::{Keep, Move, next_move};
use doorbell_common::sideline::Lane;
use doorbell_common::subscription::{DisabledReason, Standing};
use doorbell_common::wire;
use doorbell_common::work::{Bundle, Delivery, DueEvent, Page, Parcel, Stage, Work, chance};
use doorbell_platform::broker::topology::{self, INTERNAL, SIDELINE_RETRIES};
use doorbell_platform::broker::{Broker, Incoming, Intake, Message, Publisher, Received};
use doorbell_platform::clock;
use doorbell_platform::limits::Limits;
use doorbell_platform::patience::{Unanswered, before_handing_back, patience_of, patiently};
use doorbell_platform::recent::Recent;
use doorbell_platform::removals::Removals;
use doorbell_platform::seldom::Seldom;
use doorbell_platform::shares::Shares;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use doorbell_platform::store::notes::{Note, Taken};
use doorbell_platform::store::snapshots::{Known, Snapshots};
use futures_util::future::try_join_all;

use crate::metrics::Metrics;
use crate::unrouted::Redeclaration;
use crate::way_back::CameBack;

/// How often it is told that messages are rejected: how many are, the metrics say.
const REJECTED_TOLD_EACH: Duration = Duration::from_secs(1);

/// Everything that a message's task needs.
#[derive(Debug)]
pub(crate) struct Scheduler {
    pub(crate) broker: Broker,
    pub(crate) publisher: Publisher,
    pub(crate) store: Store,
    pub(crate) snapshots: Snapshots,
    pub(crate) metrics: Metrics,
    pub(crate) shutdown: Shutdown,
    pub(crate) limits: Limits,
    pub(crate) removals: Removals,
    pub(crate) shares: Shares,
    pub(crate) expire_after: Duration,
    pub(crate) expire_held_after: Duration,
    /// Zero: never.
    pub(crate) disable_after: Duration,
    /// Whose events say what we have done; nobody's, if there is none.
    pub(crate) operational_tenant: Option<TenantId>,
    /// Subscriptions whose failure was noted lately.
    pub(crate) failing: Recent,
    pub(crate) unrouted: Redeclaration,
    pub(crate) came_back: CameBack,
}

impl Scheduler {
    /// Takes messages in until the service is told to stop, and finishes what it has begun.
    pub(crate) async fn schedule(self: Arc<Self>, intake: Intake) {
        intake
            .for_each(|incoming| {
                let scheduler = Arc::clone(&self);
                async move { scheduler.settle(incoming).await }
            })
            .await;
    }

    async fn settle(&self, incoming: Incoming) {
        let Incoming { queue, received, settle } = incoming;
        // What was for us is for us, whichever way it came.
        let lane = Lane::ALL.into_iter().find(|lane| {
            let inbox = topology::retries(*lane);
            *queue == *inbox || (received.exchange == INTERNAL && received.routing_key == inbox)
        });
        let worked = if let Some(lane) = lane {
            self.came_back.note(&received);
            self.work(received, lane).await
        } else {
            self.bring_back(received).await
        };
        match worked {
            Ok(()) => settle.ack(),
            Err(Unanswered::Stopping) => settle.requeue(),
            Err(Unanswered::Stuck) => {
                before_handing_back(&self.shutdown).await;
                settle.requeue();
            }
        }
    }

    async fn work(&self, received: Received, lane: Lane) -> Result<(), Unanswered> {
        if received.is_nudge() {
            return Ok(());
        }
        let work = match wire::decode(&received.body) {
            Ok(work) => work,
            Err(error) => return self.reject(received, &error.to_string()).await,
        };
        let Some(work) = self.without_removed(work) else { return Ok(()) };
        let notes: Vec<Note> =
            work.hand_offs().iter().map(|hand_off| self.store.work_note(hand_off)).collect();
        let taken = self.store.take_all(&notes, received.arrival()).await;
        let copies = taken.iter().filter(|taken| **taken == Taken::Copy).count();
        self.metrics.copies.inc_by(count(copies));
        let is_ours = |place: usize| taken.get(place) == Some(&Taken::Go);
        // Those that came together stay together, if they can.
        let chance = chance(&work.name());
        match work {
            Work::Event(due) if is_ours(0) => self.act_on_event(due).await?,
            Work::Page(page) if is_ours(0) => self.act_on_page(page).await?,
            Work::Event(_) | Work::Page(_) => {}
            Work::Parcel(parcel) => {
                let parcels = parcel.keep(is_ours).into_iter().collect();
                self.act_on_all(parcels, (lane, chance)).await?;
            }
            Work::Bundle(bundle) => {
                let parcels = bundle.keep(is_ours).collect();
                self.act_on_all(parcels, (lane, chance)).await?;
            }
        }
        self.store.finish_all(&notes, &taken).await;
        Ok(())
    }

    /// What is left of work without events that were removed.
    fn without_removed(&self, work: Work) -> Option<Work> {
        let is_left = |event: &Event| self.removals.spare(event, &self.metrics.removed);
        let is_parcel_left = |parcel: &Parcel| {
            let is_left = is_left(&parcel.event);
            if !is_left {
                self.metrics.cancelled(count(parcel.states.len()));
            }
            is_left
        };
        match work {
            Work::Event(DueEvent { ref event, .. }) | Work::Page(Page { ref event, .. }) => {
                is_left(event).then_some(work)
            }
            Work::Parcel(ref parcel) => is_parcel_left(parcel).then_some(work),
            Work::Bundle(bundle) => Bundle::of(bundle.into_parcels().filter(is_parcel_left)),
        }
    }

    /// Acts on deliveries of one tenant's events that came together.
    async fn act_on_all(
        &self,
        parcels: Vec<Parcel>,
        (lane, chance): (Lane, f64),
    ) -> Result<(), Unanswered> {
        let states = || parcels.iter().flat_map(|parcel| &parcel.states);
        let ids = || states().map(|state| state.subscription.clone()).collect();
        let known = match self.patiently(lane, || self.snapshots.get_all(ids())).await {
            Ok(known) => known,
            Err(Unanswered::Stuck) => return self.put_aside(parcels).await,
            Err(Unanswered::Stopping) => return Err(Unanswered::Stopping),
        };
        let known: HashMap<SubscriptionId, Known> = known.into_iter().collect();
        let deciding = parcels.into_iter().flat_map(Parcel::deliveries).map(|delivery| {
            let known = known.get(&delivery.state.subscription).unwrap_or(&Known::Missing);
            self.decide(delivery, known, (lane, chance))
        });
        self.act(try_join_all(deciding).await?, lane).await
    }

    /// Moves aside what waits for Redis: that for which nothing has to be asked or written there does not wait behind
    /// it.
    pub(crate) async fn put_aside(
        &self,
        parcels: impl IntoIterator<Item = Parcel>,
    ) -> Result<(), Unanswered> {
        let Some(work) = Bundle::of(parcels) else { return Ok(()) };
        self.metrics.sidelined.inc();
        let aside = Message::work(SIDELINE_RETRIES, &work.next());
        self.publish(&aside.map_err(unwritable)?).await
    }

    async fn decide(
        &self,
        delivery: Delivery,
        known: &Known,
        (lane, chance): (Lane, f64),
    ) -> Result<Move, Unanswered> {
        let mut standing = known.standing();
        if let Standing::Active(policy) = standing
            && self.has_failed_for_days(&delivery, lane).await?
        {
            standing = Standing::Suspended(policy);
        }
        let keep = self.keep(&delivery.event.tenant, known);
        Ok(next_move(delivery, standing, keep, (clock::now(), chance)))
    }

    /// How long it may wait. What a broadcast brings to a tenant is that tenant's.
    fn keep(&self, addressee: &Addressee, known: &Known) -> Keep {
        let limits = match (addressee, known) {
            (Addressee::Everyone, Known::Live(subscription)) => {
                self.limits.of(&Addressee::Tenant(subscription.tenant.clone()))
            }
            (tenant, _) => self.limits.of(tenant),
        };
        Keep {
            beyond_policy: self.expire_after,
            at_most: limits.retention.map(|text| text.0),
            held: self.expire_held_after,
        }
    }

    /// Notes a failure; disables the subscription if there has been nothing else for days, and
    /// answers whether it is disabled.
    async fn has_failed_for_days(
        &self,
        delivery: &Delivery,
        lane: Lane,
    ) -> Result<bool, Unanswered> {
        let (id, now) = (&delivery.state.subscription, clock::now());
        let counts = delivery.state.stage == Stage::Failed && !self.disable_after.is_zero();
        // Where there are many failures, one now and then says enough.
        if !counts || self.failing.contains(id) {
            return Ok(false);
        }
        self.failing.insert(id);
        let since = self.store.note_failing(id, 2 * self.disable_after, now).await;
        if now.since(since) < self.disable_after {
            return Ok(false);
        }
        match self.disable(delivery, DisabledReason::Failing, lane).await {
            // One of its next failures will.
            Err(Unanswered::Stuck) => Ok(false),
            disabled => disabled,
        }
    }

    pub(crate) async fn reject(&self, received: Received, reason: &str) -> Result<(), Unanswered> {
        static TOLD: Seldom = Seldom::each(REJECTED_TOLD_EACH);
        if TOLD.is_time() {
            tracing::info!(reason, "message rejected");
        }
        self.metrics.rejected.inc();
        self.publish(&Message::rejected(received, reason)).await
    }

    /// Publishes until it is confirmed.
    pub(crate) async fn publish(&self, message: &Message) -> Result<(), Unanswered> {
        self.publisher.publish_surely(message).await.map_err(unwritable)
    }

    /// Asks the store until it answers, for something in this lane.
    pub(crate) async fn patiently<T, E, F>(
        &self,
        lane: Lane,
        ask: impl Fn() -> F,
    ) -> Result<T, Unanswered>
    where
        F: Future<Output = Result<T, E>>,
        E: std::fmt::Display,
    {
        patiently(&self.shutdown, patience_of(lane, self.store.away_for()), ask).await
    }
}

/// A number of things for a metric.
pub(crate) fn count(things: usize) -> u64 {
    u64::try_from(things).unwrap_or(u64::MAX)
}

/// What is left after every try at publishing: a message that cannot be written at all.
pub(crate) fn unwritable(error: impl std::fmt::Display) -> Unanswered {
    tracing::error!(%error, "a message cannot be settled");
    Unanswered::Stuck
}
