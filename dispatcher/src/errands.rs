//! What the control-plane asks of a dispatcher, because only dispatchers stand in the network that may
//! call endpoints: one attempt of a test event, or whether an endpoint wants our POSTs at all. No retry,
//! nothing counted.

use std::pin::pin;

use doorbell_common::event::{Event, Trace};
use doorbell_common::ids::{Addressee, SubscriptionId};
use doorbell_common::outcome::OutcomeClass;
use doorbell_common::subscription::Subscription;
use doorbell_common::verification::{self, ALLOWED_ORIGIN, PATIENCE, Verification};
use doorbell_platform::broker::topology::REPLIES;
use doorbell_platform::broker::{Errand, Message, Received};
use doorbell_platform::sentence::sentence;
use doorbell_platform::store::records::Lookup;
use doorbell_platform::{clock, ids};
use lapin::types::ShortString;
use reqwest::header::HeaderMap;
use serde_json::{Map, Value, json};

use crate::attempt::SLOW_AFTER;
use crate::dispatch::Dispatcher;
use crate::hand::Busy;
use crate::sender::{Answer, Post, Shortage};
use crate::served::{NoBody, Served};

/// Bytes of an answer's headers that are told: the client reads some 400 KB, and RabbitMQ takes no message of more
/// than a mebibyte where we configure it, but closes the channel of whoever sends it one.
const HEADER_BYTES: usize = 16 * 1024;
/// What is POSTed as a test.
const TEST_DATA: &[u8] = br#"{"message":"This is a test event from Doorbell."}"#;

impl Dispatcher {
    /// Runs the errand and answers whoever asked. A request that is not understood, or that nobody
    /// waits for, is dropped: whoever asked has a timeout.
    pub(crate) async fn serve_errand(&self, received: &Received, busy: &Busy<'_>) {
        let Some(reply_to) = received.properties.reply_to().clone() else { return };
        let answer = match self.run_errand(received, busy).await {
            Ok(answer) => answer,
            Err(error) => json!({ "error": sentence(&error) }),
        };
        let mut reply = Message::internal(reply_to.as_str(), answer.to_string().into_bytes());
        reply.exchange = REPLIES.to_owned();
        if let Some(id) = received.properties.correlation_id().clone() {
            reply.properties = reply.properties.with_correlation_id(id);
        }
        if let Err(error) = self.publisher.publish(reply).await {
            tracing::warn!(%error, "errand not answered");
        }
    }

    async fn run_errand(&self, received: &Received, busy: &Busy<'_>) -> anyhow::Result<Value> {
        let id: SubscriptionId = std::str::from_utf8(&received.body)?.parse()?;
        // Not from the snapshots: a subscription may be tested the moment it was created.
        let Lookup::Live(stored) = self.store.subscription(&id).await? else {
            anyhow::bail!("there is no such subscription");
        };
        match Errand::of(received) {
            Errand::Test => self.make_test(received, &stored.subscription, busy).await,
            Errand::Verify => self.verify(stored.subscription, busy).await,
        }
    }

    async fn make_test(
        &self,
        received: &Received,
        subscription: &Subscription,
        busy: &Busy<'_>,
    ) -> anyhow::Result<Value> {
        let given = received.properties.message_id();
        let event = Event {
            id: given
                .as_ref()
                .map(ShortString::as_str)
                .and_then(|id| id.parse().ok())
                .unwrap_or_else(ids::event_id),
            tenant: Addressee::Tenant(subscription.tenant.clone()),
            event_type: "doorbell.test".parse()?,
            timestamp: clock::now(),
            trace: Trace::default(),
            data: TEST_DATA.into(),
        };
        let served = Served::new(event.into());
        let answer = match served.body(subscription, &self.workshop).await {
            Ok((body, content_type)) => {
                let event = &*served.event;
                let post = Post { subscription, event, body: &body, content_type, attempt: 1 };
                self.post_once(post, busy).await?
            }
            Err(NoBody::Failed(error)) => Answer::unsent(OutcomeClass::Template, error.to_string()),
            Err(NoBody::NotYet(_)) => {
                anyhow::bail!("many templates of this tenant are waiting to be rendered: try again")
            }
        };
        Ok(describe(&answer))
    }

