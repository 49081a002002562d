//! What becomes of work of which it can't be told whom it is for, because Redis is away, or has lost that. It keeps nothing
//! else waiting: what is for those who are known goes on.

use std::sync::Arc;
use std::time::Duration;

use doorbell_common::rung::Rung;
use doorbell_common::sideline::Lane;
use doorbell_common::work::Work;
use doorbell_platform::patience::{Unanswered, patience_of, patiently};
use doorbell_platform::seldom::Seldom;
use doorbell_platform::store::StoreError;

use crate::dispatch::{Dispatcher, Done, to_done};
use crate::understand::Destination;

/// The longest time for which work is put off in one go, as a power of two: four minutes.
const LONGEST: u32 = 8;

/// How often it is told that something is put off.
const PUT_OFF_TOLD_EACH: Duration = Duration::from_secs(10);

/// Why it can't be told whom something is for.
#[derive(Debug)]
pub(crate) enum Unknown {
    /// Redis has lost what says so.
    Lost,
    /// Redis has been away for too long.
    Away,
    /// The service is stopping.
    Stopping,
}

impl Dispatcher {
    /// Asks what is known of subscriptions until there is an answer, for something in this lane.
    pub(crate) async fn find_out<T, F>(&self, lane: Lane, ask: impl Fn() -> F) -> Result<T, Unknown>
    where
        F: Future<Output = Result<T, Arc<StoreError>>>,
    {
        static TOLD: Seldom = Seldom::each(PUT_OFF_TOLD_EACH);
        let at_most = patience_of(lane, self.store.away_for());
        let asking = patiently(&self.shutdown, at_most, || async {
            match ask().await {
                Ok(found) => Ok(Some(found)),
                Err(error) if error.is_of_a_part() => {
                    if TOLD.is_time() {
                        tracing::error!(%error, "events are put off");
                    }
                    Ok(None)
                }
                Err(error) => Err(error),
            }
        });
        match asking.await {
            Ok(found) => found.ok_or(Unknown::Lost),
            Err(Unanswered::Stopping) => Err(Unknown::Stopping),
            Err(Unanswered::Stuck) => Err(Unknown::Away),
        }
    }

    /// Leaves work for later: moved aside where it waits for Redis, and put off where it waits for whoever repairs
    /// that.
    pub(crate) async fn leave(&self, unknown: Unknown, work: Work) -> Done {
        let to = match (unknown, &work) {
            (Unknown::Stopping, _) => return Done::NotBegun,
            (Unknown::Away, Work::Page(_)) => Destination::SidelinePages,
            (Unknown::Away, Work::Event(_) | Work::Parcel(_) | Work::Bundle(_)) => {
                Destination::Sideline
            }
            (Unknown::Lost, _) => {
                self.metrics.put_off.inc();
                Destination::Delay(Rung::for_wait(put_off_for(work.sequence())))
            }
        };
        to_done(self.outbox.hand_on(work, to).await)
    }
}

/// For how long work is put off that has been handed on so often: twice as long each time, which takes two hand-offs.
fn put_off_for(sequence: u32) -> Duration {
    Duration::from_secs(1 << (sequence / 2).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_off_again_waits_longer_but_not_for_ever() {
        for (sequence, seconds) in
            [(0, 1), (1, 1), (2, 2), (4, 4), (15, 128), (16, 256), (17, 256), (u32::MAX, 256)]
        {
            assert_eq!(put_off_for(sequence), Duration::from_secs(seconds), "{sequence}");
        }
    }
}
