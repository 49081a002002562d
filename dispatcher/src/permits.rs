//! Permits for POSTs: so many in flight at once, and among tenants that wait for one, each gets the
//! next in turn, however much one of them has to deliver.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use doorbell_common::fair::FairLine;
use doorbell_common::ids::TenantId;
use tokio::sync::oneshot;

/// The permits. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Permits {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// Empty while any is free.
    line: FairLine<TenantId, oneshot::Sender<Permit>>,
}

/// The right to have one POST in flight; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    /// `None` once it was given back.
    permits: Option<Permits>,
}

impl Permits {
    pub(crate) fn new(count: usize) -> Self {
        let state = State { free: count, line: FairLine::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Waits for this tenant's turn.
    pub(crate) async fn acquire(&self, tenant: &TenantId) -> anyhow::Result<Permit> {
        let turn = {
            let mut state = self.lock();
            if state.free > 0 {
                state.free -= 1;
                return Ok(Permit { permits: Some(self.clone()) });
            }
            let (sender, turn) = oneshot::channel();
            state.line.push(tenant, sender);
            turn
        };
        Ok(turn.await?)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(permits) = self.permits.take() else { return };
        loop {
            let next = {
                let mut state = permits.lock();
                let next = state.line.pop();
                if next.is_none() {
                    state.free += 1;
                }
                next
            };
            let Some(next) = next else { return };
            match next.send(Self { permits: Some(permits.clone()) }) {
                Ok(()) => return,
                // Who waited has gone away: it is for the next one.
                Err(mut refused) => refused.permits = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn permits_are_passed_on_in_turn_and_none_is_lost() {
        let permits = Permits::new(1);
        let tenants: [TenantId; 2] = ["a".parse().unwrap(), "b".parse().unwrap()];
        let held = permits.acquire(&tenants[0]).await.unwrap();
        let mut first = Box::pin(permits.acquire(&tenants[0]));
        let mut gone = Box::pin(permits.acquire(&tenants[0]));
        let mut other = Box::pin(permits.acquire(&tenants[1]));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(gone.as_mut().now_or_never().is_none());
        assert!(other.as_mut().now_or_never().is_none());
        drop(held);
        let held = first.await.unwrap();
        drop(held);
        let held = other.await.unwrap();
        drop(gone);
        drop(held);
        assert_eq!(permits.lock().free, 1);
    }
}
