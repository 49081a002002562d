//! The four services as processes, with the flags that a local machine needs.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use doorbell_platform::clock;

use crate::process::Spec;

/// What the services have in common on a local machine.
#[derive(Clone, Debug)]
pub struct Environment {
    /// The folder with the binaries.
    pub binaries: PathBuf,
    /// The folder for logs.
    pub logs: PathBuf,
    /// RabbitMQ.
    pub amqp_url: String,
    /// Redis.
    pub redis_url: String,
    /// The key that may do everything.
    pub admin_key: String,
    /// Further environment variables.
    pub extra: Vec<(String, String)>,
}

/// A service and where its admin server listens.
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    /// How to start it.
    pub spec: Spec,
    /// The base URL of its admin server.
    pub admin_url: String,
}

/// One of the services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Publishing over HTTP.
    Producer,
    /// Delivering.
    Dispatcher,
    /// Retrying.
    RetryScheduler,
    /// Subscriptions.
    ControlPlane,
}

impl Kind {
    /// Every one.
    pub const ALL: [Self; 4] =
        [Self::Producer, Self::Dispatcher, Self::RetryScheduler, Self::ControlPlane];

    /// Its name, which its binary has too, after `doorbell-`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Producer => "producer",
            Self::Dispatcher => "dispatcher",
            Self::RetryScheduler => "retry-scheduler",
            Self::ControlPlane => "control-plane",
        }
    }

    /// Its binary.
    #[must_use]
    pub fn binary(self) -> String {
        format!("doorbell-{}", self.as_str())
    }
}

/// Writes a file with a new key for the secrets in Redis, unless there is one; answers the variable
/// that names it.
///
/// # Errors
/// It can't be written.
pub fn encryption_keys(folder: &Path) -> anyhow::Result<(String, String)> {
    let path = folder.join("encryption-keys");
    if !path.exists() {
        std::fs::create_dir_all(folder)?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        writeln!(file, "local:{}", STANDARD.encode(clock::random_bytes::<32>()))?;
    }
    Ok(("DOORBELL_ENCRYPTION_KEYS_FILE".to_owned(), path.display().to_string()))
}

impl Environment {
    /// How to start a service called `name`, with its admin server and (where it has one) its API
    /// on these ports.
    #[must_use]
    pub fn service(
        &self,
        kind: Kind,
        name: &str,
        admin_port: u16,
        api_port: Option<u16>,
    ) -> ServiceSpec {
        let mut environment = self.common(admin_port);
        if let Some(port) = api_port {
            environment.push(("DOORBELL_LISTEN".to_owned(), format!("127.0.0.1:{port}")));
            environment.push(("DOORBELL_ADMIN_KEY".to_owned(), self.admin_key.clone()));
        }
        let spec = Spec {
            name: name.to_owned(),
            program: self.binaries.join(kind.binary()),
            arguments: vec![],
            environment: environment
                .into_iter()
                .map(|(name, value)| (name, OsString::from(value)))
                .collect(),
            log: self.log(name),
            pid_file: None,
            folder: None,
        };
        ServiceSpec { spec, admin_url: format!("http://127.0.0.1:{admin_port}") }
    }

    /// How to prepare the store, once.
    #[must_use]
    pub fn init(&self) -> Spec {
        self.command(Kind::ControlPlane, &["init"])
    }

    /// How to have a service's binary carry out a command.
    #[must_use]
    pub fn command(&self, kind: Kind, arguments: &[&str]) -> Spec {
        let environment =
            self.common(0).into_iter().map(|(name, value)| (name, OsString::from(value))).collect();
        let name = arguments.join("-");
        Spec {
            log: self.log(&name),
            name,
            program: self.binaries.join(kind.binary()),
            arguments: arguments.iter().map(OsString::from).collect(),
            environment,
            pid_file: None,
            folder: None,
        }
    }

    fn log(&self, name: &str) -> PathBuf {
        Path::new(&self.logs).join(format!("{name}.log"))
    }

    fn common(&self, admin_port: u16) -> Vec<(String, String)> {
        let mut environment: Vec<(String, String)> = [
            ("DOORBELL_AMQP_URL", self.amqp_url.clone()),
            ("DOORBELL_REDIS_URL", self.redis_url.clone()),
            ("DOORBELL_ADMIN_LISTEN", format!("127.0.0.1:{admin_port}")),
            ("DOORBELL_ALLOW_TARGETS", "127.0.0.0/8,::1/128".to_owned()),
            ("DOORBELL_ALLOW_HTTP", "true".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .to_vec();
        environment.extend(self.extra.clone());
        environment
    }
}
