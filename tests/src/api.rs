//! The HTTP APIs as a client sees them.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

/// A client of one API.
#[derive(Clone, Debug)]
pub struct Api {
    client: reqwest::Client,
    base: String,
    key: String,
}

/// What an API answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The headers.
    pub headers: reqwest::header::HeaderMap,
    /// The body, `null` if there is none.
    pub body: Value,
}

impl Api {
    /// A client of the API at this URL.
    ///
    /// # Errors
    /// The client can't be built.
    pub fn new(base: &str, key: &str) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { client, base: base.to_owned(), key: key.to_owned() })
    }

    /// Where it is.
    #[must_use]
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The same client with another key.
    #[must_use]
    pub fn with_key(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    /// Calls it with a JSON body, or none if that is `null`.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn call(&self, method: Method, path: &str, body: Value) -> anyhow::Result<Answer> {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        self.raw(method, path, &[("content-type", "application/json")], text).await
    }

    /// Calls it with these headers and this body.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn raw(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> anyhow::Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base)).body(body);
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("authorization")) {
            request = request.bearer_auth(&self.key);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await?;
        let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes)? };
        Ok(Answer { status, headers, body })
    }

    /// Calls it with a body of this type; answers as soon as the answer begins.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn response(
        &self,
        method: &Method,
        path: &str,
        media_type: &str,
        body: impl Into<reqwest::Body>,
    ) -> anyhow::Result<reqwest::Response> {
        let request = self.client.request(method.clone(), format!("{}{path}", self.base));
        let request = request.bearer_auth(&self.key).header("content-type", media_type);
        Ok(request.body(body).send().await?)
    }

    /// The text that is at a path.
    ///
    /// # Errors
    /// There is none.
    pub async fn text(&self, path: &str) -> anyhow::Result<String> {
        let response = self.response(&Method::GET, path, "", "").await?;
        Ok(response.error_for_status()?.text().await?)
    }

    /// Posts lines of JSON; answers the lines that come back.
    ///
    /// # Errors
    /// It did not answer with lines of JSON.
    pub async fn lines(
        &self,
        path: &str,
        lines: impl Into<reqwest::Body>,
    ) -> anyhow::Result<Vec<Value>> {
        let response = self.stream(path, lines).await?;
        let (status, text) = (response.status(), response.text().await?);
        anyhow::ensure!(status == StatusCode::OK, "{status} {text}");
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// Posts lines; answers as soon as the answer begins.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn stream(
        &self,
        path: &str,
        lines: impl Into<reqwest::Body>,
    ) -> anyhow::Result<reqwest::Response> {
        self.response(&Method::POST, path, "application/x-ndjson", lines).await
    }

    /// The pointers of a problem's errors.
    #[must_use]
    pub fn pointers(answer: &Answer) -> Vec<String> {
        let errors = answer.body["errors"].as_array().cloned().unwrap_or_default();
        errors
            .iter()
            .map(|error| error["pointer"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}

/// A subscription to be created, with a quick retry.
#[must_use]
pub fn subscription(url: &str, events: &[&str]) -> Value {
    json!({ "url": url, "events": events, "retry": { "schedule": ["1s", "2s", "4s"] } })
}
