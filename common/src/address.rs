//! Where a POST may go. A URL is judged twice: its text when a subscription is written, and the
//! address really dialled at every connection, so that a name that later leads elsewhere (DNS
//! rebinding) gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

mod endpoint_url;

pub use endpoint_url::EndpointUrl;

/// What the operator allows beyond the public Internet over HTTPS.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressPolicy {
    /// Ranges that may be called although they are private.
    pub allow_targets: Vec<IpNet>,
    /// Whether plain HTTP may be used.
    pub allow_http: bool,
}

/// Why a URL or an address may not be called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// More than 2,048 bytes.
    #[error("is longer than {MAX_URL} bytes")]
    TooLong,
    /// It does not begin with `https://` (or `http://`) and a host.
    #[error(
        "must begin with https:// (or http://, where the operator allows it) and a host, in lower case"
    )]
    Scheme,
    /// Plain HTTP without leave.
    #[error("uses plain http, which the operator has not allowed; use https")]
    PlainHttp,
    /// A space, control character, byte order mark or backslash.
    #[error("has a space, a control character, a byte order mark or a backslash")]
    Character,
    /// `#…`.
    #[error("has a fragment (#…), which is never sent")]
    Fragment,
    /// User information, a percent sign or a zone in the authority.
    #[error("has '@' or '%' before the path; put credentials into headers")]
    Authority,
    /// Not a URL after all.
    #[error("is not a valid URL: {0}")]
    Syntax(String),
    /// A name that never leads to the public Internet.
    #[error("names the host {0}, which is not a public one")]
    Host(String),
    /// A port that speaks something else.
    #[error("uses port {0}, which may not be called")]
    Port(u16),
    /// An address outside the public Internet.
    #[error("leads to the address {0}, which may not be called")]
    Address(IpAddr),
}

/// The longest URL, in bytes.
pub const MAX_URL: usize = 2048;

/// Names that lead nowhere or home, refused themselves and with anything before them.
const PRIVATE_SUFFIXES: [&str; 12] = [
    "localhost",
    "localdomain",
    "local",
    "internal",
    "home.arpa",
    "lan",
    "onion",
    "invalid",
    "test",
    "example",
    "svc",
    "cluster.local",
];

/// Ports above 1023 that belong to services which trust their network.
const SERVICE_PORTS: [u16; 13] =
    [2375, 2379, 3306, 5432, 5672, 6379, 6443, 6667, 9200, 10250, 11211, 15672, 27017];

/// IPv4 ranges that are not public (IANA's special-purpose registry, and one cloud's metadata).
const PRIVATE_V4: [(Ipv4Addr, u8); 17] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(192, 88, 99, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
    (Ipv4Addr::new(255, 255, 255, 255), 32),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
];

/// Ranges inside `2000::/3` that are not public.
const PRIVATE_V6: [(Ipv6Addr, u8); 5] = [
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 23),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3ffe, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0x3fff, 0, 0, 0, 0, 0, 0, 0), 20),
];

impl AddressPolicy {
    /// Judges a URL, as it was written and as it is called. Names are not resolved here.
    ///
    /// # Errors
    /// Names the first rule that the URL breaks.
    pub fn check_url<'a>(&self, url: &'a EndpointUrl) -> Result<&'a Url, Refused> {
        let url = url.parsed()?;
        if !self.allow_http && url.scheme() == "http" {
            return Err(Refused::PlainHttp);
        }
        let port = url.port_or_known_default().unwrap_or(0);
        match url.host() {
            None => Err(Refused::Scheme),
            Some(Host::Domain(name)) => check_name(name).and_then(|()| check_port(port)),
            Some(Host::Ipv4(ip)) => self.check_literal(ip.into(), port),
            Some(Host::Ipv6(ip)) => self.check_literal(ip.into(), port),
        }?;
        Ok(url)
    }

    fn check_literal(&self, ip: IpAddr, port: u16) -> Result<(), Refused> {
        if self.allows(ip) {
            return Ok(());
        }
        if let IpAddr::V6(v6) = ip
            && !is_global_unicast(v6)
        {
            return Err(Refused::Address(ip));
        }
        self.check_dialled(ip)?;
        check_port(port)
    }

    /// Judges an address that a name has led to, just before it is dialled.
    ///
    /// # Errors
    /// The address is not public and not allowed.
    pub fn check_dialled(&self, ip: IpAddr) -> Result<(), Refused> {
        let public = match ip {
            IpAddr::V4(v4) => is_public_v4(v4),
            IpAddr::V6(v6) => is_public_v6(v6),
        };
        if public || self.allows(ip) { Ok(()) } else { Err(Refused::Address(ip)) }
    }

    fn allows(&self, ip: IpAddr) -> bool {
        self.allow_targets
            .iter()
            .any(|range| range.contains(&ip) || range.contains(&ip.to_canonical()))
    }
}

