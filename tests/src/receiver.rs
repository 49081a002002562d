//! Endpoints that keep a ledger of what came, and behave as they are told: well, slowly, or like
//! a hostile server.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
use axum::routing::any;
use axum::{Json, Router};
use doorbell_common::time::Timestamp;
use doorbell_platform::clock;
use serde_json::{Value, json};
use standardwebhooks::Webhook;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// Connections that may wait to be accepted: as many as two dispatchers open at once. Beyond, the kernel drops what the
/// client takes for a connection, and a POST that never came is timed out or reset after 15 s.
const BACKLOG: u32 = 4096;

/// A POST that came.
#[derive(Clone, Debug)]
pub struct Post {
    /// To which endpoint.
    pub endpoint: String,
    /// `webhook-id`.
    pub id: String,
    /// `doorbell-attempt`.
    pub attempt: u32,
    /// Every header.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// When.
    pub at: Instant,
    /// The same by the clock that services go by.
    pub clock: Timestamp,
    /// What was answered.
    pub status: u16,
    /// Whether the official library accepts the signature with any secret that the endpoint has.
    pub verified: bool,
}

/// How an endpoint behaves.
#[derive(Clone, Debug)]
pub enum Behaviour {
    /// Always this status.
    Status(u16),
    /// Fails so often for each event, then succeeds.
    FailFirst(u32, u16),
    /// The first answer for each event asks for a wait of so many seconds, the others succeed.
    RetryAfter(u64),
    /// Answers 200 after this time.
    Slow(Duration),
    /// Says nothing for so long, and then 503.
    Hang(Duration),
    /// Redirects to this URL.
    Redirect(String),
    /// 418 with a body of so many bytes.
    Teapot(usize),
}

#[derive(Debug, Default)]
struct Inner {
    posts: Vec<Arc<Post>>,
    /// How many of them came to each endpoint.
    counts: HashMap<String, usize>,
    behaviours: HashMap<String, Behaviour>,
    secrets: HashMap<String, Vec<String>>,
    /// The events that each endpoint has accepted.
    accepted: HashMap<String, HashSet<String>>,
    /// How often each endpoint was asked whether it wants POSTs.
    asked: HashMap<String, usize>,
    /// Those that do.
    willing: HashSet<String>,
    /// How often each event came to each endpoint.
    seen: HashMap<(String, String), u32>,
    /// When each attempt of an event first came to an endpoint: those that hang are among the POSTs only at their end.
    came: HashMap<(String, String, u32), (Instant, Timestamp)>,
}

/// A server with any number of endpoints. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Receiver {
    inner: Arc<Mutex<Inner>>,
    address: SocketAddr,
}

impl Receiver {
    /// Starts to listen.
    ///
    /// # Errors
    /// No port can be had.
    pub fn start() -> anyhow::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        socket.bind(SocketAddr::from(([127, 0, 0, 1], 0)))?;
        let listener = socket.listen(BACKLOG)?;
        let receiver = Self { inner: Arc::default(), address: listener.local_addr()? };
        let router = Router::new()
            .route("/{endpoint}", any(receive).options(is_willing))
            .with_state(receiver.clone());
        spawn(async move {
            let ended = axum::serve(listener, router).await;
            eprintln!("receiver ended: {ended:?}");
        });
        Ok(receiver)
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL of an endpoint.
    #[must_use]
    pub fn url(&self, endpoint: &str) -> String {
        format!("http://{}/{endpoint}", self.address)
    }

    /// Tells an endpoint how to behave; until then it answers 200.
    pub fn behave(&self, endpoint: &str, behaviour: Behaviour) {
        self.lock().behaviours.insert(endpoint.to_owned(), behaviour);
    }

    /// Makes an endpoint say that it wants POSTs, when it is asked.
    pub fn is_willing(&self, endpoint: &str) {
        self.lock().willing.insert(endpoint.to_owned());
    }

    /// How often an endpoint was asked whether it wants POSTs.
    #[must_use]
    pub fn asked(&self, endpoint: &str) -> usize {
        self.lock().asked.get(endpoint).copied().unwrap_or(0)
    }

    /// An endpoint is asked; answers whether it is willing.
    fn ask(&self, endpoint: &str) -> bool {
        let mut inner = self.lock();
        *inner.asked.entry(endpoint.to_owned()).or_default() += 1;
        inner.willing.contains(endpoint)
    }

