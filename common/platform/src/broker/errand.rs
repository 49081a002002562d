//! What the control-plane may ask of a dispatcher, told apart by the type of the message.

use lapin::types::ShortString;

use super::Received;

/// What a dispatcher is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// One attempt of a test event.
    Test,
    /// Ask an endpoint whether it wants our POSTs.
    Verify,
}

impl Errand {
    /// The type of the message.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Test => "test",
            Self::Verify => "verify",
        }
    }

    /// What a message asks for.
    #[must_use]
    pub fn of(received: &Received) -> Self {
        let kind = received.properties.kind().as_ref().map(ShortString::as_str);
        if kind == Some(Self::Verify.as_str()) { Self::Verify } else { Self::Test }
    }
}
