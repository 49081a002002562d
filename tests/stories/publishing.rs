//! What comes in, what is refused, and what is known of it.

use anyhow::Context as _;
use doorbell_local::services::Kind;
use doorbell_tests::api::subscription;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, amqp, eventually};
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub(crate) async fn copies_that_come_at_once_are_delivered_once() -> anyhow::Result<()> {
    const MANY: u32 = 300;
    const COPIES: u32 = 20;
    let world = World::start("copies").await?;
    world.subscribe("acme", "all", &["#"]).await?;
    world.in_force().await;
    let outsider = world.outsider().await?;
    for n in 0..30 {
        let id = format!("same-{n}");
        // Accepted over HTTP, and so noted; then many copies, that reach two dispatchers at once.
        let body = json!({"tenant": "acme", "type": "a", "id": id, "data": n});
        world.ledger.accepted("acme", "a", &id, &n.to_string());
        let copies = (0..20).map(|_| {
            outsider.publish("a", amqp::event("acme", Some(&id), &[]), n.to_string().into_bytes())
        });
        let (accepted, copies) = tokio::join!(
            world.producer.call(Method::POST, "/v1/events", body),
            futures_util::future::join_all(copies)
        );
        assert_eq!(accepted?.status, 202);
        copies.into_iter().collect::<anyhow::Result<()>>()?;
    }
    // So many that windows grow meanwhile, and channels take the place of others.
    let copies = (0..MANY * COPIES).map(|n| {
        let id = format!("many-{}", n / COPIES);
        if n % COPIES == 0 {
            world.ledger.accepted("acme", "a", &id, "1");
        }
        let outsider = &outsider;
        async move { outsider.publish("a", amqp::event("acme", Some(&id), &[]), b"1").await }
    });
    futures_util::future::try_join_all(copies).await?;
    world.settle(seconds(60)).await?;
    let all = 30 * 20 + MANY * (COPIES - 1);
    let dropped = || async { world.metric("doorbell_events_duplicate_total").await.unwrap_or(0.0) };
    eventually("the copies are dropped", seconds(60), || async {
        dropped().await > f64::from(all) - 0.5
    })
    .await
    .with_context(|| format!("{} were delivered", world.receiver.count("all")))?;
    assert_eq!(world.receiver.count("all"), 30 + usize::try_from(MANY)?);
    world.finish().await
}

pub(crate) async fn messages_that_break_the_rules_are_rejected() -> anyhow::Result<()> {
    let world = World::start("rejected").await?;
    world.subscribe("acme", "all", &["#"]).await?;
    world.in_force().await;
    let outsider = world.outsider().await?;
    let good = || amqp::event("acme", Some("evt-1"), &[]);
    let mut number = FieldTable::default();
    number.insert("doorbell-tenant".into(), AMQPValue::LongInt(5));
    let deep = "[".repeat(200) + &"]".repeat(200);
    let cases: Vec<(&str, BasicProperties, Vec<u8>, &str)> = vec![
        ("a..b", good(), b"{}".to_vec(), "empty word"),
        ("", good(), b"{}".to_vec(), "event type"),
        ("a", BasicProperties::default(), b"{}".to_vec(), "doorbell-tenant is missing"),
        ("a", BasicProperties::default().with_headers(number), b"{}".to_vec(), "not a string"),
        ("a", amqp::event("**", Some("evt-2"), &[]), b"{}".to_vec(), "tenant"),
        ("a", amqp::event("a b", Some("evt-3"), &[]), b"{}".to_vec(), "tenant"),
        ("a", amqp::event("acme", Some("a.b"), &[]), b"{}".to_vec(), "event id"),
        ("a", good().with_content_type("text/xml".into()), b"{}".to_vec(), "content type"),
        ("a", good(), b"{".to_vec(), "JSON"),
        ("a", good(), b"\xff".to_vec(), "UTF-8"),
        ("a", good(), deep.into_bytes(), "nested deeper"),
        ("a", good(), vec![b' '; 300 * 1024], "more than"),
        (
            "a",
            amqp::event("acme", Some("evt-4"), &[("doorbell-deliver-at", "soon")]),
            b"{}".to_vec(),
            "deliver-at",
        ),
        (
            "a",
            amqp::event("acme", Some("evt-5"), &[("doorbell-deliver-at", "2099-01-01T00:00:00Z")]),
            b"{}".to_vec(),
            "30 days",
        ),
    ];
    for (routing_key, properties, body, reason) in cases {
        // An expiration must not make the rejected copy vanish.
        let properties = properties.with_expiration("60000".into()).with_app_id("tests".into());
        outsider.publish(routing_key, properties, &body).await?;
        let waiting =
            || async { outsider.depth("doorbell.rejected").await.is_ok_and(|depth| depth > 0) };
        eventually(&format!("rejected: {reason}"), seconds(20), waiting).await?;
        let rejected = outsider.take("doorbell.rejected").await?.unwrap();
        assert_eq!(rejected.data, body, "the body stays as it came");
        assert_eq!(amqp::header(&rejected, "doorbell-routing-key").as_deref(), Some(routing_key));
        let said = amqp::header(&rejected, "doorbell-reason").unwrap();
        assert!(said.contains(reason), "{said} does not say {reason}");
        assert_eq!(
            rejected.properties.app_id().as_ref().map(ToString::to_string).as_deref(),
            Some("tests")
        );
    }
    assert!(world.receiver.posts().is_empty());
    world.finish().await
}

