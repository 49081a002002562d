//! Calls a node of RabbitMQ: of the addresses that its name has, one after the other, until one answers. A name may have
//! one for each node of a cluster, and a machine that is lost swallows what is sent there.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use async_rs::TokioRuntime;
use async_rs::traits::Reactor;

/// How long that may take, for all of them together.
const PATIENCE: Duration = Duration::from_secs(6);

/// A connection to one of these.
type Dialled = <TokioRuntime as Reactor>::TcpStream;

/// Connects to the first address of this host that answers.
///
/// # Errors
/// It has none, or none answers; says what the last one said.
pub(super) async fn dial(runtime: &TokioRuntime, host: &str, port: u16) -> io::Result<Dialled> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    dial_one_of(runtime, &addresses).await
}

async fn dial_one_of(runtime: &TokioRuntime, addresses: &[SocketAddr]) -> io::Result<Dialled> {
    let each = PATIENCE / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let mut failed = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses {
        match tokio::time::timeout(each, runtime.tcp_connect_addr(*address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed = error,
            Err(_) => failed = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failed)
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpSocket, TcpStream};

    use super::*;

    #[tokio::test]
    async fn another_address_is_called_where_one_is_dead() {
        let swallowing = TcpSocket::new_v4().unwrap();
        swallowing.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        // Whose line is full.
        let swallowing = swallowing.listen(1).unwrap();
        let dead = swallowing.local_addr().unwrap();
        let mut waiting = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(300), TcpStream::connect(dead)).await
        {
            waiting.push(connected.unwrap());
        }
        let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let alive = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let alive_at = alive.local_addr().unwrap();
        let runtime = TokioRuntime::tokio_current();
        let dialled = dial_one_of(&runtime, &[refusing, dead, alive_at]).await;
        assert!(dialled.is_ok());
        alive.accept().await.unwrap();
        for (addresses, kind) in [
            (vec![], io::ErrorKind::NotFound),
            (vec![dead, refusing], io::ErrorKind::ConnectionRefused),
        ] {
            assert_eq!(dial_one_of(&runtime, &addresses).await.map(drop).unwrap_err().kind(), kind);
        }
    }
}
