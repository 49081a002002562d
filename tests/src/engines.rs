//! RabbitMQ and Redis for the stories: one pair that most share, and private ones for those that
//! break them.

use std::path::PathBuf;
use std::sync::Arc;

use doorbell_local::engines::{POLICY, RabbitMq, Redis, TlsFiles};
use doorbell_local::packages::{self, RABBITMQ, REDIS};
use doorbell_local::paths;
use doorbell_local::process::Process;
use doorbell_local::state::{Trace, read_traces, write_whole};
use redis::AsyncConnectionConfig;
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use tokio::sync::{Mutex, OnceCell};

use crate::wait::seconds;

/// A pair of engines.
#[derive(Debug)]
pub struct Engines {
    /// RabbitMQ, or the first node of its cluster.
    pub rabbitmq: Mutex<RabbitMq>,
    /// The other nodes.
    pub other_nodes: Vec<Mutex<RabbitMq>>,
    /// Redis.
    pub redis: Mutex<Redis>,
    /// Its ports for AMQP, one of each node.
    pub amqp_ports: Vec<u16>,
    /// The ports for TLS, of RabbitMQ and of Redis.
    pub tls_ports: Option<(u16, u16)>,
    /// Its port for the management API.
    pub management_port: u16,
    /// Redis's URL.
    pub redis_url: String,
}

/// What RabbitMQ is started with, unless a story wants otherwise.
pub const PLUGINS: [&str; 2] = ["rabbitmq_management", "rabbitmq_consistent_hash_exchange"];

/// What a user of RabbitMQ may do, each with things whose names are as this regular expression says.
#[derive(Clone, Copy, Debug)]
pub struct Rights {
    /// Declare and delete.
    pub configure: &'static str,
    /// Publish, and bind what messages come to.
    pub write: &'static str,
    /// Consume, and bind what they come from.
    pub read: &'static str,
}

static SHARED: OnceCell<Arc<Engines>> = OnceCell::const_new();

/// The folder of this run.
#[must_use]
pub fn folder() -> PathBuf {
    paths::workspace().join("target/stories")
}

/// Ends what an earlier run has left behind, and installs what is missing. Call it first.
///
/// # Errors
/// Something is missing and can't be installed.
pub fn prepare() -> anyhow::Result<()> {
    for trace in read_traces(&folder().join("processes.json")) {
        trace.signal(nix::sys::signal::Signal::SIGKILL);
    }
    if folder().exists() {
        std::fs::remove_dir_all(folder())?;
    }
    std::fs::create_dir_all(folder())?;
    packages::ensure(&[RABBITMQ, REDIS], |line| eprintln!("{line}"))
}

/// Notes a process, so that a later run can end it if this one can't.
///
/// # Errors
/// The note can't be written.
pub fn note(process: &Process) -> anyhow::Result<()> {
    static NOTES: std::sync::Mutex<Vec<Trace>> = std::sync::Mutex::new(Vec::new());
    let mut notes = NOTES.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    notes.extend(Trace::of(process.pid()));
    write_whole(&folder().join("processes.json"), &*notes)
}

/// The pair that most stories share.
///
/// # Errors
/// It could not be started.
pub async fn shared() -> anyhow::Result<Arc<Engines>> {
    SHARED
        .get_or_try_init(|| async { Ok(Arc::new(Engines::start("shared", &PLUGINS).await?)) })
        .await
        .cloned()
}

/// Ends the shared pair, if it was ever started.
pub async fn end() {
    if let Some(engines) = SHARED.get() {
        engines.rabbitmq.lock().await.end().await;
        engines.redis.lock().await.kill().await;
    }
}

