//! How much of all requests and answers is in memory at once. Connections are many, and each may bring
//! megabytes, or take none of those that it has asked for: what is read of a body has its room until the
//! request is served, and an answer until it is sent. Who finds none waits, and is then told to come again; no
//! tenant's keys have more than their share, so that nobody waits for what one tenant sends or leaves.

use std::collections::HashMap;
use std::error::Error;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use doorbell_common::ids::TenantId;
use futures_util::TryStreamExt as _;
use hyper::body::{Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::discard;
use crate::auth::Caller;
use crate::problem::Problem;

/// Bytes of requests and answers in memory; four times as many as one tenant's keys may have, if that is more.
const MOST: usize = 64 * 1024 * 1024;
/// Of these, those of one tenant's keys; as many as one request may have, if that is more.
const SHARE: usize = MOST / 4;
/// A body that is said to be no larger is not counted: there are no more of them than connections.
const SMALL: usize = 4 * 1024;
/// Nor is such an answer.
const SMALL_ANSWER: usize = 64 * 1024;
/// How long a request waits for room.
const PATIENCE: Duration = Duration::from_secs(10);
/// With so many shares known, those are forgotten that nobody uses.
const MANY: usize = 1024;

/// The room that there is. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Room {
    all: Arc<Semaphore>,
    shares: Arc<Mutex<HashMap<TenantId, Weak<Semaphore>>>>,
    /// The largest body that is read; of a larger one nothing is kept.
    max_body: usize,
    /// What one tenant's keys may have.
    share: usize,
}

/// There was none in time.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("too much of other requests is in memory: send this one again in a moment")]
struct NoRoom;

impl From<NoRoom> for Problem {
    fn from(no_room: NoRoom) -> Self {
        Self::unavailable(no_room.to_string())
    }
}

/// The room that one request has.
#[derive(Debug)]
struct Place {
    room: Room,
    share: Option<Arc<Semaphore>>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    bytes: usize,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Room {
    /// The room of an API whose requests have at most so many bytes.
    #[must_use]
    pub fn new(max_body: usize) -> Self {
        let share = SHARE.max(max_body);
        let most = MOST.max(share.saturating_mul(4)).min(Semaphore::MAX_PERMITS);
        let (all, share) = (Arc::new(Semaphore::new(most)), share.min(most));
        Self { all, shares: Arc::default(), max_body, share }
    }

    /// Serves a request. If that says how large it is, it has all of its room before anything is read: were
    /// many to hold a part of theirs and wait for the rest, none would get it.
    pub async fn keep(self, request: Request, next: Next) -> Response {
        let caller = request.extensions().get::<Arc<Caller>>();
        let tenant = caller.and_then(|caller| caller.grant.tenant.clone());
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let place = Arc::new(Place::new(&self, tenant.as_ref()));
        let request = match length {
            Some(length) if length <= SMALL => request,
            Some(length) => match place.take(length.min(self.max_body)).await {
                Ok(()) => request,
                Err(no_room) => {
                    discard(request.into_body()).await;
                    return Problem::from(no_room).into_response();
                }
            },
            None => request.map(|body| Place::counted(&place, body)),
        };
        let response = next.run(request).await;
        drop(place);
        let size = response.body().size_hint().exact();
        match size.and_then(|size| usize::try_from(size).ok()) {
            Some(size) if size > SMALL_ANSWER => {
                let place = Place::new(&self, tenant.as_ref());
                match place.take_all(size.min(self.share)).await {
                    Ok(()) => response.map(|body| Body::new(Held { body, _place: place })),
                    Err(no_room) => Problem::from(no_room).into_response(),
                }
            }
            Some(_) | None => response,
        }
    }

    fn share(&self, tenant: TenantId) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(share) = shares.get(&tenant).and_then(Weak::upgrade) {
            return share;
        }
        if shares.len() >= MANY {
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(Semaphore::new(self.share));
        shares.insert(tenant, Arc::downgrade(&share));
        share
    }
}

/// [`Room::keep`] as a layer.
pub async fn keep(State(room): State<Room>, request: Request, next: Next) -> Response {
    room.keep(request, next).await
}

impl Place {
    fn new(room: &Room, tenant: Option<&TenantId>) -> Self {
        let share = tenant.map(|tenant| room.share(tenant.clone()));
        Self { room: room.clone(), share, taken: Mutex::default() }
    }

