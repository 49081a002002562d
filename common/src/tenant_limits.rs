//! What the operator allows a tenant, if not everything.

use serde::{Deserialize, Serialize};

use crate::duration::DurationText;
use crate::rate::RateLimit;

/// A tenant may create all of its subscriptions anew so often within a day.
const TIMES_A_DAY: usize = 10;
/// So many it may create in any case.
const FEW: usize = 1000;

/// The limits of one tenant; what is absent is not limited.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TenantLimits {
    /// How many subscriptions it may have.
    #[serde(default)]
    pub max_subscriptions: Option<u32>,
    /// How many bytes the data of its events may have, if fewer than all others'.
    #[serde(default)]
    pub max_event_bytes: Option<u32>,
    /// How many events a second it may publish over HTTP, at each producer, and twice as many at once.
    #[serde(default)]
    pub events_per_second: Option<u32>,
    /// How long a delivery of its events may wait, all in all, before it is given up.
    #[serde(default)]
    pub retention: Option<DurationText>,
}

impl TenantLimits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether data of so many bytes is allowed.
    #[must_use]
    pub fn allows_bytes(&self, bytes: usize) -> bool {
        self.max_event_bytes
            .is_none_or(|most| usize::try_from(most).is_ok_and(|most| bytes <= most))
    }

    /// Whether so many subscriptions are allowed.
    #[must_use]
    pub fn allows_subscriptions(&self, count: usize) -> bool {
        self.max_subscriptions
            .is_none_or(|most| usize::try_from(most).is_ok_and(|most| count <= most))
    }

    /// How many subscriptions it may have, and how many it may create within a day, if that is limited.
    /// Those that are deleted leave something behind, so nobody creates and deletes all day.
    #[must_use]
    pub fn subscriptions(&self) -> Option<(usize, usize)> {
        let most = usize::try_from(self.max_subscriptions?).unwrap_or(usize::MAX);
        Some((most, most.saturating_mul(TIMES_A_DAY).max(FEW)))
    }

    /// The pace at which it may publish.
    #[must_use]
    pub fn pace(&self) -> Option<RateLimit> {
        let pace = |per_second: u32| RateLimit { per_second, burst: per_second.saturating_mul(2) };
        self.events_per_second.map(pace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_not_limited() {
        let none = TenantLimits::default();
        assert!(none.is_none() && none.allows_bytes(usize::MAX) && none.pace().is_none());
        assert!(none.allows_subscriptions(usize::MAX));
        let some: TenantLimits = serde_json::from_str(
            r#"{"max_subscriptions":2,"max_event_bytes":10,"events_per_second":5}"#,
        )
        .unwrap();
        assert!(some.allows_subscriptions(2) && !some.allows_subscriptions(3));
        assert_eq!((some.subscriptions(), none.subscriptions()), (Some((2, 1000)), None));
        let many = TenantLimits { max_subscriptions: Some(5000), ..none };
        assert_eq!(many.subscriptions(), Some((5000, 50_000)));
        assert!(some.allows_bytes(10) && !some.allows_bytes(11));
        assert_eq!(some.pace(), Some(RateLimit { per_second: 5, burst: 10 }));
    }
}