impl Engines {
    /// Starts a pair of its own.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn start(name: &str, plugins: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(name, plugins, None, 1).await
    }

    /// Starts a pair of its own that speaks TLS, too, or whose RabbitMQ is a cluster of so many nodes.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn start_with(
        name: &str,
        plugins: &[&str],
        tls: Option<&TlsFiles>,
        nodes: usize,
    ) -> anyhow::Result<Self> {
        let folder = folder().join(name);
        anyhow::ensure!(!folder.exists(), "another story has engines of the name {name}");
        let (rabbitmq_folder, redis_folder) = (folder.join("rabbitmq"), folder.join("redis"));
        let (mut rabbitmq, mut redis) = tokio::try_join!(
            RabbitMq::start(&rabbitmq_folder, plugins, tls),
            Redis::start(&redis_folder, tls, &[])
        )?;
        note(rabbitmq.process())?;
        rabbitmq.names().map_or(Ok(()), note)?;
        note(redis.process())?;
        let mut amqp_ports = vec![rabbitmq.port];
        let mut other_nodes = Vec::new();
        for number in 2..=nodes {
            let folder = folder.join(format!("rabbitmq-{number}"));
            let mut node = rabbitmq.start_beside(&folder, plugins).await?;
            note(node.process())?;
            amqp_ports.push(node.port);
            other_nodes.push(Mutex::new(node));
        }
        Ok(Self {
            amqp_ports,
            other_nodes,
            tls_ports: rabbitmq.tls_port.zip(redis.tls_port),
            management_port: rabbitmq.management_port,
            redis_url: redis.url(),
            rabbitmq: Mutex::new(rabbitmq),
            redis: Mutex::new(redis),
        })
    }

    /// The URL of a virtual host; of a cluster, that of each node, separated by commas.
    #[must_use]
    pub fn amqp_url(&self, vhost: &str) -> String {
        self.amqp_url_of("guest", vhost)
    }

    /// The same for another user, whose password is his name.
    #[must_use]
    pub fn amqp_url_of(&self, user: &str, vhost: &str) -> String {
        let url = |port: &u16| format!("amqp://{user}:{user}@127.0.0.1:{port}/{vhost}");
        self.amqp_ports.iter().map(url).collect::<Vec<_>>().join(",")
    }

    /// Every node of RabbitMQ.
    pub fn nodes(&self) -> impl Iterator<Item = &Mutex<RabbitMq>> {
        std::iter::once(&self.rabbitmq).chain(&self.other_nodes)
    }

    /// A connection to Redis, more patient than the client's half a second: on a machine with a whole
    /// Doorbell or more, an answer may take longer.
    ///
    /// # Errors
    /// Redis is not there.
    pub async fn redis_link(&self) -> anyhow::Result<MultiplexedConnection> {
        let patient = AsyncConnectionConfig::new().set_response_timeout(Some(seconds(30)));
        let client = redis::Client::open(self.redis_url.as_str())?;
        Ok(client.get_multiplexed_async_connection_with_config(&patient).await?)
    }

    /// Asks RabbitMQ's management API.
    ///
    /// # Errors
    /// It refused.
    pub async fn manage(&self, method: reqwest::Method, path: &str) -> anyhow::Result<Value> {
        self.manage_with(method, path, Value::Null).await
    }

    async fn manage_with(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Value,
    ) -> anyhow::Result<Value> {
        let url = format!("http://127.0.0.1:{}/api/{path}", self.management_port);
        let client = reqwest::Client::builder().no_proxy().build()?;
        let mut request = client.request(method, url).basic_auth("guest", Some("guest"));
        if !body.is_null() {
            request = request.json(&body);
        }
        let bytes = request.send().await?.error_for_status()?.bytes().await?;
        Ok(if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? })
    }

    /// Makes a virtual host, set up as the README has it.
    ///
    /// # Errors
    /// The management API refused.
    pub async fn make_vhost(&self, vhost: &str) -> anyhow::Result<()> {
        self.manage(reqwest::Method::PUT, &format!("vhosts/{vhost}")).await?;
        self.permit("guest", vhost, Rights { configure: ".*", write: ".*", read: ".*" }).await?;
        let definition: Value = serde_json::from_str(POLICY.definition)?;
        let policy =
            json!({ "pattern": POLICY.pattern, "definition": definition, "apply-to": "exchanges" });
        let path = format!("policies/{vhost}/doorbell");
        self.manage_with(reqwest::Method::PUT, &path, policy).await.map(drop)
    }

    /// Makes a user of RabbitMQ, whose password is his name, with these rights in a virtual host.
    ///
    /// # Errors
    /// The management API refused.
    pub async fn make_user(&self, user: &str, vhost: &str, rights: Rights) -> anyhow::Result<()> {
        let body = json!({ "password": user, "tags": "" });
        self.manage_with(reqwest::Method::PUT, &format!("users/{user}"), body).await?;
        self.permit(user, vhost, rights).await
    }

    async fn permit(&self, user: &str, vhost: &str, rights: Rights) -> anyhow::Result<()> {
        let Rights { configure, write, read } = rights;
        let body = json!({ "configure": configure, "write": write, "read": read });
        let path = format!("permissions/{vhost}/{user}");
        self.manage_with(reqwest::Method::PUT, &path, body).await.map(drop)
    }

    /// Makes a user of Redis, whose password is his name, with these rights; answers the URL for him.
    ///
    /// # Errors
    /// Redis refused.
    pub async fn make_redis_user(&self, user: &str, rights: &str) -> anyhow::Result<String> {
        let mut set = redis::cmd("ACL");
        set.arg("SETUSER").arg(user).arg("on").arg(format!(">{user}"));
        rights.split(' ').for_each(|right| {
            set.arg(right);
        });
        set.exec_async(&mut self.redis_link().await?).await?;
        Ok(self.redis_url.replacen("://", &format!("://{user}:{user}@"), 1))
    }

    /// Closes every connection of a virtual host, as an operator would.
    ///
    /// # Errors
    /// `rabbitmqctl` failed.
    pub async fn close_connections(&self, vhost: &str) -> anyhow::Result<()> {
        self.rabbitmq
            .lock()
            .await
            .ctl(&["close_all_connections", "--vhost", vhost, "closed by a test"])
            .await?;
        Ok(())
    }
}
