//! When a connection is of no use: commands over it end in vain.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{RedisError, RedisResult, ServerErrorKind, Value};
use tokio::time::Instant;

/// For how long commands end in vain until their connection is of no use.
const LONG_ENOUGH: Duration = Duration::from_secs(5);
/// Those that are further apart have nothing to do with each other.
const APART: Duration = Duration::from_secs(10);

/// Why a command ended in vain. Any other error is an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vain {
    /// There was no answer in time.
    NoAnswer,
    /// Nothing can be written there.
    ReadOnly,
}

impl fmt::Display for Vain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoAnswer => "no answer in time",
            Self::ReadOnly => "a replica takes no writes",
        })
    }
}

/// What came in vain of one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct InVain {
    made_at: Instant,
    /// When the first one in a row had no answer, and when the last one.
    unanswered: Arc<Mutex<Option<(Instant, Instant)>>>,
}

impl InVain {
    /// Of a connection that is made now.
    pub(super) fn begin() -> Self {
        Self { made_at: Instant::now(), unanswered: Arc::default() }
    }

    /// Takes note of one more; answers whether the connection is of no use. That others were answered says
    /// nothing: other nodes of a cluster may have done that.
    pub(super) fn is_enough(&self, vain: Vain) -> bool {
        let now = Instant::now();
        let since = match vain {
            Vain::NoAnswer => self.unanswered_since(now),
            // Those who only read do not meet it, so there may be few.
            Vain::ReadOnly => self.made_at,
        };
        now - since > LONG_ENOUGH
    }

    fn unanswered_since(&self, now: Instant) -> Instant {
        let mut unanswered = self.unanswered.lock().unwrap_or_else(PoisonError::into_inner);
        let first = match *unanswered {
            Some((first, last)) if now - last <= APART => first,
            Some(_) | None => now,
        };
        *unanswered = Some((first, now));
        first
    }

    /// Whether these are of the same connection.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.unanswered, &other.unanswered)
    }
}

/// Why a command ended in vain, if it did.
pub(super) fn in_vain(answer: &RedisResult<Value>) -> Option<Vain> {
    match answer {
        Ok(value) => read_only(value),
        Err(error) => unanswered(error),
    }
}

/// The same for the first of several that did.
pub(super) fn any_in_vain(answers: &RedisResult<Vec<Value>>) -> Option<Vain> {
    match answers {
        Ok(values) => values.iter().find_map(read_only),
        Err(error) => unanswered(error),
    }
}

fn unanswered(error: &RedisError) -> Option<Vain> {
    error.is_timeout().then_some(Vain::NoAnswer)
}

fn read_only(value: &Value) -> Option<Vain> {
    let Value::ServerError(error) = value else { return None };
    (error.kind() == Some(ServerErrorKind::ReadOnly)).then_some(Vain::ReadOnly)
}

#[cfg(test)]
mod tests {
    use std::io;

    use redis::{ErrorKind, parse_redis_value};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_of_no_use_once_it_was_for_long() {
        use Vain::{NoAnswer, ReadOnly};
        let in_vain = InVain::begin();
        // Seconds after the one before.
        for (pause, vain, is_enough) in [
            (0, NoAnswer, false),
            (0, ReadOnly, false),
            (5, NoAnswer, false),
            (1, NoAnswer, true),
            (0, ReadOnly, true),
            (9, NoAnswer, true),
            (11, NoAnswer, false),
            (0, ReadOnly, true),
            (5, NoAnswer, false),
            (1, NoAnswer, true),
        ] {
            tokio::time::advance(Duration::from_secs(pause)).await;
            assert_eq!(in_vain.is_enough(vain), is_enough, "{vain}, {pause} s later");
        }
    }

    #[test]
    fn what_is_answered_is_not_in_vain() {
        let server = |text: &str| Ok(parse_redis_value(text.as_bytes()).unwrap());
        for (answer, vain) in [
            (Ok(Value::Nil), None),
            (server("-OOM command not allowed when used memory > 'maxmemory'.\r\n"), None),
            (Err((ErrorKind::Client, "refused").into()), None),
            (Err(io::Error::from(io::ErrorKind::TimedOut).into()), Some(Vain::NoAnswer)),
            (
                server("-READONLY You can't write against a read only replica.\r\n"),
                Some(Vain::ReadOnly),
            ),
        ] {
            assert_eq!(in_vain(&answer), vain, "{answer:?}");
            let answers = answer.map(|answer| vec![Value::Okay, answer]);
            assert_eq!(any_in_vain(&answers), vain, "{answers:?}");
        }
    }
}