/// What publishers have who know no UTF-8: where they write DEL, it is no text any more.
async fn careless(world: &World) -> anyhow::Result<amqp::Outsider> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = world.engines.amqp_url(&world.vhost);
    let careful: lapin::uri::AMQPUri = url.parse().map_err(anyhow::Error::msg)?;
    let careless = url.replace(
        &format!(":{}/", careful.authority.port),
        &format!(":{}/", listener.local_addr()?.port()),
    );
    let relaying = async move {
        let (from, _) = listener.accept().await?;
        let to =
            TcpStream::connect((careful.authority.host.as_str(), careful.authority.port)).await?;
        let ((mut from, mut back), (mut answers, mut to)) = (from.into_split(), to.into_split());
        let answering = tokio::io::copy(&mut answers, &mut back);
        let asking = async move {
            let mut bytes = vec![0; 64 * 1024];
            loop {
                let count = from.read(&mut bytes).await?;
                if count == 0 {
                    return to.shutdown().await;
                }
                let bytes = &mut bytes[..count];
                bytes.iter_mut().filter(|byte| **byte == 0x7f).for_each(|byte| *byte = 0xff);
                to.write_all(bytes).await?;
            }
        };
        tokio::try_join!(answering, asking).map(drop)
    };
    doorbell_tests::receiver::spawn(async move {
        let _broken: std::io::Result<()> = relaying.await;
    });
    amqp::Outsider::connect(&careless).await
}

pub(crate) async fn what_is_no_text_ends_nobodys_connection() -> anyhow::Result<()> {
    let world = World::start("no-text").await?;
    world.subscribe("acme", "all", &["#"]).await?;
    world.in_force().await;
    let careless = careless(&world).await?;
    let event = |id: &str, headers: &[(&str, &str)]| amqp::event("acme", Some(id), headers);
    // Nothing says that these are no events.
    for (id, properties) in [
        ("app", event("app", &[]).with_app_id("caf\x7f".into())),
        ("header", event("header", &[("caf\x7f", "caf\x7f")])),
        ("reply", event("reply", &[]).with_reply_to("\x7f".into()).with_type("\x7f".into())),
    ] {
        world.ledger.accepted("acme", "a", id, "1");
        careless.publish("a", properties, b"1").await?;
    }
    for (routing_key, properties) in [
        ("caf\x7f", event("key", &[])),
        ("a", event("caf\x7f", &[])),
        ("a", event("content-type", &[]).with_content_type("text/\x7f".into())),
        ("a", event("tenant", &[("doorbell-tenant", "caf\x7f")])),
    ] {
        careless.publish(routing_key, properties, b"1").await?;
    }
    let outsider = world.outsider().await?;
    let rejected =
        || async { outsider.depth("doorbell.rejected").await.is_ok_and(|depth| depth == 4) };
    eventually("the others are rejected", seconds(30), rejected).await?;
    world.settle(seconds(30)).await?;
    assert!(world.ledger.duplicates(&world.receiver).is_empty());
    // Whoever brings them back has no trouble with them, either.
    world.command(Kind::RetryScheduler, &["redrive", "rejected"]).await?;
    eventually("they are rejected again", seconds(30), rejected).await?;
    for name in ["dispatcher-1", "dispatcher-2"] {
        let log = std::fs::read_to_string(world.environment.logs.join(format!("{name}.log")))?;
        assert!(!log.contains("lost"), "{name} has lost its connection:\n{log}");
    }
    world.finish_with(&[("doorbell.rejected", 4)]).await
}

