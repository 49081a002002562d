//! Private RabbitMQ and Redis instances: own ports, own data, own names. Never those that the
//! machine may run already.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::packages::{RABBITMQ, REDIS};
use crate::ports;
use crate::process::{Process, Spec};

/// How long an engine may take to be ready.
const START: Duration = Duration::from_secs(120);

/// How often a node is started that ends while starting. One of a cluster asks the others for their feature
/// flags, and ends with `incompatible_feature_flags` if one that starts beside it does not know its own yet:
/// seen in two of 25 starts of three nodes at once (RabbitMQ 3.10.8).
const STARTS: u32 = 5;

/// What only this file may say. A message that RabbitMQ moves out of a delay queue while the queue
/// after it is still starting would by default be tried again only after three minutes; a copy more
/// is told by its name. The log of the quorum queues is kept small, as befits a laptop.
const ADVANCED_CONFIG: &str = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}, {ra, [{wal_max_size_bytes, 67108864}]}].\n";

/// The certificate, key and authority of an engine that speaks TLS (PEM files).
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The authority.
    pub ca: PathBuf,
    /// The engine's certificate.
    pub certificate: PathBuf,
    /// The engine's key.
    pub key: PathBuf,
}

/// A policy without which RabbitMQ drops, and confirms, what it is sent for `doorbell.events` while that leads nowhere:
/// others may declare this exchange, plainly, so it has no alternate exchange of its own.
pub const POLICY: Policy = Policy {
    pattern: r"^doorbell\.events$",
    definition: r#"{"alternate-exchange": "doorbell.unrouted"}"#,
};

/// What applies to some exchanges of RabbitMQ.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Those with names like this.
    pub pattern: &'static str,
    /// As JSON.
    pub definition: &'static str,
}

/// A node of a private RabbitMQ, mostly its only one.
#[derive(Debug)]
pub struct RabbitMq {
    process: Process,
    /// Erlang's name service, private too; its port is what keeps our nodes apart from others. All nodes of a
    /// cluster share that of the first.
    names: Option<Process>,
    cluster: Cluster,
    environment: Vec<(String, OsString)>,
    /// The port for AMQP.
    pub port: u16,
    /// The port for AMQP over TLS, if asked for.
    pub tls_port: Option<u16>,
    /// The port of the management API.
    pub management_port: u16,
}

/// What the nodes of a cluster have in common.
#[derive(Clone, Debug)]
struct Cluster {
    /// The first node's name.
    first: String,
    /// The port of the name service.
    names_port: u16,
    /// Where the nodes' common secret is.
    home: PathBuf,
}

impl RabbitMq {
    /// Starts one with its data in `folder`, which is created.
    ///
    /// # Errors
    /// It could not be started; says the end of its log.
    pub async fn start(
        folder: &Path,
        plugins: &[&str],
        tls: Option<&TlsFiles>,
    ) -> anyhow::Result<Self> {
        Self::start_node(folder, plugins, tls, None).await
    }

    /// Starts a further node of this one's cluster, with its data in `folder`, which is created.
    ///
    /// # Errors
    /// It could not be started; says the end of its log.
    pub async fn start_beside(&self, folder: &Path, plugins: &[&str]) -> anyhow::Result<Self> {
        let node = Self::start_node(folder, plugins, None, Some(self.cluster.clone())).await?;
        // It speaks AMQP before it knows of virtual hosts that are made on other nodes.
        node.ctl(&["await_startup"]).await?;
        Ok(node)
    }

