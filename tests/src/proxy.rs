//! Stands between a service and an engine: cuts everything off before a certain command, or forgets its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

use crate::receiver::spawn;

/// A proxy. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The port that new connections lead to.
    port: AtomicU16,
    /// How often all connections were forgotten.
    forgotten: AtomicU32,
    /// How many more times something may be sent; 0: any number.
    left: AtomicU32,
    is_cut: AtomicBool,
    cut: Notify,
}

impl Proxy {
    /// Starts one in front of a port of this machine.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start(port: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let proxy = Self { address: listener.local_addr()?, state: Arc::default() };
        proxy.lead_to(port);
        let state = Arc::clone(&proxy.state);
        spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let state = Arc::clone(&state);
                spawn(async move {
                    // One that breaks is what this is for.
                    let _broken = state.carry(client).await.is_err();
                });
            }
        });
        Ok(proxy)
    }

    /// Leads connections that are made from now on to another port.
    pub fn lead_to(&self, port: u16) {
        self.state.port.store(port, Ordering::SeqCst);
    }

    /// Carries nothing any more over the connections that there are, and does not say so: as if what stands between
    /// two hosts had forgotten them.
    pub fn forget_connections(&self) {
        self.state.forgotten.fetch_add(1, Ordering::SeqCst);
    }

    /// Cuts everything off before what is sent the `n`th time from now on.
    pub fn cut_before(&self, n: u32) {
        self.state.left.store(n, Ordering::SeqCst);
    }

    /// Waits until that has happened.
    pub async fn until_cut(&self) {
        let cut = self.state.cut.notified();
        if !self.state.is_cut.load(Ordering::SeqCst) {
            cut.await;
        }
    }

    /// Lets everything through again.
    pub fn mend(&self) {
        self.state.left.store(0, Ordering::SeqCst);
        self.state.is_cut.store(false, Ordering::SeqCst);
    }
}

impl State {
    async fn carry(&self, client: TcpStream) -> anyhow::Result<()> {
        if self.is_cut.load(Ordering::SeqCst) {
            return Ok(());
        }
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        let is_forgotten = || self.forgotten.load(Ordering::SeqCst) != forgotten;
        let server = TcpStream::connect(("127.0.0.1", self.port.load(Ordering::SeqCst))).await?;
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let there = async {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = from_client.read(&mut buffer).await?;
                if is_forgotten() {
                    return std::future::pending().await;
                }
                if count == 0 || self.is_over() {
                    return anyhow::Ok(());
                }
                to_server.write_all(&buffer[..count]).await?;
            }
        };
        let back = async {
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let count = from_server.read(&mut buffer).await?;
                if is_forgotten() {
                    return std::future::pending().await;
                }
                if count == 0 || self.is_cut.load(Ordering::SeqCst) {
                    return anyhow::Ok(());
                }
                to_client.write_all(&buffer[..count]).await?;
            }
        };
        // The end of either is the end of both.
        tokio::select! { ended = there => ended, ended = back => ended }
    }

    /// Counts one more; whether this one is not to be sent any more.
    fn is_over(&self) -> bool {
        let count = |left: u32| left.checked_sub(1);
        let before = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count);
        if before == Ok(1) {
            self.is_cut.store(true, Ordering::SeqCst);
            self.cut.notify_waiters();
        }
        self.is_cut.load(Ordering::SeqCst)
    }
}
