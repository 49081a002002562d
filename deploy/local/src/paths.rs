//! Where things lie in the workspace.

use std::path::{Path, PathBuf};

/// The workspace's own folder.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here).to_path_buf()
}

/// Everything that the stack writes.
#[must_use]
pub fn stack() -> PathBuf {
    workspace().join("target/stack")
}
