//! What every service's binary must do from outside: help, and wrong arguments in one sentence.
//! Each service's own `tests/cli.rs` includes this, because only there is its binary known.

use std::process::Command;

fn run(binary: &str, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(binary).args(arguments).output().expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Help names the flags that every service has, and their variables.
pub(crate) fn check_help(binary: &str) {
    let (code, help, _) = run(binary, &["--help"]);
    assert_eq!(code, Some(0));
    let flags = [
        "--amqp-url",
        "--redis-url",
        "--admin-listen",
        "--grace",
        "--log-format",
        "DOORBELL_AMQP_URL_FILE",
    ];
    for flag in flags {
        assert!(help.contains(flag), "{flag}");
    }
}

/// Wrong arguments (those that every service refuses, and these) end with 2 and one sentence.
pub(crate) fn check_wrong_arguments(binary: &str, more: &[&[&str]]) {
    let common: [&[&str]; 4] =
        [&["--nonsense"], &["--grace", "soon"], &["--log-format", "xml"], &["--log", "a=b=c"]];
    for arguments in common.iter().chain(more) {
        let (code, _, error) = run(binary, arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert_eq!(error.trim().lines().count(), 1, "{error}");
    }
}
