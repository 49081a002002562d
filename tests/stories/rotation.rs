//! A secret changed under traffic: whoever holds either one can verify every POST.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use doorbell_tests::api::subscription;
use doorbell_tests::load::Load;
use doorbell_tests::receiver::Post;
use doorbell_tests::wait::seconds;
use doorbell_tests::{World, eventually};
use ed25519_dalek::{Signature, VerifyingKey};
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
    let verifies = |secret: &str, post: &Post| {
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

pub(crate) async fn a_public_key_verifies_and_rotates_with_the_secret() -> anyhow::Result<()> {
    let world = World::start("publickey").await?;
    let mut body = subscription(&world.receiver.url("hook"), &["#"]);
    let id = world.subscribe_as("acme", "hook", body.clone()).await?;
    let path = format!("/v1/tenants/acme/subscriptions/{id}");
    let shown = world.control.call(Method::GET, &path, Value::Null).await?.body;
    assert_eq!(
        (&shown["asymmetric_signature"], &shown["public_key"]),
        (&json!(false), &Value::Null)
    );
    let asked = json!({"asymmetric_signature": true});
    let changed = world.control.call(Method::PATCH, &path, asked.clone()).await?.body;
    let old = changed["public_key"].as_str().context("no public key")?.to_owned();
    let again = world.control.call(Method::PATCH, &path, asked).await?.body;
    assert_eq!(again["public_key"], old, "asking twice makes no other key");
    world.in_force().await;
    world.publish("acme", "a.made", json!(1)).await?;
    world.settle(seconds(30)).await?;

    let rotate = format!("{path}/secret/rotate");
    let rotated = world.control.call(Method::POST, &rotate, json!({"overlap": "1h"})).await?;
    world.receiver.add_secret("hook", rotated.body["secret"].as_str().context("no secret")?);
    let shown = world.control.call(Method::GET, &path, Value::Null).await?.body;
    let new = shown["public_key"].as_str().context("no public key")?.to_owned();
    assert_ne!(new, old);
    world.publish("acme", "a.made", json!(2)).await?;
    world.settle(seconds(30)).await?;
    let posts = world.receiver.posts_to("hook");
    for (post, expected) in posts.iter().zip([[true, false], [true, true]]) {
        assert!(post.verified, "the official library verifies what has both");
        let verified = [&old, &new].map(|key| verifies_with(key, post).unwrap_or(false));
        assert_eq!(verified, expected);
    }
    let none = json!({"asymmetric_signature": null});
    let changed = world.control.call(Method::PATCH, &path, none).await?.body;
    assert_eq!(changed["public_key"], Value::Null);
    body["asymmetric_signature"] = true.into();
    let created = world.control.call(Method::POST, "/v1/tenants/b/subscriptions", body).await?;
    assert!(created.body["public_key"].as_str().is_some_and(|key| key.starts_with("whpk_")));
    assert!(!created.body.to_string().contains("whsk_"));
    world.finish().await
}

/// Whether one of a POST's `v1a` signatures is of this public key.
fn verifies_with(public_key: &str, post: &Post) -> anyhow::Result<bool> {
    let key = STANDARD.decode(public_key.strip_prefix("whpk_").context("no public key")?)?;
    let key = VerifyingKey::try_from(key.as_slice())?;
    let header = |name: &str| post.headers.get(name).and_then(|value| value.to_str().ok());
    let (id, at) = header("webhook-id").zip(header("webhook-timestamp")).context("no headers")?;
    let signed = [format!("{id}.{at}.").as_bytes(), &post.body].concat();
    let signatures = header("webhook-signature").context("no signature")?.split(' ');
    let ours = signatures.filter_map(|text| STANDARD.decode(text.strip_prefix("v1a,")?).ok());
    let mut ours = ours.filter_map(|bytes| Signature::from_slice(&bytes).ok());
    Ok(ours.any(|signature| key.verify_strict(&signed, &signature).is_ok()))
}
