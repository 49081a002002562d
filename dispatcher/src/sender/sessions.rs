//! Sessions of TLS that may be resumed: the next connection to the same host takes a third of the CPU that one from
//! nothing does.
//!
//! The library's own store keeps eight tickets of each host, each with its chain of certificates. How large these are is
//! the host's choice, of up to 64 KiB each. Here each host has one: who is called by many POSTs at once has a connection
//! that is kept.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moka::sync::Cache;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

/// Of so many hosts a session is remembered, those that are called often before others.
const HOSTS: u64 = 2048;

/// The sessions of hosts.
#[derive(Debug)]
pub(super) struct Sessions {
    hosts: Cache<ServerName<'static>, Arc<Mutex<Host>>>,
}

/// What is remembered of a host.
#[derive(Debug, Default)]
struct Host {
    group: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    tls13: Option<Tls13ClientSessionValue>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { hosts: Cache::new(HOSTS) }
    }
}

impl Sessions {
    fn note(&self, name: ServerName<'static>, note: impl FnOnce(&mut Host)) {
        note(&mut lock(&self.hosts.get_with(name, Arc::default)));
    }

    fn look<T>(
        &self,
        name: &ServerName<'_>,
        look: impl FnOnce(&mut Host) -> Option<T>,
    ) -> Option<T> {
        let host = self.hosts.get(&name.to_owned())?;
        look(&mut lock(&host))
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.note(name, |host| host.group = Some(group));
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.look(name, |host| host.group)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.note(name, |host| host.tls12 = Some(session));
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.look(name, |host| host.tls12.clone())
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.look(name, |host| host.tls12.take());
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.note(name, |host| host.tls13 = Some(ticket));
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.look(name, |host| host.tls13.take())
    }
}

fn lock(host: &Mutex<Host>) -> MutexGuard<'_, Host> {
    host.lock().unwrap_or_else(PoisonError::into_inner)
}
