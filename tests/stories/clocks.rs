//! Clocks that are set while services run.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_local::packages::{self, Package};
use doorbell_tests::api::subscription;
use doorbell_tests::load::Load;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, engines, eventually};
use reqwest::Method;
use serde_json::{Value, json};

/// Less than by what the time of a signature may differ.
const SET_BACK: &str = "-100s";
/// Requests a second of a key, and twice as many at once.
const REQUESTS: &str = "10";

pub(crate) async fn a_clock_that_is_set_stops_nobody() -> anyhow::Result<()> {
    let folder = engines::folder().join("clock");
    std::fs::create_dir_all(&folder)?;
    let offset = folder.join("offset");
    std::fs::write(&offset, "+0s")?;
    let world = Arc::new(World::with("clocks", with_clock_of(&offset).await?).await?);
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 404));
    world.subscribe("acme", "steady", &["#"]).await?;
    world.subscribe("acme", "flaky", &["#"]).await?;
    let mut limited = subscription(&world.receiver.url("limited"), &["#"]);
    limited["rate_limit"] = json!({ "per_second": 100, "burst": 100 });
    world.subscribe_as("acme", "limited", limited).await?;
    let mut down = subscription(&world.receiver.url("down"), &["#"]);
    down["retry"] = json!({"fixed": {"delay": "1s", "attempts": 100}});
    world.subscribe_as("beta", "down", down).await?;
    let form = json!({"label": "one", "scopes": ["subscriptions:read"]});
    let key = world.control.call(Method::POST, "/v1/tenants/acme/keys", form).await?;
    let theirs = world.control.with_key(key.body["key"].as_str().context("no key")?);
    let limits = json!({"events_per_second": 100});
    let limited = world.control.call(Method::PUT, "/v1/tenants/acme/limits", limits).await?;
    assert!(limited.status.is_success(), "{limited:?}");
    world.in_force().await;
    let list = || theirs.call(Method::GET, "/v1/tenants/acme/subscriptions", Value::Null);
    let load = Load::over_http(&world, "acme", Duration::from_millis(20));

    world.receiver.behave("down", Behaviour::Status(503));
    for n in 0..30 {
        world.publish("beta", "before", n.into()).await?;
    }
    let is_open =
        || async { world.metric("doorbell_breakers_open").await.is_ok_and(|open| open > 0.5) };
    eventually("a breaker opens", seconds(30), is_open).await?;
    // Its share is used up.
    for _ in 0..30 {
        list().await?;
    }
    std::fs::write(&offset, SET_BACK)?;
    // What failed before is late by that, until the clock is right again.
    let posts = world.receiver.posts_to("flaky");
    let late: HashSet<String> = posts.iter().map(|post| post.id.clone()).collect();
    eventually("a key has its share again", seconds(20), || async {
        list().await.is_ok_and(|answer| answer.status == 200)
    })
    .await?;
    let counts =
        || ["steady", "flaky", "limited"].map(|endpoint| world.receiver.accepted(endpoint));
    let before = counts();
    eventually("all get what is new", seconds(30), || async {
        counts().iter().zip(before).all(|(now, then)| *now > then + 100)
    })
    .await?;
    // Redis has the clock of this machine; there are five services.
    eventually("services say by how much their clocks differ", seconds(30), || async {
        let offset = world.metric("doorbell_clock_offset_seconds").await;
        offset.is_ok_and(|offset| (offset + 5.0 * 100.0).abs() < 5.0)
    })
    .await?;
    world.receiver.behave("down", Behaviour::FailFirst(0, 503));
    let before = world.receiver.accepted("down");
    for n in 0..5 {
        world.publish("beta", "after", n.into()).await?;
    }
    eventually("whoever was left alone is called again", seconds(60), || async {
        world.receiver.accepted("down") >= before + 5
    })
    .await?;
    let accepted = load.end().await?;
    eventually("what has failed since comes again", seconds(30), || async {
        let missing = world.ledger.missing(&world.receiver);
        missing.iter().all(|(endpoint, id)| endpoint == "down" || late.contains(id))
    })
    .await?;
    std::fs::write(&offset, "+0s")?;
    world.settle(seconds(120)).await?;
    let duplicates = world.duplicates().await?;
    eprintln!("clocks set amid {accepted} events: 0 lost, {duplicates} duplicates");
    Arc::into_inner(world).unwrap().finish().await
}

/// With services that tell the time by their clock and what a file says. Nobody sets the clock of this machine, and with
/// it everyone else's.
async fn with_clock_of(offset: &Path) -> anyhow::Result<Setup> {
    let fake = Package { name: "libfaketime", proof: "/usr/share/doc/libfaketime" };
    tokio::task::spawn_blocking(move || packages::ensure(&[fake], |line| eprintln!("{line}")))
        .await??;
    let mut setup = Setup::private();
    for (name, value) in [
        ("LD_PRELOAD", "/usr/$LIB/faketime/libfaketimeMT.so.1"),
        ("FAKETIME_TIMESTAMP_FILE", offset.to_str().context("not UTF-8")?),
        ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DOORBELL_REQUESTS_PER_SECOND", REQUESTS),
    ] {
        setup.extra.push((name.to_owned(), value.to_owned()));
    }
    Ok(setup)
}
