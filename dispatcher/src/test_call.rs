//! Serves the control-plane's test call: one attempt of a test event, no retry, nothing counted.

use doorbell_common::event::{Event, Trace};
use doorbell_common::ids::{Addressee, SubscriptionId};
use doorbell_platform::broker::{Message, Received};
use doorbell_platform::store::records::Lookup;
use doorbell_platform::{clock, ids};
use lapin::types::ShortString;
use serde_json::json;

use crate::dispatch::Dispatcher;
use crate::sender::{Answer, Post};

impl Dispatcher {
    /// Makes the attempt and answers whoever asked. A request that is not understood, or that
    /// nobody waits for, is dropped: whoever asked has a timeout.
    pub(crate) async fn serve_test(&self, received: &Received) {
        let Some(reply_to) = received.properties.reply_to().clone() else { return };
        let answer = match self.make_test(received).await {
            Ok(answer) => answer,
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        let mut reply = Message::internal("", answer.to_string().into_bytes());
        // The default exchange routes by queue name.
        reply.exchange = String::new();
        reply.routing_key = reply_to.to_string();
        if let Some(id) = received.properties.correlation_id().clone() {
            reply.properties = reply.properties.with_correlation_id(id);
        }
        if let Err(error) = self.publisher.publish(reply).await {
            tracing::warn!(%error, "test call not answered");
        }
    }

    async fn make_test(&self, received: &Received) -> anyhow::Result<serde_json::Value> {
        let id: SubscriptionId = std::str::from_utf8(&received.body)?.parse()?;
        // Not from the snapshots: a subscription may be tested the moment it was created.
        let Lookup::Live(stored) = self.store.subscription(&id).await? else {
            anyhow::bail!("there is no such subscription");
        };
        let subscription = stored.subscription;
        let event = Event {
            id: received
                .properties
                .message_id()
                .as_ref()
                .map(ShortString::as_str)
                .and_then(|id| id.parse().ok())
                .unwrap_or_else(ids::event_id),
            tenant: Addressee::Tenant(subscription.tenant.clone()),
            event_type: "doorbell.test".parse()?,
            timestamp: clock::now(),
            trace: Trace::default(),
            data: br#"{"message":"This is a test event from Doorbell."}"#.as_slice().into(),
        };
        let body = subscription.payload.body(&event).into();
        let answer = self
            .sender
            .post(Post { subscription: &subscription, event: &event, body: &body, attempt: 1 })
            .await;
        Ok(describe(&answer))
    }
}

fn describe(answer: &Answer) -> serde_json::Value {
    let headers: serde_json::Map<String, serde_json::Value> = answer
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    json!({
        "outcome": answer.outcome.as_str(),
        "status": answer.status,
        "duration_ms": u64::try_from(answer.duration.as_millis()).unwrap_or(u64::MAX),
        "headers": headers,
        "body": String::from_utf8_lossy(&answer.body),
        "truncated": answer.truncated,
        "detail": answer.detail,
    })
}
