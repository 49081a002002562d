//! Other ways to run the engines: over TLS, each of them as a cluster, RabbitMQ without the plugin, and
//! several retry-schedulers.

use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_local::certificates::{Authority, Certificate};
use doorbell_local::engines::TlsFiles;
use doorbell_producer::{NewEvent, Options, Publisher};
use doorbell_tests::api::subscription;
use doorbell_tests::load::Load;
use doorbell_tests::redis_cluster::RedisCluster;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, engines, eventually};
use futures_util::future::try_join_all;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

/// Everything that crosses the engines: subscribe, deliver, retry, split, broadcast, limit, hold,
/// resume, delete.
pub(crate) async fn exercise(world: &World) -> anyhow::Result<()> {
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 500));
    world.subscribe("acme", "flaky", &["order.*"]).await?;
    let mut limited = subscription(&world.receiver.url("limited"), &["order.#"]);
    limited["rate_limit"] = json!({ "per_second": 20, "burst": 5 });
    world.subscribe_as("acme", "limited", limited).await?;
    world.subscribe_many("beta", ("many", 300), &["order.#"]).await?;
    let id = world.subscribe("acme", "pausing", &["#"]).await?;
    let path = format!("/v1/tenants/acme/subscriptions/{id}");
    world
        .control
        .call(Method::PATCH, &path, json!({"status": "paused", "events": ["order.#", "x"]}))
        .await?;
    world.in_force().await;
    for n in 0..30 {
        world.publish("acme", "order.made", json!(n)).await?;
    }
    world.publish("*", "order.everyone", json!("all")).await?;
    world.publish("beta", "order.many", json!("many")).await?;
    let held = || async {
        world.metric("doorbell_deliveries_held_total{reason=\"suspended\"}").await.unwrap_or(0.0)
    };
    eventually("deliveries are held", seconds(30), || async { held().await >= 30.0 }).await?;
    world.control.call(Method::PATCH, &path, json!({"status": "active"})).await?;
    world.settle(seconds(90)).await?;
    assert_eq!(world.duplicates().await?, 0);
    assert_eq!(
        world.control.call(Method::DELETE, "/v1/tenants/acme", Value::Null).await?.status,
        204
    );
    Ok(())
}

pub(crate) async fn everything_works_over_tls() -> anyhow::Result<()> {
    let tls = certificates()?;
    let setup = Setup { tls: Some(tls.clone()), ..Setup::private() };
    let world = World::with("tls", setup).await?;
    assert!(
        world.environment.amqp_url.starts_with("amqps:")
            && world.environment.redis_url.starts_with("rediss:")
    );
    exercise(&world).await?;
    // An application that publishes trusts it, too.
    let options = Options { ca_pem: Some(std::fs::read_to_string(&tls.ca)?), ..Options::default() };
    let publisher = Publisher::connect_with(&world.environment.amqp_url, options).await?;
    let id = publisher.publish(&NewEvent::new("beta", "order.by.tls", "1")).await?;
    world.ledger.accepted("beta", "order.by.tls", id.as_str(), "1");
    publisher.close().await;
    world.settle(seconds(60)).await?;
    // A service that does not trust the authority stays away, and says why.
    let [port] = doorbell_local::ports::free()?;
    let mut environment = world.environment.clone();
    environment.extra.retain(|(name, _)| name != "DOORBELL_TLS_CA_FILE");
    let kind = doorbell_local::services::Kind::RetryScheduler;
    let process = environment.service(kind, "distrustful", port, None).spec.start()?;
    engines::note(&process)?;
    let (client, readyz) =
        (reqwest::Client::builder().no_proxy().build()?, format!("http://127.0.0.1:{port}/readyz"));
    let refuses = || async {
        let Ok(response) = client.get(&readyz).send().await else { return false };
        let status = response.status();
        status == 503
            && response
                .text()
                .await
                .is_ok_and(|text| text.contains("certificate") || text.contains("onnect"))
    };
    eventually("it is not ready", seconds(30), refuses).await?;
    drop(process);
    world.finish().await
}

pub(crate) async fn everything_works_on_a_redis_cluster() -> anyhow::Result<()> {
    let mut cluster = RedisCluster::start("redis-cluster", 0).await?;
    let setup = Setup { redis_url: Some(cluster.urls()), ..Setup::default() };
    let world = World::with("cluster", setup).await?;
    exercise(&world).await?;
    manage(&world).await?;
    world.finish().await?;
    cluster.end().await;
    Ok(())
}