    /// Gives an endpoint one more secret.
    pub fn add_secret(&self, endpoint: &str, secret: &str) {
        self.lock().secrets.entry(endpoint.to_owned()).or_default().push(secret.to_owned());
    }

    /// Takes an endpoint's older secrets away.
    pub fn keep_newest_secret(&self, endpoint: &str) {
        if let Some(secrets) = self.lock().secrets.get_mut(endpoint) {
            let newest = secrets.pop();
            *secrets = newest.into_iter().collect();
        }
    }

    /// Everything that came.
    #[must_use]
    pub fn posts(&self) -> Vec<Arc<Post>> {
        self.lock().posts.clone()
    }

    /// How many POSTs came.
    #[must_use]
    pub fn total(&self) -> usize {
        self.lock().posts.len()
    }

    /// When this attempt of an event first came to an endpoint.
    #[must_use]
    pub fn first_came(
        &self,
        endpoint: &str,
        id: &str,
        attempt: u32,
    ) -> Option<(Instant, Timestamp)> {
        self.lock().came.get(&(endpoint.to_owned(), id.to_owned(), attempt)).copied()
    }

    /// What came to one endpoint.
    #[must_use]
    pub fn posts_to(&self, endpoint: &str) -> Vec<Arc<Post>> {
        self.posts().into_iter().filter(|post| post.endpoint == endpoint).collect()
    }

    /// How many POSTs came to one endpoint.
    #[must_use]
    pub fn count(&self, endpoint: &str) -> usize {
        self.lock().counts.get(endpoint).copied().unwrap_or(0)
    }

    /// How many different events an endpoint has accepted.
    #[must_use]
    pub fn accepted(&self, endpoint: &str) -> usize {
        self.lock().accepted.get(endpoint).map_or(0, HashSet::len)
    }

    /// Those of these events that an endpoint has not accepted.
    #[must_use]
    pub fn missing<'a>(&self, endpoint: &str, events: Vec<&'a String>) -> Vec<&'a String> {
        let inner = self.lock();
        match inner.accepted.get(endpoint) {
            Some(accepted) => events.into_iter().filter(|id| !accepted.contains(*id)).collect(),
            None => events,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a POST; answers how it is to be answered, and how often the event came before.
    fn note(
        &self,
        endpoint: &str,
        headers: &HeaderMap,
        body: &Bytes,
        at: (Instant, Timestamp),
    ) -> (Option<Behaviour>, u32, bool) {
        let id = text(headers, "webhook-id");
        let secrets = self.lock().secrets.get(endpoint).cloned().unwrap_or_default();
        let verified = secrets.iter().any(|secret| {
            Webhook::new(secret).is_ok_and(|hook| hook.verify(body, headers).is_ok())
        });
        let mut inner = self.lock();
        let came = (endpoint.to_owned(), id.clone(), attempt(headers));
        inner.came.entry(came).or_insert(at);
        let seen = inner.seen.entry((endpoint.to_owned(), id)).or_default();
        *seen += 1;
        let before = *seen - 1;
        (inner.behaviours.get(endpoint).cloned(), before, verified)
    }
}

/// Runs a task that lives as long as the test process.
pub fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    #[expect(clippy::disallowed_methods, reason = "a test's servers end with its process")]
    tokio::spawn(task);
}

fn text(headers: &HeaderMap, name: &str) -> String {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
}

/// The handshake of `CloudEvents`.
async fn is_willing(
    State(receiver): State<Receiver>,
    Path(endpoint): Path<String>,
    headers: HeaderMap,
) -> Response {
    let origin = text(&headers, "webhook-request-origin");
    if receiver.ask(&endpoint) {
        return [("webhook-allowed-origin", origin)].into_response();
    }
    StatusCode::OK.into_response()
}

