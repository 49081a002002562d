//! Makes one POST and says what came back. An endpoint's failure is a value here, never an error.

mod connections;
mod failure;
mod keep_alive;
mod resolver;
mod sessions;
mod tls;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use doorbell_common::address::{AddressPolicy, EndpointUrl};
use doorbell_common::duration::DurationText;
use doorbell_common::event::Event;
use doorbell_common::outcome::{OutcomeClass, classify, time_of_answer};
use doorbell_common::subscription::{SignatureFormat, Subscription};
use doorbell_common::text::shortened;
use doorbell_common::time::Timestamp;
use doorbell_common::verification::{PATIENCE, REQUEST_ORIGIN};
use doorbell_platform::clock;
use doorbell_platform::seldom::Seldom;
use prometheus::IntCounter;
use reqwest::header::{self, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Method, Request, Response};
use rustls::ClientConfig;
use tokio::time::Instant;
use url::Url;

use connections::CountConnections;
use failure::explain;
use keep_alive::KeepAlive;
use resolver::GuardedResolver;

pub(crate) use failure::Shortage;
pub(crate) use resolver::NameServer;
pub(crate) use tls::config as tls_config;

/// How much of an answer's body is read, so that its connection can be used again.
const READ_BYTES: usize = 64 * 1024;
/// How much of it is kept.
const KEPT_BYTES: usize = 16 * 1024;
/// Bytes of what is said of an answer, at most: it travels along with a delivery.
const DETAIL_BYTES: usize = 500;
/// How long it may take to connect: shared among the addresses of a name, so that the second one of two is called within
/// the usual timeout of 15 s.
const CONNECT: Duration = Duration::from_secs(20);
/// How long an unused connection is kept: less than any receiver's own limit, so that a POST
/// seldom meets a connection that was just closed.
const POOL_IDLE: Duration = Duration::from_secs(4);
/// Unused connections kept per host.
const POOL_PER_HOST: usize = 1024;

/// Whose timer is so late has stood still (a paused machine, a process without a processor), and how long he then takes to
/// look at what came meanwhile.
const STANDSTILL: Duration = Duration::from_millis(100);
const CATCH_UP: Duration = Duration::from_millis(500);

/// How often at most it is said that we are short of something.
const TOLD_EACH: Duration = Duration::from_secs(10);

/// Room for the headers that most POSTs have, and the client's own.
const USUAL_HEADERS: usize = 12;

/// The connection is closed once the answer has come.
const CLOSE: HeaderValue = HeaderValue::from_static("close");

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const WEBHOOK_SIGNATURE: HeaderName = HeaderName::from_static("webhook-signature");
const DOORBELL_ATTEMPT: HeaderName = HeaderName::from_static("doorbell-attempt");
const DOORBELL_SUBSCRIPTION: HeaderName = HeaderName::from_static("doorbell-subscription");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// Makes POSTs. One client for all endpoints, so that connections are used again.
#[derive(Debug)]
pub(crate) struct Sender {
    client: Client,
    policy: Arc<AddressPolicy>,
    keep_alive: KeepAlive,
    /// When it is told that we are short of something.
    told: Seldom,
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
            detail: shortened(detail, DETAIL_BYTES),
            retry_after: None,
            headers: HeaderMap::new(),
            body: Vec::new(),
            truncated: false,
            started_at: now,
            ended_at: now,
            duration: Duration::ZERO,
        }
    }

    /// Reads as much as bounds allow. What happens to a body after its status line came changes
    /// nothing about the outcome.
    async fn read_body(&mut self, mut response: Response) {
        let mut read = 0;
        loop {
            match response.chunk().await {
                Ok(Some(chunk)) => {
                    read += chunk.len();
                    let room = KEPT_BYTES.saturating_sub(self.body.len()).min(chunk.len());
                    self.body.extend_from_slice(chunk.get(..room).unwrap_or_default());
                    self.truncated = read > KEPT_BYTES;
                    if read > READ_BYTES {
                        return;
                    }
                }
                Ok(None) => return,
                Err(_) => {
                    self.truncated = true;
                    return;
                }
            }
        }
    }

    /// Whether there was one, and all of it is here: its connection is surely good for another.
    fn is_whole(&self) -> bool {
        self.status.is_some() && !self.truncated
    }

    /// The time is up.
    fn break_off(&mut self, timeout: DurationText) {
        if self.status.is_some() {
            self.truncated = true;
        } else {
            self.outcome = OutcomeClass::Timeout;
            self.detail = format!("no answer within {timeout}");
        }
    }
}

