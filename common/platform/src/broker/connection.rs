//! Connecting to one of RabbitMQ's nodes, and what may be believed of a connection.
//!
//! The client (lapin 4.12) has no time limits of its own, and a call that is made just while its
//! connection breaks may never be answered: a dispatcher that had lost RabbitMQ then waited for ever to
//! have closed what was gone already. So nothing waits for it without [`in_time`], [`close`],
//! [`until_lost`] or a limit of its own.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use lapin::tcp::OwnedTLSConfig;
use lapin::uri::AMQPUri;
use lapin::{Connection, ConnectionProperties};
use tokio::sync::OnceCell;
use url::{Host, Url};

use super::readable;
use super::topology::{self, Sharding};
use crate::tls::Trust;

/// How long one node may take to answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that has been silent for twice this long is dead.
const HEARTBEAT_SECONDS: u16 = 10;
/// How long RabbitMQ may take for what it is asked. Long, because the first declaration of all queues in a
/// busy cluster is; a connection that is lost mostly says so at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to say goodbye.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a connection is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// The nodes of one RabbitMQ. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Broker {
    inner: Arc<Inner>,
}

struct Inner {
    nodes: Vec<AMQPUri>,
    trust: Trust,
    service: &'static str,
    declares: Declares,
    /// The node to try first, so that replicas and reconnects spread.
    next: AtomicUsize,
    sharding: OnceCell<Sharding>,
}

/// When exchanges and queues are declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Declares {
    /// With each connection, so that what someone has deleted is made anew.
    Always,
    /// If they are not there: an application that only publishes may not have the right to, and there may be very many.
    IfMissing,
}

/// Without URLs, which may hold passwords.
impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inner").field("nodes", &self.nodes.len()).finish_non_exhaustive()
    }
}

impl Broker {
    /// The RabbitMQ at these URLs. Connects to nothing yet.
    ///
    /// # Errors
    /// There is no URL, or one is wrong. A password is never part of the message.
    pub fn new(
        urls: &[String],
        trust: Trust,
        service: &'static str,
        declares: Declares,
    ) -> anyhow::Result<Self> {
        let mut nodes = Vec::new();
        for (i, url) in urls.iter().enumerate() {
            let node = node(url).with_context(|| format!("--amqp-url number {}", i + 1))?;
            nodes.push(node);
        }
        anyhow::ensure!(!nodes.is_empty(), "--amqp-url is empty");
        let (next, sharding) = (AtomicUsize::new(0), OnceCell::new());
        Ok(Self { inner: Arc::new(Inner { nodes, trust, service, declares, next, sharding }) })
    }

    /// How many nodes are known.
    pub(super) fn nodes(&self) -> usize {
        self.inner.nodes.len()
    }

    /// Connects to the first node that answers; each is tried once.
    ///
    /// # Errors
    /// None answered; says what the last one said.
    pub async fn connect(&self, purpose: &str) -> anyhow::Result<Connection> {
        let start = self.inner.next.fetch_add(1, Ordering::Relaxed);
        let count = self.inner.nodes.len();
        let mut last_error = None;
        for i in 0..count {
            let node = &self.inner.nodes[(start + i) % count];
            match self.connect_to(node, purpose).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last_error = Some(error),
            }
        }
        Err(last_error.unwrap_or_else(|| anyhow::anyhow!("no RabbitMQ node is known")))
    }

    async fn connect_to(&self, node: &AMQPUri, purpose: &str) -> anyhow::Result<Connection> {
        let place = format!("{}:{}", node.authority.host, node.authority.port);
        let name = format!("{} {purpose}", self.inner.service);
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let tls = OwnedTLSConfig { identity: None, cert_chain: self.inner.trust.ca_pem.clone() };
        // On the heap, for it is large.
        let connecting = Box::pin(readable::connect(node.clone(), properties, tls));
        tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .with_context(|| format!("RabbitMQ at {place} does not answer"))?
            .with_context(|| format!("cannot connect to RabbitMQ at {place}"))
    }

    /// Declares every exchange and queue, idempotently.
    ///
    /// # Errors
    /// RabbitMQ is not reachable, or something exists with other arguments, or may not be declared; it is named.
    pub async fn declare_topology(&self, connection: &Connection) -> anyhow::Result<()> {
        match self.inner.declares {
            Declares::Always => self.declare(connection).await,
            Declares::IfMissing => {
                if in_time(connection, topology::is_declared(connection)).await? {
                    return Ok(());
                }
                let what = "exchanges and queues are not there yet, and cannot be declared (start a service of Doorbell's first)";
                self.declare(connection).await.context(what)
            }
        }
    }

    async fn declare(&self, connection: &Connection) -> anyhow::Result<()> {
        let sharding = *self.inner.sharding.get_or_try_init(|| self.find_sharding()).await?;
        // On the heap, for it is large.
        in_time(connection, Box::pin(topology::declare(connection, sharding))).await
    }

    /// Declares everything anew, after something was deleted. On a connection of its own: a
    /// declaration that fails closes its channel, or worse.
    ///
    /// # Errors
    /// As above.
    pub async fn redeclare(&self) -> anyhow::Result<()> {
        let connection = self.connect("declare").await?;
        let declared = self.declare_topology(&connection).await;
        close(connection).await;
        declared
    }

    /// Whether the broker has the consistent-hash exchange. Asked on a connection of its own,
    /// because the answer "no" may close it.
    async fn find_sharding(&self) -> anyhow::Result<Sharding> {
        let connection = self.connect("probe").await?;
        let sharding = in_time(&connection, topology::probe_sharding(&connection)).await?;
        close(connection).await;
        if sharding == Sharding::Single {
            tracing::warn!(
                "RabbitMQ has no plugin rabbitmq_consistent_hash_exchange: all tenants share one queue"
            );
        }
        Ok(sharding)
    }
}

