//! Redis in trouble: the dispatcher goes on with what it knows where it can, and waits where it
//! can't. No event is dropped, cancelled or dead-lettered for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::held::{HeldIndex, Measure};
use doorbell_common::ids::{Addressee, SlotNumber, SubscriptionId, TenantId};
use doorbell_common::rung::{DelayQueue, Rung};
use doorbell_common::sideline::Lane;
use doorbell_common::tenant_limits::TenantLimits;
use doorbell_common::work::HandOff;
use doorbell_platform::health::{Dependency, Health};
use doorbell_platform::ids::{self, token};
use doorbell_platform::store::Store;
use doorbell_platform::store::held::{Place, SavedHeld};
use doorbell_platform::store::notes::{Arrival, Note, Taken};
use doorbell_platform::tls::Trust;
use doorbell_tests::api::subscription;
use doorbell_tests::backup::Backup;
use doorbell_tests::engines::{self, Engines};
use doorbell_tests::load::Load;
use doorbell_tests::redis_cluster::RedisCluster;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, amqp, eventually};
use nix::sys::signal::Signal;
use prometheus::Registry;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// How long Redis says nothing.
const SILENCE: Duration = seconds(60);

pub(crate) async fn redis_restarted_silent_or_emptied_loses_nothing() -> anyhow::Result<()> {
    let world = Arc::new(World::with("redis", Setup::private()).await?);
    world.subscribe("acme", "known", &["#"]).await?;
    world.subscribe("late", "unknown", &["#"]).await?;
    // Paused all along: what it is to get is held through every outage.
    let kept = world.subscribe("acme", "kept", &["load.*"]).await?;
    world.set_status("acme", &kept, "paused").await?;
    world.in_force().await;
    let load = Load::over_http(&world, "acme", Duration::from_millis(20));
    let flows = |what: &'static str| {
        let world = &world;
        async move {
            let before = world.receiver.accepted("known");
            eventually(what, seconds(60), || async {
                world.receiver.accepted("known") > before + 50
            })
            .await
        }
    };
    flows("load flows").await?;

    world.engines.redis.lock().await.kill().await;
    world.until_readiness("dispatcher-1", false).await?;
    flows("known tenants are served without Redis").await?;
    world.engines.redis.lock().await.start_again().await?;
    world.until_all_ready().await?;
    flows("load flows after a restart").await?;
    change_is_in_force(&world, "after-restart").await?;

    world.engines.redis.lock().await.process().signal(Signal::SIGSTOP)?;
    let silent_since = tokio::time::Instant::now();
    world.until_readiness("dispatcher-1", false).await?;
    let producer = world.readiness("producer").await?;
    assert_eq!(producer["ready"], true, "the producer needs RabbitMQ only: {producer}");
    flows("known tenants are served while Redis is silent").await?;
    publish_for_late(&world, "while-silent").await?;
    tokio::time::sleep_until(silent_since + SILENCE).await;
    assert_eq!(world.receiver.count("unknown"), 0, "nobody can know this subscription yet");
    world.engines.redis.lock().await.process().signal(Signal::SIGCONT)?;
    world.until_all_ready().await?;
    eventually("the event that waited arrives", seconds(60), || async {
        world.receiver.accepted("unknown") == 1
    })
    .await?;

    change_is_in_force(&world, "after-silence").await?;

    let mut redis = world.engines.redis_link().await?;
    let saved = Backup::make(&mut redis, &world.vhost).await?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut redis).await?;
    world.until_readiness("dispatcher-1", false).await?;
    let readiness = world.readiness("dispatcher-1").await?.to_string();
    assert!(readiness.contains("emptied"), "{readiness}");
    flows("known tenants are served although Redis is empty").await?;
    // Of this tenant nobody knows anything: with the store empty, that is no reason to drop it.
    let outsider = world.outsider().await?;
    outsider.publish("a", amqp::event("stranger", Some("never-seen"), &[]), b"1").await?;
    saved.restore(&mut redis).await?;
    world.until_all_ready().await?;
    publish_for_late(&world, "after-restore").await?;
    eventually("events arrive after the restore", seconds(60), || async {
        world.receiver.accepted("unknown") == 2
    })
    .await?;

    let accepted = load.end().await?;
    assert!(world.receiver.posts_to("kept").is_empty(), "it is paused");
    world.set_status("acme", &kept, "active").await?;
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "Redis killed, silent for {SILENCE:?} and emptied amid {accepted} events: 0 lost, {duplicates} duplicates"
    );
    for spent in [
        "doorbell_dead_letters_total{reason=\"expired\"}",
        "doorbell_deliveries_total{state=\"cancelled\"}",
    ] {
        assert!(world.metric(spent).await? < 0.5, "{spent}");
    }
    let held = world.metric("doorbell_deliveries_held_total{reason=\"suspended\"}").await?;
    assert!(
        held < f64::from(u32::try_from(accepted)?) + 0.5,
        "{held} of {accepted}: none but these"
    );
    Arc::into_inner(world).unwrap().finish().await
}