    /// Asks an endpoint whether it wants our POSTs.
    async fn verify(
        &self,
        mut subscription: Subscription,
        busy: &Busy<'_>,
    ) -> anyhow::Result<Value> {
        let (answer, is_yes) = match subscription.verification {
            Verification::None => anyhow::bail!("this endpoint need not be asked"),
            Verification::Challenge => {
                let challenge = ids::token();
                let event = Event {
                    id: ids::event_id(),
                    tenant: Addressee::Tenant(subscription.tenant.clone()),
                    event_type: "doorbell.verification".parse()?,
                    timestamp: clock::now(),
                    trace: Trace::default(),
                    data: verification::question(&challenge).into(),
                };
                subscription.timeout = PATIENCE.into();
                let (subscription, body) = (&subscription, &event.data.to_vec().into());
                let (event, content_type) = (&event, "application/json");
                let post = Post { subscription, event, body, content_type, attempt: 1 };
                let answer = self.post_once(post, busy).await?;
                let is_yes = verification::is_answered(&challenge, &answer.body);
                (answer, is_yes)
            }
            Verification::CloudEvents => {
                let answer = self.sender.options(&subscription.url, &self.origin).await?;
                let allowed =
                    answer.headers.get(ALLOWED_ORIGIN).and_then(|value| value.to_str().ok());
                let is_yes = verification::is_allowed(&self.origin, allowed);
                (answer, is_yes)
            }
        };
        let detail = match (answer.outcome == OutcomeClass::Delivered, is_yes) {
            (true, true) => String::new(),
            (true, false) => {
                "its answer is no yes: see \"verification\" in the documentation".to_owned()
            }
            (false, _) => answer.detail,
        };
        Ok(
            json!({ "endpoint": subscription.endpoint(), "verified": detail.is_empty(), "detail": detail }),
        )
    }

    /// Makes a POST. One that takes long takes nobody's place, if there is a permit for slow ones.
    async fn post_once(&self, post: Post<'_>, busy: &Busy<'_>) -> Result<Answer, Shortage> {
        let mut posting = pin!(self.sender.post(post));
        if let Ok(answer) = tokio::time::timeout(SLOW_AFTER, posting.as_mut()).await {
            return answer;
        }
        let owner = Addressee::Tenant(post.subscription.tenant.clone());
        let permit = self.slow_posts.try_acquire(&owner);
        let slow = permit.is_some().then(|| busy.slow());
        let answer = posting.await;
        drop((slow, permit));
        answer
    }
}

fn describe(answer: &Answer) -> Value {
    let (headers, are_all) = told_headers(&answer.headers);
    json!({
        "outcome": answer.outcome.as_str(),
        "status": answer.status,
        "duration_ms": u64::try_from(answer.duration.as_millis()).unwrap_or(u64::MAX),
        "headers": headers,
        "body": String::from_utf8_lossy(&answer.body),
        "truncated": answer.truncated || !are_all,
        "detail": answer.detail,
    })
}

/// Headers as they are told, as many as there is room for, and whether that is all of them.
fn told_headers(headers: &HeaderMap) -> (Map<String, Value>, bool) {
    let (mut told, mut room, mut are_all) = (Map::new(), HEADER_BYTES, true);
    for name in headers.keys() {
        let values = headers.get_all(name).iter();
        let values = values.map(|value| String::from_utf8_lossy(value.as_bytes()));
        // Several of one name are one list (RFC 9110 §5.3).
        let value = values.collect::<Vec<_>>().join(", ");
        match room.checked_sub(name.as_str().len() + value.len()) {
            Some(left) => {
                room = left;
                told.insert(name.to_string(), value.into());
            }
            None => are_all = false,
        }
    }
    (told, are_all)
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn headers_are_told_as_far_as_there_is_room() {
        let mut headers = HeaderMap::new();
        headers.insert("x-large", HeaderValue::from_bytes(&[0xff; HEADER_BYTES / 2]).unwrap());
        for value in ["1", "2"] {
            headers.append("x-small", HeaderValue::from_static(value));
        }
        let (told, are_all) = told_headers(&headers);
        // What is no text takes three times its room.
        assert_eq!(Value::Object(told), json!({ "x-small": "1, 2" }));
        assert!(!are_all);
        headers.remove("x-large");
        assert!(told_headers(&headers).1);
    }
}