pub(crate) async fn a_redis_cluster_that_loses_its_masters_loses_nothing() -> anyhow::Result<()> {
    let mut cluster = RedisCluster::start("redis-replicas", 1).await?;
    let setup = Setup { redis_url: Some(cluster.urls()), ..Setup::default() };
    let world = Arc::new(World::with("replicas", setup.without_breaker()).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(2, 503));
    for endpoint in ["steady", "flaky"] {
        world.subscribe("acme", endpoint, &["#"]).await?;
    }
    let pausing = world.subscribe("acme", "pausing", &["#"]).await?;
    world.in_force().await;
    let loads = [
        Load::over_http(&world, "acme", Duration::from_millis(20)),
        Load::over_amqp(&world, "acme", Duration::from_millis(20)).await?,
    ];
    // What all need, what says who wants what, and what they want.
    for tag in ["main", "tenant-acme", "slot-000000"] {
        let dead = cluster.kill_master_of(&format!("{{{tag}}}")).await?;
        let before = (world.receiver.accepted("steady"), world.receiver.accepted("flaky"));
        eventually("a change is made with one of the masters dead", seconds(60), || async {
            world.set_status("acme", &pausing, "paused").await.is_ok()
        })
        .await?;
        world.until_all_ready().await?;
        eventually("deliveries and retries go on", seconds(60), || async {
            world.receiver.accepted("steady") > before.0 + 100
                && world.receiver.accepted("flaky") > before.1 + 100
        })
        .await?;
        world.set_status("acme", &pausing, "active").await?;
        cluster.start_again(dead).await?;
    }
    let mut accepted = 0;
    for load in loads {
        accepted += load.end().await?;
    }
    world.settle(seconds(90)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "three masters of Redis killed in turn amid {accepted} events: 0 lost, {duplicates} duplicates"
    );
    Arc::into_inner(world).unwrap().finish().await?;
    cluster.end().await;
    Ok(())
}

pub(crate) async fn a_redis_cluster_whose_keys_move_loses_nothing() -> anyhow::Result<()> {
    let mut cluster = RedisCluster::start("redis-moving", 0).await?;
    let setup = Setup { redis_url: Some(cluster.urls()), ..Setup::default() };
    let world = Arc::new(World::with("moving", setup.without_breaker()).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(2, 503));
    for endpoint in ["steady", "flaky"] {
        world.subscribe("acme", endpoint, &["#"]).await?;
    }
    let pausing = world.subscribe("acme", "pausing", &["#"]).await?;
    world.subscribe_many("beta", ("many", 600), &["#"]).await?;
    world.in_force().await;
    let loads = [
        Load::over_http(&world, "acme", Duration::from_millis(20)),
        Load::over_http(&world, "beta", Duration::from_millis(1000)),
    ];
    // What says who wants what, to where that is which all need.
    let is_moved = Cell::new(false);
    let moving = async {
        let moved = cluster.move_all("{tenant-acme}", "{main}").await;
        is_moved.set(true);
        moved
    };
    let (mut made, mut refused) = (0, 0);
    let changing = async {
        while !is_moved.get() {
            for status in ["paused", "active"] {
                match world.set_status("acme", &pausing, status).await {
                    Ok(()) => made += 1,
                    Err(_) => refused += 1,
                }
            }
        }
    };
    let (moved, ()) = tokio::join!(moving, changing);
    moved?;
    assert!(made > 10 * refused, "{made} changes made, {refused} refused");
    world.set_status("acme", &pausing, "active").await?;
    let mut accepted = 0;
    for load in loads {
        accepted += load.end().await?;
    }
    world.settle(seconds(90)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "keys of Redis moved amid {accepted} events: 0 lost, {duplicates} duplicates, {made} changes made, {refused} refused"
    );
    Arc::into_inner(world).unwrap().finish().await?;
    cluster.end().await;
    Ok(())
}

/// What the API keeps in Redis beside subscriptions.
pub(crate) async fn manage(world: &World) -> anyhow::Result<()> {
    let control = &world.control;
    let make = || async {
        let headers = [("content-type", "application/json"), ("idempotency-key", "cluster")];
        let body = r#"{"label":"one","scopes":["admin"]}"#;
        control.raw(Method::POST, "/v1/tenants/acme/keys", &headers, body).await
    };
    let made = make().await?;
    assert_eq!((made.status.as_u16(), make().await?.body), (201, made.body.clone()));
    let theirs = control.with_key(made.body["key"].as_str().context("no key")?);
    let keys = theirs.call(Method::GET, "/v1/tenants/acme/keys", Value::Null).await?.body;
    assert_eq!(keys["data"][0]["id"], made.body["id"]);
    let document = json!({"event_types": [{"name": "a.b"}, {"name": "c"}]});
    assert_eq!(control.call(Method::PUT, "/v1/catalogue", document).await?.status, 200);
    assert_eq!(control.call(Method::PUT, "/v1/event-types/d", json!({})).await?.status, 201);
    assert_eq!(control.call(Method::DELETE, "/v1/event-types/c", Value::Null).await?.status, 204);
    let types = theirs.call(Method::GET, "/v1/event-types", Value::Null).await?.body;
    assert_eq!(types["data"].as_array().map(Vec::len), Some(2));
    let revoke = format!("/v1/keys/{}", made.body["id"].as_str().context("no id")?);
    assert_eq!(control.call(Method::DELETE, &revoke, Value::Null).await?.status, 204);
    eventually("the secrets are looked over", seconds(30), || async {
        let round = control.call(Method::GET, "/v1/encryption", Value::Null).await;
        round.is_ok_and(|round| round.body["round"]["state"] == "done")
    })
    .await?;
    let audit = control.call(Method::GET, "/v1/audit?limit=1", Value::Null).await?.body;
    assert_eq!(audit["data"][0]["action"], "key.revoke");
    Ok(())
}

