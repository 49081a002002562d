//! Deliveries of paused subscriptions are kept in a stream, and flow again.

use std::collections::BTreeSet;
use std::sync::Arc;

use doorbell_common::wire;
use doorbell_platform::broker::topology;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Setup, World, amqp, eventually};
use redis::aio::MultiplexedConnection;
use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;

pub(crate) async fn deliveries_are_kept_and_flow_again() -> anyhow::Result<()> {
    let world = World::start("paused").await?;
    let id = world.subscribe("acme", "pausing", &["#"]).await?;
    let deleted = world.subscribe("acme", "deleted", &["#"]).await?;
    world.ledger.expect_no_full_set("deleted");
    for id in [&id, &deleted] {
        world.set_status("acme", id, "paused").await?;
    }
    world.in_force().await;
    hold(&world, 50, 100).await?;
    assert!(world.receiver.posts().is_empty());
    world.kill_and_restart("retry-scheduler-1").await?;
    world.set_status("acme", &id, "active").await?;
    let path = format!("/v1/tenants/acme/subscriptions/{deleted}");
    world.control.call(Method::DELETE, &path, json!(null)).await?;
    let begun = || async { world.receiver.count("pausing") > 0 };
    eventually("held deliveries begin to flow within 30 s", seconds(30), begun).await?;
    world.settle(seconds(60)).await?;
    // What was held for the deleted one is cancelled, on its tombstone.
    let cancelled = || async {
        world.metric("doorbell_deliveries_total{state=\"cancelled\"}").await.unwrap_or(0.0)
    };
    eventually("the deleted one's are cancelled", seconds(60), || async {
        cancelled().await >= 50.0
    })
    .await?;
    assert!(world.receiver.posts_to("deleted").is_empty());
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}

pub(crate) async fn what_is_held_for_too_long_is_given_up() -> anyhow::Result<()> {
    const EVENTS: u32 = 20;
    let mut setup = Setup::default();
    setup.extra.push(("DOORBELL_EXPIRE_HELD_AFTER".to_owned(), "20s".to_owned()));
    let world = World::with("away", setup).await?;
    let away = world.subscribe("acme", "away", &["#"]).await?;
    let back = world.subscribe("acme", "back", &["#"]).await?;
    world.ledger.expect_no_full_set("away");
    for id in [&away, &back] {
        world.set_status("acme", id, "paused").await?;
    }
    world.in_force().await;
    hold(&world, EVENTS, 2 * EVENTS).await?;
    world.set_status("acme", &back, "active").await?;
    world.settle(seconds(20)).await?;
    let given_up = || async {
        let expired = world.metric("doorbell_dead_letters_total{reason=\"expired\"}").await;
        expired.unwrap_or(0.0)
    };
    // One that is younger stays.
    eventually("the others are about to be given up", seconds(60), || async {
        world.publish("acme", "a", json!("younger")).await.is_ok() && given_up().await > 0.5
    })
    .await?;
    eventually("all that are as old are given up", seconds(60), || async {
        given_up().await >= f64::from(EVENTS)
    })
    .await?;
    let younger = world.publish("acme", "a", json!("youngest")).await?;
    world.set_status("acme", &away, "active").await?;
    eventually("it comes", seconds(60), || async {
        world.receiver.posts_to("away").iter().any(|post| post.id == younger)
    })
    .await?;
    world.settle(seconds(30)).await?;
    let redis = world.engines.redis_link().await?;
    eventually("no one looks for any", seconds(60), || async {
        named(&world, &mut redis.clone()).await.is_ok_and(|named| named.is_empty())
    })
    .await?;
    // Only then have all of them left the stream.
    world.until_nothing_waits().await?;
    // Each is delivered or given up, and none is both.
    let accepted = world.ledger.count();
    let delivered = world.receiver.accepted("away");
    #[expect(clippy::cast_precision_loss, reason = "they are few")]
    let (all, ended) = (accepted as f64, given_up().await + delivered as f64);
    assert!((all - ended).abs() < 0.5, "{accepted} accepted, {delivered} delivered, {ended} ended");
    assert_eq!(world.duplicates().await?, 0);
    let outsider = world.outsider().await?;
    let dead = outsider.whole_stream("doorbell.dead-letters").await?;
    assert_eq!(dead.len(), accepted - delivered);
    drop(outsider);
    world.finish().await
}

