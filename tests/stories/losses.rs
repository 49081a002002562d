//! Redis that is away while very many wait for it, that has lost a part, or that may lose any.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_local::services::Kind;
use doorbell_tests::api::subscription;
use doorbell_tests::backup::Backup;
use doorbell_tests::load::Load;
use doorbell_tests::redis_cluster::RedisCluster;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, eventually};
use reqwest::Method;
use serde_json::{Value, json};

/// Tenants of whom nothing is known, and the events of each.
const STRANGERS: (usize, usize) = (40, 600);

pub(crate) async fn who_is_known_is_served_while_others_wait_for_redis() -> anyhow::Result<()> {
    let mut setup = Setup::private().without_breaker();
    setup.extra.push(("DOORBELL_SUBSCRIPTIONS_IN_MEMORY".to_owned(), "1000".to_owned()));
    let world = Arc::new(World::with("unknown", setup).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 503));
    for endpoint in ["steady", "flaky"] {
        world.subscribe("acme", endpoint, &["#"]).await?;
    }
    world.subscribe("beta", "first-fails-later", &["#"]).await?;
    // Each event for them is split into pages. Half of what is in memory is kept of one tenant, and no more.
    world.subscribe_many("kept", ("kept", 300), &["#"]).await?;
    let large = [("large", "large"), ("huge", "huge")];
    for (tenant, endpoints) in large {
        world.subscribe_many(tenant, (endpoints, 600), &["#"]).await?;
    }
    world.in_force().await;
    let load = Load::over_http(&world, "acme", Duration::from_millis(20));
    let goes_on = |what: &'static str| {
        let world = &world;
        async move {
            let counts = || ["steady", "flaky"].map(|name| world.receiver.accepted(name));
            let before = counts();
            let more = || async { counts().iter().zip(before).all(|(now, then)| *now > then + 50) };
            eventually(what, seconds(60), more).await
        }
    };
    // Both dispatchers come to know it, and no retry-scheduler does.
    for n in 0..20 {
        for tenant in ["beta", "kept"] {
            world.publish(tenant, "known", n.into()).await?;
        }
    }
    for (tenant, _) in large {
        world.publish(tenant, "known", json!("split")).await?;
    }
    goes_on("load flows").await?;
    eventually("pages are served", seconds(60), || async {
        let came = |endpoint| world.receiver.accepted(endpoint);
        (came("kept-299"), came("large-599"), came("huge-599")) == (20, 1, 1)
    })
    .await?;

    world.engines.redis.lock().await.kill().await;
    world.until_readiness("dispatcher-1", false).await?;
    world.receiver.behave("first-fails-later", Behaviour::FailFirst(1, 503));
    for n in 0..300 {
        world.publish("beta", "fails", n.into()).await?;
    }
    let (tenants, events) = STRANGERS;
    for n in 0..tenants {
        let line = json!({"tenant": format!("stranger-{n}"), "type": "a", "data": n}).to_string();
        let lines = format!("{line}\n").repeat(events);
        let headers = [("content-type", "application/x-ndjson")];
        let answer = world.producer.raw(Method::POST, "/v1/events/batch", &headers, lines).await?;
        let is_taken = |result: &Value| result["status"] == 202;
        let taken = answer.body["results"].as_array().context("no results")?;
        assert!(taken.len() == events && taken.iter().all(is_taken), "{answer:?}");
    }
    for n in 0..30 {
        for (tenant, _) in large {
            world.publish(tenant, "waits", n.into()).await?;
        }
    }
    for n in 0..12 {
        goes_on("those who are known are served, retries and all").await?;
        let before = world.receiver.accepted("kept-299");
        world.publish("kept", "goes.on", n.into()).await?;
        eventually("pages of those who are known, too", seconds(60), || async {
            world.receiver.accepted("kept-299") > before
        })
        .await?;
    }
    world.engines.redis.lock().await.start_again().await?;
    world.until_all_ready().await?;
    goes_on("load flows as before").await?;
    let accepted = load.end().await?;
    world.settle(seconds(120)).await?;
    assert_eq!(world.duplicates().await?, 0, "nobody's channel is closed for it");
    eprintln!(
        "{} events of unknown tenants amid {accepted} others without Redis: 0 lost, 0 duplicates",
        tenants * events
    );
    Arc::into_inner(world).unwrap().finish().await
}