    async fn start_node(
        folder: &Path,
        plugins: &[&str],
        tls: Option<&TlsFiles>,
        joins: Option<Cluster>,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder.join("home"))?;
        let [port, tls_port, management_port, distribution_port, names_port] = ports::free()?;
        let name = format!("doorbell-{distribution_port}@localhost");
        let mut config = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\n\
             management.tcp.ip = 127.0.0.1\n\
             management.tcp.port = {management_port}\n\
             loopback_users = none\n\
             disk_free_limit.absolute = 50MB\n\
             max_message_size = 1048576\n\
             cluster_partition_handling = pause_minority\n\
             net_ticktime = 15\n\
             management_agent.disable_metrics_collector = false\n\
             log.console = true\n\
             log.console.level = warning\n\
             log.file = false\n"
        );
        if let Some(tls) = tls {
            config.push_str(&format!(
                "listeners.ssl.1 = 127.0.0.1:{tls_port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\nssl_options.verify = verify_none\n",
                tls.ca.display(), tls.certificate.display(), tls.key.display()
            ));
        }
        if let Some(Cluster { first, .. }) = &joins {
            config.push_str(&format!(
                "cluster_formation.peer_discovery_backend = classic_config\n\
                 cluster_formation.classic_config.nodes.1 = {first}\n\
                 cluster_formation.classic_config.nodes.2 = {name}\n"
            ));
        }
        fs::write(folder.join("rabbitmq.conf"), config)?;
        fs::write(folder.join("advanced.config"), ADVANCED_CONFIG)?;
        fs::write(folder.join("enabled_plugins"), format!("[{}].\n", plugins.join(",")))?;
        fs::write(folder.join("rabbitmq-env.conf"), "")?;
        let names = match &joins {
            Some(_) => None,
            None => Some(name_service(folder, names_port).start()?),
        };
        let cluster = joins.unwrap_or_else(|| Cluster {
            first: name.clone(),
            names_port,
            home: folder.join("home"),
        });
        let environment = environment(folder, (&name, distribution_port), &cluster);
        let server = Spec {
            name: "rabbitmq".to_owned(),
            program: RABBITMQ.proof.into(),
            arguments: vec![],
            environment: environment.clone(),
            log: folder.join("rabbitmq.log"),
            pid_file: Some(folder.join("rabbitmq.pid")),
            folder: Some(folder.to_owned()),
        };
        let process = server.start()?;
        let tls_port = tls.map(|_| tls_port);
        let mut rabbitmq =
            Self { process, names, cluster, environment, port, tls_port, management_port };
        rabbitmq.until_ready().await?;
        Ok(rabbitmq)
    }

    /// Its URL, with the name of a virtual host.
    #[must_use]
    pub fn url(&self, vhost: &str) -> String {
        format!("amqp://guest:guest@127.0.0.1:{}/{vhost}", self.port)
    }

    /// Waits until it speaks AMQP.
    ///
    /// # Errors
    /// It ended, or time ran out.
    pub async fn until_ready(&mut self) -> anyhow::Result<()> {
        let port = self.port;
        self.process.until(START, || async move { speaks_amqp(port).await }).await
    }

    /// Kills it at once, as a power cut would.
    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Starts it again, on the same ports and data; more than once if it ends while starting, as whatever
    /// looks after a node in production does.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        let spec = self.process.spec().clone();
        if let Some(names) = &mut self.names
            && names.has_ended()
        {
            *names = names.spec().clone().start()?;
        }
        let mut starts = 0;
        loop {
            self.process = spec.start()?;
            starts += 1;
            let ready = self.until_ready().await;
            if ready.is_ok() || starts == STARTS || !self.process.has_ended() {
                return ready;
            }
        }
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// The process of Erlang's name service, if it is this node's.
    #[must_use]
    pub fn names(&self) -> Option<&Process> {
        self.names.as_ref()
    }

    /// Ends it at once, with everything that belongs to it.
    pub async fn end(&mut self) {
        self.process.kill().await;
        self.end_names().await;
    }

    /// Stops it in an orderly way.
    pub async fn stop(&mut self) {
        self.process.stop(Duration::from_secs(20)).await;
        self.end_names().await;
    }

    async fn end_names(&mut self) {
        if let Some(names) = &mut self.names {
            names.kill().await;
        }
    }

    /// Sets [`POLICY`] for the default virtual host.
    ///
    /// # Errors
    /// RabbitMQ refused.
    pub async fn set_policy(&self) -> anyhow::Result<()> {
        let Policy { pattern, definition } = POLICY;
        self.ctl(&["set_policy", "doorbell", pattern, definition, "--apply-to", "exchanges"])
            .await
            .map(drop)
    }

    /// Runs `rabbitmqctl` against it.
    ///
    /// # Errors
    /// The command failed; says what it printed.
    pub async fn ctl(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output: Output = Command::new("/usr/lib/rabbitmq/bin/rabbitmqctl")
            .args(arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .output()
            .await
            .context("cannot run rabbitmqctl")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        anyhow::ensure!(
            output.status.success(),
            "rabbitmqctl {}: {text}{error}",
            arguments.join(" ")
        );
        Ok(text)
    }
}

fn name_service(folder: &Path, port: u16) -> Spec {
    Spec {
        name: "epmd".to_owned(),
        program: "/usr/bin/epmd".into(),
        arguments: ["-address", "127.0.0.1", "-port", &port.to_string()].map(Into::into).to_vec(),
        environment: vec![],
        log: folder.join("epmd.log"),
        pid_file: None,
        folder: None,
    }
}

