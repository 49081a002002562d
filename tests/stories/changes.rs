//! Changes over the API: who made them, made once, and not too many at once.

use std::time::Duration;

use doorbell_tests::api::{Answer, subscription};
use doorbell_tests::wait::seconds;
use doorbell_tests::{World, eventually};
use reqwest::Method;
use serde_json::{Value, json};

const LIST: &str = "/v1/tenants/acme/subscriptions";

pub(crate) async fn whoever_changes_something_is_noted() -> anyhow::Result<()> {
    let world = World::start("audit").await?;
    let control = &world.control;
    let body = json!({"label": "Ada's", "scopes": ["subscriptions:write"]});
    let made = control.call(Method::POST, "/v1/tenants/acme/keys", body).await?.body;
    let (key, key_id) = (text(&made["key"]), text(&made["id"]));
    let ada = control.with_key(&key);
    // The tenant is there already, so nothing is changed.
    assert_eq!(control.call(Method::PUT, "/v1/tenants/acme", Value::Null).await?.status, 200);
    let mut body = subscription(&world.receiver.url("hook?token=hidden"), &["a.#"]);
    body["headers"] = json!({"authorization": "Bearer hidden"});
    let headers = [
        ("content-type", "application/json"),
        ("x-forwarded-for", "192.0.2.7"),
        ("x-request-id", "from-ada"),
    ];
    let created = ada.raw(Method::POST, LIST, &headers, body.to_string()).await?.body;
    let one = format!("{LIST}/{}", text(&created["id"]));
    let secret = text(&created["secret"]);
    ada.call(Method::PATCH, &one, json!({"status": "paused", "headers": {"x-a": "hidden"}}))
        .await?;
    ada.call(Method::PATCH, &one, json!({"status": "nonsense"})).await?;
    ada.call(Method::GET, &format!("{one}/secret"), Value::Null).await?;
    ada.call(Method::POST, &format!("{one}/secret/rotate"), json!({"overlap": "0s"})).await?;
    ada.call(Method::DELETE, &one, Value::Null).await?;
    control.call(Method::DELETE, &format!("/v1/keys/{key_id}"), Value::Null).await?;

    // From the newest on, a page at a time.
    let (mut entries, mut path) = (Vec::new(), "/v1/audit?limit=3".to_owned());
    loop {
        let page = control.call(Method::GET, &path, Value::Null).await?.body;
        entries.extend(page["data"].as_array().cloned().unwrap_or_default());
        let Some(next) = page["next"].as_str() else { break };
        path = format!("/v1/audit?limit=3&cursor={next}");
    }
    entries.reverse();
    let actions: Vec<String> = entries.iter().map(|entry| text(&entry["action"])).collect();
    let expected = [
        "key.create",
        "subscription.create",
        "subscription.update",
        "subscription.read_secret",
        "subscription.rotate_secret",
        "subscription.delete",
        "key.revoke",
    ];
    assert_eq!(actions, expected);
    let create = &entries[1];
    assert_eq!((&create["actor"], &create["tenant"]), (&json!(key_id), &json!("acme")));
    assert_eq!(
        (&create["from"], &create["forwarded_for"]),
        (&json!("127.0.0.1"), &json!("192.0.2.7"))
    );
    assert_eq!((&create["request_id"], &create["subject"]), (&json!("from-ada"), &created["id"]));
    assert_eq!(entries[0]["actor"], "operator");
    assert_eq!(entries[2]["changes"]["status"], json!({"from": "active", "to": "paused"}));
    let told = json!(entries).to_string();
    for hidden in ["hidden", &secret, &key, "whsec_"] {
        assert!(!told.contains(hidden), "{told}");
    }
    world.finish().await
}

pub(crate) async fn whoever_hangs_up_is_noted_all_the_same() -> anyhow::Result<()> {
    let world = World::start("hangup").await?;
    let id = world.subscribe("acme", "hook", &["a.#"]).await?;
    let path = format!("{LIST}/{id}/secret/rotate");
    // A rotation is answered after two seconds; nobody waits for that here.
    let rotating = world.control.call(Method::POST, &path, json!({"overlap": "1h"}));
    assert!(tokio::time::timeout(Duration::from_millis(500), rotating).await.is_err());
    eventually("it is in the audit", seconds(10), || async {
        let audit = world.control.call(Method::GET, "/v1/audit?limit=1", Value::Null).await;
        audit.is_ok_and(|audit| audit.body["data"][0]["action"] == "subscription.rotate_secret")
    })
    .await?;
    world.finish().await
}