pub(crate) async fn what_redis_forgets_is_read_again() -> anyhow::Result<()> {
    let world = World::start("forgotten").await?;
    let first = world.subscribe("acme", "first", &["#"]).await?;
    let second = world.subscribe("acme", "second", &["#"]).await?;
    world.set_status("acme", &first, "paused").await?;
    world.set_status("acme", &second, "paused").await?;
    world.in_force().await;
    hold(&world, 30, 60).await?;
    world.set_status("acme", &first, "active").await?;
    eventually("the first one's flow", seconds(60), || async {
        world.receiver.accepted("first") == 30
    })
    .await?;
    let mut redis = world.engines.redis_link().await?;
    eventually("no one looks for them any more", seconds(30), || async {
        named(&world, &mut redis.clone()).await.is_ok_and(|named| named == [second.clone()])
    })
    .await?;
    world.set_status("acme", &first, "paused").await?;
    world.in_force().await;
    // All that Redis knows of what is held and what was handed on is gone. (The names of hand-offs
    // are forgotten after an hour in any case.)
    let patterns = ["{main}:held", "note:*", "event:*"];
    for pattern in patterns.map(|pattern| format!("{}:{pattern}", world.vhost)) {
        let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut redis).await?;
        for key in keys {
            redis::cmd("DEL").arg(key).query_async::<()>(&mut redis).await?;
        }
    }
    world.set_status("acme", &first, "active").await?;
    world.set_status("acme", &second, "active").await?;
    world.settle(seconds(90)).await?;
    eventually("no one looks for any", seconds(60), || async {
        named(&world, &mut redis.clone()).await.is_ok_and(|named| named.is_empty())
    })
    .await?;
    assert_eq!(world.duplicates().await?, 0, "handed on before, and again");
    world.finish().await
}

pub(crate) async fn schedulers_killed_while_deliveries_flow_again_lose_none() -> anyhow::Result<()>
{
    const EVENTS: u32 = 4000;
    let world = World::with("resuming", Setup { schedulers: 2, ..Setup::default() }).await?;
    let world = Arc::new(world);
    let id = world.subscribe("acme", "pausing", &["#"]).await?;
    world.set_status("acme", &id, "paused").await?;
    world.in_force().await;
    hold(&world, EVENTS, EVENTS).await?;
    for dispatcher in ["dispatcher-1", "dispatcher-2"] {
        world.stop(dispatcher).await?;
    }
    world.set_status("acme", &id, "active").await?;
    they_do_not_pile_up(&world).await?;
    for dispatcher in ["dispatcher-1", "dispatcher-2"] {
        world.restart(dispatcher).await?;
    }
    for _ in 0..3 {
        let before = world.receiver.count("pausing");
        eventually("some more flow", seconds(60), || async {
            let count = world.receiver.count("pausing");
            count > before || count >= EVENTS as usize
        })
        .await?;
        for scheduler in ["retry-scheduler-1", "retry-scheduler-2"] {
            world.kill_and_restart(scheduler).await?;
        }
    }
    world.settle(seconds(90)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "both schedulers killed three times while {EVENTS} flow again: 0 lost, {duplicates} duplicates"
    );
    Arc::into_inner(world).unwrap().finish().await
}

/// Where nobody takes what flows again, it comes a message a second: whatever floods would wait behind it.
async fn they_do_not_pile_up(world: &World) -> anyhow::Result<()> {
    let outsider = world.outsider().await?;
    let in_line = async || -> anyhow::Result<u32> {
        let mut in_line = outsider.depth(topology::DELIVERIES).await?;
        for queue in topology::sideline_queues() {
            in_line += outsider.depth(&queue).await?;
        }
        Ok(in_line)
    };
    let in_line = &in_line;
    loop {
        let (before, since) = (in_line().await?, Instant::now());
        eventually("some more are in line", seconds(60), move || async move {
            in_line().await.is_ok_and(|count| count >= before + 3)
        })
        .await?;
        // Until it is seen that there is no room, they come at once.
        if since.elapsed() > seconds(1) {
            return Ok(());
        }
    }
}

pub(crate) async fn a_stream_deleted_under_us_begins_anew() -> anyhow::Result<()> {
    let world = World::start("restream").await?;
    let id = world.subscribe("acme", "pausing", &["#"]).await?;
    let lost = world.subscribe("other", "lost", &["#"]).await?;
    world.ledger.expect_no_full_set("lost");
    for (tenant, id) in [("acme", &id), ("other", &lost)] {
        world.set_status(tenant, id, "paused").await?;
    }
    world.in_force().await;
    for n in 0..20 {
        world.publish("other", "a", json!(n)).await?;
    }
    held(&world, 20).await?;
    let redis = world.engines.redis_link().await?;
    eventually("they are known", seconds(30), || async {
        named(&world, &mut redis.clone()).await.is_ok_and(|named| named == [lost.clone()])
    })
    .await?;
    let outsider = world.outsider().await?;
    outsider.channel.queue_delete("doorbell.held".into(), Default::default()).await?;
    // Fewer than were there: their offsets were seen before.
    hold(&world, 5, 25).await?;
    world.set_status("acme", &id, "active").await?;
    world.settle(seconds(90)).await?;
    eventually("no one looks for what is gone", seconds(30), || async {
        named(&world, &mut redis.clone()).await.is_ok_and(|named| named.is_empty())
    })
    .await?;
    world.finish().await
}

