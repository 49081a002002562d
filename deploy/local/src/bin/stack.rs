//! `cargo stack`: the whole of Doorbell on one machine.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it talks to a terminal")]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use doorbell_local::bench::Plan;
use doorbell_local::up::{Options, Purpose};
use doorbell_local::{down, paths, up};

/// Runs the whole of Doorbell on one machine: private RabbitMQ and Redis, the four services, and
/// a demo that shows events arrive.
#[derive(Debug, Parser)]
#[command(name = "cargo stack", version, about)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring everything up, play the demo, and stay until Ctrl-C. What runs where is in
    /// target/stack/stack.json.
    Up {
        /// Leave the demo out.
        #[arg(long)]
        bare: bool,
        /// How many dispatchers to start.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
        dispatchers: u16,
    },
    /// End a stack that was left behind.
    Down,
    /// Measure a fresh stack beside bare loops against the same receiver and broker.
    Bench {
        #[command(flatten)]
        plan: Plan,
        /// How many dispatchers to start.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
        dispatchers: u16,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let result = match Args::parse().command {
        Command::Up { bare, dispatchers } => {
            let purpose = if bare { Purpose::Bare } else { Purpose::Demo };
            up::up(Options { dispatchers, purpose }, say).await
        }
        Command::Bench { plan, dispatchers } => {
            let purpose = Purpose::Bench(plan);
            up::up(Options { dispatchers, purpose }, say).await
        }
        Command::Down => down::down(&paths::stack()).await.map(|ended| match ended {
            0 => say("no stack is up"),
            _ => say(&format!("ended {ended} processes")),
        }),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cargo stack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) {
    println!("{line}");
}
