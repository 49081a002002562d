//! The benchmark: how many deliveries a second, how long each takes and what it costs, beside bare
//! loops against the same receiver and the same broker in the same run. Everything is on one
//! machine, so only what is compared within one run means something.

mod costs;
mod raw;
mod receiver;
mod report;
mod scenarios;

use std::time::Duration;

use anyhow::Context as _;
use clap::ValueEnum;
use doorbell_producer::{NewEvent, Publisher};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::certificates::Authority;
use crate::paths;
use crate::state::{StackState, write_whole};
use costs::{Costs, peaks};
use receiver::Receiver;
use report::{Percentiles, Row};

/// Bytes of data in each event.
const DATA_BYTES: usize = 1000;
/// Publishes in flight at once.
const PUBLISHES: usize = 500;
/// How long a scenario may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// A change is in force everywhere within two seconds.
const IN_FORCE: Duration = Duration::from_secs(2);

/// What can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Nothing at all: what the services do by themselves.
    Rest,
    /// Each event for one endpoint, published over AMQP.
    OneToOne,
    /// The same, published over HTTP.
    OneToOneHttp,
    /// Over AMQP again, beside four endpoints that hang.
    OneToOneHanging,
    /// One to one over TLS, too, and with endpoints that close each connection.
    Tls,
    /// Each event for ten endpoints.
    FanOut10,
    /// Each event for a hundred endpoints.
    FanOut100,
    /// Each event for a thousand endpoints.
    FanOut1000,
    /// 20 events a second: how long each takes.
    Latency,
    /// Every attempt fails and is made again: what the way through the retry-scheduler costs.
    Failing,
    /// Healthy tenants, alone and beside one whose endpoint hangs.
    HangingNeighbour,
    /// 900 healthy tenants, alone and beside 100 whose endpoints hang.
    HangingTenth,
    /// 400 healthy tenants, alone and beside 600 whose endpoints hang.
    HangingMost,
    /// Healthy tenants, alone and beside 40 that publish much more, whose endpoints hang.
    HangingFleet,
    /// A tenant's 80 healthy endpoints, alone and beside 20 of the same tenant that hang.
    HangingFifth,
    /// Healthy tenants beside one that publishes everything at once for a slow endpoint.
    FloodingNeighbour,
    /// The same flood, published over HTTP.
    FloodingNeighbourHttp,
    /// Events that come at once for an endpoint that takes few at a time: how long it takes until it has them all.
    BusyEndpoint,
    /// Retries of healthy tenants, alone and beside one all of whose events fall due at once.
    DueNeighbour,
    /// 20,000 events for an endpoint that is out for a while, and others beside it.
    Outage,
    /// What an event costs as its tenant has more subscriptions that do not want it, and as there
    /// are more tenants.
    Growth,
    /// A tenant with 1,000 subscriptions, of which one wants the event: by its pattern, or by its filter.
    Filters,
    /// A tenant with as many subscriptions as a broadcast is for.
    LargeTenant,
    /// One event for everyone.
    Broadcast,
    /// The dispatcher is killed under full load, and started again.
    Restart,
}

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq, clap::Args)]
pub struct Plan {
    /// What to measure; everything, if nothing is named.
    #[arg(value_enum)]
    scenarios: Vec<Scenario>,
    /// How many deliveries each scenario makes that has no other measure.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    deliveries: u32,
    /// How many subscriptions a broadcast is for, a large tenant has, and are there at rest.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(100..=10_000_000))]
    subscriptions: u32,
    /// How many seconds an outage lasts.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(10..=3600))]
    outage: u64,
}

/// How events are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Amqp,
    Http,
}

/// Measures a running stack, whose dispatchers trust this authority; `say` hears each line. Writes `target/bench.json` at the end.
///
/// # Errors
/// Something could not be set up, or deliveries did not all arrive.
pub async fn run(
    stack: &StackState,
    plan: &Plan,
    authority: &Authority,
    say: impl Fn(&str),
) -> anyhow::Result<()> {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    say(&format!("bench: events of {DATA_BYTES} bytes, {cores} cores for everything"));
    let bench = Bench {
        stack,
        receiver: Receiver::start(authority).await?,
        http: reqwest::Client::builder().no_proxy().pool_max_idle_per_host(PUBLISHES).build()?,
        publisher: Publisher::connect(&stack.amqp_url).await?,
        deliveries: u64::from(plan.deliveries),
        plan,
    };
    let mut rows: Vec<Row> = Vec::new();
    let mut tell = |row: Row| {
        for line in row.lines() {
            say(&line);
        }
        rows.push(row);
    };
    let bare = bench.raw_reqwest().await?;
    let reqwest = bare.per_second;
    tell(bare);
    tell(bench.raw_hyper().await?);
    for row in bench.raw_broker().await? {
        tell(row);
    }
    let scenarios = match plan.scenarios.as_slice() {
        [] => Scenario::value_variants(),
        some => some,
    };
    for scenario in scenarios {
        let measured = bench.measure(*scenario).await;
        for mut row in measured.with_context(|| format!("scenario {scenario:?}"))? {
            if row.of_reqwest.is_some() {
                row.of_reqwest = Some(row.per_second / reqwest);
            }
            tell(row);
        }
    }
    bench.publisher.close().await;
    let file = paths::workspace().join("target/bench.json");
    write_whole(&file, &json!({ "cores": cores, "data_bytes": DATA_BYTES, "rows": rows }))?;
    say(&format!("  all of this: {}", file.display()));
    Ok(())
}

