//! Publish events to Doorbell from Rust, over AMQP, with confirms.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use doorbell_producer::{NewEvent, Publisher};
//!
//! let publisher = Publisher::connect("amqp://127.0.0.1:5672/%2f").await?;
//! let event = NewEvent::new("acme", "payment.succeeded", r#"{"id": 7, "amount": 1999}"#);
//! let id = publisher.publish(&event).await?;
//! println!("RabbitMQ has {id}");
//! publisher.close().await;
//! # Ok(())
//! # }
//! ```

mod event;
mod publisher;
pub mod service;

pub use doorbell_common::ids::EventId;
pub use doorbell_common::intake::Refusal;
pub use doorbell_platform::broker::PublishError as BrokerError;
pub use event::NewEvent;
pub use publisher::{Options, PublishError, Publisher};
