//! What the stack writes about itself: `stack.json` for whoever wants to use it, and a list of its
//! processes for whoever has to clean up after it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::process::started_at;

/// What runs and where.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StackState {
    /// RabbitMQ.
    pub amqp_url: String,
    /// Redis.
    pub redis_url: String,
    /// Publishing over HTTP.
    pub producer_url: String,
    /// The subscriptions API.
    pub control_plane_url: String,
    /// The admin server of each service, by name.
    pub admin_urls: BTreeMap<String, String>,
    /// The process of each part, by name.
    pub pids: BTreeMap<String, i32>,
    /// The key that may do everything.
    pub admin_key: String,
}

/// A process of ours, told from a later one with the same id by when it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trace {
    pid: i32,
    started_at: u64,
}

impl Trace {
    /// Of a process that runs.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started_at: started_at(pid)? })
    }

    /// Whether that very process still runs.
    #[must_use]
    pub fn is_alive(self) -> bool {
        started_at(self.pid) == Some(self.started_at)
    }

    /// Signals that very process, if it still runs.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may end in this very moment.
            let _gone = kill(Pid::from_raw(self.pid), signal).is_err();
        }
    }
}

/// Writes a file whole or not at all.
///
/// # Errors
/// The folder can't be written.
pub fn write_whole(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, serde_json::to_vec_pretty(value)?)?;
    fs::rename(fresh, path)?;
    Ok(())
}

/// The processes that an earlier stack has listed.
#[must_use]
pub fn read_traces(path: &Path) -> Vec<Trace> {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}
