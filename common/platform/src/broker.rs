//! RabbitMQ: connections over a list of hosts, the queues and exchanges, publishing with
//! confirms, consuming with coalesced acknowledgements.
//!
//! Publishing and consuming use separate connections, because a blocked connection writes
//! nothing, acknowledgements included. The client's own recovery stays off: it leaves consumers
//! that look alive and get nothing. Instead, [`publisher`] and [`consumer`] each run a supervisor
//! that rebuilds what broke.

pub mod connection;
pub mod consumer;
mod dial;
mod errand;
pub mod message;
pub mod publisher;
mod readable;
pub mod stream;
pub mod topology;

pub use connection::{Broker, Declares};
pub use consumer::{Afterwards, ConsumerSpec, Incoming, Intake, Settle};
pub use errand::Errand;
pub use message::{Message, Received};
pub use publisher::{PublishError, Publisher};