/// It answers what it has, and takes nothing more.
pub(crate) async fn a_full_redis_loses_nothing() -> anyhow::Result<()> {
    let world = Arc::new(World::with("full", Setup::private().without_breaker()).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 503));
    world.subscribe("acme", "steady", &["#"]).await?;
    world.subscribe("acme", "flaky", &["#"]).await?;
    let mut body = subscription(&world.receiver.url("limited"), &["#"]);
    body["rate_limit"] = json!({ "per_second": 100, "burst": 100 });
    world.subscribe_as("acme", "limited", body).await?;
    world.in_force().await;
    let load = Load::over_http(&world, "acme", Duration::from_millis(20));
    let all_get = |what: &'static str| {
        let world = &world;
        async move {
            let counts =
                || ["steady", "flaky", "limited"].map(|name| world.receiver.accepted(name));
            let before = counts();
            let more = || async { counts().iter().zip(before).all(|(now, then)| *now > then + 50) };
            eventually(what, seconds(60), more).await
        }
    };
    all_get("load flows").await?;

    let mut redis = world.engines.redis_link().await?;
    let mut bound = redis::cmd("CONFIG");
    bound.arg("SET").arg("maxmemory");
    bound.clone().arg(1).query_async::<()>(&mut redis).await?;
    all_get("load flows although nothing can be noted").await?;
    let path = "/v1/tenants/acme/subscriptions";
    let body = subscription(&world.receiver.url("more"), &["more.#"]);
    let refused = world.control.call(Method::POST, path, body).await?;
    assert_eq!(refused.status, 503, "{refused:?}");
    assert!(refused.body["detail"].to_string().contains("memory"), "{refused:?}");
    let listed = world.control.call(Method::GET, path, Value::Null).await?;
    assert_eq!(listed.body["data"].as_array().map(Vec::len), Some(3), "{listed:?}");
    assert!(world.is_ready("dispatcher-1").await, "it can do what it must");
    assert!(world.metric("doorbell_redis_failures_total{reason=\"refused\"}").await? > 50.0);

    bound.clone().arg(0).query_async::<()>(&mut redis).await?;
    change_is_in_force(&world, "afterwards").await?;
    all_get("load flows as before").await?;
    let accepted = load.end().await?;
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!("Redis was full amid {accepted} events: 0 lost, {duplicates} duplicates");
    Arc::into_inner(world).unwrap().finish().await
}

