//! Load: a publisher that goes on through every fault, and knows which events were confirmed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use doorbell_common::time::Timestamp;
use doorbell_platform::ids;
use doorbell_producer::{NewEvent, Publisher};
use reqwest::Method;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::world::World;

/// How long an event is sent again and again.
const PATIENCE: Duration = Duration::from_secs(120);
/// After how long.
const AGAIN: Duration = Duration::from_millis(100);

/// A load that runs until it is told to stop, or dropped: a story that fails leaves none behind, which would keep a
/// whole Doorbell busy beside all stories after it.
#[derive(Debug)]
pub struct Load {
    stop: Stop,
    task: JoinHandle<u64>,
}

/// A flag that says that it is enough.
#[derive(Clone, Debug, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

impl Load {
    /// Publishes over HTTP, one event after the other with a pause. Each has an id of ours, and is
    /// sent again until it is accepted, as the contract asks.
    #[must_use]
    pub fn over_http(world: &Arc<World>, tenant: &'static str, pause: Duration) -> Self {
        let world = Arc::clone(world);
        Self::start(pause, move |n| {
            let world = Arc::clone(&world);
            async move { publish_until_accepted(&world, tenant, n).await }
        })
    }

    /// The same over AMQP, with the library.
    ///
    /// # Errors
    /// It can't connect.
    pub async fn over_amqp(
        world: &Arc<World>,
        tenant: &'static str,
        pause: Duration,
    ) -> anyhow::Result<Self> {
        let publisher = Publisher::connect(&world.engines.amqp_url(&world.vhost)).await?;
        let world = Arc::clone(world);
        Ok(Self::start(pause, move |n| {
            let (world, publisher) = (Arc::clone(&world), publisher.clone());
            async move { publish_until_confirmed(&world, &publisher, tenant, n).await }
        }))
    }

    fn start<F>(pause: Duration, publish: impl Fn(u64) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let stop = Stop::default();
        let until = stop.clone();
        #[expect(clippy::disallowed_methods, reason = "the story waits for it")]
        let task = tokio::spawn(async move {
            let mut count = 0;
            while !until.is_set() {
                publish(count).await;
                count += 1;
                tokio::time::sleep(pause).await;
            }
            count
        });
        Self { stop, task }
    }

    /// Ends the load; answers how many events were accepted.
    ///
    /// # Errors
    /// It panicked.
    pub async fn end(mut self) -> anyhow::Result<u64> {
        self.stop.set();
        Ok((&mut self.task).await?)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn publish_until_accepted(world: &World, tenant: &str, n: u64) {
    let id = format!("load-{}", ids::token());
    world.ledger.attempted(tenant, "load.test", &id, &n.to_string());
    let body = json!({"tenant": tenant, "type": "load.test", "id": id, "data": n});
    let give_up = Instant::now() + PATIENCE;
    while Instant::now() < give_up {
        let answer = world.producer.call(Method::POST, "/v1/events", body.clone()).await;
        if answer.is_ok_and(|answer| answer.status == 202) {
            world.ledger.accepted(tenant, "load.test", &id, &n.to_string());
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn publish_until_confirmed(world: &World, publisher: &Publisher, tenant: &str, n: u64) {
    let id = format!("amqp-{}", ids::token());
    world.ledger.attempted(tenant, "load.test", &id, &n.to_string());
    let mut event = NewEvent::new(tenant, "load.test", n.to_string());
    event.id = Some(id.clone());
    let give_up = Instant::now() + PATIENCE;
    while Instant::now() < give_up {
        if publisher.publish(&event).await.is_ok() {
            world.ledger.accepted(tenant, "load.test", &id, &n.to_string());
            return;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// Publishes so many events over AMQP with the library, as fast as confirms allow.
///
/// # Errors
/// It can't connect, or an event was not confirmed.
pub async fn publish_many(world: &World, tenant: &str, count: u64) -> anyhow::Result<()> {
    publish_all(world, tenant, count, None).await
}

/// The same, to be delivered from this time on.
///
/// # Errors
/// As for [`publish_many`].
pub async fn publish_many_for(
    world: &World,
    tenant: &str,
    count: u64,
    deliver_at: Timestamp,
) -> anyhow::Result<()> {
    publish_all(world, tenant, count, Some(deliver_at.to_string())).await
}

async fn publish_all(
    world: &World,
    tenant: &str,
    count: u64,
    deliver_at: Option<String>,
) -> anyhow::Result<()> {
    let publisher = Publisher::connect(&world.engines.amqp_url(&world.vhost)).await?;
    let numbers: Vec<u64> = (0..count).collect();
    for chunk in numbers.chunks(500) {
        let mut events = Vec::new();
        for n in chunk {
            let mut event = NewEvent::new(tenant, "load.test", n.to_string());
            event.id = Some(format!("many-{}", ids::token()));
            event.deliver_at.clone_from(&deliver_at);
            events.push(event);
        }
        for event in &events {
            let data = String::from_utf8_lossy(&event.data);
            world.ledger.attempted(
                tenant,
                "load.test",
                event.id.as_deref().unwrap_or_default(),
                &data,
            );
        }
        for (event, result) in events.iter().zip(publisher.publish_many(&events).await) {
            let data = String::from_utf8_lossy(&event.data);
            world.ledger.accepted(tenant, "load.test", result?.as_str(), &data);
        }
    }
    publisher.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wait::{eventually, seconds};

    #[tokio::test]
    async fn a_load_that_is_dropped_ends() {
        let used = Arc::new(());
        let by_load = Arc::clone(&used);
        let load = Load::start(Duration::ZERO, move |_| {
            let by_load = Arc::clone(&by_load);
            async move { drop(by_load) }
        });
        assert!(Arc::strong_count(&used) > 1);
        drop(load);
        let is_free = || async { Arc::strong_count(&used) == 1 };
        eventually("what it used is free", seconds(30), is_free).await.unwrap();
    }
}
