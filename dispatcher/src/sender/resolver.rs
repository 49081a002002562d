//! Resolves names to addresses that may be called. What a name leads to is judged here, at every
//! connection, and exactly what was judged is dialled: a name that changes its mind gains nothing.
//!
//! Not by the system's resolver, which keeps a thread for each name: a few hundred names whose servers
//! say nothing would keep everyone waiting.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use doorbell_common::address::{AddressPolicy, Refused};
use doorbell_platform::clock;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::NetError;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::{TokioResolver, system_conf};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::failure::Shortage;

/// The port of name servers.
const PORT: u16 = 53;
/// How long a name server may take; then it, or the next one, is asked again.
const PATIENCE: Duration = Duration::from_secs(3);
/// Answers remembered.
const REMEMBERED: u64 = 16_384;
/// How long an address is believed, whatever its record says, and how long that there is none: someone
/// who has put it right should not wait.
const BELIEVED: Duration = Duration::from_secs(5 * 60);
const BELIEVED_IN_VAIN: Duration = Duration::from_secs(5);

/// A name server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NameServer(SocketAddr);

impl FromStr for NameServer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let alone = || text.parse().map(|ip: IpAddr| SocketAddr::new(ip, PORT));
        let address = text.parse().or_else(|_| alone());
        address.map(Self).map_err(|_| "must be an IP address, perhaps with a port".to_owned())
    }
}

/// A name could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("the name {name} could not be resolved: {reason}")]
pub(super) struct DnsError {
    name: String,
    reason: String,
}

/// Resolves names and leaves out what may not be called.
#[derive(Clone)]
pub(super) struct GuardedResolver {
    policy: Arc<AddressPolicy>,
    resolver: TokioResolver,
}

impl GuardedResolver {
    /// Asks these name servers, or those of the system, if there are none.
    pub(super) fn new(policy: Arc<AddressPolicy>, servers: &[NameServer]) -> anyhow::Result<Self> {
        let (config, mut options) = if servers.is_empty() {
            of_the_system()
        } else {
            (asking(servers), ResolverOpts::default())
        };
        options.timeout = options.timeout.min(PATIENCE);
        options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        options.cache_size = REMEMBERED;
        options.positive_max_ttl = Some(BELIEVED);
        options.negative_max_ttl = Some(BELIEVED_IN_VAIN);
        let provider = TokioRuntimeProvider::default();
        let resolver = TokioResolver::builder_with_config(config, provider).with_options(options);
        Ok(Self { policy, resolver: resolver.build().context("no resolver of names")? })
    }

    async fn addresses(
        &self,
        name: &str,
    ) -> Result<Addrs, Box<dyn std::error::Error + Send + Sync>> {
        let failed = |reason: String| DnsError { name: name.to_owned(), reason };
        // A name from the root on: one that is looked for in the domains of our own host may lead to
        // someone there.
        let from_root = format!("{}.", name.trim_end_matches('.'));
        let found = match self.resolver.lookup_ip(from_root).await {
            Ok(found) => found,
            Err(error) => {
                return Err(match shortage() {
                    Some(Shortage(error)) => error.into(),
                    None => failed(why(&error)).into(),
                });
            }
        };
        let found = found.iter().map(|ip| SocketAddr::new(ip, 0)).collect();
        let allowed = allowed(&self.policy, in_turn(found, clock::chance()))?;
        Ok(allowed.ok_or_else(|| failed("it has no address".to_owned()))?)
    }
}

/// What the system's configuration says; without one, what a C library does.
fn of_the_system() -> (ResolverConfig, ResolverOpts) {
    system_conf::read_system_conf().unwrap_or_else(|error| {
        tracing::warn!(%error, "no name server is configured: asking one on this machine (see --dns-servers)");
        let here = NameServer(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
        (asking(&[here]), ResolverOpts::default())
    })
}

fn asking(servers: &[NameServer]) -> ResolverConfig {
    let servers = servers.iter().map(|NameServer(address)| {
        let mut server = NameServerConfig::udp_and_tcp(address.ip());
        for connection in &mut server.connections {
            connection.port = address.port();
        }
        server
    });
    ResolverConfig::from_parts(None, vec![], servers.collect())
}

/// Whether there is a file left to ask a name server with: the resolver does not say that this was the reason.
fn shortage() -> Option<Shortage> {
    let error = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).err()?;
    Shortage::behind(&error)
}

