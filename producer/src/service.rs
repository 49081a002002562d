//! The producer service: events come in over HTTP and are accepted once RabbitMQ has them.

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use clap::builder::RangedU64ValueParser;
use doorbell_common::duration::DurationText;
use doorbell_common::intake::MOST_BYTES;
use doorbell_platform::args::CommonArgs;
use doorbell_platform::auth::{AdminKeyArgs, Guard};
use doorbell_platform::catalogue::{CatalogueArgs, Judge};
use doorbell_platform::followed::known_soon;
use doorbell_platform::health::Dependency;
use doorbell_platform::http as platform_http;
use doorbell_platform::plumbing::Plumbing;
use doorbell_platform::removals::Removals;
use doorbell_platform::service::{self, Service, ServiceArgs};
use doorbell_platform::shares::{ShareArgs, Shares};

mod accept;
mod api;
mod idempotency;
mod metrics;
mod openapi;
mod request;

use accept::{Acceptor, Tenants};
use metrics::Metrics;

/// Accepts events over HTTP and publishes them to RabbitMQ.
#[derive(Debug, Parser)]
#[command(name = "doorbell-producer", version, about)]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
    #[command(flatten)]
    admin_key: AdminKeyArgs,
    #[command(flatten)]
    catalogue: CatalogueArgs,
    /// Where the API is served.
    #[arg(long, env = "DOORBELL_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// The most bytes that an event's data may have; no more than the dispatcher allows.
    #[arg(long, env = "DOORBELL_MAX_EVENT_BYTES", default_value_t = 256 * 1024, value_parser = RangedU64ValueParser::<usize>::new().range(1..=MOST_BYTES))]
    max_event_bytes: usize,
    /// How long the id of a finished event is remembered; the dispatcher must have the same. That of one that
    /// came without a time is remembered for two minutes at least.
    #[arg(long, env = "DOORBELL_DUPLICATE_WINDOW", default_value = "1h")]
    duplicate_window: DurationText,
    #[command(flatten)]
    shares: ShareArgs,
}

impl ServiceArgs for Args {
    fn common(&self) -> &CommonArgs {
        &self.common
    }
}

/// Runs the service to its end.
#[must_use]
pub fn main() -> ExitCode {
    service::run("doorbell-producer", run)
}

async fn run(args: Args, service: Service) -> anyhow::Result<()> {
    let key = args.admin_key.read().map_err(service::WrongArguments::because)?;
    let dependencies = [(Dependency::RabbitmqPublish, true), (Dependency::Redis, false)];
    let Plumbing { publisher, store, .. } =
        Plumbing::lay(&service, &args.common, &dependencies).await?;
    store.watch(&service.shutdown);
    let guard = Guard::new(key, store.clone());
    let (registry, shutdown) = (&service.registry, &service.shutdown);
    let judge = Judge::start(&args.catalogue, store.clone(), registry, shutdown)?;
    let tenants = Tenants::start(store.clone(), shutdown);
    let removals = Removals::start(store.clone(), shutdown);
    let acceptor = Acceptor {
        publisher,
        store,
        judge,
        tenants,
        removals,
        metrics: Metrics::new(&service.registry)?,
        max_event_bytes: args.max_event_bytes,
        duplicate_window: args.duplicate_window.0,
        shares: Shares::new(&args.shares),
    };
    let listener = service::listen(args.listen, "--listen").await?;
    // Those who come meanwhile wait.
    known_soon(acceptor.until_known(shutdown)).await;
    let max_body = api::MAX_BATCH_BYTES + args.max_event_bytes;
    let (routes, document) = api::routes(acceptor);
    let open = doorbell_platform::openapi::routes(&document);
    let api = platform_http::api(routes, open, guard, max_body);
    platform_http::serve(listener, api, service.shutdown.clone()).await;
    Ok(())
}
