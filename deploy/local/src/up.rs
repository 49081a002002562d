//! Brings the whole stack up and watches over it: a service that dies is started again.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_platform::ids;
use fs4::fs_std::FileExt as _;
use tokio::process::Command;

use crate::bench::{self, Plan};
use crate::certificates::Authority;
use crate::engines::{RabbitMq, Redis};
use crate::packages::{self, RABBITMQ, REDIS};
use crate::process::{Process, lock_file};
use crate::services::{self, Environment, Kind, ServiceSpec};
use crate::state::{StackState, Trace, write_whole};
use crate::{demo, down, paths, ports};

/// How long a service may take to be ready.
const READY: Duration = Duration::from_secs(60);
/// How long a service may take to stop: its grace, and some more.
const STOP: Duration = Duration::from_secs(50);
/// How often to look whether all are alive.
const LOOK: Duration = Duration::from_millis(200);
/// What the private RabbitMQ is started with.
const PLUGINS: [&str; 2] = ["rabbitmq_management", "rabbitmq_consistent_hash_exchange"];

/// What to bring up.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many dispatchers.
    pub dispatchers: u16,
    /// What for.
    pub purpose: Purpose,
}

/// What a stack is brought up for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To be used, until Ctrl-C.
    Bare,
    /// The same, after a demo.
    Demo,
    /// To be measured.
    Bench(Plan),
}

/// Brings everything up, does what it is up for (or stays until told to stop), and takes
/// everything down.
///
/// # Errors
/// Something could not be started, or the demo failed; everything is down again.
pub async fn up(options: Options, say: impl Fn(&str) + Copy) -> anyhow::Result<()> {
    let folder = paths::stack();
    fs::create_dir_all(&folder)?;
    let lock = lock_file(&folder.join("lock"))?;
    anyhow::ensure!(
        lock.try_lock_exclusive()?,
        "a stack is up already in this workspace; `cargo stack down` ends it"
    );
    let left = down::down(&folder).await?;
    if left > 0 {
        say(&format!("ended {left} processes that an earlier stack had left behind"));
    }
    packages::ensure(&[RABBITMQ, REDIS], say)?;
    build(say).await?;
    // A stack begins empty: ports are new each time, and so is the key.
    for name in ["rabbitmq", "redis", "logs"] {
        let old = folder.join(name);
        if old.exists() {
            fs::remove_dir_all(old)?;
        }
    }
    let me = Trace::of(i32::try_from(std::process::id())?).context("no trace of this process")?;
    write_whole(&folder.join("watcher.json"), &[me])?;
    let mut stop = std::pin::pin!(stop_signal()?);
    let mut stack = None;
    let ended = tokio::select! {
        () = &mut stop => Ok(()),
        result = run(&folder, options, &mut stack, say) => result,
    };
    say("stopping");
    if let Some(stack) = stack {
        stack.stop().await;
    }
    down::forget(&folder)?;
    ended
}

async fn run(
    folder: &Path,
    options: Options,
    place: &mut Option<Stack>,
    say: impl Fn(&str) + Copy,
) -> anyhow::Result<()> {
    say("starting a private RabbitMQ and a private Redis");
    let (rabbitmq_folder, redis_folder) = (folder.join("rabbitmq"), folder.join("redis"));
    let (rabbitmq, redis) = tokio::try_join!(
        RabbitMq::start(&rabbitmq_folder, &PLUGINS, None),
        Redis::start(&redis_folder, None, &[]),
    )?;
    // For endpoints that speak TLS here.
    let authority = Authority::new("cargo stack")?;
    let ca_file = folder.join("endpoint-ca.pem");
    fs::write(&ca_file, authority.pem())?;
    let ca_file = ("DOORBELL_ENDPOINT_CA_FILE".to_owned(), ca_file.display().to_string());
    let extra = vec![services::encryption_keys(folder)?, ca_file];
    let stack = place.insert(Stack::new(folder, (rabbitmq, redis), options.dispatchers, extra)?);
    stack.write()?;
    tokio::try_join!(stack.rabbitmq.set_policy(), stack.init())?;
    say("starting the services");
    stack.start_services().await?;
    stack.write()?;
    match options.purpose {
        Purpose::Bench(plan) => {
            let state = stack.state.clone();
            return tokio::select! {
                measured = bench::run(&state, &plan, &authority, say) => measured,
                ended = stack.keep_alive(say) => ended,
            };
        }
        Purpose::Demo => demo::play(&stack.state, say).await?,
        Purpose::Bare => {}
    }
    say(&stack.describe());
    stack.keep_alive(say).await
}

