//! What becomes of commands that fail, and when a connection is of no use: once they end in vain over it, which is
//! without an answer, or where nothing can be written.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::{RedisError, RedisResult, ServerErrorKind, Value};
use tokio::time::Instant;

/// For how long commands end in vain until their connection is of no use.
const LONG_ENOUGH: Duration = Duration::from_secs(5);
/// Those that are further apart have nothing to do with each other.
const APART: Duration = Duration::from_secs(10);

/// Why Redis did not do what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// There was no answer in time.
    NoAnswer,
    /// It is a replica, and takes no writes.
    ReadOnly,
    /// It refused: it is full, for one.
    Refused,
    /// There was no connection, or it broke.
    Unreachable,
}

impl Failure {
    /// Every one, for metrics that show each from the start.
    pub(super) const ALL: [Self; 4] =
        [Self::NoAnswer, Self::ReadOnly, Self::Refused, Self::Unreachable];

    /// The reason as it stands in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoAnswer => "no_answer",
            Self::ReadOnly => "read_only",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
        }
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

    /// Takes note of one more that failed; answers whether the connection is of no use. That others were answered
    /// says nothing: other nodes of a cluster may have done that.
    pub(super) fn is_enough(&self, failure: Failure) -> bool {
        let now = Instant::now();
        let since = match failure {
            Failure::NoAnswer => self.unanswered_since(now),
            // Those who only read do not meet it, so there may be few.
            Failure::ReadOnly => self.made_at,
            // The one is an answer, and after the other the client connects anew by itself.
            Failure::Refused | Failure::Unreachable => return false,
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

/// Why a command failed, if it did.
pub(super) fn failure(answer: &RedisResult<Value>) -> Option<Failure> {
    match answer {
        Ok(value) => refusal(value),
        Err(error) => Some(of_error(error)),
    }
}

/// The same for the first of several that did.
pub(super) fn first_failure(answers: &RedisResult<Vec<Value>>) -> Option<Failure> {
    match answers {
        Ok(values) => values.iter().find_map(refusal),
        Err(error) => Some(of_error(error)),
    }
}

fn of_error(error: &RedisError) -> Failure {
    if error.is_timeout() {
        Failure::NoAnswer
    } else if error.is_io_error() {
        Failure::Unreachable
    } else {
        Failure::Refused
    }
}

fn refusal(value: &Value) -> Option<Failure> {
    let Value::ServerError(error) = value else { return None };
    let is_replica = error.kind() == Some(ServerErrorKind::ReadOnly);
    Some(if is_replica { Failure::ReadOnly } else { Failure::Refused })
}

#[cfg(test)]
mod tests {
    use std::io;

    use redis::{ErrorKind, parse_redis_value};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_of_no_use_once_it_was_for_long() {
        use Failure::{NoAnswer, ReadOnly, Refused, Unreachable};
        let in_vain = InVain::begin();
        // Seconds after the one before.
        for (pause, failure, is_enough) in [
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
            (0, Refused, false),
            (0, Unreachable, false),
        ] {
            tokio::time::advance(Duration::from_secs(pause)).await;
            assert_eq!(in_vain.is_enough(failure), is_enough, "{failure:?}, {pause} s later");
        }
    }

    #[test]
    fn a_failure_has_its_reason() {
        let server = |text: &str| Ok(parse_redis_value(text.as_bytes()).unwrap());
        for (answer, reason) in [
            (Ok(Value::Nil), None),
            (
                server("-OOM command not allowed when used memory > 'maxmemory'.\r\n"),
                Some(Failure::Refused),
            ),
            (Err((ErrorKind::AuthenticationFailed, "refused").into()), Some(Failure::Refused)),
            (Err(io::Error::from(io::ErrorKind::TimedOut).into()), Some(Failure::NoAnswer)),
            (Err(io::Error::from(io::ErrorKind::BrokenPipe).into()), Some(Failure::Unreachable)),
            (
                server("-READONLY You can't write against a read only replica.\r\n"),
                Some(Failure::ReadOnly),
            ),
        ] {
            assert_eq!(failure(&answer), reason, "{answer:?}");
            let answers = answer.map(|answer| vec![Value::Okay, answer]);
            assert_eq!(first_failure(&answers), reason, "{answers:?}");
        }
    }
}
