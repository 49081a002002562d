//! Which subscriptions work: a success ends the count of the days on which there were only failures.
//! Every success after a failure is noted, of the others about one in an hour: a count of days can
//! be wrong by that.

use std::time::Duration;

use doorbell_common::ids::SubscriptionId;
use doorbell_platform::recent::Recent;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use tokio::sync::mpsc;

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
    noted: Recent,
    notes: mpsc::Sender<SubscriptionId>,
}

impl Working {
    pub(crate) fn start(store: Store, shutdown: &Shutdown) -> Self {
        let (notes, waiting) = mpsc::channel(MOST_WAITING);
        shutdown.spawn_vital("notes of successes", write(waiting, store));
        Self { noted: Recent::new(GOOD_FOR, REMEMBERED), notes }
    }

    /// Notes a success, soon.
    pub(crate) fn note(&self, id: &SubscriptionId, attempt: u32) {
        if attempt == 1 && self.noted.contains(id) {
            return;
        }
        if self.notes.try_send(id.clone()).is_ok() {
            self.noted.insert(id);
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