pub(crate) async fn ids_and_times_are_given_and_kept() -> anyhow::Result<()> {
    let world = World::start("ids").await?;
    world.receiver.behave("all", Behaviour::FailFirst(1, 500));
    world.subscribe("acme", "all", &["#"]).await?;
    world.in_force().await;
    let outsider = world.outsider().await?;
    // Neither id nor time: both are given once and last over the retry.
    outsider.publish("no.id", amqp::event("acme", None, &[]), b"1").await?;
    eventually("the event without an id is retried", seconds(30), || async {
        world.receiver.count("all") == 2
    })
    .await?;
    let posts = world.receiver.posts_to("all");
    assert!(
        posts[0].id.starts_with("evt_")
            && posts[0].id == posts[1].id
            && posts[0].body == posts[1].body
    );
    world.ledger.accepted("acme", "no.id", &posts[0].id, "1");
    // The same id again and again, over both ways: delivered once.
    for _ in 0..3 {
        world.ledger.accepted("acme", "same.id", "same", "2");
        outsider.publish("same.id", amqp::event("acme", Some("same"), &[]), b"2").await?;
    }
    let again = json!({"tenant": "acme", "type": "same.id", "id": "same", "data": 2});
    eventually("the first is worked on", seconds(30), || async {
        world.receiver.count("all") >= 3
    })
    .await?;
    let answer = world.producer.call(Method::POST, "/v1/events", again).await?;
    assert_eq!((answer.status.as_u16(), &answer.body["duplicate"]), (202, &json!(true)));
    // Another tenant's same id is another event.
    world.subscribe("other", "theirs", &["#"]).await?;
    world.in_force().await;
    outsider.publish("same.id", amqp::event("other", Some("same"), &[]), b"2").await?;
    eventually("the other tenant gets its own", seconds(30), || async {
        world.receiver.accepted("theirs") == 1
    })
    .await?;
    // For later: not before its time, and then at once.
    let at = doorbell_platform::clock::now().plus(seconds(4));
    let later = amqp::event("acme", Some("later"), &[("doorbell-deliver-at", &at.to_string())]);
    world.ledger.accepted("acme", "for.later", "later", "3");
    outsider.publish("for.later", later, b"3").await?;
    let came = || async { world.receiver.posts().iter().any(|post| post.id == "later") };
    eventually("the event for later comes", seconds(30), came).await?;
    let early = doorbell_platform::clock::now() < at;
    assert!(!early, "it came before its time");
    let all_accepted = || async { world.receiver.accepted("all") == 3 };
    eventually("everything is delivered once", seconds(30), all_accepted).await?;
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}

pub(crate) async fn the_largest_events_go_every_way_that_others_go() -> anyhow::Result<()> {
    const MOST: usize = 1008 * 1024;
    let mut setup = Setup::default().without_breaker();
    setup.extra.push(("DOORBELL_MAX_EVENT_BYTES".to_owned(), MOST.to_string()));
    let world = World::with("largest", setup).await?;
    world.receiver.behave("fails", Behaviour::FailFirst(1, 500));
    let body = |endpoint: &str| {
        let mut body = subscription(&world.receiver.url(endpoint), &["#"]);
        body["retry"] = json!({ "schedule": ["1s"] });
        body
    };
    world.subscribe_as("acme", "fails", body("fails")).await?;
    let paused = world.subscribe_as("acme", "paused", body("paused")).await?;
    world.set_status("acme", &paused, "paused").await?;
    world.in_force().await;
    let outsider = world.outsider().await?;
    let data = format!("\"{}\"", "x".repeat(MOST - 2));
    // At once, for later, without a time, and over HTTP.
    let at = doorbell_platform::clock::now().plus(seconds(3)).to_string();
    let tracestate = format!("a={}", "x".repeat(500));
    let trace = [
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("tracestate", tracestate.as_str()),
    ];
    let later = [("doorbell-deliver-at", at.as_str())];
    for (id, properties) in [
        ("at-once", amqp::event("acme", Some("at-once"), &trace)),
        ("later", amqp::event("acme", Some("later"), &later)),
        ("undated", amqp::event("acme", None, &[]).with_message_id("undated".into())),
    ] {
        world.ledger.accepted("acme", "a.b", id, &data);
        outsider.publish("a.b", properties, &data).await?;
    }
    world.publish("acme", "a.b", json!("x".repeat(MOST - 2))).await?;
    let retried = || async { world.receiver.accepted("fails") == 4 };
    eventually("each is tried again", seconds(60), retried).await?;
    world.set_status("acme", &paused, "active").await?;
    world.settle(seconds(60)).await?;
    assert_eq!(world.duplicates().await?, 0);
    world.finish().await
}

