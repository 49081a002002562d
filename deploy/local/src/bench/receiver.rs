//! A receiver that costs next to nothing: raw hyper, no routing, no check of anything. The path says
//! how it behaves and in whose tally a POST is counted: `/ok/TALLY`, `/busy/TALLY` (answers after
//! 50 ms), `/slow/TALLY` (after a second), `/fail/TALLY` (404), `/hang/TALLY` (never answers),
//! `/out/TALLY` (503 while it is out, and then not counted), `/once/TALLY` (counts each event once, and the others as
//! duplicates), `/flaky/TALLY` (404 when an event comes for the first time, and then not counted), `/close/TALLY`
//! (closes the connection after each answer).

use std::collections::{HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ALL_VERSIONS;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

use crate::certificates::Authority;

/// What begins the data of an event whose way is timed: when it was published, in microseconds
/// since the receiver's start.
const AT: &[u8] = b"{\"at\":";
/// How long a slow endpoint takes.
const SLOW: Duration = Duration::from_secs(1);
/// How long a busy one takes.
pub(super) const BUSY: Duration = Duration::from_millis(50);
/// Longer than any timeout.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// What arrived under one name.
#[derive(Debug, Default)]
pub(super) struct Tally {
    count: AtomicU64,
    /// The events that came to an endpoint that tells them apart, and how many came again.
    seen: Mutex<HashSet<HeaderValue>>,
    duplicates: AtomicU64,
    /// How long each took from its publishing, in microseconds.
    times: Mutex<Vec<u64>>,
}

impl Tally {
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Acquire)
    }

    /// How many events came again.
    pub(super) fn duplicates(&self) -> u64 {
        self.duplicates.load(Ordering::Acquire)
    }

    /// Takes the times out.
    pub(super) fn take_times(&self) -> Vec<u64> {
        std::mem::take(&mut *self.times.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The receiver. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Receiver {
    base: String,
    /// The same over TLS.
    tls_base: String,
    start: Instant,
    tallies: Arc<RwLock<HashMap<String, Arc<Tally>>>>,
    /// How often an endpoint that was out was called.
    in_vain: Arc<AtomicU64>,
    is_out: Arc<AtomicBool>,
}

impl Receiver {
    /// Listens on free ports, as long as the process lives; over TLS with a certificate of this authority.
    pub(super) async fn start(authority: &Authority) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let tls_listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let acceptor = authority.certify(&["127.0.0.1"])?.acceptor(ALL_VERSIONS)?;
        let receiver = Self {
            base: format!("http://{}", listener.local_addr()?),
            tls_base: format!("https://{}", tls_listener.local_addr()?),
            start: Instant::now(),
            tallies: Arc::default(),
            in_vain: Arc::default(),
            is_out: Arc::default(),
        };
        let (accepting, over_tls) = (receiver.clone(), receiver.clone());
        for_ever(accepting.accept(listener, |stream| std::future::ready(Some(stream))));
        for_ever(over_tls.accept(tls_listener, move |stream| {
            let accepting = acceptor.accept(stream);
            async { accepting.await.ok() }
        }));
        Ok(receiver)
    }

    /// Takes the endpoints out that can be, or brings them back; answers how often they were called
    /// while they were out.
    pub(super) fn take_out(&self, is_out: bool) -> u64 {
        self.is_out.store(is_out, Ordering::Release);
        self.in_vain.load(Ordering::Acquire)
    }

    /// The URL of an endpoint that behaves so and counts there.
    pub(super) fn url(&self, behaviour: &str, tally: &str) -> String {
        format!("{}/{behaviour}/{tally}", self.base)
    }

    /// The same over TLS.
    pub(super) fn tls_url(&self, behaviour: &str, tally: &str) -> String {
        format!("{}/{behaviour}/{tally}", self.tls_base)
    }

    /// What arrived under a name.
    pub(super) fn tally(&self, name: &str) -> Arc<Tally> {
        let known = self.tallies.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned();
        known.unwrap_or_else(|| {
            let mut tallies = self.tallies.write().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(tallies.entry(name.to_owned()).or_default())
        })
    }

    /// What arrived under all names.
    pub(super) fn count_of_all(&self) -> u64 {
        let tallies = self.tallies.read().unwrap_or_else(PoisonError::into_inner);
        tallies.values().map(|tally| tally.count()).sum()
    }

    /// Data of an event that is published now, so long.
    pub(super) fn data(&self, bytes: usize) -> Vec<u8> {
        let micros = self.start.elapsed().as_micros();
        let head = format!("{{\"at\":{micros},\"pad\":\"");
        let pad = "x".repeat(bytes.saturating_sub(head.len() + 2));
        format!("{head}{pad}\"}}").into_bytes()
    }

    /// Serves what comes, once it is ready to be read.
    async fn accept<S, F>(self, listener: TcpListener, ready: impl Fn(TcpStream) -> F)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
        F: Future<Output = Option<S>> + Send + 'static,
    {
        while let Ok((stream, _)) = listener.accept().await {
            let receiver = self.clone();
            let service = service_fn(move |request| receiver.clone().receive(request));
            let ready = ready(stream);
            for_ever(async move {
                let Some(stream) = ready.await else { return };
                let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                // How a client ends its connection is no matter.
                let _broken = serving.await.is_err();
            });
        }
    }

    async fn receive(
        self,
        request: Request<hyper::body::Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let mut path = head.uri.path().split('/').skip(1);
        let behaviour = path.next().unwrap_or_default();
        if behaviour == "out" && self.is_out.load(Ordering::Acquire) {
            self.in_vain.fetch_add(1, Ordering::AcqRel);
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return Ok(response);
        }
        let name = path.next().unwrap_or_default();
        if behaviour == "flaky" && self.is_new(name, head.headers.get("webhook-id")) {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::NOT_FOUND;
            return Ok(response);
        }
        if behaviour == "once" && !self.is_new(name, head.headers.get("webhook-id")) {
            self.tally(name).duplicates.fetch_add(1, Ordering::AcqRel);
        } else {
            self.tell(name, &body);
        }
        let takes = match behaviour {
            "hang" => FOR_EVER,
            "slow" => SLOW,
            "busy" => BUSY,
            _ => Duration::ZERO,
        };
        if !takes.is_zero() {
            tokio::time::sleep(takes).await;
        }
        let status =
            if behaviour == "fail" { StatusCode::NOT_FOUND } else { StatusCode::NO_CONTENT };
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        if behaviour == "close" {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Ok(response)
    }

    fn is_new(&self, name: &str, id: Option<&HeaderValue>) -> bool {
        let (tally, id) = (self.tally(name), id.cloned());
        let mut seen = tally.seen.lock().unwrap_or_else(PoisonError::into_inner);
        id.is_none_or(|id| seen.insert(id))
    }

    fn tell(&self, name: &str, body: &Bytes) {
        let tally = self.tally(name);
        if let Some(at) = published_at(body) {
            let now = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
            tally.times.lock().unwrap_or_else(PoisonError::into_inner).push(now.saturating_sub(at));
        }
        tally.count.fetch_add(1, Ordering::AcqRel);
    }
}

/// In a task that ends with the process, or with the client of a connection.
#[expect(clippy::disallowed_methods, reason = "nothing waits for it, and nothing is lost with it")]
fn for_ever(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

/// When the event in this body was published, if it says so.
fn published_at(body: &[u8]) -> Option<u64> {
    // Behind the envelope's type and timestamp, or at once in a raw body.
    let head = body.get(..body.len().min(200))?;
    let place = head.windows(AT.len()).position(|window| window == AT)? + AT.len();
    let digits = head.get(place..)?.iter().take_while(|byte| byte.is_ascii_digit());
    digits.copied().try_fold(0_u64, |number, digit| {
        number.checked_mul(10)?.checked_add(u64::from(digit - b'0'))
    })
}
