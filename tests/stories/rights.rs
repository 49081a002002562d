//! What services and publishers need to be allowed at RabbitMQ and Redis: what the README says, and no more.

use std::time::Duration;

use doorbell_producer::{NewEvent, PublishError, Publisher};
use doorbell_tests::api::subscription;
use doorbell_tests::engines::{self, Rights};
use doorbell_tests::wait::seconds;
use doorbell_tests::{Setup, World, amqp::Outsider, eventually};
use lapin::ExchangeKind;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::FieldTable;
use reqwest::Method;
use serde_json::{Value, json};

use crate::deployments::{exercise, manage};

/// Those of an application that publishes.
const PUBLISHER: Rights = Rights { configure: "^$", write: r"^doorbell\.events$", read: "^$" };

pub(crate) async fn services_and_publishers_need_few() -> anyhow::Result<()> {
    let world = World::with("rights", Setup { restricted: true, ..Setup::default() }).await?;
    manage(&world).await?;
    // Those who are asked, and who are tried, are asked and told by dispatchers, who answer over RabbitMQ.
    world.receiver.is_willing("asked");
    let mut asked = subscription(&world.receiver.url("asked"), &["payment.#"]);
    asked["verification"] = json!("cloudevents");
    world.subscribe_as("gamma", "asked", asked).await?;
    let list = "/v1/tenants/gamma/subscriptions";
    let tried = subscription(&world.receiver.url("tried"), &["nothing"]);
    let tried = world.control.call(Method::POST, list, tried).await?.body;
    let path = format!("{list}/{}/test", tried["id"].as_str().unwrap_or_default());
    for _ in 0..3 {
        let tested = world.control.call(Method::POST, &path, Value::Null).await?;
        assert_eq!((tested.status.as_u16(), &tested.body["outcome"]), (200, &json!("delivered")));
    }
    world.in_force().await;
    let user = format!("{}-publisher", world.vhost);
    world.engines.make_user(&user, &world.vhost, PUBLISHER).await?;
    let publisher = Publisher::connect(&world.engines.amqp_url_of(&user, &world.vhost)).await?;
    for n in 0..20 {
        let data = n.to_string();
        let sent = publisher.publish(&NewEvent::new("gamma", "payment.made", &*data)).await?;
        world.ledger.accepted("gamma", "payment.made", sent.as_str(), &data);
    }
    publisher.close().await;
    exercise(&world).await?;
    let refused = world.metric("doorbell_redis_failures_total{reason=\"refused\"}").await?;
    assert_eq!(refused.to_bits(), 0.0_f64.to_bits(), "Redis refused something");
    world.finish().await
}

pub(crate) async fn what_is_missing_is_said() -> anyhow::Result<()> {
    let engines = engines::shared().await?;
    let vhost = "rights-missing";
    engines.make_vhost(vhost).await?;
    engines.make_user("early", vhost, PUBLISHER).await?;
    let connected = Publisher::connect(&engines.amqp_url_of("early", vhost)).await;
    let Err(PublishError::Connect(why)) = connected else { panic!("{connected:?}") };
    assert!(why.contains("not there yet") && why.contains("ACCESS_REFUSED"), "{why}");
    // Once there are, it may not publish.
    Publisher::connect(&engines.amqp_url(vhost)).await?.close().await;
    let nothing = Rights { write: "^$", ..PUBLISHER };
    engines.make_user("powerless", vhost, nothing).await?;
    let publisher = Publisher::connect(&engines.amqp_url_of("powerless", vhost)).await?;
    let refused = publisher.publish(&NewEvent::new("acme", "a.b", "1")).await;
    let why = refused.unwrap_err().to_string();
    assert!(why.contains("ACCESS_REFUSED") && why.contains("doorbell.events"), "{why}");
    publisher.close().await;
    engines.manage(Method::DELETE, &format!("vhosts/{vhost}")).await?;
    Ok(())
}

/// What an exchange takes that leads nowhere is confirmed, and lost.
pub(crate) async fn what_others_publish_to_is_there_last() -> anyhow::Result<()> {
    let engines = engines::shared().await?;
    let vhost = "rights-first";
    engines.make_vhost(vhost).await?;
    let outsider = Outsider::connect(&engines.amqp_url(vhost)).await?;
    let is_there = || async { exchange_is_there(&outsider, "doorbell.events").await };
    let url = engines.amqp_url(vhost);
    let (connected, queues) = tokio::join!(Publisher::connect(&url), async {
        eventually("there is an exchange for events", seconds(60), is_there).await?;
        let mut queues: Vec<String> = (0..16).map(|n| format!("doorbell.events.{n}")).collect();
        queues.extend(["doorbell.retries", "doorbell.delay.1s"].map(str::to_owned));
        let mut there = Vec::new();
        for queue in queues {
            let depth = Outsider::connect(&url).await?.depth(&queue).await;
            there.push((queue, depth.ok()));
        }
        anyhow::Ok((there, exchange_is_there(&outsider, "doorbell.ingress.sharded").await))
    });
    connected?.close().await;
    let (queues, leads_there) = queues?;
    assert!(leads_there && queues.iter().all(|(_, depth)| *depth == Some(0)), "{queues:?}");
    engines.manage(Method::DELETE, &format!("vhosts/{vhost}")).await?;
    Ok(())
}

async fn exchange_is_there(outsider: &Outsider, exchange: &str) -> bool {
    let options = ExchangeDeclareOptions { passive: true, ..ExchangeDeclareOptions::default() };
    let kind = ExchangeKind::Topic;
    let looked = async {
        let channel = outsider.channel().await?;
        channel.exchange_declare(exchange.into(), kind, options, FieldTable::default()).await?;
        channel.close(200, "looked".into()).await?;
        anyhow::Ok(())
    };
    tokio::time::timeout(Duration::from_secs(10), looked).await.is_ok_and(|looked| looked.is_ok())
}
