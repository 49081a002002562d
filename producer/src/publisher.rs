//! The library's publisher: events in, confirms out.

use std::time::Duration;

use doorbell_common::ids::EventId;
use doorbell_common::intake::Refusal;
use doorbell_platform::broker::{self, Broker, Declares};
use doorbell_platform::health::{Dependency, Health};
use doorbell_platform::sentence::sentence;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::tls::{self, Trust};
use prometheus::Registry;

use crate::event::{NewEvent, prepare};

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

/// How a deployment is set up that is not as usual.
#[derive(Clone, Debug)]
pub struct Options {
    /// The authority that RabbitMQ's certificate is from (PEM), instead of those that the system trusts.
    pub ca_pem: Option<String>,
    /// The most bytes that an event's data may have: what dispatchers have as `--max-event-bytes`.
    pub max_event_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { ca_pem: None, max_event_bytes: 256 * 1024 }
    }
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
    /// It needs no right there but to write to the exchange `doorbell.events`, once a service of Doorbell's was connected.
    ///
    /// # Errors
    /// A URL is wrong, or no node answers within 15 seconds.
    pub async fn connect(amqp_urls: &str) -> Result<Self, PublishError> {
        Self::connect_with(amqp_urls, Options::default()).await
    }

    /// The same where the usual is not enough.
    ///
    /// # Errors
    /// As above.
    pub async fn connect_with(amqp_urls: &str, options: Options) -> Result<Self, PublishError> {
        let Options { ca_pem, max_event_bytes } = options;
        tls::install();
        let urls: Vec<String> = amqp_urls.split(',').map(|url| url.trim().to_owned()).collect();
        let cannot = |error: anyhow::Error| PublishError::Connect(sentence(&error));
        let trust = ca_pem.map(Trust::of).transpose().map_err(cannot)?.unwrap_or_default();
        let name = "doorbell-producer-library";
        let broker = Broker::new(&urls, trust, name, Declares::IfMissing).map_err(cannot)?;
        let (registry, shutdown) = (Registry::new(), Shutdown::default());
        let publisher = Health::new(&registry, &[(Dependency::RabbitmqPublish, true)])
            .and_then(|health| {
                let inner = broker::Publisher::start(broker, health.clone(), &registry, &shutdown)?;
                Ok((inner, health))
            })
            .map_err(|error| PublishError::Connect(error.to_string()));
        let (inner, health) = publisher?;
        let publisher = Self { inner, shutdown, max_event_bytes };
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
