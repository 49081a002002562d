//! A whole Doorbell for one story: the services as processes, in a virtual host and under a key
//! prefix of their own.

mod customers;
mod finish;
mod history;
mod services;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use doorbell_common::outcome::OutcomeClass;
use doorbell_local::engines::TlsFiles;
use doorbell_local::ports;
use doorbell_local::process::{Process, Spec};
use doorbell_local::services::{Environment, Kind, ServiceSpec, encryption_keys};

use crate::amqp::Outsider;
use crate::api::Api;
use crate::engines::{self, Engines, PLUGINS, Rights};
use crate::ledger::Ledger;
use crate::receiver::Receiver;
use crate::wait::{eventually, seconds};

/// How a story wants its Doorbell.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many dispatchers.
    pub dispatchers: u32,
    /// How many retry-schedulers.
    pub schedulers: u32,
    /// Whether it breaks its engines, and so needs its own; and their plugins.
    pub private: Option<&'static [&'static str]>,
    /// How many nodes its own RabbitMQ has.
    pub nodes: usize,
    /// Another Redis than the engines' own: a cluster's nodes, separated by commas.
    pub redis_url: Option<String>,
    /// Whether the services speak TLS with their engines, and with which files.
    pub tls: Option<TlsFiles>,
    /// Whether the services have no more rights at their engines than they need.
    pub restricted: bool,
    /// Further environment variables for every service.
    pub extra: Vec<(String, String)>,
    /// Further ones for dispatchers.
    pub dispatcher_extra: Vec<(String, String)>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            dispatchers: 2,
            schedulers: 1,
            private: None,
            nodes: 1,
            redis_url: None,
            tls: None,
            restricted: false,
            extra: vec![],
            dispatcher_extra: vec![],
        }
    }
}

impl Setup {
    /// With dispatchers that leave no endpoint alone, however often it fails: for stories whose
    /// endpoints fail on purpose, and that are about something else.
    #[must_use]
    pub fn without_breaker(mut self) -> Self {
        self.dispatcher_extra.push(("DOORBELL_BREAKER_FAILURES".to_owned(), "1000000".to_owned()));
        self
    }

    /// With engines of its own.
    #[must_use]
    pub fn private() -> Self {
        Self { private: Some(&PLUGINS), ..Self::default() }
    }
}

/// What the services need to be allowed at RabbitMQ, and at Redis with the keys under their prefix: as the README has it.
const RIGHTS: Rights =
    Rights { configure: r"^doorbell\.", write: r"^doorbell\.", read: r"^doorbell\." };
const REDIS_RIGHTS: &str = "+@all -@admin -@dangerous +info";

struct Running {
    service: ServiceSpec,
    process: Process,
}

/// A whole Doorbell.
pub struct World {
    /// The engines under it.
    pub engines: Arc<Engines>,
    /// Its virtual host.
    pub vhost: String,
    /// The producer's API.
    pub producer: Api,
    /// The control-plane's API.
    pub control: Api,
    /// Its endpoints.
    pub receiver: Receiver,
    /// What was accepted and who wants what.
    pub ledger: Ledger,
    /// How services are started.
    pub environment: Environment,
    services: tokio::sync::Mutex<BTreeMap<String, Running>>,
    http: reqwest::Client,
    dispatcher_extra: Vec<(String, String)>,
}

/// The folder with the services' binaries: where this test's own binary was built.
///
/// # Errors
/// The test's own path can't be told.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let mut path = std::env::current_exe()?;
    path.pop();
    if path.ends_with("deps") {
        path.pop();
    }
    let dispatcher = path.join(Kind::Dispatcher.binary());
    anyhow::ensure!(
        dispatcher.exists(),
        "{} is missing: cargo test --workspace builds it",
        dispatcher.display()
    );
    Ok(path)
}

impl World {
    /// Starts one with two dispatchers, on the shared engines.
    ///
    /// # Errors
    /// Something could not be started.
    pub async fn start(name: &str) -> anyhow::Result<Self> {
        Self::with(name, Setup::default()).await
    }

