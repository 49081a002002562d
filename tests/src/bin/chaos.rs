//! Round after round of chaos, each with another seed, until time is up or something was lost.
//!
//! `cargo run -p doorbell-tests --bin chaos -- --minutes 60`; the services must be built. What a round
//! that failed has left is in `target/stories/chaos-SEED` and `target/stories/logs`.
#![expect(clippy::print_stderr, reason = "a program for a terminal")]

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use doorbell_tests::chaos::{self, Engines};
use doorbell_tests::engines;
use futures_util::future::try_join_all;
use tokio::time::Instant;

/// Kills, freezes, stops and disturbs a Doorbell under load, and checks that nothing is lost.
#[derive(Debug, Parser)]
#[command(name = "chaos")]
struct Args {
    /// How long to begin new rounds; 0 plays one.
    #[arg(long, default_value_t = 0)]
    minutes: u64,
    /// How many seconds things happen in each round.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// The first round's seed; the others' follow.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many nodes RabbitMQ has.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=7))]
    nodes: u8,
    /// Whether Redis is a cluster, whose masters are lost, and not one server.
    #[arg(long)]
    redis_cluster: bool,
    /// How many rounds to play at once, each on engines of its own.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    at_once: u8,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(&Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(args: &Args) -> anyhow::Result<()> {
    doorbell_platform::tls::install();
    engines::prepare()?;
    let (begun, time) = (Instant::now(), Duration::from_secs(args.seconds));
    let next = AtomicU64::new(args.seed);
    let rounds = || async {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let engines =
                Engines { nodes: args.nodes.into(), has_redis_cluster: args.redis_cluster };
            let round = chaos::round(seed, time, engines).await;
            let round = round.with_context(|| format!("seed {seed}"))?;
            eprintln!("seed {seed}: {round}");
            if begun.elapsed() >= Duration::from_secs(args.minutes * 60) {
                return anyhow::Ok(());
            }
        }
    };
    try_join_all((0..args.at_once).map(|_| rounds())).await?;
    Ok(())
}
