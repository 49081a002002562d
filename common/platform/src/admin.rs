//! The admin server of every service: is it alive, is it ready, what do its metrics say.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::net::TcpListener;

use crate::health::Health;
use crate::shutdown::Shutdown;

#[derive(Clone)]
struct Admin {
    health: Health,
    registry: Registry,
    shutdown: Shutdown,
}

/// Serves `/livez`, `/readyz` and `/metrics` until nobody needs them any more.
pub(crate) async fn serve(
    listener: TcpListener,
    health: Health,
    registry: Registry,
    shutdown: Shutdown,
) {
    let admin = Admin { health, registry, shutdown: shutdown.clone() };
    let router = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(admin);
    let serving = std::future::IntoFuture::into_future(axum::serve(listener, router));
    if let Some(Err(error)) = shutdown.until_finished(serving).await {
        tracing::error!(%error, "admin server ended");
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    let stopping = admin.shutdown.is_stopping();
    let ready = admin.health.is_ready() && !stopping;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let body = serde_json::json!({
        "ready": ready,
        "stopping": stopping,
        "dependencies": admin.health.snapshot(),
    });
    (status, axum::Json(body)).into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&admin.registry.gather(), &mut text) {
        Ok(()) => {
            ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}
