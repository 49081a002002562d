//! Processes that we start: each in a group of its own, its output in a file, so that it can be
//! ended whole and read afterwards.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How to start a process, again and again.
#[derive(Clone, Debug)]
pub struct Spec {
    /// What to call it.
    pub name: String,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Its environment beyond ours.
    pub environment: Vec<(String, OsString)>,
    /// The file that its output is appended to.
    pub log: PathBuf,
    /// A file in which the program writes the id of the process that matters, where that is not
    /// the one we start.
    pub pid_file: Option<PathBuf>,
    /// The folder that it runs in, if not ours: some programs leave files behind when they are killed.
    pub folder: Option<PathBuf>,
}

/// A process that we started. Killed, with its group, when dropped.
#[derive(Debug)]
pub struct Process {
    spec: Spec,
    child: Child,
    group: Pid,
}

impl Spec {
    /// Starts it.
    ///
    /// # Errors
    /// The program is not there, or the log can't be written.
    pub fn start(&self) -> anyhow::Result<Process> {
        if let Some(folder) = self.log.parent() {
            fs::create_dir_all(folder)?;
        }
        if let Some(pid_file) = &self.pid_file
            && pid_file.exists()
        {
            fs::remove_file(pid_file)?;
        }
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        if let Some(folder) = &self.folder {
            command.current_dir(folder);
        }
        let child = command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {} ({})", self.name, self.program.display()))?;
        let id = child.id().context("the process ended at once")?;
        Ok(Process { spec: self.clone(), child, group: Pid::from_raw(i32::try_from(id)?) })
    }
}

impl Process {
    /// How it was started.
    #[must_use]
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// The id of the process that matters.
    #[must_use]
    pub fn pid(&self) -> i32 {
        let written = self.spec.pid_file.as_ref().and_then(|file| fs::read_to_string(file).ok());
        written.and_then(|text| text.trim().parse().ok()).unwrap_or(self.group.as_raw())
    }

    /// Whether it has ended.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether it has ended, and well.
    pub fn succeeded(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(status)) if status.success())
    }

    /// Sends a signal to the process that matters.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.pid()), signal)
            .with_context(|| format!("cannot signal {}", self.spec.name))
    }

    /// Kills it, with its group, at once, and waits until it is gone.
    pub async fn kill(&mut self) {
        // What is gone already needs no signal.
        let _gone = kill(Pid::from_raw(self.pid()), Signal::SIGKILL).is_err();
        let _gone = killpg(self.group, Signal::SIGKILL).is_err();
        drop(self.child.wait().await);
    }

    /// Asks it to end, waits, and kills it if it takes longer; answers its exit code if it ended
    /// by itself.
    pub async fn stop(&mut self, patience: Duration) -> Option<i32> {
        let _gone = kill(Pid::from_raw(self.pid()), Signal::SIGTERM).is_err();
        let ended = tokio::time::timeout(patience, self.child.wait()).await;
        let code = match ended {
            Ok(Ok(status)) => status.code(),
            Ok(Err(_)) | Err(_) => None,
        };
        self.kill().await;
        code
    }

    /// The end of its output, for error messages.
    #[must_use]
    pub fn last_output(&self) -> String {
        let text = fs::read(&self.spec.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines.iter().skip(lines.len().saturating_sub(20)).copied().collect::<Vec<_>>().join("\n")
    }

    /// Asks again and again until the answer is yes.
    ///
    /// # Errors
    /// It ended, or time ran out; says the end of its output.
    pub async fn until<F: Future<Output = bool>>(
        &mut self,
        at_most: Duration,
        ready: impl Fn() -> F,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + at_most;
        while !ready().await {
            let trouble = if self.has_ended() {
                Some("ended while starting".to_owned())
            } else if Instant::now() > deadline {
                Some(format!("was not ready within {at_most:?}"))
            } else {
                None
            };
            if let Some(trouble) = trouble {
                let (name, log) = (&self.spec.name, self.spec.log.display());
                anyhow::bail!("{name} {trouble}; see {log}:\n{}", self.last_output());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.has_ended() {
            let _gone = kill(Pid::from_raw(self.pid()), Signal::SIGKILL).is_err();
            let _gone = killpg(self.group, Signal::SIGKILL).is_err();
        }
    }
}

/// When the process with this id began, in the kernel's clock ticks: with the id it tells a
/// process from a later one that got the same id.
#[must_use]
pub fn started_at(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; field 22 is the 20th after it.
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Truncates nothing, creates what is missing: a file to lock.
pub(crate) fn lock_file(path: &std::path::Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).open(path)
}
