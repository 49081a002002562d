//! What the services at the doors need of every event and seldom changes: kept in memory, and read again
//! when its version in the store is another one.

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use crate::shutdown::Shutdown;
use crate::store::{Store, StoreError};

/// How often the version is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Something in the store that has a version.
pub trait Versioned: Sized + Send + Sync + 'static {
    /// What it is, for the log.
    const NAME: &'static str;

    /// Another text after each change.
    fn version(store: &Store) -> impl Future<Output = Result<Option<String>, StoreError>> + Send;

    /// As it is now.
    fn read(store: &Store) -> impl Future<Output = Result<Self, StoreError>> + Send;
}

/// Something as it was when last read. Cheap to clone.
#[derive(Debug)]
pub struct Followed<T>(Arc<RwLock<Option<Arc<T>>>>);

impl<T> Clone for Followed<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Default for Followed<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T: Versioned> Followed<T> {
    /// Follows it from now on.
    #[must_use]
    pub fn start(store: Store, shutdown: &Shutdown) -> Self {
        let followed = Self::default();
        let following = followed.clone().follow(store, shutdown.clone());
        shutdown.spawn_vital(T::NAME, following);
        followed
    }

    /// As it was when last read; none before that.
    #[must_use]
    pub fn current(&self) -> Option<Arc<T>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn follow(self, store: Store, shutdown: Shutdown) {
        let mut version = None;
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while shutdown.until_finished(look.tick()).await.is_some() {
            if let Err(error) = self.read(&store, &mut version).await {
                tracing::debug!(what = T::NAME, %error, "not read");
            }
        }
    }

    /// Reads it, if it has changed.
    async fn read(
        &self,
        store: &Store,
        version: &mut Option<Option<String>>,
    ) -> Result<(), StoreError> {
        let current = store.if_up(T::version(store)).await?;
        if version.as_ref() == Some(&current) {
            return Ok(());
        }
        let fresh = T::read(store).await?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(fresh));
        *version = Some(current);
        Ok(())
    }
}
