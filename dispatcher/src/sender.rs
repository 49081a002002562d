//! Makes one POST and says what came back. An endpoint's failure is a value here, never an error.

mod connections;
mod failure;
mod resolver;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use doorbell_common::address::AddressPolicy;
use doorbell_common::duration::DurationText;
use doorbell_common::event::Event;
use doorbell_common::outcome::{OutcomeClass, classify};
use doorbell_common::subscription::{SignatureFormat, Subscription};
use doorbell_common::time::Timestamp;
use doorbell_common::verification::{PATIENCE, REQUEST_ORIGIN};
use doorbell_platform::clock;
use prometheus::IntCounter;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, RequestBuilder, Response};
use tokio::time::Instant;
use url::Url;

use connections::CountConnections;
use failure::explain;
pub(crate) use resolver::NameServer;

use resolver::GuardedResolver;

/// How much of an answer's body is read, so that its connection can be used again.
const READ_BYTES: usize = 64 * 1024;
/// How much of it is kept.
const KEPT_BYTES: usize = 16 * 1024;
/// How long an unused connection is kept: less than any receiver's own limit, so that a POST
/// seldom meets a connection that was just closed.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Unused connections kept per host.
const POOL_PER_HOST: usize = 1024;

/// Makes POSTs. One client for all endpoints, so that connections are used again.
#[derive(Clone, Debug)]
pub(crate) struct Sender {
    client: Client,
    policy: Arc<AddressPolicy>,
}

/// What came back from a POST.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) outcome: OutcomeClass,
    pub(crate) status: Option<u16>,
    /// In plain words, for failures.
    pub(crate) detail: String,
    pub(crate) retry_after: Option<Duration>,
    pub(crate) headers: HeaderMap,
    /// The start of the body.
    pub(crate) body: Vec<u8>,
    /// Whether there was more of it, or its end never came.
    pub(crate) truncated: bool,
    pub(crate) started_at: Timestamp,
    pub(crate) ended_at: Timestamp,
    pub(crate) duration: Duration,
}

/// A POST to be made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Post<'a> {
    pub(crate) subscription: &'a Subscription,
    pub(crate) event: &'a Event,
    /// The event in the form that the subscription asks for.
    pub(crate) body: &'a Bytes,
    /// What the body is.
    pub(crate) content_type: &'a str,
    /// 1, 2, 3 …
    pub(crate) attempt: u32,
}

impl Answer {
    /// Nothing was sent, for this reason.
    pub(crate) fn unsent(outcome: OutcomeClass, detail: String) -> Self {
        let now = clock::now();
        Self {
            outcome,
            status: None,
            detail,
            retry_after: None,
            headers: HeaderMap::new(),
            body: Vec::new(),
            truncated: false,
            started_at: now,
            ended_at: now,
            duration: Duration::ZERO,
        }
    }
}

