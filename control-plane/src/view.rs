//! A subscription as the API shows it: everything but its secrets.

use doorbell_common::subscription::Status;
use doorbell_common::subscription::Subscription;
use serde_json::{Value, json};

/// Shows a subscription.
pub(crate) fn subscription(subscription: &Subscription) -> Value {
    json!({
        "id": subscription.id,
        "name": subscription.name,
        "url": subscription.url,
        "events": subscription.events,
        "filter": subscription.filter,
        "status": status(subscription),
        "verification": subscription.verification,
        "disabled_reason": subscription.disabled_reason,
        "description": subscription.description,
        "metadata": subscription.metadata,
        "payload": subscription.payload,
        "template": subscription.template,
        "headers": subscription.headers,
        "timeout": subscription.timeout,
        "retry": subscription.retry,
        "rate_limit": subscription.rate_limit,
        "max_concurrency": subscription.max_concurrency,
        "signature": subscription.signature,
        "asymmetric_signature": subscription.public_key().is_some(),
        "public_key": subscription.public_key(),
        "created_at": subscription.created_at,
        "updated_at": subscription.updated_at,
    })
}

/// What a subscription's status may be shown as.
pub(crate) const STATUSES: [&str; 4] = ["active", "paused", "disabled", "unverified"];

/// An active subscription whose endpoint has not said yes is shown as what it waits for.
pub(crate) fn status(subscription: &Subscription) -> &'static str {
    let [active, paused, disabled, unverified] = STATUSES;
    match subscription.status {
        Status::Active if !subscription.is_verified() => unverified,
        Status::Active => active,
        Status::Paused => paused,
        Status::Disabled => disabled,
    }
}
