//! TLS towards endpoints: whose certificates are trusted.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use super::sessions::Sessions;

/// Trusts the authorities of the system and those of this PEM file.
///
/// # Errors
/// The file can't be read or holds none, or there is no authority at all.
pub(crate) fn config(ca_file: Option<&Path>) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    // Those of the system that are not understood are none that we could trust.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        let what = || format!("cannot read --endpoint-ca-file {}", path.display());
        let before = roots.len();
        for certificate in CertificateDer::pem_file_iter(path).with_context(what)? {
            roots.add(certificate.with_context(what)?).with_context(what)?;
        }
        anyhow::ensure!(
            roots.len() > before,
            "--endpoint-ca-file {} holds no certificate (PEM)",
            path.display()
        );
    }
    anyhow::ensure!(
        !roots.is_empty(),
        "this system has no certificate authorities, and no endpoint could be trusted: install them (ca-certificates), or see --endpoint-ca-file"
    );
    let provider = CryptoProvider::get_default().context("no cryptography was chosen")?;
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::store(Arc::new(Sessions::default()));
    Ok(config)
}
