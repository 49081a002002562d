//! Runs a command beside a whole Doorbell on engines of its own, and ends with what the command ends with.
//!
//! `cargo run -p doorbell-tests --bin with-world -- COMMAND …`; the command finds it by `DOORBELL_CONTROL_URL`,
//! `DOORBELL_PRODUCER_URL` and `DOORBELL_ADMIN_KEY`. The services must be built.
#![expect(clippy::print_stderr, reason = "a program for a terminal")]

use std::process::ExitCode;

use anyhow::Context as _;
use doorbell_tests::{World, engines};

#[tokio::main]
async fn main() -> ExitCode {
    let ran = run().await;
    engines::end().await;
    ran.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

async fn run() -> anyhow::Result<ExitCode> {
    doorbell_platform::tls::install();
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().context("which command? with-world COMMAND …")?;
    engines::prepare()?;
    let world = World::start("outside").await?;
    let status = tokio::process::Command::new(&command)
        .args(arguments)
        .env("DOORBELL_CONTROL_URL", world.control.base())
        .env("DOORBELL_PRODUCER_URL", world.producer.base())
        .env("DOORBELL_ADMIN_KEY", &world.environment.admin_key)
        .status()
        .await
        .with_context(|| format!("cannot run {command}"))?;
    // Whatever the command did, it has killed nothing.
    world.until_all_ready().await?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