pub(crate) async fn who_has_held_deliveries_may_be_very_many() -> anyhow::Result<()> {
    const MOST: u32 = 600_000;
    let engines = engines::shared().await?;
    let prefix = token();
    let store = store(&engines, &prefix)?;
    store.init().await?;
    let mut index = HeldIndex::default();
    for n in 0..MOST {
        let id = SubscriptionId::new(SlotNumber(n / 256), n.into());
        index.held(&id, (n.into(), 1000), &Addressee::Everyone);
    }
    let place = |offset: u32| Place { offset: offset.into(), message_id: String::new() };
    let mut measure = Measure::new(1);
    (0..1000).for_each(|offset| measure.add(offset, 1000));
    let changes = index.take_changes();
    let saved = store.save_held("", (&place(MOST), &measure), &changes).await?;
    let version = saved.context("nothing was there before")?;
    let SavedHeld { index: mut read, place: at, measure: size, version: of } = store.held().await?;
    assert!(read == index && at == Some(place(MOST)) && of == version);
    assert_eq!(size.map(|size| size.with_step(1)), Some(measure.clone()));
    // All but the last have flowed again.
    let before_last = u64::from(MOST - 2);
    for n in 0..MOST {
        read.resumed(&SubscriptionId::new(SlotNumber(n / 256), n.into()), before_last);
    }
    let older = store.save_held("", (&place(0), &measure), &[]).await?;
    assert_eq!(older, None, "of a state that is no more");
    let changes = read.take_changes();
    let saved = store.save_held(&version, (&place(MOST + 1), &measure), &changes).await?;
    assert!(saved.is_some());
    assert_eq!(store.held().await?.index.subscriptions().count(), 1);
    // What is not understood strands nobody: then all is read again.
    let mut redis = engines.redis_link().await?;
    let mut write = redis::cmd("HSET");
    write.arg(format!("{prefix}:{{main}}:held")).arg("sub_000000000000000000000001").arg("1:2");
    write.query_async::<()>(&mut redis).await?;
    let read = store.held().await?;
    assert_eq!((read.place, read.index.subscriptions().count()), (None, 0));
    let changes = index.take_changes();
    assert!(
        store.save_held("", (&place(1), &measure), &changes).await?.is_some(),
        "from the start"
    );
    assert_eq!(store.held().await?.place, Some(place(1)));
    Ok(())
}

/// Services at the doors know the limits of all tenants, and read what has changed of them, however many there are.
pub(crate) async fn a_change_of_one_tenants_limits_is_read_alone() -> anyhow::Result<()> {
    const TENANTS: u32 = 3000;
    let engines = engines::shared().await?;
    let prefix = token();
    let store = store(&engines, &prefix)?;
    store.init().await?;
    assert_eq!(store.tenant_limits_version().await?, None);
    let tenant = |n: u32| -> TenantId { format!("tenant-{n}").parse().unwrap() };
    let limited = |most| TenantLimits { max_subscriptions: Some(most), ..TenantLimits::default() };
    let mut expected = HashMap::new();
    for n in 0..TENANTS {
        store.set_tenant_limits(&tenant(n), &limited(n + 1)).await?;
        expected.insert(tenant(n), limited(n + 1));
    }
    assert_eq!(store.all_tenant_limits().await?, expected);

    let version = store.tenant_limits_version().await?.context("they have changed")?;
    assert_eq!(store.tenant_limits_since(&version).await?, Some(HashMap::new()));
    let (one, none) = (limited(1), TenantLimits::default());
    for limits in [limited(7), one] {
        store.set_tenant_limits(&tenant(5), &limits).await?;
    }
    store.set_tenant_limits(&tenant(6), &none).await?;
    let changed = HashMap::from([(tenant(5), one), (tenant(6), none)]);
    assert_eq!(store.tenant_limits_since(&version).await?, Some(changed));
    expected.insert(tenant(5), one);
    expected.remove(&tenant(6));
    assert_eq!(store.all_tenant_limits().await?, expected);

    // More changes than are read in one go, and then than the log still has.
    for n in 0..TENANTS {
        store.set_tenant_limits(&tenant(n), &none).await?;
    }
    let changed = store.tenant_limits_since(&version).await?.context("the log has them")?;
    assert_eq!(changed.len(), usize::try_from(TENANTS)?);
    let mut redis = engines.redis_link().await?;
    let mut trim = redis::cmd("XTRIM");
    trim.arg(format!("{prefix}:{{main}}:tenant-limits-changes")).arg("MAXLEN").arg(1);
    trim.query_async::<()>(&mut redis).await?;
    assert_eq!(store.tenant_limits_since(&version).await?, None);
    assert_eq!(store.all_tenant_limits().await?, HashMap::new());
    Ok(())
}

