//! Carries a call that changes something through to its end, even if whoever made it hangs up: what it
//! has begun is not left half done, and what it has done is noted.

use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use doorbell_platform::problem::Problem;
use doorbell_platform::shutdown::Shutdown;
use tokio::sync::oneshot;

/// Has a call that changes something made by a task of its own, which a stop waits for.
pub(crate) async fn carry_through(
    State(shutdown): State<Shutdown>,
    request: Request,
    next: Next,
) -> Response {
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return next.run(request).await;
    }
    let (sender, answer) = oneshot::channel();
    shutdown.spawn(async move {
        let _hung_up = sender.send(next.run(request).await).is_err();
    });
    answer.await.unwrap_or_else(|_| {
        let detail = "the request was not served to its end: see the log";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).into_response()
    })
}