pub(crate) async fn an_id_that_is_given_again_later_is_another_event() -> anyhow::Result<()> {
    let mut setup = Setup::default().without_breaker();
    setup.extra.push(("DOORBELL_DUPLICATE_WINDOW".to_owned(), "1s".to_owned()));
    let world = World::with("again", setup).await?;
    world.receiver.behave("fails", Behaviour::Status(500));
    let mut body = subscription(&world.receiver.url("fails"), &["#"]);
    body["retry"] = json!({ "schedule": ["1s", "1s"] });
    world.subscribe_as("acme", "fails", body).await?;
    world.in_force().await;
    let event = || json!({"tenant": "acme", "type": "a", "id": "order-1", "data": 1});
    world.ledger.accepted("acme", "a", "order-1", "1");
    assert_eq!(world.producer.call(Method::POST, "/v1/events", event()).await?.status, 202);
    let given_up = || async {
        let dead = world.metric("doorbell_dead_letters_total{reason=\"exhausted\"}").await;
        dead.is_ok_and(|dead| dead > 0.5)
    };
    eventually("it is given up", seconds(30), given_up).await?;
    let is_no_copy = || async {
        let answer = world.producer.call(Method::POST, "/v1/events", event()).await;
        answer.is_ok_and(|answer| answer.body["duplicate"] == json!(false))
    };
    eventually("its id may be given again", seconds(30), is_no_copy).await?;
    // What is known of the first one's retries says nothing of the second one's.
    eventually("the other is tried", seconds(30), || async { world.receiver.count("fails") >= 4 })
        .await?;
    world.receiver.behave("fails", Behaviour::Status(200));
    world.settle(seconds(30)).await?;
    assert_eq!(world.receiver.count("fails"), 5);
    world.finish().await
}

