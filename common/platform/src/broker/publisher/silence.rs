//! Whether a connection that publishes is of any use.
//!
//! A channel of RabbitMQ's that has some 32 messages under way to a queue that takes none (one that has
//! lost its majority, or its leader) reads no more from its connection, so that one such queue stops all
//! that is published over it; a channel that is new to such a queue waits for it before anything else
//! (3.10, `rabbit_fifo_client`). The connection lives on meanwhile, heartbeats and all. But a quiet one is
//! not a silent one: a single message may wait for its queue while nobody sends another. So it is asked.

use std::time::Duration;

use tokio::time::Instant;

/// After so long without an answer RabbitMQ is asked for one.
const ASK_AFTER: Duration = Duration::from_secs(5);
/// After so long it is said to be silent.
const SILENT_AFTER: Duration = Duration::from_secs(10);

/// What has been heard of what was published.
#[derive(Debug)]
pub(super) struct Silence {
    answers: u64,
    since: Instant,
    is_asked: bool,
}

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Nothing: messages are answered, or there are none, or it was asked just now.
    Fine,
    /// RabbitMQ is to be asked for something that it answers at once if it reads at all.
    Ask,
    /// It answers nothing.
    Silent,
}

impl Silence {
    pub(super) fn new(now: Instant) -> Self {
        Self { answers: 0, since: now, is_asked: false }
    }

    /// Looks at how many answers there were until now, and whether any message waits for one. To be asked
    /// about once a second.
    pub(super) fn look(&mut self, now: Instant, answers: u64, anything_waits: bool) -> Finding {
        if answers != self.answers || !(anything_waits || self.is_asked) {
            *self = Self { answers, since: now, is_asked: false };
        }
        match now - self.since {
            silent if silent >= SILENT_AFTER && self.is_asked => Finding::Silent,
            silent if silent >= ASK_AFTER && !self.is_asked => {
                self.is_asked = true;
                Finding::Ask
            }
            _ => Finding::Fine,
        }
    }
}

#[cfg(test)]
mod tests {
    use Finding::{Ask, Fine, Silent};

    use super::*;

    #[test]
    fn who_does_not_answer_is_asked_and_then_silent() {
        let start = Instant::now();
        let mut silence = Silence::new(start);
        for (second, answers, anything_waits, finding) in [
            (0, 0, false, Fine),
            (20, 0, false, Fine),
            (21, 0, true, Fine),
            (24, 0, true, Fine),
            (25, 0, true, Ask),
            (26, 0, true, Fine),
            // It answers; the message still waits.
            (27, 1, true, Fine),
            (31, 1, true, Fine),
            (32, 1, true, Ask),
            (36, 1, true, Fine),
            (37, 1, true, Silent),
            // Whoever sent it has given up; that is no answer.
            (90, 1, false, Silent),
            (91, 2, false, Fine),
            (190, 2, false, Fine),
            // Not looked at for long.
            (191, 2, true, Fine),
            (300, 2, true, Ask),
        ] {
            let now = start + Duration::from_secs(second);
            assert_eq!(silence.look(now, answers, anything_waits), finding, "at {second} s");
        }
    }
}
