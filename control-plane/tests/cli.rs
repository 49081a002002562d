//! The binary from outside: help, and wrong arguments in one sentence.

use std::process::Command;

fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_doorbell-control-plane"))
        .args(arguments)
        .output()
        .expect("the binary runs");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn help_names_every_flag_and_its_variable() {
    let (code, help, _) = run(&["--help"]);
    assert_eq!(code, Some(0));
    for flag in [
        "--amqp-url",
        "--redis-url",
        "--admin-listen",
        "--grace",
        "--log-format",
        "DOORBELL_AMQP_URL_FILE",
    ] {
        assert!(help.contains(flag), "{flag}");
    }
}

#[test]
fn wrong_arguments_end_with_2_and_one_sentence() {
    for arguments in [
        &["--nonsense"][..],
        &["--grace", "soon"],
        &["--log-format", "xml"],
        &["--log", "a=b=c"],
        &["--admin-key", "short"],
        &[],
    ] {
        let (code, _, error) = run(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert_eq!(error.trim().lines().count(), 1, "{error}");
    }
}
