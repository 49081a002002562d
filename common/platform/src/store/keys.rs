//! The names of Redis keys. Braces are hash tags: what stands in the same braces lives on the
//! same node of a cluster.

use doorbell_common::ids::{Addressee, EventId, SlotNumber, SubscriptionId, TenantId};
use doorbell_common::pattern::Pattern;

use super::lease::Lease;

/// Makes the names of keys.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self { prefix: prefix.to_owned() }
    }

    /// String: the epoch.
    pub(super) fn epoch(&self) -> String {
        format!("{}:{{main}}:epoch", self.prefix)
    }

    /// Stream: what changed, capped.
    pub(super) fn changes(&self) -> String {
        format!("{}:{{main}}:changes", self.prefix)
    }

    /// Counter: subscriptions ever created.
    pub(super) fn created(&self) -> String {
        format!("{}:{{main}}:subscriptions-created", self.prefix)
    }

    /// Number: slots that have been given their mark.
    pub(super) fn slots_marked(&self) -> String {
        format!("{}:{{main}}:slots-marked", self.prefix)
    }

    /// Hash, API key's id to its record.
    pub(super) fn api_keys(&self) -> String {
        format!("{}:{{main}}:api-keys", self.prefix)
    }

    /// Sorted set, all scores 0: the ids of API keys, or of those bound to one tenant.
    pub(super) fn api_key_ids(&self, tenant: Option<&TenantId>) -> String {
        match tenant {
            None => format!("{}:{{main}}:api-key-ids", self.prefix),
            Some(tenant) => format!("{}:{{main}}:api-key-ids:{tenant}", self.prefix),
        }
    }

    /// Hash, API key's id to when it was last used, in milliseconds since the Unix epoch.
    pub(super) fn api_key_uses(&self) -> String {
        format!("{}:{{main}}:api-key-uses", self.prefix)
    }

    /// Sorted set, all scores 0: tenants.
    pub(super) fn tenants(&self) -> String {
        format!("{}:{{main}}:tenants", self.prefix)
    }

    /// Hash: which subscriptions have held deliveries where in the stream, and how far it was read.
    pub(super) fn held(&self) -> String {
        format!("{}:{{main}}:held", self.prefix)
    }

    /// String with a TTL: who does just now what only one need do.
    pub(super) fn lease(&self, lease: Lease<'_>) -> String {
        format!("{}:{{main}}:lease:{lease}", self.prefix)
    }

    /// Set: the ids of the keys with which secrets are sealed.
    pub(super) fn sealing_keys(&self) -> String {
        format!("{}:{{main}}:sealing-keys", self.prefix)
    }

    /// Stream: what was done over the API, capped.
    pub(super) fn audit(&self) -> String {
        format!("{}:{{main}}:audit", self.prefix)
    }

    /// String with a TTL: what became of a request that may be sent twice.
    pub(super) fn request(&self, name: &str) -> String {
        format!("{}:request:{{{name}}}", self.prefix)
    }

    /// String with a TTL: what such a request is about to make.
    pub(super) fn making(&self, name: &str) -> String {
        format!("{}:making:{{{name}}}", self.prefix)
    }

    /// Number with a TTL: the bytes that are remembered of what a tenant's keys were answered.
    pub(super) fn remembered(&self, tenant: &TenantId) -> String {
        format!("{}:remembered:{{{tenant}}}", self.prefix)
    }

    /// Hash, name to event type.
    pub(super) fn event_types(&self) -> String {
        format!("{}:{{main}}:event-types", self.prefix)
    }

    /// String: another one after each change of the event types.
    pub(super) fn event_types_version(&self) -> String {
        format!("{}:{{main}}:event-types-version", self.prefix)
    }

    /// Hash, tenant to its limits, for those that have some.
    pub(super) fn tenant_limits(&self) -> String {
        format!("{}:{{main}}:tenant-limits", self.prefix)
    }

    /// Stream: the tenants whose limits have changed, capped.
    pub(super) fn tenant_limits_changes(&self) -> String {
        format!("{}:{{main}}:tenant-limits-changes", self.prefix)
    }

    /// Sorted set: what is being removed, by when that was asked for (in milliseconds).
    pub(super) fn removals(&self) -> String {
        format!("{}:{{main}}:removals", self.prefix)
    }

    /// String: another one after each new removal.
    pub(super) fn removals_version(&self) -> String {
        format!("{}:{{main}}:removals-version", self.prefix)
    }

    /// Hash with a TTL, delay queue to when something last came back from it (in milliseconds).
    pub(super) fn came_back(&self) -> String {
        format!("{}:{{main}}:came-back", self.prefix)
    }

    /// String with a TTL: what comes out of the delay queues goes round `doorbell.retries`.
    pub(super) fn detour(&self) -> String {
        format!("{}:{{main}}:detour", self.prefix)
    }

    /// String with a TTL: when streams began new segments last.
    pub(super) fn rolled(&self) -> String {
        format!("{}:{{main}}:rolled", self.prefix)
    }

    /// String: how far the last round of sealing has come.
    pub(super) fn sealing(&self) -> String {
        format!("{}:{{main}}:sealing", self.prefix)
    }

    /// Sorted set: tenants some of whose endpoints are to be asked whether they want POSTs, by when (in
    /// milliseconds).
    pub(super) fn unverified(&self) -> String {
        format!("{}:{{main}}:unverified", self.prefix)
    }

    /// Sorted set: a tenant's subscriptions whose endpoints are to be asked, by when, and how often they
    /// were before.
    pub(super) fn unverified_of(&self, tenant: &TenantId) -> String {
        format!("{}:{{main}}:unverified:{tenant}", self.prefix)
    }

    /// Hash, subscription id to record; and the slot's [mark](super::slots).
    pub(super) fn slot(&self, slot: SlotNumber) -> String {
        format!("{}:{{slot-{:06x}}}", self.prefix, slot.0)
    }

    /// String: the tenant's record.
    pub(super) fn tenant(&self, tenant: &TenantId) -> String {
        format!("{}:{{tenant-{tenant}}}:record", self.prefix)
    }

    /// Sorted set, all scores 0: the tenant's subscriptions.
    pub(super) fn subscriptions(&self, tenant: &TenantId) -> String {
        format!("{}:{{tenant-{tenant}}}:subscriptions", self.prefix)
    }

    /// Number with a TTL: how many subscriptions were created for the tenant within a day.
    pub(super) fn created_lately(&self, tenant: &TenantId) -> String {
        format!("{}:{{tenant-{tenant}}}:created-lately", self.prefix)
    }

    /// Set: the patterns that the tenant's subscriptions have.
    pub(super) fn patterns(&self, tenant: &TenantId) -> String {
        format!("{}:{{tenant-{tenant}}}:patterns", self.prefix)
    }

    /// Set: the tenant's subscriptions with this pattern.
    pub(super) fn pattern(&self, tenant: &TenantId, pattern: &Pattern) -> String {
        format!("{}:{{tenant-{tenant}}}:pattern:{pattern}", self.prefix)
    }

    /// String with a TTL: how far an event with an id of its publisher's has come.
    pub(super) fn event_note(&self, tenant: &Addressee, event: &EventId) -> String {
        format!("{}:event:{{{tenant}/{event}}}", self.prefix)
    }

    /// Hash with a TTL: how much of a subscription's rate limit is used.
    pub(super) fn rate(&self, id: &SubscriptionId) -> String {
        format!("{}:rate:{{{id}}}", self.prefix)
    }

    /// String with a TTL: since when a subscription's attempts have done nothing but fail.
    pub(super) fn failing(&self, id: &SubscriptionId) -> String {
        format!("{}:failing:{{{id}}}", self.prefix)
    }

    /// Set with a TTL: the subscriptions of a fan-out that are done with.
    pub(super) fn ledger(&self, name: &str) -> String {
        format!("{}:ledger:{{{name}}}", self.prefix)
    }

    /// Hash with a TTL, sequence number to state: how far the last hand-offs of some work have come.
    pub(super) fn work_note(&self, chain: &str) -> String {
        format!("{}:note:{{{chain}}}", self.prefix)
    }
}
