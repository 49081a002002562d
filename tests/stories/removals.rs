//! Payloads that are to be kept no longer, and waits that are to end.

use std::time::Duration;

use doorbell_platform::broker::topology::{DEAD_LETTERS, HELD};
use doorbell_platform::clock;
use doorbell_tests::api::Answer;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, amqp, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const DROPPED: &str = "doorbell_messages_removed_total";

pub(crate) async fn a_removed_event_is_delivered_no_more_and_forgotten() -> anyhow::Result<()> {
    let world = World::start("removed").await?;
    let pausing = world.subscribe("acme", "pausing", &["#"]).await?;
    world.set_status("acme", &pausing, "paused").await?;
    let mut body = json!({"url": world.receiver.url("failing"), "events": ["#"]});
    body["retry"] = json!({"schedule": ["10s", "10s"]});
    world.subscribe_as("acme", "failing", body).await?;
    world.receiver.behave("failing", Behaviour::Status(500));
    world.in_force().await;

    // One is tried, and held; the other is for later.
    let gone = attempt(&world, "gone", json!({})).await?;
    let at = clock::now().plus(seconds(10));
    let later = attempt(&world, "later", json!({"deliver_at": at})).await?;
    assert_eq!((gone.status.as_u16(), later.status.as_u16()), (202, 202));
    eventually("it is held, and tried", seconds(30), || async {
        let held = "doorbell_deliveries_held_total{reason=\"suspended\"}";
        world.metric(held).await.is_ok_and(|held| held >= 1.0)
            && world.receiver.count("failing") == 1
    })
    .await?;
    for id in ["gone", "later"] {
        let path = format!("/v1/tenants/acme/events/{id}");
        let removal = world.control.call(Method::DELETE, &path, Value::Null).await?;
        assert_eq!((removal.status.as_u16(), &removal.body["state"]), (202, &json!("removing")));
        let shown = removal.headers["location"].to_str()?.to_owned();
        let shown = world.control.call(Method::GET, &shown, Value::Null).await?;
        assert_eq!((shown.status.as_u16(), &shown.body), (200, &removal.body));
        // Asked for once more, it is no later.
        let again = world.control.call(Method::DELETE, &path, Value::Null).await?;
        assert_eq!(again.body, removal.body);
    }
    world.in_force().await;
    world.receiver.behave("failing", Behaviour::Status(200));
    world.set_status("acme", &pausing, "active").await?;
    let kept = world.publish("acme", "a.made", json!("kept")).await?;
    world.settle(seconds(60)).await?;
    dropped(&world, 3.0).await?;
    // Those that had begun have ended, each in one way.
    let deliveries = async |state: &str| {
        world.metric(&format!("doorbell_deliveries_total{{state=\"{state}\"}}")).await
    };
    let ended = deliveries("delivered").await? + deliveries("cancelled").await?;
    let begun = world.metric("doorbell_deliveries_begun_total").await?;
    assert!(
        (begun - 4.0).abs() < 0.5 && (begun - ended).abs() < 0.5,
        "{begun} begun, {ended} ended"
    );
    let came = |endpoint: &str| -> Vec<String> {
        world.receiver.posts_to(endpoint).iter().map(|post| post.id.clone()).collect()
    };
    assert_eq!(
        (came("failing"), came("pausing")),
        (vec!["gone".to_owned(), kept.clone()], vec![kept])
    );

    // Its id is taken no more, and a dispatcher that has just started knows that.
    assert_eq!(attempt(&world, "gone", json!({})).await?.status, 409);
    world.kill_and_restart("dispatcher-1").await?;
    world.kill_and_restart("dispatcher-2").await?;
    world.until_all_ready().await?;
    let before = world.metric(DROPPED).await?;
    let outsider = world.outsider().await?;
    outsider.publish("a.made", amqp::event("acme", Some("gone"), &[]), b"1").await?;
    dropped(&world, before + 1.0).await?;
    assert_eq!(world.receiver.count("failing"), 2);

    // Streams forget by age; here soon.
    assert!(has(&world, HELD, "forget-me").await?, "it was held");
    let pattern = "^doorbell\\.(held|dead-letters)$";
    let policy = ["set_policy", "--vhost", &world.vhost, "forget", pattern, "{\"max-age\":\"1s\"}"];
    world.engines.rabbitmq.lock().await.ctl(&policy).await?;
    let redis = world.engines.redis_link().await?;
    let rolled = format!("{}:{{main}}:rolled", world.vhost);
    eventually("nothing of it is left", seconds(120), || async {
        // As if a day had passed.
        let forgot = redis::cmd("DEL").arg(&rolled).query_async::<()>(&mut redis.clone()).await;
        forgot.is_ok() && has(&world, HELD, "forget-me").await.is_ok_and(|has| !has)
    })
    .await?;
    assert!(!has(&world, DEAD_LETTERS, "forget-me").await?);
    world.finish().await
}

pub(crate) async fn an_event_is_removed_in_the_middle_of_its_fan_out() -> anyhow::Result<()> {
    const ENDPOINTS: usize = 60;
    let few = ("DOORBELL_MAX_IN_FLIGHT".to_owned(), "4".to_owned());
    let setup = Setup { dispatchers: 1, dispatcher_extra: vec![few], ..Setup::default() };
    let world = World::with("midway", setup).await?;
    world.subscribe_many("acme", ("slow", ENDPOINTS), &["#"]).await?;
    for n in 0..ENDPOINTS {
        let endpoint = format!("slow-{n}");
        world.receiver.behave(&endpoint, Behaviour::Slow(Duration::from_millis(500)));
        world.ledger.expect_no_full_set(&endpoint);
    }
    world.in_force().await;
    attempt(&world, "gone", json!({})).await?;
    eventually("it is begun", seconds(20), || async { !world.receiver.posts().is_empty() }).await?;
    world.control.call(Method::DELETE, "/v1/tenants/acme/events/gone", Value::Null).await?;
    let cancelled = "doorbell_deliveries_total{state=\"cancelled\"}";
    eventually("the others are cancelled", seconds(20), || async {
        let came = u32::try_from(world.receiver.total()).unwrap_or(u32::MAX);
        let all = f64::from(u32::try_from(ENDPOINTS).unwrap_or_default());
        world.metric(cancelled).await.is_ok_and(|ended| ended + f64::from(came) >= all)
    })
    .await?;
    // Three at a time, and two seconds until it is in force.
    let came = world.receiver.total();
    assert!(came < ENDPOINTS / 2, "{came}");
    world.finish().await
}

