//! What was accepted, who wants what, and whether what arrived is just that.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::event::EventType;
use doorbell_common::pattern::Pattern;
use doorbell_common::payload::Payload;
use doorbell_common::retry::RetryPolicy;
use doorbell_common::time::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use crate::receiver::{Post, Receiver};

/// The tenant of events that are for those of all.
const EVERYONE: &str = "*";

/// An accepted event.
#[derive(Clone, Debug)]
struct Accepted {
    /// Whether it is known to be accepted; otherwise nobody knows, and it may arrive or not.
    sure: bool,
    tenant: String,
    event_type: String,
    data: String,
}

/// A subscription.
#[derive(Clone, Debug)]
struct Wanted {
    tenant: String,
    patterns: Vec<Pattern>,
    retry: RetryPolicy,
    payload: Payload,
}

#[derive(Debug, Default)]
struct Inner {
    events: HashMap<String, Accepted>,
    endpoints: BTreeMap<String, Wanted>,
    /// Endpoints of which no full set is expected.
    partial: HashSet<String>,
}

/// What was accepted and who wants what.
#[derive(Debug, Default)]
pub struct Ledger {
    inner: Mutex<Inner>,
}

impl Ledger {
    /// An event was accepted.
    pub fn accepted(&self, tenant: &str, event_type: &str, id: &str, data: &str) {
        self.attempted(tenant, event_type, id, data);
        if let Some(event) = self.lock().events.get_mut(id) {
            event.sure = true;
        }
    }

    /// An event is about to be published: it may arrive, whatever the publisher is told.
    pub fn attempted(&self, tenant: &str, event_type: &str, id: &str, data: &str) {
        let (tenant, event_type, data) =
            (tenant.to_owned(), event_type.to_owned(), data.to_owned());
        self.lock().events.entry(id.to_owned()).or_insert(Accepted {
            sure: false,
            tenant,
            event_type,
            data,
        });
    }

    /// An endpoint was subscribed; `body` is what the control-plane answered.
    pub fn subscribed(&self, tenant: &str, endpoint: &str, body: &Value) {
        let patterns = body["events"].as_array().cloned().unwrap_or_default();
        let wanted = Wanted {
            tenant: tenant.to_owned(),
            patterns: patterns.iter().filter_map(|text| text.as_str()?.parse().ok()).collect(),
            retry: serde_json::from_value(body["retry"].clone()).unwrap_or_default(),
            payload: serde_json::from_value(body["payload"].clone()).unwrap_or_default(),
        };
        self.lock().endpoints.insert(endpoint.to_owned(), wanted);
    }

    /// An endpoint of which the story itself says what must arrive; what does arrive is checked
    /// all the same.
    pub fn expect_no_full_set(&self, endpoint: &str) {
        self.lock().partial.insert(endpoint.to_owned());
    }