/// RabbitMQ forgets what is oldest in a stream that is full, whosever it is.
pub(crate) async fn who_fills_the_stream_pushes_out_nobody_elses() -> anyhow::Result<()> {
    const FEW: usize = 30;
    const FLOOD: usize = 500;
    let mut setup = Setup { schedulers: 2, ..Setup::default() };
    setup.extra.push(("DOORBELL_MOST_HELD_BYTES".to_owned(), "2000000".to_owned()));
    let world = World::with("crowded", setup).await?;
    let few = world.subscribe("few", "few", &["#"]).await?;
    let flood = world.subscribe("flood", "flood", &["#"]).await?;
    world.ledger.expect_no_full_set("flood");
    for (tenant, id) in [("few", &few), ("flood", &flood)] {
        world.set_status(tenant, id, "paused").await?;
    }
    world.in_force().await;
    for n in 0..FEW {
        world.publish("few", "a", json!(n)).await?;
    }
    held(&world, u32::try_from(FEW)?).await?;
    let metric = async |name: &str| world.metric(name).await.unwrap_or(0.0);
    let overflow = || metric("doorbell_dead_letters_total{reason=\"overflow\"}");
    let moved = || metric("doorbell_held_moved_total");
    // Some 11 KB each: there is room for 160 of them at most, beside those few.
    let mut before = 0.0;
    for n in 0..FLOOD {
        let data = format!("{n} {}", "x".repeat(10_000));
        world.publish("flood", "a", json!(data)).await?;
        if n == FLOOD / 2 {
            eventually("room is made", seconds(60), || async { overflow().await > 50.0 }).await?;
            assert!(moved().await > 29.5, "what others have is moved out of the way");
            before = overflow().await;
            for scheduler in ["retry-scheduler-1", "retry-scheduler-2"] {
                world.kill_and_restart(scheduler).await?;
            }
        }
    }
    let has_room = || async { before + overflow().await > 320.0 };
    eventually("room is made again", seconds(60), has_room).await?;
    for (tenant, id) in [("few", &few), ("flood", &flood)] {
        world.set_status(tenant, id, "active").await?;
    }
    world.settle(seconds(60)).await?;
    let redis = world.engines.redis_link().await?;
    eventually("no one looks for any", seconds(60), || async {
        named(&world, &mut redis.clone()).await.is_ok_and(|named| named.is_empty())
    })
    .await?;
    world.until_nothing_waits().await?;
    // Each is delivered or given up, but what a kill had done twice.
    let outsider = world.outsider().await?;
    let dead = outsider.whole_stream("doorbell.dead-letters").await?;
    let reasons: BTreeSet<_> =
        dead.iter().filter_map(|letter| amqp::header(letter, "doorbell-reason")).collect();
    assert_eq!(reasons, BTreeSet::from(["overflow".to_owned()]));
    let dead: BTreeSet<String> = dead
        .iter()
        .map(|letter| match wire::decode(&letter.data) {
            Ok(work) => work.first_event().id.to_string(),
            Err(error) => panic!("{error}"),
        })
        .collect();
    let delivered: BTreeSet<String> =
        world.receiver.posts_to("flood").iter().map(|post| post.id.clone()).collect();
    let all = dead.union(&delivered).count();
    eprintln!("a flood of {FLOOD}: {} given up, {} delivered", dead.len(), delivered.len());
    assert_eq!(all, FLOOD, "none is lost");
    assert!(delivered.len() >= 50, "a share is left to whoever floods");
    assert!(dead.intersection(&delivered).count() <= 100);
    let duplicates = world.duplicates().await?;
    assert!(duplicates <= 100, "{duplicates} duplicates");
    drop(outsider);
    world.finish().await
}

/// Publishes so many events, and waits until so many deliveries are held in all.
async fn hold(world: &World, events: u32, in_all: u32) -> anyhow::Result<()> {
    let numbers: Vec<u32> = (0..events).collect();
    for some in numbers.chunks(50) {
        let publishing = some.iter().map(|n| world.publish("acme", "a", json!(n)));
        futures_util::future::try_join_all(publishing).await?;
    }
    held(world, in_all).await
}

async fn held(world: &World, in_all: u32) -> anyhow::Result<()> {
    let held = || async {
        world.metric("doorbell_deliveries_held_total{reason=\"suspended\"}").await.unwrap_or(0.0)
    };
    eventually("all are held", seconds(60), || async { held().await >= f64::from(in_all) }).await
}

/// The subscriptions that Redis names as having held deliveries.
async fn named(world: &World, redis: &mut MultiplexedConnection) -> anyhow::Result<Vec<String>> {
    let key = format!("{}:{{main}}:held", world.vhost);
    let fields: Vec<String> = redis::cmd("HKEYS").arg(key).query_async(redis).await?;
    anyhow::ensure!(!fields.is_empty(), "nothing is known yet");
    Ok(fields.into_iter().filter(|field| field.starts_with("sub_")).collect())
}
