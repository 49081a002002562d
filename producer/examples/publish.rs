//! Publishes a hundred payments and says how long RabbitMQ took to have them all.
//!
//! `cargo run --example publish -- amqp://127.0.0.1:5672/%2f acme`
#![expect(clippy::print_stdout, reason = "an example talks to a terminal")]

use doorbell_producer::{NewEvent, Publisher};
use tokio::time::Instant;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut args = std::env::args().skip(1);
    let url = args.next().unwrap_or_else(|| "amqp://127.0.0.1:5672/%2f".to_owned());
    let tenant = args.next().unwrap_or_else(|| "acme".to_owned());
    let publisher = Publisher::connect(&url).await?;
    let events: Vec<NewEvent> = (1..=100)
        .map(|n| {
            NewEvent::new(
                tenant.as_str(),
                "payment.succeeded",
                format!(r#"{{"id": {n}, "amount": 1999}}"#),
            )
        })
        .collect();
    let start = Instant::now();
    for result in publisher.publish_many(&events).await {
        result?;
    }
    println!("100 events confirmed after {:?}", start.elapsed());
    publisher.close().await;
    Ok(())
}
