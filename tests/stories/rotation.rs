//! A secret changed under traffic: whoever holds either one can verify every POST.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_tests::load::Load;
use doorbell_tests::wait::seconds;
use doorbell_tests::{World, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::time::Instant;

pub(crate) async fn every_post_verifies_with_either_secret() -> anyhow::Result<()> {
    let world = Arc::new(World::start("rotate").await?);
    let id = world.subscribe("acme", "all", &["#"]).await?;
    world.in_force().await;
    let path = format!("/v1/tenants/acme/subscriptions/{id}/secret");
    let text = |value: &Value| value["secret"].as_str().map(str::to_owned).context("no secret");
    let old = text(&world.control.call(Method::GET, &path, Value::Null).await?.body)?;
    let load = Load::over_http(&world, "acme", Duration::from_millis(5));
    eventually("load flows", seconds(60), || async { world.receiver.count("all") > 50 }).await?;
    let answer = world
        .control
        .call(Method::POST, &format!("{path}/rotate"), json!({"overlap": "1h"}))
        .await?;
    let (new, known_since) = (text(&answer.body)?, Instant::now());
    let before = world.receiver.count("all");
    eventually("load flows on", seconds(60), || async {
        world.receiver.count("all") > before + 100 && known_since.elapsed() > seconds(6)
    })
    .await?;
    // Without an overlap the old one ends.
    let last = world
        .control
        .call(Method::POST, &format!("{path}/rotate"), json!({"overlap": "0s"}))
        .await?;
    let (newest, ended) = (text(&last.body)?, Instant::now());
    world.receiver.add_secret("all", &newest);
    let before = world.receiver.count("all");
    eventually("load flows on", seconds(60), || async {
        world.receiver.count("all") > before + 50
    })
    .await?;
    load.end().await?;
    let verifies = |secret: &str, post: &doorbell_tests::receiver::Post| {
        Webhook::new(secret).is_ok_and(|hook| hook.verify(&post.body, &post.headers).is_ok())
    };
    let (mut with_old, mut with_new) = (0, 0);
    // The last rotation took effect at some moment of the two seconds before its answer.
    for post in world.receiver.posts_to("all") {
        if post.at < ended - seconds(3) {
            assert!(
                verifies(&old, &post),
                "the holder of the old secret could not verify {}",
                post.id
            );
            with_old += 1;
        }
        if post.at > known_since && post.at < ended - seconds(3) {
            assert!(
                verifies(&new, &post),
                "the holder of the new secret could not verify {}",
                post.id
            );
            with_new += 1;
        }
        if post.at > ended {
            assert!(verifies(&newest, &post) && !verifies(&old, &post) && !verifies(&new, &post));
        }
    }
    eprintln!(
        "rotation under traffic: {with_old} POSTs verified with the old secret, {with_new} with the new one"
    );
    assert!(with_new > 20);
    Arc::into_inner(world).unwrap().finish().await
}
