//! Deliveries of several events of a tenant travel together, and each of them is what it would be alone.

use std::sync::Arc;
use std::time::Duration;

use doorbell_common::event::{Event, Trace};
use doorbell_common::ids::SubscriptionId;
use doorbell_common::work::{Bundle, Delivery, Work};
use doorbell_platform::broker::{Message, topology};
use doorbell_platform::clock;
use doorbell_tests::load::publish_many;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, eventually};
use reqwest::Method;
use serde_json::Value;

/// POSTs in flight of each dispatcher.
const IN_FLIGHT: usize = 8;

/// Deliveries of so many events for this subscription, in one message.
fn bundle(id: &SubscriptionId, count: usize) -> anyhow::Result<Work> {
    let mut deliveries = Vec::new();
    for n in 0..count {
        let event = Event {
            id: format!("bundled-{n}").parse()?,
            tenant: "acme".parse()?,
            event_type: "a".parse()?,
            timestamp: clock::now(),
            trace: Trace::default(),
            data: b"1".as_slice().into(),
        };
        deliveries.push(Delivery::begin(Arc::new(event), id.clone(), clock::now()));
    }
    let mut works = Bundle::pack(deliveries);
    anyhow::ensure!(works.len() == 1, "{} messages", works.len());
    Ok(works.remove(0).next())
}

pub(crate) async fn what_is_held_of_a_flood_travels_together() -> anyhow::Result<()> {
    const FLOOD: u64 = 3000;
    let world = World::start("together").await?;
    world.receiver.behave("slow", Behaviour::Slow(seconds(1)));
    world.subscribe("flood", "slow", &["#"]).await?;
    world.in_force().await;
    publish_many(&world, "flood", FLOOD).await?;
    let held = async || world.metric("doorbell_deliveries_held_total{reason=\"busy\"}").await;
    eventually("most of it is held", seconds(60), || async {
        held().await.is_ok_and(|held| held > 2000.0)
    })
    .await?;
    world.receiver.behave("slow", Behaviour::Status(200));
    world.settle(seconds(200)).await?;
    let mut messages = 0.0;
    for queue in ["delays", "sideline_delays"] {
        messages += world.metric(&format!("doorbell_handoffs_total{{queue=\"{queue}\"}}")).await?;
    }
    let held = held().await?;
    eprintln!("a flood of {FLOOD}: held {held} times, in {messages} messages");
    assert!(messages < held / 4.0, "{messages} messages for {held}");
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}

/// What had been made of a bundle is not made again by whoever has it next.
pub(crate) async fn a_kill_amid_a_bundle_repeats_no_more_than_was_in_flight() -> anyhow::Result<()>
{
    const DELIVERIES: usize = 60;
    let mut setup = Setup::default();
    setup.dispatcher_extra.push(("DOORBELL_MAX_IN_FLIGHT".to_owned(), IN_FLIGHT.to_string()));
    let world = World::with("bundle-killed", setup).await?;
    let id = world.subscribe("acme", "slow", &["#"]).await?.parse::<SubscriptionId>()?;
    world.receiver.behave("slow", Behaviour::Slow(Duration::from_millis(200)));
    world.in_force().await;
    let work = bundle(&id, DELIVERIES)?;
    for n in 0..DELIVERIES {
        world.ledger.accepted("acme", "a", &format!("bundled-{n}"), "1");
    }
    let outsider = world.outsider().await?;
    outsider.publish_message(Message::work(topology::DELIVERIES, &work)?).await?;
    eventually("a part has arrived", seconds(30), || async {
        world.receiver.accepted("slow") >= DELIVERIES / 2
    })
    .await?;
    for name in ["dispatcher-1", "dispatcher-2"] {
        world.kill_and_restart(name).await?;
    }
    world.settle(seconds(60)).await?;
    let duplicates = world.duplicates().await?;
    let hits = world.metric("doorbell_ledger_hits_total").await?;
    eprintln!(
        "a bundle of {DELIVERIES} killed halfway: {duplicates} duplicates, {hits} not made again"
    );
    assert!(duplicates <= IN_FLIGHT, "{duplicates} duplicates");
    assert!(hits > 0.5, "nothing of it had been made: it proves nothing");
    world.finish().await
}

/// Copies of it are told one by one, and what is removed of it keeps the rest from nothing.
pub(crate) async fn of_a_bundle_each_is_what_it_would_be_alone() -> anyhow::Result<()> {
    const DELIVERIES: usize = 20;
    let world = World::start("bundle-parts").await?;
    let id = world.subscribe("acme", "fails-first", &["#"]).await?.parse::<SubscriptionId>()?;
    world.receiver.behave("fails-first", Behaviour::FailFirst(1, 503));
    world.in_force().await;
    let work = bundle(&id, DELIVERIES)?;
    for n in (0..DELIVERIES).filter(|n| *n != 7) {
        world.ledger.accepted("acme", "a", &format!("bundled-{n}"), "1");
    }
    let Work::Bundle(all) = work.clone() else { anyhow::bail!("not a bundle") };
    let removal = "/v1/tenants/acme/events/bundled-7";
    let removed = world.control.call(Method::DELETE, removal, Value::Null).await?;
    assert_eq!(removed.status.as_u16(), 202);
    world.in_force().await;
    let outsider = world.outsider().await?;
    // One that came before, by itself.
    let alone = all.parcels().nth(3).cloned().map(Work::Parcel);
    for work in alone.iter().chain([&work, &work]) {
        outsider.publish_message(Message::work(topology::DELIVERIES, work)?).await?;
    }
    eventually("all but the removed one are delivered", seconds(60), || async {
        world.receiver.accepted("fails-first") == DELIVERIES - 1
    })
    .await?;
    world.until_nothing_waits().await?;
    let posts = world.receiver.posts_to("fails-first");
    assert_eq!(posts.len(), 2 * (DELIVERIES - 1), "each fails once");
    assert!(posts.iter().all(|post| post.id != "bundled-7"));
    let ended = async |state: &str| {
        world.metric(&format!("doorbell_deliveries_total{{state=\"{state}\"}}")).await
    };
    let ended = (ended("delivered").await?, ended("cancelled").await?);
    // Of the copies of the one that was removed each says so.
    assert!((ended.0 - 19.0).abs() < 0.5 && ended.1 > 0.5, "{ended:?}");
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}
