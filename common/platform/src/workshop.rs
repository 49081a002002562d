//! Where work is done that tenants may make as hard as their bounds allow: rendering templates, trying
//! filters. A few do so at once, in turn among tenants. Those whose work takes long are served apart from
//! the others, by fewer: a turn of theirs takes a thousand turns of anyone else's.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::permits::{Owner, Permit, Permits};

/// Work that takes longer is slow. Less says little: the machine may have been busy with others.
const SLOW: Duration = Duration::from_millis(25);
/// With so many owners known, those are forgotten whose work is quick; all, if that leaves as many.
const MANY: usize = 8192;

/// The workshop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Workshop<K: Owner> {
    quick: Permits<K>,
    slow: Permits<K>,
    known: Arc<Mutex<HashMap<K, Duration>>>,
    /// Told whenever someone turns out to be quick or slow.
    changes: watch::Sender<()>,
}

/// Those before one would take too long, and this is how long they likely will.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it would take {0:?} until its turn")]
pub struct TooLong(pub Duration);

/// Someone at work; his place is free when this is dropped.
#[derive(Debug)]
pub struct AtWork<K: Owner> {
    workshop: Workshop<K>,
    owner: K,
    since: Instant,
    _permit: Permit<K>,
}

/// How long someone's work usually takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pace {
    Quick,
    Slow,
}

impl Pace {
    fn of(usual: Duration) -> Self {
        if usual <= SLOW { Self::Quick } else { Self::Slow }
    }
}

impl<K: Owner> Default for Workshop<K> {
    /// Quick work may have every core, slow work half of them.
    fn default() -> Self {
        let cores = available_parallelism().map_or(1, usize::from);
        Self::new(cores, (cores / 2).max(1))
    }
}

impl<K: Owner> Workshop<K> {
    fn new(quick: usize, slow: usize) -> Self {
        Self {
            quick: Permits::new(quick),
            slow: Permits::new(slow),
            known: Arc::default(),
            changes: watch::Sender::default(),
        }
    }

    /// Waits for this one's turn.
    ///
    /// # Errors
    /// Those of the same owner before it are slow, and will likely take longer than `patience`.
    pub async fn enter(&self, owner: &K, patience: Duration) -> Result<AtWork<K>, TooLong> {
        loop {
            let wait = self.likely_wait(owner);
            if wait > patience {
                return Err(TooLong(wait));
            }
            let pace = self.pace(owner);
            let Some(permit) = self.acquire(owner, pace).await? else { continue };
            // What came before may have been slow all at once.
            if pace != Some(Pace::Quick) || self.pace(owner) == pace {
                let (workshop, owner) = (self.clone(), owner.clone());
                return Ok(AtWork { workshop, owner, since: Instant::now(), _permit: permit });
            }
        }
    }

    /// A permit for one of this pace; none if it turns out to be of another one first.
    async fn acquire(&self, owner: &K, pace: Option<Pace>) -> Result<Option<Permit<K>>, TooLong> {
        let mut changes = self.changes.subscribe();
        let mut acquiring = pin!(self.line(pace).acquire(owner));
        loop {
            if self.pace(owner) != pace {
                return Ok(None);
            }
            tokio::select! {
                permit = &mut acquiring => {
                    return permit.map(Some).map_err(|_| TooLong(Duration::ZERO));
                }
                _ = changes.changed() => {}
            }
        }
    }

    /// How long one more of this one's will likely wait for those before it. Nothing, if there are none.
    fn likely_wait(&self, owner: &K) -> Duration {
        let usual = self.known().get(owner).copied().unwrap_or_default();
        usual.saturating_mul(u32::try_from(self.waiting(owner)).unwrap_or(u32::MAX))
    }

    /// How many of this one's wait.
    #[must_use]
    pub fn waiting(&self, owner: &K) -> usize {
        self.line(self.pace(owner)).waiting(owner)
    }

    /// Whoever is not known yet may be slow.
    fn line(&self, pace: Option<Pace>) -> &Permits<K> {
        if pace == Some(Pace::Quick) { &self.quick } else { &self.slow }
    }

    fn pace(&self, owner: &K) -> Option<Pace> {
        self.known().get(owner).map(|usual| Pace::of(*usual))
    }

