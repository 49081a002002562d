//! What each tenant has used of its share: what is more goes to the sideline.

use std::sync::{Mutex, PoisonError};

use doorbell_common::ids::Addressee;
use doorbell_common::rate::{Meters, RateLimit};
use doorbell_common::sideline::{Lane, share};

use crate::clock;

/// How much a tenant may have among all others.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct ShareArgs {
    /// How many events a second of one tenant go among those of all others (and ten times as many at once); what is more goes to the sideline.
    #[arg(long, env = "DOORBELL_SIDELINE_ABOVE", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    sideline_above: u32,
}

/// What each tenant has used of its share, of what this process publishes.
#[derive(Debug)]
pub struct Shares {
    share: RateLimit,
    meters: Mutex<Meters<Addressee>>,
}

impl Shares {
    /// Nobody has used anything.
    #[must_use]
    pub fn new(args: &ShareArgs) -> Self {
        Self { share: share(args.sideline_above), meters: Mutex::default() }
    }

    /// Which way one more message of this tenant goes, of so many events. They count.
    pub fn lane(&self, tenant: &Addressee, events: usize) -> Lane {
        let (events, now) =
            (u32::try_from(events).unwrap_or(u32::MAX), clock::steady().as_micros());
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        let is_within = meters.of(tenant, now).admits_together(self.share, events, now);
        if is_within { Lane::Main } else { Lane::Sideline }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_tenant_brings_beyond_its_share_goes_aside_and_nobody_elses() {
        let shares = Shares::new(&ShareArgs { sideline_above: 1 });
        let (flood, other): (Addressee, Addressee) =
            ("flood".parse().unwrap(), "other".parse().unwrap());
        let aside = |tenant| (0..100).filter(|_| shares.lane(tenant, 1) == Lane::Sideline).count();
        // Ten at once, and one more if this takes a second.
        assert!((80..=90).contains(&aside(&flood)));
        assert_eq!(shares.lane(&other, 10), Lane::Main);
        // All of the ten were counted.
        assert!(aside(&other) >= 98);
    }
}
