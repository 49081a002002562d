//! The whole desired state of a tenant's subscriptions as one document.

use doorbell_tests::api::{Answer, Api};
use doorbell_tests::wait::seconds;
use doorbell_tests::{World, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const LIST: &str = "/v1/tenants/acme/subscriptions";

pub(crate) async fn a_document_is_compared_and_carried_out() -> anyhow::Result<()> {
    let world = World::start("config").await?;
    let control = &world.control;
    let entry = |name: &str, events: &[&str]| json!({"name": name, "url": world.receiver.url(name), "events": events});
    let document = |entries: &[Value]| json!({"tenant": "acme", "subscriptions": entries});

    control.call(Method::PUT, "/v1/tenants/acme", Value::Null).await?;
    let first = document(&[entry("one", &["a.#"]), entry("two", &["a.#"])]);
    let dry = put(control, "?dry_run=true", &first).await?.body;
    assert_eq!(counts(&dry), (2, 0, 0, 0), "{dry}");
    assert_eq!(list(control).await?, json!([]), "a dry run writes nothing");
    let done = put(control, "", &first).await?.body;
    assert_eq!(counts(&done), (2, 0, 0, 0), "{done}");
    let one = text(&done["created"][0]["id"]);
    let secret = control.call(Method::GET, &format!("{LIST}/{one}/secret"), Value::Null).await?;
    assert_eq!(secret.body["secret"], done["created"][0]["secret"]);
    let again = put(control, "", &first).await?.body;
    assert_eq!(counts(&again), (0, 0, 0, 2), "{again}");

    // One is changed, one goes, one comes; by hand, one was paused, and one was made.
    control.call(Method::PATCH, &format!("{LIST}/{one}"), json!({"status": "paused"})).await?;
    let by_hand = json!({"url": world.receiver.url("hand"), "events": ["a.#"]});
    let by_hand = text(&control.call(Method::POST, LIST, by_hand).await?.body["id"]);
    let second = document(&[entry("one", &["b.#"]), entry("three", &["a.#"])]);
    let dry = put(control, "?dry_run=true", &second).await?.body;
    assert_eq!(counts(&dry), (1, 1, 2, 0), "{dry}");
    let change = &dry["updated"][0];
    assert_eq!(change["changes"], json!({"events": {"from": ["a.#"], "to": ["b.#"]}}), "{dry}");
    let gone = dry["deleted"].as_array().cloned().unwrap_or_default();
    assert!(gone.iter().any(|gone| gone["id"] == json!(by_hand)), "{dry}");
    let done = put(control, "", &second).await?.body;
    assert_eq!((&done["updated"], &done["deleted"]), (&dry["updated"], &dry["deleted"]));
    let shown = control.call(Method::GET, &format!("{LIST}/{one}"), Value::Null).await?.body;
    assert_eq!((&shown["status"], &shown["events"]), (&json!("paused"), &json!(["b.#"])));
    let three = &done["created"][0];
    world.receiver.add_secret("three", &text(&three["secret"]));
    world.ledger.subscribed("acme", "three", &entry("three", &["a.#"]));
    world.in_force().await;
    world.publish("acme", "a.made", json!(1)).await?;
    world.settle(seconds(30)).await?;

    // What is shown can be put back; whoever has read it knows whether it is still so.
    let shown = control.call(Method::GET, "/v1/config?tenant=acme", Value::Null).await?;
    let tag = shown.headers["etag"].to_str()?.to_owned();
    let back = put(control, "?dry_run=true", &shown.body).await?.body;
    assert_eq!(counts(&back), (0, 0, 0, 2), "{back}");
    control.call(Method::PATCH, &format!("{LIST}/{one}"), json!({"description": "x"})).await?;
    let headers = [("content-type", "application/json"), ("if-match", tag.as_str())];
    let late = control.raw(Method::PUT, "/v1/config", &headers, shown.body.to_string()).await?;
    assert_eq!(late.status, 412, "{late:?}");

    // Wrong in one place, nothing is done.
    let mut wrong = document(&[entry("four", &["a.#"]), entry("five", &["a..b"])]);
    wrong["subscriptions"][1]["x"] = 1.into();
    let refused = put(control, "", &wrong).await?;
    assert_eq!(refused.status, 422, "{refused:?}");
    assert_eq!(Api::pointers(&refused), ["/subscriptions/1/events/0", "/subscriptions/1/x"]);
    let limit = json!({"max_subscriptions": 1});
    control.call(Method::PUT, "/v1/tenants/acme/limits", limit).await?;
    assert_eq!(put(control, "", &second).await?.status, 409);
    control.call(Method::PUT, "/v1/tenants/acme/limits", json!({})).await?;

    // A bound key has its own tenant's, and no other's.
    let body = json!({"label": "bound", "scopes": ["subscriptions:write"]});
    let key = control.call(Method::POST, "/v1/tenants/other/keys", body).await?.body;
    let bound = control.with_key(&text(&key["key"]));
    assert_eq!(put(&bound, "", &document(&[])).await?.status, 403);
    let theirs = bound.call(Method::GET, "/v1/config?tenant=acme", Value::Null).await?;
    assert_eq!(theirs.status, 403, "{theirs:?}");
    let own = put(&bound, "", &json!({"tenant": "other", "subscriptions": []})).await?;
    assert_eq!(own.status, 200, "{own:?}");
    assert_eq!(list(control).await?.as_array().map(Vec::len), Some(2));

    let audit = control.call(Method::GET, "/v1/audit", Value::Null).await?.body;
    let entry = &audit["data"].as_array().cloned().unwrap_or_default();
    let entry =
        entry.iter().find(|entry| entry["action"] == "config.apply" && entry["tenant"] == "acme");
    assert_eq!(
        entry.map(|entry| &entry["changes"]["deleted"]["to"][0]),
        Some(&dry["deleted"][0]["id"])
    );
    put(control, "", &document(&[])).await?;
    assert_eq!(list(control).await?, json!([]));
    world.finish().await
}

pub(crate) async fn a_document_cut_off_by_a_kill_is_carried_on_with() -> anyhow::Result<()> {
    let world = World::start("config-kill").await?;
    let control = &world.control;
    let document = |names: std::ops::Range<u32>, events: &str| {
        let entries: Vec<Value> = names
            .map(|n| json!({"name": format!("n{n}"), "url": world.receiver.url("hook"), "events": [events]}))
            .collect();
        json!({"tenant": "acme", "subscriptions": entries})
    };
    put(control, "", &document(0..1500, "a.#")).await?;
    for round in 1_u32..3 {
        let wanted = document(500 * round..500 * round + 1500, &format!("b{round}.#"));
        let cut = async {
            // Once in the middle of creating, once of deleting.
            for more in [true, false].into_iter().take(1 + usize::try_from(round % 2)?) {
                let counted = || async { has_more(&world, more).await.unwrap_or(false) };
                eventually("it is begun", seconds(60), counted).await?;
            }
            world.kill_and_restart("control-plane").await
        };
        let (_cut_off, killed) = tokio::join!(put(control, "", &wanted), cut);
        killed?;
        // Two at once: one has its turn, and nothing is made twice.
        eventually("it is carried out", seconds(60), || async {
            let both = tokio::join!(put(control, "", &wanted), put(control, "", &wanted));
            [both.0, both.1].into_iter().flatten().any(|answer| answer.status == 200)
        })
        .await?;
        let dry = put(control, "?dry_run=true", &wanted).await?.body;
        assert_eq!(counts(&dry), (0, 0, 0, 1500), "{dry}");
    }
    put(control, "", &document(0..0, "a.#")).await?;
    world.finish().await
}

/// Whether there are more than before, or no longer as many more as there are to be.
async fn has_more(world: &World, more: bool) -> anyhow::Result<bool> {
    let mut link = world.engines.redis_link().await?;
    let key = format!("{}:{{tenant-acme}}:subscriptions", world.vhost);
    let count: u32 = redis::cmd("ZCARD").arg(key).query_async(&mut link).await?;
    Ok(if more { count > 1500 } else { count < 2000 })
}

async fn put(control: &Api, query: &str, document: &Value) -> anyhow::Result<Answer> {
    control.call(Method::PUT, &format!("/v1/config{query}"), document.clone()).await
}

async fn list(control: &Api) -> anyhow::Result<Value> {
    Ok(control.call(Method::GET, LIST, Value::Null).await?.body["data"].clone())
}

/// Created, updated, deleted, unchanged.
fn counts(answer: &Value) -> (usize, usize, usize, u64) {
    let count = |part: &str| answer[part].as_array().map_or(usize::MAX, Vec::len);
    (
        count("created"),
        count("updated"),
        count("deleted"),
        answer["unchanged"].as_u64().unwrap_or(u64::MAX),
    )
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
