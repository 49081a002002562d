//! What is measured, scenario by scenario.

mod growth;
mod neighbours;

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::costs::Costs;
use super::receiver::BUSY;
use super::report::Row;
use super::{Bench, IN_FORCE, Scenario, Way};
use crate::paths;
use crate::state::{StackState, Trace};

/// How long the light load lasts.
const LIGHT: Duration = Duration::from_secs(15);
/// Endpoints of the scenario in which every attempt fails.
const FAILING_ENDPOINTS: u64 = 20;

/// How many POSTs at a time a busy endpoint gets, of so many events.
const BUSY_CONCURRENCY: u32 = 8;
const BUSY_EVENTS: u32 = 3000;

/// Some tenants that publish steadily.
struct Steady {
    tenants: Vec<String>,
    /// Between two events of one tenant.
    pause: Duration,
    /// How many healthy endpoints each has.
    endpoints: u64,
}

impl Steady {
    /// One tenant that publishes so many events a second for so many endpoints.
    fn of(tenant: &str, rate: u64, endpoints: u64) -> Self {
        Self { tenants: vec![tenant.to_owned()], pause: millis(1000 / rate.max(1)), endpoints }
    }
}

impl Bench<'_> {
    pub(super) async fn measure(&self, scenario: Scenario) -> anyhow::Result<Vec<Row>> {
        match scenario {
            Scenario::Rest => self.rest().await,
            Scenario::OneToOne => self.fan_out("one to one", 1).await,
            Scenario::OneToOneHanging => self.one_to_one_beside_hanging().await,
            Scenario::OneToOneHttp => self.one_to_one_over_http().await,
            Scenario::Tls => self.over_tls().await,
            Scenario::FanOut10 => self.fan_out("one to 10", 10).await,
            Scenario::FanOut100 => self.fan_out("one to 100", 100).await,
            Scenario::FanOut1000 => self.fan_out("one to 1000", 1000).await,
            Scenario::Latency => self.latency().await,
            Scenario::Failing => self.failing().await,
            Scenario::HangingNeighbour => self.hanging("hanging neighbour", (32, 2), (1, 50)).await,
            Scenario::HangingTenth => self.hanging("hanging tenth", (900, 1), (100, 1)).await,
            Scenario::HangingMost => self.hanging("hanging most", (400, 1), (600, 1)).await,
            Scenario::HangingFleet => self.hanging("hanging fleet", (32, 2), (40, 50)).await,
            Scenario::HangingFifth => self.hanging_among("hanging fifth", 80, 20).await,
            Scenario::FloodingNeighbour => self.flooding(Way::Amqp).await,
            Scenario::FloodingNeighbourHttp => self.flooding(Way::Http).await,
            Scenario::BusyEndpoint => self.busy_endpoint().await,
            Scenario::DueNeighbour => self.due_neighbour().await,
            Scenario::Outage => self.outage().await,
            Scenario::Growth => self.growth().await,
            Scenario::Filters => self.filters().await,
            Scenario::LargeTenant => self.large_tenant().await,
            Scenario::Broadcast => self.broadcast().await,
            Scenario::Restart => self.restart().await,
        }
    }

    async fn fan_out(&self, name: &str, endpoints: u64) -> anyhow::Result<Vec<Row>> {
        let tenant = format!("bench-{}", name.replace(' ', "-"));
        self.subscribe_all(&tenant, "ok", endpoints, json!({})).await?;
        let events = (self.deliveries / endpoints).max(1);
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        self.publish(&tenant, events).await?;
        let published = start.elapsed();
        self.arrived(&tenant, events * endpoints).await?;
        let mut row = self.row(name, &tenant, start, &costs);
        row.of_reqwest = Some(0.0);
        row.notes.push(format!(
            "published {:.0} a second",
            super::report::per_second(events, published)
        ));
        Ok(vec![row])
    }

    /// One to one beside a few endpoints that hang, and have done so for a while.
    async fn one_to_one_beside_hanging(&self) -> anyhow::Result<Vec<Row>> {
        let hanging = self.tenants("bench-hangs", "hang", 4, 10).await?;
        let publishing = self.publish_steadily(&hanging, 2 * LIGHT);
        let measuring = async {
            tokio::time::sleep(LIGHT / 3).await;
            self.fan_out("one to one beside four that hang", 1).await
        };
        let (published, rows) = tokio::join!(publishing, measuring);
        published?;
        rows
    }

    /// What TLS costs, and what a connection for each POST.
    async fn over_tls(&self) -> anyhow::Result<Vec<Row>> {
        let receiver = &self.receiver;
        let mut rows = Vec::new();
        for (name, tenant, url) in [
            ("one to one, over TLS", "bench-tls", receiver.tls_url("ok", "bench-tls")),
            ("each connection closed", "bench-close", receiver.url("close", "bench-close")),
            ("the same, over TLS", "bench-tls-close", receiver.tls_url("close", "bench-tls-close")),
        ] {
            self.subscribe(tenant, &json!({ "url": url, "events": ["#"] }), 1).await?;
            tokio::time::sleep(IN_FORCE).await;
            let (costs, start) = (Costs::begin(self.stack), Instant::now());
            self.publish(tenant, self.deliveries).await?;
            self.arrived(tenant, self.deliveries).await?;
            let mut row = self.row(name, tenant, start, &costs);
            row.of_reqwest = Some(0.0);
            rows.push(row);
        }
        Ok(rows)
    }

    async fn one_to_one_over_http(&self) -> anyhow::Result<Vec<Row>> {
        let tenant = "bench-http";
        self.subscribe_all(tenant, "ok", 1, json!({})).await?;
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        self.publish_over(Way::Http, tenant, self.deliveries).await?;
        self.arrived(tenant, self.deliveries).await?;
        let mut row = self.row("one to one, over HTTP", tenant, start, &costs);
        row.of_reqwest = Some(0.0);
        Ok(vec![row])
    }

    async fn latency(&self) -> anyhow::Result<Vec<Row>> {
        let steady = Steady::of("bench-light", 20, 1);
        self.subscribe_all("bench-light", "ok", 1, json!({})).await?;
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        let events = self.publish_steadily(&steady, LIGHT).await?;
        self.arrived("bench-light", events).await?;
        Ok(vec![self.row("20 events a second", "bench-light", start, &costs)])
    }

    async fn failing(&self) -> anyhow::Result<Vec<Row>> {
        let (tenant, attempts) = ("bench-failing", 4);
        let retry = json!({"retry": {"schedule": ["1s", "1s", "1s"]}});
        self.subscribe_all(tenant, "fail", FAILING_ENDPOINTS, retry).await?;
        let events = (self.deliveries / FAILING_ENDPOINTS / attempts).max(1);
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        self.publish(tenant, events).await?;
        self.arrived(tenant, events * FAILING_ENDPOINTS * attempts).await?;
        let mut row = self.row("four failing attempts each", tenant, start, &costs);
        // From the publishing: it includes the delays.
        row.times_ms = None;
        row.of_reqwest = Some(0.0);
        row.notes.push("answers are 404, which open no breaker; delays of 1 s between".to_owned());
        Ok(vec![row])
    }

    /// An endpoint that gets more than it can take: most of it is held, and comes back at its turn.
    async fn busy_endpoint(&self) -> anyhow::Result<Vec<Row>> {
        let tenant = "bench-busy";
        let few = json!({ "max_concurrency": BUSY_CONCURRENCY });
        self.subscribe_all(tenant, "busy", 1, few).await?;
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        self.publish(tenant, u64::from(BUSY_EVENTS)).await?;
        self.arrived(tenant, u64::from(BUSY_EVENTS)).await?;
        let mut row = self.row("more than a busy endpoint can take", tenant, start, &costs);
        let at_best = BUSY * BUSY_EVENTS / BUSY_CONCURRENCY;
        row.notes.push(format!(
            "{:.2} of the time that {BUSY_CONCURRENCY} at a time take of {} ms each",
            start.elapsed().div_duration_f64(at_best),
            BUSY.as_millis()
        ));
        Ok(vec![row])
    }

    /// Kills the dispatcher in the middle of what `fan_out` measures.
    async fn restart(&self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for endpoints in [1, 100] {
            let tenant = format!("restart-{endpoints}");
            for n in 0..endpoints {
                let url = format!("{tenant}-{n}");
                self.subscribe(&tenant, &self.subscription("once", &url), 1).await?;
            }
            tokio::time::sleep(IN_FORCE).await;
            let tallies: Vec<_> =
                (0..endpoints).map(|n| self.receiver.tally(&format!("{tenant}-{n}"))).collect();
            let arrived = || tallies.iter().map(|tally| tally.count()).sum::<u64>();
            let events = (self.deliveries / endpoints).max(1);
            let start = Instant::now();
            let killing = async {
                while arrived() < events * endpoints / 3 {
                    tokio::time::sleep(millis(1)).await;
                }
                kill_dispatcher()?;
                // Until something comes that was not on its way.
                tokio::time::sleep(millis(100)).await;
                let (killed, before) = (Instant::now(), arrived());
                while arrived() == before {
                    anyhow::ensure!(killed.elapsed() < super::PATIENCE, "nothing comes any more");
                    tokio::time::sleep(millis(1)).await;
                }
                anyhow::Ok(killed.elapsed() + millis(100))
            };
            let (published, silent) = tokio::join!(self.publish(&tenant, events), killing);
            published?;
            let silent = silent?;
            for n in 0..endpoints {
                self.arrived(&format!("{tenant}-{n}"), events).await?;
            }
            let name = format!("kill -9 amid one to {endpoints}");
            let mut row = Row::new(&name, arrived(), start.elapsed());
            let duplicates: u64 = tallies.iter().map(|tally| tally.duplicates()).sum();
            row.notes.push(format!(
                "all arrived, {duplicates} of them twice; the first came {:.1} s after the kill",
                silent.as_secs_f64()
            ));
            rows.push(row);
        }
        Ok(rows)
    }

    /// A subscription to everything, for an endpoint that behaves so.
    fn subscription(&self, behaviour: &str, tally: &str) -> Value {
        json!({ "url": self.receiver.url(behaviour, tally), "events": ["#"] })
    }

    /// Makes tenants with one endpoint each that behaves so; each is to publish so many events a
    /// second.
    async fn tenants(
        &self,
        label: &str,
        behaviour: &str,
        count: u64,
        rate: u64,
    ) -> anyhow::Result<Steady> {
        let tenants: Vec<String> = (0..count).map(|n| format!("{label}-{n}")).collect();
        for tenant in &tenants {
            self.subscribe(tenant, &self.subscription(behaviour, tenant), 1).await?;
        }
        tokio::time::sleep(IN_FORCE).await;
        Ok(Steady { tenants, pause: millis(1000 / rate.max(1)), endpoints: 1 })
    }

    /// Subscribes so many endpoints to one tenant, all in its tally, and waits until that is in
    /// force.
    async fn subscribe_all(
        &self,
        tenant: &str,
        behaviour: &str,
        endpoints: u64,
        more: Value,
    ) -> anyhow::Result<()> {
        let mut body = self.subscription(behaviour, tenant);
        if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
            body.extend(more);
        }
        self.subscribe(tenant, &body, endpoints).await?;
        tokio::time::sleep(IN_FORCE).await;
        Ok(())
    }

    async fn all_arrived(&self, steady: &Steady, published: u64) -> anyhow::Result<()> {
        let each = published / u64::try_from(steady.tenants.len())?.max(1);
        for tenant in &steady.tenants {
            self.arrived(tenant, each * steady.endpoints).await?;
        }
        Ok(())
    }

    /// Each tenant publishes one event, then all pause, and so on for that time; answers how many
    /// that were. Tenants are spread over the pause.
    async fn publish_steadily(&self, steady: &Steady, time: Duration) -> anyhow::Result<u64> {
        let count = u32::try_from(steady.tenants.len())?.max(1);
        let apart = steady.pause / count;
        let rounds = u32::try_from(time.as_millis() / steady.pause.as_millis().max(1))?;
        let start = Instant::now();
        let publishing = (0..rounds * count).map(|n| {
            let tenant = &steady.tenants[usize::try_from(n % count).unwrap_or_default()];
            async move {
                tokio::time::sleep_until(start + apart * n).await;
                self.publish_one(tenant).await
            }
        });
        let publishing = futures_util::stream::iter(publishing).buffer_unordered(10_000);
        let results: Vec<anyhow::Result<()>> = publishing.collect().await;
        results.into_iter().collect::<anyhow::Result<()>>()?;
        Ok(u64::from(rounds * count))
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Kills the first dispatcher as it is now: it may have been started again since the stack came up.
fn kill_dispatcher() -> anyhow::Result<()> {
    let state: StackState = serde_json::from_slice(&fs::read(paths::stack().join("stack.json"))?)?;
    let pid = state.pids.get("dispatcher").copied().context("there is no dispatcher")?;
    Trace::of(pid).context("the dispatcher does not run")?.signal(Signal::SIGKILL);
    Ok(())
}