    /// The same body; each piece has its room before it is handed on.
    fn counted(place: &Arc<Self>, body: Body) -> Body {
        let place = Arc::clone(place);
        let chunks = body.into_data_stream().map_err(Box::<dyn Error + Send + Sync>::from);
        Body::from_stream(chunks.and_then(move |chunk: Bytes| {
            let place = Arc::clone(&place);
            async move { place.take(chunk.len()).await.map(|()| chunk).map_err(Into::into) }
        }))
    }

    /// Takes room for so many bytes more of a request.
    async fn take(&self, bytes: usize) -> Result<(), NoRoom> {
        {
            let mut taken = self.taken();
            taken.bytes = taken.bytes.saturating_add(bytes);
            if taken.bytes > self.room.max_body {
                // It is refused, and what still comes of it is thrown away.
                taken.permits.clear();
                return Ok(());
            }
        }
        let taken = self.take_all(bytes).await;
        if taken.is_err() {
            *self.taken() = Taken { bytes: self.room.max_body, permits: Vec::new() };
        }
        taken
    }

    /// Takes room for so many bytes more, or none.
    async fn take_all(&self, bytes: usize) -> Result<(), NoRoom> {
        let taking = async {
            for room in self.share.iter().chain([&self.room.all]) {
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                let permit = Arc::clone(room).acquire_many_owned(bytes).await;
                self.taken().permits.push(permit.map_err(|_| NoRoom)?);
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, taking).await.unwrap_or(Err(NoRoom))
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The body of an answer, which has its room until it is sent.
struct Held {
    body: Body,
    _place: Place,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The problem of a request whose body could not be read for want of room.
pub(super) fn unread(error: &axum::Error) -> Option<Problem> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(no_room) = error.downcast_ref::<NoRoom>() {
            return Some((*no_room).into());
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::StatusCode;
    use axum::middleware::from_fn_with_state;
    use axum::routing::post;
    use doorbell_common::api_key::Grant;
    use tokio::sync::watch;
    use tower::ServiceExt as _;

    use super::*;
    use crate::http::read_bytes;

    const LARGE: usize = 8 * 1024 * 1024;

    /// An API that has read a body, and then takes its time.
    fn api(room: &Room, may_end: watch::Receiver<bool>) -> Router {
        let served = move |body: Body| async move {
            let read = read_bytes(body, LARGE).await;
            let mut may_end = may_end.clone();
            may_end.wait_for(|may| *may).await.unwrap();
            read.map(|bytes| bytes.len().to_string())
        };
        Router::new().route("/", post(served)).layer(from_fn_with_state(room.clone(), keep))
    }

    /// A request that says how large it is.
    fn request(tenant: Option<&str>, bytes: usize) -> Request {
        let mut request = in_pieces(tenant, bytes);
        request.headers_mut().insert(header::CONTENT_LENGTH, bytes.into());
        request
    }

    fn in_pieces(tenant: Option<&str>, bytes: usize) -> Request {
        let grant =
            Grant { tenant: tenant.map(|tenant| tenant.parse().unwrap()), ..Grant::everything() };
        let whole = Bytes::from(vec![b'x'; bytes]);
        let pieces: Vec<_> = whole.chunks(100_000).map(|piece| whole.slice_ref(piece)).collect();
        let pieces = pieces.into_iter().map(Ok::<Bytes, std::convert::Infallible>);
        let body = Body::from_stream(futures_util::stream::iter(pieces));
        let mut request = Request::post("/").body(body).unwrap();
        request.extensions_mut().insert(Arc::new(Caller { grant, key: None }));
        request
    }

    #[expect(clippy::disallowed_methods, reason = "nothing is lost with a test's tasks")]
    #[tokio::test(start_paused = true)]
    async fn who_finds_no_room_is_told_and_others_have_theirs() {
        let room = Room::new(LARGE);
        let (end, may_end) = watch::channel(false);
        let api = api(&room, may_end);
        let serve = |request: Request| {
            let serving = api.clone().oneshot(request);
            tokio::spawn(async move { serving.await.unwrap().status() })
        };
        let until_left = |left: usize| {
            let room = room.clone();
            async move {
                while room.all.available_permits() != left {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        };
        let a = Some("a");
        let mut served = vec![serve(request(a, LARGE)), serve(in_pieces(a, LARGE))];
        until_left(MOST - 2 * LARGE).await;
        // Its share is used up, but for what is small.
        let refused = [serve(request(a, LARGE)), serve(in_pieces(a, LARGE))];
        served.push(serve(request(a, SMALL)));
        served.extend((0..6).map(|_| serve(request(None, LARGE))));
        until_left(0).await;
        let beyond = [serve(request(Some("b"), 5000)), serve(in_pieces(None, 1))];
        tokio::time::sleep(PATIENCE * 2).await;
        end.send_replace(true);
        for one in refused.into_iter().chain(beyond) {
            assert_eq!(one.await.unwrap(), StatusCode::SERVICE_UNAVAILABLE);
        }
        for one in served {
            assert_eq!(one.await.unwrap(), StatusCode::OK);
        }
        until_left(MOST).await;
        assert_eq!(serve(request(a, LARGE)).await.unwrap(), StatusCode::OK);
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_request_finds_room_whoever_sends_it() {
        let room = Room::new(2 * MOST);
        let api = Router::new()
            .route("/", post(|body: Body| async { read_bytes(body, 2 * MOST).await.map(drop) }))
            .layer(from_fn_with_state(room, keep));
        for request in [request(Some("a"), 2 * MOST), in_pieces(Some("a"), 2 * MOST)] {
            assert_eq!(api.clone().oneshot(request).await.unwrap().status(), StatusCode::OK);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_has_its_room_until_it_is_sent() {
        const ANSWER: usize = 1024 * 1024;
        let room = Room::new(LARGE);
        let api = Router::new()
            .route("/", post(|| async { vec![b'x'; ANSWER] }))
            .layer(from_fn_with_state(room.clone(), keep));
        let ask = |tenant| api.clone().oneshot(request(tenant, 1));
        let mut answers = Vec::new();
        for _ in 0..SHARE / ANSWER {
            answers.push(ask(Some("a")).await.unwrap());
        }
        assert_eq!(answers[0].body().size_hint().exact(), u64::try_from(ANSWER).ok());
        assert_eq!(room.all.available_permits(), MOST - SHARE);
        let refused = ask(Some("a")).await.unwrap().status();
        assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(ask(Some("b")).await.unwrap().status(), StatusCode::OK);
        let sent = axum::body::to_bytes(answers.remove(0).into_body(), ANSWER).await.unwrap();
        assert_eq!(sent.len(), ANSWER);
        assert_eq!(ask(Some("a")).await.unwrap().status(), StatusCode::OK);
        drop(answers);
        assert_eq!(room.all.available_permits(), MOST);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_large_keeps_no_room() {
        let room = Room::new(LARGE);
        let (_end, may_end) = watch::channel(true);
        for request in [request(None, 2 * MOST), in_pieces(None, 2 * MOST)] {
            let served = api(&room, may_end.clone()).oneshot(request).await;
            assert_eq!(served.unwrap().status(), StatusCode::PAYLOAD_TOO_LARGE);
            assert_eq!(room.all.available_permits(), MOST);
        }
    }
}