/// Goes on where the sender hangs up: what came has come.
async fn receive(
    State(receiver): State<Receiver>,
    Path(endpoint): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    if let Ok(question) = serde_json::from_slice::<Value>(&body)
        && question["type"] == "url_verification"
    {
        let answer = json!({ "challenge": question["challenge"] });
        let is_willing = receiver.ask(&endpoint);
        let behaviour = receiver.lock().behaviours.get(&endpoint).cloned();
        if let Some(Behaviour::Slow(time)) = behaviour {
            tokio::time::sleep(time).await;
        }
        return if is_willing { Json(answer).into_response() } else { "?".into_response() };
    }
    let (answer, answered) = oneshot::channel();
    spawn(async move {
        let response = serve(&receiver, endpoint, headers, body).await;
        let _hung_up = answer.send(response).is_err();
    });
    answered.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

async fn serve(receiver: &Receiver, endpoint: String, headers: HeaderMap, body: Bytes) -> Response {
    let (at, clock) = (Instant::now(), clock::now());
    let (behaviour, before, verified) = receiver.note(&endpoint, &headers, &body, (at, clock));
    let code =
        |status: u16| StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let response = match behaviour {
        None => StatusCode::OK.into_response(),
        Some(Behaviour::Status(status)) => code(status).into_response(),
        Some(Behaviour::FailFirst(times, status)) if before < times => code(status).into_response(),
        Some(Behaviour::FailFirst(..)) => StatusCode::OK.into_response(),
        Some(Behaviour::RetryAfter(seconds)) if before == 0 => {
            (StatusCode::SERVICE_UNAVAILABLE, [("retry-after", seconds.to_string())])
                .into_response()
        }
        Some(Behaviour::RetryAfter(_)) => StatusCode::OK.into_response(),
        Some(Behaviour::Slow(time)) => {
            tokio::time::sleep(time).await;
            StatusCode::OK.into_response()
        }
        Some(Behaviour::Hang(time)) => {
            tokio::time::sleep(time).await;
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        Some(Behaviour::Redirect(url)) => (StatusCode::FOUND, [("location", url)]).into_response(),
        Some(Behaviour::Teapot(size)) => {
            (StatusCode::IM_A_TEAPOT, [("x-pot", "brown")], "t".repeat(size)).into_response()
        }
    };
    let attempt = attempt(&headers);
    let id = text(&headers, "webhook-id");
    let status = response.status().as_u16();
    let mut inner = receiver.lock();
    if status < 300 {
        inner.accepted.entry(endpoint.clone()).or_default().insert(id.clone());
    }
    *inner.counts.entry(endpoint.clone()).or_default() += 1;
    let post = Post { endpoint, id, attempt, headers, body, at, clock, status, verified };
    inner.posts.push(Arc::new(post));
    response
}

fn attempt(headers: &HeaderMap) -> u32 {
    text(headers, "doorbell-attempt").parse().unwrap_or(0)
}

/// A server that does not play by the rules of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hostile {
    /// Takes the request and says nothing.
    Hang,
    /// Takes the request and closes.
    Close,
    /// Takes the request and resets the connection.
    Reset,
    /// Answers with something else than HTTP.
    Garbage,
    /// 200, and a body that never ends.
    EndlessBody,
    /// Headers without end.
    EndlessHeaders,
    /// 200, and as many headers as may just be read, of bytes that are no text.
    LargeHeaders,
}

/// Starts such a server; answers its URL.
///
/// # Errors
/// No port can be had.
pub async fn hostile(how: Hostile) -> anyhow::Result<String> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let url = format!("http://{}/hook", listener.local_addr()?);
    spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            spawn(misbehave(stream, how));
        }
    });
    Ok(url)
}

async fn misbehave(mut stream: tokio::net::TcpStream, how: Hostile) {
    let mut request = [0; 4096];
    if stream.read(&mut request).await.is_err() {
        return;
    }
    let filler = [b'x'; 8192];
    match how {
        Hostile::Close => {}
        // Closing with unsent data to be thrown away is what sends a reset.
        Hostile::Reset => drop(stream.set_zero_linger()),
        // An hour is for ever to a sender that waits a second.
        Hostile::Hang => tokio::time::sleep(Duration::from_secs(3600)).await,
        Hostile::Garbage => drop(stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n\r\n").await),
        Hostile::EndlessBody => {
            let head = b"HTTP/1.1 200 OK\r\ncontent-length: 100000000000\r\n\r\n";
            let mut going = stream.write_all(head).await.is_ok();
            while going {
                going = stream.write_all(&filler).await.is_ok();
            }
        }
        Hostile::EndlessHeaders => {
            let mut going = stream.write_all(b"HTTP/1.1 200 OK\r\n").await.is_ok();
            while going {
                going = stream.write_all(b"x-more: and more and more and more\r\n").await.is_ok();
            }
        }
        Hostile::LargeHeaders => {
            let mut answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n".to_vec();
            for n in 0..95 {
                answer.extend(format!("x-{n}: ").bytes());
                answer.extend([0xff; 4000]);
                answer.extend(b"\r\n");
            }
            answer.extend(b"\r\n");
            drop(stream.write_all(&answer).await);
        }
    }
}
