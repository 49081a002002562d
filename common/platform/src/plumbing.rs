//! What a service stands on, set up in one step.

use prometheus::Registry;

use crate::args::CommonArgs;
use crate::broker::{Broker, Declares, Publisher};
use crate::health::{Dependency, Health};
use crate::service::{Service, WrongArguments};
use crate::store::Store;
use crate::tls::Trust;

/// The engines as a service sees them.
#[derive(Clone, Debug)]
pub struct Plumbing {
    /// How each dependency is.
    pub health: Health,
    /// RabbitMQ.
    pub broker: Broker,
    /// Publishing to it.
    pub publisher: Publisher,
    /// Redis.
    pub store: Store,
}

impl Plumbing {
    /// What a service needs that works on messages.
    pub const FOR_MESSAGES: [(Dependency, bool); 3] = [
        (Dependency::RabbitmqPublish, true),
        (Dependency::RabbitmqConsume, true),
        (Dependency::Redis, true),
    ];

    /// Sets everything up, and serves what is known of it on the admin address. Waits for no
    /// engine: each part connects by itself, again and again. The flags say on which engines
    /// readiness depends.
    ///
    /// # Errors
    /// A flag is wrong, a file can't be read, or the admin address can't be had.
    pub async fn lay(
        service: &Service,
        args: &CommonArgs,
        dependencies: &[(Dependency, bool)],
    ) -> anyhow::Result<Self> {
        let health = Health::new(&service.registry, dependencies)?;
        let store = store(args, (health.clone(), &service.registry))?;
        let broker = broker(args, service.name)?;
        let publisher =
            Publisher::start(broker.clone(), health.clone(), &service.registry, &service.shutdown)?;
        service.serve_admin(args, health.clone()).await?;
        Ok(Self { health, broker, publisher, store })
    }
}

/// RabbitMQ alone, as a service of this name.
///
/// # Errors
/// A flag is wrong, or a file can't be read.
pub fn broker(args: &CommonArgs, service: &'static str) -> anyhow::Result<Broker> {
    let read = || {
        let trust = Trust::read(args.tls_ca_file.as_ref())?;
        Broker::new(&args.amqp_urls()?, trust, service, Declares::Always)
    };
    Ok(read().map_err(WrongArguments::because)?)
}

/// Redis alone.
///
/// # Errors
/// A flag is wrong, a file can't be read, or a metric is registered already.
pub fn store(args: &CommonArgs, known_by: (Health, &Registry)) -> anyhow::Result<Store> {
    let read = || {
        let trust = Trust::read(args.tls_ca_file.as_ref())?;
        Store::new(&args.redis_urls()?, &trust, &args.redis_prefix, known_by)
    };
    Ok(read().map_err(WrongArguments::because)?)
}