/// What every scenario works with.
struct Bench<'a> {
    stack: &'a StackState,
    receiver: Receiver,
    http: reqwest::Client,
    publisher: Publisher,
    deliveries: u64,
    plan: &'a Plan,
}

impl Bench<'_> {
    /// Creates so many equal subscriptions of a tenant in one call.
    async fn subscribe(&self, tenant: &str, body: &Value, count: u64) -> anyhow::Result<()> {
        let path = self.stack.control_plane_url.clone();
        let path = format!("{path}/v1/tenants/{tenant}/subscriptions/bulk");
        let lines = format!("{body}\n").repeat(usize::try_from(count)?);
        let request = self.http.post(path).bearer_auth(&self.stack.admin_key);
        let request = request.header("content-type", "application/x-ndjson").body(lines);
        let mut answer = request.send().await?.error_for_status()?;
        // The last line is all that matters.
        let mut end = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            end.extend_from_slice(&chunk);
            end.drain(..end.len().saturating_sub(1000));
        }
        let end = String::from_utf8_lossy(&end).into_owned();
        let expected = json!({ "created": count, "refused": 0 }).to_string();
        anyhow::ensure!(end.trim_end().ends_with(&expected), "not all were created: {end}");
        Ok(())
    }

    /// Publishes so many events of a tenant over AMQP, as fast as confirms allow.
    async fn publish(&self, tenant: &str, count: u64) -> anyhow::Result<()> {
        self.publish_to(count, |_| tenant.to_owned()).await
    }

    /// The same, each event of a tenant of its own.
    async fn publish_to(&self, count: u64, tenant: impl Fn(u64) -> String) -> anyhow::Result<()> {
        let publishing = futures_util::stream::iter(0..count)
            .map(|n| {
                let tenant = tenant(n);
                async move { self.publish_one(&tenant).await }
            })
            .buffer_unordered(PUBLISHES);
        let failed = publishing.filter(|result| std::future::ready(result.is_err())).count().await;
        anyhow::ensure!(failed == 0, "{failed} events were not confirmed");
        Ok(())
    }

    async fn publish_one(&self, tenant: &str) -> anyhow::Result<()> {
        let event = NewEvent::new(tenant, "bench.event", self.receiver.data(DATA_BYTES));
        self.publisher.publish(&event).await?;
        Ok(())
    }

    async fn publish_over(&self, way: Way, tenant: &str, count: u64) -> anyhow::Result<()> {
        match way {
            Way::Amqp => self.publish(tenant, count).await,
            Way::Http => self.publish_over_http(tenant, count, None).await,
        }
    }

    /// The same over HTTP, perhaps for a certain time.
    async fn publish_over_http(
        &self,
        tenant: &str,
        count: u64,
        deliver_at: Option<&str>,
    ) -> anyhow::Result<()> {
        let deliver_at = json!(deliver_at);
        let url = format!("{}/v1/events", self.stack.producer_url);
        let publishing = futures_util::stream::iter(0..count)
            .map(|_| async {
                let data = String::from_utf8(self.receiver.data(DATA_BYTES))?;
                let body = format!(
                    r#"{{"tenant":"{tenant}","type":"bench.event","deliver_at":{deliver_at},"data":{data}}}"#
                );
                let request = self.http.post(&url).bearer_auth(&self.stack.admin_key);
                let request = request.header("content-type", "application/json").body(body);
                request.send().await?.error_for_status()?.bytes().await?;
                anyhow::Ok(())
            })
            .buffer_unordered(PUBLISHES);
        let failed = publishing.filter(|result| std::future::ready(result.is_err())).count().await;
        anyhow::ensure!(failed == 0, "{failed} events were not accepted");
        Ok(())
    }

    /// Waits until so many have arrived under a name.
    async fn arrived(&self, tally: &str, expected: u64) -> anyhow::Result<()> {
        let (tally, deadline) = (self.receiver.tally(tally), Instant::now() + PATIENCE);
        while tally.count() < expected {
            let seen = tally.count();
            anyhow::ensure!(
                Instant::now() < deadline,
                "{seen} of {expected} arrived within {PATIENCE:?}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// A row of deliveries that began then, with their times and costs.
    fn row(&self, name: &str, tally: &str, start: Instant, costs: &Costs) -> Row {
        let (time, tally) = (start.elapsed(), self.receiver.tally(tally));
        let mut row = Row::new(name, tally.count(), time);
        row.times_ms = Percentiles::of(tally.take_times());
        row.costing(&costs.since(self.stack), peaks(self.stack))
    }
}
