//! An event that is being delivered, and the bodies that are made of it: each form of payload once, and
//! a template for each subscription that has one.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use doorbell_common::event::Event;
use doorbell_common::ids::TenantId;
use doorbell_common::payload::Payload;
use doorbell_common::subscription::Subscription;
use doorbell_common::template::{Context, Template, TemplateError};
use doorbell_platform::workshop::{TooLong, Workshop};
use serde_json::Value;

/// A template is rendered for a delivery in hand if its turn is likely to come within this time: the
/// delivery keeps its message meanwhile, and so a place from others.
const LIKELY_WITHIN: Duration = Duration::from_millis(250);

/// An event, and what is made of it when it is first asked for.
pub(crate) struct Served {
    pub(crate) event: Arc<Event>,
    envelope: OnceLock<Bytes>,
    raw: OnceLock<Bytes>,
    cloud_event: OnceLock<Bytes>,
    parts: OnceLock<Option<Arc<Value>>>,
    elements: OnceLock<usize>,
    context: OnceLock<Option<Context>>,
}

fn elements(value: &Value) -> usize {
    match value {
        Value::Array(list) => list.len() + list.iter().map(elements).sum::<usize>(),
        Value::Object(fields) => fields.values().map(elements).sum(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => 0,
    }
}

/// Why there is no body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NoBody {
    /// The template makes none of this event.
    Failed(TemplateError),
    /// Templates of the same tenant take all the time there is for them; this one's turn comes after so
    /// long.
    NotYet(Duration),
}

impl From<TemplateError> for NoBody {
    fn from(error: TemplateError) -> Self {
        Self::Failed(error)
    }
}

impl Served {
    pub(crate) fn new(event: Arc<Event>) -> Self {
        Self {
            event,
            envelope: OnceLock::new(),
            raw: OnceLock::new(),
            cloud_event: OnceLock::new(),
            parts: OnceLock::new(),
            elements: OnceLock::new(),
            context: OnceLock::new(),
        }
    }

    /// The event as filters and templates see it; none if it cannot be looked into.
    pub(crate) fn parts(&self) -> Option<&Arc<Value>> {
        self.parts.get_or_init(|| self.event.parts().map(Arc::new)).as_ref()
    }

    /// How many elements all of its lists have.
    pub(crate) fn elements(&self) -> usize {
        *self.elements.get_or_init(|| self.parts().map_or(0, |parts| elements(parts)))
    }

    /// The body of a subscription's POSTs, and what it is.
    pub(crate) async fn body<'a>(
        &'a self,
        subscription: &'a Subscription,
        workshop: &Workshop<TenantId>,
    ) -> Result<(Cow<'a, Bytes>, &'a str), NoBody> {
        if let Some(template) = &subscription.template {
            let body = self.render(template, &subscription.tenant, workshop).await?;
            return Ok((Cow::Owned(body), template.content_type.as_str()));
        }
        let payload = subscription.payload;
        let slot = match payload {
            Payload::Envelope => &self.envelope,
            Payload::Raw => &self.raw,
            Payload::CloudEvents => &self.cloud_event,
        };
        let body = slot.get_or_init(|| payload.body(&self.event).into());
        Ok((Cow::Borrowed(body), payload.content_type()))
    }

    async fn render(
        &self,
        template: &Template,
        tenant: &TenantId,
        workshop: &Workshop<TenantId>,
    ) -> Result<Bytes, NoBody> {
        let context = self
            .context
            .get_or_init(|| Some(Context::of(self.parts()?, self.event.data.len())))
            .clone()
            .ok_or(TemplateError::Event)?;
        let entered = workshop.enter(tenant, LIKELY_WITHIN).await;
        let at_work = entered.map_err(|TooLong(wait)| NoBody::NotYet(wait))?;
        let template = template.clone();
        // On a thread of its own: it may take a second, and others' deliveries are in this task, too.
        let rendering = tokio::task::spawn_blocking(move || {
            let body = template.render(&context);
            drop(at_work);
            body
        });
        let rendered = rendering.await.map_err(|error| TemplateError::Failed(error.to_string()))?;
        Ok(rendered?.into())
    }
}
