//! The flags that every service has. `--help` is the reference; each flag has an environment
//! variable, and what may hold a password may come from a file.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Args, ValueEnum};
use doorbell_common::duration::DurationText;

/// Flags of every service.
#[derive(Args, Clone)]
pub struct CommonArgs {
    /// RabbitMQ: one URL, or the nodes of a cluster separated by commas (amqp or amqps).
    #[arg(
        long,
        global = true,
        env = "DOORBELL_AMQP_URL",
        default_value = "amqp://127.0.0.1:5672/%2f",
        hide_env_values = true
    )]
    pub amqp_url: String,
    /// A file with the value of --amqp-url, which then counts instead.
    #[arg(long, global = true, env = "DOORBELL_AMQP_URL_FILE")]
    pub amqp_url_file: Option<PathBuf>,
    /// Redis: one URL, or the nodes of a cluster separated by commas (redis or rediss).
    #[arg(
        long,
        global = true,
        env = "DOORBELL_REDIS_URL",
        default_value = "redis://127.0.0.1:6379/0",
        hide_env_values = true
    )]
    pub redis_url: String,
    /// A file with the value of --redis-url, which then counts instead.
    #[arg(long, global = true, env = "DOORBELL_REDIS_URL_FILE")]
    pub redis_url_file: Option<PathBuf>,
    /// What every Redis key begins with.
    #[arg(long, global = true, env = "DOORBELL_REDIS_PREFIX", default_value = "doorbell")]
    pub redis_prefix: String,
    /// A PEM file of certificate authorities to trust for amqps and rediss, instead of the system's.
    #[arg(long, global = true, env = "DOORBELL_TLS_CA_FILE")]
    pub tls_ca_file: Option<PathBuf>,
    /// Where /livez, /readyz and /metrics are served.
    #[arg(long, global = true, env = "DOORBELL_ADMIN_LISTEN", default_value = "0.0.0.0:9090")]
    pub admin_listen: std::net::SocketAddr,
    /// How logs are written.
    #[arg(long, global = true, env = "DOORBELL_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Which logs are written, by target. (What the clients of RabbitMQ and Redis see, our own logs say with its cause.)
    #[arg(long, global = true, env = "DOORBELL_LOG", default_value = "info,lapin=off,redis=off")]
    pub log: String,
    /// How long a stop may take: at SIGTERM, work in flight is finished or handed on inside this time.
    #[arg(long, global = true, env = "DOORBELL_GRACE", default_value = "45s")]
    pub grace: DurationText,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// JSON objects, one a line.
    Json,
}

/// Without URLs, which may hold passwords.
impl fmt::Debug for CommonArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommonArgs")
            .field("redis_prefix", &self.redis_prefix)
            .finish_non_exhaustive()
    }
}

impl CommonArgs {
    /// RabbitMQ's URLs.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn amqp_urls(&self) -> anyhow::Result<Vec<String>> {
        Ok(split(&value_or_file(
            Some(&self.amqp_url),
            self.amqp_url_file.as_ref(),
            "--amqp-url-file",
        )?))
    }

    /// Redis's URLs.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn redis_urls(&self) -> anyhow::Result<Vec<String>> {
        Ok(split(&value_or_file(
            Some(&self.redis_url),
            self.redis_url_file.as_ref(),
            "--redis-url-file",
        )?))
    }

    /// How long a stop may take.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.grace.0
    }
}

fn split(urls: &str) -> Vec<String> {
    urls.split(',').map(str::trim).filter(|url| !url.is_empty()).map(str::to_owned).collect()
}

/// The text of the file, if there is one, else the value, else nothing.
///
/// # Errors
/// The file can't be read.
pub fn value_or_file(
    value: Option<&str>,
    file: Option<&PathBuf>,
    flag: &str,
) -> anyhow::Result<String> {
    match file {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read {flag} {}", path.display()))?;
            Ok(text.trim().to_owned())
        }
        None => Ok(value.unwrap_or_default().to_owned()),
    }
}
