//! Secrets at rest: sealed, bound to their place, and sealed anew with another key.

use std::fs;
use std::path::PathBuf;

use doorbell_common::ids::SubscriptionId;
use doorbell_local::services::encryption_keys;
use doorbell_tests::api::subscription;
use doorbell_tests::wait::seconds;
use doorbell_tests::{World, eventually};
use redis::aio::MultiplexedConnection;
use reqwest::Method;
use serde_json::{Value, json};

const DISPATCHERS: [&str; 2] = ["dispatcher-1", "dispatcher-2"];

pub(crate) async fn no_secret_lies_in_clear_and_none_can_be_moved() -> anyhow::Result<()> {
    let world = World::start("secrets").await?;
    let mut redis = world.engines.redis_link().await?;
    let mut ids = Vec::new();
    for endpoint in ["mine", "theirs"] {
        let mut body = subscription(&world.receiver.url(endpoint), &["#"]);
        body["headers"] = json!({"authorization": format!("Bearer hidden-{endpoint}")});
        ids.push(world.subscribe_as("acme", endpoint, body).await?);
    }
    let path = |id: &str| format!("/v1/tenants/acme/subscriptions/{id}");
    let rotate = format!("{}/secret/rotate", path(&ids[0]));
    let rotated = world.control.call(Method::POST, &rotate, json!({"overlap": "1d"})).await?;
    world.receiver.add_secret("mine", rotated.body["secret"].as_str().unwrap());
    for record in records(&mut redis, &world).await? {
        for hidden in ["whsec_", "hidden-", "Bearer"] {
            assert!(!record.contains(hidden), "{record}");
        }
        assert!(record.contains(r#""sealed":"#), "{record}");
    }
    let shown = world.control.call(Method::GET, &path(&ids[0]), Value::Null).await?.body;
    assert_eq!(shown["headers"]["authorization"], "Bearer hidden-mine");
    world.in_force().await;
    world.publish("acme", "a.made", json!(1)).await?;
    world.settle(seconds(30)).await?;
    for post in world.receiver.posts() {
        assert_eq!(post.headers["authorization"], format!("Bearer hidden-{}", post.endpoint));
    }

    // Someone who can write to Redis moves what is sealed of one to another: it opens nowhere.
    let slot = slot(&world, &ids[0]);
    let stolen: String = redis::cmd("HGET").arg(&slot).arg(&ids[1]).query_async(&mut redis).await?;
    let own: String = redis::cmd("HGET").arg(&slot).arg(&ids[0]).query_async(&mut redis).await?;
    let mut forged: Value = serde_json::from_str(&own)?;
    forged["sealed"][1] = serde_json::from_str::<Value>(&stolen)?["sealed"][1].clone();
    put(&mut redis, &slot, &ids[0], &forged.to_string()).await?;
    let answer = world.control.call(Method::GET, &path(&ids[0]), Value::Null).await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    // Nor does it help to move the whole record.
    put(&mut redis, &slot, &ids[0], &stolen).await?;
    let answer = world.control.call(Method::GET, &path(&ids[0]), Value::Null).await?;
    assert_eq!(answer.status, 503, "{answer:?}");
    put(&mut redis, &slot, &ids[0], &own).await?;
    assert_eq!(world.control.call(Method::GET, &path(&ids[0]), Value::Null).await?.status, 200);
    world.finish().await
}

pub(crate) async fn another_key_takes_over_while_events_flow() -> anyhow::Result<()> {
    let world = World::start("newkey").await?;
    let mut redis = world.engines.redis_link().await?;
    world.subscribe("acme", "hook", &["a.#"]).await?;
    world.subscribe_many("others", ("other", 600), &["never.#"]).await?;
    world.in_force().await;
    world.publish("acme", "a.made", json!(1)).await?;

    // As it would be done: first everyone can open what the new key seals, then it seals.
    let file = key_file(&world);
    let old = fs::read_to_string(&file)?;
    let elsewhere = world.environment.logs.join("new");
    let (_, another) = encryption_keys(&elsewhere)?;
    let new = fs::read_to_string(another)?.replace("local:", "new:");
    fs::write(&file, format!("{new}{old}"))?;
    for service in ["control-plane", "dispatcher-1", "dispatcher-2"] {
        assert_eq!(world.stop(service).await?, Some(0));
        world.restart(service).await?;
        world.until_readiness(service, true).await?;
        world.publish("acme", "a.made", json!(2)).await?;
    }
    eventually("everything is sealed anew", seconds(60), || async {
        let answer = world.control.call(Method::GET, "/v1/encryption", Value::Null).await;
        answer.is_ok_and(|answer| {
            let round = &answer.body["round"];
            round["active_key"] == "new" && round["state"] == "done" && round["sealed"] == 601
        })
    })
    .await?;
    assert!(records(&mut redis, &world).await?.iter().all(|record| record.contains("v1.new.")));

    // The old key is of no use any more, and what was sealed with it opens.
    fs::write(&file, &new)?;
    for dispatcher in DISPATCHERS {
        assert_eq!(world.stop(dispatcher).await?, Some(0));
        world.restart(dispatcher).await?;
        world.until_readiness(dispatcher, true).await?;
    }
    world.publish("acme", "a.made", json!(3)).await?;
    world.settle(seconds(30)).await?;
    world.finish().await
}

pub(crate) async fn a_dispatcher_without_the_key_delivers_nothing_unsigned() -> anyhow::Result<()> {
    let world = World::start("nokey").await?;
    world.subscribe("acme", "hook", &["#"]).await?;
    world.in_force().await;
    let (file, right) = (key_file(&world), fs::read_to_string(key_file(&world))?);
    fs::write(&file, right.replace("local:", "another:"))?;
    for dispatcher in DISPATCHERS {
        assert_eq!(world.stop(dispatcher).await?, Some(0));
        world.restart(dispatcher).await?;
    }
    world.publish("acme", "a.made", json!(1)).await?;
    for dispatcher in DISPATCHERS {
        eventually("it is not ready, and says why", seconds(30), || async {
            let readiness = world.readiness(dispatcher).await.unwrap_or_default().to_string();
            readiness.contains("encryption-keys-file") && readiness.contains("local")
        })
        .await?;
        assert!(!world.is_ready(dispatcher).await);
    }
    assert_eq!(world.receiver.count("hook"), 0);
    fs::write(&file, right)?;
    for dispatcher in DISPATCHERS {
        assert_eq!(world.stop(dispatcher).await?, Some(0));
        world.restart(dispatcher).await?;
    }
    world.until_all_ready().await?;
    world.settle(seconds(60)).await?;
    world.finish().await
}

fn key_file(world: &World) -> PathBuf {
    world.environment.logs.join("encryption-keys")
}

fn slot(world: &World, id: &str) -> String {
    let id: SubscriptionId = id.parse().unwrap();
    format!("{}:{{slot-{:06x}}}", world.vhost, id.slot().0)
}

async fn put(
    redis: &mut MultiplexedConnection,
    slot: &str,
    id: &str,
    record: &str,
) -> anyhow::Result<()> {
    Ok(redis::cmd("HSET").arg(slot).arg(id).arg(record).query_async(redis).await?)
}

/// Every record of a subscription.
async fn records(redis: &mut MultiplexedConnection, world: &World) -> anyhow::Result<Vec<String>> {
    let pattern = format!("{}:{{slot-*", world.vhost);
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(redis).await?;
    let mut records = Vec::new();
    for key in keys {
        let fields: Vec<(String, String)> =
            redis::cmd("HGETALL").arg(key).query_async(redis).await?;
        let found = fields.into_iter().filter(|(field, _)| field.starts_with("sub_"));
        records.extend(found.map(|(_, record)| record));
    }
    assert!(!records.is_empty());
    Ok(records)
}
