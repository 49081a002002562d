//! The catalogue of event types: what is not in it, or not as it says, is told or refused.

use anyhow::Context as _;
use doorbell_tests::api::{Answer, Api, subscription};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Setup, World, amqp, eventually};
use reqwest::Method;
use serde_json::{Value, json};

pub(crate) async fn what_the_catalogue_objects_to_is_refused() -> anyhow::Result<()> {
    let world = enforcing("catalogue", "reject").await?;
    world.subscribe("acme", "hook", &["#"]).await?;
    let schema = json!({"type": "object", "required": ["amount"], "properties": {"amount": {"type": "number", "minimum": 1}}});
    let known = json!({"description": "someone paid", "schema": schema, "example": {"amount": 5}});
    let path = "/v1/event-types/order.paid";
    let created = world.control.call(Method::PUT, path, known.clone()).await?;
    assert_eq!((created.status.as_u16(), &created.body["name"]), (201, &json!("order.paid")));
    assert_eq!(world.control.call(Method::PUT, path, known).await?.status, 200);
    world.in_force().await;

    // Over HTTP, each wrong place by its name.
    world.publish("acme", "order.paid", json!({"amount": 7})).await?;
    let (unknown, wrong) = (
        publish(&world, "order.lost", json!({})).await?,
        publish(&world, "order.paid", json!({"amount": 0})).await?,
    );
    assert_eq!((unknown.status.as_u16(), Api::pointers(&unknown)), (422, vec!["/type".to_owned()]));
    assert_eq!(
        (wrong.status.as_u16(), Api::pointers(&wrong)),
        (422, vec!["/data/amount".to_owned()])
    );

    // Over AMQP, with the reason, and the same id may come again.
    let outsider = world.outsider().await?;
    let event = || amqp::event("acme", Some("mine"), &[]);
    outsider.publish("order.paid", event(), br#"{"amount":"hidden"}"#).await?;
    eventually("it is rejected", seconds(20), || async {
        outsider.depth("doorbell.rejected").await.is_ok_and(|depth| depth == 1)
    })
    .await?;
    let rejected = outsider.take("doorbell.rejected").await?.unwrap();
    let why = amqp::header(&rejected, "doorbell-reason").unwrap();
    assert!(why.contains("/data/amount") && !why.contains("hidden"), "{why}");
    world.ledger.accepted("acme", "order.paid", "mine", r#"{"amount":8}"#);
    outsider.publish("order.paid", event(), br#"{"amount":8}"#).await?;
    eventually("what is right comes", seconds(20), || async {
        world.receiver.accepted("hook") == 2
    })
    .await?;

    // What is said of an event has names of the event's own in it, and must fit beside a message.
    let open = json!({"schema": {"additionalProperties": {"type": "integer"}}});
    assert_eq!(
        world.control.call(Method::PUT, "/v1/event-types/order.open", open).await?.status,
        201
    );
    world.in_force().await;
    let long = format!(r#"{{"{}":"x"}}"#, "y".repeat(200_000));
    outsider.publish("order.open", amqp::event("acme", Some("long"), &[]), long.as_bytes()).await?;
    eventually("that is rejected, too", seconds(20), || async {
        outsider.depth("doorbell.rejected").await.is_ok_and(|depth| depth == 1)
    })
    .await?;
    outsider.take("doorbell.rejected").await?.unwrap();

    // A change is in force within two seconds.
    assert_eq!(world.control.call(Method::DELETE, path, Value::Null).await?.status, 204);
    assert_eq!(world.control.call(Method::GET, path, Value::Null).await?.status, 404);
    world.in_force().await;
    assert_eq!(publish(&world, "order.paid", json!({"amount": 7})).await?.status, 422);
    world.settle(seconds(30)).await?;
    world.finish().await
}

pub(crate) async fn a_catalogue_travels_as_one_document() -> anyhow::Result<()> {
    let world = enforcing("warned", "warn").await?;
    let document = json!({"event_types": [
        {"name": "order.made", "description": "a", "schema": {"type": "object"}, "example": {}, "deprecated": false},
        {"name": "order.paid", "description": "b", "schema": null, "example": null, "deprecated": true},
    ]});
    let put = |document: Value| world.control.call(Method::PUT, "/v1/catalogue", document);
    assert_eq!(put(document.clone()).await?.body, json!({"count": 2}));
    let exported = world.control.call(Method::GET, "/v1/catalogue", Value::Null).await?.body;
    assert_eq!(exported, document);
    let listed =
        world.control.call(Method::GET, "/v1/event-types?limit=1", Value::Null).await?.body;
    let next =
        format!("/v1/event-types?limit=1&cursor={}", listed["next"].as_str().unwrap_or_default());
    let last = world.control.call(Method::GET, &next, Value::Null).await?.body;
    assert_eq!((&last["data"][0]["name"], &last["next"]), (&json!("order.paid"), &Value::Null));
    // Whole or not at all.
    let refused =
        put(json!({"event_types": [{"name": "new"}, {"name": "x", "schema": 5}]})).await?;
    assert_eq!(
        (refused.status.as_u16(), Api::pointers(&refused)),
        (422, vec!["/event_types/1/schema".to_owned()])
    );
    assert_eq!(world.control.call(Method::GET, "/v1/catalogue", Value::Null).await?.body, document);

    // Where it only warns, events are taken in, and subscriptions made, all the same.
    world.in_force().await;
    let body = subscription(&world.receiver.url("hook"), &["order.*", "refund.#"]);
    let created = world.control.call(Method::POST, "/v1/tenants/acme/subscriptions", body).await?;
    assert_eq!(
        created.body["warnings"],
        json!(["refund.# matches no event type of the catalogue"])
    );
    let warned = publish(&world, "order.lost", json!(1)).await?;
    assert_eq!(warned.status, 202);
    assert!(warned.body["warnings"][0].as_str().is_some_and(|text| text.contains("order.lost")));
    let good = publish(&world, "order.paid", json!(1)).await?;
    assert_eq!((good.status.as_u16(), good.body.get("warnings")), (202, None));
    assert_eq!(world.metric("doorbell_events_objected_total").await?, 1.0, "each is judged once");
    world.finish().await
}

/// What is written, of several who write at once.
type Body<'a> = &'a dyn Fn(usize) -> Value;

pub(crate) async fn what_others_have_changed_is_not_overwritten() -> anyhow::Result<()> {
    let world = World::start("versions").await?;
    let one = "/v1/event-types/order.paid";
    let catalogue = "/v1/catalogue";
    let limits = "/v1/tenants/acme/limits";
    for path in [one, limits] {
        world.control.call(Method::PUT, path, json!({})).await?;
    }
    let types = |n: usize| json!({"event_types": [{"name": "order.made"}, {"name": "order.paid", "description": n.to_string()}]});
    let writings: [(&str, &str, Body<'_>); 3] = [
        (one, "/description", &|n| json!({"description": n.to_string()})),
        (catalogue, "/event_types/1/description", &types),
        (limits, "/max_subscriptions", &|n| json!({"max_subscriptions": n + 1})),
    ];
    for (path, field, body) in writings {
        let tag = version_at(&world, path).await?;
        let putting = (0..8).map(|n| call_if(&world, (Method::PUT, path), &tag, body(n)));
        let answers = futures_util::future::try_join_all(putting).await?;
        let count = |status| answers.iter().filter(|answer| answer.status == status).count();
        assert_eq!((count(200), count(412)), (1, 7), "{path}: {answers:?}");
        let done = answers.iter().position(|answer| answer.status == 200).unwrap_or_default();
        let written = world.control.call(Method::GET, path, Value::Null).await?;
        assert_eq!(written.body.pointer(field), body(done).pointer(field), "{path}");
        // Who says what it was writes over it; who says nothing does so, too.
        let again = version_at(&world, path).await?;
        assert_ne!(again, tag);
        let once_more = call_if(&world, (Method::PUT, path), &again, body(8)).await?;
        let told = once_more.headers.get("etag").and_then(|tag| tag.to_str().ok());
        assert_eq!(
            (once_more.status.as_u16(), told),
            (200, Some(&*version_at(&world, path).await?))
        );
        assert_eq!(world.control.call(Method::PUT, path, body(9)).await?.status, 200);
    }
    // Nor is it deleted, and what is not there has no version.
    let tag = version_at(&world, one).await?;
    world.control.call(Method::PUT, one, json!({"description": "new"})).await?;
    let delete = |tag| call_if(&world, (Method::DELETE, one), tag, Value::Null);
    assert_eq!(delete(&tag).await?.status, 412);
    assert_eq!(delete("*").await?.status, 204);
    assert_eq!(call_if(&world, (Method::PUT, one), "*", json!({})).await?.status, 412);
    assert_eq!(world.control.call(Method::GET, one, Value::Null).await?.status, 404);
    world.finish().await
}

/// The version of what is there.
async fn version_at(world: &World, path: &str) -> anyhow::Result<String> {
    let shown = world.control.call(Method::GET, path, Value::Null).await?;
    let tag = shown.headers.get("etag").and_then(|tag| tag.to_str().ok());
    tag.map(str::to_owned).with_context(|| format!("no version: {shown:?}"))
}

async fn call_if(
    world: &World,
    (method, path): (Method, &str),
    tag: &str,
    body: Value,
) -> anyhow::Result<Answer> {
    let headers = [("content-type", "application/json"), ("if-match", tag)];
    let body = if body.is_null() { String::new() } else { body.to_string() };
    world.control.raw(method, path, &headers, body).await
}

async fn enforcing(name: &str, enforcement: &str) -> anyhow::Result<World> {
    let extra = vec![("DOORBELL_EVENT_TYPES".to_owned(), enforcement.to_owned())];
    World::with(name, Setup { extra, ..Setup::default() }).await
}

async fn publish(world: &World, event_type: &str, data: Value) -> anyhow::Result<Answer> {
    let event = json!({"tenant": "acme", "type": event_type, "data": data});
    world.producer.call(Method::POST, "/v1/events", event).await
}
