//! How a service begins and ends: arguments, logs, signals, the admin server, and an exit code
//! that tells.

use std::future::Future;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::builder::Resettable;
use clap::{Arg, Id, Parser};
use prometheus::{IntGaugeVec, Opts, Registry};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::CommonArgs;
use crate::health::Health;
use crate::logs::{self, Logs};
use crate::sentence::sentence;
use crate::shutdown::Shutdown;
use crate::tls;

/// The exit code for wrong arguments.
const WRONG_ARGUMENTS: u8 = 2;

/// With fewer files than this a service may not reach its own bounds on connections.
const FEW_FILES: u64 = 10_240;

/// What a running service is given.
#[derive(Clone, Debug)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// The signal to stop and the tasks to wait for.
    pub shutdown: Shutdown,
    /// The registry of its metrics.
    pub registry: Registry,
    grace: Duration,
}

/// The flags of a service, of which some are common to all.
pub trait ServiceArgs: Parser {
    /// The common ones.
    fn common(&self) -> &CommonArgs;
}

/// Runs a service from its arguments to its end. `body` starts the service and returns once it
/// is told to stop and its intake has ended.
pub fn run<A, F, B>(name: &'static str, body: F) -> ExitCode
where
    A: ServiceArgs,
    F: FnOnce(A, Service) -> B,
    B: Future<Output = anyhow::Result<()>>,
{
    tls::install();
    let args = match parse::<A>() {
        Ok(args) => args,
        Err(error) => return refuse_arguments(&error),
    };
    let logs = match Logs::start(args.common()) {
        Ok(logs) => logs,
        Err(wrong) => {
            logs::say(&format!("{name}: {wrong}"));
            return ExitCode::from(WRONG_ARGUMENTS);
        }
    };
    allow_many_files();
    let ended = run_in_runtime(name, args, body, &logs);
    let (code, last_words) = match ended {
        Ok(()) => (ExitCode::SUCCESS, None),
        Err(error) => {
            let code = if error.is::<WrongArguments>() {
                ExitCode::from(WRONG_ARGUMENTS)
            } else {
                ExitCode::FAILURE
            };
            (code, Some(format!("{name}: {}", sentence(&error))))
        }
    };
    logs.end(last_words);
    code
}

/// Reads the arguments, and the environment, in which a variable that is empty is as good as none: whoever fills in
/// templates for many leaves some so.
fn parse<A: Parser>() -> Result<A, clap::Error> {
    let is_empty =
        |arg: &&Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let mut command = A::command();
    let empty: Vec<Id> =
        command.get_arguments().filter(is_empty).map(|arg| arg.get_id().clone()).collect();
    for id in empty {
        command = command.mut_arg(id, |arg| arg.env(Resettable::Reset));
    }
    let matches = command.clone().try_get_matches()?;
    A::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
}

fn run_in_runtime<A, F, B>(name: &'static str, args: A, body: F, logs: &Logs) -> anyhow::Result<()>
where
    A: ServiceArgs,
    F: FnOnce(A, Service) -> B,
    B: Future<Output = anyhow::Result<()>>,
{
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(run_until_stopped(name, args, body, logs));
    // What the clients of RabbitMQ and Redis have running yet ends with the process: told to end, some of it panics.
    std::mem::forget(runtime);
    ended
}

/// Arguments that parse but make no sense together; the process ends with code 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WrongArguments(pub String);

impl WrongArguments {
    /// They are wrong for this reason.
    #[must_use]
    #[expect(clippy::needless_pass_by_value, reason = "it is what became of the error")]
    pub fn because(error: anyhow::Error) -> Self {
        Self(sentence(&error))
    }
}

async fn run_until_stopped<A, F, B>(
    name: &'static str,
    args: A,
    body: F,
    logs: &Logs,
) -> anyhow::Result<()>
where
    A: ServiceArgs,
    F: FnOnce(A, Service) -> B,
    B: Future<Output = anyhow::Result<()>>,
{
    let grace = args.common().grace();
    let service = Service { name, shutdown: Shutdown::default(), registry: Registry::new(), grace };
    register_build_info(name, &service.registry)?;
    logs.count(&service.registry)?;
    let shutdown = service.shutdown.clone();
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    // Not in the tracker: it ends with the process, not with the work.
    let watch = {
        let shutdown = shutdown.clone();
        async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!("stopping: told to by a signal");
            shutdown.stop();
            tokio::time::sleep(grace).await;
        }
    };
    let failing = shutdown.clone();
    let work = async {
        body(args, service).await?;
        shutdown.finish();
        if !shutdown.wait(grace).await {
            tracing::warn!("some tasks had not ended when the grace ran out");
        }
        anyhow::Ok(())
    };
    tokio::select! {
        result = work => result?,
        () = watch => anyhow::bail!("the grace of {grace:?} ran out before everything was finished"),
        // What is in hand comes again: nothing of it was acknowledged.
        task = failing.failed() => anyhow::bail!("the {task} has ended unexpectedly"),
    }
    tracing::info!("stopped");
    Ok(())
}

impl Service {
    /// Starts the admin server; answers where it listens.
    ///
    /// # Errors
    /// The address can't be had.
    pub async fn serve_admin(&self, args: &CommonArgs, health: Health) -> anyhow::Result<()> {
        let listener = listen(args.admin_listen, "--admin-listen").await?;
        let (registry, shutdown) = (self.registry.clone(), self.shutdown.clone());
        let serving = crate::admin::serve(listener, health, registry, shutdown);
        self.shutdown.spawn_vital("admin server", serving);
        Ok(())
    }

    /// How long a stop may take.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace
    }
}

/// Listens on an address given by a flag.
///
/// # Errors
/// The address can't be had; the flag is named.
pub async fn listen(address: std::net::SocketAddr, flag: &str) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {flag} {address}"))?;
    tracing::info!(address = %listener.local_addr()?, flag, "listening");
    Ok(listener)
}

fn register_build_info(name: &str, registry: &Registry) -> prometheus::Result<()> {
    let opts = Opts::new("doorbell_build_info", "Always 1; the labels say what is running.");
    let info = IntGaugeVec::new(opts, &["service", "version"])?;
    info.with_label_values(&[name, env!("CARGO_PKG_VERSION")]).set(1);
    registry.register(Box::new(info))
}

/// Each connection is an open file, and some systems allow a thousand unless one asks for more.
fn allow_many_files() {
    let allowed = getrlimit(Resource::Nofile);
    let wanted = Rlimit { current: allowed.maximum, maximum: allowed.maximum };
    if allowed.current != allowed.maximum
        && let Err(error) = setrlimit(Resource::Nofile, wanted)
    {
        tracing::warn!(%error, "no more files may be open than before");
    }
    let now = getrlimit(Resource::Nofile).current;
    if let Some(files) = now.filter(|files| *files < FEW_FILES) {
        tracing::warn!(
            files,
            "few files may be open at once, and so few connections: raise the limit (ulimit -n)"
        );
    }
}

/// Help and versions go to stdout and are no failure; wrong arguments are one sentence.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        return match error.print() {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let text = error.to_string();
    let lines: Vec<&str> =
        text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim).collect();
    logs::say(&format!("{}; see --help", lines.join(" ")));
    ExitCode::from(WRONG_ARGUMENTS)
}
