//! Installs what is missing from the distribution, and starts none of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::Context as _;

/// Something from the distribution that is needed.
#[derive(Clone, Copy, Debug)]
pub struct Package {
    /// Its name in Debian.
    pub name: &'static str,
    /// A file that is there once it is installed.
    pub proof: &'static str,
}

/// RabbitMQ, with its command line and plugins.
pub const RABBITMQ: Package =
    Package { name: "rabbitmq-server", proof: "/usr/lib/rabbitmq/bin/rabbitmq-server" };
/// Redis.
pub const REDIS: Package = Package { name: "redis-server", proof: "/usr/bin/redis-server" };

/// Installs those packages that are missing; `say` hears about it.
///
/// # Errors
/// They can't be installed here; says what to do.
pub fn ensure(packages: &[Package], say: impl Fn(&str)) -> anyhow::Result<()> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| !Path::new(package.proof).exists())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    let by_hand = format!(
        "install it yourself, then start again: sudo apt-get install --no-install-recommends {names}"
    );
    anyhow::ensure!(
        Path::new("/usr/bin/apt-get").exists(),
        "this needs {names}, and this machine has no apt-get: install RabbitMQ 3.10 or later and Redis 7 or later, in the places where Debian puts them"
    );
    let root = nix::unistd::geteuid().is_root();
    anyhow::ensure!(
        root || can_sudo(),
        "this needs {names}, and only root can install it; {by_hand}"
    );
    say(&format!("installing {names} (once)"));
    let _quiet = if root { Some(NoStarting::begin()?) } else { None };
    // An outdated list is the usual reason for a failure, so the list comes first.
    run_apt(root, &["update", "-qq"]).with_context(|| by_hand.clone())?;
    let mut install = vec!["install", "-y", "-qq", "--no-install-recommends"];
    install.extend(missing);
    run_apt(root, &install).context(by_hand)
}

fn can_sudo() -> bool {
    let status = Command::new("sudo").args(["-n", "true"]).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn run_apt(root: bool, arguments: &[&str]) -> anyhow::Result<()> {
    let mut command = if root {
        Command::new("apt-get")
    } else {
        let mut command = Command::new("sudo");
        command.args(["-n", "env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        command
    };
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["-o", "DPkg::Lock::Timeout=300"])
        .args(arguments);
    let output = command.stdin(Stdio::null()).output().context("cannot run apt-get")?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.success(),
        "apt-get {} failed: {}",
        arguments.join(" "),
        error.trim()
    );
    Ok(())
}

/// While this lives, installing a package starts no service: the distribution's own instances
/// are not ours to start. Leaves alone what an administrator has put there.
struct NoStarting {
    policy: Option<PathBuf>,
}

impl NoStarting {
    fn begin() -> anyhow::Result<Self> {
        let policy = PathBuf::from("/usr/sbin/policy-rc.d");
        if policy.exists() {
            return Ok(Self { policy: None });
        }
        fs::write(&policy, "#!/bin/sh\nexit 101\n")
            .context("cannot write /usr/sbin/policy-rc.d")?;
        fs::set_permissions(&policy, fs::Permissions::from_mode(0o755))?;
        Ok(Self { policy: Some(policy) })
    }
}

impl Drop for NoStarting {
    fn drop(&mut self) {
        if let Some(policy) = &self.policy {
            // Nothing can be done about a failure here, and nothing depends on it.
            drop(fs::remove_file(policy));
        }
    }
}
