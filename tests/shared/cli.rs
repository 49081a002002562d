//! What every service's binary must do from outside: help, and wrong arguments in one sentence.
//! Each service's own `tests/cli.rs` includes this, because only there is its binary known.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

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

/// Wrong arguments (those that every service refuses beside what it cannot do without, and these) end with 2 and one
/// sentence.
pub(crate) fn check_wrong_arguments(binary: &str, needed: &[&str], more: &[&[&str]]) {
    let common: [&[&str]; 11] = [
        &["--nonsense"],
        &["--grace", "soon"],
        &["--log-format", "xml"],
        &["--log", "a=b=c"],
        &["--amqp-url", "rabbitmq"],
        &["--amqp-url", "http://rabbitmq"],
        &["--amqp-url", ""],
        &["--amqp-url-file", "/no/such/file"],
        &["--redis-url", "redis"],
        &["--tls-ca-file", "/no/such/file"],
        &["--tls-ca-file", "/dev/null"],
    ];
    let common = common.iter().map(|arguments| [needed, arguments].concat());
    for arguments in common.chain(more.iter().map(|arguments| arguments.to_vec())) {
        let (code, _, error) = run(binary, &arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert_eq!(error.trim().lines().count(), 1, "{error}");
    }
}

/// A variable that is empty is as good as none.
pub(crate) fn check_empty_variables(binary: &str, needed: &[&str]) {
    let empty = [
        "DOORBELL_AMQP_URL_FILE",
        "DOORBELL_TLS_CA_FILE",
        "DOORBELL_GRACE",
        "DOORBELL_LOG_FORMAT",
        "DOORBELL_ADMIN_LISTEN",
        "DOORBELL_REDIS_PREFIX",
    ];
    let output = Command::new(binary)
        .args(needed)
        .args(["--redis-url", "nonsense"])
        .envs(empty.map(|name| (name, "")))
        .output()
        .expect("the binary runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(2) && error.contains("--redis-url"), "{error}");
}

/// Whoever reads the logs may go away: the service goes on, and stops when it is told to. Nor does it
/// end in another way when there is nobody to read why.
pub(crate) fn check_nobody_reads(binary: &str, more: &[&str]) {
    // Nobody is there: not even someone else's engines.
    let nowhere = ["--amqp-url", "amqp://127.0.0.1:1/%2f", "--redis-url", "redis://127.0.0.1:1/"];
    let mut service = Command::new(binary)
        .args(nowhere)
        .args(["--admin-listen", "127.0.0.1:0"])
        .args(more)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut line = String::new();
    let mut logs = BufReader::new(service.stderr.take().expect("it logs"));
    logs.read_line(&mut line).expect("it says something");
    drop(logs);
    let told = Command::new("kill").args(["-TERM", &service.id().to_string()]).status();
    assert!(told.expect("kill runs").success(), "it was gone");
    assert_eq!(service.wait().expect("it ends").code(), Some(0));
    let mut wrong = Command::new(binary)
        .arg("--no-such-flag")
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    drop(wrong.stderr.take());
    assert_eq!(wrong.wait().expect("it ends").code(), Some(2));
}
