//! The catalogue of event types as the services at the doors know it: the producer, and the dispatcher
//! for what is published over AMQP. Both must be told the same.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use doorbell_common::catalogue::{Catalogue, Enforcement, Objection};
use doorbell_common::event::EventType;
use prometheus::{IntCounter, Registry};

use crate::metrics::counter;
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError};

/// How often the catalogue is looked at, where it is enforced.
const LOOK: Duration = Duration::from_millis(500);

/// The flag that says what the catalogue is for.
#[derive(Clone, Debug, clap::Args)]
pub struct CatalogueArgs {
    /// What is done about events whose type is not in the catalogue, or whose data is not as its schema says: off, warn or reject. Producer and dispatcher must have the same.
    #[arg(long, env = "DOORBELL_EVENT_TYPES", default_value = "off")]
    event_types: Enforcement,
}

/// Judges events by the catalogue. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Judge {
    enforcement: Enforcement,
    /// None until it was read first: then nobody objects to anything.
    known: Arc<RwLock<Option<Arc<Catalogue>>>>,
    objected: IntCounter,
}

/// What becomes of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is as it should be, or nobody looks.
    Good,
    /// It is taken in all the same.
    Warned(Objection),
    /// It is refused.
    Refused(Objection),
}

impl Judge {
    /// Follows the catalogue, if it is for anything.
    ///
    /// # Errors
    /// The metric is there already.
    pub fn start(
        args: &CatalogueArgs,
        store: Store,
        registry: &Registry,
        shutdown: &Shutdown,
    ) -> prometheus::Result<Self> {
        let objected = counter(
            registry,
            "doorbell_events_objected_total",
            "Events whose type is not in the catalogue, or whose data is not as its schema says.",
        )?;
        let judge = Self { enforcement: args.event_types, known: Arc::default(), objected };
        if judge.looks() {
            let following = judge.clone().follow(store, shutdown.clone());
            shutdown.spawn_vital("follower of the catalogue", following);
        }
        Ok(judge)
    }

    /// Whether anybody looks.
    #[must_use]
    pub fn looks(&self) -> bool {
        self.enforcement != Enforcement::Off
    }

    /// Judges an event by its type and its data.
    #[must_use]
    pub fn judge(&self, event_type: &EventType, data: &[u8]) -> Judgement {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).clone();
        let objection = known.and_then(|catalogue| catalogue.objection(event_type, data));
        let Some(objection) = objection else { return Judgement::Good };
        self.objected.inc();
        match self.enforcement {
            Enforcement::Off => Judgement::Good,
            Enforcement::Warn => Judgement::Warned(objection),
            Enforcement::Reject => Judgement::Refused(objection),
        }
    }

    async fn follow(self, store: Store, shutdown: Shutdown) {
        let mut version = None;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.until_finished(look.tick()).await.is_some() {
            if let Err(error) = self.read(&store, &mut version).await {
                tracing::debug!(%error, "the catalogue is not read");
            }
        }
    }

    /// Reads the catalogue, if it has changed.
    async fn read(
        &self,
        store: &Store,
        version: &mut Option<Option<String>>,
    ) -> Result<(), StoreError> {
        let current = store.if_up(store.event_types_version()).await?;
        if version.as_ref() == Some(&current) {
            return Ok(());
        }
        let catalogue = Catalogue::of(&store.event_types().await?);
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(catalogue));
        *version = Some(current);
        Ok(())
    }
}
