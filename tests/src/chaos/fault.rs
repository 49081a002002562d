//! What may happen to a Doorbell at any moment, and how it is done to one.

use std::fmt;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::Signal;
use rand::RngExt as _;
use rand::rngs::StdRng;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::receiver::Behaviour;
use crate::redis_cluster::RedisCluster;
use crate::world::World;

/// Who can be killed, stopped and frozen.
pub(super) const SERVICES: [&str; 6] = [
    "producer",
    "control-plane",
    "retry-scheduler-1",
    "retry-scheduler-2",
    "dispatcher-1",
    "dispatcher-2",
];

/// How long the control-plane may be asked in vain, while what it needs is out of order.
const PATIENCE: Duration = Duration::from_secs(150);
/// After how long it is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// An endpoint that hangs says nothing for so long, which is longer than it is given.
const HANGS: Duration = Duration::from_secs(25);

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A process is killed and started again after a while.
    Kill(Victim, Duration),
    /// A process does nothing for a while, and then goes on as if nothing had been.
    Freeze(Victim, Duration),
    /// A service is asked to stop, and started again after a while.
    Stop(&'static str, Duration),
    /// Every connection to RabbitMQ is closed by the operator.
    CloseConnections,
    /// RabbitMQ takes no messages for a while.
    Alarm(Duration),
    /// The endpoint `shaky` refuses everything for a while.
    Refuse(Duration),
    /// It and a third of those that are asked together hang for a while.
    Hang(Duration),
    /// The subscription of `shaky` is paused for a while.
    Pause(Duration),
    /// The subscription of `shaky` gets another secret.
    Rotate,
}