pub(crate) async fn what_is_sent_again_is_done_once() -> anyhow::Result<()> {
    let world = World::start("idempotent").await?;
    let control = &world.control;
    let body = subscription(&world.receiver.url("hook"), &["a.#"]).to_string();
    let send = |key: &'static str, body: String| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        async move { control.raw(Method::POST, LIST, &headers, body).await }
    };
    // Ten at once, of which others may find the first one at work.
    let answers = futures_util::future::join_all((0..10).map(|_| send("one", body.clone()))).await;
    let answers: Vec<Answer> = answers.into_iter().collect::<Result<_, _>>()?;
    assert!(answers.iter().all(|answer| [201, 409].contains(&answer.status.as_u16())));
    let first = answers.iter().find(|answer| answer.status == 201).unwrap();
    let again = send("one", body.clone()).await?;
    assert_eq!((again.status.as_u16(), &again.body), (201, &first.body));
    assert_eq!(
        (&again.headers["idempotent-replayed"], &again.headers["etag"]),
        (&"true".parse()?, &first.headers["etag"])
    );
    let listed = control.call(Method::GET, LIST, Value::Null).await?.body;
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(1));
    // A refusal is the same, too, but for the request that it is of.
    let refusals = [send("wrong", "{}".to_owned()).await?, send("wrong", "{}".to_owned()).await?];
    let [first, again] = refusals.map(|refusal| refusal.body);
    assert_eq!((&first["errors"], &first["status"]), (&again["errors"], &json!(422)));
    assert!(again["instance"].is_string() && again["instance"] != first["instance"], "{again}");

    // Another body is another request, and another caller's key another key.
    assert_eq!(send("one", body.replace("a.#", "b.#")).await?.status, 422);
    let key = json!({"label": "other", "scopes": ["admin"]});
    let other = control.call(Method::POST, "/v1/keys", key).await?.body;
    let headers = [("content-type", "application/json"), ("idempotency-key", "one")];
    let theirs = control.with_key(other["key"].as_str().unwrap());
    assert_eq!(theirs.raw(Method::POST, LIST, &headers, body.clone()).await?.status, 201);

    // What was refused is refused again, and what is remembered is sealed.
    assert_eq!(send("wrong", "{}".to_owned()).await?.status, 422);
    let again = send("wrong", "{}".to_owned()).await?;
    assert_eq!(
        (again.status.as_u16(), &again.headers["idempotent-replayed"]),
        (422, &"true".parse()?)
    );
    assert_eq!(again.headers["content-type"], "application/problem+json");
    let mut redis = world.engines.redis_link().await?;
    let pattern = format!("{}:request:*", world.vhost);
    let keys: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut redis).await?;
    assert_eq!(keys.len(), 3);
    for key in keys {
        let known: String = redis::cmd("GET").arg(&key).query_async(&mut redis).await?;
        assert!(known.contains("v1.local.") && !known.contains("whsec_"), "{known}");
    }
    assert_eq!(send("", body.clone()).await?.status, 400);

    // What a tenant's own keys are answered is remembered, but not without end.
    let bound = json!({"label": "bound", "scopes": ["admin"]});
    let bound = control.call(Method::POST, "/v1/tenants/acme/keys", bound).await?.body;
    let bound = control.with_key(bound["key"].as_str().unwrap());
    let theirs = |key: &'static str| {
        let headers = [("content-type", "application/json"), ("idempotency-key", key)];
        let (bound, body) = (&bound, body.clone());
        async move { bound.raw(Method::POST, LIST, &headers, body).await }
    };
    assert_eq!(theirs("one").await?.status, 201);
    let remembered = format!("{}:remembered:{{acme}}", world.vhost);
    let counted: (u64, i64) =
        redis::pipe().get(&remembered).ttl(&remembered).query_async(&mut redis).await?;
    assert!(counted.0 > 500 && counted.1 > 86_000, "{counted:?}");
    redis::cmd("INCRBY").arg(&remembered).arg(64 << 20).query_async::<()>(&mut redis).await?;
    let refused = theirs("two").await?;
    assert_eq!((refused.status.as_u16(), &refused.headers["retry-after"]), (429, &"3600".parse()?));
    let again = theirs("one").await?;
    assert_eq!(
        (again.status.as_u16(), &again.headers["idempotent-replayed"]),
        (201, &"true".parse()?)
    );
    assert_eq!(bound.call(Method::POST, LIST, serde_json::from_str(&body)?).await?.status, 201);
    assert_eq!(send("two", body).await?.status, 201);
    world.finish().await
}

pub(crate) async fn a_key_may_not_ask_all_the_time() -> anyhow::Result<()> {
    let world = World::start("throttle").await?;
    let control = &world.control;
    let body = json!({"label": "busy", "scopes": ["admin"]});
    let made = control.call(Method::POST, "/v1/keys", body.clone()).await?.body;
    let busy = control.with_key(made["key"].as_str().unwrap());
    let calm = control.call(Method::POST, "/v1/keys", body).await?.body;
    let ask = || busy.call(Method::GET, "/v1/tenants", Value::Null);
    let first = ask().await?;
    assert_eq!((first.status.as_u16(), &first.headers["ratelimit-limit"]), (200, &"200".parse()?));
    let mut refused = None;
    for _ in 0..20 {
        let answers = futures_util::future::join_all((0..100).map(|_| ask())).await;
        let answers: Vec<Answer> = answers.into_iter().collect::<Result<_, _>>()?;
        refused = refused.or(answers.into_iter().find(|answer| answer.status == 429));
    }
    let refused = refused.unwrap();
    assert_eq!(
        (&refused.headers["ratelimit-remaining"], &refused.headers["retry-after"]),
        (&"0".parse()?, &"1".parse()?)
    );
    // Neither others nor the operator notice.
    let calm = control.with_key(calm["key"].as_str().unwrap());
    assert_eq!(calm.call(Method::GET, "/v1/tenants", Value::Null).await?.status, 200);
    let operators = control.call(Method::GET, "/v1/tenants", Value::Null).await?;
    assert!(operators.status == 200 && !operators.headers.contains_key("ratelimit-limit"));
    world.finish().await
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
