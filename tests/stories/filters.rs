//! Filters: what is not wanted is not delivered, and what is wanted always is.

use doorbell_tests::api::{Api, subscription};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, World, eventually};
use reqwest::Method;
use serde_json::{Value, json};

pub(crate) async fn only_what_a_filter_wants_is_delivered() -> anyhow::Result<()> {
    let world = World::start("filters").await?;
    let conditions = json!({"data": {"amount": {"$gte": 100}, "tags": "vip"}, "type": {"$startsWith": "order."}});
    let mut ids = Vec::new();
    for (endpoint, filter) in [
        ("large", conditions.clone()),
        ("others", json!({"$not": conditions})),
        ("all", Value::Null),
    ] {
        let mut body = subscription(&world.receiver.url(endpoint), &["#"]);
        body["filter"] = filter.clone();
        let id = world.subscribe_as("acme", endpoint, body).await?;
        world.ledger.expect_no_full_set(endpoint);
        let shown = world.control.call(Method::GET, &path(&id), Value::Null).await?;
        assert_eq!(shown.body["filter"], filter);
        ids.push(id);
    }
    world.in_force().await;
    // One that fails at first is not asked again whether it is wanted.
    world.receiver.behave("large", Behaviour::FailFirst(1, 500));
    let counts = || ["large", "others", "all"].map(|endpoint| world.receiver.accepted(endpoint));
    for (event_type, data) in [
        ("order.paid", json!({"amount": 100, "tags": ["new", "vip"]})),
        ("order.paid", json!({"amount": 99.9, "tags": ["vip"]})),
        ("order.paid", json!({"amount": 1000, "tags": []})),
        ("refund.paid", json!({"amount": 100, "tags": "vip"})),
        ("order.paid", json!([1, 2])),
        ("order.paid", json!({"amount": "100", "tags": "vip"})),
    ] {
        world.publish("acme", event_type, data).await?;
    }
    eventually("each gets its own", seconds(20), || async { counts() == [1, 5, 6] }).await?;
    assert_eq!(world.metric("doorbell_deliveries_filtered_total").await?, 6.0);

    // A number beyond all bounds can't be looked into: such an event is for everyone.
    let body = r#"{"tenant":"acme","type":"order.paid","data":{"amount":1e999}}"#;
    let headers = [("content-type", "application/json")];
    let answer = world.producer.raw(Method::POST, "/v1/events", &headers, body).await?;
    let id = answer.body["id"].as_str().unwrap_or_default();
    world.ledger.accepted("acme", "order.paid", id, r#"{"amount":1e999}"#);
    eventually("it comes to all", seconds(20), || async { counts() == [2, 6, 7] }).await?;

    // A change is in force within two seconds, and a filter is written whole.
    let less = json!({"filter": {"data": {"amount": {"$lt": 5}}}});
    let changed = world.control.call(Method::PATCH, &path(&ids[0]), less.clone()).await?;
    assert_eq!((changed.status.as_u16(), &changed.body["filter"]), (200, &less["filter"]));
    let none = world.control.call(Method::PATCH, &path(&ids[1]), json!({"filter": null})).await?;
    assert_eq!(none.body["filter"], Value::Null);
    world.in_force().await;
    world.publish("acme", "order.paid", json!({"amount": 4})).await?;
    world.publish("acme", "order.paid", json!({"amount": 100, "tags": "vip"})).await?;
    eventually("by the new ones", seconds(20), || async { counts() == [3, 8, 9] }).await?;
    world.settle(seconds(30)).await?;
    world.finish().await
}

/// Filters that take long to ask, for events with long lists.
const HARD_ONES: usize = 700;
const HARD_EVENTS: usize = 30;

pub(crate) async fn hard_filters_keep_nobody_waiting() -> anyhow::Result<()> {
    let world = World::start("hardfilters").await?;
    world.subscribe("easy", "easy", &["#"]).await?;
    world.subscribe("hard", "hard", &["#"]).await?;
    let mut hard = subscription(&world.receiver.url("never"), &["#"]);
    let numbers: Vec<usize> = (2..99).collect();
    hard["filter"] = json!({"data": {"$in": numbers}});
    let lines = format!("{hard}\n").repeat(HARD_ONES);
    world.control.lines("/v1/tenants/hard/subscriptions/bulk", lines).await?;
    world.in_force().await;
    let easy_comes = async |n: usize| {
        world.publish("easy", "a.made", json!(n)).await?;
        eventually("an easy one comes", seconds(30), || async {
            world.receiver.accepted("easy") > n
        })
        .await
    };
    easy_comes(0).await?;
    for _ in 0..HARD_EVENTS {
        world.publish("hard", "a.made", json!(vec![1; 900])).await?;
    }
    let hard_ones = || world.receiver.accepted("hard");
    eventually("the hard ones have begun", seconds(60), || async { hard_ones() > 0 }).await?;
    for n in 1..=40 {
        easy_comes(n).await?;
    }
    let done = hard_ones();
    eprintln!("{done} of {HARD_EVENTS} hard ones went before 40 easy ones");
    assert!(done < HARD_EVENTS / 2, "{done} hard ones went before 40 easy ones");
    // Those that would wait for many others do so aside.
    let aside = world.metric("doorbell_handoffs_total{queue=\"sideline\"}").await?;
    assert!(aside > 0.5, "{aside} went aside");
    world.settle(seconds(120)).await?;
    assert_eq!((hard_ones(), world.receiver.count("never")), (HARD_EVENTS, 0));
    world.finish().await
}

pub(crate) async fn a_filter_can_be_tried_before_anyone_relies_on_it() -> anyhow::Result<()> {
    let world = World::start("filtertest").await?;
    let try_on = "/v1/tenants/acme/filters/test";
    let ask = |body: Value| world.control.call(Method::POST, try_on, body);
    let event = json!({"type": "order.paid", "data": {"amount": 99}});
    let filter = json!({"data": {"amount": {"$gt": 100}}});
    let answer = ask(json!({"filter": filter, "event": event})).await?;
    let why = json!({"condition": "/data/amount/$gt", "value": "/data/amount", "detail": "99 is not greater than 100"});
    assert_eq!(answer.body, json!({"matches": false, "mismatch": why}));
    let answer = ask(json!({"filter": {"type": "order.paid"}, "event": event})).await?;
    assert_eq!(answer.body, json!({"matches": true, "mismatch": null}));
    let answer = ask(json!({"filter": {"data": {"$like": 1}}, "event": {}})).await?;
    assert_eq!(answer.status, 422);
    assert_eq!(Api::pointers(&answer), ["/event/data", "/filter/data/$like"]);

    let mut body = subscription(&world.receiver.url("hook"), &["#"]);
    for (wrong, pointer) in [
        (json!({"amount": 1}), "/filter/amount"),
        (json!([]), "/filter"),
        (json!({}), "/filter"),
        (json!({"data": {"a": "x".repeat(20_000)}}), "/filter"),
    ] {
        body["filter"] = wrong;
        let list = "/v1/tenants/acme/subscriptions";
        let answer = world.control.call(Method::POST, list, body.clone()).await?;
        assert_eq!(
            (answer.status.as_u16(), Api::pointers(&answer)),
            (422, vec![pointer.to_owned()])
        );
    }
    world.finish().await
}

fn path(id: &str) -> String {
    format!("/v1/tenants/acme/subscriptions/{id}")
}