/// Whose process something happens to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Victim {
    /// A service.
    Service(&'static str),
    /// All services at once.
    Services,
    /// A node of RabbitMQ, by its number.
    RabbitMq(usize),
    /// Redis; of a cluster the master that has this just now.
    Redis(&'static str),
}

/// What the masters of a cluster have between them: where these lie, everything does.
const OF_REDIS: [&str; 4] = ["{main}", "{tenant-acme}", "{slot-000000}", "{slot-000001}"];

/// What things happen to beside the services and the engines that every story has.
#[derive(Debug)]
pub(super) struct Scene {
    pub(super) shaky: Shaky,
    /// Endpoints that hang together.
    pub(super) provider: Vec<String>,
    /// Instead of the one Redis.
    pub(super) cluster: Option<Mutex<RedisCluster>>,
}

/// The subscription that is paused and whose secret changes.
#[derive(Clone, Debug)]
pub(super) struct Shaky {
    pub(super) tenant: &'static str,
    pub(super) endpoint: &'static str,
    pub(super) subscription: String,
}

impl Fault {
    /// Chooses one for a RabbitMQ of so many nodes, that does not last longer than this.
    pub(super) fn choose(random: &mut StdRng, nodes: usize, longest: Duration) -> Self {
        let service = SERVICES[random.random_range(0..SERVICES.len())];
        let node = random.random_range(0..nodes);
        let victim = match random.random_range(0..10) {
            0..=5 => Victim::Service(service),
            6 => Victim::Services,
            7..=8 => Victim::RabbitMq(node),
            _ => Victim::Redis(OF_REDIS[random.random_range(0..OF_REDIS.len())]),
        };
        let down = millis(random, 5_000);
        match random.random_range(0..22) {
            0..=7 => Self::Kill(victim, down),
            8..=10 => Self::Freeze(victim, millis(random, 20_000)),
            // Longer than heartbeats and the terms of leases.
            11 => Self::Freeze(victim, millis(random, 90_000).min(longest)),
            12..=13 => Self::Stop(service, down),
            14..=15 => Self::CloseConnections,
            16 => Self::Alarm(millis(random, 8_000)),
            17 => Self::Refuse(millis(random, 10_000)),
            18 => Self::Pause(millis(random, 10_000)),
            19..=20 => Self::Hang(millis(random, 20_000)),
            _ => Self::Rotate,
        }
    }

    /// Whether it can happen while the other one does.
    pub(super) fn goes_with(self, other: Self) -> bool {
        // A service that is to stop has its grace, and an engine may be frozen for longer.
        let stops = |fault| matches!(fault, Self::Stop(..));
        let freezes =
            |fault| matches!(fault, Self::Freeze(Victim::RabbitMq(_) | Victim::Redis(_), _));
        if stops(self) && freezes(other) || stops(other) && freezes(self) {
            return false;
        }
        match (self.victim(), other.victim()) {
            (Some(Victim::Services), Some(Victim::Service(_)))
            | (Some(Victim::Service(_)), Some(Victim::Services)) => false,
            // Two nodes of three: none is left that could do anything.
            (Some(Victim::RabbitMq(_)), Some(Victim::RabbitMq(_)))
            | (Some(Victim::Redis(_)), Some(Victim::Redis(_))) => false,
            (Some(one), Some(another)) => one != another,
            (one, another) => one.is_some() || another.is_some(),
        }
    }

    fn victim(self) -> Option<Victim> {
        match self {
            Self::Kill(victim, _) | Self::Freeze(victim, _) => Some(victim),
            Self::Stop(service, _) => Some(Victim::Service(service)),
            // Both are done by a process of RabbitMQ's.
            Self::CloseConnections | Self::Alarm(_) => Some(Victim::RabbitMq(0)),
            Self::Refuse(_) | Self::Hang(_) | Self::Pause(_) | Self::Rotate => None,
        }
    }

    /// Does it, and puts in order again what it did.
    ///
    /// # Errors
    /// Something could not be done or put in order; a service did not stop cleanly.
    pub(super) async fn happen(self, world: &World, scene: &Scene) -> anyhow::Result<()> {
        let Scene { shaky, provider, cluster } = scene;
        match (self, cluster) {
            (Self::Kill(Victim::Redis(of), time), Some(cluster)) => {
                let mut cluster = cluster.lock().await;
                let number = cluster.kill_master_of(of).await?;
                tokio::time::sleep(time).await;
                return cluster.start_again(number).await;
            }
            (Self::Freeze(Victim::Redis(of), time), Some(cluster)) => {
                let mut cluster = cluster.lock().await;
                let number = cluster.freeze_master_of(of).await?;
                tokio::time::sleep(time).await;
                return cluster.thaw(number).await;
            }
            (_, _) => {}
        }
        match self {
            Self::Kill(victim, down) => victim.kill(world, down).await,
            Self::Freeze(victim, time) => {
                victim.signal(world, Signal::SIGSTOP).await?;
                tokio::time::sleep(time).await;
                victim.signal(world, Signal::SIGCONT).await
            }
            Self::Stop(service, down) => {
                let code = world.stop(service).await?;
                anyhow::ensure!(code == Some(0), "{service} ended with {code:?}, not 0");
                tokio::time::sleep(down).await;
                world.restart(service).await
            }
            Self::CloseConnections => world.engines.close_connections(&world.vhost).await,
            Self::Alarm(time) => {
                let rabbitmq = world.engines.rabbitmq.lock().await;
                rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.00001"]).await?;
                tokio::time::sleep(time).await;
                rabbitmq.ctl(&["set_vm_memory_high_watermark", "0.4"]).await?;
                Ok(())
            }
            Self::Refuse(time) => {
                world.receiver.behave(shaky.endpoint, Behaviour::Status(503));
                tokio::time::sleep(time).await;
                world.receiver.behave(shaky.endpoint, Behaviour::Status(200));
                Ok(())
            }
            Self::Hang(time) => {
                let behave = |behaviour: Behaviour| {
                    for endpoint in provider {
                        world.receiver.behave(endpoint, behaviour.clone());
                    }
                };
                behave(Behaviour::Hang(HANGS));
                tokio::time::sleep(time).await;
                behave(Behaviour::Status(200));
                Ok(())
            }
            Self::Pause(time) => {
                shaky.set_status(world, "paused").await?;
                tokio::time::sleep(time).await;
                shaky.set_status(world, "active").await
            }
            Self::Rotate => shaky.rotate(world).await,
        }
    }
}

impl Victim {
    async fn kill(self, world: &World, down: Duration) -> anyhow::Result<()> {
        match self {
            Self::Service(name) => {
                world.kill(name).await?;
                tokio::time::sleep(down).await;
                world.restart(name).await
            }
            Self::Services => {
                for name in SERVICES {
                    world.kill(name).await?;
                }
                tokio::time::sleep(down).await;
                for name in SERVICES {
                    world.restart(name).await?;
                }
                Ok(())
            }
            Self::RabbitMq(number) => {
                let node = world.engines.nodes().nth(number).context("no such node")?;
                let mut node = node.lock().await;
                node.kill().await;
                tokio::time::sleep(down).await;
                node.start_again().await
            }
            Self::Redis(_) => {
                let mut redis = world.engines.redis.lock().await;
                redis.kill().await;
                tokio::time::sleep(down).await;
                redis.start_again().await
            }
        }
    }

    async fn signal(self, world: &World, signal: Signal) -> anyhow::Result<()> {
        match self {
            Self::Service(name) => world.signal(name, signal).await?,
            Self::Services => {
                for name in SERVICES {
                    world.signal(name, signal).await?;
                }
            }
            Self::RabbitMq(number) => {
                let node = world.engines.nodes().nth(number).context("no such node")?;
                node.lock().await.process().signal(signal)?;
            }
            Self::Redis(_) => world.engines.redis.lock().await.process().signal(signal)?,
        }
        Ok(())
    }
}

impl Shaky {
    async fn set_status(&self, world: &World, status: &str) -> anyhow::Result<()> {
        let answer = self.ask(world, Method::PATCH, "", json!({ "status": status })).await?;
        anyhow::ensure!(answer["status"] == status, "{answer}");
        Ok(())
    }

    async fn rotate(&self, world: &World) -> anyhow::Result<()> {
        let answer = self.ask(world, Method::POST, "/secret/rotate", Value::Null).await?;
        world.receiver.add_secret(self.endpoint, answer["secret"].as_str().context("no secret")?);
        Ok(())
    }

    /// Asks the control-plane until it says yes.
    async fn ask(
        &self,
        world: &World,
        method: Method,
        path: &str,
        body: Value,
    ) -> anyhow::Result<Value> {
        let path = format!("/v1/tenants/{}/subscriptions/{}{path}", self.tenant, self.subscription);
        let give_up = Instant::now() + PATIENCE;
        loop {
            let answer = world.control.call(method.clone(), &path, body.clone()).await;
            match answer {
                Ok(answer) if answer.status == 200 => return Ok(answer.body),
                Ok(answer) => anyhow::ensure!(
                    answer.status.is_server_error() && Instant::now() < give_up,
                    "{method} {path}: {} {}",
                    answer.status,
                    answer.body
                ),
                Err(error) => {
                    anyhow::ensure!(Instant::now() < give_up, "{method} {path}: {error:#}");
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kill(victim, down) => write!(formatter, "kill {victim} for {down:?}"),
            Self::Freeze(victim, time) => write!(formatter, "freeze {victim} for {time:?}"),
            Self::Stop(service, down) => write!(formatter, "stop {service} for {down:?}"),
            Self::CloseConnections => formatter.write_str("close all connections to RabbitMQ"),
            Self::Alarm(time) => write!(formatter, "RabbitMQ takes nothing for {time:?}"),
            Self::Refuse(time) => write!(formatter, "an endpoint refuses for {time:?}"),
            Self::Hang(time) => write!(formatter, "a provider's endpoints hang for {time:?}"),
            Self::Pause(time) => write!(formatter, "a subscription is paused for {time:?}"),
            Self::Rotate => formatter.write_str("a subscription gets another secret"),
        }
    }
}

impl fmt::Display for Victim {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => formatter.write_str(name),
            Self::Services => formatter.write_str("all services"),
            Self::RabbitMq(number) => write!(formatter, "RabbitMQ's node {}", number + 1),
            Self::Redis(of) => write!(formatter, "the Redis that has {of}"),
        }
    }
}

fn millis(random: &mut StdRng, at_most: u64) -> Duration {
    Duration::from_millis(random.random_range(0..=at_most))
}
