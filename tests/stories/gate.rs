//! One endpoint's trouble is its own: it is left alone, and nobody waits for it.

use std::time::Duration;

use doorbell_common::ids::{SlotNumber, SubscriptionId};
use doorbell_common::rate::{RateLimit, Turn};
use doorbell_platform::clock;
use doorbell_platform::health::Health;
use doorbell_platform::store::Store;
use doorbell_platform::tls::Trust;
use doorbell_tests::api::subscription;
use doorbell_tests::engines;
use doorbell_tests::load::publish_many;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, eventually, within};
use serde_json::json;
use tokio::time::Instant;

/// Enough tenants that some share a queue with any other.
const NEIGHBOURS: u32 = 48;
/// Events for each of them.
const EACH: usize = 5;
/// Longer than these stories: what must not wait for an endpoint that takes so long, does not.
pub(crate) const HANGS: Duration = seconds(25);

pub(crate) async fn an_endpoint_that_is_down_is_left_alone_and_then_served() -> anyhow::Result<()> {
    const EVENTS: u32 = 300;
    let world = World::start("breaker").await?;
    world.receiver.behave("down", Behaviour::Status(500));
    world.subscribe("acme", "down", &["#"]).await?;
    world.subscribe("acme", "well", &["#"]).await?;
    world.in_force().await;
    for n in 0..EVENTS {
        world.publish("acme", "a", json!(n)).await?;
    }
    let held = || async {
        world.metric("doorbell_deliveries_held_total{reason=\"breaker\"}").await.unwrap_or(0.0)
    };
    let open = || async { world.metric("doorbell_breakers_open").await.unwrap_or(0.0) };
    eventually("both dispatchers leave it alone", seconds(30), || async { open().await > 1.5 })
        .await?;
    eventually("most are held", seconds(30), || async { held().await >= 200.0 }).await?;
    eventually("the others are served", seconds(30), || async {
        world.receiver.accepted("well") == EVENTS as usize
    })
    .await?;
    let attempts = world.receiver.count("down");
    assert!(attempts < EVENTS as usize, "{attempts} attempts at an endpoint that is down");
    world.receiver.behave("down", Behaviour::Status(200));
    world.settle(seconds(120)).await?;
    eprintln!("{EVENTS} events for an endpoint that was down: {attempts} attempts meanwhile");
    eventually("no breaker is open", seconds(10), || async { open().await < 0.5 }).await?;
    assert_eq!(world.duplicates().await?, 0);
    let dead = world.metric("doorbell_dead_letters_total{reason=\"exhausted\"}").await?;
    assert!(dead < 0.5, "attempts were burnt: {dead} were given up");
    world.finish().await
}

pub(crate) async fn an_endpoint_that_asks_for_it_is_left_alone() -> anyhow::Result<()> {
    let world = World::with("throttled", Setup { dispatchers: 1, ..Setup::default() }).await?;
    world.receiver.behave("asks", Behaviour::RetryAfter(3));
    world.subscribe("acme", "asks", &["#"]).await?;
    world.in_force().await;
    world.publish("acme", "a", json!(0)).await?;
    eventually("it has asked", seconds(10), || async { world.receiver.count("asks") == 1 }).await?;
    eventually("and that is known", seconds(10), || async {
        world.metric("doorbell_attempts_total{outcome=\"throttled\"}").await.unwrap_or(0.0) > 0.5
    })
    .await?;
    world.receiver.behave("asks", Behaviour::Status(200));
    for n in 1..20 {
        world.publish("acme", "a", json!(n)).await?;
    }
    world.settle(seconds(60)).await?;
    let posts = world.receiver.posts_to("asks");
    let pause = posts[1].at.duration_since(posts[0].at);
    assert!(pause >= seconds(3), "it was called again after {pause:?}");
    let held = world.metric("doorbell_deliveries_held_total{reason=\"throttled\"}").await?;
    assert!(held >= 19.0, "{held} were held");
    world.finish().await
}