pub(crate) async fn the_http_api_accepts_what_is_confirmed() -> anyhow::Result<()> {
    let world = World::start("http").await?;
    world.subscribe("acme", "all", &["#"]).await?;
    world.in_force().await;
    // Exact bytes, a time with milliseconds, an id.
    let body = r#"{"tenant":"acme","type":"a.b","id":"exact","timestamp":"2026-01-02T03:04:05.678Z","data": {"x":1.50,"x":2} }"#;
    let json = [("content-type", "application/json"), ("x-request-id", "mine")];
    let answer = world.producer.raw(Method::POST, "/v1/events", &json, body).await?;
    assert_eq!(
        (answer.status.as_u16(), answer.body),
        (202, json!({"id": "exact", "duplicate": false}))
    );
    assert_eq!(answer.headers["x-request-id"], "mine");
    eventually("it arrives", seconds(20), || async { world.receiver.count("all") == 1 }).await?;
    let post = &world.receiver.posts_to("all")[0];
    let expected =
        r#"{"type":"a.b","timestamp":"2026-01-02T03:04:05.678Z","data":{"x":1.50,"x":2}}"#;
    assert_eq!(String::from_utf8_lossy(&post.body), expected);
    // Sent again with the same key it is the same event, without an id of its publisher's.
    let keyed = [("content-type", "application/json"), ("idempotency-key", "k-1")];
    let body = r#"{"tenant":"acme","type":"a.b","data":1}"#;
    let other = r#"{"tenant":"acme","type":"a.b","data":2}"#;
    let mut ids = Vec::new();
    for (body, duplicate) in [(body, false), (body, true), (other, false)] {
        let answer = world.producer.raw(Method::POST, "/v1/events", &keyed, body).await?;
        assert_eq!((answer.status.as_u16(), &answer.body["duplicate"]), (202, &json!(duplicate)));
        ids.push(answer.body["id"].clone());
    }
    assert!(ids[0] == ids[1] && ids[1] != ids[2], "{ids:?}");
    eventually("both arrive", seconds(20), || async { world.receiver.count("all") == 3 }).await?;
    let keyed = [("content-type", "application/json"), ("idempotency-key", "")];
    let answer = world.producer.raw(Method::POST, "/v1/events", &keyed, body).await?;
    assert_eq!(answer.status, 400);
    // What is refused, and how.
    let large = format!(r#"{{"tenant":"acme","type":"a","data":"{}"}}"#, "x".repeat(257 * 1024));
    let huge = "x".repeat(1024 * 1024);
    let cases: Vec<(&str, &str, &[u8], u16)> = vec![
        ("application/json", "Bearer wrong-key-0123456789", b"{}", 401),
        ("text/plain", "", b"{}", 415),
        ("application/json", "", b"{", 400),
        ("application/json", "", b"\xff\xfe", 400),
        ("application/json", "", b"[]", 422),
        ("application/json", "", br#"{"tenant":"acme","type":"a"}"#, 422),
        ("application/json", "", br#"{"tenant":"acme","type":"a","data":1,"colour":2}"#, 422),
        ("application/json", "", br#"{"tenant":"**","type":"a","data":1}"#, 422),
        ("application/json", "", large.as_bytes(), 413),
        ("application/json", "", huge.as_bytes(), 413),
    ];
    for (content_type, authorization, body, status) in cases {
        let mut headers = vec![("content-type", content_type)];
        if !authorization.is_empty() {
            headers.push(("authorization", authorization));
        }
        let answer =
            world.producer.raw(Method::POST, "/v1/events", &headers, body.to_vec()).await?;
        assert_eq!(answer.status.as_u16(), status, "{}", answer.body);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        assert!(answer.body["instance"].is_string());
    }
    // All that is wrong at once: names and kinds, and what the rest of the values mean.
    let wrong = br#"{"tenant":"a b","type":"a..b","id":7,"deliver_at":"soon","data":1,"colour":2}"#;
    let headers = [("content-type", "application/json")];
    let answer = world.producer.raw(Method::POST, "/v1/events", &headers, wrong.to_vec()).await?;
    let errors = answer.body["errors"].as_array().unwrap();
    let mut places: Vec<_> = errors.iter().filter_map(|error| error["pointer"].as_str()).collect();
    places.sort_unstable();
    assert_eq!(places, ["/colour", "/deliver_at", "/id", "/tenant", "/type"]);
    // Whatever the body is: what is said to be compressed is not looked into.
    let known = r#"{"tenant":"acme","type":"a.b","id":"exact","data":1}"#;
    for (coding, status) in [("gzip", 415), ("identity", 202)] {
        let headers = [("content-type", "application/json"), ("content-encoding", coding)];
        let answer = world.producer.raw(Method::POST, "/v1/events", &headers, known).await?;
        assert_eq!(answer.status.as_u16(), status, "{coding}: {}", answer.body);
    }
    let wrong = world.producer.call(Method::GET, "/v1/events", Value::Null).await?;
    assert_eq!(
        (wrong.status.as_u16(), wrong.headers["content-type"].to_str()?),
        (405, "application/problem+json")
    );
    // A batch: one bad line spoils no other.
    let lines = "{\"tenant\":\"acme\",\"type\":\"a\",\"data\":1}\nnonsense\n\n{\"tenant\":\"acme\",\"type\":\"a..b\",\"data\":1}\n{\"tenant\":\"acme\",\"type\":\"c\",\"id\":\"exact\",\"data\":3}\n";
    let ndjson = [("content-type", "application/x-ndjson")];
    let answer = world.producer.raw(Method::POST, "/v1/events/batch", &ndjson, lines).await?;
    let statuses: Vec<u64> = answer.body["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| r["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [202, 400, 422, 202]);
    assert_eq!(answer.body["results"][3]["duplicate"], true);
    let many = "{\"tenant\":\"acme\",\"type\":\"a\",\"data\":1}\n".repeat(1001);
    assert_eq!(
        world.producer.raw(Method::POST, "/v1/events/batch", &ndjson, many).await?.status.as_u16(),
        413
    );
    let thousand = "{\"tenant\":\"acme\",\"type\":\"a\",\"data\":1}\n".repeat(1000);
    let answer = world.producer.raw(Method::POST, "/v1/events/batch", &ndjson, thousand).await?;
    assert!(
        answer.body["results"].as_array().unwrap().iter().all(|result| result["status"] == 202)
    );
    eventually("all of the batches arrive", seconds(60), || async {
        world.receiver.accepted("all") == 1004
    })
    .await?;
    world.finish().await
}
