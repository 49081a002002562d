//! Ends a stack that was left behind: the one who watches over it first, so that it does not start
//! anything again, then every process it has listed.

use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::Instant;

use crate::state::{Trace, read_traces};

/// How long an orderly end may take.
const PATIENCE: Duration = Duration::from_secs(75);

/// Ends everything that is listed in the stack's folder; answers how many processes that were.
///
/// # Errors
/// The lists can't be removed.
pub async fn down(folder: &Path) -> anyhow::Result<usize> {
    let watcher = read_traces(&folder.join("watcher.json"));
    let processes = read_traces(&folder.join("processes.json"));
    let all: Vec<Trace> =
        watcher.iter().chain(&processes).copied().filter(|trace| trace.is_alive()).collect();
    // A watcher that is well ends its processes itself, in order.
    end(&watcher).await;
    end(&processes).await;
    forget(folder)?;
    Ok(all.len())
}

/// Removes the lists, once nothing that they name runs any more.
///
/// # Errors
/// The lists can't be removed.
pub fn forget(folder: &Path) -> anyhow::Result<()> {
    for name in ["watcher.json", "processes.json", "stack.json"] {
        let path = folder.join(name);
        if path.exists() {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

async fn end(traces: &[Trace]) {
    for trace in traces {
        trace.signal(Signal::SIGTERM);
    }
    let deadline = Instant::now() + PATIENCE;
    while traces.iter().any(|trace| trace.is_alive()) && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for trace in traces {
        trace.signal(Signal::SIGKILL);
    }
}