/// A node's URL, read as RabbitMQ's own clients do. The client's words for one that is wrong may repeat it, and so a
/// password.
fn node(text: &str) -> anyhow::Result<AMQPUri> {
    let url = Url::parse(text).map_err(anyhow::Error::from)?;
    anyhow::ensure!(["amqp", "amqps"].contains(&url.scheme()), "it must be amqp:// or amqps://");
    let node = text.parse::<AMQPUri>().ok();
    let mut node =
        node.context("it is not understood: is it like amqp://user:password@host:5672/vhost?")?;
    // The client takes localhost instead.
    if let Some(Host::Ipv6(address)) = url.host() {
        node.authority.host = address.to_string();
    }
    if node.vhost.is_empty() {
        "/".clone_into(&mut node.vhost);
    }
    node.query.heartbeat.get_or_insert(HEARTBEAT_SECONDS);
    Ok(node)
}

/// What RabbitMQ answers, in time, and while this connection lives.
///
/// # Errors
/// It is an error, there was no answer within a minute, or the connection was lost.
pub async fn in_time<T, E: Into<anyhow::Error>>(
    connection: &Connection,
    asking: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    tokio::select! {
        // What the client says of a connection that is lost is better than that it is.
        biased;
        answer = answered(asking) => answer,
        () = until_lost(connection) => anyhow::bail!("the connection to RabbitMQ was lost"),
    }
}

/// What RabbitMQ answers, in time, where someone else looks after the connection.
///
/// # Errors
/// It is an error, or there was no answer within a minute.
pub(super) async fn answered<T, E: Into<anyhow::Error>>(
    asking: impl Future<Output = Result<T, E>>,
) -> anyhow::Result<T> {
    let answer = tokio::time::timeout(ANSWER_TIMEOUT, asking).await;
    answer.context("RabbitMQ does not answer")?.map_err(Into::into)
}

/// Closes a connection that is no use any more; one that RabbitMQ does not let go within 5 s is left to
/// itself.
pub async fn close(connection: Connection) {
    // It may be closed already; then there is nothing to close.
    drop(tokio::time::timeout(CLOSE_TIMEOUT, say_goodbye(&connection)).await);
}

/// A channel that is dropped is closed by the client in its own time. Should the connection's close catch up
/// with that, the client takes it for an error and breaks the connection off instead, which RabbitMQ warns of
/// in its log. So one more channel is opened and closed first: whatever was dropped before is closed by then.
async fn say_goodbye(connection: &Connection) -> lapin::Result<()> {
    if let Ok(last) = connection.create_channel().await {
        // It is for its place in line alone.
        drop(last.close(200, "done".into()).await);
    }
    connection.close(200, "done".into()).await
}

/// Waits until a connection is no use any more.
pub async fn until_lost(connection: &Connection) {
    while connection.status().connected() {
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_password_is_printed() {
        let urls = ["amqp://me:hidden@127.0.0.1/%2f".to_owned()];
        let broker = Broker::new(&urls, Trust::default(), "test", Declares::Always).unwrap();
        assert!(!format!("{broker:?}").contains("hidden"));
        for wrong in [
            "ampq://me:hidden@x/",
            "amqp:me:hidden@x",
            "amqp://me:hidden@x:y/",
            "amqp://me:hidden@x/?heartbeat=hidden",
            "hidden",
        ] {
            let urls = [wrong.to_owned()];
            let error = Broker::new(&urls, Trust::default(), "test", Declares::Always).unwrap_err();
            assert!(!format!("{error:?}").contains("hidden"), "{error:?}");
            assert!(error.to_string().contains("--amqp-url number 1"), "{error:?}");
        }
    }

    #[test]
    fn a_url_says_which_node() {
        for (url, place) in [
            ("amqp://rabbit", ("rabbit", 5672, "/")),
            ("amqp://rabbit/", ("rabbit", 5672, "/")),
            ("amqps://u:p@rabbit:5000/%2f", ("rabbit", 5000, "/")),
            ("amqp://10.0.0.1/a", ("10.0.0.1", 5672, "a")),
            ("amqp://u:p@[2001:db8::1]:5000/a", ("2001:db8::1", 5000, "a")),
            ("amqps://[::1]", ("::1", 5671, "/")),
        ] {
            let AMQPUri { authority, vhost, .. } = node(url).unwrap();
            assert_eq!((authority.host.as_str(), authority.port, vhost.as_str()), place, "{url}");
        }
    }
}
