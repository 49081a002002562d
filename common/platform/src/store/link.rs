//! One connection to Redis, whether it is one server or a cluster, which is made anew when commands end in vain
//! over it.
//!
//! The client (redis 1.8) makes one anew that has broken, but there are others that are of no use:
//!
//! - whose packets nobody answers any more, because a host was lost, or what stood in between has forgotten the
//!   connection: the system says so only after a quarter of an hour;
//! - to a cluster of which one node is frozen: the client asks it for the slots that it had, on and on, although a
//!   replica has taken its place;
//! - to a cluster, when a node dies: while the client reads anew who has what, it polls nothing else, not even the
//!   task of its own whose turn with their common lock it is, and so may lock itself up for good (one of four
//!   did, at the first failover under load);
//! - to a server that is only a replica now: its name may lead to another one meanwhile.

mod failure;

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use prometheus::{IntCounterVec, Registry};
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::{
    Client, Cmd, ErrorKind, IntoConnectionInfo as _, Pipeline, RedisError, RedisFuture,
    RedisResult, TlsCertificates, Value,
};

use crate::metrics::counters;
use crate::tls::Trust;
use failure::{Failure, InVain, failure, first_failure};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may take to connect to a cluster, all nodes together.
const CLUSTER_TIMEOUT: Duration = Duration::from_secs(10);

/// Redis: connected to when first used, because it may not be up yet. Cheap to clone.
#[derive(Clone)]
pub(super) struct Link {
    inner: Arc<Inner>,
}

struct Inner {
    server: Server,
    current: RwLock<Option<Line>>,
    /// Held by whoever connects.
    connecting: tokio::sync::Mutex<()>,
    /// Commands that failed, by reason.
    failures: IntCounterVec,
}

#[expect(clippy::large_enum_variant, reason = "there is one of it")]
enum Server {
    /// One.
    Single(Client),
    /// Several that share the keys.
    Cluster(ClusterClient),
}

/// A connection, and what has come of it. Cheap to clone.
#[derive(Clone)]
struct Line {
    connection: Connection,
    in_vain: InVain,
}

/// A multiplexed connection.
#[derive(Clone)]
enum Connection {
    Single(ConnectionManager),
    Cluster(ClusterConnection),
}

impl Link {
    pub(super) fn new(urls: &[String], trust: &Trust, registry: &Registry) -> anyhow::Result<Self> {
        let certificates = trust.ca_pem.as_ref().map(|pem| TlsCertificates {
            client_tls: None,
            root_cert: Some(pem.as_bytes().to_vec()),
        });
        let server = match urls {
            [] => anyhow::bail!("--redis-url is empty"),
            [url] => Server::single(url, certificates)?,
            nodes => Server::cluster(nodes, certificates)?,
        };
        let (current, connecting) = (RwLock::default(), tokio::sync::Mutex::default());
        let failures = counters(
            registry,
            ("doorbell_redis_failures_total", "Commands that Redis did not carry out, by reason."),
            "reason",
            Failure::ALL.map(Failure::as_str),
        )?;
        Ok(Self { inner: Arc::new(Inner { server, current, connecting, failures }) })
    }

    /// Whether keys of one command must have one hash tag.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.inner.server, Server::Cluster(_))
    }
}

impl Server {
    fn single(url: &str, certificates: Option<TlsCertificates>) -> anyhow::Result<Self> {
        // The client's own error would repeat the URL, and with it a password.
        let info = url
            .into_connection_info()
            .map_err(|_| anyhow::anyhow!("--redis-url is not a valid Redis URL"))?;
        let client = match certificates {
            Some(certificates) if url.starts_with("rediss:") => {
                Client::build_with_tls(info, certificates)
            }
            _ => Client::open(info),
        };
        Ok(Self::Single(client.context("--redis-url")?))
    }

