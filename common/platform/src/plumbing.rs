//! What a service that works on messages stands on, set up in one step.

use prometheus::Registry;

use crate::args::CommonArgs;
use crate::broker::{Broker, Publisher};
use crate::health::{Dependency, Health};
use crate::shutdown::Shutdown;
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
    /// Sets everything up. Waits for nothing: each part connects by itself, again and again.
    ///
    /// # Errors
    /// A flag is wrong, or a file can't be read.
    pub fn lay(
        service: &'static str,
        args: &CommonArgs,
        dependencies: &[(Dependency, bool)],
        (registry, shutdown): (&Registry, &Shutdown),
    ) -> anyhow::Result<Self> {
        let health = Health::new(registry, dependencies)?;
        let trust = Trust::read(args.tls_ca_file.as_ref())?;
        let broker = Broker::new(&args.amqp_urls()?, trust.clone(), service)?;
        let store = Store::new(&args.redis_urls()?, &trust, &args.redis_prefix, health.clone())?;
        let publisher = Publisher::start(broker.clone(), health.clone(), registry, shutdown)?;
        Ok(Self { health, broker, publisher, store })
    }
}
