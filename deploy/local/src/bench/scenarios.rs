//! What is measured, scenario by scenario.

use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::costs::{Costs, peaks};
use super::report::{Percentiles, Row};
use super::{Bench, IN_FORCE, Scenario};
use crate::paths;
use crate::state::{StackState, Trace};

/// How long the light load lasts.
const LIGHT: Duration = Duration::from_secs(15);
/// How long healthy tenants are watched alone.
const ALONE: Duration = Duration::from_secs(20);
/// How long they are watched beside others.
const BESIDE: Duration = Duration::from_secs(60);
/// Endpoints of the scenario in which every attempt fails.
const FAILING_ENDPOINTS: u64 = 20;
/// Tenants beside a flood.
const BESIDE_FLOOD: u64 = 32;
/// How long an endpoint is out, and how many events wait for it meanwhile.
const OUTAGE: Duration = Duration::from_secs(120);
const WAITING: u64 = 20_000;
/// A tenant that is disturbed no more than this is undisturbed by a flood, in milliseconds.
const UNDISTURBED_MS: f64 = 250.0;

/// Some tenants that publish steadily.
struct Steady {
    tenants: Vec<String>,
    /// Between two events of one tenant.
    pause: Duration,
}

impl Bench<'_> {
    pub(super) async fn measure(&self, scenario: Scenario) -> anyhow::Result<Vec<Row>> {
        match scenario {
            Scenario::OneToOne => self.fan_out("one to one", 1).await,
            Scenario::OneToOneHttp => self.one_to_one_over_http().await,
            Scenario::FanOut10 => self.fan_out("one to 10", 10).await,
            Scenario::FanOut100 => self.fan_out("one to 100", 100).await,
            Scenario::FanOut1000 => self.fan_out("one to 1000", 1000).await,
            Scenario::Latency => self.latency().await,
            Scenario::Failing => self.failing().await,
            Scenario::HangingNeighbour => self.hanging("hanging neighbour", (32, 2), (1, 50)).await,
            Scenario::HangingTenth => self.hanging("hanging tenth", (900, 1), (100, 1)).await,
            Scenario::FloodingNeighbour => self.flooding().await,
            Scenario::Outage => self.outage().await,
            Scenario::Growth => self.growth().await,
            Scenario::Broadcast => self.broadcast().await,
            Scenario::Restart => self.restart().await,
        }
    }

    async fn fan_out(&self, name: &str, endpoints: u64) -> anyhow::Result<Vec<Row>> {
        let tenant = format!("bench-{endpoints}");
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

    async fn one_to_one_over_http(&self) -> anyhow::Result<Vec<Row>> {
        let tenant = "bench-http";
        self.subscribe_all(tenant, "ok", 1, json!({})).await?;
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        self.publish_over_http(tenant, self.deliveries).await?;
        self.arrived(tenant, self.deliveries).await?;
        let mut row = self.row("one to one, over HTTP", tenant, start, &costs);
        row.of_reqwest = Some(0.0);
        Ok(vec![row])
    }

    async fn latency(&self) -> anyhow::Result<Vec<Row>> {
        let steady = Steady { tenants: vec!["bench-light".to_owned()], pause: millis(50) };
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

    /// So many healthy tenants with so many events a second each, alone and then beside so many
    /// whose endpoints hang.
    async fn hanging(
        &self,
        name: &str,
        (healthy, their_rate): (u64, u64),
        (hanging, rate): (u64, u64),
    ) -> anyhow::Result<Vec<Row>> {
        let label = name.replace(' ', "-");
        let healthy = self.tenants(&label, "ok", healthy, their_rate).await?;
        let hanging = self.tenants(&format!("{label}-hangs"), "hang", hanging, rate).await?;
        let mut alone = self.watch(&healthy, &[], ALONE).await?;
        alone.name = format!("{name}: alone");
        let mut beside = self.watch(&healthy, &[&hanging], BESIDE).await?;
        beside.name = format!("{name}: beside");
        let p99 = |row: &Row| row.times_ms.map_or(0.0, |times| times.p99);
        let worse = p99(&beside) / p99(&alone).max(0.001);
        beside.notes.push(format!("p99 is {worse:.2} of what it is alone"));
        Ok(vec![alone, beside])
    }

    async fn flooding(&self) -> anyhow::Result<Vec<Row>> {
        let steady = self.tenants("flood-beside", "ok", BESIDE_FLOOD, 5).await?;
        self.subscribe_all("flood", "slow", 1, json!({})).await?;
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        let (published, flooded) = tokio::join!(
            self.publish_steadily(&steady, BESIDE),
            self.publish("flood", self.deliveries)
        );
        flooded?;
        self.all_arrived(&steady, published?).await?;
        let mut p99s = Vec::new();
        let mut times = Vec::new();
        for tenant in &steady.tenants {
            let mine = self.receiver.tally(tenant).take_times();
            p99s.extend(Percentiles::of(mine.clone()).map(|times| times.p99));
            times.extend(mine);
        }
        p99s.sort_unstable_by(f64::total_cmp);
        let undisturbed = p99s.iter().filter(|p99| **p99 <= UNDISTURBED_MS).count();
        let count = u64::try_from(times.len())?;
        let mut row = Row::new("beside a flood", count, start.elapsed());
        row.times_ms = Percentiles::of(times);
        row = row.costing(&costs.since(self.stack), peaks(self.stack));
        row.notes.push(format!(
            "{} events at once for an endpoint that takes a second, of which {} arrived meanwhile",
            self.deliveries,
            self.receiver.tally("flood").count()
        ));
        row.notes.push(format!(
            "{undisturbed} of {} tenants at most {UNDISTURBED_MS} ms at p99; the worst {:.0} ms",
            p99s.len(),
            p99s.last().copied().unwrap_or_default()
        ));
        Ok(vec![row])
    }

    async fn outage(&self) -> anyhow::Result<Vec<Row>> {
        let steady = self.tenants("outage-beside", "ok", BESIDE_FLOOD, 2).await?;
        // Those that were tried in vain are soon tried again.
        let retry = json!({"retry": {"fixed": {"delay": "5s", "attempts": 100}}});
        self.subscribe_all("outage", "out", 1, retry).await?;
        self.receiver.take_out(true);
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        let (beside, flooded) =
            tokio::join!(self.publish_steadily(&steady, OUTAGE), self.publish("outage", WAITING));
        flooded?;
        let in_vain = self.receiver.take_out(false);
        let back = Instant::now();
        self.arrived("outage", WAITING).await?;
        let drained = back.elapsed();
        self.all_arrived(&steady, beside?).await?;
        let times: Vec<u64> = steady
            .tenants
            .iter()
            .flat_map(|tenant| self.receiver.tally(tenant).take_times())
            .collect();
        let mut row = Row::new("beside an outage", u64::try_from(times.len())?, start.elapsed());
        row.times_ms = Percentiles::of(times);
        row = row.costing(&costs.since(self.stack), peaks(self.stack));
        row.notes.push(format!(
            "{WAITING} events for an endpoint that was out for {} s: {in_vain} attempts meanwhile, all delivered {:.0} s after its return",
            OUTAGE.as_secs(),
            drained.as_secs_f64()
        ));
        Ok(vec![row])
    }

    async fn growth(&self) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        for others in [10, 1_000, 100_000] {
            let tenant = format!("grown-{others}");
            let mut body = self.subscription("ok", "others");
            body["events"] = json!(["others.#", "another.*.one"]);
            self.subscribe(&tenant, &body, others).await?;
            self.subscribe_all(&tenant, "ok", 1, json!({})).await?;
            let (costs, start) = (Costs::begin(self.stack), Instant::now());
            self.publish(&tenant, self.deliveries / 4).await?;
            self.arrived(&tenant, self.deliveries / 4).await?;
            let name = format!("one to one beside {others}");
            rows.push(self.row(&name, &tenant, start, &costs));
        }
        for tenants in [10, 1_000, 100_000] {
            rows.extend(self.many_tenants(tenants).await?);
        }
        Ok(rows)
    }

    /// Tenants with a subscription each: the first event of each, for which that must be read, and
    /// later ones.
    async fn many_tenants(&self, tenants: u64) -> anyhow::Result<Vec<Row>> {
        let label = format!("many-{tenants}");
        let body = self.subscription("ok", &label);
        let creating = futures_util::stream::iter(0..tenants)
            .map(|n| {
                let (tenant, body) = (format!("{label}-{n}"), &body);
                async move { self.subscribe(&tenant, body, 1).await }
            })
            .buffer_unordered(64);
        let created: Vec<anyhow::Result<()>> = creating.collect().await;
        created.into_iter().collect::<anyhow::Result<()>>()?;
        tokio::time::sleep(IN_FORCE).await;
        let (mut rows, mut before) = (Vec::new(), 0);
        let later = ("one to one", self.deliveries / 4);
        for (what, count) in [("first event of each", tenants), later] {
            let (costs, start) = (Costs::begin(self.stack), Instant::now());
            self.publish_to(count, |n| format!("{label}-{}", n % tenants)).await?;
            before += count;
            self.arrived(&label, before).await?;
            let mut row = Row::new(&format!("{what}, {tenants} tenants"), count, start.elapsed());
            row.times_ms = Percentiles::of(self.receiver.tally(&label).take_times());
            rows.push(row.costing(&costs.since(self.stack), peaks(self.stack)));
        }
        Ok(rows)
    }

    /// The last of all: its event comes to whoever wants everything, too.
    async fn broadcast(&self) -> anyhow::Result<Vec<Row>> {
        let (tally, tenants) = ("broadcast", self.subscriptions.clamp(1, 100));
        let body = self.subscription("ok", tally);
        let creating = Instant::now();
        let each = self.subscriptions / tenants;
        for n in 0..tenants {
            self.subscribe(&format!("broadcast-{n}"), &body, each).await?;
        }
        let created = creating.elapsed();
        tokio::time::sleep(IN_FORCE).await;
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        self.publish_one("*").await?;
        self.arrived(tally, each * tenants).await?;
        let mut row = self.row("broadcast", tally, start, &costs);
        row.of_reqwest = Some(0.0);
        row.notes.push(format!(
            "one event for {} subscriptions, which were created at {:.0} a second",
            each * tenants,
            super::report::per_second(each * tenants, created)
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
        Ok(Steady { tenants, pause: millis(1000 / rate.max(1)) })
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

    /// How long events of these tenants take while those others publish, too.
    async fn watch(
        &self,
        steady: &Steady,
        others: &[&Steady],
        time: Duration,
    ) -> anyhow::Result<Row> {
        let before: Vec<u64> =
            steady.tenants.iter().map(|tenant| self.receiver.tally(tenant).count()).collect();
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        let beside = futures_util::future::try_join_all(
            others.iter().map(|others| self.publish_steadily(others, time)),
        );
        let (published, others) = tokio::join!(self.publish_steadily(steady, time), beside);
        others?;
        let each = published? / u64::try_from(steady.tenants.len())?.max(1);
        let mut times = Vec::new();
        for (tenant, before) in steady.tenants.iter().zip(before) {
            self.arrived(tenant, before + each).await?;
            times.extend(self.receiver.tally(tenant).take_times());
        }
        let mut row = Row::new("", u64::try_from(times.len())?, start.elapsed());
        row.times_ms = Percentiles::of(times);
        Ok(row.costing(&costs.since(self.stack), peaks(self.stack)))
    }

    async fn all_arrived(&self, steady: &Steady, published: u64) -> anyhow::Result<()> {
        let each = published / u64::try_from(steady.tenants.len())?.max(1);
        for tenant in &steady.tenants {
            self.arrived(tenant, each).await?;
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
