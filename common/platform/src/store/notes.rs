//! How far a hand-off has come: absent, (accepted,) taken, done. Notes let a copy be told and
//! dropped. They expire, and losing them costs a duplicate, never a loss.

use std::time::Duration;

use doorbell_common::ids::{Addressee, EventId};
use redis::Value;

use super::Store;

/// How long a hand-off that was begun is remembered, should its end never be noted.
const TAKEN: Duration = Duration::from_secs(24 * 3600);
/// How long a hand-off that ended is remembered; copies come within moments of each other.
const DONE: Duration = Duration::from_secs(3600);
/// How long an accepted event may wait in its queue and still be known.
const ACCEPTED: Duration = Duration::from_secs(7 * 24 * 3600);

/// Takes a note; answers 0 for a copy. In one step, because two copies may come at once. ARGV:
/// who takes it, whether the message was redelivered, how long to remember that it was begun.
///
/// The same taker is never told that it is a copy of itself: a client may send a command again whose
/// answer was lost, as that of a cluster does.
const TAKE: &str = "local v = redis.call('GET', KEYS[1]) local mine = 'taken ' .. ARGV[1] if v == 'done' or (v and v ~= mine and string.sub(v, 1, 5) == 'taken' and ARGV[2] == '0') then return 0 end redis.call('SET', KEYS[1], mine, 'EX', ARGV[3]) return 1";

/// A thing that may come twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    key: String,
    /// How long to remember it after its end.
    window: Duration,
}

/// What to do with a message, after a look at its note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// Work on it.
    Go,
    /// It is a copy of one that is being worked on or was finished: drop it.
    Copy,
}

impl Store {
    /// The note of one of our own hand-offs.
    #[must_use]
    pub fn work_note(&self, name: &str) -> Note {
        Note { key: self.keys.work_note(name), window: DONE }
    }

    /// The note of an event with an id of its publisher's.
    #[must_use]
    pub fn event_note(&self, tenant: &Addressee, event: &EventId, window: Duration) -> Note {
        Note { key: self.keys.event_note(tenant, event), window }
    }

    /// Notes that a message is being worked on, unless it is a copy. `redelivered` says that the
    /// broker may have given us this very message before. With Redis away, work goes on.
    pub async fn take(&self, note: &Note, redelivered: bool) -> Taken {
        self.take_as(&crate::ids::token(), note, redelivered).await
    }

    /// The same under the name of a taker, who is another one for each message that comes.
    pub async fn take_as(&self, taker: &str, note: &Note, redelivered: bool) -> Taken {
        if !self.is_up() {
            return Taken::Go;
        }
        let mut link = self.link.clone();
        let mut eval = redis::cmd("EVAL");
        eval.arg(TAKE).arg(1).arg(&note.key).arg(taker);
        eval.arg(u8::from(redelivered)).arg(TAKEN.as_secs());
        match eval.query_async::<u8>(&mut link).await {
            Ok(0) => {
                tracing::debug!(note = note.key, redelivered, "a copy is dropped");
                Taken::Copy
            }
            Ok(_) => Taken::Go,
            Err(error) => {
                tracing::debug!(%error, "note not taken");
                Taken::Go
            }
        }
    }

    /// Notes that a message is finished: what follows from it is confirmed. Call it before the
    /// acknowledgement.
    pub async fn finish(&self, note: &Note) {
        self.write(&note.key, "done", note.window).await;
    }

    /// Whether an event is known: accepted, being worked on, or finished within its window.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn is_known(&self, note: &Note) -> redis::RedisResult<bool> {
        let mut link = self.link.clone();
        redis::cmd("EXISTS").arg(&note.key).query_async(&mut link).await
    }

    /// Notes that an event was accepted, unless more is known of it already. Call it only after
    /// the broker's confirm.
    pub async fn accept(&self, note: &Note) {
        let mut link = self.link.clone();
        let mut set = redis::cmd("SET");
        set.arg(&note.key).arg("accepted").arg("EX").arg(ACCEPTED.as_secs()).arg("NX");
        if let Err(error) = set.query_async::<Value>(&mut link).await {
            tracing::debug!(%error, "note not accepted");
        }
    }

    async fn write(&self, key: &str, state: &str, ttl: Duration) {
        if !self.is_up() {
            return;
        }
        let mut link = self.link.clone();
        let mut set = redis::cmd("SET");
        set.arg(key).arg(state).arg("EX").arg(ttl.as_secs().max(1));
        if let Err(error) = set.query_async::<Value>(&mut link).await {
            tracing::debug!(%error, state, "note not written");
        }
    }
}
