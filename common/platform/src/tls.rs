//! TLS towards RabbitMQ and Redis: the system's trust store, or one authority of the operator's.

use std::path::PathBuf;

use anyhow::Context as _;

/// Chooses the process's cryptography (AWS-LC), before anything uses TLS. Call it first in main.
pub fn install() {
    // An error only says that it was chosen before.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}

/// Which certificate authorities to trust.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// A PEM file's text, instead of the system's trust store.
    pub ca_pem: Option<String>,
}

impl Trust {
    /// Reads the operator's file, if there is one.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn read(path: Option<&PathBuf>) -> anyhow::Result<Self> {
        let ca_pem = path
            .map(|path| {
                std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read --tls-ca-file {}", path.display()))
            })
            .transpose()?;
        Ok(Self { ca_pem })
    }
}