impl Sender {
    /// Names are asked of these servers, or of the system's, if there are none; `opened` counts the
    /// connections that are begun.
    pub(crate) fn new(
        policy: AddressPolicy,
        name_servers: &[NameServer],
        opened: IntCounter,
    ) -> anyhow::Result<Self> {
        let policy = Arc::new(policy);
        let resolver = GuardedResolver::new(Arc::clone(&policy), name_servers)?;
        let client = Client::builder()
            .user_agent(concat!("Doorbell/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .tcp_nodelay(true)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_PER_HOST)
            .connector_layer(CountConnections(opened))
            .dns_resolver(Arc::new(resolver))
            .build()?;
        Ok(Self { client, policy })
    }

    /// Makes one POST, under one deadline over name, connection, request and answer.
    pub(crate) async fn post(&self, post: Post<'_>) -> Answer {
        let Post { subscription, body, .. } = post;
        let request = |url: Url, now: Timestamp| {
            self.client.post(url).headers(request_headers(post, now)).body(body.clone())
        };
        self.send(&subscription.url, subscription.timeout, request).await
    }

    /// Asks an endpoint whether it takes POSTs from this origin.
    pub(crate) async fn options(&self, url: &str, origin: &str) -> Answer {
        let request = |url: Url, _: Timestamp| {
            self.client.request(Method::OPTIONS, url).header(REQUEST_ORIGIN, origin)
        };
        self.send(url, PATIENCE.into(), request).await
    }

    async fn send(
        &self,
        url: &str,
        timeout: DurationText,
        request: impl FnOnce(Url, Timestamp) -> RequestBuilder,
    ) -> Answer {
        let start = Instant::now();
        let mut answer = Answer::unsent(OutcomeClass::Blocked, String::new());
        // Literal addresses never reach the resolver, so the URL is judged at every attempt.
        match self.policy.check_url(url) {
            Ok(url) => {
                exchange(request(url, answer.started_at), (start, timeout), &mut answer).await
            }
            Err(refused) => answer.detail = format!("the URL {refused}"),
        }
        answer.ended_at = clock::now();
        answer.duration = start.elapsed();
        answer
    }
}

async fn exchange(
    request: RequestBuilder,
    (start, timeout): (Instant, DurationText),
    answer: &mut Answer,
) {
    let deadline = start + timeout.0;
    let mut response = match tokio::time::timeout_at(deadline, request.send()).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => {
            (answer.outcome, answer.detail) = explain(&error);
            return;
        }
        Err(_) => {
            answer.outcome = OutcomeClass::Timeout;
            answer.detail = format!("no answer within {timeout}");
            return;
        }
    };
    let status = response.status().as_u16();
    let retry_after =
        response.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
    (answer.outcome, answer.retry_after) = classify(status, retry_after, clock::now());
    answer.status = Some(status);
    if answer.outcome != OutcomeClass::Delivered {
        answer.detail = format!("the endpoint answered {status}");
    }
    answer.headers = std::mem::take(response.headers_mut());
    (answer.body, answer.truncated) = read_body(response, deadline).await;
}

/// Reads as much as bounds allow. What happens to a body after its status line came changes
/// nothing about the outcome.
async fn read_body(mut response: Response, deadline: Instant) -> (Vec<u8>, bool) {
    let (mut kept, mut read) = (Vec::new(), 0);
    loop {
        match tokio::time::timeout_at(deadline, response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                read += chunk.len();
                let room = KEPT_BYTES.saturating_sub(kept.len()).min(chunk.len());
                kept.extend_from_slice(chunk.get(..room).unwrap_or_default());
                if read > READ_BYTES {
                    return (kept, true);
                }
            }
            Ok(Ok(None)) => return (kept, read > KEPT_BYTES),
            Ok(Err(_)) | Err(_) => return (kept, true),
        }
    }
}

fn request_headers(post: Post<'_>, now: Timestamp) -> HeaderMap {
    let Post { subscription, event, body, content_type, attempt } = post;
    let mut headers = HeaderMap::new();
    for (name, value) in &subscription.headers {
        insert(&mut headers, name, value);
    }
    // After the subscription's own, so that none of those can take their place.
    let timestamp = now.as_seconds();
    insert(&mut headers, "content-type", content_type);
    headers.insert("webhook-timestamp", HeaderValue::from(timestamp));
    headers.insert("doorbell-attempt", HeaderValue::from(attempt));
    insert(&mut headers, "webhook-id", event.id.as_str());
    insert(&mut headers, "doorbell-subscription", &subscription.id.to_string());
    insert(&mut headers, "webhook-signature", &subscription.signatures(&event.id, now, body));
    if let Some(older) = &subscription.signature
        && let Some(newest) = subscription.live_secrets(now).next()
    {
        let value = match older.format {
            SignatureFormat::Sha256Hex => newest.secret.sign_sha256_hex(body),
        };
        insert(&mut headers, &older.header, &value);
    }
    for (name, value) in
        [("traceparent", &event.trace.traceparent), ("tracestate", &event.trace.tracestate)]
    {
        if let Some(value) = value {
            insert(&mut headers, name, value);
        }
    }
    headers
}

/// Adds a header. Names and values were checked when they came in; one that is wrong all the
/// same is left out rather than sent mangled.
fn insert(headers: &mut HeaderMap, name: &str, value: &str) {
    if let (Ok(name), Ok(value)) =
        (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
    {
        headers.insert(name, value);
    }
}
