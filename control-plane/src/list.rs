//! Lists: how many, from where, and how the answer looks.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use doorbell_platform::problem::{FieldError, Problem};
use serde::Deserialize;
use serde_json::{Value, json};

/// The query of a list.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListQuery {
    pub(crate) limit: Option<String>,
    pub(crate) cursor: Option<String>,
}

/// How much of a list, and after what.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Page<T> {
    pub(crate) limit: usize,
    pub(crate) after: Option<T>,
}

/// Reads a list's query.
pub(crate) fn page<T: std::str::FromStr>(
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Page<T>, Problem> {
    let Query(query) = query.map_err(wrong_query)?;
    read_page(&query).map_err(Problem::invalid)
}

/// Reads what a list's query says.
pub(crate) fn read_page<T: std::str::FromStr>(
    ListQuery { limit, cursor }: &ListQuery,
) -> Result<Page<T>, Vec<FieldError>> {
    let mut errors = Vec::new();
    let limit = match limit.as_deref().map(str::parse::<usize>) {
        None => 50,
        Some(Ok(limit)) if (1..=1000).contains(&limit) => limit,
        Some(_) => {
            errors.push(FieldError::new("/limit", "must be a whole number from 1 to 1000"));
            0
        }
    };
    let after = cursor.as_deref().map(decode);
    if matches!(after, Some(None)) {
        errors.push(FieldError::new("/cursor", "is not a cursor that a list has given"));
    }
    if errors.is_empty() { Ok(Page { limit, after: after.flatten() }) } else { Err(errors) }
}

/// 422 for a query that has other names than it may have.
#[expect(clippy::needless_pass_by_value, reason = "it stands in map_err")]
pub(crate) fn wrong_query(error: QueryRejection) -> Problem {
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, error.body_text())
}

fn decode<T: std::str::FromStr>(cursor: &str) -> Option<T> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    std::str::from_utf8(&bytes).ok()?.parse().ok()
}

/// The answer of a list.
pub(crate) fn answer(data: &[Value], next: Option<&str>) -> Json<Value> {
    Json(json!({ "data": data, "next": next.map(|after| URL_SAFE_NO_PAD.encode(after)) }))
}
