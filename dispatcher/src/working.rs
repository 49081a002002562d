//! Which subscriptions work: a success ends the count of the days on which there were only failures.
//! Every success after a failure is noted, of the others about one in an hour: a count of days can
//! be wrong by that.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use doorbell_common::ids::SubscriptionId;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// How long a note is good for at most.
const GOOD_FOR: Duration = Duration::from_secs(3600);
/// Subscriptions remembered; with more, all are forgotten, and noted once more.
const REMEMBERED: usize = 100_000;
/// Notes written in one go.
const BATCH: usize = 256;
/// Notes that may wait to be written. One that finds no room is made with a later success.
const MOST_WAITING: usize = 8192;

/// The subscriptions that were seen to work.
#[derive(Debug)]
pub(crate) struct Working {
    noted: Mutex<Noted>,
    hasher: RandomState,
    notes: mpsc::Sender<SubscriptionId>,
}

/// Hashes of the ids that were noted since then. Should two be equal, which will not happen, only
/// one of them is noted.
#[derive(Debug)]
struct Noted {
    since: Instant,
    ids: HashSet<u64>,
}

impl Working {
    pub(crate) fn start(store: Store, shutdown: &Shutdown) -> Self {
        let (notes, waiting) = mpsc::channel(MOST_WAITING);
        shutdown.spawn_vital("notes of successes", write(waiting, store));
        let noted = Mutex::new(Noted { since: Instant::now(), ids: HashSet::new() });
        Self { noted, hasher: RandomState::new(), notes }
    }

    /// Notes a success, soon.
    pub(crate) fn note(&self, id: &SubscriptionId, attempt: u32) {
        let hash = self.hasher.hash_one(id);
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        if attempt == 1 && noted.ids.contains(&hash) {
            return;
        }
        if noted.ids.len() >= REMEMBERED || noted.since.elapsed() > GOOD_FOR {
            *noted = Noted { since: Instant::now(), ids: HashSet::new() };
        }
        if self.notes.try_send(id.clone()).is_ok() {
            noted.ids.insert(hash);
        }
    }
}

async fn write(mut notes: mpsc::Receiver<SubscriptionId>, store: Store) {
    let mut batch = Vec::with_capacity(BATCH);
    while notes.recv_many(&mut batch, BATCH).await > 0 {
        store.note_working(&batch).await;
        batch.clear();
    }
}
