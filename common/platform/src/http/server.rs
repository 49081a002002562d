//! Serves an API over TCP, and lets go of clients that only hold on: that send no request, or that take
//! nothing of what they are sent. What happens in between has bounds of its own.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_io_timeout::TimeoutStream;
use tower::Service as _;

use crate::shutdown::Shutdown;

/// How long a client may take until the headers of its request are there, the first or the next one.
/// Longer than what load balancers leave a connection unused.
const UNTIL_HEADERS: Duration = Duration::from_secs(75);
/// How long a client may take nothing of an answer.
const STALLED: Duration = Duration::from_secs(40);
/// Connections at once; others wait.
const CONNECTIONS: usize = 10_000;
/// The pause after one could not be taken, for want of file descriptors, most likely.
const AGAIN: Duration = Duration::from_secs(1);

/// Serves an API until the service is told to stop; requests in flight are finished.
pub async fn serve(listener: TcpListener, api: Router, shutdown: Shutdown) {
    let connections = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    while let Some(accepted) = shutdown.until(accept(&listener, &places)).await {
        let Some((stream, from, place)) = accepted else { continue };
        let api = api.clone();
        let service = service_fn(move |request: hyper::Request<Incoming>| {
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(from));
            // A router is always ready.
            api.clone().call(request)
        });
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(STALLED));
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(UNTIL_HEADERS)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        let connection = connections.watch(connection);
        shutdown.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, %from, "connection ended");
            }
            drop(place);
        });
    }
    drop(listener);
    connections.shutdown().await;
}

/// The next connection, once there is a place for it; `None` if it could not be taken.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, from)) => {
            // Answers are written whole; to wait for more only delays them.
            if let Err(error) = stream.set_nodelay(true) {
                tracing::debug!(%error, "a connection delays small packets");
            }
            Some((stream, from, place))
        }
        Err(error) => {
            tracing::warn!(%error, "a connection could not be taken");
            tokio::time::sleep(AGAIN).await;
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Bytes;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::{Instant, timeout};

    use super::*;

    /// A server with an answer that has no end, and one that is short.
    async fn start() -> (SocketAddr, Shutdown) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let endless = || async {
            let chunk = || Ok::<Bytes, std::convert::Infallible>(vec![b'x'; 64 * 1024].into());
            Body::from_stream(futures_util::stream::repeat_with(chunk))
        };
        let api =
            Router::new().route("/endless", get(endless)).route("/", get(|| async { "short" }));
        let shutdown = Shutdown::default();
        shutdown.spawn(serve(listener, api, shutdown.clone()));
        (address, shutdown)
    }

    /// Time passes as soon as nothing else does.
    #[tokio::test(start_paused = true)]
    async fn whoever_sends_no_request_is_let_go() {
        let (address, _shutdown) = start().await;
        for sent in ["", "GET / HTTP/1.1\r\nhost: ", "GET / HTTP/1.1\r\nhost: x\r\n\r\n"] {
            let began = Instant::now();
            let mut client = TcpStream::connect(address).await.unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            let read = timeout(2 * UNTIL_HEADERS, client.read_to_end(&mut answer)).await;
            assert!(read.is_ok(), "{sent:?}: still connected");
            assert!(began.elapsed() >= UNTIL_HEADERS, "{sent:?}: {:?}", began.elapsed());
            assert_eq!(answer.ends_with(b"short"), sent.ends_with("\r\n\r\n"), "{sent:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_takes_nothing_of_an_answer_is_let_go() {
        // More than any buffer in between has room for.
        const MOST: u64 = 64 * 1024 * 1024;
        let (address, _shutdown) = start().await;
        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        tokio::time::sleep(STALLED * 2).await;
        // What had been sent by then is there, and then it ends.
        let mut answer = Vec::new();
        let read = client.take(MOST).read_to_end(&mut answer).await.unwrap_or_default();
        assert!(u64::try_from(read).unwrap() < MOST, "still sending");
    }
}
