//! Starts the producer service.

use std::process::ExitCode;

fn main() -> ExitCode {
    doorbell_producer::service::main()
}
