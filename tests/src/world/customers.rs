//! What a world's customers do: subscribe and publish.

use anyhow::Context as _;
use reqwest::Method;
use serde_json::{Value, json};

use super::World;
use crate::api::subscription;
use crate::wait::seconds;

impl World {
    /// Subscribes an endpoint of the receiver, and waits until that is in force.
    ///
    /// # Errors
    /// The control-plane refused.
    pub async fn subscribe(
        &self,
        tenant: &str,
        endpoint: &str,
        events: &[&str],
    ) -> anyhow::Result<String> {
        let body = subscription(&self.receiver.url(endpoint), events);
        self.subscribe_as(tenant, endpoint, body).await
    }

    /// The same, with everything said by the story.
    ///
    /// # Errors
    /// The control-plane refused.
    pub async fn subscribe_as(
        &self,
        tenant: &str,
        endpoint: &str,
        body: Value,
    ) -> anyhow::Result<String> {
        let answer = self
            .control
            .call(Method::POST, &format!("/v1/tenants/{tenant}/subscriptions"), body)
            .await?;
        anyhow::ensure!(answer.status == 201, "{}", answer.body);
        let id = answer.body["id"].as_str().context("no id")?.to_owned();
        let secret = answer.body["secret"].as_str().context("no secret")?;
        self.receiver.add_secret(endpoint, secret);
        self.ledger.subscribed(tenant, endpoint, &answer.body);
        Ok(id)
    }

    /// Subscribes many endpoints of the receiver in one call: `{prefix}-0` and so on.
    ///
    /// # Errors
    /// The control-plane refused one.
    pub async fn subscribe_many(
        &self,
        tenant: &str,
        (prefix, count): (&str, usize),
        events: &[&str],
    ) -> anyhow::Result<Vec<String>> {
        let names: Vec<String> = (0..count).map(|n| format!("{prefix}-{n}")).collect();
        let bodies: Vec<Value> =
            names.iter().map(|name| subscription(&self.receiver.url(name), events)).collect();
        let lines: String = bodies.iter().map(|body| format!("{body}\n")).collect();
        let path = format!("/v1/tenants/{tenant}/subscriptions/bulk");
        let answer = self.control.lines(&path, lines).await?;
        let (end, results) = answer.split_last().context("no answer")?;
        anyhow::ensure!(*end == json!({ "created": count, "refused": 0 }), "{end}");
        let mut ids = Vec::new();
        for ((name, body), result) in names.iter().zip(&bodies).zip(results) {
            self.receiver.add_secret(name, result["secret"].as_str().context("no secret")?);
            self.ledger.subscribed(tenant, name, body);
            ids.push(result["id"].as_str().context("no id")?.to_owned());
        }
        Ok(ids)
    }

    /// Pauses a subscription, or lets it go on.
    ///
    /// # Errors
    /// The control-plane refused.
    pub async fn set_status(&self, tenant: &str, id: &str, status: &str) -> anyhow::Result<()> {
        let path = format!("/v1/tenants/{tenant}/subscriptions/{id}");
        let answer = self.control.call(Method::PATCH, &path, json!({ "status": status })).await?;
        anyhow::ensure!(answer.body["status"] == status, "{}", answer.body);
        Ok(())
    }

    /// Waits as long as a change may take to be in force everywhere.
    pub async fn in_force(&self) {
        tokio::time::sleep(seconds(2)).await;
    }

    /// Publishes over HTTP; answers the id.
    ///
    /// # Errors
    /// It was not accepted.
    pub async fn publish(
        &self,
        tenant: &str,
        event_type: &str,
        data: Value,
    ) -> anyhow::Result<String> {
        let text = data.to_string();
        let answer = self
            .producer
            .call(
                Method::POST,
                "/v1/events",
                json!({ "tenant": tenant, "type": event_type, "data": data }),
            )
            .await?;
        anyhow::ensure!(answer.status == 202, "{} {}", answer.status, answer.body);
        let id = answer.body["id"].as_str().context("no id")?.to_owned();
        self.ledger.accepted(tenant, event_type, &id, &text);
        Ok(id)
    }
}
