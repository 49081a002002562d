//! A receiver as a customer would write it: it verifies each signature with the official library
//! before it believes a word.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use standardwebhooks::Webhook;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

/// A POST that came, after a look at its signature.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// Which of the receiver's endpoints it came to.
    pub endpoint: String,
    /// `webhook-id`.
    pub id: String,
    /// `doorbell-attempt`.
    pub attempt: String,
    /// Whether the official library accepts the signature.
    pub verified: bool,
    /// What was answered.
    pub status: u16,
    /// The body.
    pub body: String,
}

/// A receiver with several endpoints.
#[derive(Clone, Debug)]
pub struct Receiver {
    inner: Arc<Mutex<Inner>>,
    arrivals: mpsc::UnboundedSender<Arrival>,
    address: SocketAddr,
}

#[derive(Debug, Default)]
struct Inner {
    secrets: HashMap<String, String>,
    failures_left: HashMap<String, u32>,
}

impl Receiver {
    /// Starts to listen on a free port; arrivals come out of the channel.
    ///
    /// # Errors
    /// No port can be had.
    pub async fn start() -> anyhow::Result<(Self, mpsc::UnboundedReceiver<Arrival>)> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let (arrivals, arrived) = mpsc::unbounded_channel();
        let receiver = Self { inner: Arc::default(), arrivals, address: listener.local_addr()? };
        let router = Router::new().route("/{endpoint}", post(receive)).with_state(receiver.clone());
        #[expect(
            clippy::disallowed_methods,
            reason = "the demo's receiver lives as long as its process"
        )]
        tokio::spawn(std::future::IntoFuture::into_future(axum::serve(listener, router)));
        Ok((receiver, arrived))
    }

    /// The URL of one of its endpoints.
    #[must_use]
    pub fn url(&self, endpoint: &str) -> String {
        format!("http://{}/{endpoint}", self.address)
    }

    /// Tells an endpoint its secret, and how often to fail first.
    pub fn expect(&self, endpoint: &str, secret: &str, failures: u32) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.secrets.insert(endpoint.to_owned(), secret.to_owned());
        inner.failures_left.insert(endpoint.to_owned(), failures);
    }
}

async fn receive(
    State(receiver): State<Receiver>,
    Path(endpoint): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> StatusCode {
    let text = |name: &str| {
        headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
    };
    let (verified, status) = {
        let mut inner = receiver.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let webhook = inner.secrets.get(&endpoint).and_then(|secret| Webhook::new(secret).ok());
        let verified = webhook.is_some_and(|webhook| webhook.verify(&body, &headers).is_ok());
        let failures = inner.failures_left.entry(endpoint.clone()).or_default();
        let status = if !verified {
            StatusCode::UNAUTHORIZED
        } else if *failures > 0 {
            *failures -= 1;
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::NO_CONTENT
        };
        (verified, status)
    };
    let arrival = Arrival {
        endpoint,
        id: text("webhook-id"),
        attempt: text("doorbell-attempt"),
        verified,
        status: status.as_u16(),
        body: String::from_utf8_lossy(&body).into_owned(),
    };
    // Nobody looks any more once the demo is over.
    let _gone = receiver.arrivals.send(arrival).is_err();
    status
}
