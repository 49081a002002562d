//! How many messages of each queue may be in hand at once. RabbitMQ counts messages, memory is
//! counted in bytes: so the window begins small, grows while it is full and its messages are small
//! enough, and shrinks when what is in hand is too much.

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
