//! What stands before a receiver and speaks TLS for it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use doorbell_local::certificates::Certificate;
use rustls::{HandshakeKind, SupportedProtocolVersion};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::receiver::spawn;

/// Takes connections over TLS and passes what they say to a receiver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TlsFront {
    /// Where it listens.
    pub address: SocketAddr,
    handshakes: Arc<Handshakes>,
}

#[derive(Debug, Default)]
struct Handshakes {
    full: AtomicUsize,
    resumed: AtomicUsize,
}

impl TlsFront {
    /// Starts one before this receiver, with this certificate and these versions of TLS.
    ///
    /// # Errors
    /// There is no port for it, or the certificate is none.
    pub async fn start(
        receiver: SocketAddr,
        certificate: &Certificate,
        versions: &[&'static SupportedProtocolVersion],
    ) -> anyhow::Result<Self> {
        let acceptor = certificate.acceptor(versions)?;
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let front = Self { address: listener.local_addr()?, handshakes: Arc::default() };
        let serving = front.clone();
        spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (front, acceptor) = (serving.clone(), acceptor.clone());
                spawn(async move { drop(front.serve(stream, acceptor, receiver).await) });
            }
        });
        Ok(front)
    }

    /// How many connections began from nothing, and how many with a session of an earlier one.
    #[must_use]
    pub fn handshakes(&self) -> (usize, usize) {
        let Handshakes { full, resumed } = &*self.handshakes;
        (full.load(Ordering::Relaxed), resumed.load(Ordering::Relaxed))
    }

    async fn serve(
        &self,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        receiver: SocketAddr,
    ) -> std::io::Result<()> {
        let mut stream = acceptor.accept(stream).await?;
        let counter = match stream.get_ref().1.handshake_kind() {
            Some(HandshakeKind::Resumed) => &self.handshakes.resumed,
            Some(HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest) | None => {
                &self.handshakes.full
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut behind = TcpStream::connect(receiver).await?;
        copy_bidirectional(&mut stream, &mut behind).await.map(drop)
    }
}
