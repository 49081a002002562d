//! Our matcher against RabbitMQ's own topic exchange.

use std::collections::BTreeSet;

use doorbell_common::pattern::Pattern;
use doorbell_platform::clock;
use doorbell_tests::amqp::Outsider;
use doorbell_tests::engines;
use lapin::options::{
    BasicPublishOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use lapin::{BasicProperties, ExchangeKind};

pub(crate) async fn our_matcher_agrees_with_rabbitmq() -> anyhow::Result<()> {
    let engines = engines::shared().await?;
    engines.make_vhost("patterns").await?;
    let outsider = Outsider::connect(&engines.amqp_url("patterns")).await?;
    let channel = &outsider.channel;
    channel
        .exchange_declare(
            "topics".into(),
            ExchangeKind::Topic,
            ExchangeDeclareOptions::default(),
            FieldTable::default(),
        )
        .await?;
    let mut patterns: BTreeSet<String> =
        (0..60).map(|_| words(&["a", "b", "c", "*", "#"], 5)).collect();
    // RabbitMQ 4.3 binds with no more than these.
    patterns.retain(|pattern| pattern.matches('#').count() <= 2);
    let types: BTreeSet<String> = (0..60).map(|_| words(&["a", "b", "c"], 5)).collect();
    for pattern in &patterns {
        let options = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
        channel.queue_declare(pattern.as_str().into(), options, FieldTable::default()).await?;
        channel
            .queue_bind(
                pattern.as_str().into(),
                "topics".into(),
                pattern.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
    }
    for event_type in &types {
        let options = BasicPublishOptions::default();
        let confirm = channel
            .basic_publish(
                "topics".into(),
                event_type.as_str().into(),
                options,
                b"",
                BasicProperties::default(),
            )
            .await?;
        assert!(confirm.await?.is_ack());
    }
    let mut matched = 0;
    for text in &patterns {
        let mut theirs = BTreeSet::new();
        while let Some(message) = outsider.take(text).await? {
            theirs.insert(message.routing_key.to_string());
        }
        let pattern: Pattern = text.parse()?;
        let ours: BTreeSet<String> = types
            .iter()
            .filter(|t| t.parse().is_ok_and(|t| pattern.matches(&t)))
            .cloned()
            .collect();
        assert_eq!(ours, theirs, "pattern {text}");
        matched += ours.len();
    }
    eprintln!(
        "{} patterns on {} types: {matched} matches, all agreed",
        patterns.len(),
        types.len()
    );
    Ok(())
}

/// One to `most` words between dots.
fn words(from: &[&str], most: u32) -> String {
    let pick =
        |n: usize| usize::try_from(clock::random_bits() % u128::try_from(n).unwrap()).unwrap();
    let count = 1 + pick(usize::try_from(most).unwrap());
    (0..count).map(|_| from[pick(from.len())]).collect::<Vec<_>>().join(".")
}
