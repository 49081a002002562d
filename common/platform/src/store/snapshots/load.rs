//! Reads what is not known from the store.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use doorbell_common::ids::{SlotNumber, SubscriptionId, TenantId};
use doorbell_common::pattern::Pattern;

use super::{Index, Known};
use crate::seldom::Seldom;
use crate::store::sealed::Opened;
use crate::store::slots::MARK;
use crate::store::{Store, StoreError};

/// Members of a set that are read in one go.
const PIECE: usize = 2000;
/// How often a set is read that is not read whole.
const READS: usize = 3;

/// How often it is told of a record that is not understood: each event may ask for it.
const TOLD_EACH: Duration = Duration::from_secs(10);

/// Who has which pattern.
type Members = Vec<(Pattern, Vec<SubscriptionId>)>;

impl Store {
    /// What a slot has under these ids.
    pub(super) async fn load_known(
        &self,
        number: SlotNumber,
        ids: Vec<SubscriptionId>,
    ) -> Result<HashMap<SubscriptionId, Known>, StoreError> {
        let key = self.keys.slot(number);
        let mut get = redis::pipe();
        let fields: Vec<String> = ids.iter().map(ToString::to_string).collect();
        get.cmd("HMGET").arg(&key).arg(fields);
        let (records,): (Vec<Option<String>>,) = self.ask(get).await?;
        let known = |(id, raw): (SubscriptionId, Option<String>)| {
            let known = raw.map_or(Known::Missing, |raw| self.known(&key, &id.to_string(), &raw));
            (id, known)
        };
        Ok(ids.into_iter().zip(records).map(known).collect())
    }

    /// What a record says. One that is not understood, or whose secrets can't be opened, counts as
    /// missing: its deliveries are held, the others go on.
    fn known(&self, key: &str, id: &str, raw: &str) -> Known {
        match self.open(key, id, raw) {
            Ok(Opened::Live(subscription, _)) => Known::Live(Arc::new(*subscription)),
            Ok(Opened::Deleted) => Known::Deleted,
            Err(error) => {
                static TOLD: Seldom = Seldom::each(TOLD_EACH);
                if TOLD.is_time() {
                    tracing::error!(%error, "a record is not understood: its deliveries are held");
                }
                Known::Missing
            }
        }
    }

    /// All that a slot has.
    pub(in crate::store) async fn load_slot(
        &self,
        number: SlotNumber,
    ) -> Result<Vec<(SubscriptionId, Known)>, StoreError> {
        let key = self.keys.slot(number);
        let mut get = redis::pipe();
        get.cmd("HGETALL").arg(&key);
        let (records,): (Vec<(String, String)>,) = self.ask(get).await?;
        if !records.iter().any(|(field, _)| field == MARK) {
            self.check_unmarked(number).await?;
        }
        let known =
            |(id, raw): (String, String)| Some((id.parse().ok()?, self.known(&key, &id, &raw)));
        Ok(records.into_iter().filter_map(known).collect())
    }

    /// Which of a tenant's subscriptions have which pattern.
    ///
    /// On a cluster the epoch may be there although this tenant's node was emptied. So an index is only believed if
    /// the tenant's record was there before it was read, and after that.
    pub(super) async fn load_index(&self, tenant: &TenantId) -> Result<Arc<Index>, StoreError> {
        loop {
            let (is_there, index) = self.read_index(tenant).await?;
            let is_still = if is_there && !self.link.is_cluster() {
                // It was looked at together with the epoch, each time.
                true
            } else {
                self.raw_tenant(tenant).await?.is_some()
            };
            if is_there == is_still {
                return Ok(Arc::new(index));
            }
        }
    }

