//! How a service stops: one signal that everyone sees, and one tracker that everyone's tasks are
//! in, so that the end can wait for them. And how it fails: a task that it cannot do without has
//! ended before.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The signal to stop and the tasks to wait for. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    stopping: CancellationToken,
    finished_intake: CancellationToken,
    tasks: TaskTracker,
    failure: Arc<Failure>,
}

/// The first task that failed.
#[derive(Debug, Default)]
struct Failure {
    task: OnceLock<&'static str>,
    happened: CancellationToken,
}

impl Shutdown {
    /// Runs a task that the end of the service waits for, and that someone hears from.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(task);
    }

    /// Runs a task that the service cannot do without, and that nobody hears from: should it
    /// panic, or end while the service goes on, the service fails.
    pub fn spawn_vital(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let shutdown = self.clone();
        self.tasks.spawn(async move {
            let panicked = AssertUnwindSafe(task).catch_unwind().await.is_err();
            if panicked || !shutdown.is_stopping() {
                // Only the first is told: the others may have followed from it.
                let _first = shutdown.failure.task.set(name).is_ok();
                shutdown.failure.happened.cancel();
            }
        });
    }

    /// Waits until a task fails that the service cannot do without; answers its name.
    pub async fn failed(&self) -> &'static str {
        self.failure.happened.cancelled().await;
        self.failure.task.get().copied().unwrap_or_default()
    }

    /// Tells everyone to stop.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// Whether everyone was told to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_cancelled()
    }

    /// Waits until everyone is told to stop.
    pub async fn stopping(&self) {
        self.stopping.cancelled().await;
    }

    /// What the future gives, or `None` if the service is told to stop first.
    pub async fn until<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.stopping.run_until_cancelled(future).await
    }

    /// Tells what only serves the others (publishers, the admin server) that they are done.
    pub fn finish(&self) {
        self.finished_intake.cancel();
    }

    /// What the future gives, or `None` once nobody needs it any more. For tasks that must
    /// outlive the signal to stop because the work in flight leans on them.
    pub async fn until_finished<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        self.finished_intake.run_until_cancelled(future).await
    }

    /// Waits for every task, at most so long; answers whether all have ended.
    pub async fn wait(&self, at_most: Duration) -> bool {
        self.tasks.close();
        tokio::time::timeout(at_most, self.tasks.wait()).await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_vital_task_that_panics_or_ends_fails_the_service() {
        let shutdown = Shutdown::default();
        shutdown.spawn_vital("follower", async { panic!("for this test") });
        assert_eq!(shutdown.failed().await, "follower");

        let shutdown = Shutdown::default();
        shutdown.spawn_vital("consumer", async {});
        assert_eq!(shutdown.failed().await, "consumer");
    }

    #[tokio::test]
    async fn a_vital_task_may_end_when_the_service_does() {
        let shutdown = Shutdown::default();
        let stopping = shutdown.clone();
        shutdown.spawn_vital("publisher", async move { stopping.stopping().await });
        shutdown.stop();
        assert!(shutdown.wait(Duration::from_secs(10)).await);
        assert_eq!(shutdown.failed().now_or_never(), None);
    }
}
