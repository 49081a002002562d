//! What the services at the doors need of every event and seldom changes: kept in memory, and read again
//! when its version in the store is another one.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError};

/// How often the version is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long the first events wait for what they are judged by.
const SOON: Duration = Duration::from_secs(3);

/// Something in the store that has a version.
pub trait Versioned: Sized + Send + Sync + 'static {
    /// What it is, for the log.
    const NAME: &'static str;

    /// Another text after each change.
    fn version(store: &Store) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// As it is now. `before` is what it was when last read, and its version then: what has changed since may be
    /// less than all of it.
    fn read(
        store: &Store,
        before: Option<(&Self, &str)>,
    ) -> impl Future<Output = Result<Self, StoreError>> + Send;
}

/// Something as it was when last read. Cheap to clone.
#[derive(Debug)]
pub struct Followed<T>(watch::Receiver<Option<Arc<T>>>);

impl<T> Clone for Followed<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Followed<T> {
    /// Never read.
    fn default() -> Self {
        Self(watch::channel(None).1)
    }
}

impl<T: Versioned> Followed<T> {
    /// Follows it from now on.
    #[must_use]
    pub fn start(store: Store, shutdown: &Shutdown) -> Self {
        let (sender, current) = watch::channel(None);
        shutdown.spawn_vital(T::NAME, follow(sender, store, shutdown.clone()));
        Self(current)
    }

    /// As it was when last read; none before that.
    #[must_use]
    pub fn current(&self) -> Option<Arc<T>> {
        self.0.borrow().clone()
    }

    /// What it says, as it was when last read; none before that.
    pub fn ask<R>(&self, question: impl FnOnce(&T) -> R) -> Option<R> {
        self.0.borrow().as_deref().map(question)
    }

    /// Waits until it was read for the first time; `None` if the service is told to stop first.
    pub async fn until_read(&self, shutdown: &Shutdown) -> Option<()> {
        let mut current = self.0.clone();
        let read = shutdown.until(current.wait_for(Option::is_some)).await?;
        // One that nobody follows is never read.
        read.is_ok().then_some(())
    }
}

/// Waits until what events are judged by is known, but not for long: nothing is kept back because Redis is away, or
/// has something that is not understood.
pub async fn known_soon(known: impl Future<Output = Option<()>>) {
    if tokio::time::timeout(SOON, known).await.is_err() {
        tracing::warn!(
            "Redis does not say what events are judged by: until it does, nothing is objected to"
        );
    }
}

async fn follow<T: Versioned>(
    current: watch::Sender<Option<Arc<T>>>,
    store: Store,
    shutdown: Shutdown,
) {
    let (mut version, mut told) = (None, None);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while shutdown.until_finished(look.tick()).await.is_some() {
        match read(&current, &store, &mut version).await {
            Ok(()) => told = None,
            // Somebody must see to it; once is enough to say so.
            Err(error @ StoreError::Corrupt { .. }) => {
                let error = error.to_string();
                if told.as_ref() != Some(&error) {
                    tracing::error!(what = T::NAME, error, "not read");
                }
                told = Some(error);
            }
            Err(error) => tracing::debug!(what = T::NAME, %error, "not read"),
        }
    }
}

/// Reads it, if it has changed.
async fn read<T: Versioned>(
    current: &watch::Sender<Option<Arc<T>>>,
    store: &Store,
    known: &mut Option<Option<String>>,
) -> Result<(), StoreError> {
    let version = store.if_up(T::version(store)).await?;
    if known.as_ref() == Some(&version) {
        return Ok(());
    }
    let before = current.borrow().clone();
    let before = before.as_deref().zip(known.as_ref().and_then(Option::as_deref));
    let now = T::read(store, before).await?;
    current.send_replace(Some(Arc::new(now)));
    *known = Some(version);
    Ok(())
}
