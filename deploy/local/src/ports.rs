//! Free ports on the loopback address.

use std::net::TcpListener;

/// So many free ports, all different.
///
/// # Errors
/// The system has none left.
pub fn free<const N: usize>() -> std::io::Result<[u16; N]> {
    // All are held until all are found.
    let listeners =
        (0..N).map(|_| TcpListener::bind(("127.0.0.1", 0))).collect::<Result<Vec<_>, _>>()?;
    let mut ports = [0; N];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}
