//! What the services hand to each other: an event for later, a page of a fan-out, a parcel of deliveries or several.
//! Each hand-off has a deterministic name, so that a copy of one can be told.

mod bundle;
mod parcel;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::fan_out::SlotRange;
use crate::ids::{Addressee, SubscriptionId};
use crate::outcome::OutcomeClass;
use crate::time::Timestamp;

pub use bundle::Bundle;
pub use parcel::Parcel;

/// Deliveries that travel in one message at most.
pub(crate) const MOST: usize = 64;

/// How long a hand-off that ended is remembered; copies come within moments of each other, if RabbitMQ does
/// not stand still between.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// The same where another event may have the same name: one that is published under the same id once that is
/// no copy any more.
const REMEMBERED_BRIEFLY: Duration = Duration::from_secs(120);

/// A unit of work in one of our own queues.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// An event to be matched once its time has come.
    Event(DueEvent),
    /// Subscriptions of an event that are still to be served.
    Page(Page),
    /// One event for one subscription, or for a few.
    Parcel(Parcel),
    /// The same of several events.
    Bundle(Bundle),
}

/// The name of a hand-off: no other has it, and each copy does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HandOff {
    /// What the same work has in all its hand-offs.
    pub chain: String,
    /// Which of these it is.
    pub sequence: u32,
    /// For how long after its end a copy of it is told.
    pub remembered: Duration,
}

impl fmt::Display for HandOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.chain, self.sequence)
    }
}

/// An event to be matched at a certain time.
#[derive(Clone, Debug, PartialEq)]
pub struct DueEvent {
    /// The event.
    pub event: Arc<Event>,
    /// Not before this time.
    pub due: Timestamp,
    /// Whether we gave the event its time, as it came without one: a copy may have been given another.
    pub dated_by_us: bool,
    /// Raised by one at each publish of ours.
    pub sequence: u32,
}

/// A part of an event's subscriptions, still to be served.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The event.
    pub event: Arc<Event>,
    /// For those in these slots that want it. If they are more than a page, they are split.
    pub slots: SlotRange,
    /// Raised by one at each publish of ours.
    pub sequence: u32,
}

/// One event for one subscription.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// The event.
    pub event: Arc<Event>,
    /// The rest, which travels beside the event.
    pub state: DeliveryState,
}

/// How far a delivery has come.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeliveryState {
    /// For whom.
    pub subscription: SubscriptionId,
    /// How often it was redriven by an operator.
    #[serde(default)]
    pub generation: u32,
    /// Raised by one at each publish of ours; the broker's own moves keep it.
    #[serde(default)]
    pub sequence: u32,
    /// Attempts made so far.
    #[serde(default)]
    pub attempts: u32,
    /// When the delivery began.
    #[serde(rename = "created_at_ms", with = "millis")]
    pub created_at: Timestamp,
    /// How often it was held at the gate since its last attempt.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub holds: u32,
    /// How long it has waited through no fault of its own, in milliseconds. Does not count
    /// towards its expiry.
    #[serde(default)]
    pub held_ms: u64,
    /// Since when it is held, while it is.
    #[serde(
        default,
        rename = "held_since_ms",
        with = "optional_millis",
        skip_serializing_if = "Option::is_none"
    )]
    pub held_since: Option<Timestamp>,
    /// What comes next.
    pub stage: Stage,
    /// The last failed attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<Failure>,
}

/// What comes next for a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// An attempt has just failed; nothing is decided yet.
    Failed,
    /// The next attempt comes at this time.
    Due(#[serde(with = "millis")] Timestamp),
}

/// What is remembered of a failed attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What it meant.
    pub outcome: OutcomeClass,
    /// The status, where there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// In plain words.
    #[serde(default)]
    pub detail: String,
    /// Which endpoint it was ([`crate::subscription::Subscription::endpoint`]).
    #[serde(default)]
    pub endpoint: String,
    /// When the attempt began.
    #[serde(rename = "started_at_ms", with = "millis")]
    pub started_at: Timestamp,
    /// When it ended: delays run from here.
    #[serde(rename = "ended_at_ms", with = "millis")]
    pub ended_at: Timestamp,
    /// How long the endpoint asked to be left alone, in milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

impl DueEvent {
    fn hand_off(&self) -> HandOff {
        let (name, remembered) = if self.dated_by_us {
            (format!("{}/{}", self.event.tenant, self.event.id), REMEMBERED_BRIEFLY)
        } else {
            (self.event.name(), REMEMBERED)
        };
        HandOff { chain: format!("{name}/event/0"), sequence: self.sequence, remembered }
    }
}

impl Page {
    fn hand_off(&self) -> HandOff {
        let SlotRange { first, end } = self.slots;
        let chain = format!("{}/slots-{first}-{end}", self.event.name());
        HandOff { chain, sequence: self.sequence, remembered: REMEMBERED }
    }
}

impl Delivery {
    /// A delivery that begins now.
    #[must_use]
    pub fn begin(event: Arc<Event>, subscription: SubscriptionId, now: Timestamp) -> Self {
        let state = DeliveryState {
            subscription,
            generation: 0,
            sequence: 0,
            attempts: 0,
            created_at: now,
            holds: 0,
            held_ms: 0,
            held_since: None,
            stage: Stage::Due(now),
            last_failure: None,
        };
        Self { event, state }
    }

    /// The name of this hand-off: the same for each copy, another one for each next hand-off.
    #[must_use]
    pub fn name(&self) -> String {
        self.state.hand_off(&self.event).to_string()
    }

