//! How many requests a second a key may make, of each control-plane; the operator's may make any
//! number. (Headers: <https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/>, in the
//! widely understood form of its third draft.)

use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Extension, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use doorbell_common::api_key::ApiKeyId;
use doorbell_common::rate::{Meters, RateLimit};
use doorbell_platform::auth::Caller;
use doorbell_platform::clock;
use doorbell_platform::http::discard;
use doorbell_platform::problem::Problem;

/// What each key has used of its share. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Throttle {
    limit: RateLimit,
    meters: Arc<Mutex<Meters<ApiKeyId>>>,
}

/// What a key is told of its share.
struct Share {
    is_admitted: bool,
    remaining: u32,
    /// Seconds until the next request is admitted (if this one was not), or until the whole share is
    /// there again.
    reset: u64,
}

impl Throttle {
    /// So many requests a second, and twice as many at once.
    pub(crate) fn new(per_second: u32) -> Self {
        let limit = RateLimit { per_second, burst: per_second.saturating_mul(2) };
        Self { limit, meters: Arc::default() }
    }

    fn take(&self, key: &ApiKeyId) -> Share {
        let now = clock::steady().as_micros();
        let mut meters = self.meters.lock().unwrap_or_else(PoisonError::into_inner);
        let meter = meters.of(key, now);
        let is_admitted = meter.admits(self.limit, now);
        let micros =
            if is_admitted { meter.until_idle(now) } else { meter.until_next(self.limit, now) };
        let reset = micros.as_micros().div_ceil(1_000_000);
        Share {
            is_admitted,
            remaining: meter.remaining(self.limit, now),
            reset: u64::try_from(reset).unwrap_or(u64::MAX),
        }
    }
}

/// Lets a request through if its key's share is not used up.
pub(crate) async fn limit(
    State(throttle): State<Throttle>,
    Extension(caller): Extension<Arc<Caller>>,
    request: Request,
    next: Next,
) -> Response {
    let Some(key) = &caller.key else { return next.run(request).await };
    let share = throttle.take(key);
    let mut response = if share.is_admitted {
        next.run(request).await
    } else {
        discard(request.into_body()).await;
        let seconds = u32::try_from(share.reset).unwrap_or(u32::MAX).max(1);
        let detail = format!("this key may make {} requests a second", throttle.limit.per_second);
        Problem::new(StatusCode::TOO_MANY_REQUESTS, detail).retry_after(seconds).into_response()
    };
    for (name, value) in [
        ("ratelimit-limit", u64::from(throttle.limit.burst)),
        ("ratelimit-remaining", u64::from(share.remaining)),
        ("ratelimit-reset", share.reset),
    ] {
        response.headers_mut().insert(HeaderName::from_static(name), HeaderValue::from(value));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_used_up_and_comes_back() {
        let throttle = Throttle::new(1);
        let key: ApiKeyId = "key_0123456789abcdef01234567".parse().unwrap();
        let other: ApiKeyId = "key_0123456789abcdef01234568".parse().unwrap();
        let told = |key| {
            let Share { is_admitted, remaining, reset } = throttle.take(key);
            (is_admitted, remaining, reset)
        };
        assert_eq!([told(&key), told(&key)], [(true, 1, 1), (true, 0, 2)]);
        assert_eq!((told(&key), told(&other)), ((false, 0, 1), (true, 1, 1)));
    }
}
