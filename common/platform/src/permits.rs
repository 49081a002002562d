//! Permits: so many at once, and among owners (tenants, mostly) that wait for one, each gets the next in
//! turn, however much one of them has to do. Who wants several has them all before the next of the same
//! owner has any, so that what was begun is finished first. No owner has more than three in four, or fewer if
//! one says so: one whose every endpoint hangs leaves the others some that turn over quickly.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use doorbell_common::fair::FairLine;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;

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
    /// Whoever is in it waits for free permits, or for some of the same owner's.
    line: FairLine<K, mpsc::UnboundedSender<Permit<K>>>,
}

/// A wish for some permits, which come one by one.
#[derive(Debug)]
pub struct Claim<K: Owner> {
    owner: K,
    permits: Permits<K>,
    /// So many are taken for it already.
    ready: usize,
    /// The others come here. No more than were asked for, so that it needs no bound of its own.
    coming: Option<mpsc::UnboundedReceiver<Permit<K>>>,
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
    fn next(&mut self) -> Option<(K, mpsc::UnboundedSender<Permit<K>>)> {
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
        Self::of_which(count, count - count / 4)
    }

    /// So many, of which one owner may have so many, and one at least.
    #[must_use]
    pub fn of_which(count: usize, most: usize) -> Self {
        let (taken, line) = (HashMap::new(), FairLine::default());
        let state = State { free: count, most: most.max(1), taken, line };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Asks for so many, of which one after the other comes as it is this owner's turn.
    #[must_use]
    pub fn claim(&self, owner: &K, count: usize) -> Claim<K> {
        let mut claim =
            Claim { owner: owner.clone(), permits: self.clone(), ready: 0, coming: None };
        let mut state = self.lock();
        // Nobody of the same owner waits while there are some for him.
        while claim.ready < count && state.free > 0 && state.may(owner) {
            state.take(owner);
            claim.ready += 1;
        }
        if let Some(left) = NonZeroUsize::new(count - claim.ready) {
            let (sender, coming) = mpsc::unbounded_channel();
            state.line.push(owner, sender, left);
            claim.coming = Some(coming);
        }
        claim
    }

    /// Waits for one.
    ///
    /// # Errors
    /// Never, while there are permits at all.
    pub async fn acquire(&self, owner: &K) -> anyhow::Result<Permit<K>> {
        self.claim(owner, 1).next().await
    }

    /// One, if there is one for this owner now.
    #[must_use]
    pub fn try_acquire(&self, owner: &K) -> Option<Permit<K>> {
        let mut state = self.lock();
        if state.free == 0 || !state.may(owner) {
            return None;
        }
        state.take(owner);
        Some(self.permit(owner.clone()))
    }

    /// How many of an owner's claims wait for a permit.
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

impl<K: Owner> Claim<K> {
    /// Waits for the next one. Nothing is lost if this is dropped meanwhile.
    ///
    /// # Errors
    /// There were as many as were asked for.
    pub async fn next(&mut self) -> anyhow::Result<Permit<K>> {
        if let Some(permit) = self.take_ready() {
            return Ok(permit);
        }
        let coming = match &mut self.coming {
            Some(coming) => coming.recv().await,
            None => None,
        };
        coming.context("all permits of a claim were taken")
    }

    fn take_ready(&mut self) -> Option<Permit<K>> {
        self.ready = self.ready.checked_sub(1)?;
        Some(self.permits.permit(self.owner.clone()))
    }
}

impl<K: Owner> Drop for Claim<K> {
    fn drop(&mut self) {
        while let Some(permit) = self.take_ready() {
            drop(permit);
        }
    }
}

impl<K: Owner> Permit<K> {
    /// Whose it is.
    #[must_use]
    pub fn owner(&self) -> &K {
        &self.owner
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
                Err(SendError(mut refused)) => {
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

    #[test]
    fn who_does_not_wait_gets_what_there_is_for_him() {
        let permits = Permits::of_which(3, 2);
        let [hanging, other]: [&str; 2] = ["a", "b"];
        let held = [permits.try_acquire(&hanging).unwrap(), permits.try_acquire(&hanging).unwrap()];
        assert!(permits.try_acquire(&hanging).is_none());
        let last = permits.try_acquire(&other).unwrap();
        assert!(permits.try_acquire(&other).is_none());
        drop(held);
        assert!(permits.try_acquire(&other).is_some());
        drop(last);
        assert_eq!(permits.lock().free, 3);
    }

    #[tokio::test]
    async fn a_claim_is_served_whole_before_the_next_of_the_same_owner() {
        let permits = Permits::new(4);
        let [fan_out, other]: [&str; 2] = ["a", "b"];
        let mut first = permits.claim(&fan_out, 5);
        let mut second = permits.claim(&fan_out, 1);
        assert_eq!(permits.waiting(&fan_out), 2);
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(first.next().now_or_never().unwrap().unwrap());
        }
        assert!(first.next().now_or_never().is_none());
        let of_other = permits.acquire(&other).await.unwrap();
        // Both come back before anyone looks, and both are for the first one.
        held.truncate(1);
        assert!(second.next().now_or_never().is_none());
        held.push(first.next().now_or_never().unwrap().unwrap());
        held.push(first.next().now_or_never().unwrap().unwrap());
        assert!(first.next().await.is_err());
        assert_eq!(permits.waiting(&fan_out), 1);
        held.pop();
        let last = second.next().await.unwrap();
        drop((held, last, of_other));
        assert_eq!(permits.lock().free, 4);
        assert!(permits.lock().taken.is_empty());
    }

    #[tokio::test]
    async fn what_is_left_of_a_claim_goes_to_others() {
        let permits = Permits::new(4);
        let [fan_out, other]: [&str; 2] = ["a", "b"];
        let mut claim = permits.claim(&fan_out, 10);
        let held = claim.next().await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..4 {
            waiting.push(permits.claim(&other, 1));
        }
        let mut next = permits.claim(&fan_out, 1);
        drop(claim);
        for claim in &mut waiting[..3] {
            drop(claim.next().now_or_never().unwrap().unwrap());
        }
        drop(held);
        assert!(next.next().now_or_never().unwrap().is_ok());
        drop((waiting, next));
        assert_eq!(permits.lock().free, 4);
        assert!(permits.lock().taken.is_empty());
        assert_eq!([permits.waiting(&fan_out), permits.waiting(&other)], [0, 0]);
    }
}
