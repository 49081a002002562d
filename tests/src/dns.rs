//! A name server of a few names: those that lead to us, to somewhere private, nowhere, and those of
//! which it says nothing.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UdpSocket;

use crate::receiver::spawn;

/// The longest message over UDP that anyone here sends.
const MESSAGE: usize = 1500;
/// Where a message's question begins (RFC 1035 §4.1.1).
const HEADER: usize = 12;
/// An address of this machine on which nobody need answer.
pub const DEAD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
/// The type of a question for an IPv4 address.
const A: [u8; 2] = [0, 1];

/// A name server on this machine. What a name begins with says what it leads to: `hangs` to no answer,
/// `nowhere` to nothing, `private` to 10.0.0.1, `two` to [`DEAD`] and 127.0.0.1, and all others to 127.0.0.1.
#[derive(Clone, Debug)]
pub struct NameServer {
    /// Where it is.
    pub address: SocketAddr,
    asked: Arc<Mutex<HashMap<String, usize>>>,
}

impl NameServer {
    /// Starts one.
    ///
    /// # Errors
    /// There is no port for it.
    pub async fn start() -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0").await?;
        let server = Self { address: socket.local_addr()?, asked: Arc::default() };
        let serving = server.clone();
        spawn(async move { serving.serve(&socket).await });
        Ok(server)
    }

    /// How many names were asked for that begin so.
    #[must_use]
    pub fn asked(&self, start: &str) -> usize {
        self.lock().keys().filter(|name| name.starts_with(start)).count()
    }

    async fn serve(&self, socket: &UdpSocket) {
        let mut message = [0; MESSAGE];
        while let Ok((length, from)) = socket.recv_from(&mut message).await {
            let Some(answer) = message.get(..length).and_then(|message| self.answer(message))
            else {
                continue;
            };
            if socket.send_to(&answer, from).await.is_err() {
                return;
            }
        }
    }

    /// What is answered to a message, if anything is.
    fn answer(&self, message: &[u8]) -> Option<Vec<u8>> {
        let (name, end) = name(message)?;
        let question = message.get(HEADER..end + 4)?;
        *self.lock().entry(name.clone()).or_default() += 1;
        let (code, addresses): (u8, &[Ipv4Addr]) = match name.split(['-', '.']).next()? {
            "hangs" => return None,
            "nowhere" => (3, &[]),
            "private" => (0, &[Ipv4Addr::new(10, 0, 0, 1)]),
            "two" => (0, &[DEAD, Ipv4Addr::LOCALHOST]),
            _ => (0, &[Ipv4Addr::LOCALHOST]),
        };
        let is_for_ipv4 = message.get(end..end + 2)? == A;
        let addresses = if is_for_ipv4 { addresses } else { &[] };
        let mut answer = message.get(..2)?.to_vec();
        // A response, recursion desired and available, and a code.
        let count = u8::try_from(addresses.len()).ok()?;
        answer.extend([0x81, 0x80 | code, 0, 1, 0, count, 0, 0, 0, 0]);
        answer.extend_from_slice(question);
        for address in addresses {
            // The name of the question, an address of the Internet, for a minute, of four bytes.
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(address.octets());
        }
        Some(answer)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, usize>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name that a message asks for, and where it ends.
fn name(message: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut place) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*message.get(place)?);
        place += 1;
        if length == 0 {
            return Some((labels.join("."), place));
        }
        let label = message.get(place..place + length)?;
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
        place += length;
    }
}