    fn cluster(nodes: &[String], certificates: Option<TlsCertificates>) -> anyhow::Result<Self> {
        for node in nodes {
            node.as_str().into_connection_info().map_err(|_| {
                anyhow::anyhow!("--redis-url has an entry that is not a valid Redis URL")
            })?;
        }
        let nodes: Vec<&str> = nodes.iter().map(String::as_str).collect();
        let mut builder = ClusterClientBuilder::new(nodes)
            .connection_timeout(CONNECT_TIMEOUT)
            .response_timeout(RESPONSE_TIMEOUT)
            .retries(2);
        if let Some(certificates) = certificates {
            builder = builder.certs(certificates);
        }
        Ok(Self::Cluster(builder.build().context("--redis-url")?))
    }

    async fn connect(&self) -> RedisResult<Connection> {
        match self {
            Self::Single(client) => {
                let config = ConnectionManagerConfig::new()
                    .set_connection_timeout(Some(CONNECT_TIMEOUT))
                    .set_response_timeout(Some(RESPONSE_TIMEOUT))
                    // Who needs Redis tries again by its own plan; a command should fail soon.
                    .set_number_of_retries(1)
                    .set_max_delay(Duration::from_millis(500));
                let manager = ConnectionManager::new_lazy_with_config(client.clone(), config)?;
                Ok(Connection::Single(manager))
            }
            Self::Cluster(client) => {
                let connecting = client.get_async_connection();
                let connected = tokio::time::timeout(CLUSTER_TIMEOUT, connecting).await;
                let too_late = || RedisError::from((ErrorKind::Io, "the cluster does not answer"));
                Ok(Connection::Cluster(connected.map_err(|_| too_late())??))
            }
        }
    }
}

impl Inner {
    /// The connection that there is, or a new one.
    async fn line(&self) -> RedisResult<Line> {
        if let Some(line) = self.current() {
            return Ok(line);
        }
        let _connecting = self.connecting.lock().await;
        match self.current() {
            Some(line) => Ok(line),
            None => self.connect().await,
        }
    }

    fn current(&self) -> Option<Line> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn connect(&self) -> RedisResult<Line> {
        let connected = self.server.connect().await;
        let connection = connected.inspect_err(|_| self.count(Failure::Unreachable))?;
        let line = Line { connection, in_vain: InVain::begin() };
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(line.clone());
        Ok(line)
    }

    /// Takes note that a command over this connection failed; has it replaced if it is of no use. In a task of its
    /// own, because whoever waits for a command may give up; all go on meanwhile with the one that there is.
    #[expect(clippy::disallowed_methods, reason = "one that is lost at shutdown is not missed")]
    fn failed(self: &Arc<Self>, line: &Line, failure: Failure) {
        self.count(failure);
        if line.in_vain.is_enough(failure) {
            tokio::spawn(Arc::clone(self).replace(line.in_vain.clone(), failure));
        }
    }

    fn count(&self, failure: Failure) {
        self.failures.with_label_values(&[failure.as_str()]).inc();
    }

    async fn replace(self: Arc<Self>, of_no_use: InVain, failure: Failure) {
        let Ok(_connecting) = self.connecting.try_lock() else { return };
        if !self.current().is_some_and(|current| current.in_vain.is_same(&of_no_use)) {
            return;
        }
        tracing::warn!(reason = failure.as_str(), "commands to Redis end in vain: connecting anew");
        if let Err(error) = self.connect().await {
            tracing::debug!(%error, "no new connection to Redis");
        }
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let mut line = self.inner.line().await?;
            let answer = match &mut line.connection {
                Connection::Single(manager) => manager.req_packed_command(cmd).await,
                Connection::Cluster(cluster) => cluster.req_packed_command(cmd).await,
            };
            if let Some(failure) = failure(&answer) {
                self.inner.failed(&line, failure);
            }
            answer
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let mut line = self.inner.line().await?;
            let answer = match &mut line.connection {
                Connection::Single(manager) => {
                    manager.req_packed_commands(cmd, offset, count).await
                }
                Connection::Cluster(cluster) => {
                    cluster.req_packed_commands(cmd, offset, count).await
                }
            };
            if let Some(failure) = first_failure(&answer) {
                self.inner.failed(&line, failure);
            }
            answer
        })
    }

    fn get_db(&self) -> i64 {
        match &self.inner.server {
            Server::Single(client) => client.get_connection_info().redis_settings().db(),
            Server::Cluster(_) => 0,
        }
    }
}
