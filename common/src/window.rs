//! How many messages of each queue may be in hand at once. RabbitMQ counts messages, memory is
//! counted in bytes: so the window begins small, grows while it is full and its messages are small
//! enough, and shrinks when what is in hand is too much. Messages that linger, of which nothing is left but what
//! others do, count in bytes alone: where they fill the window of a queue, another one is opened beside it.

/// What is in hand may have so many bytes.
pub const BUDGET: usize = 64 * 1024 * 1024;

/// The window that everyone begins with.
const FIRST: u16 = 16;
/// By how much it grows and shrinks.
const FACTOR: u16 = 4;
/// It never shrinks below this.
const LEAST: u16 = 4;

/// How many messages of each queue may be in hand at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    messages: u16,
    most: u16,
}

/// What was seen since the window was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Whether the window of some queue is full, so that there may be more to have.
    pub is_full: bool,
    /// The bytes that are in hand.
    pub bytes: usize,
    /// The bytes of the largest message.
    pub largest: usize,
}

/// What is in hand of one queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filled {
    /// How many messages may be.
    pub window: usize,
    /// How many are.
    pub messages: usize,
    /// How many of these linger.
    pub lingering: usize,
}

impl Filled {
    /// Whether it is full, and half of that lingers.
    #[must_use]
    pub fn is_clogged(self) -> bool {
        self.messages >= self.window && 2 * self.lingering >= self.messages
    }
}

/// Whether other windows may be opened beside those that there are, for queues that may have so many messages in all,
/// while so many that do not linger are in hand, and so many bytes: of those there are never more than two such
/// windows have room for.
#[must_use]
pub fn has_room(windows: usize, not_lingering: usize, bytes: usize) -> bool {
    not_lingering <= windows && bytes <= BUDGET
}

impl Window {
    /// The first window, of one that may have at most so many messages.
    #[must_use]
    pub fn new(most: u16) -> Self {
        Self { messages: FIRST.min(most), most }
    }

    /// How many messages of each queue may be in hand.
    #[must_use]
    pub fn messages(self) -> u16 {
        self.messages
    }

    /// Another window that would do better, for so many queues (one of double weight counts twice).
    #[must_use]
    pub fn better(self, seen: Seen, queues: usize) -> Option<Self> {
        let with = |messages: u16| (messages != self.messages).then_some(Self { messages, ..self });
        if seen.bytes > BUDGET {
            return with((self.messages / FACTOR).max(LEAST.min(self.most)));
        }
        let wider = self.messages.saturating_mul(FACTOR).min(self.most);
        let worst = usize::from(wider).saturating_mul(queues).saturating_mul(seen.largest);
        if seen.is_full && worst <= BUDGET { with(wider) } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lingers_and_fills_a_window_makes_room_for_others() {
        for (messages, lingering, clogged) in
            [(8, 8, true), (8, 4, true), (8, 3, false), (7, 7, false), (9, 5, true)]
        {
            let filled = Filled { window: 8, messages, lingering };
            assert_eq!(filled.is_clogged(), clogged, "{filled:?}");
        }
        assert!(has_room(100, 100, BUDGET));
        assert!(!has_room(100, 101, 0), "it is our own trouble that they wait for");
        assert!(!has_room(100, 0, BUDGET + 1));
    }

    #[test]
    fn it_grows_for_small_messages_and_shrinks_for_large_ones() {
        let full = |largest| Seen { is_full: true, bytes: 0, largest };
        let window = Window::new(256);
        assert_eq!(window.messages(), 16);
        assert_eq!(window.better(Seen::default(), 19), None, "it is not full");
        let wider = window.better(full(1000), 19).unwrap();
        assert_eq!(wider.messages(), 64);
        let widest = wider.better(full(1000), 19).unwrap();
        assert_eq!(widest.messages(), 256);
        assert_eq!(widest.better(full(1000), 19), None);
        // 64 messages of 19 queues, 256 KiB each, would be 304 MiB.
        assert_eq!(window.better(full(256 * 1024), 19), None);
        let too_much = Seen { is_full: true, bytes: BUDGET + 1, largest: 1 };
        let narrower = widest.better(too_much, 19).unwrap();
        assert_eq!(narrower.messages(), 64);
        let least = narrower.better(too_much, 19).unwrap().better(too_much, 19).unwrap();
        assert_eq!(least.messages(), 4);
        assert_eq!(least.better(too_much, 19), None);
        assert_eq!(Window::new(2).better(too_much, 19), None);
    }
}
