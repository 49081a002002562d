//! The harness: real engines, the real services as processes, receivers that keep a ledger.
//!
//! [`engines`] starts RabbitMQ and Redis, [`world`] a whole Doorbell in a fresh virtual host and
//! under a fresh key prefix, [`receiver`] the endpoints, [`ledger`] checks that what was accepted
//! arrived as it should: no loss, no foreign delivery, no changed byte, no early retry.
#![expect(clippy::print_stderr, reason = "tests talk to a terminal")]

pub mod amqp;
pub mod api;
pub mod backup;
pub mod chaos;
pub mod dns;
pub mod engines;
pub mod ledger;
pub mod load;
pub mod proxy;
pub mod receiver;
pub mod redis_cluster;
pub mod tls_front;
pub mod wait;
pub mod world;

pub use receiver::{Behaviour, Receiver};
pub use wait::{eventually, within};
pub use world::{Setup, World};