/// An endpoint that says that it is gone has its subscription disabled, which can't be written while Redis is away.
pub(crate) async fn who_is_gone_keeps_nobody_waiting_without_redis() -> anyhow::Result<()> {
    const GONE: usize = 300;
    let world = World::with("gone-without-redis", Setup::private().without_breaker()).await?;
    for endpoint in ["flaky", "gone"] {
        world.receiver.behave(endpoint, Behaviour::FailFirst(1, 503));
        world.subscribe(endpoint, endpoint, &["#"]).await?;
    }
    world.in_force().await;
    for n in 0..20 {
        for tenant in ["flaky", "gone"] {
            world.publish(tenant, "known", n.into()).await?;
        }
    }
    eventually("both dispatchers and the retry-scheduler know them", seconds(30), || async {
        ["flaky", "gone"].iter().all(|endpoint| world.receiver.accepted(endpoint) == 20)
    })
    .await?;

    world.engines.redis.lock().await.kill().await;
    world.until_readiness("dispatcher-1", false).await?;
    world.receiver.behave("gone", Behaviour::Status(410));
    world.ledger.expect_no_full_set("gone");
    let asked_before = world.receiver.count("gone");
    for n in 0..GONE {
        world.publish("gone", "too.late", n.into()).await?;
    }
    eventually("it says that it is gone", seconds(30), || async {
        world.receiver.count("gone") >= asked_before + GONE
    })
    .await?;
    for n in 0..20 {
        world.publish("flaky", "fails.once", n.into()).await?;
    }
    eventually("others have their retries", seconds(60), || async {
        world.receiver.accepted("flaky") == 40
    })
    .await?;

    world.engines.redis.lock().await.start_again().await?;
    world.until_all_ready().await?;
    let dead = "doorbell_dead_letters_total{reason=\"gone\"}";
    eventually("all of them are given up", seconds(120), || async {
        world.metric(dead).await.is_ok_and(|dead| (dead - 300.0).abs() < 0.1)
    })
    .await?;
    let list =
        world.control.call(Method::GET, "/v1/tenants/gone/subscriptions", Value::Null).await?;
    assert_eq!(list.body["data"][0]["disabled_reason"], "gone", "{list:?}");
    world.settle(seconds(60)).await?;
    assert_eq!(world.receiver.count("gone"), asked_before + GONE, "none was sent twice");
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}

/// A master without a replica, or one that started again before a replica took its place, may come back with nothing.
pub(crate) async fn a_node_that_was_emptied_makes_nobody_look_unsubscribed() -> anyhow::Result<()> {
    const EVENTS: usize = 600;
    let mut cluster = RedisCluster::start("redis-emptied", 0).await?;
    let setup = Setup { redis_url: Some(cluster.urls()), ..Setup::default() };
    let world = Arc::new(World::with("emptied", setup).await?);
    let emptied = node_with_one_of(&cluster, 4).await?;
    let (theirs, others) = tenants_on(&cluster, emptied).await?;
    world.subscribe_many("many", ("many", 1000), &["for.all"]).await?;
    world.subscribe(&theirs, "theirs", &["own.#"]).await?;
    world.subscribe(&others, "others", &["own.#"]).await?;
    world.in_force().await;

    let mut node = cluster.link(emptied).await?;
    let backup = Backup::make(&mut node, &world.vhost).await?;
    redis::cmd("FLUSHALL").query_async::<()>(&mut node).await?;
    for n in 0..EVENTS {
        world.publish(&theirs, "own.lost", n.into()).await?;
    }
    for n in 0..50 {
        world.publish(&others, "own.there", n.into()).await?;
    }
    world.publish("*", "for.all", json!("everyone")).await?;
    eventually("others are served", seconds(30), || async {
        world.receiver.accepted("others") == 50
    })
    .await?;
    let put_off = || async { world.metric("doorbell_events_put_off_total").await.unwrap_or(0.0) };
    eventually("what can't be told waits", seconds(30), || async { put_off().await > 600.0 })
        .await?;
    // Nothing is written in its place, which would look like a tenant without other subscriptions.
    let path = format!("/v1/tenants/{theirs}");
    let list = format!("{path}/subscriptions");
    let body = subscription(&world.receiver.url("more"), &["#"]);
    let document = json!({"tenant": theirs, "subscriptions": []});
    for (method, path, body) in [
        (Method::GET, &path, Value::Null),
        (Method::PUT, &path, Value::Null),
        (Method::DELETE, &path, Value::Null),
        (Method::GET, &list, Value::Null),
        (Method::POST, &list, body),
        (Method::PUT, &"/v1/config?dry_run=true".to_owned(), document),
        (Method::GET, &"/v1/tenants".to_owned(), Value::Null),
    ] {
        let answer = world.control.call(method.clone(), path, body).await?;
        assert_eq!(answer.status, 503, "{method} {path}: {answer:?}");
        let detail = answer.body["detail"].as_str().unwrap_or_default();
        assert!(detail.contains("has lost the record of tenant"), "{detail}");
    }
    assert_eq!(world.receiver.count("theirs"), 0);

    backup.restore(&mut node).await?;
    world.init().await?;
    world.settle(seconds(120)).await?;
    assert_eq!(world.receiver.accepted("theirs"), EVENTS);
    assert_eq!(world.duplicates().await?, 0);
    let answer = world.control.call(Method::GET, &path, Value::Null).await?;
    assert_eq!(answer.status, 200, "{answer:?}");
    Arc::into_inner(world).unwrap().finish().await?;
    cluster.end().await;
    Ok(())
}

