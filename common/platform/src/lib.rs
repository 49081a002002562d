//! The plumbing that every Doorbell service shares: the broker, the store, configuration, health,
//! metrics, logs, and a clean way to stop.
//!
//! Nothing here decides anything about events or deliveries; that is `doorbell-common`.

pub mod admin;
pub mod args;
pub mod auth;
pub mod backoff;
pub mod broker;
pub mod catalogue;
pub mod clock;
pub mod followed;
pub mod health;
pub mod http;
pub mod ids;
pub mod limits;
mod logs;
pub mod metrics;
pub mod openapi;
pub mod patience;
pub mod permits;
pub mod plumbing;
pub mod problem;
pub mod recent;
pub mod removals;
pub mod sealing;
pub mod seldom;
pub mod sentence;
pub mod service;
pub mod shares;
pub mod shutdown;
pub mod store;
pub mod targets;
pub mod tls;
pub mod workshop;
