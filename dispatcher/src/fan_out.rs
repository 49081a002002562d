//! Serves the subscriptions of an event, or deliveries that go on, each with its permit. When this returns, every
//! delivery is settled or its successor confirmed.

use std::sync::Arc;

use doorbell_common::event::Event;
use doorbell_common::ids::{Addressee, SubscriptionId};
use doorbell_common::subscription::Standing;
use doorbell_common::work::{Delivery, DeliveryState};
use doorbell_platform::clock;
use doorbell_platform::permits::{Claim, Permit};
use doorbell_platform::store::snapshots::Known;
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;

use crate::dispatch::Dispatcher;
use crate::hand::{Busy, Hand};
use crate::ledger::LedgerPage;
use crate::metrics::{Final, Wait};
use crate::recorder::Receipt;
use crate::served::Served;
use crate::understand::Destination;

/// Deliveries of one event that are made at once.
const AT_ONCE: usize = 256;

/// How a delivery ended that is settled, or whose successor is confirmed: with what is left of its attempt,
/// if there was one.
pub(crate) type Settled = anyhow::Result<Option<Made>>;

/// What is left of an attempt.
#[derive(Debug)]
pub(crate) struct Made {
    /// Of its record.
    pub(crate) receipt: Receipt,
    /// The permit of its POST, if nothing but the acknowledgement will say that it was made.
    pub(crate) permit: Option<Permit<Addressee>>,
}

impl From<Receipt> for Made {
    fn from(receipt: Receipt) -> Self {
        Self { receipt, permit: None }
    }
}

/// How those of a fan-out ended.
#[derive(Default)]
struct Ended {
    receipts: Vec<Receipt>,
    permit: Option<Permit<Addressee>>,
    error: Option<anyhow::Error>,
}

impl Ended {
    fn add(&mut self, delivery: Settled) {
        match delivery {
            Ok(None) => {}
            Ok(Some(Made { receipt, permit })) => {
                self.receipts.push(receipt);
                // Of one that is alone, if at all.
                self.permit = permit;
            }
            Err(error) => self.error = Some(error),
        }
    }
}

/// A delivery of a fan-out.
#[derive(Debug)]
pub(crate) enum Target {
    /// For this subscription it has yet to begin.
    Begin(SubscriptionId),
    /// It has begun before.
    GoOn {
        state: Box<DeliveryState>,
        /// For its turn, or to be held, without a permit for a POST.
        waits: bool,
    },
}

impl Target {
    /// For whom.
    pub(crate) fn id(&self) -> &SubscriptionId {
        match self {
            Self::Begin(id) => id,
            Self::GoOn { state, .. } => &state.subscription,
        }
    }

    /// Whether it needs its permit first of all.
    fn needs_permit(&self, known: &Known) -> bool {
        let waits = matches!(self, Self::GoOn { waits: true, .. });
        !waits && matches!(known.standing(), Standing::Active(_))
    }
}

/// What a delivery brings along from the fan-out that it is part of.
pub(crate) struct Begun<'a> {
    /// Its permit for a POST.
    pub(crate) permit: Option<Permit<Addressee>>,
    /// Where to note that it is done with; nowhere, if it is alone.
    pub(crate) ledger: Option<&'a LedgerPage>,
    /// Its part of the message in hand.
    pub(crate) busy: Busy<'a>,
}

impl Dispatcher {
    /// Makes these deliveries, and notes in the ledger which are done with; of one alone, without a ledger,
    /// answers the permit that is to be kept until its message is acknowledged. When the service is told to
    /// stop, what has not begun goes on as parcels; when RabbitMQ takes the message back, it is
    /// [left](Hand::must_leave).
    pub(crate) async fn fan_out(
        &self,
        served: &Served,
        targets: Vec<(Target, Known)>,
        ledger: Option<&LedgerPage>,
        hand: &Hand<'_>,
    ) -> anyhow::Result<Option<Permit<Addressee>>> {
        hand.expect(targets.len());
        let (mut going, mut left) = (FuturesUnordered::new(), Vec::new());
        let mut ended = Ended::default();
        // Each has its permit before it begins, and the first message its permits before the next one
        // has any: what was just read and written is still at hand then.
        let active = targets.iter().filter(|(target, known)| target.needs_permit(known)).count();
        let mut claim = self.posts.claim(&served.event.tenant, active);
        for (target, known) in targets {
            let claim = target.needs_permit(&known).then_some(&mut claim);
            let mut permit = std::pin::pin!(self.permit(claim));
            let permit = loop {
                tokio::select! {
                    permit = &mut permit, if going.len() < AT_ONCE => break permit?,
                    Some(delivery) = going.next() => ended.add(delivery),
                }
            };
            if hand.must_leave() {
                break;
            }
            let delivery = self.delivery(&served.event, target);
            if self.shutdown.is_stopping() {
                left.push(delivery);
                continue;
            }
            let begun = Begun { permit, ledger, busy: hand.begin() };
            going.push(self.deliver(served, delivery, known, begun));
        }
        // They end in their own time; what is left goes on beside them.
        let leaving = left
            .into_iter()
            .map(|delivery| self.hand_on_noted(delivery, Destination::Deliveries, ledger));
        let leaving = try_join_all(leaving);
        let ending = async {
            while let Some(delivery) = going.next().await {
                ended.add(delivery);
            }
        };
        let (left, ()) = tokio::join!(leaving, ending);
        left?;
        let Ended { receipts, permit, error } = ended;
        if let Some(error) = error {
            return Err(error);
        }
        self.recorder.confirm(receipts).await;
        Ok(permit)
    }

    /// A delivery, which begins now if it has not begun yet.
    fn delivery(&self, event: &Arc<Event>, target: Target) -> Delivery {
        match target {
            Target::Begin(id) => {
                self.metrics.matched.inc();
                Delivery::begin(Arc::clone(event), id, clock::now())
            }
            Target::GoOn { state, .. } => Delivery { event: Arc::clone(event), state: *state },
        }
    }

    /// Waits for the permit that a delivery needs, if it needs one.
    async fn permit(
        &self,
        claim: Option<&mut Claim<Addressee>>,
    ) -> anyhow::Result<Option<Permit<Addressee>>> {
        let Some(claim) = claim.filter(|_| !self.shutdown.is_stopping()) else { return Ok(None) };
        self.metrics.waiting(Wait::Permit, claim.next()).await.map(Some)
    }

    /// Makes one delivery, once.
    async fn deliver(
        &self,
        served: &Served,
        delivery: Delivery,
        known: Known,
        begun: Begun<'_>,
    ) -> Settled {
        match (known.standing(), &known) {
            (Standing::Active(_), Known::Live(subscription)) => {
                self.attempt(served, delivery, subscription, begun).await
            }
            (Standing::Cancelled, _) => {
                self.metrics.ended(Final::Cancelled);
                Ok(None)
            }
            // Paused, disabled, or lost: the scheduler keeps it.
            _ => {
                self.hand_on_noted(delivery, Destination::Retries, begun.ledger).await?;
                Ok(None)
            }
        }
    }

    /// Hands a delivery on, and notes that the fan-out is done with it.
    pub(crate) async fn hand_on_noted(
        &self,
        delivery: Delivery,
        to: Destination,
        ledger: Option<&LedgerPage>,
    ) -> anyhow::Result<()> {
        let id = ledger.map(|_| delivery.state.subscription.clone());
        self.outbox.hand_on_delivery(delivery, to).await?;
        if let (Some(ledger), Some(id)) = (ledger, id) {
            ledger.note_surely(&id).await;
        }
        Ok(())
    }
}