fn environment(
    folder: &Path,
    (name, distribution_port): (&str, u16),
    cluster: &Cluster,
) -> Vec<(String, OsString)> {
    let inside = |name: &str| folder.join(name).into_os_string();
    [
        ("HOME", cluster.home.clone().into_os_string()),
        ("RABBITMQ_CONF_ENV_FILE", inside("rabbitmq-env.conf")),
        ("RABBITMQ_CONFIG_FILE", inside("rabbitmq.conf")),
        ("RABBITMQ_ADVANCED_CONFIG_FILE", inside("advanced.config")),
        ("RABBITMQ_ENABLED_PLUGINS_FILE", inside("enabled_plugins")),
        ("RABBITMQ_PLUGINS_EXPAND_DIR", inside("plugins")),
        ("RABBITMQ_GENERATED_CONFIG_DIR", inside("generated")),
        ("RABBITMQ_MNESIA_BASE", inside("mnesia")),
        ("RABBITMQ_LOG_BASE", inside("log")),
        ("RABBITMQ_PID_FILE", inside("rabbitmq.pid")),
        ("RABBITMQ_NODENAME", name.into()),
        ("RABBITMQ_DIST_PORT", distribution_port.to_string().into()),
        ("ERL_EPMD_PORT", cluster.names_port.to_string().into()),
        ("ERL_EPMD_ADDRESS", "127.0.0.1".into()),
        // Erlang's schedulers spin while idle, which a small machine shared with everything else
        // cannot afford.
        ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+sbwt none +sbwtdcpu none +sbwtdio none".into()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

/// Sends the protocol's header and waits for the answer's first byte, a method frame.
async fn speaks_amqp(port: u16) -> bool {
    let hello = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(b"AMQP\0\0\x09\x01").await?;
        stream.read_u8().await
    };
    matches!(tokio::time::timeout(Duration::from_secs(2), hello).await, Ok(Ok(1)))
}

/// A private Redis.
#[derive(Debug)]
pub struct Redis {
    process: Process,
    /// The port.
    pub port: u16,
    /// The port for TLS, if asked for.
    pub tls_port: Option<u16>,
}

impl Redis {
    /// Starts one with its data in `folder`, which is created; `extra` are further settings.
    ///
    /// # Errors
    /// It could not be started; says the end of its log.
    pub async fn start(
        folder: &Path,
        tls: Option<&TlsFiles>,
        extra: &[&str],
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(folder)?;
        let [port, tls_port, bus_port] = ports::free()?;
        let mut arguments: Vec<OsString> = Vec::new();
        let mut set = |name: &str, value: OsString| {
            arguments.extend([OsString::from(format!("--{name}")), value])
        };
        set("bind", "127.0.0.1".into());
        set("dir", folder.into());
        // A restart keeps what was written, but for the last second.
        set("appendonly", "yes".into());
        set("save", "".into());
        set("daemonize", "no".into());
        if extra.contains(&"cluster-enabled") {
            set("cluster-port", bus_port.to_string().into());
        }
        set("port", port.to_string().into());
        if let Some(tls) = tls {
            set("tls-port", tls_port.to_string().into());
            set("tls-ca-cert-file", tls.ca.clone().into());
            set("tls-cert-file", tls.certificate.clone().into());
            set("tls-key-file", tls.key.clone().into());
            set("tls-auth-clients", "no".into());
        }
        for name in extra {
            set(name, "yes".into());
        }
        let spec = Spec {
            name: "redis".to_owned(),
            program: REDIS.proof.into(),
            arguments,
            environment: vec![],
            log: folder.join("redis.log"),
            pid_file: None,
            folder: None,
        };
        let process = spec.start()?;
        let mut redis = Self { process, port, tls_port: tls.map(|_| tls_port) };
        redis.until_ready().await?;
        Ok(redis)
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Waits until it takes connections.
    ///
    /// # Errors
    /// It ended, or time ran out.
    pub async fn until_ready(&mut self) -> anyhow::Result<()> {
        let port = self.port;
        self.process
            .until(START, || async move { TcpStream::connect(("127.0.0.1", port)).await.is_ok() })
            .await
    }

    /// Kills it at once.
    pub async fn kill(&mut self) {
        self.process.kill().await;
    }

    /// Starts it again, on the same port and data.
    ///
    /// # Errors
    /// It could not be started.
    pub async fn start_again(&mut self) -> anyhow::Result<()> {
        self.process = self.process.spec().clone().start()?;
        self.until_ready().await
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Stops it in an orderly way.
    pub async fn stop(&mut self) {
        self.process.stop(Duration::from_secs(10)).await;
    }
}
