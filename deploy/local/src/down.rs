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

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::process::started_at;
    use crate::state::write_whole;

    fn trace(pid: u32) -> Trace {
        Trace::of(i32::try_from(pid).unwrap()).unwrap()
    }

    fn folder(name: &str) -> std::path::PathBuf {
        let folder = std::env::temp_dir().join(format!("doorbell-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[tokio::test]
    async fn what_is_listed_ends_and_what_only_has_its_number_does_not() {
        let folder = folder("down");
        let mut listed = Command::new("sleep").arg("60").spawn().unwrap();
        // A process of an earlier stack whose number this very test has got since.
        let me = i32::try_from(std::process::id()).unwrap();
        let earlier = serde_json::json!({"pid": me, "started_at": started_at(me).unwrap() - 1});
        let lists = serde_json::json!([trace(listed.id()), earlier]);
        write_whole(&folder.join("processes.json"), &lists).unwrap();
        // The list is read whole, or nothing of it is ended.
        assert_eq!(read_traces(&folder.join("processes.json")).len(), 2);
        let waiting = std::thread::spawn(move || listed.wait());
        assert_eq!(down(&folder).await.unwrap(), 1);
        assert!(!waiting.join().unwrap().unwrap().success());
        assert!(!folder.join("processes.json").exists());
        assert_eq!(down(&folder).await.unwrap(), 0, "nothing is listed any more");
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn whoever_watches_over_a_stack_forgets_it_without_ending_itself() {
        let folder = folder("forget");
        write_whole(&folder.join("watcher.json"), &[trace(std::process::id())]).unwrap();
        forget(&folder).unwrap();
        assert!(!folder.join("watcher.json").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