/// Some of a tenant's subscriptions are on other nodes than what says which it has.
pub(crate) async fn what_is_lost_for_good_is_gone_on_without() -> anyhow::Result<()> {
    const MANY: usize = 600;
    let mut cluster = RedisCluster::start("redis-losses", 0).await?;
    let setup = Setup { redis_url: Some(cluster.urls()), ..Setup::default() };
    let world = Arc::new(World::with("losses", setup).await?);
    let emptied = node_with_one_of(&cluster, MANY / 256).await?;
    let (theirs, others) = tenants_on(&cluster, emptied).await?;
    world.subscribe_many(&theirs, ("theirs", MANY), &["#"]).await?;
    world.subscribe(&others, "others", &["for.*"]).await?;
    world.in_force().await;
    redis::cmd("FLUSHALL").query_async::<()>(&mut cluster.link(emptied).await?).await?;
    let list = format!("/v1/tenants/{theirs}/subscriptions?limit=1000");
    let listed = || world.control.call(Method::GET, &list, Value::Null);
    assert_eq!(listed().await?.status, 503);
    world.publish(&theirs, "made.before", json!(1)).await?;

    let arguments = ["init", "--accept-losses"];
    for _ in 0..2 {
        world.command(Kind::ControlPlane, &arguments).await?;
    }
    let left = listed().await?.body["data"].as_array().context("no list")?.clone();
    assert!((1..MANY).contains(&left.len()), "{} of {MANY}", left.len());
    world.publish(&theirs, "made.after", json!(2)).await?;
    world.publish("*", "for.all", json!(3)).await?;
    let of_left: HashSet<&str> = left.iter().filter_map(|one| one["url"].as_str()).collect();
    let all_came = || async {
        let posts = world.receiver.posts();
        let came = |endpoint: &str, most| {
            posts.iter().filter(|post| post.endpoint == endpoint).count() == most
        };
        (0..MANY).all(|n| {
            let endpoint = format!("theirs-{n}");
            let is_left = of_left.contains(world.receiver.url(&endpoint).as_str());
            came(&endpoint, if is_left { 3 } else { 0 })
        })
    };
    eventually("all that are left get everything", seconds(60), all_came).await?;
    world.subscribe(&theirs, "one-more", &["#"]).await?;
    assert_eq!(listed().await?.body["data"].as_array().map(Vec::len), Some(left.len() + 1));
    Arc::into_inner(world).unwrap().finish().await?;
    cluster.end().await;
    Ok(())
}

/// A node that has one of the first slots, and not what all need.
async fn node_with_one_of(cluster: &RedisCluster, slots: usize) -> anyhow::Result<usize> {
    let main = cluster.master_of("{main}").await;
    for slot in 0..slots {
        let node = cluster.master_of(&format!("{{slot-{slot:06x}}}")).await;
        if node != main {
            return node.context("nobody has it");
        }
    }
    anyhow::bail!("all of these slots are where the epoch is")
}

/// A tenant of which this node of a cluster has the index, and one of which another has it.
async fn tenants_on(cluster: &RedisCluster, node: usize) -> anyhow::Result<(String, String)> {
    let (mut there, mut elsewhere) = (None, None);
    for n in 0..100 {
        let tenant = format!("tenant-{n}");
        let master = cluster.master_of(&format!("{{tenant-{tenant}}}")).await;
        if master == Some(node) { &mut there } else { &mut elsewhere }.get_or_insert(tenant);
    }
    Ok((there.context("none there")?, elsewhere.context("none elsewhere")?))
}

pub(crate) async fn a_redis_that_may_forget_is_not_trusted() -> anyhow::Result<()> {
    let setup = Setup { dispatchers: 1, ..Setup::private() };
    let world = Arc::new(World::with("forgetful", setup).await?);
    world.subscribe("acme", "known", &["#"]).await?;
    world.subscribe("beta", "unknown", &["#"]).await?;
    world.in_force().await;
    world.publish("acme", "a", json!(1)).await?;
    eventually("it arrives", seconds(20), || async { world.receiver.accepted("known") == 1 })
        .await?;
    let mut redis = world.engines.redis_link().await?;
    let mut set = async |name: &str, value: &str| {
        redis::cmd("CONFIG").arg("SET").arg(name).arg(value).query_async::<()>(&mut redis).await
    };
    set("maxmemory", "1gb").await?;
    set("maxmemory-policy", "allkeys-lru").await?;
    for service in ["dispatcher-1", "retry-scheduler-1", "control-plane"] {
        world.until_readiness(service, false).await?;
        let readiness = world.readiness(service).await?.to_string();
        assert!(readiness.contains("maxmemory-policy allkeys-lru"), "{readiness}");
    }
    for tenant in ["acme", "beta"] {
        world.publish(tenant, "a", json!(2)).await?;
    }
    eventually("what is known counts", seconds(20), || async {
        world.receiver.accepted("known") == 2
    })
    .await?;
    assert_eq!(world.receiver.count("unknown"), 0);
    set("maxmemory-policy", "volatile-lru").await?;
    world.until_all_ready().await?;
    world.settle(seconds(60)).await?;
    Arc::into_inner(world).unwrap().finish().await
}