/// Why a name was not resolved, for people.
fn why(error: &NetError) -> String {
    if error.is_nx_domain() {
        "there is no such name".to_owned()
    } else if error.is_no_records_found() {
        "it has no address".to_owned()
    } else if matches!(error, NetError::Timeout) {
        "no name server has answered".to_owned()
    } else if matches!(error, NetError::NoConnections) {
        "no name server could be reached".to_owned()
    } else {
        error.to_string()
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let resolver = self.clone();
        Box::pin(async move { resolver.addresses(name.as_str()).await })
    }
}

/// The same addresses, of which each is the first one of its kind as often as another: one of them may be dead, and
/// it takes its time until the next one is called.
fn in_turn(addresses: Vec<SocketAddr>, chance: f64) -> Vec<SocketAddr> {
    let (mut v4, mut v6): (Vec<_>, Vec<_>) = addresses.into_iter().partition(SocketAddr::is_ipv4);
    for addresses in [&mut v4, &mut v6] {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_precision_loss,
            clippy::cast_sign_loss,
            reason = "a name has a few addresses, and chance is below 1"
        )]
        let first = (chance * addresses.len() as f64) as usize;
        addresses.rotate_left(first);
    }
    v4.append(&mut v6);
    v4
}

/// The addresses that may be called; an error if there are only others, nothing if there are none.
fn allowed(policy: &AddressPolicy, found: Vec<SocketAddr>) -> Result<Option<Addrs>, Refused> {
    let (mut good, mut refused) = (Vec::new(), None);
    for address in found {
        match policy.check_dialled(address.ip()) {
            Ok(()) => good.push(address),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(refused) if good.is_empty() => Err(refused),
        _ if good.is_empty() => Ok(None),
        _ => Ok(Some(Box::new(good.into_iter()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_be_called_is_dialled() {
        let policy = AddressPolicy::default();
        let addresses = |texts: &[&str]| {
            texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>()
        };
        let mixed = allowed(&policy, addresses(&["127.0.0.1:0", "8.8.8.8:0"])).unwrap().unwrap();
        assert_eq!(mixed.collect::<Vec<_>>(), addresses(&["8.8.8.8:0"]));
        assert!(allowed(&policy, addresses(&["127.0.0.1:0", "[::1]:0"])).is_err());
        assert!(allowed(&policy, vec![]).unwrap().is_none());
    }

    #[test]
    fn each_address_is_the_first_one_sometimes() {
        let addresses = |texts: &[&str]| {
            texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>()
        };
        let (a, b, c, six, seven) =
            ("192.0.2.1:0", "192.0.2.2:0", "192.0.2.3:0", "[2001:db8::6]:0", "[2001:db8::7]:0");
        for (chance, found, in_turn_then) in [
            (0.0, vec![], vec![]),
            (0.9, vec![a], vec![a]),
            (0.3, vec![a, b, c], vec![a, b, c]),
            (0.4, vec![a, b, c], vec![b, c, a]),
            (0.99, vec![a, b, c], vec![c, a, b]),
            (0.7, vec![six, a, seven, b], vec![b, a, seven, six]),
        ] {
            assert_eq!(
                in_turn(addresses(&found), chance),
                addresses(&in_turn_then),
                "{found:?}, {chance}"
            );
        }
    }

    #[test]
    fn a_name_server_is_an_address() {
        for (text, address) in [
            ("10.0.0.53", Some("10.0.0.53:53")),
            ("10.0.0.53:5353", Some("10.0.0.53:5353")),
            ("::1", Some("[::1]:53")),
            ("[::1]:5353", Some("[::1]:5353")),
            ("dns.example.com", None),
            ("", None),
        ] {
            let read = text.parse::<NameServer>().ok().map(|server| server.0.to_string());
            assert_eq!(read.as_deref(), address, "{text}");
        }
    }
}
