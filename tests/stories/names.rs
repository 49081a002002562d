//! Endpoints by name: what a name leads to is judged, and one that leads nowhere keeps nobody waiting.

use doorbell_tests::api::subscription;
use doorbell_tests::dns::{DEAD, NameServer};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Setup, World, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Names whose servers say nothing: more than a system's resolver has threads.
const HANGING: usize = 600;
const GOOD: usize = 20;

pub(crate) async fn names_that_hang_keep_nobody_waiting() -> anyhow::Result<()> {
    let (world, names) = start("names").await?;
    let hanging: String = (0..HANGING)
        .map(|n| {
            let mut body = at(&world, &format!("hangs-{n}"));
            body["timeout"] = "15s".into();
            format!("{body}\n")
        })
        .collect();
    world.control.lines("/v1/tenants/hanging/subscriptions/bulk", hanging).await?;
    for n in 0..GOOD {
        let endpoint = format!("good-{n}");
        world.subscribe_as("good", &endpoint, at(&world, &endpoint)).await?;
    }
    world.in_force().await;
    world.publish("hanging", "a.made", json!({})).await?;
    eventually("the names that hang are asked for", seconds(20), || async {
        names.asked("hangs") == HANGING
    })
    .await?;
    world.publish("good", "a.made", json!({})).await?;
    eventually("the good ones come", seconds(20), || async {
        (0..GOOD).all(|n| world.receiver.accepted(&format!("good-{n}")) == 1)
    })
    .await?;
    let given_up = "doorbell_dead_letters_total{reason=\"exhausted\"}";
    assert!(world.metric(given_up).await? < 100.0, "while the others still hang");
    eventually("the others are given up", seconds(60), || async {
        world.metric(given_up).await.is_ok_and(|count| count >= 600.0)
    })
    .await?;
    world.settle(seconds(60)).await?;
    world.finish().await
}

pub(crate) async fn what_a_name_leads_to_is_judged() -> anyhow::Result<()> {
    let (world, _names) = start("rebinding").await?;
    for (name, outcome, detail) in [
        ("nowhere", "dns", "there is no such name"),
        ("private", "blocked", "leads to the address 10.0.0.1"),
        ("good", "delivered", ""),
    ] {
        let list = "/v1/tenants/acme/subscriptions";
        let created = world.control.call(Method::POST, list, at(&world, name)).await?.body;
        let path = format!("{list}/{}/test", created["id"].as_str().unwrap_or_default());
        let answer = world.control.call(Method::POST, &path, Value::Null).await?.body;
        assert_eq!(answer["outcome"], outcome, "{answer}");
        assert!(
            answer["detail"].as_str().is_some_and(|found| found.contains(detail)),
            "{detail}: {answer}"
        );
    }
    world.finish().await
}

/// Of the two addresses of a name one swallows what is sent there, as that of a machine that is lost does.
pub(crate) async fn another_address_of_a_name_is_called_where_one_is_dead() -> anyhow::Result<()> {
    const EVENTS: usize = 12;
    let (world, _names) = start("addresses").await?;
    let port = world.receiver.address().port();
    let swallowing = TcpSocket::new_v4()?;
    swallowing.bind((DEAD, port).into())?;
    // Whoever comes after the few that wait here to be accepted hears nothing.
    let listener = swallowing.listen(1)?;
    let mut waiting = Vec::new();
    while let Ok(connected) = timeout(seconds(1), TcpStream::connect((DEAD, port))).await {
        waiting.push(connected?);
    }
    world.subscribe_as("acme", "two", at(&world, "two")).await?;
    world.in_force().await;
    for n in 0..EVENTS {
        world.publish("acme", "a.made", n.into()).await?;
    }
    world.settle(seconds(60)).await?;
    assert_eq!(world.receiver.count("two"), EVENTS, "each at the first attempt");
    drop((listener, waiting));
    world.finish().await
}

async fn start(name: &str) -> anyhow::Result<(World, NameServer)> {
    start_with(name, Setup::default()).await
}

/// A world whose dispatchers ask a name server of ours.
pub(crate) async fn start_with(
    name: &str,
    mut setup: Setup,
) -> anyhow::Result<(World, NameServer)> {
    let names = NameServer::start().await?;
    let servers = ("DOORBELL_DNS_SERVERS".to_owned(), names.address.to_string());
    setup.dispatcher_extra.push(servers);
    Ok((World::with(name, setup).await?, names))
}

/// A subscription for an endpoint of ours, by a name that begins as it does; tried once.
pub(crate) fn at(world: &World, endpoint: &str) -> Value {
    let url = world.receiver.url(endpoint);
    let mut body =
        subscription(&url.replace("127.0.0.1", &format!("{endpoint}.names.dev")), &["#"]);
    body["retry"] = json!({"schedule": []});
    body
}
