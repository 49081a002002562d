//! Where work leaves that is to go on, for another queue. Deliveries that go the same way within moments of each other
//! do so together: an endpoint that fails, or is not served fast enough, is seldom alone in that, and of a flood
//! for it each message would cost as much as a POST. Of one event they stay together for as long as they can.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::ids::Addressee;
use doorbell_common::sideline::Lane;
use doorbell_common::work::{Bundle, Delivery, Work};
use doorbell_platform::broker::Publisher;
use doorbell_platform::sentence::sentence;
use doorbell_platform::shares::Shares;
use doorbell_platform::shutdown::Shutdown;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::metrics::Metrics;
use crate::understand::Destination;

/// How long the first of them waits for others.
const LINGER: Duration = Duration::from_millis(5);
/// With so many it waits no longer.
const ENOUGH: usize = 256;

/// Publishes what is to go on. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Outbox {
    carrier: Carrier,
    /// Without a bound of its own: each delivery in hand leaves one thing at most.
    outgoing: mpsc::UnboundedSender<Outgoing>,
}

/// What it takes to publish.
#[derive(Clone, Debug)]
struct Carrier {
    publisher: Publisher,
    shares: Arc<Shares>,
    metrics: Metrics,
}

#[derive(Debug)]
struct Outgoing {
    /// On the heap, so that room for many costs little where there is none.
    delivery: Box<Delivery>,
    to: Destination,
    confirmed: oneshot::Sender<()>,
}

impl Outbox {
    pub(crate) fn start(
        publisher: Publisher,
        shares: Shares,
        metrics: Metrics,
        shutdown: &Shutdown,
    ) -> Self {
        let carrier = Carrier { publisher, shares: Arc::new(shares), metrics };
        let (sender, outgoing) = mpsc::unbounded_channel();
        shutdown.spawn_vital("outbox", carrier.clone().send_all(outgoing));
        Self { carrier, outgoing: sender }
    }

    /// Publishes work under its next name, until it is confirmed.
    pub(crate) async fn hand_on(&self, work: Work, to: Destination) -> anyhow::Result<()> {
        self.carrier.hand_on(work, to).await
    }

    /// The same of a delivery, in company of others if there are any.
    pub(crate) async fn hand_on_delivery(
        &self,
        delivery: Delivery,
        to: Destination,
    ) -> anyhow::Result<()> {
        let (confirmed, confirm) = oneshot::channel();
        let outgoing = Outgoing { delivery: Box::new(delivery), to, confirmed };
        self.outgoing.send(outgoing).ok().context("nobody sends deliveries any more")?;
        confirm.await.context("the delivery was not sent")
    }
}

impl Carrier {
    async fn hand_on(&self, work: Work, to: Destination) -> anyhow::Result<()> {
        let work = work.next();
        let lane = if to.goes_by_share() {
            self.shares.lane(work.tenant(), work.events())
        } else {
            Lane::Main
        };
        let (message, label) = to.message(lane, &work)?;
        self.publisher.publish_surely(&message).await?;
        self.metrics.handed_on.with_label_values(&[label]).inc();
        Ok(())
    }

    /// Sends what deliveries leave, until nobody can leave more.
    async fn send_all(self, outgoing: mpsc::UnboundedReceiver<Outgoing>) {
        UnboundedReceiverStream::new(outgoing)
            .chunks_timeout(ENOUGH, LINGER)
            .for_each_concurrent(None, |some| self.send(some))
            .await;
    }

    async fn send(&self, some: Vec<Outgoing>) {
        let mut ways: HashMap<(Addressee, Destination), Vec<Outgoing>> = HashMap::new();
        for outgoing in some {
            let way = (outgoing.delivery.event.tenant.clone(), outgoing.to);
            ways.entry(way).or_default().push(outgoing);
        }
        join_all(ways.into_iter().map(|((_, to), together)| self.send_one_way(together, to))).await;
    }

    async fn send_one_way(&self, mut together: Vec<Outgoing>, to: Destination) {
        // Where those of one event are beside each other, packing keeps the order.
        together.sort_by_key(|outgoing| Arc::as_ptr(&outgoing.delivery.event));
        let (deliveries, confirmed): (Vec<_>, Vec<_>) =
            together.into_iter().map(|outgoing| (*outgoing.delivery, outgoing.confirmed)).unzip();
        let mut confirmed = confirmed.into_iter();
        let sending = Bundle::pack(deliveries).into_iter().map(|work| {
            let theirs: Vec<_> = confirmed.by_ref().take(work.hand_off_count()).collect();
            self.send_work(work, to, theirs)
        });
        join_all(sending.collect::<Vec<_>>()).await;
    }

    /// Each message by itself: whoever is in another one need not be handed on once more.
    async fn send_work(&self, work: Work, to: Destination, confirmed: Vec<oneshot::Sender<()>>) {
        match self.hand_on(work, to).await {
            Ok(()) => {
                for sender in confirmed {
                    // Who left it waits for this.
                    let _gone = sender.send(()).is_err();
                }
            }
            Err(error) => tracing::error!(error = sentence(&error), "deliveries are not sent"),
        }
    }
}
