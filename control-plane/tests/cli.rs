//! The binary from outside.

#[path = "../../tests/shared/cli.rs"]
mod shared;

const BINARY: &str = env!("CARGO_BIN_EXE_doorbell-control-plane");

#[test]
fn help_names_every_flag_and_its_variable() {
    shared::check_help(BINARY);
}

#[test]
fn wrong_arguments_end_with_2_and_one_sentence() {
    shared::check_wrong_arguments(
        BINARY,
        &["--admin-key", "0123456789abcdef"],
        &[&["--admin-key", "short"], &[]],
    );
}

#[test]
fn variables_may_be_empty() {
    shared::check_empty_variables(BINARY, &["--admin-key", "0123456789abcdef"]);
}

#[test]
fn it_goes_on_when_nobody_reads_its_logs() {
    shared::check_nobody_reads(
        BINARY,
        &["--listen", "127.0.0.1:0", "--admin-key", "0123456789abcdef"],
    );
}
