//! How many more subscriptions a tenant may have, where its operator limits that. What it creates is counted,
//! too, whatever becomes of it: of a subscription that is deleted a tombstone stays.

use axum::http::StatusCode;
use doorbell_common::ids::TenantId;
use doorbell_platform::problem::Problem;
use doorbell_platform::store::Store;
use doorbell_platform::store::tenant_limits::Usage;

use crate::routes::trouble;

/// How many more subscriptions a tenant may have. Those who create some at the same time may exceed that
/// by theirs.
#[derive(Debug)]
pub(crate) struct Room {
    tenant: TenantId,
    limited: Option<Limited>,
}

#[derive(Debug)]
struct Limited {
    /// How many it may have.
    most: usize,
    /// How many it may create within a day.
    creations: usize,
    usage: Usage,
}

impl Limited {
    fn room(&self) -> usize {
        self.most.saturating_sub(self.usage.subscriptions)
    }

    fn creations_left(&self) -> usize {
        self.creations.saturating_sub(self.usage.created)
    }
}

impl Room {
    /// The room that a tenant has now.
    pub(crate) async fn of(store: &Store, tenant: &TenantId) -> Result<Self, Problem> {
        let limits = store.tenant_limits(tenant).await.map_err(trouble)?.limits;
        let limited = match limits.subscriptions() {
            Some((most, creations)) => {
                let usage = store.usage(tenant).await.map_err(trouble)?;
                Some(Limited { most, creations, usage })
            }
            None => None,
        };
        Ok(Self { tenant: tenant.clone(), limited })
    }

    /// How many more it may create now, if that is limited.
    pub(crate) fn left(&self) -> Option<usize> {
        self.limited.as_ref().map(|limited| limited.room().min(limited.creations_left()))
    }

    /// Refuses so many more, if there is no room for them.
    pub(crate) fn check(&self, more: usize) -> Result<(), Problem> {
        if self.left().is_none_or(|left| more <= left) { Ok(()) } else { Err(self.used_up()) }
    }

    /// Refuses so many more, if they are too many for a day, whatever room there is.
    pub(crate) fn check_creations(&self, more: usize) -> Result<(), Problem> {
        match &self.limited {
            Some(limited) if more > limited.creations_left() => Err(self.created_too_many(limited)),
            Some(_) | None => Ok(()),
        }
    }

    /// The answer to more than are left.
    pub(crate) fn used_up(&self) -> Problem {
        let tenant = &self.tenant;
        match &self.limited {
            Some(limited) if limited.creations_left() < limited.room() => {
                self.created_too_many(limited)
            }
            Some(Limited { most, usage, .. }) => {
                let has = usage.subscriptions;
                let detail =
                    format!("tenant {tenant} may have {most} subscriptions, and has {has}");
                Problem::new(StatusCode::CONFLICT, detail)
            }
            None => Problem::new(StatusCode::CONFLICT, format!("tenant {tenant} has no room")),
        }
    }

    fn created_too_many(&self, limited: &Limited) -> Problem {
        let Limited { creations, usage, .. } = limited;
        let (tenant, created) = (&self.tenant, usage.created);
        let detail = format!(
            "tenant {tenant} may create {creations} subscriptions within a day, and has created {created}"
        );
        let seconds = u32::try_from(usage.until.as_secs()).unwrap_or(u32::MAX).max(1);
        Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(seconds)
    }

    /// Counts so many that are about to be created, if anybody wants to know.
    pub(crate) async fn use_up(&self, store: &Store, count: usize) -> Result<(), Problem> {
        if self.limited.is_some() {
            store.count_created(&self.tenant, count).await.map_err(trouble)?;
        }
        Ok(())
    }
}
