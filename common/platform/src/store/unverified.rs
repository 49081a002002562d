//! Whose endpoints are to be asked whether they want POSTs, and when: for each tenant a list by time, and
//! a list of the tenants in which each has its turn. Taking one from there is to plan when it is asked
//! next, should whoever took it die, or the answer be no.

use std::time::Duration;

use doorbell_common::ids::{SubscriptionId, TenantId};
use doorbell_common::time::Timestamp;
use doorbell_common::verification::ASKED_AGAIN_AFTER;
use redis::Value;

use super::{Store, StoreError};

/// Scores are a time in milliseconds, and how often it was asked before that, in one number.
const TRIES: u64 = 8;

/// Takes what is due of a tenant, and plans when it is due again. KEYS: the tenants, the tenant's list.
/// ARGV: the tenant, now, how many at most, then after how many milliseconds again, try by try. What was
/// asked the last time is taken out.
const TAKE: &str = "\
    local now, due = tonumber(ARGV[2]), {} \
    local found = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now * 8 + 7), 'WITHSCORES', 'LIMIT', 0, ARGV[3]) \
    for i = 1, #found, 2 do \
        local tries = tonumber(found[i + 1]) % 8 local after = ARGV[4 + tries] \
        local next = '' \
        if after then next = string.format('%.0f', (now + after) * 8 + tries + 1) redis.call('ZADD', KEYS[2], next, found[i]) \
        else redis.call('ZREM', KEYS[2], found[i]) end \
        due[#due + 1] = {found[i], tries, next} \
    end \
    local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES') \
    if first[2] then redis.call('ZADD', KEYS[1], string.format('%.0f', math.max(math.floor(first[2] / 8), now)), ARGV[1]) \
    else redis.call('ZREM', KEYS[1], ARGV[1]) end \
    return due";

/// Plans to ask. KEYS as above; ARGV: the tenant, when, how often before, then those to be asked.
const PLAN: &str = "\
    local score = string.format('%.0f', ARGV[2] * 8 + ARGV[3]) \
    for i = 4, #ARGV do redis.call('ZADD', KEYS[2], score, ARGV[i]) end \
    redis.call('ZADD', KEYS[1], 'LT', ARGV[2], ARGV[1]) return 1";

/// Forgets a plan, unless there is another one by now.
const FORGET: &str = "if redis.call('ZSCORE', KEYS[1], ARGV[1]) == ARGV[2] then redis.call('ZREM', KEYS[1], ARGV[1]) end return 1";

/// One that is to be asked now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Due {
    /// The subscription.
    pub id: SubscriptionId,
    /// How often its endpoint was asked before.
    pub tries: u64,
    /// What is planned for it after that.
    next: String,
}

impl Store {
    /// Plans to ask the endpoints of these, instead of what was planned before. `tries` is how often they
    /// were asked already.
    ///
    /// # Errors
    /// Redis did not answer: it may or may not be planned.
    pub async fn plan_to_ask(
        &self,
        tenant: &TenantId,
        ids: impl Iterator<Item = &SubscriptionId>,
        (at, tries): (Timestamp, u64),
    ) -> Result<(), StoreError> {
        let ids: Vec<String> = ids.map(ToString::to_string).collect();
        if ids.is_empty() {
            return Ok(());
        }
        let mut plan = redis::cmd("EVAL");
        plan.arg(PLAN).arg(2).arg(self.keys.unverified()).arg(self.keys.unverified_of(tenant));
        plan.arg(tenant.as_str()).arg(at.as_millis()).arg(tries.min(TRIES - 1)).arg(ids);
        plan.query_async::<Value>(&mut self.link.clone()).await?;
        Ok(())
    }

    /// The tenants of whom someone is to be asked now, at most so many; whose turn was longest ago comes
    /// first.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn tenants_to_ask(
        &self,
        now: Timestamp,
        most: usize,
    ) -> Result<Vec<TenantId>, StoreError> {
        let mut range = redis::cmd("ZRANGEBYSCORE");
        range.arg(self.keys.unverified()).arg("-inf").arg(now.as_millis());
        range.arg("LIMIT").arg(0).arg(most);
        let tenants: Vec<String> = range.query_async(&mut self.link.clone()).await?;
        Ok(tenants.iter().filter_map(|tenant| tenant.parse().ok()).collect())
    }

    /// Takes some of a tenant's that are to be asked now. They are due again later, unless they need not
    /// [be asked any more](Self::is_asked).
    ///
    /// # Errors
    /// Redis did not answer: they are asked later.
    pub async fn take_to_ask(
        &self,
        tenant: &TenantId,
        now: Timestamp,
        most: usize,
    ) -> Result<Vec<Due>, StoreError> {
        let mut take = redis::cmd("EVAL");
        take.arg(TAKE).arg(2).arg(self.keys.unverified()).arg(self.keys.unverified_of(tenant));
        take.arg(tenant.as_str()).arg(now.as_millis()).arg(most);
        for after in ASKED_AGAIN_AFTER {
            take.arg(millis(after));
        }
        let taken: Vec<(String, u64, String)> = take.query_async(&mut self.link.clone()).await?;
        let due =
            |(id, tries, next): (String, _, _)| Some(Due { id: id.parse().ok()?, tries, next });
        Ok(taken.into_iter().filter_map(due).collect())
    }

    /// One that was taken need not be asked any more, unless that was planned anew.
    ///
    /// # Errors
    /// Redis did not answer: it is asked once more.
    pub async fn is_asked(&self, tenant: &TenantId, due: &Due) -> Result<(), StoreError> {
        let mut forget = redis::cmd("EVAL");
        forget.arg(FORGET).arg(1).arg(self.keys.unverified_of(tenant));
        forget.arg(due.id.to_string()).arg(&due.next);
        forget.query_async::<Value>(&mut self.link.clone()).await?;
        Ok(())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_fit_their_part_of_a_score() {
        assert!(u64::try_from(ASKED_AGAIN_AFTER.len()).unwrap() < TRIES);
    }
}
