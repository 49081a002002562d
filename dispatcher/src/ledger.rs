//! The ledger of fan-outs: which subscriptions of a message are done with, so that after a crash
//! it goes on where it was. It is in Redis, and read only when a message comes again.
//!
//! A delivery keeps its permit until its entry is written, so what a crash repeats is never more
//! than what the permits allow. Where a machine is lost, Redis may be away just when a message comes again: so that
//! waits a while for another Redis to take over. Without one work goes on: a duplicate, never a loss.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use doorbell_common::ids::{Addressee, SubscriptionId};
use doorbell_platform::patience::{Unanswered, patiently};
use doorbell_platform::permits::Permit;
use doorbell_platform::shutdown::Shutdown;
use doorbell_platform::store::Store;
use doorbell_platform::store::notes::Note;
use tokio::sync::{mpsc, oneshot};

/// How long Redis may be away until a message that comes again goes on without the ledger: a cluster, by its defaults,
/// takes some twenty seconds to give a lost node's part to another one.
const PATIENCE: Duration = Duration::from_secs(60);
/// Entries written in one go.
const BATCH: usize = 1024;

/// The ledger of all fan-outs. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Ledger {
    store: Store,
    /// Without a bound of its own: with each entry comes a permit, or someone waits for it, and both are
    /// bounded.
    entries: mpsc::UnboundedSender<Entry>,
}

/// One message's part of the ledger.
#[derive(Clone, Debug)]
pub(crate) struct LedgerPage {
    ledger: Ledger,
    name: Arc<str>,
}

#[derive(Debug)]
enum Entry {
    /// This subscription is done with.
    Done(Arc<str>, SubscriptionId, Until),
    /// The message is acknowledged: nobody asks any more.
    Closed(Arc<str>),
}

/// What lasts until an entry is written, or cannot be: it is dropped then.
#[derive(Debug)]
enum Until {
    /// The permit of a POST that was made.
    Permit { _permit: Permit<Addressee> },
    /// Someone waits for that.
    Told { _sender: oneshot::Sender<()> },
}

impl Ledger {
    pub(crate) fn start(store: Store, shutdown: &Shutdown) -> Self {
        let (sender, entries) = mpsc::unbounded_channel();
        shutdown.spawn_vital("ledger", write(entries, store.clone()));
        Self { store, entries: sender }
    }

    /// Whether what comes again was finished, as its notes say; not, if there are none, or Redis has not said so for a
    /// minute. `None` if the service stops before.
    pub(crate) async fn was_done(&self, notes: &[Note], shutdown: &Shutdown) -> Option<bool> {
        if notes.is_empty() {
            return Some(false);
        }
        let at_most = PATIENCE.saturating_sub(self.store.away_for());
        match patiently(shutdown, at_most, || self.store.are_done(notes)).await {
            Ok(was_done) => Some(was_done),
            Err(Unanswered::Stuck) => Some(false),
            Err(Unanswered::Stopping) => None,
        }
    }

    /// The part of the message of this name.
    pub(crate) fn page(&self, name: &str) -> LedgerPage {
        LedgerPage { ledger: self.clone(), name: name.into() }
    }
}

impl LedgerPage {
    /// The name of the message that it is of.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Who is done with; nobody, if Redis has not said so for a minute. `None` if the service stops before.
    pub(crate) async fn served(&self, shutdown: &Shutdown) -> Option<HashSet<SubscriptionId>> {
        let Ledger { store, .. } = &self.ledger;
        let at_most = PATIENCE.saturating_sub(store.away_for());
        match patiently(shutdown, at_most, || store.served(&self.name)).await {
            Ok(served) => Some(served),
            Err(Unanswered::Stuck) => Some(HashSet::new()),
            Err(Unanswered::Stopping) => None,
        }
    }

    /// Notes that one is done with. The permit of its POST is given back once that is written, or cannot
    /// be.
    pub(crate) fn note(&self, id: &SubscriptionId, permit: Permit<Addressee>) {
        self.send(id, Until::Permit { _permit: permit });
    }

    /// Notes that one is done with that needed no permit, and waits until that is written, or cannot be.
    pub(crate) async fn note_surely(&self, id: &SubscriptionId) {
        let (sender, done) = oneshot::channel();
        self.send(id, Until::Told { _sender: sender });
        // Nothing is ever sent.
        let _dropped = done.await.is_err();
    }

    fn send(&self, id: &SubscriptionId, until: Until) {
        if self.ledger.store.is_up() {
            let entry = Entry::Done(Arc::clone(&self.name), id.clone(), until);
            // The writer ends only with the service.
            let _ended = self.ledger.entries.send(entry).is_err();
        }
    }

    /// Says that nobody will ask any more: the message is acknowledged.
    pub(crate) fn close(self) {
        // The writer ends only with the service.
        let _ended = self.ledger.entries.send(Entry::Closed(self.name)).is_err();
    }
}

/// Writes what came while the last batch was written: batches are as large as the load makes them.
async fn write(mut entries: mpsc::UnboundedReceiver<Entry>, store: Store) {
    let mut batch = Vec::with_capacity(BATCH);
    while entries.recv_many(&mut batch, BATCH).await > 0 {
        let mut served: HashMap<Arc<str>, Vec<SubscriptionId>> = HashMap::new();
        let (mut closed, mut written) = (Vec::new(), Vec::new());
        for entry in batch.drain(..) {
            match entry {
                Entry::Done(name, id, until) => {
                    served.entry(name).or_default().push(id);
                    written.push(until);
                }
                Entry::Closed(name) => closed.push(name),
            }
        }
        // Never written just to be taken away.
        for name in &closed {
            served.remove(name);
        }
        store.note_served(&served, &closed).await;
        drop(written);
    }
}
