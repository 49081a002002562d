//! Free ports on the loopback address.

use std::collections::HashSet;
use std::net::TcpListener;
use std::sync::{Mutex, PoisonError};

use doorbell_platform::clock;

/// Below the range from which the system takes the ports of outgoing connections, which would
/// otherwise snatch one between its choice and its use.
const FIRST: u16 = 15_000;
const COUNT: u16 = 17_000;
/// Where Linux has that range begin, unless told otherwise.
const EPHEMERAL: u16 = 32_768;
const _: () = assert!(FIRST + COUNT <= EPHEMERAL);

/// So many free ports, all different, and none that this process was given before.
///
/// # Errors
/// There are none left.
pub fn free<const N: usize>() -> std::io::Result<[u16; N]> {
    static GIVEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let given = given.get_or_insert_default();
    let mut ports = [0; N];
    for port in &mut ports {
        *port = (0..1000)
            .map(|_| random_port())
            .find(|port| !given.contains(port) && TcpListener::bind(("127.0.0.1", *port)).is_ok())
            .ok_or_else(|| std::io::Error::other("no free port was found"))?;
        given.insert(*port);
    }
    Ok(ports)
}

fn random_port() -> u16 {
    let [low, high] = clock::random_bytes();
    FIRST + u16::from_le_bytes([low, high]) % COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_free_different_and_never_those_of_outgoing_connections() {
        let mut ports = Vec::new();
        for _ in 0..50 {
            ports.extend(free::<4>().unwrap());
        }
        let different: HashSet<u16> = ports.iter().copied().collect();
        assert_eq!(different.len(), ports.len());
        assert!(ports.iter().all(|port| (FIRST..EPHEMERAL).contains(port)), "{ports:?}");
        let taken = TcpListener::bind(("127.0.0.1", ports[0])).unwrap();
        assert_eq!(taken.local_addr().unwrap().port(), ports[0]);
    }
}
