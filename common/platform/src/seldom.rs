//! What may be true of each of a million messages is told in the log now and then, and not of each.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Says when to tell something again.
#[derive(Debug)]
pub struct Seldom {
    each: Duration,
    told_at: Mutex<Option<Instant>>,
}

impl Seldom {
    /// Once in so long at most.
    #[must_use]
    pub const fn each(each: Duration) -> Self {
        Self { each, told_at: Mutex::new(None) }
    }

    /// Whether it is time; whoever is told so tells it.
    pub fn is_time(&self) -> bool {
        let mut told_at = self.told_at.lock().unwrap_or_else(PoisonError::into_inner);
        let is_time = told_at.is_none_or(|at| at.elapsed() >= self.each);
        if is_time {
            *told_at = Some(Instant::now());
        }
        is_time
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_told_at_once_and_then_now_and_then() {
        let seldom = Seldom::each(Duration::from_secs(10));
        for (seconds, is_time) in
            [(0, true), (0, false), (9, false), (1, true), (9, false), (60, true)]
        {
            tokio::time::advance(Duration::from_secs(seconds)).await;
            assert_eq!(seldom.is_time(), is_time, "{seconds} s later");
        }
    }
}
