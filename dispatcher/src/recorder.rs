//! Writes attempts to the stream of attempts, many to a message: one publish for each would cost
//! more than the POST.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use doorbell_common::attempt::AttemptRecord;
use doorbell_platform::broker::topology::ATTEMPTS;
use doorbell_platform::broker::{Message, Publisher};
use doorbell_platform::shutdown::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use crate::metrics::{Metrics, Wait};

/// A message is full at this size.
const BATCH_BYTES: usize = 64 * 1024;
/// Messages that wait for their confirm at once: one after the other, records would be written more
/// slowly than deliveries are made.
const AT_ONCE: usize = 8;
/// How often we ask whether RabbitMQ takes messages at all, when a record takes long.
const LOOK: Duration = Duration::from_millis(100);
/// After so long without a confirm nobody waits for records any more, until one comes: the stream may be
/// out of order where the queues are not.
const PATIENCE: Duration = Duration::from_secs(5);
/// Records that may wait to be written, and their bytes: those of failures have the answers' bodies.
const ROOM: usize = 8192;
const ROOM_BYTES: usize = 16 * 1024 * 1024;

/// Takes records of attempts. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    records: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    publisher: Publisher,
    is_stuck: Arc<AtomicBool>,
    metrics: Metrics,
}

/// A record that is being written, unless there was no room for it.
#[derive(Debug)]
pub(crate) struct Receipt(Option<oneshot::Receiver<()>>);

#[derive(Debug)]
struct Waiting {
    line: Vec<u8>,
    confirmed: oneshot::Sender<()>,
    /// Its part of the room.
    _room: OwnedSemaphorePermit,
}

impl Recorder {
    pub(crate) fn start(publisher: Publisher, metrics: Metrics, shutdown: &Shutdown) -> Self {
        let (records, waiting) = mpsc::channel(ROOM);
        let is_stuck = Arc::<AtomicBool>::default();
        let writing = write(waiting, publisher.clone(), Arc::clone(&is_stuck), shutdown.clone());
        shutdown.spawn_vital("recorder", writing);
        let room = Arc::new(Semaphore::new(ROOM_BYTES));
        Self { records, room, publisher, is_stuck, metrics }
    }

    /// Has a record written, once there is room for it: deliveries that are faster than their records
    /// wait here.
    pub(crate) async fn record(&self, record: &AttemptRecord) -> Receipt {
        let Ok(line) = serde_json::to_vec(record) else { return Receipt(None) };
        let sending = self.unless_refused(self.send(line));
        Receipt(self.metrics.waiting(Wait::Record, sending).await.flatten())
    }

    /// Waits until records are confirmed. An attempt that was made is a fact, written down or not: while
    /// RabbitMQ takes no messages, deliveries go on without, and what is not confirmed is counted.
    pub(crate) async fn confirm(&self, receipts: impl IntoIterator<Item = Receipt>) {
        let mut is_refused = false;
        for Receipt(confirm) in receipts {
            let is_confirmed = match confirm {
                Some(mut confirm) if is_refused => confirm.try_recv().is_ok(),
                Some(confirm) => {
                    let answer = self.unless_refused(confirm).await;
                    is_refused = answer.is_none();
                    answer.is_some_and(|answer| answer.is_ok())
                }
                None => false,
            };
            if !is_confirmed {
                self.metrics.unconfirmed_records.inc();
            }
        }
    }

    /// What the future gives, or `None` if it is not ready for a while in which RabbitMQ takes no
    /// messages.
    async fn unless_refused<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        loop {
            match tokio::time::timeout(LOOK, &mut future).await {
                Ok(value) => return Some(value),
                Err(_) if self.is_refused() => return None,
                Err(_) => {}
            }
        }
    }

    fn is_refused(&self) -> bool {
        self.is_stuck.load(Ordering::Relaxed) || self.publisher.check().is_err()
    }

    async fn send(&self, line: Vec<u8>) -> Option<oneshot::Receiver<()>> {
        let bytes = u32::try_from(line.len()).ok()?;
        let room = Arc::clone(&self.room).acquire_many_owned(bytes).await.ok()?;
        let (confirmed, confirm) = oneshot::channel();
        self.records.send(Waiting { line, confirmed, _room: room }).await.ok()?;
        Some(confirm)
    }
}

/// How long the first record of a message waits for others: RabbitMQ works on one message with ten
/// for little more than on one with one.
const LINGER: Duration = Duration::from_millis(5);
/// With so many others there already, about as many as fill a message, it does not wait.
const ENOUGH: usize = 200;

/// Fills one message after the other. What comes while too many wait for their confirms fills the next,
/// so that batches are as large as the load makes them.
async fn write(
    mut waiting: mpsc::Receiver<Waiting>,
    publisher: Publisher,
    is_stuck: Arc<AtomicBool>,
    shutdown: Shutdown,
) {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    while let Some(first) = waiting.recv().await {
        let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
        if waiting.len() < ENOUGH {
            tokio::time::sleep(LINGER).await;
        }
        let mut body = first.line;
        let mut confirmed = vec![first.confirmed];
        while body.len() < BATCH_BYTES
            && let Ok(next) = waiting.try_recv()
        {
            body.push(b'\n');
            body.extend_from_slice(&next.line);
            confirmed.push(next.confirmed);
        }
        let (publisher, finished) = (publisher.clone(), shutdown.clone());
        let is_stuck = Arc::clone(&is_stuck);
        shutdown.spawn(async move {
            let message = Message::internal(ATTEMPTS, body);
            let publishing = finished.until_finished(publisher.publish_surely(&message));
            let mut publishing = std::pin::pin!(publishing);
            let published = match tokio::time::timeout(PATIENCE, &mut publishing).await {
                Ok(published) => published,
                Err(_) => {
                    is_stuck.store(true, Ordering::Relaxed);
                    publishing.await
                }
            };
            match published {
                Some(Ok(())) => {
                    is_stuck.store(false, Ordering::Relaxed);
                    for sender in confirmed {
                        // Who went on without has counted it.
                        let _gone = sender.send(()).is_err();
                    }
                }
                Some(Err(error)) => {
                    tracing::error!(%error, records = confirmed.len(), "attempts not recorded");
                }
                None => {}
            }
            drop(turn);
        });
    }
}
