//! One connection to Redis, whether it is one server or a cluster.

mod cluster;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use redis::aio::{ConnectionLike, ConnectionManager, ConnectionManagerConfig};
use redis::cluster::ClusterClientBuilder;
use redis::{Client, Cmd, IntoConnectionInfo as _, Pipeline, RedisFuture, TlsCertificates, Value};

use crate::tls::Trust;
use cluster::Cluster;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(2);

/// A multiplexed connection that comes back by itself. Cheap to clone.
#[derive(Clone)]
pub(super) enum Link {
    /// One server.
    Single(ConnectionManager),
    /// Several that share the keys.
    Cluster(Arc<Cluster>),
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
        Ok(Self::Cluster(Arc::new(Cluster::new(client))))
    }

    /// Whether keys of one command must have one hash tag.
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            match self {
                Self::Single(manager) => manager.req_packed_command(cmd).await,
                Self::Cluster(cluster) => {
                    let mut line = cluster.line().await?;
                    let answer = line.connection.req_packed_command(cmd).await;
                    cluster.judge(&line, &answer).await;
                    answer
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
                Self::Cluster(cluster) => {
                    let mut line = cluster.line().await?;
                    let answer = line.connection.req_packed_commands(cmd, offset, count).await;
                    cluster.judge(&line, &answer).await;
                    answer
                }
            }
        })
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(manager) => manager.get_db(),
            Self::Cluster(_) => 0,
        }
    }
}
