//! Writes attempts to the stream of attempts, many to a message: one publish for each would cost
//! more than the POST.

use std::sync::Arc;
use std::time::Duration;

use doorbell_common::attempt::AttemptRecord;
use doorbell_platform::broker::topology::ATTEMPTS;
use doorbell_platform::broker::{Message, Publisher};
use doorbell_platform::shutdown::Shutdown;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use crate::metrics::Metrics;

/// A message is full at this size.
const BATCH_BYTES: usize = 64 * 1024;
/// How long a record waits for room, and a message for the records of its attempts, before they go on
/// without.
const PATIENCE: Duration = Duration::from_millis(100);
/// Records that may wait to be written, and their bytes: those of failures have the answers' bodies.
const ROOM: usize = 8192;
const ROOM_BYTES: usize = 16 * 1024 * 1024;

/// Takes records of attempts. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Recorder {
    records: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
    metrics: Metrics,
}

/// A record that is being written, if there was room for it in time.
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
        shutdown.spawn_vital("recorder", write(waiting, publisher));
        Self { records, room: Arc::new(Semaphore::new(ROOM_BYTES)), metrics }
    }

    /// Has a record written, once there is room for it: deliveries that are faster than their records
    /// wait here, for a moment.
    pub(crate) async fn record(&self, record: &AttemptRecord) -> Receipt {
        let Ok(line) = serde_json::to_vec(record) else { return Receipt(None) };
        Receipt(tokio::time::timeout(PATIENCE, self.send(line)).await.ok().flatten())
    }

    /// Waits a moment until records are confirmed. An attempt that was made is a fact, written down or
    /// not: what is not confirmed in time is counted, and the deliveries go on.
    pub(crate) async fn confirm(&self, receipts: impl IntoIterator<Item = Receipt>) {
        let deadline = Instant::now() + PATIENCE;
        for Receipt(confirm) in receipts {
            let in_time = match confirm {
                Some(confirm) => {
                    matches!(tokio::time::timeout_at(deadline, confirm).await, Ok(Ok(())))
                }
                None => false,
            };
            if !in_time {
                self.metrics.unconfirmed_records.inc();
            }
        }
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
/// With so many others there already it does not wait.
const ENOUGH: usize = 64;

/// Writes one message after the other: what comes while one waits for its confirm fills the next,
/// so that batches are as large as the load makes them.
async fn write(mut waiting: mpsc::Receiver<Waiting>, publisher: Publisher) {
    while let Some(first) = waiting.recv().await {
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
        match publisher.publish(Message::internal(ATTEMPTS, body)).await {
            Ok(()) => {
                for sender in confirmed {
                    // Who has lost patience has counted it.
                    let _gone = sender.send(()).is_err();
                }
            }
            Err(error) => {
                tracing::debug!(%error, records = confirmed.len(), "attempts not recorded")
            }
        }
    }
}
