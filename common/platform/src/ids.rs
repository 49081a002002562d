//! The only place that mints ids.

use doorbell_common::ids::EventId;

use crate::clock;

/// A new event id, `evt_` and 32 hexadecimal digits that rise with time (UUID version 7).
#[must_use]
pub fn event_id() -> EventId {
    #[expect(clippy::disallowed_methods, reason = "this is the one place that mints ids")]
    let id = format!("evt_{}", uuid::Uuid::now_v7().simple());
    // The text above always is an id: letters, digits and one underscore, 36 characters.
    id.parse().unwrap_or_else(|_| unreachable!("a minted id is valid"))
}

/// A random token to compare by equality: versions, epochs, request ids.
#[must_use]
pub fn token() -> String {
    format!("{:032x}", clock::random_bits())
}
