//! Bodies of a subscription's own making, and what becomes of those that fail.

use std::pin::pin;

use doorbell_tests::api::{Api, subscription};
use doorbell_tests::wait::seconds;
use doorbell_tests::{World, eventually};
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use reqwest::Method;
use serde_json::{Value, json};

const SLACK: &str = r#"{"text": {{ "Order " ~ data.id ~ " of " ~ data.customer.name }}, "blocks": [{% for item in data.items %}{"type": "section", "text": {"type": "plain_text", "text": {{ item }}}}{% if not loop.last %},{% endif %}{% endfor %}]}"#;

pub(crate) async fn a_template_makes_the_body() -> anyhow::Result<()> {
    let world = World::start("templates").await?;
    let sample = json!({"id": 1, "customer": {"name": "x"}, "items": []});
    let slack = json!({"body": SLACK, "content_type": "application/json", "sample": sample});
    let plain =
        json!({"body": "{{ type }} {{ data.id }}", "content_type": "text/plain; charset=utf-8"});
    for (endpoint, template) in [("slack", slack), ("plain", plain)] {
        let mut body = subscription(&world.receiver.url(endpoint), &["#"]);
        body["template"] = template.clone();
        let answer = create(&world, "acme", body).await?;
        world.receiver.add_secret(endpoint, answer["secret"].as_str().unwrap_or_default());
        assert_eq!(answer["template"]["body"], template["body"]);
    }
    world.in_force().await;
    let order = json!({"id": 7, "customer": {"name": "Ada \"}, <x>"}, "items": ["a", "b\n"]});
    world.publish("acme", "order.paid", order).await?;
    eventually("both come", seconds(20), || async {
        ["slack", "plain"].iter().all(|endpoint| world.receiver.accepted(endpoint) == 1)
    })
    .await?;
    for (endpoint, content_type) in
        [("slack", "application/json"), ("plain", "text/plain; charset=utf-8")]
    {
        let post = world.receiver.posts_to(endpoint).remove(0);
        assert!(post.verified, "it is signed as it is sent");
        assert_eq!(post.headers["content-type"], content_type);
    }
    let sent: Value = serde_json::from_slice(&world.receiver.posts_to("slack")[0].body)?;
    assert_eq!(sent["text"], "Order 7 of Ada \"}, <x>");
    assert_eq!(sent["blocks"][1]["text"]["text"], "b\n");
    assert_eq!(world.receiver.posts_to("plain")[0].body, "order.paid 7");
    world.settle(seconds(30)).await?;
    world.finish().await
}

pub(crate) async fn a_template_that_fails_is_a_failed_attempt() -> anyhow::Result<()> {
    let world = World::start("badtemplate").await?;
    let mut body = subscription(&world.receiver.url("hook"), &["#"]);
    body["template"] = json!({"body": "{{ data.amount / 2 }}", "content_type": "text/plain", "sample": {"amount": 4}});
    body["retry"] = json!({"schedule": ["1s", "1s", "1s", "1s", "1s", "1s", "1s", "1s"]});
    let created = create(&world, "acme", body).await?;
    let path =
        format!("/v1/tenants/acme/subscriptions/{}", created["id"].as_str().unwrap_or_default());
    world.receiver.add_secret("hook", created["secret"].as_str().unwrap_or_default());
    world.in_force().await;
    world.publish("acme", "a.made", json!({"amount": "none"})).await?;
    let failed = "doorbell_attempts_total{outcome=\"template\"}";
    eventually("it fails, twice at least", seconds(20), || async {
        world.metric(failed).await.is_ok_and(|count| count >= 2.0)
    })
    .await?;
    assert_eq!(world.receiver.count("hook"), 0);
    let test = world.control.call(Method::POST, &format!("{path}/test"), Value::Null).await?;
    assert_eq!(test.body["outcome"], "template");
    assert!(test.body["detail"].as_str().is_some_and(|detail| detail.contains("failed")));
    // Once the template is right, the next attempt makes it.
    let right = json!({"template": {"body": "{{ data.amount }}!", "content_type": "text/plain"}});
    assert_eq!(world.control.call(Method::PATCH, &path, right).await?.status, 200);
    eventually("it comes", seconds(20), || async { world.receiver.accepted("hook") == 1 }).await?;
    assert_eq!(world.receiver.posts_to("hook")[0].body, "none!");
    world.settle(seconds(30)).await?;
    world.finish().await
}

