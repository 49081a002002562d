//! API keys: what each may do, for whom, and for how long.

use doorbell_tests::api::{Answer, Api, subscription};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Setup, World, eventually};
use reqwest::Method;
use serde_json::{Value, json};

/// Every route beneath a tenant; `{}` is the id of one of its subscriptions or keys.
const OF_A_TENANT: [(Method, &str, &str); 27] = [
    (Method::POST, "/subscriptions/bulk/update", "{}\n"),
    (Method::GET, "/removal", ""),
    (Method::DELETE, "/events/{}", ""),
    (Method::GET, "/events/{}/removal", ""),
    (Method::GET, "", ""),
    (Method::PUT, "", ""),
    (Method::DELETE, "", ""),
    (Method::GET, "/limits", ""),
    (Method::PUT, "/limits", "{}"),
    (Method::GET, "/subscriptions", ""),
    (Method::POST, "/subscriptions", r#"{"url":"https://example.com/","events":["a.*"]}"#),
    (Method::POST, "/subscriptions/bulk", "{}\n"),
    (Method::POST, "/subscriptions/bulk/delete", "{}\n"),
    (Method::GET, "/subscriptions/{}", ""),
    (Method::PATCH, "/subscriptions/{}", r#"{"description":"mine now"}"#),
    (Method::DELETE, "/subscriptions/{}", ""),
    (Method::GET, "/subscriptions/{}/secret", ""),
    (Method::POST, "/subscriptions/{}/secret/rotate", ""),
    (Method::POST, "/subscriptions/{}/test", ""),
    (Method::POST, "/subscriptions/{}/verify", ""),
    (Method::POST, "/filters/test", r#"{"filter":{"type":"a"},"event":{"data":1}}"#),
    (
        Method::POST,
        "/templates/preview",
        r#"{"template":{"body":"{{ id }}","content_type":"text/plain"}}"#,
    ),
    (Method::GET, "/keys", ""),
    (Method::POST, "/keys", r#"{"label":"mine","scopes":["admin"]}"#),
    (Method::GET, "/keys/{}", ""),
    (Method::DELETE, "/keys/{}", ""),
    (Method::GET, "/nothing", ""),
];
/// What every key that reads may read.
const FOR_EVERYONE: [&str; 3] = ["/v1/event-types", "/v1/event-types/{name}", "/v1/catalogue"];
/// Every route that concerns all tenants.
const OF_ALL: [(Method, &str, &str); 12] = [
    (Method::GET, "/v1/config?tenant=acme", ""),
    (Method::PUT, "/v1/config", r#"{"tenant":"acme","subscriptions":[]}"#),
    (Method::GET, "/v1/tenants", ""),
    (Method::GET, "/v1/keys", ""),
    (Method::GET, "/v1/audit", ""),
    (Method::GET, "/v1/encryption", ""),
    (Method::PUT, "/v1/event-types/a.made", "{}"),
    (Method::DELETE, "/v1/event-types/a.made", ""),
    (Method::PUT, "/v1/catalogue", r#"{"event_types":[]}"#),
    (Method::POST, "/v1/keys", r#"{"label":"mine","scopes":["admin"]}"#),
    (Method::GET, "/v1/keys/{}", ""),
    (Method::DELETE, "/v1/keys/{}", ""),
];

pub(crate) async fn a_bound_key_sees_and_touches_its_tenant_only() -> anyhow::Result<()> {
    let world = World::start("keys").await?;
    let (control, producer) = (&world.control, &world.producer);
    let url = world.receiver.url("hook");
    let mut secretive = subscription(&url, &["a.#"]);
    secretive["description"] = "known-to-acme-only".into();
    let list = "/v1/tenants/acme/subscriptions";
    let created = control.call(Method::POST, list, secretive).await?.body;
    let (id, secret) = (text(&created["id"]), text(&created["secret"]));
    let theirs = make(control, "/v1/tenants/acme/keys", &["subscriptions:read"]).await?;
    let other = make(control, "/v1/tenants/other/keys", &["admin"]).await?;
    let stranger = control.with_key(&other.text);

    every_route_is_tried(control).await?;
    let of_a_tenant = OF_A_TENANT.into_iter().map(|(method, path, body)| {
        let id = if path.contains("keys") { &theirs.id } else { &id };
        (method, format!("/v1/tenants/acme{}", path.replace("{}", id)), body)
    });
    let of_all = OF_ALL
        .into_iter()
        .map(|(method, path, body)| (method, path.replace("{}", &theirs.id), body));
    for (method, path, body) in of_a_tenant.chain(of_all) {
        let answer = send(&stranger, &method, &path, body).await?;
        assert!([403, 404].contains(&answer.status.as_u16()), "{method} {path}: {answer:?}");
        let told = answer.body.to_string();
        for hidden in ["known-to-acme-only", &secret, &url, &theirs.id] {
            assert!(!told.contains(hidden) || path.contains(hidden), "{method} {path}: {told}");
        }
    }
    for (tenant, status) in [("acme", 403), ("*", 403), ("other", 202)] {
        let event = json!({"tenant": tenant, "type": "b.made", "data": 1});
        let publisher = producer.with_key(&other.text);
        let answer = publisher.call(Method::POST, "/v1/events", event.clone()).await?;
        assert_eq!(answer.status, status, "{tenant}: {answer:?}");
        let lines = [("content-type", "application/x-ndjson")];
        let batch = publisher.raw(Method::POST, "/v1/events/batch", &lines, event.to_string());
        assert_eq!(batch.await?.body["results"][0]["status"], status, "{tenant}");
    }
    // Nothing of what was tried was done.
    let after = control.call(Method::GET, &format!("{list}/{id}"), Value::Null).await?.body;
    assert_eq!(after["description"], "known-to-acme-only");
    let kept = control.call(Method::GET, &format!("{list}/{id}/secret"), Value::Null).await?;
    assert_eq!(kept.body["secret"], secret);
    // Its own is all its own.
    for (method, path, body) in OF_A_TENANT {
        if path.contains("limits")
            || path.contains("{}")
            || path.contains("bulk")
            || path.contains("nothing")
            || path == "/removal"
            || method == Method::DELETE
        {
            continue;
        }
        let path = format!("/v1/tenants/other{path}");
        let answer = send(&stranger, &method, &path, body).await?;
        assert!(answer.status.is_success(), "{method} {path}: {answer:?}");
    }
    world.finish().await
}

/// None is forgotten here: the lists have whatever the document has.
async fn every_route_is_tried(control: &Api) -> anyhow::Result<()> {
    let document = control.call(Method::GET, "/openapi.json", Value::Null).await?.body;
    for (path, operations) in document["paths"].as_object().into_iter().flatten() {
        for method in operations.as_object().into_iter().flat_map(|operations| operations.keys()) {
            let is_listed = |(listed, route, _): &(Method, &str, &str)| {
                let route = route.split('?').next().unwrap_or_default();
                let plain = path.replace("{name}", "a.made").replace("{id}", "{}");
                listed.as_str().eq_ignore_ascii_case(method)
                    && (plain == route || plain == format!("/v1/tenants/{{tenant}}{route}"))
            };
            let listed = OF_A_TENANT.iter().any(is_listed) || OF_ALL.iter().any(is_listed);
            let is_for_all = method == "get" && FOR_EVERYONE.contains(&path.as_str());
            assert!(listed || is_for_all, "{method} {path} is not tried");
        }
    }
    Ok(())
}

pub(crate) async fn a_key_allows_what_its_scopes_say() -> anyhow::Result<()> {
    let world = World::start("scopes").await?;
    let (control, list) = (&world.control, "/v1/tenants/acme/subscriptions");
    let body = subscription(&world.receiver.url("hook"), &["a.#"]);
    let id = text(&control.call(Method::POST, list, body.clone()).await?.body["id"]);
    let (one, secret) = (format!("{list}/{id}"), format!("{list}/{id}/secret"));
    let event = json!({"tenant": "acme", "type": "b.made", "data": 1});
    for (scopes, [published, read, written, shown, managed]) in [
        (["events:publish"], [202, 403, 403, 403, 403]),
        (["subscriptions:read"], [403, 200, 403, 403, 403]),
        (["subscriptions:write"], [403, 200, 200, 200, 403]),
        (["history:read"], [403, 403, 403, 403, 403]),
        (["replay"], [403, 403, 403, 403, 403]),
        (["admin"], [202, 200, 200, 200, 200]),
    ] {
        let key = make(control, "/v1/keys", &scopes).await?;
        let (control, producer) = (control.with_key(&key.text), world.producer.with_key(&key.text));
        let calls = [
            (producer.call(Method::POST, "/v1/events", event.clone()).await?, published),
            (control.call(Method::GET, &one, Value::Null).await?, read),
            (control.call(Method::PATCH, &one, json!({"description": "x"})).await?, written),
            (control.call(Method::GET, &secret, Value::Null).await?, shown),
            (control.call(Method::GET, "/v1/keys", Value::Null).await?, managed),
        ];
        for (n, (answer, status)) in calls.into_iter().enumerate() {
            assert_eq!(answer.status, status, "{scopes:?} call {n}: {answer:?}");
        }
    }
    // A tenant may make keys for itself, but not without end.
    let mut redis = world.engines.redis_link().await?;
    let ids = format!("{}:{{main}}:api-key-ids:full", world.vhost);
    let mut fill = redis::cmd("ZADD");
    fill.arg(&ids);
    (0..1000).for_each(|n| {
        fill.arg(0).arg(n);
    });
    fill.query_async::<()>(&mut redis).await?;
    let body = json!({"label": "one more", "scopes": ["admin"]});
    let refused = control.call(Method::POST, "/v1/tenants/full/keys", body).await?;
    assert_eq!(refused.status, 409, "{refused:?}");
    redis::cmd("DEL").arg(&ids).query_async::<()>(&mut redis).await?;
    for (key, status) in [("db_live_abc", 401), ("nonsense", 401), ("", 401)] {
        let answer = control.with_key(key).call(Method::GET, &one, Value::Null).await?;
        assert_eq!(answer.status, status, "{key}");
        assert!(answer.headers.contains_key("www-authenticate"), "{key}");
    }
    world.finish().await
}

pub(crate) async fn a_revoked_key_is_worth_nothing_within_two_seconds() -> anyhow::Result<()> {
    let world = World::with("revoked", Setup::private()).await?;
    let control = &world.control;
    let [kept, revoked, orphan] = [
        make(control, "/v1/keys", &["admin"]).await?,
        make(control, "/v1/keys", &["admin"]).await?,
        make(control, "/v1/tenants/acme/keys", &["admin"]).await?,
    ];
    for key in [&kept, &revoked] {
        assert_eq!(statuses(&world, key).await?, [202, 200]);
    }
    assert_eq!(statuses(&world, &orphan).await?, [202, 403]);
    let listed = control.call(Method::GET, "/v1/tenants/acme/keys", Value::Null).await?.body;
    assert_eq!(listed["data"][0]["id"], json!(orphan.id), "{listed}");
    assert!(listed["data"][0]["last_used_at"].is_string(), "{listed}");
    assert!(!listed.to_string().contains(&orphan.text), "shown once only");

    // With Redis away those that were known go on, and others cannot be judged.
    world.engines.redis.lock().await.kill().await;
    world.until_readiness("control-plane", false).await?;
    let event = json!({"tenant": "acme", "type": "a.made", "data": 1});
    for (key, status) in [(&kept.text, 202), (&format!("{}0", kept.text), 401)] {
        let producer = world.producer.with_key(key);
        let answer = producer.call(Method::POST, "/v1/events", event.clone()).await?;
        assert_eq!(answer.status, status, "{answer:?}");
    }
    world.engines.redis.lock().await.start_again().await?;
    world.until_all_ready().await?;

    let revoking = format!("/v1/keys/{}", revoked.id);
    assert_eq!(control.call(Method::DELETE, &revoking, Value::Null).await?.status, 204);
    assert_eq!(control.call(Method::DELETE, "/v1/tenants/acme", Value::Null).await?.status, 204);
    world.in_force().await;
    for key in [&revoked, &orphan] {
        assert_eq!(statuses(&world, key).await?, [401, 401]);
    }
    assert_eq!(statuses(&world, &kept).await?, [202, 200]);
    assert_eq!(control.call(Method::DELETE, &revoking, Value::Null).await?.status, 404);

    let expires = doorbell_platform::clock::now().plus(seconds(3));
    let body = json!({"label": "short", "scopes": ["admin"], "expires_at": expires});
    let short = Key::of(&control.call(Method::POST, "/v1/keys", body).await?);
    assert_eq!(statuses(&world, &short).await?, [202, 200]);
    eventually("a key expires", seconds(10), || async {
        statuses(&world, &short).await.is_ok_and(|statuses| statuses == [401, 401])
    })
    .await?;
    world.finish().await
}

struct Key {
    id: String,
    text: String,
}

impl Key {
    fn of(answer: &Answer) -> Self {
        assert_eq!(answer.status, 201, "{answer:?}");
        Self { id: text(&answer.body["id"]), text: text(&answer.body["key"]) }
    }
}

async fn make(control: &Api, path: &str, scopes: &[&str]) -> anyhow::Result<Key> {
    let body = json!({ "label": "a story's", "scopes": scopes });
    Ok(Key::of(&control.call(Method::POST, path, body).await?))
}

/// How a key is answered by the producer and by the control-plane.
async fn statuses(world: &World, key: &Key) -> anyhow::Result<[u16; 2]> {
    let (producer, control) =
        (world.producer.with_key(&key.text), world.control.with_key(&key.text));
    let event = json!({"tenant": "acme", "type": "a.made", "data": 1});
    Ok([
        producer.call(Method::POST, "/v1/events", event).await?.status.as_u16(),
        control.call(Method::GET, "/v1/tenants", Value::Null).await?.status.as_u16(),
    ])
}

async fn send(api: &Api, method: &Method, path: &str, body: &str) -> anyhow::Result<Answer> {
    let bulk = path.contains("/bulk");
    let content_type = if bulk { "application/x-ndjson" } else { "application/json" };
    api.raw(method.clone(), path, &[("content-type", content_type)], body.to_owned()).await
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
