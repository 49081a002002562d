//! What subscribers get, and what becomes of deliveries that fail.

use anyhow::Context as _;
use doorbell_common::wire;
use doorbell_common::work::{Delivery, Work};
use doorbell_tests::api::subscription;
use doorbell_tests::receiver::{Hostile, hostile};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, amqp, eventually};
use reqwest::Method;
use serde_json::{Value, json};

/// The delivery that a message of one carries.
fn only_delivery(message: &[u8]) -> anyhow::Result<Delivery> {
    let Work::Parcel(parcel) = wire::decode(message)? else { anyhow::bail!("not a delivery") };
    anyhow::ensure!(parcel.states.len() == 1, "not one delivery");
    parcel.deliveries().next().context("nothing in it")
}

pub(crate) async fn each_subscriber_gets_what_it_wants() -> anyhow::Result<()> {
    let world = World::start("delivery").await?;
    world.subscribe("acme", "exact", &["payment.succeeded"]).await?;
    world.subscribe("acme", "star", &["payment.*", "refund.*"]).await?;
    world.subscribe("acme", "hash", &["#"]).await?;
    world.subscribe("other", "stranger", &["#"]).await?;
    let mut body = subscription(&world.receiver.url("raw"), &["payment.#"]);
    body["payload"] = "raw".into();
    body["headers"] = json!({"X-Team": "a"});
    body["signature"] = json!({"header": "X-Signature", "format": "sha256-hex"});
    world.subscribe_as("acme", "raw", body).await?;
    world.in_force().await;
    let first =
        world.publish("acme", "payment.succeeded", json!({"id": 7, "amount": 1999})).await?;
    world.publish("acme", "payment.failed", json!([1, "two", null])).await?;
    world.publish("acme", "user.created", json!("a plain string")).await?;
    world.publish("nobody", "user.created", json!({})).await?;
    let outsider = world.outsider().await?;
    let data = " {\"n\": 1.0e5, \"big\": 12345678901234567890123} ";
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let properties =
        amqp::event("acme", Some("mine-1"), &[("traceparent", trace), ("tracestate", "a=1")]);
    world.ledger.accepted("acme", "refund.made", "mine-1", data);
    outsider.publish("refund.made", properties, data.as_bytes()).await?;
    world.settle(seconds(30)).await?;

    let mine =
        world.receiver.posts_to("star").into_iter().find(|post| post.id == "mine-1").unwrap();
    let header = |name: &str| {
        mine.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
    };
    assert_eq!(header("traceparent"), trace);
    assert_eq!(header("tracestate"), "a=1");
    assert_eq!(header("content-type"), "application/json");
    assert_eq!(header("doorbell-attempt"), "1");
    assert!(
        header("user-agent").starts_with("Doorbell/")
            && header("doorbell-subscription").starts_with("sub_")
    );
    let raw = world.receiver.posts_to("raw").into_iter().find(|post| post.id == first).unwrap();
    assert_eq!(raw.headers["x-team"], "a");
    assert!(raw.headers["x-signature"].to_str().unwrap().starts_with("sha256="));
    assert_eq!(world.duplicates().await?, 0);
    assert!(world.receiver.posts_to("stranger").is_empty());
    let delivered = || async {
        world.metric("doorbell_deliveries_total{state=\"delivered\"}").await.unwrap_or(0.0)
    };
    eventually("the metric counts 10", seconds(10), || async {
        (delivered().await - 10.0).abs() < 0.1
    })
    .await?;
    world.finish().await
}

