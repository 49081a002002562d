//! Requests that nobody should send: each is answered by a problem of the caller's, and leaves nothing
//! behind.

use std::time::Duration;

use anyhow::Context as _;
use doorbell_tests::api::{Answer, subscription};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World};
use reqwest::Method;
use serde_json::{Value, json};

pub(crate) async fn every_bad_body_is_a_problem_of_the_callers() -> anyhow::Result<()> {
    let world = World::start("hostile").await?;
    let list = "/v1/tenants/acme/subscriptions";
    let good = subscription(&world.receiver.url("hook"), &["a.#"]);
    let created = world.control.call(Method::POST, list, good.clone()).await?.body;
    let one = format!("{list}/{}", created["id"].as_str().unwrap_or_default());
    let before = world.control.call(Method::GET, &one, Value::Null).await?.body;
    let routes = [
        (Method::POST, list.to_owned()),
        (Method::PATCH, one.clone()),
        (Method::POST, format!("{one}/secret/rotate")),
        (Method::POST, "/v1/tenants/acme/filters/test".to_owned()),
        (Method::POST, "/v1/tenants/acme/templates/preview".to_owned()),
        (Method::POST, "/v1/tenants/acme/keys".to_owned()),
        (Method::POST, "/v1/keys".to_owned()),
        (Method::PUT, "/v1/tenants/acme".to_owned()),
        (Method::PUT, "/v1/event-types/a.b".to_owned()),
        (Method::PUT, "/v1/catalogue".to_owned()),
        (Method::PUT, "/v1/config".to_owned()),
        (Method::PUT, "/v1/tenants/acme/limits".to_owned()),
    ];
    for (method, path) in &routes {
        for (what, body) in bodies() {
            let headers = [("content-type", "application/json")];
            let answer = world.control.raw(method.clone(), path, &headers, body).await;
            check(
                &answer.with_context(|| format!("{method} {path} {what}"))?,
                &format!("{method} {path} {what}"),
            );
        }
        // A body where none is needed may be left out, whatever it is said to be.
        let headers = [("content-type", "application/x-www-form-urlencoded")];
        let answer = world.control.raw(method.clone(), path, &headers, "a=b").await?;
        check(&answer, &format!("{method} {path} of another type"));
    }
    for event in bodies().into_iter().map(|(_, body)| body) {
        let headers = [("content-type", "application/json")];
        let answer = world.producer.raw(Method::POST, "/v1/events", &headers, event).await?;
        check(&answer, "an event");
    }
    for path in [
        "/v1/tenants/%00",
        "/v1/tenants/a%2Fb",
        "/v1/tenants/%ff",
        "/v1/tenants/..%2f..",
        "/v1/nothing",
        "/v1/tenants/acme/subscriptions/sub_%00",
        "/v1/tenants/acme/subscriptions/x'%20OR%201=1",
        "/v1/tenants?limit=0",
        "/v1/tenants?limit=-1",
        "/v1/tenants?limit=9999999999999999999",
        "/v1/tenants?cursor=%00",
        "/v1/tenants?cursor=!!!",
        "/v1/tenants?colour=red",
        "/v1/tenants?limit=1&limit=2",
        "/v1/keys/key_x",
        "/v1/event-types/a..b",
        "/v1/audit?cursor=MA",
        // That is "+1-0".
        "/v1/audit?cursor=KzEtMA",
    ] {
        let answer = world.control.call(Method::GET, path, Value::Null).await?;
        check(&answer, path);
    }
    let after = world.control.call(Method::GET, &one, Value::Null).await?.body;
    assert_eq!(after, before);
    for (path, count) in [(list, 1), ("/v1/keys", 0), ("/v1/event-types", 0)] {
        let listed = world.control.call(Method::GET, path, Value::Null).await?.body;
        assert_eq!(listed["data"].as_array().map(Vec::len), Some(count), "{path}: {listed}");
    }
    world.finish().await
}