    /// Whether there is such a tenant, and what its index says.
    async fn read_index(&self, tenant: &TenantId) -> Result<(bool, Index), StoreError> {
        let mut get = redis::pipe();
        get.cmd("EXISTS").arg(self.keys.tenant(tenant));
        get.cmd("SMEMBERS").arg(self.keys.patterns(tenant));
        let (is_there, patterns): (bool, Vec<String>) = self.ask(get).await?;
        let patterns: Vec<Pattern> =
            patterns.iter().filter_map(|pattern| pattern.parse().ok()).collect();
        let mut index = Index::default();
        for (pattern, ids) in self.load_patterns(tenant, patterns).await? {
            index.insert(&pattern, ids);
        }
        Ok((is_there, index))
    }

    /// The subscriptions that have these patterns, in the order of their ids.
    async fn load_patterns(
        &self,
        tenant: &TenantId,
        patterns: Vec<Pattern>,
    ) -> Result<Members, StoreError> {
        let (mut found, mut incomplete) = self.read_patterns(tenant, patterns).await?;
        for _ in 1..READS {
            if incomplete.is_empty() {
                break;
            }
            let patterns = incomplete.into_iter().map(|(pattern, _)| pattern).collect();
            let (whole, still) = self.read_patterns(tenant, patterns).await?;
            found.extend(whole);
            incomplete = still;
        }
        // These change all the time, and with each change an index is read again.
        found.extend(incomplete);
        Ok(found)
    }

    /// Reads the sets of these patterns in pieces: one may have a million members, and Redis does one thing at a
    /// time. Answers those that were read whole, and the others.
    ///
    /// A replica that takes its master's place in between goes over a set in another order, and takes the place
    /// where the reading was for one of its own: what lies before that never comes. So what came in several pieces
    /// is counted.
    async fn read_patterns(
        &self,
        tenant: &TenantId,
        patterns: Vec<Pattern>,
    ) -> Result<(Members, Members), StoreError> {
        let mut found: Members =
            patterns.into_iter().map(|pattern| (pattern, Vec::new())).collect();
        // Which of these have more to read, and from where.
        let mut unread: Vec<(usize, u64)> = (0..found.len()).map(|place| (place, 0)).collect();
        let mut in_pieces = HashSet::new();
        while !unread.is_empty() {
            let mut pipe = redis::pipe();
            for (place, cursor) in &unread {
                let key = self.keys.pattern(tenant, &found[*place].0);
                pipe.cmd("SSCAN").arg(key).arg(cursor).arg("COUNT").arg(PIECE);
            }
            let pieces: Vec<(u64, Vec<String>)> = self.ask(pipe).await?;
            for ((place, cursor), (next, ids)) in unread.iter_mut().zip(pieces) {
                found[*place].1.extend(ids.iter().filter_map(|id| id.parse().ok()));
                *cursor = next;
            }
            unread.retain(|(_, cursor)| *cursor != 0);
            in_pieces.extend(unread.iter().map(|(place, _)| found[*place].0.clone()));
        }
        for (_, ids) in &mut found {
            ids.sort_unstable();
            // A set that grows or shrinks meanwhile may show a member twice.
            ids.dedup();
            ids.shrink_to_fit();
        }
        let counts = self.count_members(tenant, &in_pieces).await?;
        let is_whole = |(pattern, ids): &(Pattern, Vec<SubscriptionId>)| {
            counts.get(pattern).is_none_or(|count| ids.len() >= *count)
        };
        Ok(found.into_iter().partition(is_whole))
    }

    async fn count_members<'a>(
        &self,
        tenant: &TenantId,
        patterns: &'a HashSet<Pattern>,
    ) -> Result<HashMap<&'a Pattern, usize>, StoreError> {
        if patterns.is_empty() {
            return Ok(HashMap::new());
        }
        let mut pipe = redis::pipe();
        for pattern in patterns {
            pipe.cmd("SCARD").arg(self.keys.pattern(tenant, pattern));
        }
        let counts: Vec<usize> = self.ask(pipe).await?;
        Ok(patterns.iter().zip(counts).collect())
    }
}