    /// Slow work is known as such at once, and forgotten little by little.
    fn note(&self, owner: &K, took: Duration) {
        let mut known = self.known();
        if known.len() >= MANY {
            known.retain(|_, usual| Pace::of(*usual) == Pace::Slow);
            if known.len() >= MANY {
                known.clear();
            }
        }
        let before = known.get(owner).copied();
        let usual = took.max((before.unwrap_or_default() * 7 + took) / 8);
        known.insert(owner.clone(), usual);
        if before.map(Pace::of) != Some(Pace::of(usual)) {
            self.changes.send_replace(());
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<K, Duration>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Owner> Drop for AtWork<K> {
    fn drop(&mut self) {
        self.workshop.note(&self.owner, self.since.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn workshop() -> Workshop<&'static str> {
        Workshop::new(2, 1)
    }

    /// One piece of work that takes so long.
    async fn work(workshop: &Workshop<&'static str>, owner: &'static str, millis: u64) {
        let _at_work = workshop.enter(&owner, Duration::MAX).await.unwrap();
        tokio::time::sleep(Duration::from_millis(millis)).await;
    }

    #[tokio::test(start_paused = true)]
    async fn quick_work_does_not_wait_for_slow_work() {
        let workshop = workshop();
        work(&workshop, "quick", 1).await;
        work(&workshop, "slow", 600).await;
        let slow = workshop.enter(&"slow", Duration::MAX).await.unwrap();
        let mut next = Box::pin(workshop.enter(&"slow", Duration::MAX));
        assert!(next.as_mut().now_or_never().is_none());
        let began = Instant::now();
        for _ in 0..100 {
            work(&workshop, "quick", 1).await;
        }
        assert!(began.elapsed() < Duration::from_millis(200), "{:?}", began.elapsed());
        // Who is new may be slow, and has the next turn but one.
        let mut new = Box::pin(workshop.enter(&"new", Duration::MAX));
        assert!(new.as_mut().now_or_never().is_none());
        assert_eq!(workshop.likely_wait(&"quick"), Duration::ZERO);
        assert_eq!(workshop.likely_wait(&"slow"), Duration::from_millis(600));
        drop(slow);
        drop(next.await.unwrap());
        drop(new.await.unwrap());
        work(&workshop, "new", 1).await;
    }

    #[test]
    fn what_is_known_is_bounded_and_the_quick_are_forgotten_first() {
        let (quick, slow) = (Duration::from_millis(1), Duration::from_millis(600));
        let workshop = Workshop::new(2, 1);
        workshop.note(&0, slow);
        (1..MANY).for_each(|owner| workshop.note(&owner, quick));
        workshop.note(&MANY, quick);
        assert_eq!(workshop.known().len(), 2);
        assert_eq!(workshop.pace(&0), Some(Pace::Slow));
        (0..2 * MANY).for_each(|owner| workshop.note(&owner, slow));
        assert!(workshop.known().len() <= MANY);
    }

    #[tokio::test(start_paused = true)]
    async fn many_of_one_who_is_new_go_on_as_what_the_first_one_was() {
        let workshop = workshop();
        work(&workshop, "slow", 600).await;
        let slow = work(&workshop, "slow", 600);
        let began = Instant::now();
        let new = async {
            futures_util::future::join_all((0..50).map(|_| work(&workshop, "new", 1))).await;
            began.elapsed()
        };
        let impatient = async {
            let owner = "other";
            let entering = || async {
                let entered = workshop.enter(&owner, Duration::from_secs(1)).await;
                if entered.is_ok() {
                    tokio::time::sleep(Duration::from_millis(600)).await;
                }
                entered.is_ok()
            };
            let all = futures_util::future::join_all((0..50).map(|_| entering())).await;
            all.into_iter().filter(|entered| *entered).count()
        };
        let ((), new, others) = tokio::join!(slow, new, impatient);
        assert!(new < Duration::from_secs(2), "{new:?}");
        assert!((1..=3).contains(&others), "{others} waited");
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_becomes_slow_goes_to_the_slow_at_once() {
        let workshop = workshop();
        work(&workshop, "quick", 1).await;
        work(&workshop, "trickster", 1).await;
        let tricks: Vec<_> = (0..10).map(|_| work(&workshop, "trickster", 600)).collect();
        let mut tricks = Box::pin(futures_util::future::join_all(tricks));
        assert!(tricks.as_mut().now_or_never().is_none());
        let began = Instant::now();
        let quick = async {
            tokio::time::sleep(Duration::from_millis(700)).await;
            work(&workshop, "quick", 1).await;
            began.elapsed()
        };
        let (_, quick) = tokio::join!(tricks, quick);
        assert!(quick < Duration::from_millis(750), "{quick:?}");
        assert!(began.elapsed() > Duration::from_secs(4), "one after the other");
        // And is quick again after a while.
        for _ in 0..30 {
            work(&workshop, "trickster", 1).await;
        }
        assert_eq!(workshop.pace(&"trickster"), Some(Pace::Quick));
    }
}
