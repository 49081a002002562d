//! How a service stops: one signal that everyone sees, and one tracker that everyone's tasks are
//! in, so that the end can wait for them.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The signal to stop and the tasks to wait for. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    stopping: CancellationToken,
    finished_intake: CancellationToken,
    tasks: TaskTracker,
}

impl Shutdown {
    /// Runs a task that the end of the service waits for.
    pub fn spawn<F>(&self, task: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tasks.spawn(task)
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
