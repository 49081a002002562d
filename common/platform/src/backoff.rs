//! How long to wait between tries at something of ours that is down.

use std::time::Duration;

use crate::clock;

/// Growing, jittered waits: 100 ms at first, doubling up to 5 s, each cut by up to half.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// The next wait.
    pub fn next_wait(&mut self) -> Duration {
        let wait = Self::FIRST.saturating_mul(1 << self.tries.min(10)).min(Self::LONGEST);
        self.tries = self.tries.saturating_add(1);
        wait.mul_f64(0.5 + clock::chance() / 2.0)
    }

    /// Waits that long.
    pub async fn wait(&mut self) {
        tokio::time::sleep(self.next_wait()).await;
    }

    /// It worked, for so long: the next waits are short again, unless it broke at once, as it may each time.
    pub fn worked_for(&mut self, time: Duration) {
        if time >= Self::LONGEST {
            self.tries = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound() {
        let mut backoff = Backoff::default();
        let waits: Vec<Duration> = (0..40).map(|_| backoff.next_wait()).collect();
        assert!(waits[0] <= Backoff::FIRST);
        assert!(waits.iter().all(|wait| *wait >= Backoff::FIRST / 2 && *wait <= Backoff::LONGEST));
        assert!(waits[39] >= Backoff::LONGEST / 2);
        backoff.worked_for(Duration::from_secs(1));
        assert!(backoff.next_wait() > Backoff::FIRST, "it breaks at once");
        backoff.worked_for(Duration::from_secs(60));
        assert!(backoff.next_wait() <= Backoff::FIRST);
    }
}
