//! A subscription as the API shows it: everything but its secrets.

use doorbell_common::subscription::Subscription;
use serde_json::{Value, json};

/// Shows a subscription.
pub(crate) fn subscription(subscription: &Subscription) -> Value {
    json!({
        "id": subscription.id,
        "url": subscription.url,
        "events": subscription.events,
        "filter": subscription.filter,
        "status": subscription.status,
        "disabled_reason": subscription.disabled_reason,
        "description": subscription.description,
        "metadata": subscription.metadata,
        "payload": subscription.payload,
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
