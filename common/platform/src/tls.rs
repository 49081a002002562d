//! TLS towards RabbitMQ and Redis: the system's trust store, or one authority of the operator's.

use std::path::PathBuf;

use anyhow::Context as _;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Chooses the process's cryptography (AWS-LC), before anything uses TLS. Call it first in main.
pub fn install() {
    // An error only says that it was chosen before.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
}

/// Which certificate authorities to trust.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    /// A PEM file's text, instead of the system's trust store.
    pub(crate) ca_pem: Option<String>,
}

impl Trust {
    /// Reads the operator's file, if there is one.
    ///
    /// # Errors
    /// The file can't be read, or holds no certificate.
    pub fn read(path: Option<&PathBuf>) -> anyhow::Result<Self> {
        let Some(path) = path else { return Ok(Self::default()) };
        let what = || format!("cannot read --tls-ca-file {}", path.display());
        let text = std::fs::read_to_string(path).with_context(what)?;
        Self::of(text).with_context(what)
    }

    /// Trusts the authorities in this PEM file's text.
    ///
    /// # Errors
    /// It is not understood, or holds no certificate.
    pub fn of(text: String) -> anyhow::Result<Self> {
        let certificates = CertificateDer::pem_slice_iter(text.as_bytes());
        let certificates = certificates.collect::<Result<Vec<_>, _>>()?;
        anyhow::ensure!(!certificates.is_empty(), "it holds no certificate (PEM)");
        Ok(Self { ca_pem: Some(text) })
    }
}
