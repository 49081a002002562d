//! What the deliveries of a message leave to others. An endpoint that fails is seldom alone in that: of an
//! event for a hundred the deliveries that failed, or are held, within moments of each other go on in one
//! message, and stay together for as long as they go the same way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::event::Event;
use doorbell_common::work::{Delivery, DeliveryState, Parcel, Work};
use doorbell_platform::sentence::sentence;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::dispatch::Dispatcher;
use crate::understand::Destination;

/// How long the first of them waits for others.
const LINGER: Duration = Duration::from_millis(5);

/// Where the deliveries of one message leave what is to go on.
#[derive(Debug)]
pub(crate) struct Outbox {
    /// Without a bound of its own: each delivery of the message leaves one thing at most.
    outgoing: mpsc::UnboundedSender<Outgoing>,
}

/// What was left, to be [sent](Dispatcher::send_parcels).
#[derive(Debug)]
pub(crate) struct Collection {
    outgoing: mpsc::UnboundedReceiver<Outgoing>,
}

#[derive(Debug)]
struct Outgoing {
    /// On the heap, so that room for many costs little where there is none.
    state: Box<DeliveryState>,
    to: Destination,
    confirmed: oneshot::Sender<()>,
}

impl Outbox {
    pub(crate) fn new() -> (Self, Collection) {
        let (sender, outgoing) = mpsc::unbounded_channel();
        (Self { outgoing: sender }, Collection { outgoing })
    }

    /// Hands a delivery on, and waits until that is confirmed.
    pub(crate) async fn hand_on(&self, delivery: Delivery, to: Destination) -> anyhow::Result<()> {
        let (confirmed, confirm) = oneshot::channel();
        let outgoing = Outgoing { state: Box::new(delivery.state), to, confirmed };
        self.outgoing.send(outgoing).ok().context("nobody sends parcels any more")?;
        confirm.await.context("its parcel was not sent")
    }
}

impl Dispatcher {
    /// Sends what deliveries of this event leave, until they have all ended.
    pub(crate) async fn send_parcels(&self, event: &Arc<Event>, collection: Collection) {
        UnboundedReceiverStream::new(collection.outgoing)
            .chunks_timeout(Parcel::most(event), LINGER)
            .for_each_concurrent(None, |together| self.send_together(event, together))
            .await;
    }

    async fn send_together(&self, event: &Arc<Event>, together: Vec<Outgoing>) {
        let mut by_destination: HashMap<Destination, Vec<Outgoing>> = HashMap::new();
        for outgoing in together {
            by_destination.entry(outgoing.to).or_default().push(outgoing);
        }
        let sending = by_destination.into_iter().map(|(to, parcel)| async move {
            let (states, confirmed): (Vec<_>, Vec<_>) =
                parcel.into_iter().map(|outgoing| (*outgoing.state, outgoing.confirmed)).unzip();
            let parcel = Parcel { event: Arc::clone(event), states };
            match self.hand_on(Work::Parcel(parcel), to).await {
                Ok(()) => {
                    for sender in confirmed {
                        // Who left it waits for this.
                        let _gone = sender.send(()).is_err();
                    }
                }
                Err(error) => tracing::error!(error = sentence(&error), "a parcel is not sent"),
            }
        });
        join_all(sending).await;
    }
}
