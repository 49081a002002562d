//! The control-plane: tenants, subscriptions and API keys over HTTP.
//!
//! [`routes`] says what is where and [`access`] who may call it, [`tenants`], [`subscriptions`],
//! [`api_keys`], [`bulk`] and [`config`] serve it, [`form`] and
//! [`rotation`] read and check what is written ([`reading`] in turn), [`room`] says how much more there may be, [`view`] shows it, [`errands`] has dispatchers call endpoints.

mod access;
mod api_keys;
mod audit;
mod bulk;
mod completion;
mod config;
mod errands;
mod etag;
mod event_types;
mod filters;
mod form;
mod headers;
mod idempotency;
mod limits;
mod lines;
mod list;
mod openapi;
mod reading;
mod removals;
mod room;
mod rotation;
mod routes;
mod sealing;
mod select;
mod subscriptions;
mod templates;
mod tenants;
mod throttle;
mod trial;
mod verification;
mod view;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use doorbell_common::api_key::Environment;
use doorbell_common::verification::Verification;
use doorbell_platform::args::CommonArgs;
use doorbell_platform::auth::{AdminKeyArgs, Guard};
use doorbell_platform::health::{Dependency, Health};
use doorbell_platform::http;
use doorbell_platform::permits::Permits;
use doorbell_platform::plumbing::{self, Plumbing};
use doorbell_platform::sealing::SealingArgs;
use doorbell_platform::service::{self, Service, ServiceArgs, WrongArguments};
use doorbell_platform::store::Losses;
use doorbell_platform::targets::TargetArgs;
use doorbell_platform::workshop::Workshop;

use errands::Errands;
use form::Rules;
use routes::Api;
use throttle::Throttle;

/// Serves the subscriptions API.
#[derive(Debug, Parser)]
#[command(name = "doorbell-control-plane", version, about)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    admin_key: AdminKeyArgs,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    sealing: SealingArgs,
    /// Where the API is served.
    #[arg(long, env = "DOORBELL_LISTEN", default_value = "0.0.0.0:8081")]
    listen: SocketAddr,
    /// How endpoints are asked whether they want POSTs, before anything is delivered: none, challenge or cloudevents. With one of the latter every subscription has one of them.
    #[arg(long, env = "DOORBELL_VERIFY_ENDPOINTS", default_value = "none")]
    verify_endpoints: Verification,
    /// What the API keys of this deployment begin with, after "db_": 1 to 16 lower-case letters and digits.
    #[arg(long, env = "DOORBELL_KEY_ENVIRONMENT", default_value = "live")]
    key_environment: Environment,
    /// How many requests a second each API key may make, of each control-plane (and twice as many at once).
    #[arg(long, env = "DOORBELL_REQUESTS_PER_SECOND", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    requests_per_second: u32,
    /// How many entries of the audit are kept; one has at most some 20 KB, and mostly less than one.
    #[arg(long, env = "DOORBELL_AUDIT_ENTRIES", default_value_t = 10_000)]
    audit_entries: usize,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Prepare an empty Redis, once. One that was prepared before stays as it is, and every service reads it afresh.
    Init {
        /// Of one that was prepared and has lost a part that can't be restored: go on with what is left.
        #[arg(long)]
        accept_losses: bool,
    },
}

impl ServiceArgs for Args {
    fn common(&self) -> &CommonArgs {
        &self.common
    }
}

/// The largest request.
const MAX_BODY: usize = 256 * 1024;

fn main() -> ExitCode {
    service::run("doorbell-control-plane", run)
}

async fn run(args: Args, service: Service) -> anyhow::Result<()> {
    let dependencies = [(Dependency::RabbitmqPublish, false), (Dependency::Redis, true)];
    if let Some(Command::Init { accept_losses }) = args.command {
        let health = Health::new(&service.registry, &dependencies)?;
        let store = plumbing::store(&args.common, (health, &service.registry))?;
        if accept_losses {
            let Losses { tenants, left, slots } = store.accept_losses().await?;
            tracing::info!(tenants, left, slots, "going on with what Redis has left");
        } else {
            let created = store.init().await?;
            tracing::info!(created, "Redis is initialised");
        }
        return Ok(());
    }
    let key = args.admin_key.read().map_err(WrongArguments::because)?;
    let secrets = args.sealing.read().map_err(WrongArguments::because)?;
    let Plumbing { broker, publisher, store, .. } =
        Plumbing::lay(&service, &args.common, &dependencies).await?;
    if secrets.active().is_none() {
        tracing::warn!(
            "signing secrets and header values are kept in clear: set --encryption-keys-file"
        );
    }
    let store = store.with_secrets(secrets);
    store.watch(&service.shutdown);
    let sealing = sealing::keep_sealed(store.clone(), service.shutdown.clone());
    service.shutdown.spawn_vital("sealing of secrets", sealing);
    let errands = Errands::start(broker, publisher, &service.shutdown);
    let listener = service::listen(args.listen, "--listen").await?;
    let guard = Guard::new(key, store.clone());
    let rules = Rules { addresses: args.targets.policy(), verification: args.verify_endpoints };
    let key_environment = args.key_environment;
    let audit_entries = args.audit_entries;
    let api = Api {
        store,
        rules: rules.into(),
        errands,
        workshop: Workshop::default(),
        lists: Permits::new(routes::LISTS),
        documents: Permits::new(routes::DOCUMENTS),
        key_environment,
        audit_entries,
    };
    let asking = verification::ask_all(api.clone(), service.shutdown.clone());
    service.shutdown.spawn_vital("verification of endpoints", asking);
    let throttle = Throttle::new(args.requests_per_second);
    let (routes, document) = routes::routes(api, throttle, service.shutdown.clone());
    let open = doorbell_platform::openapi::routes(&document);
    let api = http::api(routes, open, guard, MAX_BODY);
    http::serve(listener, api, service.shutdown.clone()).await;
    Ok(())
}
