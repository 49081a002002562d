//! Permits, for POSTs and for pages: so many at once, and among tenants that wait for one, each gets
//! the next in turn, however much one of them has to deliver. No tenant has more than three in four:
//! one whose every endpoint hangs leaves the others some that turn over quickly.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use doorbell_common::fair::FairLine;
use doorbell_common::ids::Addressee;
use tokio::sync::oneshot;

/// The permits. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Permits {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    free: usize,
    /// How many one tenant may have.
    most: usize,
    /// How many each has, of those who have any.
    taken: HashMap<Addressee, usize>,
    /// Whoever is in it waits for a free permit, or for one of the same tenant's.
    line: FairLine<Addressee, oneshot::Sender<Permit>>,
}

/// The right to have one POST or page begun; given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    tenant: Addressee,
    /// `None` once it was given back.
    permits: Option<Permits>,
}

impl State {
    fn may(&self, tenant: &Addressee) -> bool {
        self.taken.get(tenant).is_none_or(|taken| *taken < self.most)
    }

    fn take(&mut self, tenant: &Addressee) {
        self.free -= 1;
        if let Some(taken) = self.taken.get_mut(tenant) {
            *taken += 1;
        } else {
            self.taken.insert(tenant.clone(), 1);
        }
    }

    fn give_back(&mut self, tenant: &Addressee) {
        self.free += 1;
        if let Some(taken) = self.taken.get_mut(tenant) {
            *taken -= 1;
            if *taken == 0 {
                self.taken.remove(tenant);
            }
        }
    }

    /// Takes a permit for whoever is next.
    fn next(&mut self) -> Option<(Addressee, oneshot::Sender<Permit>)> {
        if self.free == 0 {
            return None;
        }
        let Self { most, taken, .. } = self;
        let may = |tenant: &Addressee| taken.get(tenant).is_none_or(|taken| *taken < *most);
        let next = self.line.pop(may)?;
        self.take(&next.0);
        Some(next)
    }
}

impl Permits {
    pub(crate) fn new(count: usize) -> Self {
        let most = (count - count / 4).max(1);
        let state = State { free: count, most, taken: HashMap::new(), line: FairLine::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Waits for this tenant's turn.
    pub(crate) async fn acquire(&self, tenant: &Addressee) -> anyhow::Result<Permit> {
        let turn = {
            let mut state = self.lock();
            if state.free > 0 && state.may(tenant) {
                state.take(tenant);
                return Ok(self.permit(tenant.clone()));
            }
            let (sender, turn) = oneshot::channel();
            state.line.push(tenant, sender);
            turn
        };
        Ok(turn.await?)
    }

    /// How many of a tenant's wait for one.
    pub(crate) fn waiting(&self, tenant: &Addressee) -> usize {
        self.lock().line.len_of(tenant)
    }

    fn permit(&self, tenant: Addressee) -> Permit {
        Permit { tenant, permits: Some(self.clone()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let Some(permits) = self.permits.take() else { return };
        let mut next = {
            let mut state = permits.lock();
            state.give_back(&self.tenant);
            state.next()
        };
        while let Some((tenant, sender)) = next {
            match sender.send(permits.permit(tenant)) {
                Ok(()) => return,
                // Who waited has gone away: it is for the next one.
                Err(mut refused) => {
                    refused.permits = None;
                    let mut state = permits.lock();
                    state.give_back(&refused.tenant);
                    next = state.next();
                }
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
        let tenants: [Addressee; 2] = ["a".parse().unwrap(), "b".parse().unwrap()];
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
        assert!(permits.lock().taken.is_empty());
    }

    #[tokio::test]
    async fn one_tenant_leaves_some_to_the_others() {
        let permits = Permits::new(8);
        let [hanging, other]: [Addressee; 2] = ["a".parse().unwrap(), "b".parse().unwrap()];
        let mut held = Vec::new();
        for _ in 0..6 {
            held.push(permits.acquire(&hanging).await.unwrap());
        }
        let mut seventh = Box::pin(permits.acquire(&hanging));
        assert!(seventh.as_mut().now_or_never().is_none());
        assert_eq!([permits.waiting(&hanging), permits.waiting(&other)], [1, 0]);
        let first = permits.acquire(&other).await.unwrap();
        let second = permits.acquire(&other).await.unwrap();
        let mut third = Box::pin(permits.acquire(&other));
        assert!(third.as_mut().now_or_never().is_none());
        drop(first);
        let third = third.await.unwrap();
        assert!(seventh.as_mut().now_or_never().is_none());
        held.pop();
        let seventh = seventh.await.unwrap();
        drop((seventh, second, third, held));
        assert_eq!(permits.lock().free, 8);
    }
}
