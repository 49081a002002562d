//! A connection to a cluster of Redis, which is made anew when nothing is heard of it any more.
//!
//! The client (redis 1.8) may lock itself up for good when a node dies: while it reads anew who has what, it polls
//! nothing else, not even the task of its own whose turn with their common lock it is. From then on every command
//! ends with its time limit, although the cluster is well (seen in one of four clients at the first failover under
//! load). Nothing but another connection helps.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::{ErrorKind, RedisError, RedisResult};
use tokio::time::Instant;

/// A connection over which commands end with their time limits, and nothing else was heard for so long, is replaced.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a new one may take, all nodes together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A cluster; connected when first used, because its nodes may not be up yet.
pub(in crate::store) struct Cluster {
    client: ClusterClient,
    current: tokio::sync::Mutex<Option<Line>>,
    /// Held while a silent connection is replaced.
    replacing: tokio::sync::Mutex<()>,
}

/// A connection, and when it was heard of last. Cheap to clone.
#[derive(Clone)]
pub(super) struct Line {
    pub(super) connection: ClusterConnection,
    heard: Heard,
}

/// When something was heard last.
#[derive(Clone)]
struct Heard(Arc<Mutex<Instant>>);

impl Heard {
    fn now() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    /// Takes note of what came of a command; answers whether that was its time limit once more, and nothing else
    /// has come for too long. A refusal, too, is a sign of life.
    fn is_silence<T>(&self, answer: &RedisResult<T>) -> bool {
        let mut at = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answer.as_ref().is_err_and(RedisError::is_timeout) {
            return at.elapsed() > SILENCE;
        }
        *at = Instant::now();
        false
    }
}

impl Cluster {
    pub(super) fn new(client: ClusterClient) -> Self {
        Self {
            client,
            current: tokio::sync::Mutex::default(),
            replacing: tokio::sync::Mutex::default(),
        }
    }

    /// The connection that there is, or a new one.
    pub(super) async fn line(&self) -> RedisResult<Line> {
        let mut current = self.current.lock().await;
        if let Some(line) = &*current {
            return Ok(line.clone());
        }
        Ok(current.insert(self.connect().await?).clone())
    }

    async fn connect(&self) -> RedisResult<Line> {
        let connecting = self.client.get_async_connection();
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        let too_late = || RedisError::from((ErrorKind::Io, "the cluster does not answer"));
        Ok(Line { connection: connected.map_err(|_| too_late())??, heard: Heard::now() })
    }

    /// Takes note of what came of a command over this connection, and replaces it if nothing is heard of it any
    /// more. One command does so, and waits for it; the others go on with the one that there is.
    pub(super) async fn judge<T>(&self, line: &Line, answer: &RedisResult<T>) {
        if !line.heard.is_silence(answer) {
            return;
        }
        let Ok(_replacing) = self.replacing.try_lock() else { return };
        let is_line = |known: &Line| Arc::ptr_eq(&known.heard.0, &line.heard.0);
        if !self.current.lock().await.as_ref().is_some_and(is_line) {
            return;
        }
        tracing::warn!("nothing is heard of the cluster of Redis: connecting anew");
        match self.connect().await {
            Ok(line) => *self.current.lock().await = Some(line),
            Err(error) => tracing::debug!(%error, "no new connection to the cluster of Redis"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_time_limits_for_long_are_silence() {
        let in_vain = || RedisResult::<()>::Err(io::Error::from(io::ErrorKind::TimedOut).into());
        let refused = || RedisResult::<()>::Err((ErrorKind::Client, "refused").into());
        let heard = Heard::now();
        let second = Duration::from_secs(1);
        assert!(!heard.is_silence(&in_vain()));
        tokio::time::advance(SILENCE).await;
        assert!(!heard.is_silence(&in_vain()));
        tokio::time::advance(second).await;
        assert!(!heard.is_silence(&refused()), "refused is heard");
        tokio::time::advance(SILENCE).await;
        assert!(!heard.is_silence(&in_vain()));
        tokio::time::advance(second).await;
        assert!(heard.is_silence(&in_vain()));
        assert!(!heard.is_silence(&Ok(())));
        assert!(!heard.is_silence(&in_vain()));
    }
}
