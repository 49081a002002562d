//! An error as one sentence.

/// The error and its causes, each said once: clients' errors often repeat theirs.
#[must_use]
pub fn sentence(error: &anyhow::Error) -> String {
    let mut said = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if said.contains(&cause) {
            continue;
        }
        if !said.is_empty() {
            said.push_str(": ");
        }
        said.push_str(&cause);
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("IO error: {0}")]
    struct Repeating(#[source] std::io::Error);

    #[test]
    fn a_cause_is_said_once() {
        let reset = Repeating(std::io::Error::other("connection reset"));
        let error = anyhow::Error::new(reset).context("cannot connect to a:1");
        assert_eq!(sentence(&error), "cannot connect to a:1: IO error: connection reset");
        assert_eq!(sentence(&anyhow::anyhow!("alone")), "alone");
    }
}
