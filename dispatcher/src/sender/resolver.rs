//! Resolves names to addresses that may be called. What a name leads to is judged here, at every
//! connection, and exactly what was judged is dialled: a name that changes its mind gains nothing.

use std::net::SocketAddr;
use std::sync::Arc;

use doorbell_common::address::{AddressPolicy, Refused};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// A name could not be resolved.
#[derive(Debug, thiserror::Error)]
#[error("the name {name} could not be resolved: {reason}")]
pub(super) struct DnsError {
    name: String,
    reason: String,
}

/// Resolves with the system's resolver and leaves out what may not be called.
#[derive(Debug)]
pub(super) struct GuardedResolver {
    policy: Arc<AddressPolicy>,
}

impl GuardedResolver {
    pub(super) fn new(policy: Arc<AddressPolicy>) -> Self {
        Self { policy }
    }
}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let policy = Arc::clone(&self.policy);
        Box::pin(async move {
            let failed = |reason: String| DnsError { name: name.as_str().to_owned(), reason };
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0))
                .await
                .map_err(|error| failed(error.to_string()))?
                .collect();
            Ok(allowed(&policy, found)?.ok_or_else(|| failed("it has no address".to_owned()))?)
        })
    }
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
}
