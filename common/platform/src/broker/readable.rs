//! Connections to RabbitMQ over which nothing comes that the client cannot read.
//!
//! What publishers write beside a message's body reaches us as it is: RabbitMQ does not look whether short
//! strings (routing keys, message ids, names of headers) are UTF-8, as AMQP wants them, or how deep headers nest.
//! The client (lapin 4.12) breaks its connection off over one that is not, and nests as deep as they do: one
//! such message would cost each dispatcher in turn its connection, with all that is in hand, until it had come
//! a thousand times. So [`frame::mend`] makes every frame readable on its way in, and the message is judged
//! like any other.

mod frame;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use async_rs::traits::Reactor;
use async_rs::util::RuntimeParts;
use async_rs::{Runtime, Tokio, TokioRuntime};
use futures_util::Stream;
use futures_util::io::{AsyncRead, AsyncWrite};
use lapin::tcp::{AsyncTcpStream, OwnedTLSConfig};
use lapin::uri::{AMQPScheme, AMQPUri};
use lapin::{Connection, ConnectionProperties};

use super::dial::dial;

/// How much is read at once, as long as no frame is larger.
const ROOM: usize = 64 * 1024;

/// Connects to a node.
///
/// # Errors
/// It does not answer, or does not let us in.
pub(super) async fn connect(
    node: AMQPUri,
    properties: ConnectionProperties,
    tls: OwnedTLSConfig,
) -> lapin::Result<Connection> {
    let tokio = Tokio::current();
    let runtime = Runtime::new(RuntimeParts::new(tokio.clone(), Mending(tokio)));
    let connecting = async move |node: AMQPUri, _| {
        let (host, tokio) = (&node.authority.host, TokioRuntime::tokio_current());
        let dialled = dial(&tokio, host, node.authority.port).await?;
        let stream = match node.scheme {
            AMQPScheme::AMQP => AsyncTcpStream::Plain(dialled),
            AMQPScheme::AMQPS => {
                AsyncTcpStream::Plain(dialled).into_tls(host, tls.as_ref()).await?
            }
        };
        // Plain to the client: if there is TLS, it is below.
        Ok(AsyncTcpStream::Plain(Mended::new(stream)))
    };
    Connection::connector(node, runtime, connecting, properties).await
}

/// Tokio, with streams that are mended.
#[derive(Clone, Debug)]
struct Mending(Tokio);

impl Reactor for Mending {
    type TcpStream = Mended<AsyncTcpStream<<Tokio as Reactor>::TcpStream>>;
    type Sleep = <Tokio as Reactor>::Sleep;

    /// The client registers nothing; it connects.
    fn register<H: Read + Write + Send + 'static>(
        &self,
        _socket: H,
    ) -> io::Result<impl AsyncRead + AsyncWrite + Send + Unpin + 'static> {
        Err::<Self::TcpStream, _>(io::ErrorKind::Unsupported.into())
    }

    fn sleep(&self, duration: Duration) -> Self::Sleep {
        self.0.sleep(duration)
    }

    fn interval(&self, duration: Duration) -> impl Stream<Item = Instant> + Send + 'static {
        self.0.interval(duration)
    }

    fn tcp_connect_addr(
        &self,
        address: SocketAddr,
    ) -> impl Future<Output = io::Result<Self::TcpStream>> + Send + 'static {
        let connecting = self.0.tcp_connect_addr(address);
        async move { Ok(Mended::new(AsyncTcpStream::Plain(connecting.await?))) }
    }
}

/// A stream whose frames are mended as they are read. Frames are given on whole.
#[derive(Debug)]
struct Mended<S> {
    stream: S,
    buffer: Vec<u8>,
    /// Up to here it was given on, up to here it may be, and up to here it was read.
    given: usize,
    mended: usize,
    read: usize,
}

impl<S> Mended<S> {
    fn new(stream: S) -> Self {
        Self { stream, buffer: vec![0; ROOM], given: 0, mended: 0, read: 0 }
    }

    /// Makes room to read into, once everything was given on that may be.
    fn make_room(&mut self) {
        self.buffer.copy_within(self.mended..self.read, 0);
        self.read -= self.mended;
        (self.given, self.mended) = (0, 0);
        if self.read == self.buffer.len() {
            self.buffer.resize(2 * self.read, 0);
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        while this.given == this.mended {
            this.make_room();
            let room = &mut this.buffer[this.read..];
            let count = ready!(Pin::new(&mut this.stream).poll_read(context, room))?;
            if count == 0 {
                // What is left of a frame says nothing any more.
                return Poll::Ready(Ok(0));
            }
            this.read += count;
            this.mended = frame::mend(&mut this.buffer[..this.read]);
        }
        let count = into.len().min(this.mended - this.given);
        into[..count].copy_from_slice(&this.buffer[this.given..this.given + count]);
        this.given += count;
        Poll::Ready(Ok(count))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(context)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::io::{AsyncReadExt as _, Cursor};

    use super::*;

    #[tokio::test]
    async fn everything_comes_through_in_its_order_whatever_the_pieces() {
        let frame = |kind: u8, payload: &[u8]| {
            let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
            [&[kind, 0, 1][..], &size, payload, &[0xce]].concat()
        };
        let mut sent = Vec::new();
        for n in 0..300_usize {
            sent.extend(frame(3, &vec![u8::try_from(n % 251).unwrap(); n * 7]));
        }
        // Larger than there is room for at first.
        sent.extend(frame(3, &vec![7; 5 * ROOM]));
        sent.extend(frame(8, &[]));
        for piece in [1, 7, 1000, 1_000_000] {
            let mut stream = Mended::new(Cursor::new(sent.clone()));
            let mut came = Vec::new();
            let mut into = vec![0; piece];
            loop {
                let count = stream.read(&mut into).await.unwrap();
                if count == 0 {
                    break;
                }
                came.extend_from_slice(&into[..count]);
            }
            assert!(came == sent, "in pieces of {piece}");
        }
    }
}