pub(crate) async fn an_endpoint_that_hangs_holds_nobody_up() -> anyhow::Result<()> {
    let world = World::start("hanging").await?;
    world.receiver.behave("hangs", Behaviour::Slow(HANGS));
    let mut body = subscription(&world.receiver.url("hangs"), &["#"]);
    body["timeout"] = "30s".into();
    world.subscribe_as("stuck", "hangs", body).await?;
    beside(&world).await?;
    publish_many(&world, "stuck", 1500).await?;
    neighbours_are_served(&world).await?;
    let stuck = world.receiver.posts_to("hangs").len();
    assert!(world.receiver.accepted("hangs") == 0 && stuck <= 64, "{stuck} POSTs to it");
    world.receiver.behave("hangs", Behaviour::Status(200));
    world.settle(seconds(180)).await?;
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}

pub(crate) async fn a_flood_for_a_slow_endpoint_holds_nobody_up() -> anyhow::Result<()> {
    const FLOOD: u64 = 5000;
    let world = World::start("flood").await?;
    world.receiver.behave("slow", Behaviour::Slow(seconds(1)));
    world.subscribe("flood", "slow", &["#"]).await?;
    beside(&world).await?;
    publish_many(&world, "flood", FLOOD).await?;
    neighbours_are_served(&world).await?;
    let meanwhile = world.receiver.accepted("slow");
    assert!(meanwhile < 4000, "{meanwhile} of the flood had been served: it proves nothing");
    let held = world.metric("doorbell_deliveries_held_total{reason=\"busy\"}").await?;
    assert!(held > 1000.0, "{held} were held");
    world.receiver.behave("slow", Behaviour::Status(200));
    world.settle(seconds(400)).await?;
    assert_eq!(world.duplicates().await?, 0);
    eprintln!("a flood of {FLOOD} for a slow endpoint: neighbours were served after {meanwhile}");
    world.finish().await
}

pub(crate) async fn who_is_held_for_a_busy_endpoint_comes_back_at_its_turn() -> anyhow::Result<()> {
    const EVENTS: u32 = 2000;
    let world = World::start("busy").await?;
    world.receiver.behave("busy", Behaviour::Slow(Duration::from_millis(40)));
    let mut body = subscription(&world.receiver.url("busy"), &["#"]);
    body["max_concurrency"] = 4.into();
    world.subscribe_as("acme", "busy", body).await?;
    world.in_force().await;
    publish_many(&world, "acme", EVENTS.into()).await?;
    world.settle(seconds(180)).await?;
    let held = world.metric("doorbell_deliveries_held_total{reason=\"busy\"}").await?;
    let each = held / f64::from(EVENTS);
    assert!(each > 0.5, "each was held {each:.2} times: it proves nothing");
    assert!(each < 1.8, "each was held {each:.2} times");
    eprintln!(
        "{EVENTS} events for an endpoint that takes few at a time: each was held {each:.2} times"
    );
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}

/// Healthy tenants beside it.
pub(crate) async fn beside(world: &World) -> anyhow::Result<()> {
    for n in 0..NEIGHBOURS {
        let name = format!("neighbour-{n}");
        world.subscribe(&name, &name, &["#"]).await?;
    }
    world.in_force().await;
    Ok(())
}

/// All of them get all of theirs, long before an endpoint that hangs would answer.
pub(crate) async fn neighbours_are_served(world: &World) -> anyhow::Result<()> {
    let served = |n| world.receiver.accepted(&format!("neighbour-{n}"));
    let before: Vec<usize> = (0..NEIGHBOURS).map(served).collect();
    for n in 0..NEIGHBOURS {
        for event in 0..EACH {
            world.publish(&format!("neighbour-{n}"), "a", json!(event)).await?;
        }
    }
    within(HANGS * 4 / 5, "all neighbours are served", || async {
        (0..NEIGHBOURS).zip(&before).all(|(n, before)| served(n) == before + EACH)
    })
    .await
}