pub(crate) async fn failures_are_retried_on_time() -> anyhow::Result<()> {
    let world = World::start("retries").await?;
    world.receiver.behave("thrice", Behaviour::FailFirst(3, 500));
    world.receiver.behave("asks", Behaviour::RetryAfter(7));
    for endpoint in ["thrice", "asks"] {
        let mut body = subscription(&world.receiver.url(endpoint), &["#"]);
        body["retry"] = json!({"schedule": ["2s", "4s", "8s"]});
        world.subscribe_as("acme", endpoint, body).await?;
    }
    world.in_force().await;
    world.publish("acme", "a.b", json!({"n": 1})).await?;
    world.settle(seconds(60)).await?;
    let gaps = |endpoint: &str| -> Vec<f64> {
        let posts = world.receiver.posts_to(endpoint);
        posts.windows(2).map(|pair| pair[1].at.duration_since(pair[0].at).as_secs_f64()).collect()
    };
    for (endpoint, expected) in [("thrice", &[2.0, 4.0, 8.0][..]), ("asks", &[7.0])] {
        let gaps = gaps(endpoint);
        eprintln!("{endpoint}: retried after {gaps:.2?} s, asked for {expected:?}");
        assert_eq!(gaps.len(), expected.len());
        for (gap, expected) in gaps.iter().zip(expected) {
            assert!(*gap >= expected - 0.005, "early: {gap} for {expected}");
            // Printed above to the hundredth; a machine that stalls may be later.
            assert!(*gap <= expected * 1.1 + 3.0, "late: {gap} for {expected}");
        }
    }
    let attempts: Vec<u32> =
        world.receiver.posts_to("thrice").iter().map(|post| post.attempt).collect();
    assert_eq!(attempts, [1, 2, 3, 4]);
    let bodies: std::collections::HashSet<_> =
        world.receiver.posts_to("thrice").iter().map(|post| post.body.clone()).collect();
    assert_eq!(bodies.len(), 1);
    world.finish().await
}

pub(crate) async fn every_failure_has_its_end() -> anyhow::Result<()> {
    let world = World::start("dead").await?;
    world.receiver.behave("never", Behaviour::Status(404));
    world.receiver.behave("gone", Behaviour::Status(410));
    world.receiver.behave("redirects", Behaviour::Redirect(world.receiver.url("innocent")));
    let quick = |url: &str| {
        let mut body = subscription(url, &["#"]);
        body["retry"] = json!({"schedule": ["1s"]});
        body["timeout"] = "1s".into();
        body
    };
    let mut ids = Vec::new();
    for endpoint in ["never", "gone", "redirects"] {
        ids.push(world.subscribe_as("acme", endpoint, quick(&world.receiver.url(endpoint))).await?);
    }
    for (name, url) in [
        ("refused", "http://127.0.0.1:1/".to_owned()),
        ("hangs", hostile(Hostile::Hang).await?),
        ("closes", hostile(Hostile::Close).await?),
        ("resets", hostile(Hostile::Reset).await?),
        ("garbage", hostile(Hostile::Garbage).await?),
        ("headers", hostile(Hostile::EndlessHeaders).await?),
        ("tls", world.receiver.url("x").replace("http:", "https:")),
        ("dns", "http://no-such-host.doorbell-tests.com/".to_owned()),
    ] {
        ids.push(world.subscribe_as("acme", name, quick(&url)).await?);
    }
    world.in_force().await;
    let event = world.publish("acme", "a", json!(1)).await?;
    let outsider = world.outsider().await?;
    let mut found = std::collections::BTreeMap::new();
    for letter in outsider.stream("doorbell.dead-letters", ids.len()).await? {
        let delivery = only_delivery(&letter.data)?;
        let failure = delivery.state.last_failure.clone().unwrap();
        assert_eq!(delivery.event.id.as_str(), event);
        let place =
            ids.iter().position(|id| *id == delivery.state.subscription.to_string()).unwrap();
        found.insert(
            place,
            (
                amqp::header(&letter, "doorbell-reason").unwrap(),
                failure.outcome.as_str(),
                delivery.state.attempts,
            ),
        );
    }
    let expected = [
        ("exhausted", "client_error", 2),
        ("gone", "gone", 1),
        ("exhausted", "redirect", 2),
        ("exhausted", "connect", 2),
        ("exhausted", "timeout", 2),
        ("exhausted", "connect", 2),
        ("exhausted", "connect", 2),
        ("exhausted", "protocol", 2),
        ("exhausted", "protocol", 2),
        ("exhausted", "tls", 2),
        ("exhausted", "dns", 2),
    ];
    for (place, (reason, outcome, attempts)) in expected.iter().enumerate() {
        assert_eq!(
            found[&place],
            ((*reason).to_owned(), *outcome, *attempts),
            "subscription number {place}"
        );
    }
    assert!(world.receiver.posts_to("innocent").is_empty(), "a redirect was followed");
    let gone = world
        .control
        .call(Method::GET, &format!("/v1/tenants/acme/subscriptions/{}", ids[1]), json!(null))
        .await?;
    assert_eq!(
        (&gone.body["status"], &gone.body["disabled_reason"]),
        (&json!("disabled"), &json!("gone"))
    );
    assert!(
        (world.metric("doorbell_dead_letters_total{reason=\"gone\"}").await? - 1.0).abs() < 0.1
    );
    world.finish().await
}

