//! What tenants write may take long to read: templates are rendered with their samples, filters tried on
//! events. So each is read in its turn, and nobody waits for what others have written.

use std::time::Duration;

use axum::http::StatusCode;
use doorbell_common::ids::TenantId;
use doorbell_platform::problem::Problem;

use crate::routes::Api;

/// How much of a tenant's may wait to be read.
const MOST_WAITING: usize = 1024;

impl Api {
    /// Reads something that was written for a tenant, once its turn comes.
    pub(crate) async fn in_turn<T>(
        &self,
        tenant: &TenantId,
        read: impl FnOnce() -> Result<T, Problem>,
    ) -> Result<T, Problem> {
        if self.workshop.waiting(tenant) >= MOST_WAITING {
            let detail =
                format!("much of tenant {tenant} is waiting to be read: send this again later");
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(10));
        }
        let entered = self.workshop.enter(tenant, Duration::MAX).await;
        let _at_work = entered.map_err(|error| Problem::unavailable(error.to_string()))?;
        read()
    }
}
