//! What is remembered of the stream of held deliveries: who has some there, and up to where it was
//! read. The stream is the truth; what is lost here is read there again.

use std::collections::HashMap;

use doorbell_common::held::{HeldIndex, Measure, Span, Waiting};
use doorbell_common::ids::SubscriptionId;
use redis::Value;

use super::{Store, StoreError};

/// Up to where the stream was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The last offset that was read.
    pub offset: u64,
    /// The id of the message there. Another one at the same offset is another stream.
    pub message_id: String,
}

/// What was read from Redis.
#[derive(Debug, Default)]
pub struct SavedHeld {
    /// Who has held deliveries, and where.
    pub index: HeldIndex,
    /// Up to where the stream was read; `None` if it never was.
    pub place: Option<Place>,
    /// How large the stream was then; `None` if nobody counted.
    pub measure: Option<Measure>,
    /// Which state this is: whoever changes it names the one that it knows.
    pub version: String,
}

/// Changes saved, and fields read, in one go: a command has a million arguments at most, and others wait while Redis
/// works on it.
const AT_ONCE: usize = 10_000;
/// How often all is read, where others change it meanwhile.
const READS: usize = 3;

/// The fields beside the subscriptions.
const VERSION: &str = "version";
const PLACE: &str = "place";
const MEASURE: &str = "measure";

/// Changes the hash, if it is in the state that is known to us. ARGV: that state's version, the
/// next version, the number of values that follow as pairs, those pairs, fields to remove.
///
/// All in one key, so that a Redis that comes back with an older state comes back with one in
/// which subscriptions and place belong together; and by version, so that whoever knows a newer
/// state than that finds out.
const SAVE: &str = "local known = redis.call('HGET', KEYS[1], 'version') or '' if known ~= ARGV[1] then return 0 end redis.call('HSET', KEYS[1], 'version', ARGV[2]) local pairs_end = 3 + 2 * tonumber(ARGV[3]) for i = 4, pairs_end, 2 do redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end for i = pairs_end + 1, #ARGV do redis.call('HDEL', KEYS[1], ARGV[i]) end return 1";

impl Store {
    /// What is remembered of the stream of held deliveries; nothing, if that was lost.
    ///
    /// # Errors
    /// Redis did not answer or is not the store that it was, or someone else changes it all the time.
    pub async fn held(&self) -> Result<SavedHeld, StoreError> {
        let mut fields = None;
        for _ in 0..READS {
            fields = self.read_held().await?;
            if fields.is_some() {
                break;
            }
        }
        let mut fields = fields.ok_or(StoreError::NotReady)?;
        let version = fields.remove(VERSION).unwrap_or_default();
        let place = fields.remove(PLACE).as_deref().and_then(read_place);
        let measure = fields.remove(MEASURE).and_then(|text| text.parse().ok());
        let waiting = fields.iter().map(|(id, text)| Some((id.parse().ok()?, read_waiting(text)?)));
        let waiting: Option<Vec<(SubscriptionId, Waiting)>> = waiting.collect();
        if let (Some(place), Some(waiting)) = (place, waiting) {
            let (index, place) = (HeldIndex::saved(waiting), Some(place));
            return Ok(SavedHeld { index, place, measure, version });
        }
        // Without its place an index says nothing, and with less than all it would strand who is left out: all is
        // read again.
        let mut forget = redis::cmd("UNLINK");
        forget.arg(self.keys.held()).query_async::<Value>(&mut self.link.clone()).await?;
        Ok(SavedHeld::default())
    }

    /// Reads all fields, in pieces: they may be a million, and Redis does one thing at a time. `None` if that is not
    /// one state: someone has changed it meanwhile, or a replica that has taken its master's place went over the
    /// fields in another order.
    async fn read_held(&self) -> Result<Option<HashMap<String, String>>, StoreError> {
        let key = self.keys.held();
        let (mut fields, mut cursor) = (HashMap::new(), 0);
        loop {
            let mut scan = redis::pipe();
            scan.cmd("HSCAN").arg(&key).arg(cursor).arg("COUNT").arg(AT_ONCE);
            scan.cmd("HLEN").arg(&key).cmd("HGET").arg(&key).arg(VERSION);
            type Answer = ((u64, Vec<(String, String)>), usize, Option<String>);
            let ((next, some), count, version): Answer = self.ask(scan).await?;
            fields.extend(some);
            cursor = next;
            if cursor == 0 {
                let is_whole = fields.len() == count && fields.get(VERSION) == version.as_ref();
                return Ok(is_whole.then_some(fields));
            }
        }
    }

    /// Saves changes to a state of that version; answers the new version, or `None` if the state
    /// is another one, because someone else has changed it or Redis came back with an older one.
    ///
    /// # Errors
    /// Redis did not answer: the changes may be saved or not.
    pub async fn save_held(
        &self,
        version: &str,
        read: (&Place, &Measure),
        changes: &[(SubscriptionId, Option<Waiting>)],
    ) -> Result<Option<String>, StoreError> {
        let mut version = version.to_owned();
        let before_last = changes.len().saturating_sub(1) / AT_ONCE * AT_ONCE;
        let (most, last) = changes.split_at(before_last);
        for part in most.chunks(AT_ONCE) {
            // The place comes last: what was read after an older one is read once more, and none is left out.
            let saved = self.save_part_of_held(&version, None, part).await?;
            let Some(next) = saved else { return Ok(None) };
            version = next;
        }
        self.save_part_of_held(&version, Some(read), last).await
    }

    async fn save_part_of_held(
        &self,
        version: &str,
        read: Option<(&Place, &Measure)>,
        changes: &[(SubscriptionId, Option<Waiting>)],
    ) -> Result<Option<String>, StoreError> {
        let mut link = self.link.clone();
        let next = crate::ids::token();
        let mut eval = redis::cmd("EVAL");
        let kept = changes.iter().filter(|(_, waiting)| waiting.is_some()).count();
        eval.arg(SAVE).arg(1).arg(self.keys.held()).arg(version).arg(&next);
        eval.arg(kept + 2 * usize::from(read.is_some()));
        if let Some((Place { offset, message_id }, measure)) = read {
            eval.arg(PLACE).arg(format!("{offset} {message_id}"));
            eval.arg(MEASURE).arg(measure.to_string());
        }
        for (id, waiting) in changes {
            if let Some(Waiting { span: Span { first, last }, bytes, owner }) = waiting {
                eval.arg(id.to_string()).arg(format!("{first}:{last}:{bytes}:{owner}"));
            }
        }
        for (id, waiting) in changes {
            if waiting.is_none() {
                eval.arg(id.to_string());
            }
        }
        let saved: u8 = eval.query_async(&mut link).await?;
        Ok((saved == 1).then_some(next))
    }
}

fn read_place(text: &str) -> Option<Place> {
    let (offset, message_id) = text.split_once(' ')?;
    Some(Place { offset: offset.parse().ok()?, message_id: message_id.to_owned() })
}

fn read_waiting(text: &str) -> Option<Waiting> {
    let mut parts = text.splitn(4, ':');
    let mut number = || parts.next()?.parse().ok();
    let (span, bytes) = (Span { first: number()?, last: number()? }, number()?);
    Some(Waiting { span, bytes, owner: parts.next()?.parse().ok()? })
}
