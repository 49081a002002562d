//! What a message takes from others while it is in hand: its place in the window of its queue, and the turn of a page.
//! While nothing of it is left but slow POSTs, or it waits to be told what was done of it before, it takes neither, so
//! that endpoints that hang, or Redis, keep nobody else waiting.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use doorbell_common::ids::Addressee;
use doorbell_platform::broker::Settle;
use doorbell_platform::permits::Permit;

/// What takes longer is waited for aside.
const AT_ONCE: Duration = Duration::from_millis(500);

/// A message in hand.
#[derive(Debug)]
pub(crate) struct Hand<'a> {
    settle: &'a Settle,
    /// Deliveries that are not done with and whose POST is not slow, those included that have yet to begin.
    busy: AtomicUsize,
    /// Deliveries whose POST is slow.
    slow: AtomicUsize,
    turn: Mutex<Option<Permit<Addressee>>>,
    /// Whether something was left to whom the message comes next.
    is_left: AtomicBool,
}

/// A delivery of a message in hand, until this is dropped.
#[derive(Debug)]
pub(crate) struct Busy<'a>(&'a Hand<'a>);

/// Its POST is slow, until this is dropped.
#[derive(Debug)]
pub(crate) struct Slow<'a>(&'a Hand<'a>);

impl<'a> Hand<'a> {
    pub(crate) fn new(settle: &'a Settle) -> Self {
        let (busy, slow, turn) = (AtomicUsize::new(0), AtomicUsize::new(0), Mutex::new(None));
        Self { settle, busy, slow, turn, is_left: AtomicBool::new(false) }
    }

    /// Whether RabbitMQ has taken the message back. Whoever is told so leaves what he was about to begin to whom
    /// it comes next: that one reads in the ledger what was done, and both would do the rest.
    pub(crate) fn must_leave(&self) -> bool {
        let must = self.settle.is_taken_back();
        if must {
            self.is_left.store(true, Ordering::Relaxed);
        }
        must
    }

    /// Whether someone was told so.
    pub(crate) fn is_left(&self) -> bool {
        self.is_left.load(Ordering::Relaxed)
    }

    /// Keeps a page's turn.
    pub(crate) fn keep(&self, turn: Permit<Addressee>) {
        *self.turn.lock().unwrap_or_else(PoisonError::into_inner) = Some(turn);
    }

    /// The turn is over.
    pub(crate) fn let_go(&self) {
        drop(self.turn.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// What the future gives. Where it takes a while, the message takes nothing from others meanwhile.
    pub(crate) async fn aside<T>(&self, waiting: impl Future<Output = T>) -> T {
        let mut waiting = std::pin::pin!(waiting);
        if let Ok(given) = tokio::time::timeout(AT_ONCE, waiting.as_mut()).await {
            return given;
        }
        self.let_go();
        self.settle.linger(true);
        let given = waiting.await;
        self.settle.linger(false);
        given
    }

    /// So many more deliveries are to be made.
    pub(crate) fn expect(&self, deliveries: usize) {
        self.busy.fetch_add(deliveries, Ordering::Relaxed);
        self.look();
    }

    /// One of them begins.
    pub(crate) fn begin(&'a self) -> Busy<'a> {
        Busy(self)
    }

    /// Looks whether nothing is left but slow POSTs.
    fn look(&self) {
        let lingers =
            self.slow.load(Ordering::Relaxed) > 0 && self.busy.load(Ordering::Relaxed) == 0;
        self.settle.linger(lingers);
        if lingers {
            self.let_go();
        }
    }
}

impl<'a> Busy<'a> {
    /// As for [`Hand::must_leave`].
    pub(crate) fn must_leave(&self) -> bool {
        self.0.must_leave()
    }

    /// Its POST takes long.
    pub(crate) fn slow(&self) -> Slow<'a> {
        self.0.slow.fetch_add(1, Ordering::Relaxed);
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
        self.0.look();
        Slow(self.0)
    }
}

impl Drop for Slow<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_add(1, Ordering::Relaxed);
        self.0.slow.fetch_sub(1, Ordering::Relaxed);
        self.0.look();
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
        self.0.look();
    }
}
