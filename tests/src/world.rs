//! A whole Doorbell for one story: the services as processes, in a virtual host and under a key
//! prefix of their own.

mod finish;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use doorbell_local::engines::TlsFiles;
use doorbell_local::ports;
use doorbell_local::process::Process;
use doorbell_local::services::{Environment, Kind, ServiceSpec};
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::amqp::Outsider;
use crate::api::{Api, subscription};
use crate::engines::{self, Engines, PLUGINS};
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
    /// Another Redis than the engines' own: a cluster's nodes, separated by commas.
    pub redis_url: Option<String>,
    /// Whether the services speak TLS with their engines, and with which files.
    pub tls: Option<TlsFiles>,
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
            redis_url: None,
            tls: None,
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

/// How long a service may take to be ready, on a slow machine with everything on it.
const READY: Duration = seconds(90);

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
                Arc::new(Engines::start_with(name, plugins, setup.tls.as_ref()).await?)
            }
            None => engines::shared().await?,
        };
        let vhost = format!("{name}-{}", COUNT.fetch_add(1, Ordering::Relaxed));
        engines.make_vhost(&vhost).await?;
        let admin_key = "key-for-stories-0123456789".to_owned();
        let mut extra = vec![("DOORBELL_REDIS_PREFIX".to_owned(), vhost.clone())];
        extra.extend(setup.extra.clone());
        let mut amqp_url = engines.amqp_url(&vhost);
        let mut redis_url = setup.redis_url.clone().unwrap_or_else(|| engines.redis_url.clone());
        if let (Some(tls), Some((amqp, redis))) = (&setup.tls, engines.tls_ports) {
            amqp_url = format!("amqps://guest:guest@127.0.0.1:{amqp}/{vhost}");
            redis_url = format!("rediss://127.0.0.1:{redis}/0");
            extra.push(("DOORBELL_TLS_CA_FILE".to_owned(), tls.ca.display().to_string()));
        }
        let environment = Environment {
            binaries: binaries()?,
            logs: engines::folder().join("logs").join(&vhost),
            amqp_url,
            redis_url,
            admin_key: admin_key.clone(),
            extra,
        };
        let [producer_port, control_port] = ports::free()?;
        let world = Self {
            producer: Api::new(&format!("http://127.0.0.1:{producer_port}"), &admin_key)?,
            control: Api::new(&format!("http://127.0.0.1:{control_port}"), &admin_key)?,
            receiver: Receiver::start().await?,
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
        let mut init: Process = self.environment.init().start()?;
        while !init.has_ended() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let succeeded = init.succeeded();
        anyhow::ensure!(succeeded, "init failed:\n{}", init.last_output());
        Ok(())
    }

    async fn start_service(
        &self,
        kind: Kind,
        name: &str,
        api_port: Option<u16>,
    ) -> anyhow::Result<()> {
        let [admin_port] = ports::free()?;
        let mut environment = self.environment.clone();
        if kind == Kind::Dispatcher {
            environment.extra.extend(self.dispatcher_extra.clone());
        }
        let service = environment.service(kind, name, admin_port, api_port);
        let process = service.spec.start()?;
        engines::note(&process)?;
        self.services.lock().await.insert(name.to_owned(), Running { service, process });
        Ok(())
    }

    /// Waits until every service says that it is ready.
    ///
    /// # Errors
    /// One is not, in time.
    pub async fn until_all_ready(&self) -> anyhow::Result<()> {
        let names: Vec<String> = self.services.lock().await.keys().cloned().collect();
        for name in names {
            self.until_readiness(&name, true).await?;
        }
        Ok(())
    }

    /// Waits until a service says that it is ready, or not.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn until_readiness(&self, name: &str, ready: bool) -> anyhow::Result<()> {
        let waited = eventually(&format!("{name} ready: {ready}"), READY, || async {
            self.is_ready(name).await == ready
        })
        .await;
        waited.with_context(|| {
            self.environment.logs.join(format!("{name}.log")).display().to_string()
        })
    }

    /// Whether a service says that it is ready.
    pub async fn is_ready(&self, name: &str) -> bool {
        let Some(url) = self.admin_url(name).await else { return false };
        self.http
            .get(format!("{url}/readyz"))
            .send()
            .await
            .is_ok_and(|response| response.status().is_success())
    }

    /// What a service says of its readiness.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn readiness(&self, name: &str) -> anyhow::Result<Value> {
        let url = self.admin_url(name).await.context("no such service")?;
        Ok(self.http.get(format!("{url}/readyz")).send().await?.json().await?)
    }

    /// A metric's value, summed over all services; `what` is the name with its labels.
    ///
    /// # Errors
    /// A service did not answer.
    pub async fn metric(&self, what: &str) -> anyhow::Result<f64> {
        let urls: Vec<String> = self
            .services
            .lock()
            .await
            .values()
            .map(|running| running.service.admin_url.clone())
            .collect();
        let mut sum = 0.0;
        for url in urls {
            let text = self.http.get(format!("{url}/metrics")).send().await?.text().await?;
            let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
            sum += line.map(str::parse::<f64>).transpose()?.unwrap_or(0.0);
        }
        Ok(sum)
    }

    async fn admin_url(&self, name: &str) -> Option<String> {
        self.services.lock().await.get(name).map(|running| running.service.admin_url.clone())
    }

    /// Kills a service at once and starts it again.
    ///
    /// # Errors
    /// There is no such service, or it could not be started.
    pub async fn kill_and_restart(&self, name: &str) -> anyhow::Result<()> {
        let mut services = self.services.lock().await;
        let running = services.get_mut(name).context("no such service")?;
        running.process.kill().await;
        running.process = running.service.spec.start()?;
        engines::note(&running.process)
    }

    /// Kills a service at once.
    ///
    /// # Errors
    /// There is no such service.
    pub async fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.services.lock().await.get_mut(name).context("no such service")?.process.kill().await;
        Ok(())
    }

    /// Starts a service again that was killed or stopped.
    ///
    /// # Errors
    /// There is no such service, or it could not be started.
    pub async fn restart(&self, name: &str) -> anyhow::Result<()> {
        let mut services = self.services.lock().await;
        let running = services.get_mut(name).context("no such service")?;
        running.process = running.service.spec.start()?;
        engines::note(&running.process)
    }

    /// Sends a service a signal.
    ///
    /// # Errors
    /// There is no such service.
    pub async fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        self.services.lock().await.get(name).context("no such service")?.process.signal(signal)
    }

    /// Asks a service to stop and waits; answers its exit code.
    ///
    /// # Errors
    /// There is no such service.
    pub async fn stop(&self, name: &str) -> anyhow::Result<Option<i32>> {
        let mut services = self.services.lock().await;
        Ok(services.get_mut(name).context("no such service")?.process.stop(seconds(60)).await)
    }

    /// Subscribes an endpoint of the receiver, and waits until that is in force.
    ///
    /// # Errors
    /// The control-plane refused.
    pub async fn subscribe(
        &self,
        tenant: &str,
        endpoint: &str,
        events: &[&str],
    ) -> anyhow::Result<String> {
        let body = subscription(&self.receiver.url(endpoint), events);
        self.subscribe_as(tenant, endpoint, body).await
    }

    /// The same, with everything said by the story.
    ///
    /// # Errors
    /// The control-plane refused.
    pub async fn subscribe_as(
        &self,
        tenant: &str,
        endpoint: &str,
        body: Value,
    ) -> anyhow::Result<String> {
        let answer = self
            .control
            .call(Method::POST, &format!("/v1/tenants/{tenant}/subscriptions"), body)
            .await?;
        anyhow::ensure!(answer.status == 201, "{}", answer.body);
        let id = answer.body["id"].as_str().context("no id")?.to_owned();
        let secret = answer.body["secret"].as_str().context("no secret")?;
        self.receiver.add_secret(endpoint, secret);
        self.ledger.subscribed(tenant, endpoint, &answer.body);
        Ok(id)
    }

    /// Subscribes many endpoints of the receiver in one call: `{prefix}-0` and so on.
    ///
    /// # Errors
    /// The control-plane refused one.
    pub async fn subscribe_many(
        &self,
        tenant: &str,
        (prefix, count): (&str, usize),
        events: &[&str],
    ) -> anyhow::Result<Vec<String>> {
        let names: Vec<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
        let bodies: Vec<Value> =
            names.iter().map(|name| subscription(&self.receiver.url(name), events)).collect();
        let lines: String = bodies.iter().map(|body| format!("{body}\n")).collect();
        let path = format!("/v1/tenants/{tenant}/subscriptions/bulk");
        let answer = self.control.lines(&path, lines).await?;
        let (end, results) = answer.split_last().context("no answer")?;
        anyhow::ensure!(*end == json!({ "created": count, "refused": 0 }), "{end}");
        let mut ids = Vec::new();
        for ((name, body), result) in names.iter().zip(&bodies).zip(results) {
            self.receiver.add_secret(name, result["secret"].as_str().context("no secret")?);
            self.ledger.subscribed(tenant, name, body);
            ids.push(result["id"].as_str().context("no id")?.to_owned());
        }
        Ok(ids)
    }

    /// Pauses a subscription, or lets it go on.
    ///
    /// # Errors
    /// The control-plane refused.
    pub async fn set_status(&self, tenant: &str, id: &str, status: &str) -> anyhow::Result<()> {
        let path = format!("/v1/tenants/{tenant}/subscriptions/{id}");
        let answer = self.control.call(Method::PATCH, &path, json!({ "status": status })).await?;
        anyhow::ensure!(answer.body["status"] == status, "{}", answer.body);
        Ok(())
    }

    /// Waits as long as a change may take to be in force everywhere.
    pub async fn in_force(&self) {
        tokio::time::sleep(seconds(2)).await;
    }

    /// Publishes over HTTP; answers the id.
    ///
    /// # Errors
    /// It was not accepted.
    pub async fn publish(
        &self,
        tenant: &str,
        event_type: &str,
        data: Value,
    ) -> anyhow::Result<String> {
        let text = data.to_string();
        let answer = self
            .producer
            .call(
                Method::POST,
                "/v1/events",
                json!({ "tenant": tenant, "type": event_type, "data": data }),
            )
            .await?;
        anyhow::ensure!(answer.status == 202, "{} {}", answer.status, answer.body);
        let id = answer.body["id"].as_str().context("no id")?.to_owned();
        self.ledger.accepted(tenant, event_type, &id, &text);
        Ok(id)
    }

    /// An outsider's connection to this Doorbell's virtual host.
    ///
    /// # Errors
    /// RabbitMQ is not there.
    pub async fn outsider(&self) -> anyhow::Result<Outsider> {
        Outsider::connect(&self.engines.amqp_url(&self.vhost)).await
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
        self.ledger.check(&self.receiver)
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
        ] {
            lines.push(format!("{metric}: {:?}", self.metric(metric).await));
        }
        lines.join("\n")
    }
}
