//! Runs the whole of Doorbell on one machine: private RabbitMQ and Redis, the four services, a
//! demo. The integration tests start their engines with the same code.

pub mod bench;
pub mod certificates;
pub mod demo;
pub mod down;
pub mod engines;
pub mod packages;
pub mod paths;
pub mod ports;
pub mod process;
pub mod receiver;
pub mod services;
pub mod state;
pub mod up;