pub(crate) async fn a_rate_limit_holds_over_two_dispatchers() -> anyhow::Result<()> {
    const EVENTS: u64 = 400;
    const PER_SECOND: usize = 50;
    const BURST: usize = 10;
    /// So late a POST may be on a busy machine, after it got its turn.
    const LATE_SECONDS: usize = 1;
    let world = World::start("rate").await?;
    let mut body = subscription(&world.receiver.url("limited"), &["#"]);
    body["rate_limit"] = json!({ "per_second": PER_SECOND, "burst": BURST });
    world.subscribe_as("acme", "limited", body).await?;
    world.subscribe("acme", "free", &["#"]).await?;
    world.in_force().await;
    publish_many(&world, "acme", EVENTS).await?;
    eventually("nobody else waits for it", seconds(20), || async {
        world.receiver.accepted("free") == usize::try_from(EVENTS).unwrap_or_default()
    })
    .await?;
    let left = world.ledger.missing(&world.receiver).len();
    world.settle(seconds(60)).await?;
    let posts = world.receiver.posts_to("limited");
    assert_eq!(posts.len(), usize::try_from(EVENTS)?, "none failed, none came twice");
    assert!(posts.iter().all(|post| post.attempt == 1), "no attempt was spent on waiting");
    let at: Vec<_> = posts.iter().map(|post| post.at).collect();
    let most = (0..at.len()).map(|i| count_within(&at[i..], seconds(1))).max().unwrap_or_default();
    let took = at[at.len() - 1].duration_since(at[0]);
    eprintln!(
        "{EVENTS} at {PER_SECOND}/s (burst {BURST}): at most {most} in any second, all in {took:.1?}; {left} were left when the others had theirs"
    );
    // Turns are given by the clock of Redis; what is late on its way comes closer to the next.
    for whole in 1..=8 {
        let most = (0..at.len()).map(|i| count_within(&at[i..], seconds(whole))).max();
        let turns = PER_SECOND * usize::try_from(whole)? + BURST;
        assert!(most <= Some(turns + PER_SECOND * LATE_SECONDS), "{most:?} within {whole} s");
    }
    assert!(left > 0, "the limit held nothing back");
    let held = world.metric("doorbell_deliveries_held_total{reason=\"rate_limit\"}").await?;
    assert!(held > 0.5, "none was held");
    world.finish().await
}

pub(crate) async fn turns_are_given_by_one_clock_for_all() -> anyhow::Result<()> {
    const ASKED_BY_EACH: u64 = 300;
    let limit = RateLimit { per_second: 100, burst: 7 };
    let engines = engines::shared().await?;
    let url = [engines.redis_url.clone()];
    let id = SubscriptionId::new(SlotNumber(0), clock::random_bits());
    let ask_often = |patience: Duration| {
        let (url, id) = (&url, &id);
        async move {
            let registry = prometheus::Registry::new();
            let health = Health::new(&registry, &[])?;
            let store = Store::new(url, &Trust::default(), "turns", (health, &registry))?;
            let (mut turns, mut sent_away) = (Vec::new(), 0);
            for _ in 0..ASKED_BY_EACH {
                let asked = Instant::now();
                match store.ask_for_turn(id, limit, patience).await? {
                    Turn::After(wait) => turns.push((asked + wait, Instant::now() + wait)),
                    Turn::AskAgainAfter(_) => sent_away += 1,
                }
            }
            anyhow::Ok((turns, sent_away))
        }
    };
    let (some, others) =
        tokio::try_join!(ask_often(Duration::ZERO), ask_often(Duration::from_millis(300)))?;
    let sent_away: u64 = some.1 + others.1;
    // Each turn came after the first of its times, and before the second.
    let turns = [some.0, others.0].concat();
    let first = turns.iter().map(|turn| turn.0).min().unwrap();
    let last = turns.iter().map(|turn| turn.1).max().unwrap();
    let most = (last - first).div_duration_f64(Duration::from_secs(1))
        * f64::from(limit.per_second)
        + f64::from(limit.burst);
    eprintln!("{} turns where {most:.1} may be, {sent_away} sent away", turns.len());
    assert!(f64::from(u32::try_from(turns.len())?) <= most, "{turns:?}");
    assert!(turns.len() > 30, "the patient wait 300 ms: those are 30, and the burst");
    assert!(sent_away > 0, "nobody came too early");
    Ok(())
}

