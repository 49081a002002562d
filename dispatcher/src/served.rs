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
    parts: OnceLock<Option<Value>>,
    context: OnceLock<Option<Context>>,
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
            context: OnceLock::new(),
        }
    }

    /// Whether a subscription wants the event, by its filter. An event that cannot be looked into is
    /// wanted: rather one too many than one that nobody hears of.
    pub(crate) fn is_wanted_by(&self, subscription: &Subscription) -> bool {
        let Some(filter) = &subscription.filter else { return true };
        self.parts().is_none_or(|parts| filter.matches(parts))
    }

    fn parts(&self) -> Option<&Value> {
        self.parts.get_or_init(|| self.event.parts()).as_ref()
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