pub(crate) async fn what_was_removed_long_ago_can_be_removed_again() -> anyhow::Result<()> {
    let world = World::start("longago").await?;
    let (control, path) = (&world.control, "/v1/tenants/acme/events/old");
    let first = control.call(Method::DELETE, path, Value::Null).await?.body;
    let mut redis = world.engines.redis_link().await?;
    let long_ago = clock::now().minus(seconds(34 * 24 * 3600)).as_millis();
    let mut put = redis::cmd("ZADD");
    put.arg(format!("{}:{{main}}:removals", world.vhost)).arg(long_ago).arg("acme/old");
    put.query_async::<()>(&mut redis).await?;
    let removal = format!("{path}/removal");
    let shown = control.call(Method::GET, &removal, Value::Null).await?.body;
    assert_eq!(shown["state"], "done", "{shown}");
    let again = control.call(Method::DELETE, path, Value::Null).await?.body;
    assert_eq!(again["state"], "removing", "{again}");
    assert!(again["requested_at"].as_str() >= first["requested_at"].as_str(), "{again}");
    world.finish().await
}

pub(crate) async fn a_deleted_tenant_says_when_its_payloads_are_gone() -> anyhow::Result<()> {
    let world = World::start("goodbye").await?;
    let control = &world.control;
    let removal = "/v1/tenants/acme/removal";
    assert_eq!(control.call(Method::GET, removal, Value::Null).await?.status, 404);
    world.subscribe("acme", "hook", &["#"]).await?;
    world.ledger.expect_no_full_set("hook");
    let deleted = control.call(Method::DELETE, "/v1/tenants/acme", Value::Null).await?;
    assert_eq!((deleted.status.as_u16(), &deleted.headers["location"]), (204, &removal.parse()?));
    let shown = control.call(Method::GET, removal, Value::Null).await?.body;
    assert_eq!(shown["state"], "removing", "{shown}");
    // One who comes back is served, and the old ones' time goes on.
    world.subscribe("acme", "again", &["#"]).await?;
    world.in_force().await;
    world.publish("acme", "a.made", json!(1)).await?;
    world.settle(seconds(30)).await?;
    assert_eq!(control.call(Method::GET, removal, Value::Null).await?.body, shown);
    world.finish().await
}

pub(crate) async fn what_waits_longer_than_its_tenants_retention_is_given_up() -> anyhow::Result<()>
{
    let world = World::start("retention").await?;
    for tenant in ["acme", "other"] {
        let endpoint = format!("{tenant}-hook");
        let mut body = json!({"url": world.receiver.url(&endpoint), "events": ["#"]});
        body["retry"] = json!({"schedule": ["1s", "1s", "4s"]});
        world.subscribe_as(tenant, &endpoint, body).await?;
        world.receiver.behave(&endpoint, Behaviour::Status(500));
    }
    world.ledger.expect_no_full_set("acme-hook");
    let limits = json!({"retention": "2s"});
    world.control.call(Method::PUT, "/v1/tenants/acme/limits", limits).await?;
    world.in_force().await;
    world.publish("acme", "a.made", json!(1)).await?;
    world.publish("other", "a.made", json!(1)).await?;
    let dead = |reason: &'static str| {
        let world = &world;
        async move { world.metric(&format!("doorbell_dead_letters_total{{reason=\"{reason}\"}}")).await }
    };
    eventually("acme's is given up", seconds(30), || async {
        dead("expired").await.is_ok_and(|n| n >= 1.0)
    })
    .await?;
    assert!(world.receiver.count("acme-hook") < 4);
    eventually("the other's is exhausted", seconds(30), || async {
        dead("exhausted").await.is_ok_and(|n| n >= 1.0)
    })
    .await?;
    assert_eq!(world.receiver.count("other-hook"), 4);
    world.finish().await
}

/// Publishes what may come or not.
async fn attempt(world: &World, id: &str, more: Value) -> anyhow::Result<Answer> {
    let mut event = json!({"tenant": "acme", "type": "a.made", "id": id, "data": "forget-me"});
    for (name, value) in more.as_object().into_iter().flatten() {
        event[name] = value.clone();
    }
    world.ledger.attempted("acme", "a.made", id, "\"forget-me\"");
    world.producer.call(Method::POST, "/v1/events", event).await
}

/// Waits until so many messages were dropped because their event is being removed.
async fn dropped(world: &World, count: f64) -> anyhow::Result<()> {
    eventually("they are dropped", seconds(60), || async {
        world.metric(DROPPED).await.is_ok_and(|dropped| dropped >= count)
    })
    .await
}

/// Whether a stream has a text in one of its messages.
async fn has(world: &World, stream: &str, text: &str) -> anyhow::Result<bool> {
    let messages = world.outsider().await?.whole_stream(stream).await?;
    let has = |data: &[u8]| data.windows(text.len()).any(|part| part == text.as_bytes());
    Ok(messages.iter().any(|message| has(&message.data)))
}
