//! What we put aside is counted, and comes back when someone says so.

use anyhow::Context as _;
use doorbell_local::services::Kind;
use doorbell_platform::broker::topology::{self, QUARANTINE, REJECTED};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, World, amqp, eventually};
use lapin::options::{BasicGetOptions, BasicRejectOptions};
use reqwest::Method;
use serde_json::json;

/// The delivery limit of our queues.
const LIMIT: u32 = 1000;

pub(crate) async fn what_was_put_into_quarantine_comes_back() -> anyhow::Result<()> {
    let world = World::start("quarantine").await?;
    world.receiver.behave("slow", Behaviour::Slow(seconds(600)));
    world.subscribe("acme", "slow", &["#"]).await?;
    world.in_force().await;
    // Begun, and noted, by a dispatcher that ends amid it; then again and again without an end.
    let event = json!({"tenant": "acme", "type": "a.b", "id": "evt-1", "data": 1});
    world.ledger.accepted("acme", "a.b", "evt-1", "1");
    assert_eq!(world.producer.call(Method::POST, "/v1/events", event).await?.status, 202);
    let in_flight = || async { world.metric("doorbell_posts_in_flight").await.unwrap_or(0.0) };
    eventually("it is tried", seconds(20), || async { in_flight().await > 0.5 }).await?;
    for name in ["dispatcher-1", "dispatcher-2"] {
        world.kill(name).await?;
    }
    let outsider = world.outsider().await?;
    let mut ended = 0;
    let queue = ready_in(&outsider).await?;
    while let Some(got) =
        outsider.channel.basic_get(queue.as_str().into(), BasicGetOptions::default()).await?
    {
        got.delivery.acker.reject(BasicRejectOptions { requeue: true }).await?;
        ended += 1;
        anyhow::ensure!(ended < 2 * LIMIT, "it still stands in {queue}");
    }
    world.receiver.behave("slow", Behaviour::Status(200));
    for name in ["dispatcher-1", "dispatcher-2"] {
        world.restart(name).await?;
    }
    let counted = || async { world.metric("doorbell_quarantine_waiting").await.unwrap_or(0.0) };
    eventually("it is counted", seconds(60), || async { counted().await > 0.5 }).await?;
    assert_eq!(world.receiver.count("slow"), 0);
    // Nobody knows where this one is to go: it stays, and that is said.
    let stray = topology::INTERNAL;
    let options = lapin::options::BasicPublishOptions::default();
    let confirm = outsider
        .channel
        .basic_publish(stray.into(), QUARANTINE.into(), options, b"?", Default::default())
        .await?;
    assert!(confirm.await?.is_ack());
    let redriving = world.command(Kind::RetryScheduler, &["redrive", "quarantine"]).await;
    let said = format!("{:?}", redriving.unwrap_err());
    assert!(said.contains("1 messages stay in doorbell.quarantine"), "{said}");
    world.settle(seconds(30)).await?;
    world.finish_with(&[(QUARANTINE, 1)]).await
}

/// The queue of events that has a message.
async fn ready_in(outsider: &amqp::Outsider) -> anyhow::Result<String> {
    let queues = topology::ingress_queues();
    let mut found = None;
    eventually("it is in its queue again", seconds(60), || async {
        let mut depths = Vec::new();
        for queue in &queues {
            depths.push(outsider.depth(queue).await.unwrap_or(0));
        }
        depths.into_iter().sum::<u32>() == 1
    })
    .await?;
    for queue in queues {
        if outsider.depth(&queue).await? == 1 {
            found = Some(queue);
        }
    }
    found.context("no queue has it")
}

pub(crate) async fn what_was_rejected_comes_back() -> anyhow::Result<()> {
    const EVENTS: u32 = 250;
    let world = World::start("redrive").await?;
    world.subscribe("acme", "all", &["#"]).await?;
    let limits = "/v1/tenants/acme/limits";
    let set = json!({"max_event_bytes": 10});
    assert_eq!(world.control.call(Method::PUT, limits, set).await?.status, 200);
    world.in_force().await;
    let outsider = world.outsider().await?;
    let data = json!("longer than ten bytes").to_string();
    for n in 0..EVENTS {
        let id = format!("evt-{n}");
        world.ledger.accepted("acme", "a.b", &id, &data);
        outsider.publish("a.b", amqp::event("acme", Some(&id), &[]), &data).await?;
    }
    // No change of limits makes an event of this one.
    outsider.publish("a.b", amqp::event("acme", Some("evt-x"), &[]), b"no JSON").await?;
    let rejected = |count: u32| {
        let outsider = &outsider;
        eventually("so many are rejected", seconds(60), move || async move {
            outsider.depth(REJECTED).await.is_ok_and(|depth| depth == count)
        })
    };
    rejected(EVENTS + 1).await?;
    assert_eq!(world.receiver.total(), 0);
    let allowed = json!({"max_event_bytes": 1000});
    assert_eq!(world.control.call(Method::PUT, limits, allowed).await?.status, 200);
    world.in_force().await;
    // Some, then the others: with what comes back meanwhile it ends all the same.
    world.command(Kind::RetryScheduler, &["redrive", "rejected", "--most", "20"]).await?;
    eventually("these come", seconds(30), || async { world.receiver.accepted("all") == 20 })
        .await?;
    assert_eq!(outsider.depth(REJECTED).await?, EVENTS + 1 - 20);
    world.command(Kind::RetryScheduler, &["redrive", "rejected"]).await?;
    world.settle(seconds(60)).await?;
    rejected(1).await?;
    assert!(world.ledger.duplicates(&world.receiver).is_empty());
    let left = outsider.take(REJECTED).await?.context("it is gone")?;
    assert_eq!(amqp::header(&left, "doorbell-routing-key").as_deref(), Some("a.b"));
    assert!(amqp::header(&left, "doorbell-reason").is_some_and(|said| said.contains("JSON")));
    world.finish().await
}