impl Sender {
    /// Names are asked of these servers, or of the system's, if there are none; at most so many unused connections are
    /// kept; `opened` counts those that are begun.
    pub(crate) fn new(
        policy: AddressPolicy,
        name_servers: &[NameServer],
        tls: ClientConfig,
        (most_idle, opened): (usize, IntCounter),
    ) -> anyhow::Result<Self> {
        let policy = Arc::new(policy);
        let resolver = GuardedResolver::new(Arc::clone(&policy), name_servers)?;
        let client = Client::builder()
            .user_agent(concat!("Doorbell/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            // None at all: it would make a copy of each request for one that is never made.
            .retry(reqwest::retry::never().max_retries_per_request(0))
            .referer(false)
            .http1_only()
            .tls_backend_preconfigured(tls)
            .tcp_nodelay(true)
            .connect_timeout(CONNECT)
            .pool_idle_timeout(POOL_IDLE)
            .pool_max_idle_per_host(POOL_PER_HOST)
            .connector_layer(CountConnections(opened))
            .dns_resolver(Arc::new(resolver))
            .build()?;
        let keep_alive = KeepAlive::new(most_idle, POOL_IDLE);
        Ok(Self { client, policy, keep_alive, told: Seldom::each(TOLD_EACH) })
    }

    /// Makes one POST, under one deadline over name, connection, request and answer.
    ///
    /// # Errors
    /// There is nothing left to make it with.
    pub(crate) async fn post(&self, post: Post<'_>) -> Result<Answer, Shortage> {
        let Post { subscription, body, .. } = post;
        let request = |url: Url, now: Timestamp| {
            let mut request = Request::new(Method::POST, url);
            *request.headers_mut() = request_headers(post, now);
            *request.body_mut() = Some(body.clone().into());
            request
        };
        self.send(&subscription.url, subscription.timeout, request).await
    }

    /// Asks an endpoint whether it takes POSTs from this origin.
    ///
    /// # Errors
    /// As for [`Sender::post`].
    pub(crate) async fn options(
        &self,
        url: &EndpointUrl,
        origin: &str,
    ) -> Result<Answer, Shortage> {
        let request = |url: Url, _: Timestamp| {
            let mut request = Request::new(Method::OPTIONS, url);
            insert(request.headers_mut(), HeaderName::from_static(REQUEST_ORIGIN), origin);
            request
        };
        self.send(url, PATIENCE.into(), request).await
    }

    async fn send(
        &self,
        url: &EndpointUrl,
        timeout: DurationText,
        request: impl FnOnce(Url, Timestamp) -> Request,
    ) -> Result<Answer, Shortage> {
        let start = Instant::now();
        let mut answer = Answer::unsent(OutcomeClass::Blocked, String::new());
        // Literal addresses never reach the resolver, so the URL is judged at every attempt.
        match self.policy.check_url(url) {
            Ok(url) => {
                let mut request = request(url.clone(), answer.started_at);
                let connection = self.keep_alive.begin(url);
                if !connection.keeps() {
                    request.headers_mut().insert(header::CONNECTION, CLOSE);
                }
                let exchange = self.exchange(request, &mut answer);
                match in_time(start + timeout.0, exchange).await {
                    Some(exchanged) => exchanged.inspect_err(|shortage| self.tell(shortage))?,
                    None => answer.break_off(timeout),
                }
                if answer.is_whole() {
                    connection.stay();
                }
            }
            Err(refused) => answer.detail = format!("the URL {refused}"),
        }
        answer.ended_at = clock::now();
        answer.duration = start.elapsed();
        Ok(answer)
    }

    /// Says so in the log, but not for each POST that is not made.
    fn tell(&self, shortage: &Shortage) {
        if self.told.is_time() {
            tracing::warn!(%shortage, "deliveries are held: is the limit of open files (ulimit -n) too low?");
        }
    }

    async fn exchange(&self, request: Request, answer: &mut Answer) -> Result<(), Shortage> {
        let mut response = match self.client.execute(request).await {
            Ok(response) => response,
            Err(error) => {
                let (outcome, detail) = explain(&error)?;
                (answer.outcome, answer.detail) = (outcome, shortened(detail, DETAIL_BYTES));
                return Ok(());
            }
        };
        let status = response.status().as_u16();
        let text = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = text(header::RETRY_AFTER);
        // Nobody else wants to know.
        let date = retry_after.and(text(header::DATE));
        let came_at = time_of_answer(date, clock::now());
        (answer.outcome, answer.retry_after) = classify(status, retry_after, came_at);
        answer.status = Some(status);
        if answer.outcome != OutcomeClass::Delivered {
            answer.detail = format!("the endpoint answered {status}");
        }
        answer.headers = std::mem::take(response.headers_mut());
        answer.read_body(response).await;
        Ok(())
    }
}

/// What an exchange gives by this time. Whoever looks at the clock late has stood still himself: what came in time is
/// here, but has not been looked at yet.
async fn in_time<T>(deadline: Instant, exchange: impl Future<Output = T>) -> Option<T> {
    let mut exchange = std::pin::pin!(exchange);
    let exchanged = match tokio::time::timeout_at(deadline, exchange.as_mut()).await {
        Err(_) if deadline.elapsed() > STANDSTILL => tokio::time::timeout(CATCH_UP, exchange).await,
        exchanged => exchanged,
    };
    exchanged.ok()
}

fn request_headers(post: Post<'_>, now: Timestamp) -> HeaderMap {
    let Post { subscription, event, body, content_type, attempt } = post;
    let mut headers = HeaderMap::with_capacity(USUAL_HEADERS);
    for (name, value) in &subscription.headers {
        if let Ok(name) = HeaderName::from_bytes(name.as_bytes()) {
            insert(&mut headers, name, value.as_str());
        }
    }
    // After the subscription's own, so that none of those can take their place.
    insert(&mut headers, header::CONTENT_TYPE, content_type);
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(now.as_seconds()));
    headers.insert(DOORBELL_ATTEMPT, HeaderValue::from(attempt));
    insert(&mut headers, WEBHOOK_ID, event.id.as_str());
    insert(&mut headers, DOORBELL_SUBSCRIPTION, subscription.id.to_string());
    insert(&mut headers, WEBHOOK_SIGNATURE, subscription.signatures(&event.id, now, body));
    if let Some(older) = &subscription.signature
        && let Some(newest) = subscription.live_secrets(now).next()
        && let Ok(name) = HeaderName::from_bytes(older.header.as_bytes())
    {
        let value = match older.format {
            SignatureFormat::Sha256Hex => newest.secret.sign_sha256_hex(body),
        };
        insert(&mut headers, name, value);
    }
    for (name, value) in
        [(TRACEPARENT, &event.trace.traceparent), (TRACESTATE, &event.trace.tracestate)]
    {
        if let Some(value) = value {
            insert(&mut headers, name, value.as_str());
        }
    }
    headers
}

/// Adds a header. Values were checked when they came in; one that is wrong all the same is left out
/// rather than sent mangled.
fn insert(headers: &mut HeaderMap, name: HeaderName, value: impl TryInto<HeaderValue>) {
    if let Ok(value) = value.try_into() {
        headers.insert(name, value);
    }
}
