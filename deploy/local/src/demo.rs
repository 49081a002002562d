//! The demo: a platform that watches over reactors publishes warnings, three subscribers get what
//! they asked for, one of them only after two failures.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_producer::{NewEvent, Publisher};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::receiver::{Arrival, Receiver};
use crate::state::StackState;

/// How long the whole story may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// Name, patterns, and how often it fails first.
const SUBSCRIBERS: [(&str, &[&str], u32); 3] = [
    ("control-room", &["reactor.#"], 0),
    ("alarms", &["reactor.warning"], 2),
    ("archive", &["*.warning", "*.status"], 0),
];

/// Plays the demo on a running stack; `say` hears each line.
///
/// # Errors
/// Something did not arrive, or arrived unverified.
pub async fn play(stack: &StackState, say: impl Fn(&str)) -> anyhow::Result<()> {
    let (receiver, mut arrived) = Receiver::start().await?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    say("demo: three subscribers of the tenant \"reactor-watch\"");
    for (name, events, failures) in SUBSCRIBERS {
        let secret = subscribe(&http, stack, &receiver.url(name), events).await?;
        receiver.expect(name, &secret, failures);
        let twist = if failures > 0 { ", and will fail twice first" } else { "" };
        say(&format!("  {name:<13} wants {}{twist}", events.join(", ")));
    }
    // A change is in force everywhere within two seconds.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let mut expected = HashSet::new();
    let warning = publish_over_http(&http, stack).await?;
    say(&format!("demo: published reactor.warning over HTTP  → {warning}"));
    expected.extend(
        ["control-room", "alarms", "archive"].map(|name| (name.to_owned(), warning.clone())),
    );
    let status = publish_over_amqp(stack).await?;
    say(&format!("demo: published reactor.status over AMQP   → {status}"));
    expected.extend(["control-room", "archive"].map(|name| (name.to_owned(), status.clone())));
    watch(&mut arrived, expected, &say).await?;
    say("demo: everything arrived, every signature verified with the official library");
    Ok(())
}

async fn subscribe(
    http: &reqwest::Client,
    stack: &StackState,
    url: &str,
    events: &[&str],
) -> anyhow::Result<String> {
    let answer: Value = http
        .post(format!("{}/v1/tenants/reactor-watch/subscriptions", stack.control_plane_url))
        .bearer_auth(&stack.admin_key)
        .json(&json!({ "url": url, "events": events, "retry": { "schedule": ["2s", "4s", "8s"] } }))
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    answer["secret"].as_str().map(str::to_owned).context("the control-plane gave no secret")
}

async fn publish_over_http(http: &reqwest::Client, stack: &StackState) -> anyhow::Result<String> {
    let event = json!({
        "tenant": "reactor-watch", "type": "reactor.warning",
        "data": { "reactor": "R-4", "core_temperature_celsius": 342.5, "limit_celsius": 330 },
    });
    let answer: Value = http
        .post(format!("{}/v1/events", stack.producer_url))
        .bearer_auth(&stack.admin_key)
        .json(&event)
        .send()
        .await?
        .error_for_status()?
        .json()
        .await?;
    answer["id"].as_str().map(str::to_owned).context("the producer gave no id")
}

async fn publish_over_amqp(stack: &StackState) -> anyhow::Result<String> {
    let publisher = Publisher::connect(&stack.amqp_url).await?;
    let event = NewEvent::new(
        "reactor-watch",
        "reactor.status",
        r#"{"reactor": "R-4", "state": "nominal"}"#,
    );
    let id = publisher.publish(&event).await?;
    publisher.close().await;
    Ok(id.to_string())
}

async fn watch(
    arrived: &mut mpsc::UnboundedReceiver<Arrival>,
    mut expected: HashSet<(String, String)>,
    say: impl Fn(&str),
) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !expected.is_empty() {
        let next = tokio::time::timeout_at(deadline, arrived.recv()).await;
        let arrival = next
            .ok()
            .flatten()
            .with_context(|| format!("not arrived within {PATIENCE:?}: {expected:?}"))?;
        let verdict = if arrival.verified { "signature ok" } else { "SIGNATURE WRONG" };
        say(&format!(
            "  {:<13} got {} attempt {}  {verdict}  answered {}  {}",
            arrival.endpoint, arrival.id, arrival.attempt, arrival.status, arrival.body
        ));
        anyhow::ensure!(arrival.verified, "a signature was not accepted");
        if arrival.status < 300 {
            expected.remove(&(arrival.endpoint, arrival.id));
        }
    }
    Ok(())
}