pub(crate) async fn a_note_tells_copies_and_is_none_of_itself() -> anyhow::Result<()> {
    use Taken::{Copy, Go};
    let engines = engines::shared().await?;
    let store = store(&engines, "notes")?;
    let hand_off = |chain: &str, sequence| HandOff {
        chain: chain.to_owned(),
        sequence,
        remembered: seconds(3600),
    };
    let note = store.work_note(&hand_off(&token(), 1));
    // A command whose answer was lost is sent again: who took it first has it still.
    let event = store.event_note(&"acme".parse()?, &token().parse()?, seconds(3600));
    for note in [note, event] {
        for (taker, copy, redelivered, taken) in [
            ("one", "a", false, Go),
            ("one", "a", false, Go),
            ("copy", "b", false, Copy),
            ("one-again", "a", true, Go),
            ("copy", "b", false, Copy),
            // Both were with a consumer that died.
            ("copy-again", "b", true, Copy),
            // It does not say which it is: one that is lost would be worse than one that comes twice.
            ("unknown", "", false, Copy),
            ("unknown-again", "", true, Go),
            ("one-once-more", "a", true, Go),
        ] {
            let arrival = Arrival { copy: Some(copy).filter(|copy| !copy.is_empty()), redelivered };
            assert_eq!(store.take_as(taker, &note, arrival).await, taken, "{taker}");
        }
        store.finish(&note).await;
        for redelivered in [false, true] {
            let arrival = Arrival { copy: Some("a"), redelivered };
            assert_eq!(store.take(&note, arrival).await, Copy);
        }
    }
    let (came, came_again) =
        (Arrival::default(), Arrival { redelivered: true, ..Arrival::default() });
    // What is handed on often, as behind an endpoint that is down, is remembered in one short key.
    let chain = token();
    for sequence in 1..=100_u32 {
        let note = store.work_note(&hand_off(&chain, sequence));
        assert_eq!(store.take(&note, came).await, Go);
        store.finish(&note).await;
        assert_eq!(store.take(&note, came_again).await, Copy);
        let before = store.work_note(&hand_off(&chain, sequence.saturating_sub(3)));
        assert_eq!(store.take(&before, came_again).await, if sequence > 3 { Copy } else { Go });
    }
    let mut redis = engines.redis_link().await?;
    let key = format!("notes:note:{{{chain}}}");
    let (known, ttl): (u32, i64) =
        redis::pipe().cmd("HLEN").arg(&key).cmd("TTL").arg(&key).query_async(&mut redis).await?;
    assert!(known == 4 && (1..=3600).contains(&ttl), "{known} for {ttl} s");
    Ok(())
}

pub(crate) async fn what_came_back_is_told_by_one_clock() -> anyhow::Result<()> {
    let store = store(&*engines::shared().await?, "clock")?;
    assert!(store.came_back().await?.is_empty());
    let queue = |wait, lane| DelayQueue { rung: Rung::for_wait(seconds(wait)), lane };
    let (short, long) = (queue(1, Lane::Main), queue(300, Lane::Sideline));
    store.note_came_back(&[(short, seconds(40)), (long, seconds(50))]).await?;
    store.note_came_back(&[(short, seconds(2))]).await?;
    let ago = store.came_back().await?;
    assert_eq!(ago.len(), 2);
    assert!((2..40).contains(&ago[&short].as_secs()), "{ago:?}");
    assert!((50..90).contains(&ago[&long].as_secs()), "{ago:?}");
    assert!(!store.is_on_detour().await?);
    store.begin_detour(seconds(1)).await?;
    assert!(store.is_on_detour().await?);
    let is_over = || async { !store.is_on_detour().await.unwrap_or(true) };
    eventually("the detour is over", seconds(20), is_over).await
}

