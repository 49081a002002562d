//! The record of one attempt, as it goes to the stream of attempts: one JSON object a line.

use serde::{Deserialize, Serialize};

use crate::event::EventType;
use crate::ids::{EventId, SubscriptionId, TenantId};
use crate::outcome::OutcomeClass;
use crate::time::Timestamp;

/// One HTTP POST and what came back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttemptRecord {
    /// Whose event.
    pub tenant: TenantId,
    /// Which event.
    pub event: EventId,
    /// Of which type.
    #[serde(rename = "type")]
    pub event_type: EventType,
    /// For whom.
    pub subscription: SubscriptionId,
    /// 1, 2, 3 …
    pub attempt: u32,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// What it meant.
    pub outcome: OutcomeClass,
    /// The status, where there was an answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// In plain words, for failures.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// The start of the answer's body, for failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Whether there was more of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub truncated: bool,
}
