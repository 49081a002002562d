//! Counts the connections that are begun, which the client itself does not tell.

use std::task::{Context, Poll};

use prometheus::IntCounter;
use tower::{Layer, Service};

/// Counts what goes through to the client's connector.
#[derive(Clone, Debug)]
pub(super) struct CountConnections(pub(super) IntCounter);

/// A connector whose calls are counted.
#[derive(Clone, Debug)]
pub(super) struct Counted<S> {
    inner: S,
    begun: IntCounter,
}

impl<S> Layer<S> for CountConnections {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Counted { inner, begun: self.0.clone() }
    }
}

impl<S: Service<R>, R> Service<R> for Counted<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: R) -> Self::Future {
        self.begun.inc();
        self.inner.call(request)
    }
}
