//! Accepting one event: is it known, does RabbitMQ have it, note that it was accepted. In this
//! order, so that a note never speaks of an event that was lost.
//!
//! Events of a tenant that publishes more than its share go to the sideline.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use doorbell_common::api_key::{Denied, Scope, Whose};
use doorbell_common::catalogue::Objection;
use doorbell_common::ids::{Addressee, EventId};
use doorbell_common::intake::{JUDGED_HEADER, Refusal};
use doorbell_common::rate::Meters;
use doorbell_common::sideline::Lane;
use doorbell_platform::auth::Caller;
use doorbell_platform::broker::topology::SIDELINE;
use doorbell_platform::broker::{PublishError, Publisher};
use doorbell_platform::catalogue::{Judge, Judgement};
use doorbell_platform::clock;
use doorbell_platform::limits::Limits;
use doorbell_platform::removals::Removals;
use doorbell_platform::shares::Shares;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use doorbell_platform::store::notes::Note;

use super::metrics::Metrics;
use crate::event::{NewEvent, Ready, prepare, refusals};

/// Accepts events.
#[derive(Debug)]
pub(crate) struct Acceptor {
    pub(crate) publisher: Publisher,
    pub(crate) store: Store,
    pub(crate) judge: Judge,
    pub(crate) tenants: Tenants,
    pub(crate) removals: Removals,
    pub(crate) metrics: Metrics,
    pub(crate) max_event_bytes: usize,
    pub(crate) duplicate_window: Duration,
    pub(crate) shares: Shares,
}

/// What the operator allows tenants, and how much of it they have used.
#[derive(Debug)]
pub(crate) struct Tenants {
    limits: Limits,
    meters: Mutex<Meters<Addressee>>,
}

impl Tenants {
    pub(crate) fn start(store: Store, shutdown: &Shutdown) -> Self {
        Self { limits: Limits::start(store, shutdown), meters: Mutex::default() }
    }

    /// Waits until the limits are known; `None` if the service is told to stop first.
    async fn until_known(&self, shutdown: &Shutdown) -> Option<()> {
        self.limits.until_known(shutdown).await
    }

    /// Whether an event of so many bytes is within its tenant's limits.
    fn check(&self, tenant: &Addressee, bytes: usize) -> Result<(), NotAccepted> {
        let limits = self.limits.of(tenant);
        if !limits.allows_bytes(bytes) {
            return Err(NotAccepted::TooLarge(limits.max_event_bytes.unwrap_or_default()));
        }
        let Some(pace) = limits.pace() else { return Ok(()) };
        let now = clock::steady().as_micros();
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        if meters.of(tenant, now).admits(pace, now) {
            Ok(())
        } else {
            Err(NotAccepted::TooMany(pace.per_second))
        }
    }
}

/// An event that RabbitMQ has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Accepted {
    pub(crate) id: EventId,
    /// Whether it had it before.
    pub(crate) duplicate: bool,
    /// What there is to object to it all the same.
    pub(crate) warning: Option<Objection>,
}

/// Why an event was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotAccepted {
    /// Every rule of publishing that it breaks.
    #[error("it breaks the rules of publishing")]
    Refused(Vec<Refusal>),
    #[error("{0}")]
    Denied(#[from] Denied),
    #[error("{0}")]
    Objected(Objection),
    #[error("the data of this tenant's events may have at most {0} bytes")]
    TooLarge(u32),
    #[error("this tenant may publish {0} events a second")]
    TooMany(u32),
    #[error("this event is being removed: publish it with another id, if it is another one")]
    Removed,
    #[error("{0}")]
    Broker(#[from] PublishError),
}

impl Acceptor {
    /// Waits until all is known that events are judged by; `None` if the service is told to stop first.
    pub(crate) async fn until_known(&self, shutdown: &Shutdown) -> Option<()> {
        self.removals.until_known(shutdown).await?;
        self.judge.until_known(shutdown).await?;
        self.tenants.until_known(shutdown).await
    }

    /// Accepts one event from someone.
    pub(crate) async fn accept(
        &self,
        event: &NewEvent,
        caller: &Caller,
    ) -> Result<Accepted, NotAccepted> {
        let prepared = prepare(event, self.max_event_bytes).map_err(|_| {
            self.metrics.rejected.inc();
            NotAccepted::Refused(refusals(event, self.max_event_bytes))
        });
        let Ready { id, tenant, event_type, mut message } = prepared?;
        let whose = match &tenant {
            Addressee::Tenant(tenant) => Whose::Tenant(tenant),
            Addressee::Everyone => Whose::Everyones,
        };
        caller.grant.check(Scope::EventsPublish, whose)?;
        self.tenants
            .check(&tenant, message.body.len())
            .inspect_err(|_| self.metrics.rejected.inc())?;
        if event.id.is_some() && self.removals.has(&tenant, &id) {
            self.metrics.rejected.inc();
            return Err(NotAccepted::Removed);
        }
        let warning = match self.judge.judge(&event_type, &message.body) {
            Judgement::Good => None,
            Judgement::Warned(objection) => Some(objection),
            Judgement::Refused(objection) => {
                self.metrics.rejected.inc();
                return Err(NotAccepted::Objected(objection));
            }
        };
        let note = self.note(event, &tenant, &id);
        if let Some(note) = &note
            && self.is_known(note).await
        {
            self.metrics.duplicate.inc();
            return Ok(Accepted { id, duplicate: true, warning });
        }
        // What was accepted is not judged again: catalogue and limits may have changed by then.
        message.add_header(JUDGED_HEADER, "1");
        let is_aside = self.shares.lane(&tenant, 1) == Lane::Sideline;
        if is_aside {
            SIDELINE.clone_into(&mut message.exchange);
        }
        self.publisher.publish(message).await.inspect_err(|_| self.metrics.unconfirmed.inc())?;
        if let Some(note) = &note
            && self.store.is_up()
        {
            self.store.accept(note).await;
        }
        self.metrics.accepted.inc();
        self.metrics.sidelined.inc_by(u64::from(is_aside));
        Ok(Accepted { id, duplicate: false, warning })
    }

    /// Only an id that the publisher gave can come twice.
    fn note(&self, event: &NewEvent, tenant: &Addressee, id: &EventId) -> Option<Note> {
        event.id.as_ref()?;
        Some(self.store.event_note(tenant, id, self.duplicate_window))
    }

    /// With Redis away the event is accepted; the dispatcher decides.
    async fn is_known(&self, note: &Note) -> bool {
        self.store.is_up() && self.store.is_known(note).await.unwrap_or(false)
    }
}
