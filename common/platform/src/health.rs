//! What this service depends on, whether each is there, and since when. `/readyz` and the metrics
//! show it; the loops ask it before they take work in.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use doorbell_common::time::Timestamp;
use prometheus::{IntGaugeVec, Opts, Registry};
use serde::Serialize;
use tokio::time::Instant;

use crate::clock;

/// A dependency of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Dependency {
    /// The connection to RabbitMQ that publishes.
    RabbitmqPublish,
    /// The connection to RabbitMQ that consumes.
    RabbitmqConsume,
    /// Redis, reachable and initialised.
    Redis,
}

impl Dependency {
    fn as_str(self) -> &'static str {
        match self {
            Self::RabbitmqPublish => "rabbitmq_publish",
            Self::RabbitmqConsume => "rabbitmq_consume",
            Self::Redis => "redis",
        }
    }
}

/// How a dependency is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Condition {
    /// Whether it can be used.
    pub up: bool,
    /// Since when it is so.
    pub since: Timestamp,
    /// What is wrong, in a sentence; empty while it is up.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Whether readiness depends on it.
    pub required: bool,
    /// When it became so, whatever the clock was set to since.
    #[serde(skip)]
    changed: Instant,
}

/// The conditions of all dependencies. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Health {
    conditions: Arc<Mutex<BTreeMap<Dependency, Condition>>>,
    gauge: IntGaugeVec,
}

impl Health {
    /// Watches these dependencies, each down until reported up; the flag says whether readiness
    /// depends on it.
    ///
    /// # Errors
    /// The metric is registered already.
    pub fn new(
        registry: &Registry,
        dependencies: &[(Dependency, bool)],
    ) -> prometheus::Result<Self> {
        let opts =
            Opts::new("doorbell_dependency_up", "Whether a dependency can be used (1) or not (0).");
        let gauge = IntGaugeVec::new(opts, &["dependency"])?;
        registry.register(Box::new(gauge.clone()))?;
        let conditions = dependencies
            .iter()
            .map(|(dependency, required)| {
                gauge.with_label_values(&[dependency.as_str()]).set(0);
                let detail = "not connected yet".to_owned();
                (
                    *dependency,
                    Condition {
                        up: false,
                        since: clock::now(),
                        detail,
                        required: *required,
                        changed: Instant::now(),
                    },
                )
            })
            .collect();
        Ok(Self { conditions: Arc::new(Mutex::new(conditions)), gauge })
    }

    /// Notes that a dependency can be used; logged when it could not be before.
    pub fn up(&self, dependency: Dependency) {
        self.set(dependency, true, String::new());
    }

    /// Notes that a dependency can't be used, and why; logged when that is news.
    pub fn down(&self, dependency: Dependency, detail: impl Into<String>) {
        self.set(dependency, false, detail.into());
    }

    fn set(&self, dependency: Dependency, up: bool, detail: String) {
        let mut conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(condition) = conditions.get_mut(&dependency) else { return };
        if condition.up == up && condition.detail == detail {
            return;
        }
        if condition.up != up {
            (condition.since, condition.changed) = (clock::now(), Instant::now());
            self.gauge.with_label_values(&[dependency.as_str()]).set(i64::from(up));
        }
        match up {
            true => tracing::info!(dependency = dependency.as_str(), "dependency is up"),
            false => tracing::warn!(dependency = dependency.as_str(), detail, "dependency is down"),
        }
        condition.up = up;
        condition.detail = detail;
    }

    /// Whether a dependency can be used.
    #[must_use]
    pub fn is_up(&self, dependency: Dependency) -> bool {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        conditions.get(&dependency).is_some_and(|condition| condition.up)
    }

    /// For how long a dependency could not be used; zero while it can.
    #[must_use]
    pub fn down_for(&self, dependency: Dependency) -> Duration {
        let conditions = self.conditions.lock().unwrap_or_else(PoisonError::into_inner);
        let down = conditions.get(&dependency).filter(|condition| !condition.up);
        down.map_or(Duration::ZERO, |condition| condition.changed.elapsed())
    }

    /// Whether every dependency that readiness depends on can be used.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.snapshot().values().all(|condition| condition.up || !condition.required)
    }

    /// Every condition.
    #[must_use]
    pub fn snapshot(&self) -> BTreeMap<Dependency, Condition> {
        self.conditions.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
