//! Deliveries of one event that fail together go on together, and each has its own end.

use std::time::Duration;

use doorbell_tests::api::subscription;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, eventually};
use reqwest::Method;
use serde_json::json;

pub(crate) async fn what_fails_together_goes_on_together() -> anyhow::Result<()> {
    const FAILING: usize = 100;
    const EVENTS: usize = 5;
    let world =
        World::with("parcels", Setup { schedulers: 2, ..Setup::default() }.without_breaker())
            .await?;
    let quick = |endpoint: &str| {
        let mut body = subscription(&world.receiver.url(endpoint), &["#"]);
        body["retry"] = json!({ "schedule": ["1s", "2s"] });
        body
    };
    for n in 0..FAILING {
        let endpoint = format!("fails-{n}");
        world.receiver.behave(&endpoint, Behaviour::FailFirst(2, 500));
        world.subscribe_as("acme", &endpoint, quick(&endpoint)).await?;
    }
    // In the same parcels, with other fates.
    for (endpoint, behaviour) in [
        ("never", Behaviour::Status(500)),
        ("gone", Behaviour::Status(410)),
        ("later", Behaviour::RetryAfter(4)),
        ("removed", Behaviour::Status(500)),
        ("paused", Behaviour::Status(500)),
    ] {
        world.receiver.behave(endpoint, behaviour);
    }
    let mut ids = Vec::new();
    for endpoint in ["never", "gone", "later", "removed", "paused"] {
        ids.push(world.subscribe_as("acme", endpoint, quick(endpoint)).await?);
    }
    for endpoint in ["never", "gone", "removed"] {
        world.ledger.expect_no_full_set(endpoint);
    }
    let mut limited = quick("limited");
    limited["rate_limit"] = json!({ "per_second": 1, "burst": 1 });
    world.subscribe_as("acme", "limited", limited).await?;
    world.subscribe("acme", "steady", &["#"]).await?;
    world.in_force().await;
    for n in 0..EVENTS {
        world.publish("acme", "a", json!(n)).await?;
    }
    let (removed, paused) = (&ids[3], &ids[4]);
    for endpoint in ["removed", "paused"] {
        eventually("it is tried", seconds(20), || async {
            world.receiver.posts_to(endpoint).len() >= EVENTS
        })
        .await?;
    }
    let path = format!("/v1/tenants/acme/subscriptions/{removed}");
    world.control.call(Method::DELETE, &path, json!(null)).await?;
    world.set_status("acme", paused, "paused").await?;
    world.receiver.behave("paused", Behaviour::Status(200));
    eventually("all others are served", seconds(60), || async {
        world.ledger.missing(&world.receiver).iter().all(|(endpoint, _)| endpoint == "paused")
    })
    .await?;
    world.set_status("acme", paused, "active").await?;
    world.settle(seconds(60)).await?;
    world.until_nothing_waits().await?;
    assert_eq!(world.duplicates().await?, 0);
    for n in 0..FAILING {
        assert_eq!(
            world.receiver.posts_to(&format!("fails-{n}")).len(),
            3 * EVENTS,
            "of fails-{n}"
        );
    }
    let dead = |reason: &str| format!("doorbell_dead_letters_total{{reason=\"{reason}\"}}");
    #[expect(clippy::cast_precision_loss, reason = "it is 5")]
    let events = EVENTS as f64;
    assert_eq!(world.metric(&dead("exhausted")).await?, events);
    // The first may disable it before the others are tried; those end without a word.
    assert!((1.0..=events).contains(&world.metric(&dead("gone")).await?));
    let messages = world.metric("doorbell_handoffs_total{queue=\"retries\"}").await?;
    let failures = 2 * FAILING * EVENTS;
    eprintln!("{failures} failures and more went on in {messages} messages");
    // Each failure on its own would be one message.
    assert!(messages < 250.0, "{messages} messages");
    world.check_history().await?;
    world.finish().await
}

pub(crate) async fn a_kill_repeats_no_more_of_a_parcel_than_was_in_flight() -> anyhow::Result<()> {
    const ENDPOINTS: usize = 60;
    const IN_FLIGHT: usize = 8;
    let mut setup = Setup::default().without_breaker();
    setup.dispatcher_extra.push(("DOORBELL_MAX_IN_FLIGHT".to_owned(), IN_FLIGHT.to_string()));
    let world = World::with("parcel", setup).await?;
    for n in 0..ENDPOINTS {
        world.receiver.behave(&format!("e-{n}"), Behaviour::FailFirst(1, 503));
    }
    world.subscribe_many("acme", ("e", ENDPOINTS), &["#"]).await?;
    world.in_force().await;
    world.publish("acme", "a", json!(1)).await?;
    let tried =
        |times: usize| {
            let receiver = &world.receiver;
            eventually("so many were tried", seconds(60), move || async move {
                receiver.total() >= times
            })
        };
    tried(ENDPOINTS).await?;
    for n in 0..ENDPOINTS {
        world.receiver.behave(&format!("e-{n}"), Behaviour::Slow(Duration::from_millis(500)));
    }
    for part in 1..=2 {
        tried(ENDPOINTS + part * 15).await?;
        for name in ["dispatcher-1", "dispatcher-2"] {
            world.kill_and_restart(name).await?;
        }
    }
    world.settle(seconds(60)).await?;
    world.until_nothing_waits().await?;
    let duplicates = world.duplicates().await?;
    let known = world.metric("doorbell_ledger_hits_total").await?;
    eprintln!(
        "both dispatchers killed twice amid a parcel of {ENDPOINTS}: {duplicates} duplicates, {known} known to the ledger since"
    );
    assert!(duplicates <= 2 * 2 * IN_FLIGHT, "{duplicates} duplicates");
    world.finish().await
}
