//! The page that shows the document: Swagger UI, from this binary alone.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::get;
use utoipa_swagger_ui::Config;

use super::{DOCUMENT, not_found};

pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let config = Config::new([DOCUMENT]).use_base_layout().persist_authorization(false);
    Router::new()
        .route("/docs", get(|| async { Redirect::permanent("/docs/") }))
        .route("/docs/", get(|State(config)| file(State(config), Path("index.html".to_owned()))))
        .route("/docs/{*file}", get(file))
        .with_state(Arc::new(config))
}

async fn file(State(config): State<Arc<Config<'static>>>, Path(name): Path<String>) -> Response {
    match utoipa_swagger_ui::serve(&name, config) {
        Ok(Some(file)) => {
            ([(header::CONTENT_TYPE, file.content_type)], file.bytes.into_owned()).into_response()
        }
        Ok(None) => not_found(),
        Err(error) => {
            tracing::error!(%error, "the page of the API is not shown");
            not_found()
        }
    }
}