/// The rules over the bytes as written: parsers silently repair a lot.
fn check_text(text: &str) -> Result<(), Refused> {
    if text.len() > MAX_URL {
        return Err(Refused::TooLong);
    }
    if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == '\u{feff}' || c == '\\') {
        return Err(Refused::Character);
    }
    let after_scheme = text
        .strip_prefix("https://")
        .or_else(|| text.strip_prefix("http://"))
        .ok_or(Refused::Scheme)?;
    if after_scheme.is_empty() || after_scheme.starts_with('/') {
        return Err(Refused::Scheme);
    }
    if text.contains('#') {
        return Err(Refused::Fragment);
    }
    let authority = after_scheme.split(['/', '?']).next().unwrap_or_default();
    if authority.contains(['@', '%']) {
        return Err(Refused::Authority);
    }
    Ok(())
}

fn check_name(name: &str) -> Result<(), Refused> {
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let private = PRIVATE_SUFFIXES.iter().any(|suffix| {
        name.strip_suffix(suffix).is_some_and(|before| before.is_empty() || before.ends_with('.'))
    });
    if private || !name.contains('.') || name == "metadata.goog" {
        return Err(Refused::Host(name));
    }
    Ok(())
}

fn check_port(port: u16) -> Result<(), Refused> {
    let allowed = matches!(port, 80 | 443 | 1024..) && !SERVICE_PORTS.contains(&port);
    if allowed { Ok(()) } else { Err(Refused::Port(port)) }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    !PRIVATE_V4
        .iter()
        .any(|(network, bits)| Ipv4Net::new(*network, *bits).is_ok_and(|range| range.contains(&ip)))
}

fn is_global_unicast(ip: Ipv6Addr) -> bool {
    ip.segments()[0] & 0xe000 == 0x2000
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let private = |(network, bits): &(Ipv6Addr, u8)| {
        Ipv6Net::new(*network, *bits).is_ok_and(|range| range.contains(&ip))
    };
    match embedded_v4(ip) {
        // Mapped addresses and those of a NAT64 gateway are only another way to say the IPv4.
        Some((v4, true)) => is_public_v4(v4),
        Some((v4, false)) if !is_public_v4(v4) => false,
        _ => is_global_unicast(ip) && !PRIVATE_V6.iter().any(private) && !is_isatap(ip),
    }
}

/// The IPv4 inside an IPv6, and whether the packet goes to that IPv4 alone.
fn embedded_v4(ip: Ipv6Addr) -> Option<(Ipv4Addr, bool)> {
    let octets = ip.octets();
    let v4_at = |i: usize| Ipv4Addr::new(octets[i], octets[i + 1], octets[i + 2], octets[i + 3]);
    match ip.segments() {
        [0, 0, 0, 0, 0, 0xffff, ..] | [0x64, 0xff9b, 0, 0, 0, 0, ..] => Some((v4_at(12), true)),
        [0, 0, 0, 0, 0, 0, ..] => Some((v4_at(12), false)),
        [0x2002, ..] => Some((v4_at(2), false)),
        // Teredo writes the client's address with every bit turned (RFC 4380 §4).
        [0x2001, 0, ..] => Some((Ipv4Addr::from_bits(!v4_at(12).to_bits()), false)),
        _ => None,
    }
}

/// Interface identifiers `[02]00:5efe:v4` (RFC 5214 §6.1).
fn is_isatap(ip: Ipv6Addr) -> bool {
    let segments = ip.segments();
    (segments[4] == 0 || segments[4] == 0x200) && segments[5] == 0x5efe
}

#[cfg(test)]
mod tests;