/// A record that nobody can read is lost to everyone, with all that stands beside it.
pub(crate) async fn whatever_is_taken_can_be_read_again() -> anyhow::Result<()> {
    let world = World::start("deep").await?;
    world.receiver.behave("flaky", Behaviour::FailFirst(1, 500));
    world.subscribe("acme", "flaky", &["#"]).await?;
    let list = "/v1/tenants/acme/subscriptions";
    let (mut taken, mut refused) = (0, 0);
    for depth in 90..140 {
        let deep = format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
        let form = format!(r#""url":"{}","events":["none"]"#, world.receiver.url("hook"));
        for (method, path, body) in [
            (Method::POST, list, format!(r#"{{{form},"metadata":{deep}}}"#)),
            (
                Method::POST,
                list,
                format!(r#"{{{form},"template":{{"body":"1","sample":{deep}}}}}"#),
            ),
            (Method::POST, list, format!(r#"{{{form},"filter":{{"data":{{"$in":[{deep}]}}}}}}"#)),
            (
                Method::PUT,
                "/v1/config",
                format!(
                    r#"{{"tenant":"other","subscriptions":[{{"name":"a",{form},"metadata":{deep}}}]}}"#
                ),
            ),
            (
                Method::PUT,
                "/v1/event-types/a.b",
                format!(r#"{{"schema":{{"enum":[{deep}]}},"example":{deep}}}"#),
            ),
        ] {
            let headers = [("content-type", "application/json")];
            let answer = world.control.raw(method, path, &headers, body).await?;
            match answer.status.as_u16() {
                200 | 201 => taken += 1,
                422 => refused += 1,
                _ => panic!("{path} at {depth}: {answer:?}"),
            }
        }
    }
    assert!(taken > 20 && refused > 20, "{taken} taken, {refused} refused");
    for path in [
        &format!("{list}?limit=1000"),
        "/v1/config?tenant=acme",
        "/v1/config?tenant=other",
        "/v1/event-types",
        "/v1/catalogue",
        "/v1/audit?limit=1000",
    ] {
        let answer = world.control.call(Method::GET, path, Value::Null).await?;
        assert_eq!(answer.status, 200, "{path}: {answer:?}");
    }
    world.in_force().await;
    let most = doorbell_common::intake::MAX_DEPTH;
    let mut deepest = json!(1);
    for _ in 0..most {
        deepest = json!([deepest]);
    }
    world.publish("acme", "a.b", deepest).await?;
    world.settle(seconds(60)).await?;
    assert_eq!(world.receiver.count("flaky"), 2);
    world.finish().await
}

pub(crate) async fn no_forbidden_url_or_header_gets_in() -> anyhow::Result<()> {
    let world = World::start("forbidden").await?;
    let list = "/v1/tenants/acme/subscriptions";
    for url in [
        "",
        "x",
        "http://",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "https://10.0.0.1/",
        "https://169.254.169.254/latest",
        "https://192.168.0.1/",
        "https://0/",
        "https://0xa.1/../../",
        "https://[::ffff:10.0.0.1]/",
        "https://[fe80::1]/",
        "https://[fd00::1]/",
        "https://167772161/",
        "https://0x0a000001/",
        "https://012.0.0.1/",
        "https://10.1/",
        "https://user:password@example.com/",
        "https://example.com:0/",
        "https://example.com:99999/",
        "https://exa mple.com/",
        "https://example.com/\r\nx: y",
        "https://\u{0}/",
        "//example.com/",
        "https:///example.com@10.0.0.1/",
        "https://10.0.0.1.:443/",
        "https://１０.0.0.1/",
    ] {
        let mut body = subscription(&world.receiver.url("hook"), &["a.#"]);
        body["url"] = url.into();
        let answer = world.control.call(Method::POST, list, body).await?;
        assert_eq!(answer.status, 422, "{url}: {answer:?}");
        assert!(answer.body["errors"][0]["pointer"] == "/url", "{url}: {answer:?}");
    }
    for (name, value) in [
        ("x-a", "1\r\nx-b: 2"),
        ("x-a\r\nx-b", "1"),
        ("x-a", "\u{0}"),
        ("host", "example.com"),
        ("content-length", "0"),
        ("transfer-encoding", "chunked"),
        ("webhook-signature", "v1,x"),
        ("", "1"),
        ("x a", "1"),
        ("x-ä", "1"),
        ("connection", "close"),
        ("doorbell-attempt", "1"),
    ] {
        let mut body = subscription(&world.receiver.url("hook"), &["a.#"]);
        body["headers"] = json!({ name: value });
        let answer = world.control.call(Method::POST, list, body).await?;
        assert_eq!(answer.status, 422, "{name}: {answer:?}");
    }
    world.finish().await
}

pub(crate) async fn test_calls_that_hang_keep_nobody_waiting() -> anyhow::Result<()> {
    let world = World::start("testcalls").await?;
    world.receiver.behave("hangs", Behaviour::Slow(seconds(8)));
    let hanging = world.subscribe("many", "hangs", &["a.#"]).await?;
    let quick = world.subscribe("acme", "quick", &["a.#"]).await?;
    let test = async |tenant: &str, id: &str| {
        let path = format!("/v1/tenants/{tenant}/subscriptions/{id}/test");
        world.control.call(Method::POST, &path, Value::Null).await
    };
    let all = futures_util::future::join_all((0..40).map(|_| test("many", &hanging)));
    let (all, quick) = tokio::join!(all, test("acme", &quick));
    let quick = quick?;
    assert_eq!((quick.status.as_u16(), &quick.body["status"]), (200, &json!(200)), "{quick:?}");
    let mut statuses = Vec::new();
    for answer in all {
        let answer = answer?;
        if answer.status == 429 {
            check(&answer, "one test call too many");
            assert_eq!(answer.headers["retry-after"], "1");
        }
        statuses.push(answer.status.as_u16());
    }
    let count = |status: u16| statuses.iter().filter(|other| **other == status).count();
    assert_eq!((count(200), count(429)), (32, 8), "{statuses:?}");
    assert_eq!(test("many", &hanging).await?.status, 200, "there is room again");
    world.finish().await
}

/// Of many tenants, each with no more than it may have: more of them than a dispatcher has messages in hand.
pub(crate) async fn test_calls_of_many_that_hang_keep_nobody_waiting() -> anyhow::Result<()> {
    const MANY: usize = 24;
    const HANGS: Duration = seconds(25);
    let few = vec![("DOORBELL_PREFETCH".to_owned(), "8".to_owned())];
    let setup = Setup { dispatchers: 1, dispatcher_extra: few, ..Setup::default() };
    let world = World::with("testmany", setup).await?;
    world.receiver.behave("hangs", Behaviour::Slow(HANGS));
    let test = async |tenant: String| {
        let list = format!("/v1/tenants/{tenant}/subscriptions");
        let mut body = subscription(&world.receiver.url("hangs"), &["a.#"]);
        body["timeout"] = json!("30s");
        let created = world.control.call(Method::POST, &list, body).await?.body;
        let id = created["id"].as_str().context("not created")?;
        world.control.call(Method::POST, &format!("{list}/{id}/test"), Value::Null).await
    };
    let all = futures_util::future::join_all((0..MANY).map(|n| test(format!("t-{n}"))));
    for answer in all.await {
        let answer = answer?;
        assert_eq!((answer.status.as_u16(), &answer.body["status"]), (200, &json!(200)));
    }
    let came: Vec<_> = world.receiver.posts_to("hangs").iter().map(|post| post.at).collect();
    let (first, last) = (came.iter().min().context("none")?, came.iter().max().context("none")?);
    assert_eq!(came.len(), MANY);
    assert!(*last - *first < HANGS, "the last one waited for the first one's end");
    world.finish().await
}

/// Bodies that no route takes.
fn bodies() -> Vec<(&'static str, Vec<u8>)> {
    let text = |text: &str| text.as_bytes().to_vec();
    vec![
        ("cut off", text("{\"url\":")),
        ("two values", text("{} {}")),
        ("a trailing comma", text("{\"url\":1,}")),
        ("not JSON", text("<xml/>")),
        ("a list", text("[]")),
        ("a number", text("1")),
        ("null", text("null")),
        ("a text", text("\"x\"")),
        ("a name twice", text("{\"label\":\"a\",\"label\":\"b\"}")),
        (
            "a name twice, further in",
            text(
                r#"{"url":"https://example.com/","events":["a"],"headers":{"x-a":"1","x-a":"2"}}"#,
            ),
        ),
        (
            "an operator twice",
            text(
                r#"{"url":"https://example.com/","events":["a"],"filter":{"data":{"$gt":1,"$gt":2}}}"#,
            ),
        ),
        ("very many unknown names", {
            let names: Vec<String> = (0..10_000).map(|n| format!("\"{n}\":1")).collect();
            text(&format!("{{{}}}", names.join(",")))
        }),
        ("an unknown name", text("{\"\\u0000colour\":\"red\"}")),
        ("invalid UTF-8", b"{\"label\":\"\xff\xfe\"}".to_vec()),
        ("a half surrogate", text("{\"label\":\"\\ud800\"}")),
        ("NUL", b"{\"label\":\"\0\"}".to_vec()),
        ("deep lists", text(&"[".repeat(100_000))),
        (
            "deep and closed",
            text(&format!("{{\"metadata\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000))),
        ),
        ("deep objects", text(&"{\"a\":".repeat(100_000))),
        ("huge", text(&format!("{{\"description\":\"{}\"}}", "x".repeat(12 * 1024 * 1024)))),
        (
            "wrong kinds",
            text(
                r#"{"url":[],"events":{},"status":1,"headers":[1],"retry":[],"filter":1,"template":[],"scopes":1,"label":{},"schema":1,"event_types":{},"overlap":[],"metadata":"x"}"#,
            ),
        ),
    ]
}

fn check(answer: &Answer, what: &str) {
    assert!(answer.status.is_client_error(), "{what}: {answer:?}");
    assert_eq!(answer.headers["content-type"], "application/problem+json", "{what}");
    let problem = &answer.body;
    assert_eq!(problem["status"], answer.status.as_u16(), "{what}: {problem}");
    assert!(
        problem["detail"].as_str().is_some_and(|detail| !detail.is_empty()),
        "{what}: {problem}"
    );
    assert!(
        problem["instance"].as_str().is_some_and(|id| id.starts_with("urn:")),
        "{what}: {problem}"
    );
    // Whoever is told what is wrong is told where, too.
    let places = problem["errors"].as_array().cloned().unwrap_or_default();
    assert!(
        answer.status != 422 || !places.is_empty() || problem["detail"].as_str().is_some(),
        "{what}: {problem}"
    );
    assert!(problem.to_string().len() < 20_000, "{what}: a problem is short");
}