pub(crate) async fn everything_works_without_the_plugin() -> anyhow::Result<()> {
    let setup = Setup { private: Some(&["rabbitmq_management"]), ..Setup::default() };
    let world = World::with("single", setup).await?;
    exercise(&world).await?;
    world.finish().await
}

pub(crate) async fn several_retry_schedulers_share_the_work() -> anyhow::Result<()> {
    let world = World::with("schedulers", Setup { schedulers: 3, ..Setup::default() }).await?;
    exercise(&world).await?;
    world.finish().await
}

/// An authority and a certificate of it for 127.0.0.1.
fn certificates() -> anyhow::Result<TlsFiles> {
    let folder = engines::folder().join("certificates");
    std::fs::create_dir_all(&folder)?;
    let authority = Authority::new("engines")?;
    let Certificate { certificate, key } = authority.certify(&["127.0.0.1", "localhost"])?;
    let write = |name: &str, text: String| -> anyhow::Result<PathBuf> {
        let path = folder.join(name);
        std::fs::write(&path, text)?;
        Ok(path)
    };
    Ok(TlsFiles {
        ca: write("ca.pem", authority.pem())?,
        certificate: write("certificate.pem", certificate)?,
        key: write("key.pem", key)?,
    })
}

/// Deliveries and retries go on while a node is dead, or frozen: not only when it is back. RabbitMQ remembers
/// leaders that are away where it meets them at the wrong moment, in channels and in its own workers.
pub(crate) async fn a_rabbitmq_cluster_that_loses_its_nodes_loses_nothing() -> anyhow::Result<()> {
    let setup = Setup { nodes: 3, ..Setup::private() }.without_breaker();
    let world = Arc::new(World::with("nodes", setup).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(2, 503));
    world.subscribe("acme", "steady", &["#"]).await?;
    world.subscribe("acme", "flaky", &["#"]).await?;
    let pausing = world.subscribe("acme", "pausing", &["#"]).await?;
    world.in_force().await;
    let loads = [
        Load::over_http(&world, "acme", Duration::from_millis(20)),
        Load::over_amqp(&world, "acme", Duration::from_millis(20)).await?,
    ];
    for (node, freezes) in world.engines.nodes().zip([false, true]) {
        let mut node = node.lock().await;
        if freezes {
            node.process().signal(Signal::SIGSTOP)?;
        } else {
            node.kill().await;
        }
        world.set_status("acme", &pausing, "paused").await?;
        let before = (world.receiver.accepted("steady"), world.receiver.accepted("flaky"));
        eventually(
            "deliveries and retries go on with two of three nodes",
            seconds(120),
            || async {
                world.receiver.accepted("steady") > before.0 + 100
                    && world.receiver.accepted("flaky") > before.1 + 100
            },
        )
        .await?;
        world.set_status("acme", &pausing, "active").await?;
        if freezes {
            node.process().signal(Signal::SIGCONT)?;
            // Whichever nodes have lost their replicas of streams over that.
            let so_far = world.receiver.accepted("steady");
            let flows = || async { world.receiver.accepted("pausing") >= so_far };
            eventually("what was held flows again", seconds(120), flows).await?;
        } else {
            node.start_again().await?;
        }
    }
    for node in world.engines.nodes() {
        node.lock().await.kill().await;
    }
    try_join_all(world.engines.nodes().map(async |node| node.lock().await.start_again().await))
        .await?;
    world.until_all_ready().await?;
    let mut accepted = 0;
    for load in loads {
        accepted += load.end().await?;
    }
    world.settle(seconds(150)).await?;
    world.until_nothing_waits().await?;
    let duplicates = world.duplicates().await?;
    eprintln!(
        "one of three nodes killed, one frozen, then all killed, amid {accepted} events: 0 lost, {duplicates} duplicates"
    );
    Arc::into_inner(world).unwrap().finish().await
}
