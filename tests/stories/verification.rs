//! Endpoints that are asked first: nothing comes to them before they have said yes.

use doorbell_tests::api::{Api, subscription};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Behaviour, Setup, World, eventually};
use reqwest::Method;
use serde_json::{Value, json};

pub(crate) async fn nothing_comes_before_a_yes() -> anyhow::Result<()> {
    let world = World::start("verify").await?;
    for (endpoint, way) in [("echo", "challenge"), ("shake", "cloudevents")] {
        let mut body = subscription(&world.receiver.url(endpoint), &["#"]);
        body["verification"] = way.into();
        body["payload"] = "cloudevents".into();
        let id = world.subscribe_as(endpoint, endpoint, body).await?;
        let path = format!("/v1/tenants/{endpoint}/subscriptions/{id}");
        let status = || async {
            let shown = world.control.call(Method::GET, &path, Value::Null).await?;
            anyhow::Ok(shown.body["status"].as_str().unwrap_or_default().to_owned())
        };
        assert_eq!(status().await?, "unverified");
        eventually("it is asked by itself", seconds(20), || async {
            world.receiver.asked(endpoint) == 1
        })
        .await?;
        world.in_force().await;
        world.publish(endpoint, "a.made", json!({"for": endpoint})).await?;
        let verify = format!("{path}/verify");
        let answer = world.control.call(Method::POST, &verify, Value::Null).await?;
        assert_eq!(
            (answer.status.as_u16(), &answer.body["verified"]),
            (200, &json!(false)),
            "{answer:?}"
        );
        assert!(answer.body["detail"].as_str().is_some_and(|detail| detail.contains("no yes")));
        assert_eq!((status().await?.as_str(), world.receiver.count(endpoint)), ("unverified", 0));

        world.receiver.is_willing(endpoint);
        let answer = world.control.call(Method::POST, &verify, Value::Null).await?;
        assert_eq!(answer.body, json!({"verified": true, "detail": ""}));
        assert_eq!(status().await?, "active");
        eventually("what was kept comes", seconds(60), || async {
            world.receiver.accepted(endpoint) > 0
        })
        .await?;
    }
    world.settle(seconds(90)).await?;
    for post in world.receiver.posts() {
        assert_eq!(post.headers["content-type"], "application/cloudevents+json");
        let event: Value = serde_json::from_slice(&post.body)?;
        assert_eq!((&event["specversion"], &event["id"]), (&json!("1.0"), &json!(post.id)));
        assert_eq!(event["source"], format!("urn:doorbell:tenant:{}", post.endpoint));
    }
    world.finish().await
}

pub(crate) async fn whoever_says_yes_later_is_asked_again() -> anyhow::Result<()> {
    let world = World::start("verifylater").await?;
    let hanging: Vec<String> = (0..60).map(|n| format!("hangs-{n}")).collect();
    let mut lines = String::new();
    for endpoint in &hanging {
        world.receiver.behave(endpoint, Behaviour::Slow(seconds(10)));
        let mut body = subscription(&world.receiver.url(endpoint), &["#"]);
        body["verification"] = "challenge".into();
        lines.push_str(&format!("{body}\n"));
    }
    world.control.lines("/v1/tenants/many/subscriptions/bulk", lines).await?;
    // Sixty that say nothing for three seconds each keep nobody else waiting.
    let mut body = subscription(&world.receiver.url("later"), &["#"]);
    body["verification"] = "challenge".into();
    let list = "/v1/tenants/acme/subscriptions";
    let created = world.control.call(Method::POST, list, body).await?.body;
    let path = format!("{list}/{}", created["id"].as_str().unwrap_or_default());
    eventually("it is asked", seconds(15), || async { world.receiver.asked("later") > 0 }).await?;
    let asked = |endpoints: &[String]| {
        endpoints.iter().filter(|endpoint| world.receiver.asked(endpoint) > 0).count()
    };
    assert!(asked(&hanging) < 30, "{} were asked before", asked(&hanging));
    world.kill_and_restart("control-plane").await?;
    world.until_all_ready().await?;
    world.receiver.is_willing("later");
    eventually("it is asked again", seconds(40), || async {
        let shown = world.control.call(Method::GET, &path, Value::Null).await;
        shown.is_ok_and(|shown| shown.body["status"] == "active")
    })
    .await?;
    eventually("the others are asked, too", seconds(120), || async {
        asked(&hanging) == hanging.len()
    })
    .await?;
    world.finish().await
}

pub(crate) async fn another_url_is_another_endpoint() -> anyhow::Result<()> {
    let every = ("DOORBELL_VERIFY_ENDPOINTS".to_owned(), "challenge".to_owned());
    let world = World::with("verifyall", Setup { extra: vec![every], ..Setup::default() }).await?;
    world.receiver.is_willing("first");
    let body = subscription(&world.receiver.url("first"), &["a.#"]);
    let list = "/v1/tenants/acme/subscriptions";
    let created = world.control.call(Method::POST, list, body.clone()).await?.body;
    assert_eq!(created["verification"], "challenge");
    let id = created["id"].as_str().unwrap_or_default();
    let path = format!("{list}/{id}");
    let is = |status: &'static str| {
        let (world, path) = (&world, &path);
        eventually(status, seconds(20), move || async move {
            let shown = world.control.call(Method::GET, path, Value::Null).await;
            shown.is_ok_and(|shown| shown.body["status"] == status)
        })
    };
    is("active").await?;
    let moved = json!({"url": world.receiver.url("second")});
    let changed = world.control.call(Method::PATCH, &path, moved).await?.body;
    assert_eq!(changed["status"], "unverified");
    eventually("the other one is asked", seconds(20), || async {
        world.receiver.asked("second") > 0
    })
    .await?;
    let back = json!({"url": world.receiver.url("first"), "description": "as before"});
    let changed = world.control.call(Method::PATCH, &path, back).await?.body;
    assert_eq!((&changed["status"], world.receiver.asked("first")), (&json!("active"), 1));

    let never = json!({"verification": "none"});
    let refused = world.control.call(Method::PATCH, &path, never).await?;
    assert_eq!(
        (refused.status.as_u16(), Api::pointers(&refused)),
        (422, vec!["/verification".to_owned()])
    );
    world.finish().await
}