/// Builds the binaries; the compiler's own progress is shown.
async fn build(say: impl Fn(&str)) -> anyhow::Result<()> {
    say("building the services (release; the first time takes some minutes)");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--release"]);
    // This program along with the services: together they resolve to the same features of the same
    // libraries that were just built for it, and nothing is built twice.
    command.args(["--package", env!("CARGO_PKG_NAME")]);
    for kind in Kind::ALL {
        command.args(["--package", &kind.binary()]);
    }
    // Under the workspace's own target folder, wherever the environment would put it.
    command.arg("--target-dir").arg(paths::workspace().join("target")).arg("--bins");
    let status = command
        .current_dir(paths::workspace())
        .stdin(Stdio::null())
        .status()
        .await
        .context("cannot run cargo")?;
    anyhow::ensure!(status.success(), "the services could not be built");
    Ok(())
}

fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut hang_up = signal(SignalKind::hangup())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
        }
    })
}

struct Stack {
    folder: PathBuf,
    environment: Environment,
    rabbitmq: RabbitMq,
    redis: Redis,
    services: Vec<(ServiceSpec, Option<Process>)>,
    http: reqwest::Client,
    state: StackState,
}

impl Stack {
    fn new(
        folder: &Path,
        (rabbitmq, redis): (RabbitMq, Redis),
        dispatchers: u16,
        extra: Vec<(String, String)>,
    ) -> anyhow::Result<Self> {
        let environment = Environment {
            binaries: paths::workspace().join("target/release"),
            logs: folder.join("logs"),
            amqp_url: rabbitmq.url("%2f"),
            redis_url: redis.url(),
            admin_key: ids::token(),
            extra,
        };
        let mut state = StackState {
            amqp_url: environment.amqp_url.clone(),
            redis_url: environment.redis_url.clone(),
            admin_key: environment.admin_key.clone(),
            ..StackState::default()
        };
        let mut services = Vec::new();
        let mut add = |kind: Kind, name: String, api_port: Option<u16>| -> anyhow::Result<()> {
            let [admin_port] = ports::free()?;
            let service = environment.service(kind, &name, admin_port, api_port);
            state.admin_urls.insert(name, service.admin_url.clone());
            services.push((service, None));
            Ok(())
        };
        let [producer, control_plane] = ports::free()?;
        add(Kind::Producer, "producer".to_owned(), Some(producer))?;
        add(Kind::ControlPlane, "control-plane".to_owned(), Some(control_plane))?;
        add(Kind::RetryScheduler, "retry-scheduler".to_owned(), None)?;
        for n in 1..=dispatchers {
            let name = if n == 1 { "dispatcher".to_owned() } else { format!("dispatcher-{n}") };
            add(Kind::Dispatcher, name, None)?;
        }
        state.producer_url = format!("http://127.0.0.1:{producer}");
        state.control_plane_url = format!("http://127.0.0.1:{control_plane}");
        let http = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(2)).build()?;
        Ok(Self {
            folder: folder.to_path_buf(),
            environment,
            rabbitmq,
            redis,
            services,
            http,
            state,
        })
    }

    /// Prepares the store.
    async fn init(&self) -> anyhow::Result<()> {
        let mut init: Process = self.environment.init().start()?;
        while !init.has_ended() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let succeeded = init.succeeded();
        anyhow::ensure!(succeeded, "the store could not be prepared:\n{}", init.last_output());
        Ok(())
    }

    async fn start_services(&mut self) -> anyhow::Result<()> {
        for (service, process) in &mut self.services {
            *process = Some(service.spec.start()?);
        }
        for (service, process) in &mut self.services {
            let (http, url) = (self.http.clone(), format!("{}/readyz", service.admin_url));
            if let Some(process) = process {
                process.until(READY, || is_ready(&http, &url)).await?;
            }
        }
        Ok(())
    }

    /// Starts again whatever dies, for as long as that works.
    async fn keep_alive(&mut self, say: impl Fn(&str) + Copy) -> anyhow::Result<()> {
        loop {
            tokio::time::sleep(LOOK).await;
            self.revive(say).await?;
        }
    }

    /// Starts again what has died.
    async fn revive(&mut self, say: impl Fn(&str)) -> anyhow::Result<()> {
        let mut changed = false;
        if self.rabbitmq.process().has_ended() {
            say("rabbitmq has died; starting it again");
            self.rabbitmq.start_again().await?;
            changed = true;
        }
        if self.redis.process().has_ended() {
            say("redis has died; starting it again");
            self.redis.start_again().await?;
            changed = true;
        }
        for (service, process) in &mut self.services {
            if process.as_mut().is_none_or(Process::has_ended) {
                say(&format!("{} has died; starting it again", service.spec.name));
                *process = Some(service.spec.start()?);
                changed = true;
            }
        }
        if changed { self.write() } else { Ok(()) }
    }

    /// Writes down what runs.
    fn write(&mut self) -> anyhow::Result<()> {
        self.state.pids.insert("rabbitmq".to_owned(), self.rabbitmq.process().pid());
        self.state.pids.insert("redis".to_owned(), self.redis.process().pid());
        let running = self
            .services
            .iter()
            .filter_map(|(service, process)| Some((service, process.as_ref()?)));
        for (service, process) in running {
            self.state.pids.insert(service.spec.name.clone(), process.pid());
        }
        let mut traces: Vec<Trace> =
            self.state.pids.values().filter_map(|pid| Trace::of(*pid)).collect();
        traces.extend(self.rabbitmq.names().and_then(|names| Trace::of(names.pid())));
        write_whole(&self.folder.join("processes.json"), &traces)?;
        // Only once everything is ready does anyone else read of it.
        let all_started = self.services.iter().all(|(_, process)| process.is_some());
        if all_started { write_whole(&self.folder.join("stack.json"), &self.state) } else { Ok(()) }
    }

    fn describe(&self) -> String {
        let state = &self.state;
        let mut lines = vec![
            "the stack is up".to_owned(),
            format!("  publish      {}/v1/events", state.producer_url),
            format!("  publish      {} exchange doorbell.events", state.amqp_url),
            format!("  subscribe    {}/v1/tenants/…/subscriptions", state.control_plane_url),
            format!("  admin key    {}", state.admin_key),
            format!("  redis        {}", state.redis_url),
            format!(
                "  rabbitmq UI  http://127.0.0.1:{} (guest, guest)",
                self.rabbitmq.management_port
            ),
        ];
        lines.extend(
            state
                .admin_urls
                .iter()
                .map(|(name, url)| format!("  metrics      {url}/metrics ({name})")),
        );
        lines.push(format!("  all of this  {}", self.folder.join("stack.json").display()));
        lines.push(format!("  logs         {}", self.folder.join("logs").display()));
        lines.push("Ctrl-C stops it".to_owned());
        lines.join("\n")
    }

    async fn stop(mut self) {
        let running = self.services.iter_mut().filter_map(|(_, process)| process.as_mut());
        futures_util::future::join_all(running.map(|process| process.stop(STOP))).await;
        self.redis.stop().await;
        self.rabbitmq.stop().await;
    }
}

async fn is_ready(http: &reqwest::Client, url: &str) -> bool {
    http.get(url).send().await.is_ok_and(|response| response.status().is_success())
}
