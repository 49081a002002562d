//! What may become of a message that is published.

/// Why a message was not confirmed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PublishError {
    /// There is no connection to RabbitMQ: the message was not sent.
    #[error("RabbitMQ is not reachable")]
    Unreachable,
    /// RabbitMQ takes no messages, because of an alarm of its memory or disk or because a queue takes none:
    /// the message was not sent.
    #[error("RabbitMQ takes no messages: {0}")]
    Blocked(String),
    /// RabbitMQ said that it did not take the message.
    #[error("RabbitMQ did not take the message")]
    Refused,
    /// No answer came: RabbitMQ may have the message or not.
    #[error("RabbitMQ did not confirm the message in time; it may have it or not")]
    Unknown,
    /// RabbitMQ has closed the channel for this reason, over this message or another one: it may have the message or not.
    #[error("RabbitMQ closed the channel, and may have the message or not: {0}")]
    Closed(String),
    /// The message itself cannot be sent.
    #[error("the message cannot be sent: {0}")]
    Invalid(String),
}

impl PublishError {
    /// What a caller of an API may be told: what RabbitMQ says of users and virtual hosts is not for everyone.
    #[must_use]
    pub fn for_caller(&self) -> String {
        let told = if matches!(self, Self::Closed(_)) { &Self::Unknown } else { self };
        told.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_hears_nothing_of_users() {
        let refusal = "ACCESS_REFUSED - access to exchange 'x' refused for user 'me'".to_owned();
        let closed = PublishError::Closed(refusal);
        assert!(closed.to_string().contains("'me'") && !closed.for_caller().contains("'me'"));
        for other in [PublishError::Unreachable, PublishError::Blocked("low on disk".to_owned())] {
            assert_eq!(other.for_caller(), other.to_string());
        }
    }
}