    /// Starts one.
    ///
    /// # Errors
    /// Something could not be started.
    pub async fn with(name: &str, setup: Setup) -> anyhow::Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let engines = match setup.private {
            Some(plugins) => {
                Arc::new(Engines::start_with(name, plugins, setup.tls.as_ref(), setup.nodes).await?)
            }
            None => engines::shared().await?,
        };
        let vhost = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        engines.make_vhost(&vhost).await?;
        let admin_key = "key-for-stories-0123456789".to_owned();
        let mut extra = vec![("DOORBELL_REDIS_PREFIX".to_owned(), vhost.clone())];
        let folder = engines::folder().join("logs").join(&vhost);
        extra.push(encryption_keys(&folder)?);
        extra.extend(setup.extra.clone());
        let mut amqp_url = engines.amqp_url(&vhost);
        let mut redis_url = setup.redis_url.clone().unwrap_or_else(|| engines.redis_url.clone());
        if let (Some(tls), Some((amqp, redis))) = (&setup.tls, engines.tls_ports) {
            amqp_url = format!("amqps://guest:guest@127.0.0.1:{amqp}/{vhost}");
            redis_url = format!("rediss://127.0.0.1:{redis}/0");
            extra.push(("DOORBELL_TLS_CA_FILE".to_owned(), tls.ca.display().to_string()));
        }
        if setup.restricted {
            engines.make_user(&vhost, &vhost, RIGHTS).await?;
            amqp_url = engines.amqp_url_of(&vhost, &vhost);
            let rights = format!("~{vhost}:* {REDIS_RIGHTS}");
            redis_url = engines.make_redis_user(&vhost, &rights).await?;
        }
        let environment = Environment {
            binaries: binaries()?,
            logs: folder,
            amqp_url,
            redis_url,
            admin_key: admin_key.clone(),
            extra,
        };
        let [producer_port, control_port] = ports::free()?;
        let world = Self {
            producer: Api::new(&format!("http://127.0.0.1:{producer_port}"), &admin_key)?,
            control: Api::new(&format!("http://127.0.0.1:{control_port}"), &admin_key)?,
            receiver: Receiver::start()?,
            ledger: Ledger::default(),
            services: tokio::sync::Mutex::default(),
            http: reqwest::Client::builder().no_proxy().timeout(seconds(5)).build()?,
            dispatcher_extra: setup.dispatcher_extra.clone(),
            engines,
            vhost,
            environment,
        };
        world.init().await?;
        world.start_service(Kind::Producer, "producer", Some(producer_port)).await?;
        world.start_service(Kind::ControlPlane, "control-plane", Some(control_port)).await?;
        for n in 1..=setup.schedulers {
            world
                .start_service(Kind::RetryScheduler, &format!("retry-scheduler-{n}"), None)
                .await?;
        }
        for n in 1..=setup.dispatchers {
            world.start_service(Kind::Dispatcher, &format!("dispatcher-{n}"), None).await?;
        }
        world.until_all_ready().await?;
        Ok(world)
    }

    /// Prepares the store.
    ///
    /// # Errors
    /// It could not be prepared.
    pub async fn init(&self) -> anyhow::Result<()> {
        self.carry_out(self.environment.init()).await
    }

    /// Has a service's binary carry out a command, and waits until that is done.
    ///
    /// # Errors
    /// It failed.
    pub async fn command(&self, kind: Kind, arguments: &[&str]) -> anyhow::Result<()> {
        self.carry_out(self.environment.command(kind, arguments)).await
    }

    async fn carry_out(&self, command: Spec) -> anyhow::Result<()> {
        let mut process: Process = command.start()?;
        while !process.has_ended() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let succeeded = process.succeeded();
        anyhow::ensure!(succeeded, "{} failed:\n{}", command.name, process.last_output());
        Ok(())
    }

    /// An outsider's connection to this Doorbell's virtual host.
    ///
    /// # Errors
    /// RabbitMQ is not there.
    pub async fn outsider(&self) -> anyhow::Result<Outsider> {
        let urls = self.engines.amqp_url(&self.vhost);
        Outsider::connect(urls.split(',').next().unwrap_or_default()).await
    }

    /// Waits until everything that the ledger expects has arrived, and checks that nothing else has.
    ///
    /// # Errors
    /// Something is missing, foreign, changed, unverified or early.
    pub async fn settle(&self, at_most: Duration) -> anyhow::Result<()> {
        let waited = eventually("everything that was accepted arrives", at_most, || async {
            self.ledger.missing(&self.receiver).is_empty()
        })
        .await;
        if let Err(error) = waited {
            return Err(error.context(self.whereabouts().await));
        }
        let checked = self.ledger.check(&self.receiver);
        if let Err(error) = checked {
            return Err(error.context(self.outcomes().await));
        }
        Ok(())
    }

    /// How attempts ended: for whoever reads why one was spent.
    async fn outcomes(&self) -> String {
        let mut counts = Vec::new();
        for outcome in OutcomeClass::ALL.map(OutcomeClass::as_str) {
            let metric = format!("doorbell_attempts_total{{outcome=\"{outcome}\"}}");
            counts.push(format!("{outcome} {:?}", self.metric(&metric).await));
        }
        format!("attempts by outcome: {}", counts.join(", "))
    }

    /// What is missing, and where messages are that it may be in: for whoever reads why a story
    /// failed.
    async fn whereabouts(&self) -> String {
        let missing = self.ledger.missing(&self.receiver);
        let mut lines = vec![format!("{} deliveries are missing", missing.len())];
        for (endpoint, id) in missing.iter().take(5) {
            let posts = self.receiver.posts_to(endpoint);
            let came = posts.iter().filter(|post| post.id == *id);
            let came: Vec<(u32, u16)> = came.map(|post| (post.attempt, post.status)).collect();
            lines.push(format!("{id} for {endpoint}: POSTs that came (attempt, status): {came:?}"));
        }
        if let Ok(outsider) = self.outsider().await {
            lines.push(format!("ready in queues: {:?}", self.depths(&outsider).await));
        }
        for metric in [
            "doorbell_messages_in_hand",
            "doorbell_posts_in_flight",
            "doorbell_deliveries_held_total{reason=\"busy\"}",
            "doorbell_deliveries_held_total{reason=\"suspended\"}",
            "doorbell_dead_letters_total{reason=\"exhausted\"}",
            "doorbell_dead_letters_total{reason=\"expired\"}",
            "doorbell_deliveries_total{state=\"cancelled\"}",
            "doorbell_handoff_copies_total",
            "doorbell_ledger_hits_total",
        ] {
            lines.push(format!("{metric}: {:?}", self.metric(metric).await));
        }
        // What a delay queue hands to RabbitMQ's own worker is not ready, and not with a consumer.
        let mut listing = vec!["list_queues", "--silent", "--vhost", &self.vhost];
        listing.extend(["name", "messages", "messages_ready", "messages_unacknowledged", "state"]);
        lines.push(match self.engines.rabbitmq.lock().await.ctl(&listing).await {
            Ok(queues) => queues,
            Err(error) => format!("{error:#}"),
        });
        lines.join("\n")
    }
}
