//! The operator's key, which may do everything: read from a flag or a file, compared in constant
//! time.

use std::fmt;
use std::path::PathBuf;

use clap::Args;
use sha2::Digest as _;
use subtle::ConstantTimeEq as _;

use crate::args::value_or_file;

/// The flags that give the key.
#[derive(Args, Clone)]
pub struct AdminKeyArgs {
    /// The key that may do everything, and with which the first API keys are made. Required, here or as a file.
    #[arg(long, env = "DOORBELL_ADMIN_KEY", hide_env_values = true)]
    admin_key: Option<String>,
    /// A file with the value of --admin-key, which then counts instead.
    #[arg(long, env = "DOORBELL_ADMIN_KEY_FILE")]
    admin_key_file: Option<PathBuf>,
}

impl fmt::Debug for AdminKeyArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdminKeyArgs")
            .field("admin_key_file", &self.admin_key_file)
            .finish_non_exhaustive()
    }
}

impl AdminKeyArgs {
    /// The key.
    ///
    /// # Errors
    /// There is none, it is shorter than 16 characters, or its file can't be read.
    pub fn read(&self) -> anyhow::Result<AdminKey> {
        let key = value_or_file(
            self.admin_key.as_deref(),
            self.admin_key_file.as_ref(),
            "--admin-key-file",
        )?;
        if key.is_empty() {
            anyhow::bail!(
                "no admin key: set --admin-key, DOORBELL_ADMIN_KEY or DOORBELL_ADMIN_KEY_FILE"
            );
        }
        if key.len() < 16 {
            anyhow::bail!("the admin key has fewer than 16 characters: choose a longer one");
        }
        Ok(AdminKey { digest: digest(&key) })
    }
}

/// The operator's key, kept as its digest only.
#[derive(Clone)]
pub struct AdminKey {
    digest: [u8; 32],
}

impl fmt::Debug for AdminKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminKey(***)")
    }
}

impl AdminKey {
    /// Whether it is the key with this digest. Takes the same time for every wrong one.
    pub(super) fn is(&self, digest: &[u8; 32]) -> bool {
        digest.ct_eq(&self.digest).into()
    }
}

/// A key's SHA-256.
pub(super) fn digest(key: &str) -> [u8; 32] {
    sha2::Sha256::digest(key.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_key_itself_is_the_key() {
        let args = |key: Option<&str>| AdminKeyArgs {
            admin_key: key.map(str::to_owned),
            admin_key_file: None,
        };
        assert!(args(None).read().is_err());
        assert!(args(Some("short")).read().is_err());
        let key = args(Some("0123456789abcdef")).read().unwrap();
        assert!(key.is(&digest("0123456789abcdef")));
        assert!(!key.is(&digest("0123456789abcdeF")) && !key.is(&digest("")));
        assert!(!format!("{key:?} {:?}", args(Some("0123456789abcdef"))).contains("0123"));
    }
}
