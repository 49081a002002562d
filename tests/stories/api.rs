//! The subscriptions API.

use std::collections::HashSet;

use doorbell_tests::api::{Api, subscription};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, World, eventually};
use reqwest::Method;
use serde_json::{Value, json};

pub(crate) async fn a_tenant_deleted_while_it_is_used_is_there_or_gone() -> anyhow::Result<()> {
    let world = World::start("race").await?;
    let (control, list) = (&world.control, "/v1/tenants/acme/subscriptions");
    let body = || subscription(&world.receiver.url("hook"), &["a.#"]);
    let client = redis::Client::open(world.engines.redis_url.as_str())?;
    let mut redis = client.get_multiplexed_async_connection().await?;
    for round in 0..40 {
        let path = "/v1/tenants/acme";
        let creating = (0..round % 3).map(|_| control.call(Method::POST, list, body()));
        let making = (0..4).map(|_| control.call(Method::PUT, path, Value::Null));
        let deleting = (0..4).map(|_| control.call(Method::DELETE, path, Value::Null));
        let (created, _made, deleted) = tokio::join!(
            futures_util::future::try_join_all(creating),
            futures_util::future::join_all(making),
            futures_util::future::try_join_all(deleting)
        );
        assert!(created?.iter().all(|answer| answer.status == 201));
        assert!(deleted?.iter().all(|answer| [204, 404].contains(&answer.status.as_u16())));
        let key = |name: &str| format!("{}:{{{name}", world.vhost);
        let mut look = redis::pipe();
        look.cmd("ZSCORE").arg(key("main}:tenants")).arg("acme");
        look.cmd("EXISTS").arg(key("tenant-acme}:record"));
        look.cmd("ZCARD").arg(key("tenant-acme}:subscriptions"));
        let (listed, record, subscriptions): (Option<f64>, bool, u32) =
            look.query_async(&mut redis).await?;
        assert!(record || listed.is_none(), "round {round}: listed without a record");
        assert!(record || subscriptions == 0, "round {round}: subscriptions without a tenant");
    }
    // Whatever came of it, the tenant can be used: it does not count as lost.
    world.subscribe("acme", "hook", &["b.#"]).await?;
    world.in_force().await;
    world.publish("acme", "b.made", json!(1)).await?;
    world.settle(seconds(30)).await?;
    world.finish().await
}