    /// How many events were accepted.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().events.len()
    }

    /// The deliveries that their endpoint has not accepted: endpoint and event. Asked again and again while POSTs come,
    /// so it looks at each tenant's events only, and keeps the receiver from nothing meanwhile.
    #[must_use]
    pub fn missing(&self, receiver: &Receiver) -> Vec<(String, String)> {
        let inner = self.lock();
        let mut events: HashMap<&str, Vec<(&String, EventType)>> = HashMap::new();
        for (id, event) in inner.events.iter().filter(|(_, event)| event.sure) {
            if let Ok(event_type) = event.event_type.parse() {
                events.entry(&event.tenant).or_default().push((id, event_type));
            }
        }
        let full =
            inner.endpoints.iter().filter(|(endpoint, _)| !inner.partial.contains(*endpoint));
        full.flat_map(|(endpoint, wanted)| {
            let own =
                [wanted.tenant.as_str(), EVERYONE].into_iter().filter_map(|of| events.get(of));
            let own = own.flatten().filter(|(_, event_type)| wanted.has_pattern_for(event_type));
            let missing = receiver.missing(endpoint, own.map(|(id, _)| *id).collect());
            missing.into_iter().map(|id| (endpoint.clone(), id.clone())).collect::<Vec<_>>()
        })
        .collect()
    }

    /// The POSTs that came again although their endpoint had accepted the event before.
    #[must_use]
    pub fn duplicates(&self, receiver: &Receiver) -> Vec<Arc<Post>> {
        let (posts, mut accepted) = (receiver.posts(), HashSet::new());
        let again = |post: &Arc<Post>| {
            post.status < 300 && !accepted.insert((post.endpoint.clone(), post.id.clone()))
        };
        posts.into_iter().filter(again).collect()
    }

    /// Checks every POST that came.
    ///
    /// # Errors
    /// One is foreign, changed, unverified or early, or the attempt before it never came.
    pub fn check(&self, receiver: &Receiver) -> anyhow::Result<()> {
        let inner = self.lock();
        for post in receiver.posts() {
            let Some(wanted) = inner.endpoints.get(&post.endpoint) else { continue };
            let event = inner.events.get(&post.id);
            let Some(event) = event else {
                anyhow::bail!("foreign: nobody published {} ({})", post.id, post.endpoint)
            };
            anyhow::ensure!(
                wanted.wants(event),
                "foreign: {} does not want {}",
                post.endpoint,
                event.event_type
            );
            anyhow::ensure!(post.verified, "unverified: {} at {}", post.id, post.endpoint);
            check_body(wanted, event, &post)?;
            // Of an attempt that came twice (a crash does that), the first may be what was retried.
            let before = post.attempt.saturating_sub(1);
            if before > 0 {
                let came = receiver.first_came(&post.endpoint, &post.id, before);
                let came = came.with_context(|| {
                    let Post { attempt, id, endpoint, .. } = post.as_ref();
                    format!("spent: attempt {attempt} of {id} came to {endpoint}, and {before} never did")
                })?;
                check_time(wanted, came, &post)?;
            }
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wanted {
    fn wants(&self, event: &Accepted) -> bool {
        (event.tenant == self.tenant || event.tenant == EVERYONE)
            && event.event_type.parse().is_ok_and(|event_type| self.has_pattern_for(&event_type))
    }

    fn has_pattern_for(&self, event_type: &EventType) -> bool {
        self.patterns.iter().any(|pattern| pattern.matches(event_type))
    }
}

fn check_body(wanted: &Wanted, event: &Accepted, post: &Post) -> anyhow::Result<()> {
    let body = String::from_utf8_lossy(&post.body);
    let tail = format!("\",\"data\":{}}}", event.data);
    let same = match wanted.payload {
        Payload::Raw => body == event.data,
        Payload::Envelope => {
            let head = format!("{{\"type\":\"{}\",\"timestamp\":\"", event.event_type);
            body.starts_with(&head) && body.ends_with(&tail)
        }
        Payload::CloudEvents => {
            body.starts_with("{\"specversion\":\"1.0\"") && body.ends_with(&tail)
        }
    };
    anyhow::ensure!(same, "changed: {body} is not {}", event.data);
    Ok(())
}

/// How much later that is, by the clock that says more. What is due goes by one that is set now and then, as that of a
/// virtual machine is that stood still: what comes between is early by the other one, and nobody's fault.
fn apart(before: (Instant, Timestamp), after: (Instant, Timestamp)) -> Duration {
    after.0.duration_since(before.0).max(after.1.since(before.1))
}

/// A later attempt never comes before its delay has passed.
fn check_time(wanted: &Wanted, before: (Instant, Timestamp), post: &Post) -> anyhow::Result<()> {
    let delay = wanted.retry.delay_after(post.attempt.saturating_sub(1)).unwrap_or_default();
    let waited = apart(before, (post.at, post.clock));
    // The ledger's clock starts when the POST arrives, the delay when it ends, a little later.
    anyhow::ensure!(
        waited + Duration::from_millis(5) >= delay,
        "early: attempt {} of {} came {waited:?} after the one before, not {delay:?}",
        post.attempt,
        post.id
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_makes_nothing_early() {
        let steady = Instant::now();
        let before = (steady, Timestamp::from_millis(10_000));
        for (passed, shown, expected) in
            [(1000, 11_000, 1000), (192, 11_000, 1000), (1000, 9000, 1000), (192, 10_192, 192)]
        {
            let after = (steady + Duration::from_millis(passed), Timestamp::from_millis(shown));
            assert_eq!(apart(before, after), Duration::from_millis(expected), "{passed} {shown}");
        }
    }
}