pub(crate) async fn a_template_is_tried_before_anyone_relies_on_it() -> anyhow::Result<()> {
    let world = World::start("preview").await?;
    let preview =
        |body: Value| world.control.call(Method::POST, "/v1/tenants/acme/templates/preview", body);
    let event = json!({"data": {"id": 7, "customer": {"name": "Ada"}, "items": ["a"]}});
    let answer = preview(json!({"template": {"body": SLACK}, "event": event})).await?;
    assert_eq!(answer.body["content_type"], "application/json");
    let made: Value = serde_json::from_str(answer.body["body"].as_str().unwrap_or_default())?;
    assert_eq!(made["text"], "Order 7 of Ada");
    for (template, pointer) in [
        (json!({"body": "{{ data.id / 2 }}", "content_type": "text/plain"}), "/template/body"),
        (json!({"body": "{{ 'x' * 100000000 }}", "content_type": "text/plain"}), "/template/body"),
        (json!({"body": "{% set a = 1 %}", "content_type": "text/plain"}), "/template/body"),
        (
            json!({"body": "{\"a\": \"{{ data.id }}\"}", "content_type": "json"}),
            "/template/content_type",
        ),
        (json!({"body": "x", "content_type": "text/plain", "colour": 1}), "/template/colour"),
        (json!({"content_type": "text/plain"}), "/template/body"),
        (json!("x"), "/template"),
    ] {
        let answer = preview(json!({ "template": template })).await?;
        assert_eq!(
            (answer.status.as_u16(), Api::pointers(&answer)),
            (422, vec![pointer.to_owned()]),
            "{template}"
        );
        let mut body = subscription(&world.receiver.url("hook"), &["#"]);
        body["template"] = template.clone();
        let list = "/v1/tenants/acme/subscriptions";
        let answer = world.control.call(Method::POST, list, body).await?;
        assert_eq!(
            (answer.status.as_u16(), Api::pointers(&answer)),
            (422, vec![pointer.to_owned()]),
            "{template}"
        );
    }
    world.finish().await
}

/// What takes most of the steps that a template may take, and makes a body.
const HARD: &str = "{% for a in data.list %}{% for b in data.list %}{% if data.big|sort|reverse == a %}{% endif %}{% endfor %}{% endfor %}{{ data.n }}";
/// Subscriptions with such a template, and events for each.
const HARD_ONES: usize = 5;
const EVENTS: usize = 8;

pub(crate) async fn hard_templates_keep_nobody_waiting() -> anyhow::Result<()> {
    let world = World::start("hardtemplates").await?;
    let (list, big) = (vec![1; 60], vec![1; 400]);
    let hard_event = |n: usize| json!({ "n": n, "list": list, "big": big });
    let hard = json!({"body": HARD, "content_type": "text/plain", "sample": {"list": [], "big": [], "n": 0}});
    let easy = json!({"body": "{{ data.n }}!", "content_type": "text/plain"});
    for (tenant, endpoint, template) in (0..HARD_ONES)
        .map(|n| ("hard", format!("hard-{n}"), &hard))
        .chain([("easy", "easy".to_owned(), &easy)])
    {
        let mut body = subscription(&world.receiver.url(&endpoint), &["#"]);
        body["template"] = template.clone();
        let answer = create(&world, tenant, body).await?;
        world.receiver.add_secret(&endpoint, answer["secret"].as_str().unwrap_or_default());
    }
    world.in_force().await;
    let easy_comes = async |n: usize| {
        world.publish("easy", "a.made", json!({ "n": n })).await?;
        eventually("an easy one comes", seconds(30), || async {
            world.receiver.accepted("easy") > n
        })
        .await
    };
    easy_comes(0).await?;
    for n in 0..EVENTS {
        world.publish("hard", "a.made", hard_event(n)).await?;
    }
    let hard_ones =
        || -> usize { (0..HARD_ONES).map(|n| world.receiver.accepted(&format!("hard-{n}"))).sum() };
    eventually("the hard ones have begun", seconds(60), || async { hard_ones() > 0 }).await?;
    for n in 1..=40 {
        easy_comes(n).await?;
    }
    let done = hard_ones();
    assert!(done < HARD_ONES * EVENTS / 2, "{done} hard ones went before 40 easy ones");
    let held = world.metric("doorbell_deliveries_held_total{reason=\"template\"}").await?;
    assert!(held > 0.0, "they do not wait in hand");
    previews_come_in_turn(&world, (&hard, &easy), &hard_event(1)).await?;
    eventually("the hard ones come, too", seconds(120), || async {
        hard_ones() == HARD_ONES * EVENTS
    })
    .await?;
    world.settle(seconds(60)).await?;
    world.finish().await
}

/// Nobody waits at the control-plane, either.
async fn previews_come_in_turn(
    world: &World,
    (hard, easy): (&Value, &Value),
    data: &Value,
) -> anyhow::Result<()> {
    let preview = async |tenant: &str, template: &Value| {
        let event = json!({ "data": data });
        let path = format!("/v1/tenants/{tenant}/templates/preview");
        let body = json!({"template": template, "event": event});
        let answer = world.control.call(Method::POST, &path, body).await?;
        anyhow::ensure!(answer.status == 200, "{}", answer.body);
        anyhow::Ok(())
    };
    preview("easy", easy).await?;
    let mut hard_ones = FuturesUnordered::new();
    hard_ones.extend((0..20).map(|_| preview("hard", hard)));
    hard_ones.next().await.transpose()?;
    let easy_ones = async {
        for _ in 0..20 {
            preview("easy", easy).await?;
        }
        anyhow::Ok(())
    };
    let mut easy_ones = pin!(easy_ones);
    let mut meanwhile = 0;
    loop {
        tokio::select! {
            done = &mut easy_ones => break done?,
            Some(done) = hard_ones.next() => {
                done?;
                meanwhile += 1;
            }
        }
    }
    assert!(meanwhile < 10, "{meanwhile} hard previews went before 20 easy ones");
    Ok(())
}

/// A subscription of which the story itself says what comes.
async fn create(world: &World, tenant: &str, body: Value) -> anyhow::Result<Value> {
    let list = format!("/v1/tenants/{tenant}/subscriptions");
    let answer = world.control.call(Method::POST, &list, body).await?;
    anyhow::ensure!(answer.status == 201, "{}", answer.body);
    Ok(answer.body)
}