pub(crate) async fn subscriptions_live_and_die() -> anyhow::Result<()> {
    let world = World::start("api").await?;
    let control = &world.control;
    assert_eq!(control.call(Method::PUT, "/v1/tenants/acme", Value::Null).await?.status, 201);
    assert_eq!(control.call(Method::PUT, "/v1/tenants/acme", json!({})).await?.status, 200);
    assert_eq!(
        control.call(Method::GET, "/v1/tenants/acme", Value::Null).await?.body["id"],
        "acme"
    );
    assert_eq!(control.call(Method::GET, "/v1/tenants/nobody", Value::Null).await?.status, 404);
    let list = "/v1/tenants/acme/subscriptions";
    assert_eq!(
        control.call(Method::GET, list, Value::Null).await?.body,
        json!({"data": [], "next": null})
    );
    // Created with defaults; shown without the secret.
    let url = world.receiver.url("hook");
    let created = control.call(Method::POST, list, json!({"url": url, "events": ["a.*"]})).await?;
    assert_eq!(created.status, 201);
    let (id, secret) =
        (created.body["id"].as_str().unwrap(), created.body["secret"].as_str().unwrap());
    let path = format!("{list}/{id}");
    let shown = control.call(Method::GET, &path, Value::Null).await?;
    let mut expected = created.body.clone();
    expected.as_object_mut().unwrap().remove("secret");
    assert_eq!(shown.body, expected);
    assert_eq!(shown.headers["etag"], created.headers["etag"]);
    for (field, value) in [
        ("status", json!("active")),
        ("payload", json!("envelope")),
        ("timeout", json!("15s")),
        ("rate_limit", Value::Null),
        ("headers", json!({})),
    ] {
        assert_eq!(shown.body[field], value, "{field}");
    }
    assert_eq!(
        control.call(Method::GET, &format!("{path}/secret"), Value::Null).await?.body,
        json!({"secret": secret})
    );
    // Tested at once, whatever the endpoint says.
    world.receiver.behave("hook", Behaviour::Teapot(20_000));
    let test = control.call(Method::POST, &format!("{path}/test"), Value::Null).await?;
    assert_eq!(test.status, 200, "{}", test.body);
    assert_eq!(
        (&test.body["outcome"], &test.body["status"], &test.body["truncated"]),
        (&json!("client_error"), &json!(418), &json!(true))
    );
    assert_eq!(test.body["headers"]["x-pot"], "brown");
    assert_eq!(test.body["body"].as_str().unwrap().len(), 16 * 1024);
    world.receiver.behave("hook", Behaviour::Status(200));
    assert_eq!(
        control.call(Method::POST, &format!("{path}/test"), Value::Null).await?.body["outcome"],
        "delivered"
    );
    // Changed, with and without a look at its version.
    let etag = shown.headers["etag"].to_str()?.to_owned();
    let json_and = |tag: &str| {
        [("content-type", "application/merge-patch+json".to_owned()), ("if-match", tag.to_owned())]
    };
    let patch = |tag: String| {
        let path = path.clone();
        async move {
            let headers = json_and(&tag);
            let headers: Vec<(&str, &str)> =
                headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
            control
                .raw(
                    Method::PATCH,
                    &path,
                    &headers,
                    r#"{"events":["b.#"],"metadata":{"a":{"b":1}}}"#,
                )
                .await
        }
    };
    let changed = patch(etag.clone()).await?;
    assert_eq!((changed.status.as_u16(), &changed.body["events"]), (200, &json!(["b.#"])));
    assert_eq!(patch(etag).await?.status, 412);
    world.receiver.add_secret("hook", secret);
    // In force within two seconds, for new and for removed patterns.
    world.in_force().await;
    world.publish("acme", "a.x", json!(1)).await?;
    let wanted = world.publish("acme", "b.x.y", json!(2)).await?;
    let came = || async { world.receiver.posts_to("hook").iter().any(|post| post.id == wanted) };
    eventually("the new pattern is in force", seconds(20), came).await?;
    assert!(
        world
            .receiver
            .posts_to("hook")
            .iter()
            .filter(|p| p.body.starts_with(br#"{"type":"a."#))
            .count()
            == 0
    );
    // Lists go on where they left off.
    for n in 0..5 {
        control.call(Method::POST, list, subscription(&url, &[&format!("n.{n}")])).await?;
    }
    let (mut seen, mut cursor) = (std::collections::HashSet::new(), String::new());
    loop {
        let page =
            control.call(Method::GET, &format!("{list}?limit=2{cursor}"), Value::Null).await?;
        for subscription in page.body["data"].as_array().unwrap() {
            assert!(
                subscription.get("secret").is_none()
                    && seen.insert(subscription["id"].as_str().unwrap().to_owned())
            );
        }
        let Some(next) = page.body["next"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    assert_eq!(seen.len(), 6);
    // Deleted, for good.
    assert_eq!(control.call(Method::DELETE, &path, Value::Null).await?.status, 204);
    for (method, path) in [
        (Method::GET, path.clone()),
        (Method::DELETE, path.clone()),
        (Method::POST, format!("{path}/test")),
        (Method::GET, format!("{path}/secret")),
    ] {
        assert_eq!(control.call(method, &path, Value::Null).await?.status, 404, "{path}");
    }
    assert_eq!(control.call(Method::DELETE, "/v1/tenants/acme", Value::Null).await?.status, 204);
    assert_eq!(
        control.call(Method::GET, "/v1/tenants", Value::Null).await?.body["data"],
        json!([])
    );
    world.finish().await
}

pub(crate) async fn bad_requests_are_named() -> anyhow::Result<()> {
    let world = World::start("bad").await?;
    let control = &world.control;
    let list = "/v1/tenants/acme/subscriptions";
    let url = world.receiver.url("hook");
    let created = control.call(Method::POST, list, subscription(&url, &["a"])).await?;
    let id = created.body["id"].as_str().unwrap();
    let cases = [
        (json!({}), vec!["/url", "/events"]),
        (json!({"url": "ftp://x.com", "events": ["a"]}), vec!["/url"]),
        (json!({"url": "http://10.0.0.1/", "events": ["a"]}), vec!["/url"]),
        (json!({"url": url, "events": ["a", "a..b"]}), vec!["/events/1"]),
        (
            json!({"url": url, "events": ["a"], "rate_limit": {"per_second": 0, "burst": 1}}),
            vec!["/rate_limit/per_second"],
        ),
        (json!({"url": url, "events": ["a"], "max_concurrency": 0}), vec!["/max_concurrency"]),
        (
            json!({"url": url, "events": ["a"], "headers": {"Webhook-Id": "x"}, "colour": 1}),
            vec!["/headers/Webhook-Id", "/colour"],
        ),
    ];
    for (body, pointers) in cases {
        let answer = control.call(Method::POST, list, body.clone()).await?;
        assert_eq!(answer.status, 422, "{body}");
        let mut said = Api::pointers(&answer);
        said.sort();
        let mut pointers = pointers;
        pointers.sort_unstable();
        assert_eq!(said, pointers, "{body}");
    }
    let deep = "[".repeat(100_000);
    for (method, path, content_type, body, status) in [
        (Method::POST, list.to_owned(), "application/json", "{", 400),
        (Method::POST, list.to_owned(), "application/json", deep.as_str(), 422),
        (Method::POST, list.to_owned(), "application/json", r#"{"url":1,"url":2}"#, 422),
        (Method::POST, list.to_owned(), "text/plain", "{}", 415),
        (Method::PATCH, format!("{list}/{id}"), "application/json", r#"{"url":null}"#, 422),
        (Method::PATCH, format!("{list}/sub_nonsense"), "application/json", "{}", 404),
        (
            Method::PATCH,
            format!("/v1/tenants/other/subscriptions/{id}"),
            "application/json",
            "{}",
            404,
        ),
        (
            Method::POST,
            format!("{list}/{id}/secret/rotate"),
            "application/json",
            r#"{"overlap":"8d"}"#,
            422,
        ),
        (Method::GET, format!("{list}?limit=0"), "", "", 422),
        (Method::GET, format!("{list}?cursor=!"), "", "", 422),
        (Method::GET, "/v1/tenants/a.b".to_owned(), "", "", 422),
        (Method::GET, "/v1/nothing".to_owned(), "", "", 404),
        (Method::DELETE, list.to_owned(), "", "", 405),
    ] {
        let answer =
            control.raw(method, &path, &[("content-type", content_type)], body.to_owned()).await?;
        assert_eq!(answer.status.as_u16(), status, "{path} {}", answer.body);
        assert_eq!(answer.headers["content-type"], "application/problem+json", "{path}");
    }
    let stranger =
        control.raw(Method::GET, list, &[("authorization", "Bearer nonsense")], "").await?;
    assert_eq!(stranger.status, 401);
    let before = control.call(Method::GET, &format!("{list}/{id}"), Value::Null).await?;
    assert_eq!(before.body["updated_at"], before.body["created_at"], "nothing was half written");
    world.finish().await
}

pub(crate) async fn many_are_changed_in_one_call_and_some_are_found() -> anyhow::Result<()> {
    let world = World::start("bulkpatch").await?;
    let (control, list) = (&world.control, "/v1/tenants/acme/subscriptions");
    let lines: String = (0..1200)
        .map(|n| {
            let mut body = subscription(&world.receiver.url("hook"), &["never.#"]);
            body["name"] = format!("n{n}").into();
            format!("{body}\n")
        })
        .collect();
    let created = control.lines(&format!("{list}/bulk"), lines).await?;
    let ids: Vec<&str> = created.iter().filter_map(|line| line["id"].as_str()).collect();
    assert_eq!(ids.len(), 1200);
    // Every third is paused; what is wrong is said of its line, and the others go on.
    let patch =
        |id: &str| json!({"id": id, "status": "paused", "events": ["often.made"]}).to_string();
    let mut lines: Vec<String> = ids.iter().step_by(3).map(|id| patch(id)).collect();
    lines.insert(1, json!({"id": ids[1], "status": "off", "x": 1}).to_string());
    lines.insert(2, json!({"status": "paused"}).to_string());
    lines.insert(3, json!({"id": "sub_00000a0123456789abcdef01", "status": "paused"}).to_string());
    let answer = control.lines(&format!("{list}/bulk/update"), lines.join("\n")).await?;
    let statuses: Vec<u64> = answer.iter().filter_map(|line| line["status"].as_u64()).collect();
    assert_eq!(statuses[..5], [200, 422, 422, 404, 200]);
    assert_eq!(answer[1]["problem"]["errors"].as_array().map(Vec::len), Some(2), "{}", answer[1]);
    assert_eq!(answer.last(), Some(&json!({ "updated": 400, "refused": 3 })));

    for (query, count) in [
        ("status=paused", 400),
        ("status=active", 800),
        ("status=unverified", 0),
        ("event_type=often.made", 400),
        ("event_type=never.made&status=active", 800),
        ("event_type=never.made&status=paused", 0),
        ("name=n7", 1),
        ("name=none", 0),
    ] {
        let (mut found, mut cursor) = (HashSet::new(), String::new());
        loop {
            let path = format!("{list}?limit=300&{query}{cursor}");
            let page = control.call(Method::GET, &path, Value::Null).await?.body;
            let data = page["data"].as_array().cloned().unwrap_or_default();
            assert!(data.len() <= 300, "{query}");
            found.extend(data.iter().filter_map(|one| one["id"].as_str().map(str::to_owned)));
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(found.len(), count, "{query}");
    }
    let wrong = format!("{list}?status=on&event_type=a..b&name=x");
    let wrong = control.call(Method::GET, &wrong, Value::Null).await?;
    assert_eq!(
        (wrong.status.as_u16(), Api::pointers(&wrong)),
        (422, vec!["/status".into(), "/event_type".into()])
    );

    // Large ones come a few at a time, however many are asked for.
    let list = "/v1/tenants/large/subscriptions";
    let mut body = subscription(&world.receiver.url("hook"), &["never.#"]);
    body["metadata"] = json!({ "a": "x".repeat(16_000) });
    body["template"] = json!({ "body": "1", "sample": "x".repeat(16_000) });
    let created = control.lines(&format!("{list}/bulk"), format!("{body}\n").repeat(150)).await?;
    assert_eq!(created.last(), Some(&json!({ "created": 150, "refused": 0 })));
    for query in ["", "&status=active"] {
        let (mut found, mut pages, mut cursor) = (HashSet::new(), 0, String::new());
        loop {
            let path = format!("{list}?limit=1000{query}{cursor}");
            let page = control.call(Method::GET, &path, Value::Null).await?.body;
            let data = page["data"].as_array().cloned().unwrap_or_default();
            found.extend(data.iter().filter_map(|one| one["id"].as_str().map(str::to_owned)));
            pages += 1;
            let Some(next) = page["next"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(found.len(), 150, "{query}");
        assert!(pages > 1 || !query.is_empty(), "all in one answer");
    }
    let document = control.call(Method::GET, "/v1/config?tenant=large", Value::Null).await?;
    assert_eq!(document.body["subscriptions"].as_array().map(Vec::len), Some(150));
    world.finish().await
}

pub(crate) async fn many_are_created_in_one_call() -> anyhow::Result<()> {
    let world = World::start("bulk").await?;
    let path = "/v1/tenants/acme/subscriptions/bulk";
    let good = |name: &str| subscription(&world.receiver.url(name), &["#"]).to_string();
    let too_long = format!("{{\"description\":\"{}\"}}", "x".repeat(140 * 1024));
    let wrong = r#"{"url":"http://localhost/","events":[],"colour":"red"}"#;
    let lines = [&good("one"), "", wrong, &too_long, "{", &good("last")].join("\n");
    let answer = world.control.lines(path, lines).await?;
    let brief: Vec<(u64, u64)> = answer
        .iter()
        .filter_map(|line| Some((line["line"].as_u64()?, line["status"].as_u64()?)))
        .collect();
    assert_eq!(brief, [(1, 201), (3, 422), (4, 413), (5, 400), (6, 201)]);
    assert_eq!(answer.last(), Some(&json!({ "created": 2, "refused": 3 })));
    assert_eq!(answer[1]["problem"]["errors"].as_array().map(Vec::len), Some(3));
    assert_eq!(world.control.lines(path, "").await?, [json!({ "created": 0, "refused": 0 })]);
    // What was created is there, and signs with the secret that was answered.
    let list =
        world.control.call(Method::GET, "/v1/tenants/acme/subscriptions", Value::Null).await?;
    let ids: HashSet<&str> =
        list.body["data"].as_array().unwrap().iter().filter_map(|s| s["id"].as_str()).collect();
    let created = [&answer[0], &answer[4]].map(|line| line["id"].as_str().unwrap());
    assert_eq!(ids, HashSet::from(created), "a list is in the order of ids, not of lines");
    for (name, line) in [("one", &answer[0]), ("last", &answer[4])] {
        world.receiver.add_secret(name, line["secret"].as_str().unwrap());
        world.ledger.subscribed("acme", name, &json!({ "events": ["#"], "retry": null }));
    }
    let answer =
        world.control.raw(Method::POST, path, &[("content-type", "application/json")], "{}");
    assert_eq!(answer.await?.status, 415);
    let answer = world.control.raw(Method::POST, "/v1/tenants/a%20b/subscriptions/bulk", &[], "{}");
    assert!(answer.await?.status.is_client_error());
    // Many are deleted in one call, too, and only the tenant's own.
    let theirs = world.control.lines("/v1/tenants/other/subscriptions/bulk", good("other")).await?;
    let (mine, theirs) = (world.control.lines(path, good("gone")).await?, &theirs[0]["id"]);
    let id = |id: &Value| json!({ "id": id }).to_string();
    let lines = [&id(&mine[0]["id"]), "", &id(theirs), &id(&json!(7)), "{}", &id(&mine[0]["id"])]
        .join("\n");
    let answer = world.control.lines(&format!("{path}/delete"), lines).await?;
    let statuses: Vec<u64> = answer.iter().filter_map(|line| line["status"].as_u64()).collect();
    // The same one twice at once: either is first.
    assert_eq!(answer[1]["line"], 3);
    assert_eq!([&statuses[..1], &statuses[4..]].concat().iter().filter(|s| **s == 204).count(), 1);
    assert_eq!(statuses[1..4], [404, 422, 422]);
    assert_eq!(answer.last(), Some(&json!({ "deleted": 1, "refused": 4 })));
    // Results come while lines are still being sent: whoever sends a million sees how far it is.
    let (sender, lines) = tokio::sync::mpsc::channel::<String>(1);
    let body = futures_util::stream::unfold(lines, |mut lines| async {
        lines.recv().await.map(|line| (Ok::<String, std::io::Error>(line), lines))
    });
    let elsewhere = "/v1/tenants/elsewhere/subscriptions/bulk";
    let calling = world.control.stream(elsewhere, reqwest::Body::wrap_stream(body));
    sender.send(good("early") + "\n").await?;
    let mut answer = calling.await?;
    for _ in 0..3 {
        let result = answer.chunk().await?.unwrap_or_default();
        assert!(result.starts_with(b"{\"id\":"), "{result:?}");
        sender.send(good("later") + "\n").await?;
    }
    drop((answer, sender));
    world.in_force().await;
    world.publish("acme", "a", json!(1)).await?;
    world.settle(seconds(30)).await?;
    world.finish().await
}