/// The client of a cluster may lock itself up when a node dies, if it has much to do just then.
pub(crate) async fn a_cluster_answers_again_after_each_failover() -> anyhow::Result<()> {
    let mut cluster = RedisCluster::start("redis-busy", 1).await?;
    let urls: Vec<String> = cluster.urls().split(',').map(str::to_owned).collect();
    let stores = (0..4).map(|_| store_at(&urls, "busy")).collect::<anyhow::Result<Vec<Store>>>()?;
    let mut busy = JoinSet::new();
    for n in 0..200 {
        let store = stores[n % stores.len()].clone();
        busy.spawn(async move {
            loop {
                // What comes of it is not the question.
                store.finish(&some_note(&store)).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }
    for tag in ["main", "tenant-acme", "slot-000000"] {
        let dead = cluster.kill_master_of(&format!("{{{tag}}}")).await?;
        cluster.until_served(&format!("{{{tag}}}")).await?;
        until_all_are_answered(&stores).await?;
        cluster.start_again(dead).await?;
        until_all_are_answered(&stores).await?;
    }
    busy.shutdown().await;
    cluster.end().await;
    Ok(())
}

/// A frozen node keeps its connections, so nothing tells the client that another one has taken its place.
pub(crate) async fn a_cluster_answers_again_without_a_node_that_is_frozen() -> anyhow::Result<()> {
    let mut cluster = RedisCluster::start("redis-frozen", 1).await?;
    let urls: Vec<String> = cluster.urls().split(',').map(str::to_owned).collect();
    let stores = [store_at(&urls, "frozen")?];
    until_all_are_answered(&stores).await?;
    for tag in ["main", "tenant-acme"] {
        let frozen = cluster.freeze_master_of(&format!("{{{tag}}}")).await?;
        cluster.until_served(&format!("{{{tag}}}")).await?;
        until_all_are_answered(&stores).await?;
        cluster.thaw(frozen).await?;
        until_all_are_answered(&stores).await?;
    }
    cluster.end().await;
    Ok(())
}

async fn until_all_are_answered(stores: &[Store]) -> anyhow::Result<()> {
    // All nodes, with so many notes.
    let asking = |store: &Store| {
        let store = store.clone();
        let asked = (0..30).map(move |_| {
            let store = store.clone();
            async move { store.is_known(&some_note(&store)).await }
        });
        futures_util::future::try_join_all(asked)
    };
    for store in stores {
        eventually("the cluster answers", seconds(30), || async { asking(store).await.is_ok() })
            .await?;
    }
    Ok(())
}

/// The note of some event.
fn some_note(store: &Store) -> Note {
    let tenant = Addressee::Everyone;
    store.event_note(&tenant, &ids::event_id(), Duration::from_secs(10))
}

fn store(engines: &Engines, prefix: &str) -> anyhow::Result<Store> {
    store_at(std::slice::from_ref(&engines.redis_url), prefix)
}

fn store_at(urls: &[String], prefix: &str) -> anyhow::Result<Store> {
    let registry = Registry::new();
    let health = Health::new(&registry, &[(Dependency::Redis, true)])?;
    health.up(Dependency::Redis);
    Store::new(urls, &Trust::default(), prefix, (health, &registry))
}

/// A subscription created now gets, two seconds later, what it asks for from every dispatcher.
async fn change_is_in_force(world: &World, endpoint: &str) -> anyhow::Result<()> {
    world.subscribe("acme", endpoint, &[&format!("{endpoint}.#")]).await?;
    world.in_force().await;
    for n in 0..10 {
        world.publish("acme", &format!("{endpoint}.made"), n.into()).await?;
    }
    eventually("all of its events arrive", seconds(20), || async {
        world.receiver.accepted(endpoint) == 10
    })
    .await
}

async fn publish_for_late(world: &World, id: &str) -> anyhow::Result<()> {
    world.ledger.accepted("late", "a", id, "1");
    world.outsider().await?.publish("a", amqp::event("late", Some(id), &[]), b"1").await
}
