//! How far a hand-off has come: absent, (accepted,) taken, done. Notes let a copy be told and
//! dropped. They expire, and losing them costs a duplicate, never a loss.

use std::time::Duration;

use doorbell_common::ids::{Addressee, EventId};
use doorbell_common::work::HandOff;
use futures_util::future::{join_all, try_join_all};
use redis::Value;

use super::{Store, StoreError};

/// How long a hand-off that was begun is remembered, should its end never be noted.
const TAKEN: Duration = Duration::from_secs(24 * 3600);
/// How long an accepted event may wait in its queue and still be known.
const ACCEPTED: Duration = Duration::from_secs(7 * 24 * 3600);

/// How many of a work's last hand-offs are remembered: copies are never that far behind, and what
/// waits for long is handed on often.
const KEPT: u32 = 4;

/// What each of the next two begins with: whether a message is a copy, by what is noted. ARGV: who takes it, which copy
/// it is (or nothing), whether it was redelivered, how long to remember that it was begun.
///
/// The same taker is never told that it is a copy of itself: a client may send a command again whose
/// answer was lost, as that of a cluster does. What was redelivered may be what was taken. But if that was another copy,
/// it is with RabbitMQ still, or its end would be noted: those that were with a consumer who died come all again.
const IS_COPY: &str = "\
    local mine = 'taken ' .. ARGV[1] .. ' ' .. ARGV[2] \
    local function is_copy(v) \
        if not v or v == 'accepted' or v == mine then return false end \
        if v == 'done' or ARGV[3] == '0' then return true end \
        local taken = string.match(v, '^taken %S+ (%S+)$') \
        return taken and ARGV[2] ~= '' and taken ~= ARGV[2] \
    end ";

/// Takes the note of an event; answers 0 for a copy. In one step, because two copies may come at
/// once.
const TAKE_EVENT: &str = "\
    if is_copy(redis.call('GET', KEYS[1])) then return 0 end \
    redis.call('SET', KEYS[1], mine, 'EX', ARGV[4]) return 1";

/// The same for a hand-off of a work. Two ARGV more: its number, and the one that is forgotten now.
const TAKE_WORK: &str = "\
    if is_copy(redis.call('HGET', KEYS[1], ARGV[5])) then return 0 end \
    redis.call('HSET', KEYS[1], ARGV[5], mine) redis.call('HDEL', KEYS[1], ARGV[6]) \
    redis.call('EXPIRE', KEYS[1], ARGV[4]) return 1";

/// A thing that may come twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    key: String,
    /// Which of a work's hand-offs it is; none for an event.
    sequence: Option<u32>,
    /// How long to remember it after its end.
    window: Duration,
}

/// How a message came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival<'a> {
    /// Which copy it is, if it says so.
    pub copy: Option<&'a str>,
    /// Whether RabbitMQ may have given us this very message before.
    pub redelivered: bool,
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
    pub fn work_note(&self, hand_off: &HandOff) -> Note {
        let key = self.keys.work_note(&hand_off.chain);
        Note { key, sequence: Some(hand_off.sequence), window: hand_off.remembered }
    }

    /// The note of an event with an id of its publisher's.
    #[must_use]
    pub fn event_note(&self, tenant: &Addressee, event: &EventId, window: Duration) -> Note {
        Note { key: self.keys.event_note(tenant, event), sequence: None, window }
    }

    /// Notes that a message is being worked on, unless it is a copy. With Redis away, work goes on.
    pub async fn take(&self, note: &Note, arrival: Arrival<'_>) -> Taken {
        self.take_as(&crate::ids::token(), note, arrival).await
    }

    /// The same under the name of a taker, who is another one for each message that comes.
    pub async fn take_as(&self, taker: &str, note: &Note, arrival: Arrival<'_>) -> Taken {
        if !self.is_up() {
            return Taken::Go;
        }
        let Arrival { copy, redelivered } = arrival;
        let mut link = self.link.clone();
        let mut eval = redis::cmd("EVAL");
        let take = if note.sequence.is_some() { TAKE_WORK } else { TAKE_EVENT };
        eval.arg(IS_COPY.to_owned() + take);
        eval.arg(1).arg(&note.key).arg(taker).arg(copy.unwrap_or_default());
        eval.arg(u8::from(redelivered)).arg(TAKEN.as_secs());
        if let Some(sequence) = note.sequence {
            eval.arg(sequence).arg(sequence.wrapping_sub(KEPT));
        }
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

    /// Takes the notes of all that travels in one message; answers for each whether it is a copy.
    pub async fn take_all(&self, notes: &[Note], arrival: Arrival<'_>) -> Vec<Taken> {
        join_all(notes.iter().map(|note| self.take(note, arrival))).await
    }

    /// Notes that those of them are finished that were no copies.
    pub async fn finish_all(&self, notes: &[Note], taken: &[Taken]) {
        let ours = notes.iter().zip(taken).filter(|(_, taken)| **taken == Taken::Go);
        join_all(ours.map(|(note, _)| self.finish(note))).await;
    }

    /// Notes that a message is finished: what follows from it is confirmed. Call it before the
    /// acknowledgement.
    pub async fn finish(&self, note: &Note) {
        if !self.is_up() {
            return;
        }
        let (mut link, window) = (self.link.clone(), note.window.as_secs().max(1));
        let mut pipe = redis::pipe();
        match note.sequence {
            None => pipe.cmd("SET").arg(&note.key).arg("done").arg("EX").arg(window),
            Some(sequence) => {
                // Together, so that none is left without a time to live.
                pipe.atomic().cmd("HSET").arg(&note.key).arg(sequence).arg("done");
                pipe.cmd("EXPIRE").arg(&note.key).arg(window)
            }
        };
        if let Err(error) = pipe.query_async::<Value>(&mut link).await {
            tracing::debug!(%error, "note not finished");
        }
    }

    /// Whether all of them are noted as finished.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn are_done(&self, notes: &[Note]) -> Result<bool, StoreError> {
        let asking = notes.iter().map(|note| async {
            let mut get = redis::cmd(if note.sequence.is_some() { "HGET" } else { "GET" });
            get.arg(&note.key);
            if let Some(sequence) = note.sequence {
                get.arg(sequence);
            }
            Ok(get.query_async::<Option<String>>(&mut self.link.clone()).await?)
        });
        let noted = self.if_up(try_join_all(asking)).await?;
        Ok(!noted.is_empty() && noted.iter().all(|noted| noted.as_deref() == Some("done")))
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
}
