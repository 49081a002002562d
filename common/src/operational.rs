//! Operational events: what Doorbell itself has done that the platform that runs it should know of. They
//! are events as all others are, of a tenant that the operator names, who subscribes to them as to others.

use std::sync::Arc;

use serde_json::json;

use crate::event::{Event, EventType, Trace};
use crate::ids::{Addressee, EventId, TenantId};
use crate::subscription::{DisabledReason, Subscription};

/// That a subscription was disabled by us, and why (`doorbell.subscription.disabled`). It says nothing but what
/// the record says, so each copy is the same event, with the same id.
#[must_use]
pub fn subscription_disabled(
    operators: &TenantId,
    subscription: &Subscription,
    reason: DisabledReason,
) -> Event {
    let disabled_at = subscription.updated_at;
    let data = json!({
        "tenant": subscription.tenant, "subscription": subscription.id, "name": subscription.name,
        "reason": reason.as_str(), "disabled_at": disabled_at,
    });
    Event {
        id: id(&format!("disabled_{}_{:x}", subscription.id, disabled_at.as_millis())),
        tenant: Addressee::Tenant(operators.clone()),
        event_type: event_type("doorbell.subscription.disabled"),
        timestamp: disabled_at,
        trace: Trace::default(),
        data: Arc::from(data.to_string().into_bytes()),
    }
}

fn id(text: &str) -> EventId {
    text.parse().unwrap_or_else(|_| unreachable!("made of letters, digits and underscores"))
}

fn event_type(text: &str) -> EventType {
    text.parse().unwrap_or_else(|_| unreachable!("written here, of words and dots"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Timestamp;

    #[test]
    fn a_disabled_subscription_is_told_of_without_anything_secret() {
        let subscription: Subscription = serde_json::from_value(json!({
            "id": "sub_0000010123456789abcdef01", "tenant": "acme", "name": "billing",
            "url": "https://example.com/hook?token=secret", "events": ["#"], "status": "disabled",
            "headers": {"x-secret": "secret"}, "timeout": "15s", "retry": {"schedule": ["5s"]},
            "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-02T03:04:05.678Z",
            "version": "1",
        }))
        .unwrap();
        let operators = "operators".parse().unwrap();
        let event = subscription_disabled(&operators, &subscription, DisabledReason::Failing);
        assert_eq!(event.id.as_str(), "disabled_sub_0000010123456789abcdef01_19b7ca98f2e");
        assert_eq!(event.tenant, Addressee::Tenant(operators.clone()));
        assert_eq!(event.timestamp, Timestamp::from_millis(1_767_323_045_678));
        let data: serde_json::Value = serde_json::from_slice(&event.data).unwrap();
        let expected = json!({
            "tenant": "acme", "subscription": "sub_0000010123456789abcdef01", "name": "billing",
            "reason": "failing", "disabled_at": "2026-01-02T03:04:05.678Z",
        });
        assert_eq!(data, expected);
        let again = subscription_disabled(&operators, &subscription, DisabledReason::Failing);
        assert_eq!(again, event);
    }
}