/// How many of these times lie within so long after the first of them.
fn count_within(at: &[Instant], time: Duration) -> usize {
    at.iter().take_while(|later| **later < at[0] + time).count()
}

pub(crate) async fn a_subscription_that_only_fails_is_disabled_in_the_end() -> anyhow::Result<()> {
    let mut setup = Setup::default().without_breaker();
    setup.extra.push(("DOORBELL_DISABLE_AFTER".to_owned(), "6s".to_owned()));
    setup.extra.push(("DOORBELL_OPERATIONAL_TENANT".to_owned(), "operators".to_owned()));
    let world = World::with("failing", setup).await?;
    world.receiver.behave("broken", Behaviour::Status(500));
    world.receiver.behave("gone", Behaviour::Status(410));
    world.receiver.behave("shaky", Behaviour::FailFirst(1, 500));
    let patient = |endpoint: &str| {
        let mut body = subscription(&world.receiver.url(endpoint), &["#"]);
        body["retry"] = json!({ "fixed": { "delay": "1s", "attempts": 100 } });
        body
    };
    let broken = world.subscribe_as("acme", "broken", patient("broken")).await?;
    let shaky = world.subscribe_as("acme", "shaky", patient("shaky")).await?;
    let gone = world.subscribe("gone", "gone", &["#"]).await?;
    world.ledger.expect_no_full_set("gone");
    world.subscribe("operators", "bell", &["doorbell.subscription.*"]).await?;
    world.in_force().await;
    let show = |id: &str| {
        let path = format!("/v1/tenants/acme/subscriptions/{id}");
        async {
            Ok::<_, anyhow::Error>(
                world.control.call(reqwest::Method::GET, &{ path }, json!(null)).await?.body,
            )
        }
    };
    for n in 0..12 {
        world.publish("acme", "a", json!(n)).await?;
        world.publish("gone", "a", json!(n)).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eventually("it is disabled", seconds(40), || async {
        show(&broken).await.is_ok_and(|body| body["disabled_reason"] == "failing")
    })
    .await?;
    assert_eq!(show(&shaky).await?["status"], "active");
    let disabled =
        world.metric("doorbell_subscriptions_disabled_total{reason=\"failing\"}").await?;
    assert!((disabled - 1.0).abs() < 0.1, "{disabled}");
    // The operators are told of both, once.
    let told = || world.receiver.posts_to("bell");
    eventually("the operators know", seconds(20), || async { told().len() >= 2 }).await?;
    for post in told() {
        let body: serde_json::Value = serde_json::from_slice(&post.body)?;
        let (id, tenant, reason) = if post.id.contains(&gone) {
            (&gone, "gone", "gone")
        } else {
            (&broken, "acme", "failing")
        };
        let at = body["timestamp"].as_str().unwrap_or_default();
        let data = json!({
            "tenant": tenant, "subscription": id, "name": null, "reason": reason, "disabled_at": at,
        });
        let event_type = "doorbell.subscription.disabled";
        world.ledger.accepted("operators", event_type, &post.id, &data.to_string());
    }
    // What waits for it is kept, and comes when it is back.
    world.receiver.behave("broken", Behaviour::Status(200));
    world.set_status("acme", &broken, "active").await?;
    world.settle(seconds(60)).await?;
    assert_eq!(told().len(), 2);
    world.finish().await
}
