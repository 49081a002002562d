//! The library's publisher: events in, confirms out.

use std::time::Duration;

use doorbell_common::ids::EventId;
use doorbell_common::intake::Refusal;
use doorbell_platform::broker::{self, Broker};
use doorbell_platform::health::{Dependency, Health};
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::tls::{self, Trust};
use prometheus::Registry;

use crate::event::{NewEvent, prepare};

/// The largest data that an event may have, unless the deployment was configured otherwise.
const MAX_EVENT_BYTES: usize = 256 * 1024;
/// How long the first connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Publishes events over one connection, which it keeps up.
///
/// Cheap to clone; all clones share the connection. A publish that fails may be repeated: give
/// the event an id of your own, so that it is delivered once even if RabbitMQ had it already.
#[derive(Clone, Debug)]
pub struct Publisher {
    inner: broker::Publisher,
    shutdown: Shutdown,
    max_event_bytes: usize,
}

/// Why an event was not published.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// It breaks the rules of publishing: repeating it will not help.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// RabbitMQ did not confirm it: it may be repeated, with the same id.
    #[error("{0}")]
    Broker(#[from] broker::PublishError),
    /// The library could not be set up.
    #[error("cannot connect: {0}")]
    Connect(String),
}

impl Publisher {
    /// Connects to RabbitMQ: one URL, or the nodes of a cluster separated by commas.
    ///
    /// # Errors
    /// A URL is wrong, or no node answers within 15 seconds.
    pub async fn connect(amqp_urls: &str) -> Result<Self, PublishError> {
        tls::install();
        let urls: Vec<String> = amqp_urls.split(',').map(|url| url.trim().to_owned()).collect();
        let broker = Broker::new(&urls, Trust::default(), "doorbell-producer-library")
            .map_err(|error| PublishError::Connect(sentence(&error)))?;
        let (registry, shutdown) = (Registry::new(), Shutdown::default());
        let publisher = Health::new(&registry, &[(Dependency::RabbitmqPublish, true)])
            .and_then(|health| {
                let inner = broker::Publisher::start(broker, health.clone(), &registry, &shutdown)?;
                Ok((inner, health))
            })
            .map_err(|error| PublishError::Connect(error.to_string()));
        let (inner, health) = publisher?;
        let publisher = Self { inner, shutdown, max_event_bytes: MAX_EVENT_BYTES };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, async {
            while !health.is_ready() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        if connected.await.is_err() {
            let why = health
                .snapshot()
                .into_values()
                .map(|condition| condition.detail)
                .collect::<Vec<_>>()
                .join(", ");
            publisher.close().await;
            return Err(PublishError::Connect(why));
        }
        Ok(publisher)
    }

    /// Publishes one event; its id is answered once RabbitMQ has confirmed it.
    ///
    /// # Errors
    /// The event breaks the rules, or was not confirmed.
    pub async fn publish(&self, event: &NewEvent) -> Result<EventId, PublishError> {
        let ready = prepare(event, self.max_event_bytes)?;
        self.inner.publish(ready.message).await?;
        Ok(ready.id)
    }

    /// Publishes many events at once; one answer for each, in the order given. One that fails
    /// spoils no other.
    pub async fn publish_many(&self, events: &[NewEvent]) -> Vec<Result<EventId, PublishError>> {
        futures_util::future::join_all(events.iter().map(|event| self.publish(event))).await
    }

    /// Closes the connection, after what was begun is answered.
    pub async fn close(self) {
        self.shutdown.stop();
        self.shutdown.finish();
        self.shutdown.wait(CONNECT_TIMEOUT).await;
    }
}
