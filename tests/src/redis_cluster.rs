//! A cluster of Redis: three masters, with replicas that take their places if a story wants to lose one.

use anyhow::Context as _;
use doorbell_local::engines::Redis;
use nix::sys::signal::Signal;
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use tokio::process::Command;

use crate::engines;
use crate::wait::{eventually, seconds};

const MASTERS: usize = 3;
/// After so long without a sign a master is taken for dead.
const NODE_TIMEOUT_MS: u32 = 2000;

/// A cluster of Redis.
#[derive(Debug)]
pub struct RedisCluster {
    /// The masters first, as it is formed.
    nodes: Vec<Redis>,
}

impl RedisCluster {
    /// Starts one in which each master has so many replicas.
    ///
    /// # Errors
    /// A node could not be started, or they don't form a cluster.
    pub async fn start(name: &str, replicas: usize) -> anyhow::Result<Self> {
        let folder = engines::folder().join(name);
        anyhow::ensure!(!folder.exists(), "another story has a cluster of the name {name}");
        let mut nodes = Vec::new();
        for n in 0..MASTERS * (1 + replicas) {
            let mut node =
                Redis::start(&folder.join(n.to_string()), None, &["cluster-enabled"]).await?;
            engines::note(node.process())?;
            nodes.push(node);
        }
        let cluster = Self { nodes };
        for node in &cluster.nodes {
            let mut timeout = redis::cmd("CONFIG");
            timeout.arg("SET").arg("cluster-node-timeout").arg(NODE_TIMEOUT_MS);
            ask::<String>(node, &timeout).await?;
        }
        let addresses = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        let mut create = Command::new("redis-cli");
        create.args(["--cluster", "create"]).args(addresses);
        create.args(["--cluster-replicas", &replicas.to_string(), "--cluster-yes"]);
        let output = create.output().await?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        cluster.until_whole().await?;
        Ok(cluster)
    }

    /// The URLs of all nodes, separated by commas.
    #[must_use]
    pub fn urls(&self) -> String {
        self.nodes.iter().map(Redis::url).collect::<Vec<_>>().join(",")
    }

    /// Kills the node that is the master of this key just now; answers which one that was.
    ///
    /// # Errors
    /// Nobody knows who is.
    pub async fn kill_master_of(&mut self, key: &str) -> anyhow::Result<usize> {
        let number = self.master_of(key).await.with_context(|| format!("who has {key}?"))?;
        self.nodes[number].kill().await;
        Ok(number)
    }

    /// Freezes the node that is the master of this key just now, so that it says nothing and keeps its connections;
    /// answers which one that was.
    ///
    /// # Errors
    /// Nobody knows who is.
    pub async fn freeze_master_of(&mut self, key: &str) -> anyhow::Result<usize> {
        let number = self.master_of(key).await.with_context(|| format!("who has {key}?"))?;
        self.nodes[number].process().signal(Signal::SIGSTOP)?;
        Ok(number)
    }

    /// Lets a frozen node go on, and waits until everyone has what it should.
    ///
    /// # Errors
    /// It has ended.
    pub async fn thaw(&mut self, number: usize) -> anyhow::Result<()> {
        self.nodes.get_mut(number).context("no such node")?.process().signal(Signal::SIGCONT)?;
        self.until_whole().await
    }

    /// Moves everything from the master of one key to the master of another one, while it is used.
    ///
    /// # Errors
    /// It could not be moved, or they are the same.
    pub async fn move_all(&self, from: &str, to: &str) -> anyhow::Result<()> {
        let master = async |key: &str| {
            let number = self.master_of(key).await.with_context(|| format!("who has {key}?"))?;
            let node = self.nodes.get(number).context("no such node")?;
            anyhow::Ok((node.port, ask::<String>(node, redis::cmd("CLUSTER").arg("MYID")).await?))
        };
        let ((port, from), (_, to)) = (master(from).await?, master(to).await?);
        let mut reshard = Command::new("redis-cli");
        reshard.args(["--cluster", "reshard", &format!("127.0.0.1:{port}")]);
        reshard.args(["--cluster-from", &from, "--cluster-to", &to]);
        reshard.args(["--cluster-slots", "16384", "--cluster-yes"]);
        let output = reshard.output().await?;
        anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        Ok(())
    }

    /// Waits until there is a master of this key.
    ///
    /// # Errors
    /// There is none, for too long.
    pub async fn until_served(&self, key: &str) -> anyhow::Result<()> {
        let is_served = || async { self.master_of(key).await.is_some() };
        eventually("a replica takes its master's place", seconds(60), is_served).await
    }

    /// A connection to one of the nodes.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn link(&self, number: usize) -> anyhow::Result<MultiplexedConnection> {
        let node = self.nodes.get(number).context("no such node")?;
        Ok(link(node).await?)
    }

    /// The node that is the master of this key just now.
    pub async fn master_of(&self, key: &str) -> Option<usize> {
        let mut exists = redis::cmd("EXISTS");
        exists.arg(key);
        for (number, node) in self.nodes.iter().enumerate() {
            // The others say who does.
            if ask::<u8>(node, &exists).await.is_ok() {
                return Some(number);
            }
        }
        None
    }

    /// Starts a node again that was killed, and waits until everyone has what it should.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn start_again(&mut self, number: usize) -> anyhow::Result<()> {
        self.nodes.get_mut(number).context("no such node")?.start_again().await?;
        self.until_whole().await
    }

    /// Waits until every node knows that all is well, and every replica has what its master has.
    async fn until_whole(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            eventually("the cluster is whole", seconds(60), || is_well(node)).await?;
        }
        Ok(())
    }

    /// Ends it.
    pub async fn end(&mut self) {
        for node in &mut self.nodes {
            node.kill().await;
        }
    }
}

async fn is_well(node: &Redis) -> bool {
    let cluster = ask::<String>(node, redis::cmd("CLUSTER").arg("INFO")).await;
    let replication = ask::<String>(node, redis::cmd("INFO").arg("replication")).await;
    let has_all =
        |info: &str| info.contains("role:master") || info.contains("master_link_status:up");
    cluster.is_ok_and(|info| info.contains("cluster_state:ok"))
        && replication.is_ok_and(|info| has_all(&info))
}

/// A connection more patient than the client's half a second, and not so patient that one who waits for a frozen
/// node's place to be taken would not see it.
async fn link(node: &Redis) -> redis::RedisResult<MultiplexedConnection> {
    let patient = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(seconds(5)))
        .set_response_timeout(Some(seconds(5)));
    let client = redis::Client::open(node.url())?;
    client.get_multiplexed_async_connection_with_config(&patient).await
}

async fn ask<T: redis::FromRedisValue>(
    node: &Redis,
    command: &redis::Cmd,
) -> redis::RedisResult<T> {
    command.query_async(&mut link(node).await?).await
}
