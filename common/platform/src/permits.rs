//! Permits: so many at once, and among owners (tenants, mostly) that wait for one, each gets the next in
//! turn, however much one of them has to do. No owner has more than three in four: one whose every
//! endpoint hangs leaves the others some that turn over quickly.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use doorbell_common::fair::FairLine;
use tokio::sync::oneshot;

/// The permits. Cheap to clone.
pub struct Permits<K: Owner> {
    state: Arc<Mutex<State<K>>>,
}

/// Whose permits are.
pub trait Owner: Clone + Eq + Hash {}

impl<K: Clone + Eq + Hash> Owner for K {}

struct State<K: Owner> {
    free: usize,
    /// How many one owner may have.
    most: usize,
    /// How many each has, of those who have any.
    taken: HashMap<K, usize>,
    /// Whoever is in it waits for a free permit, or for one of the same owner's.
    line: FairLine<K, oneshot::Sender<Permit<K>>>,
}

/// A permit; given back when dropped.
pub struct Permit<K: Owner> {
    owner: K,
    /// `None` once it was given back.
    permits: Option<Permits<K>>,
}

impl<K: Owner> Clone for Permits<K> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state) }
    }
}

impl<K: Owner> fmt::Debug for Permits<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permits").field("free", &self.lock().free).finish_non_exhaustive()
    }
}

impl<K: Owner> fmt::Debug for Permit<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Permit")
    }
}

impl<K: Owner> State<K> {
    fn may(&self, owner: &K) -> bool {
        self.taken.get(owner).is_none_or(|taken| *taken < self.most)
    }

    fn take(&mut self, owner: &K) {
        self.free -= 1;
        if let Some(taken) = self.taken.get_mut(owner) {
            *taken += 1;
        } else {
            self.taken.insert(owner.clone(), 1);
        }
    }

    fn give_back(&mut self, owner: &K) {
        self.free += 1;
        if let Some(taken) = self.taken.get_mut(owner) {
            *taken -= 1;
            if *taken == 0 {
                self.taken.remove(owner);
            }
        }
    }

    /// Takes a permit for whoever is next.
    fn next(&mut self) -> Option<(K, oneshot::Sender<Permit<K>>)> {
        if self.free == 0 {
            return None;
        }
        let Self { most, taken, .. } = self;
        let may = |owner: &K| taken.get(owner).is_none_or(|taken| *taken < *most);
        let next = self.line.pop(may)?;
        self.take(&next.0);
        Some(next)
    }
}

impl<K: Owner> Permits<K> {
    /// So many.
    #[must_use]
    pub fn new(count: usize) -> Self {
        let most = (count - count / 4).max(1);
        let state = State { free: count, most, taken: HashMap::new(), line: FairLine::default() };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Waits for this owner's turn.
    ///
    /// # Errors
    /// Never, while there are permits at all.
    pub async fn acquire(&self, owner: &K) -> anyhow::Result<Permit<K>> {
        let turn = {
            let mut state = self.lock();
            if state.free > 0 && state.may(owner) {
                state.take(owner);
                return Ok(self.permit(owner.clone()));
            }
            let (sender, turn) = oneshot::channel();
            state.line.push(owner, sender);
            turn
        };
        Ok(turn.await?)
    }

    /// How many of an owner's wait for one.
    #[must_use]
    pub fn waiting(&self, owner: &K) -> usize {
        self.lock().line.len_of(owner)
    }

    fn permit(&self, owner: K) -> Permit<K> {
        Permit { owner, permits: Some(self.clone()) }
    }

    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Owner> Drop for Permit<K> {
    fn drop(&mut self) {
        let Some(permits) = self.permits.take() else { return };
        let mut next = {
            let mut state = permits.lock();
            state.give_back(&self.owner);
            state.next()
        };
        while let Some((owner, sender)) = next {
            match sender.send(permits.permit(owner)) {
                Ok(()) => return,
                // Who waited has gone away: it is for the next one.
                Err(mut refused) => {
                    refused.permits = None;
                    let mut state = permits.lock();
                    state.give_back(&refused.owner);
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
        let tenants: [&str; 2] = ["a", "b"];
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
        let [hanging, other]: [&str; 2] = ["a", "b"];
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