    /// The same delivery after one more attempt, which failed.
    #[must_use]
    pub fn after_failure(mut self, failure: Failure) -> Self {
        self.state.attempts = self.state.attempts.saturating_add(1);
        self.state.holds = 0;
        self.state.stage = Stage::Failed;
        self.state.last_failure = Some(failure);
        self
    }

    /// The same delivery, held at the gate at `now`, until then. Waiting there is no fault of its
    /// own.
    #[must_use]
    pub fn hold_at_gate(mut self, until: Timestamp, now: Timestamp) -> Self {
        self.state.holds = self.state.holds.saturating_add(1);
        self.state.stage = Stage::Due(until);
        self.add_held(until.since(now));
        self
    }

    /// The same delivery, held from now on.
    #[must_use]
    pub fn hold(mut self, now: Timestamp) -> Self {
        self.state.held_since.get_or_insert(now);
        self
    }

    /// The same delivery, no longer held; the time of its hold is added up.
    #[must_use]
    pub fn resume(mut self, now: Timestamp) -> Self {
        if let Some(since) = self.state.held_since.take() {
            self.add_held(now.since(since));
        }
        self
    }

    /// Adds a time that does not count towards the expiry.
    pub fn add_held(&mut self, time: Duration) {
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        self.state.held_ms = self.state.held_ms.saturating_add(millis);
    }
}

impl DeliveryState {
    fn hand_off(&self, event: &Event) -> HandOff {
        let chain = format!("{}/{}/{}", event.name(), self.subscription, self.generation);
        HandOff { chain, sequence: self.sequence, remembered: REMEMBERED }
    }
}

impl Work {
    /// The name of the message that it travels in: the same for each copy, another one for each next
    /// hand-off. At most 255 bytes, so that it fits a message id.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Event(due) => due.hand_off().to_string(),
            Self::Page(page) => page.hand_off().to_string(),
            Self::Parcel(parcel) => parcel.name(),
            Self::Bundle(bundle) => bundle.name(),
        }
    }

    /// The hand-offs that it is: one, or that of each delivery of its parcels.
    #[must_use]
    pub fn hand_offs(&self) -> Vec<HandOff> {
        match self {
            Self::Event(due) => vec![due.hand_off()],
            Self::Page(page) => vec![page.hand_off()],
            Self::Parcel(parcel) => parcel.hand_offs().collect(),
            Self::Bundle(bundle) => bundle.parcels().flat_map(Parcel::hand_offs).collect(),
        }
    }

    /// How many [hand-offs](Self::hand_offs) it is.
    #[must_use]
    pub fn hand_off_count(&self) -> usize {
        match self {
            Self::Event(_) | Self::Page(_) => 1,
            Self::Parcel(parcel) => parcel.states.len(),
            Self::Bundle(bundle) => bundle.parcels().map(|parcel| parcel.states.len()).sum(),
        }
    }

    /// The event that it is about; of several the first.
    #[must_use]
    pub fn first_event(&self) -> &Arc<Event> {
        match self {
            Self::Event(due) => &due.event,
            Self::Page(page) => &page.event,
            Self::Parcel(parcel) => &parcel.event,
            Self::Bundle(bundle) => bundle.first_event(),
        }
    }

    /// Whose events it is about.
    #[must_use]
    pub fn tenant(&self) -> &Addressee {
        &self.first_event().tenant
    }

    /// How many events it is about.
    #[must_use]
    pub fn events(&self) -> usize {
        match self {
            Self::Event(_) | Self::Page(_) | Self::Parcel(_) => 1,
            Self::Bundle(bundle) => bundle.parcels().count(),
        }
    }

    /// The highest number of a hand-off that it is.
    #[must_use]
    pub fn sequence(&self) -> u32 {
        match self {
            Self::Event(due) => due.sequence,
            Self::Page(page) => page.sequence,
            Self::Parcel(parcel) => parcel.sequence(),
            Self::Bundle(bundle) => bundle.parcels().map(Parcel::sequence).max().unwrap_or(0),
        }
    }

    /// The same work under the name of the next hand-off. Whoever publishes calls this once.
    #[must_use]
    pub fn next(mut self) -> Self {
        let raise = |sequence: &mut u32| *sequence = sequence.wrapping_add(1);
        match &mut self {
            Self::Event(due) => raise(&mut due.sequence),
            Self::Page(page) => raise(&mut page.sequence),
            Self::Parcel(parcel) => parcel.raise(),
            Self::Bundle(bundle) => bundle.raise(),
        }
        self
    }
}

/// A number in `[0, 1)` that depends on the name alone, so that two copies of one hand-off draw
/// the same jitter.
#[must_use]
pub fn chance(name: &str) -> f64 {
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(name.as_bytes());
    let mut bytes = [0; 4];
    bytes.copy_from_slice(digest.get(..4).unwrap_or(&[0; 4]));
    f64::from(u32::from_be_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Timestamps as plain milliseconds, for messages between services.
pub(crate) mod millis {
    use serde::{Deserialize, Deserializer, Serializer};

    use crate::time::Timestamp;

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
    pub(crate) fn serialize<S: Serializer>(
        time: &Timestamp,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(time.as_millis())
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Timestamp, D::Error> {
        i64::deserialize(deserializer).map(Timestamp::from_millis)
    }
}

/// The same for a time that may be absent.
mod optional_millis {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::time::Timestamp;

    #[expect(clippy::ref_option, reason = "the signature that serde asks for")]
    pub(super) fn serialize<S: Serializer>(
        time: &Option<Timestamp>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        time.map(Timestamp::as_millis).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Timestamp>, D::Error> {
        Ok(Option::<i64>::deserialize(deserializer)?.map(Timestamp::from_millis))
    }
}

#[cfg(test)]
mod tests;
