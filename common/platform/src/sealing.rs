//! The flag that names the keys with which secrets are sealed. Dispatcher and control-plane must have
//! the same keys.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use doorbell_common::sealing::SealingKeys;

/// Flags of the services that have a use for secrets.
#[derive(Args, Clone, Debug)]
pub struct SealingArgs {
    /// A file of keys that encrypt signing secrets and header values in Redis, a line "id:base64 of 32 bytes" each; the first encrypts, all decrypt. Without it they are kept in clear.
    #[arg(long, env = "DOORBELL_ENCRYPTION_KEYS_FILE")]
    encryption_keys_file: Option<PathBuf>,
}

impl SealingArgs {
    /// The keys; none, if there is no file.
    ///
    /// # Errors
    /// The file can't be read, or is no list of keys.
    pub fn read(&self) -> anyhow::Result<SealingKeys> {
        let Some(path) = &self.encryption_keys_file else { return Ok(SealingKeys::default()) };
        let file = || format!("--encryption-keys-file {}", path.display());
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", file()))?;
        SealingKeys::parse(&text).with_context(file)
    }
}
