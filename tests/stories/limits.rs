//! What the operator allows a tenant, and what becomes of more.

use doorbell_tests::api::{Answer, Api, subscription};
use doorbell_tests::wait::seconds;
use doorbell_tests::{World, amqp, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const LIMITS: &str = "/v1/tenants/acme/limits";

pub(crate) async fn a_tenant_gets_what_it_is_allowed() -> anyhow::Result<()> {
    let world = World::start("limits").await?;
    let control = &world.control;
    world.subscribe("acme", "hook", &["#"]).await?;
    world.subscribe("other", "theirs", &["#"]).await?;
    let mut limits = json!({"max_subscriptions": 2, "max_event_bytes": 20, "events_per_second": 5});
    limits["retention"] = "1d".into();
    let set = control.call(Method::PUT, LIMITS, limits.clone()).await?;
    assert_eq!((set.status.as_u16(), &set.body), (200, &limits));
    assert_eq!(control.call(Method::GET, LIMITS, Value::Null).await?.body, limits);
    world.in_force().await;

    // Subscriptions, one by one or many at once.
    let body = subscription(&world.receiver.url("second"), &["never"]);
    let list = "/v1/tenants/acme/subscriptions";
    assert_eq!(control.call(Method::POST, list, body.clone()).await?.status, 201);
    let refused = control.call(Method::POST, list, body.clone()).await?;
    assert_eq!(refused.status, 409, "{refused:?}");
    let many = control.lines(&format!("{list}/bulk"), format!("{body}\n{body}")).await?;
    assert_eq!(many.last(), Some(&json!({"created": 0, "refused": 2})));
    let mut more = limits.clone();
    more["max_subscriptions"] = 3.into();
    control.call(Method::PUT, LIMITS, more).await?;
    let many = control.lines(&format!("{list}/bulk"), format!("{body}\n{body}")).await?;
    assert_eq!(
        many.last(),
        Some(&json!({"created": 1, "refused": 1})),
        "as many as there is room for"
    );
    control.call(Method::PUT, LIMITS, limits.clone()).await?;

    // Of a tenant that is not there nothing has a version, and none is made by the way.
    let absent = json!({"tenant": "absent", "subscriptions": []});
    for (path, body) in [("/v1/tenants/absent/limits", json!({})), ("/v1/config", absent)] {
        let headers = [("content-type", "application/json"), ("if-match", "*")];
        let refused = control.raw(Method::PUT, path, &headers, body.to_string()).await?;
        assert_eq!(refused.status, 412, "{refused:?}");
    }
    let absent = control.call(Method::GET, "/v1/tenants/absent", Value::Null).await?;
    assert_eq!(absent.status, 404, "{absent:?}");

    // Nobody creates and deletes all day: something stays of each.
    nobody_creates_all_day(control, &body).await?;

    // Size, over HTTP and over AMQP.
    assert_eq!(publish(&world, &"x".repeat(30)).await?.status, 413);
    let outsider = world.outsider().await?;
    let large = amqp::event("acme", Some("large"), &[]);
    outsider.publish("a.made", large, format!("\"{}\"", "x".repeat(30)).as_bytes()).await?;
    eventually("it is rejected", seconds(20), || async {
        outsider.depth("doorbell.rejected").await.is_ok_and(|depth| depth == 1)
    })
    .await?;
    let rejected = outsider.take("doorbell.rejected").await?.unwrap();
    let why = amqp::header(&rejected, "doorbell-reason").unwrap();
    assert!(why.contains("more than this tenant"), "{why}");

    // Pace: what is refused was not taken in, and others do not notice.
    let answers = futures_util::future::join_all((0..60).map(|_| publish(&world, "x"))).await;
    let answers: Vec<Answer> = answers.into_iter().collect::<Result<_, _>>()?;
    let accepted = answers.iter().filter(|answer| answer.status == 202).count();
    let refused = answers.iter().find(|answer| answer.status == 429).unwrap();
    assert!((10..=30).contains(&accepted), "{accepted} of 60 at once, where 10 may be");
    assert_eq!(refused.headers["retry-after"], "1");
    for answer in answers.iter().filter(|answer| answer.status == 202) {
        let id = answer.body["id"].as_str().unwrap_or_default();
        world.ledger.accepted("acme", "a.made", id, "\"x\"");
    }
    for n in 0..40 {
        world.publish("other", "a.made", json!(n)).await?;
    }

    // Nobody sets his own, nor gets rid of them.
    let key = json!({"label": "theirs", "scopes": ["admin"]});
    let made = control.call(Method::POST, "/v1/tenants/acme/keys", key).await?.body;
    let theirs = control.with_key(made["key"].as_str().unwrap());
    assert_eq!(theirs.call(Method::GET, LIMITS, Value::Null).await?.body, limits);
    assert_eq!(theirs.call(Method::PUT, LIMITS, json!({})).await?.status, 403);
    let wrong = control.call(Method::PUT, LIMITS, json!({"max_subscriptions": 0, "x": 1})).await?;
    assert_eq!(Api::pointers(&wrong), ["/max_subscriptions", "/x"]);
    assert_eq!(control.call(Method::PUT, LIMITS, json!({})).await?.status, 200);
    assert_eq!(control.call(Method::POST, list, body).await?.status, 201);
    world.in_force().await;
    let id =
        publish(&world, &"y".repeat(30)).await?.body["id"].as_str().unwrap_or_default().to_owned();
    world.ledger.accepted("acme", "a.made", &id, &format!("\"{}\"", "y".repeat(30)));
    world.settle(seconds(30)).await?;
    world.finish().await
}

async fn nobody_creates_all_day(control: &Api, body: &Value) -> anyhow::Result<()> {
    let limits = json!({"max_subscriptions": 200});
    control.call(Method::PUT, "/v1/tenants/churning/limits", limits).await?;
    let list = "/v1/tenants/churning/subscriptions";
    let lines = vec![body.to_string(); 200].join("\n");
    for round in 0..11 {
        let mut answers = control.lines(&format!("{list}/bulk"), lines.clone()).await?;
        if round == 10 {
            assert_eq!(answers.pop(), Some(json!({"created": 0, "refused": 200})));
            assert_eq!(answers[0]["status"], 429, "{}", answers[0]);
            break;
        }
        assert_eq!(answers.pop(), Some(json!({"created": 200, "refused": 0})), "round {round}");
        let ids: Vec<String> =
            answers.iter().map(|answer| json!({ "id": answer["id"] }).to_string()).collect();
        let deleted = control.lines(&format!("{list}/bulk/delete"), ids.join("\n")).await?;
        assert_eq!(deleted.last(), Some(&json!({"deleted": 200, "refused": 0})));
    }
    let refused = control.call(Method::POST, list, body.clone()).await?;
    assert_eq!(refused.status, 429, "{refused:?}");
    let seconds: u32 = refused.headers["retry-after"].to_str()?.parse()?;
    assert!((80_000..=86_400).contains(&seconds), "{seconds} s");
    let mut entry = body.clone();
    entry["name"] = "only".into();
    let document = json!({"tenant": "churning", "subscriptions": [entry]});
    let refused = control.call(Method::PUT, "/v1/config", document).await?;
    assert_eq!(refused.status, 429, "{refused:?}");
    Ok(())
}

async fn publish(world: &World, data: &str) -> anyhow::Result<Answer> {
    let event = json!({"tenant": "acme", "type": "a.made", "data": data});
    world.producer.call(Method::POST, "/v1/events", event).await
}
