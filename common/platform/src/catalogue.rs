//! The catalogue of event types as the services at the doors know it: the producer, and the dispatcher
//! for what is published over AMQP. Both must be told the same.

use doorbell_common::catalogue::{Catalogue, Enforcement, Objection};
use doorbell_common::event::EventType;
use prometheus::{IntCounter, Registry};

use crate::followed::{Followed, Versioned};
use crate::metrics::counter;
use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError};

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
    known: Followed<Catalogue>,
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
        let mut judge =
            Self { enforcement: args.event_types, known: Followed::default(), objected };
        if judge.enforcement != Enforcement::Off {
            judge.known = Followed::start(store, shutdown);
        }
        Ok(judge)
    }

    /// Waits until the catalogue is known, if it is for anything; `None` if the service is told to stop first.
    pub async fn until_known(&self, shutdown: &Shutdown) -> Option<()> {
        match self.enforcement {
            Enforcement::Off => Some(()),
            Enforcement::Warn | Enforcement::Reject => self.known.until_read(shutdown).await,
        }
    }

    /// Judges an event by its type and its data.
    #[must_use]
    pub fn judge(&self, event_type: &EventType, data: &[u8]) -> Judgement {
        let objection =
            self.known.current().and_then(|catalogue| catalogue.objection(event_type, data));
        let Some(objection) = objection else { return Judgement::Good };
        self.objected.inc();
        match self.enforcement {
            Enforcement::Off => Judgement::Good,
            Enforcement::Warn => Judgement::Warned(objection),
            Enforcement::Reject => Judgement::Refused(objection),
        }
    }
}

impl Versioned for Catalogue {
    const NAME: &'static str = "follower of the catalogue";

    async fn version(store: &Store) -> Result<Option<String>, StoreError> {
        store.event_types_version().await
    }

    async fn read(store: &Store, _: Option<(&Self, &str)>) -> Result<Self, StoreError> {
        Ok(Self::of(&store.event_types().await?.types))
    }
}