pub(crate) async fn forbidden_addresses_are_refused_at_the_connection() -> anyhow::Result<()> {
    // The control-plane lets the subscription pass; the dispatcher judges again what it dials.
    let strict = vec![("DOORBELL_ALLOW_TARGETS".to_owned(), "10.0.0.0/8".to_owned())];
    let world =
        World::with("blocked", Setup { dispatcher_extra: strict, ..Setup::default() }).await?;
    world.subscribe("acme", "private", &["#"]).await?;
    world.in_force().await;
    world.publish("acme", "a", json!(1)).await?;
    let outsider = world.outsider().await?;
    let letter = outsider.stream("doorbell.dead-letters", 1).await?.remove(0);
    assert_eq!(amqp::header(&letter, "doorbell-reason").as_deref(), Some("blocked"));
    let delivery = only_delivery(&letter.data)?;
    let detail = delivery.state.last_failure.unwrap().detail;
    assert!(detail.contains("127.0.0.1") && detail.contains("may not be called"), "{detail}");
    assert!(world.receiver.posts().is_empty());
    assert!((world.metric("doorbell_addresses_blocked_total").await? - 1.0).abs() < 0.1);
    world.finish().await
}

pub(crate) async fn hostile_endpoints_are_survived() -> anyhow::Result<()> {
    let world = World::start("hostile").await?;
    let endless = hostile(Hostile::EndlessBody).await?;
    world.subscribe_as("acme", "endless", subscription(&endless, &["#"])).await?;
    world.ledger.expect_no_full_set("endless");
    let mut slow = subscription(&hostile(Hostile::Hang).await?, &["#"]);
    slow["timeout"] = "2s".into();
    slow["retry"] = json!({"schedule": []});
    world.subscribe_as("acme", "hangs", slow).await?;
    world.ledger.expect_no_full_set("hangs");
    world.subscribe("acme", "healthy", &["#"]).await?;
    let large = subscription(&hostile(Hostile::LargeHeaders).await?, &["other"]);
    let large = world.subscribe_as("acme", "large", large).await?;
    world.in_force().await;
    // As text these headers are more than RabbitMQ takes in one message.
    let path = format!("/v1/tenants/acme/subscriptions/{large}/test");
    let told = world.control.call(Method::POST, &path, Value::Null).await?;
    assert_eq!(told.status, 200, "{told:?}");
    assert_eq!(told.body["outcome"], "delivered");
    assert_eq!(told.body["truncated"], true, "some of the headers are left out");
    assert_eq!(told.body["headers"]["content-length"], "0");
    for n in 0..20 {
        world.publish("acme", "a", json!(n)).await?;
    }
    // A body without end after a 200 is a success all the same.
    world.settle(seconds(60)).await?;
    let delivered = || async {
        world.metric("doorbell_attempts_total{outcome=\"delivered\"}").await.unwrap_or(0.0)
    };
    eventually("endless bodies count as delivered", seconds(30), || async {
        delivered().await >= 40.0
    })
    .await?;
    let timeouts = || async {
        world.metric("doorbell_dead_letters_total{reason=\"exhausted\"}").await.unwrap_or(0.0)
    };
    eventually("hanging endpoints run into their timeout", seconds(30), || async {
        timeouts().await >= 20.0
    })
    .await?;
    world.finish().await
}
