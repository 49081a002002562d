//! Events whose payload is to be kept no longer, wherever they are: in a queue, held, or given up.
//!
//! What still waits is dropped when it is next looked at, which a delay queue puts off by its length at
//! most. Streams forget by age: theirs, and as long as it takes until a day's records are in segments of
//! their own.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::ids::{Addressee, EventId, InvalidId, TenantId};
use crate::time::Timestamp;

/// After so long nothing of a removed event can be read any more: the age of dead letters, and a day
/// each until its segment is closed, until that is looked at, and to be sure.
pub const GONE_AFTER: Duration = Duration::from_secs(33 * 24 * 3600);
/// How often streams begin a new segment while something is to be removed.
pub const ROLL_EVERY: Duration = Duration::from_secs(24 * 3600);

/// What is removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// One event.
    Event(Addressee, EventId),
    /// All that a tenant, who was deleted, had until then.
    Tenant(TenantId),
}

impl fmt::Display for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Event(tenant, event) => write!(f, "{tenant}/{event}"),
            Self::Tenant(tenant) => write!(f, "{tenant}/"),
        }
    }
}

impl FromStr for Removed {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        match text.split_once('/') {
            Some((tenant, "")) => tenant.parse().map(Self::Tenant),
            Some((tenant, event)) => Ok(Self::Event(tenant.parse()?, event.parse()?)),
            None => Err(InvalidId::Character),
        }
    }
}

/// Since when something is to be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// When that was asked for.
    pub requested_at: Timestamp,
}

impl Removal {
    /// From when on nothing of it can be read any more.
    #[must_use]
    pub fn gone_by(self) -> Timestamp {
        self.requested_at.plus(GONE_AFTER)
    }

    /// Whether that time has come.
    #[must_use]
    pub fn is_done(self, now: Timestamp) -> bool {
        self.gone_by() <= now
    }
}

/// The events that are to be removed.
#[derive(Clone, Debug, Default)]
pub struct RemovedEvents(HashMap<Addressee, HashSet<EventId>>);

impl RemovedEvents {
    /// Whether this is one of them.
    #[must_use]
    pub fn has(&self, tenant: &Addressee, event: &EventId) -> bool {
        self.0.get(tenant).is_some_and(|events| events.contains(event))
    }
}

impl FromIterator<Removed> for RemovedEvents {
    /// Those of a deleted tenant are not named one by one: its subscriptions are gone, and their
    /// deliveries with them.
    fn from_iter<I: IntoIterator<Item = Removed>>(removed: I) -> Self {
        let mut events: HashMap<Addressee, HashSet<EventId>> = HashMap::new();
        for one in removed {
            if let Removed::Event(tenant, event) = one {
                events.entry(tenant).or_default().insert(event);
            }
        }
        Self(events)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_reads_back() {
        for text in ["acme/evt_1", "*/evt_1", "acme/"] {
            assert_eq!(text.parse::<Removed>().unwrap().to_string(), text);
        }
        for wrong in ["acme", "", "/", "*/", "a b/x", "acme/x y"] {
            assert!(wrong.parse::<Removed>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_what_was_named_is_removed() {
        let names = ["acme/evt_1", "*/evt_2", "other/"];
        let removed: RemovedEvents = names.iter().map(|name| name.parse().unwrap()).collect();
        for (tenant, event, expected) in [
            ("acme", "evt_1", true),
            ("acme", "evt_2", false),
            ("*", "evt_2", true),
            ("other", "evt_1", false),
        ] {
            let found = removed.has(&tenant.parse().unwrap(), &event.parse().unwrap());
            assert_eq!(found, expected, "{tenant} {event}");
        }
    }

    #[test]
    fn it_is_done_when_the_last_stream_has_forgotten() {
        let removal = Removal { requested_at: Timestamp::from_seconds(1000) };
        assert!(!removal.is_done(Timestamp::from_seconds(1000 + 32 * 86_400)));
        assert!(removal.is_done(Timestamp::from_seconds(1000 + 33 * 86_400)));
    }
}
