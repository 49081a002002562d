//! One connection to Redis, whether it is one server or a cluster.

use std::time::Duration;

use anyhow::Context as _;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::{
    Client, Cmd, IntoConnectionInfo as _, Pipeline, RedisFuture, RedisResult, TlsCertificates,
    Value,
};
use std::sync::Arc;
use tokio::sync::Mutex;

use crate::tls::Trust;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A multiplexed connection that comes back by itself. Cheap to clone.
#[derive(Clone)]
pub(super) enum Link {
    /// One server.
    Single(ConnectionManager),
    /// A cluster; connected when first used, because its nodes may not be up yet.
    Cluster { client: Arc<ClusterClient>, connection: Arc<Mutex<Option<ClusterConnection>>> },
}

impl Link {
    pub(super) fn new(urls: &[String], trust: &Trust) -> anyhow::Result<Self> {
        let certificates = trust.ca_pem.as_ref().map(|pem| TlsCertificates {
            client_tls: None,
            root_cert: Some(pem.as_bytes().to_vec()),
        });
        match urls {
            [] => anyhow::bail!("--redis-url is empty"),
            [url] => Self::single(url, certificates),
            nodes => Self::cluster(nodes, certificates),
        }
    }

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
        }
        .context("--redis-url")?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONNECT_TIMEOUT))
            .set_response_timeout(Some(RESPONSE_TIMEOUT))
            // Who needs Redis tries again by its own plan; a command should fail soon.
            .set_number_of_retries(1)
            .set_max_delay(Duration::from_millis(500));
        Ok(Self::Single(ConnectionManager::new_lazy_with_config(client, config)?))
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
        let client = builder.build().context("--redis-url")?;
        Ok(Self::Cluster { client: Arc::new(client), connection: Arc::default() })
    }

    /// Whether keys of one command must have one hash tag.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster { .. })
    }

    async fn cluster_connection(
        client: &ClusterClient,
        connection: &Mutex<Option<ClusterConnection>>,
    ) -> RedisResult<ClusterConnection> {
        let mut slot = connection.lock().await;
        if let Some(connection) = &*slot {
            return Ok(connection.clone());
        }
        let fresh = client.get_async_connection().await?;
        Ok(slot.insert(fresh).clone())
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            match self {
                Self::Single(manager) => manager.req_packed_command(cmd).await,
                Self::Cluster { client, connection } => {
                    Self::cluster_connection(client, connection)
                        .await?
                        .req_packed_command(cmd)
                        .await
                }
            }
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        cmd: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            match self {
                Self::Single(manager) => manager.req_packed_commands(cmd, offset, count).await,
                Self::Cluster { client, connection } => {
                    Self::cluster_connection(client, connection)
                        .await?
                        .req_packed_commands(cmd, offset, count)
                        .await
                }
            }
        })
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(manager) => manager.get_db(),
            Self::Cluster { .. } => 0,
        }
    }
}
