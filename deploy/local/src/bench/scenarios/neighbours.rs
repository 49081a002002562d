//! Healthy tenants beside others in trouble.

use std::time::Duration;

use doorbell_platform::clock;
use serde_json::json;
use tokio::time::Instant;

use super::{Bench, Steady};
use crate::bench::costs::{Costs, peaks};
use crate::bench::report::{Percentiles, Row};
use crate::bench::{IN_FORCE, PATIENCE, Way};

/// How long healthy tenants are watched, alone and beside others: as long, so that what happens once in a minute of
/// itself is in both.
const WATCHED: Duration = Duration::from_secs(60);
/// Tenants beside a flood.
const BESIDE_FLOOD: u64 = 32;
/// How many events wait for an endpoint that is out.
const WAITING: u64 = 20_000;
/// How many a second come for it once it is back.
const FRESH: u64 = 10;
/// How often it is asked then whether all have arrived.
const ROUND: Duration = Duration::from_secs(5);
/// How long the last that came may take to arrive.
const SOON: Duration = Duration::from_millis(500);
/// When everything falls due, after its publishing began.
const DUE_AFTER: Duration = Duration::from_secs(30);
/// A tenant that is disturbed no more than this is undisturbed by a flood, in milliseconds.
const UNDISTURBED_MS: f64 = 250.0;

impl Bench<'_> {
    /// So many healthy tenants with so many events a second each: alone, beside so many whose endpoints
    /// answer, which is what more events cost by themselves, and beside so many whose endpoints hang.
    pub(super) async fn hanging(
        &self,
        name: &str,
        (healthy, their_rate): (u64, u64),
        (hanging, rate): (u64, u64),
    ) -> anyhow::Result<Vec<Row>> {
        let label = name.replace(' ', "-");
        let healthy = self.tenants(&label, "ok", healthy, their_rate).await?;
        let answering = self.tenants(&format!("{label}-answers"), "ok", hanging, rate).await?;
        let hanging = self.tenants(&format!("{label}-hangs"), "hang", hanging, rate).await?;
        self.warm_up(&format!("{label}-warms-up")).await?;
        let alone = self.watch(&healthy, &[], WATCHED).await?;
        let mut busier = self.watch(&healthy, &[&answering], WATCHED).await?;
        let mut beside = self.watch(&healthy, &[&hanging], WATCHED).await?;
        busier.name = format!("{name}: beside those that answer");
        let worse = worse(&busier, &beside);
        beside.notes.push(format!("p99 is {worse:.2} of what it is beside as many that answer"));
        let mut rows = compared(name, alone, beside);
        rows.insert(1, busier);
        Ok(rows)
    }

    /// So many healthy endpoints of one tenant, alone and then beside so many of its own that hang.
    pub(super) async fn hanging_among(
        &self,
        name: &str,
        healthy: u64,
        hanging: u64,
    ) -> anyhow::Result<Vec<Row>> {
        let tenant = name.replace(' ', "-");
        let steady = Steady::of(&tenant, 50, healthy);
        self.subscribe_all(&tenant, "ok", healthy, json!({})).await?;
        let alone = self.watch(&steady, &[], WATCHED).await?;
        let hangs = self.subscription("hang", &format!("{tenant}-hangs"));
        self.subscribe(&tenant, &hangs, hanging).await?;
        tokio::time::sleep(IN_FORCE).await;
        let beside = self.watch(&steady, &[], WATCHED).await?;
        Ok(compared(name, alone, beside))
    }

    /// Healthy tenants beside one that publishes everything at once for a slow endpoint.
    pub(super) async fn flooding(&self, way: Way) -> anyhow::Result<Vec<Row>> {
        let (flood, over) = match way {
            Way::Amqp => ("flood", "AMQP"),
            Way::Http => ("flood-http", "HTTP"),
        };
        let steady = self.tenants(&format!("{flood}-beside"), "ok", BESIDE_FLOOD, 5).await?;
        self.subscribe_all(flood, "slow", 1, json!({})).await?;
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        let (published, flooded) = tokio::join!(
            self.publish_steadily(&steady, WATCHED),
            self.publish_over(way, flood, self.deliveries)
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
        let mut row = Row::new(&format!("beside a flood over {over}"), count, start.elapsed());
        row.times_ms = Percentiles::of(times);
        row = row.costing(&costs.since(self.stack), peaks(self.stack));
        row.notes.push(format!(
            "{} events at once for an endpoint that takes a second, of which {} arrived meanwhile",
            self.deliveries,
            self.receiver.tally(flood).count()
        ));
        row.notes.push(format!(
            "{undisturbed} of {} tenants at most {UNDISTURBED_MS} ms at p99; the worst {:.0} ms",
            p99s.len(),
            p99s.last().copied().unwrap_or_default()
        ));
        Ok(vec![row])
    }

    /// Tenants whose every delivery takes a retry after two seconds, alone and beside one all of whose events fall due
    /// at once.
    pub(super) async fn due_neighbour(&self) -> anyhow::Result<Vec<Row>> {
        let names = (0..BESIDE_FLOOD).map(|n| format!("due-beside-{n}"));
        let steady =
            Steady { tenants: names.collect(), pause: Duration::from_millis(500), endpoints: 1 };
        for tenant in &steady.tenants {
            let mut body = self.subscription("flaky", tenant);
            body["retry"] = json!({"schedule": ["2s"]});
            self.subscribe(tenant, &body, 1).await?;
        }
        self.subscribe_all("due", "ok", 1, json!({})).await?;
        let alone = self.watch(&steady, &[], WATCHED).await?;
        let due = clock::now().plus(DUE_AFTER).to_string();
        let (beside, published) = tokio::join!(
            self.watch(&steady, &[], WATCHED),
            self.publish_over_http("due", self.deliveries, Some(&due))
        );
        published?;
        self.arrived("due", self.deliveries).await?;
        Ok(compared("retries after 2 s, beside what falls due at once", alone, beside?))
    }

    /// Healthy tenants beside one whose endpoint is out for a while, with many events waiting, and then is back.
    pub(super) async fn outage(&self) -> anyhow::Result<Vec<Row>> {
        let steady = self.tenants("outage-beside", "ok", BESIDE_FLOOD, 2).await?;
        // Those that were tried in vain are soon tried again.
        let retry = json!({"retry": {"fixed": {"delay": "5s", "attempts": 100}}});
        self.subscribe_all("outage", "out", 1, retry).await?;
        let outage = Duration::from_secs(self.plan.outage);
        self.receiver.take_out(true);
        let (during, flooded) =
            tokio::join!(self.watch(&steady, &[], outage), self.publish("outage", WAITING));
        flooded?;
        let mut during = during?;
        during.name = "beside an outage".to_owned();
        let in_vain = self.receiver.take_out(false);
        during.notes.push(format!(
            "{WAITING} events for an endpoint that was out for {} s: {in_vain} attempts meanwhile",
            self.plan.outage
        ));
        let after = self.until_drained(&steady, during.deliveries, PATIENCE + outage).await?;
        Ok(vec![during, after])
    }

    /// How long events of these tenants take, of which so many have arrived before, until all that waited has arrived,
    /// beside more for the same endpoint.
    async fn until_drained(
        &self,
        steady: &Steady,
        before: u64,
        patience: Duration,
    ) -> anyhow::Result<Row> {
        let itself = Steady::of("outage", FRESH, 1);
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        let (mut theirs, mut fresh) = (before, 0);
        loop {
            let (others, own) = tokio::join!(
                self.publish_steadily(steady, ROUND),
                self.publish_steadily(&itself, ROUND)
            );
            (theirs, fresh) = (theirs + others?, fresh + own?);
            let all = self.arrived("outage", WAITING + fresh);
            if let Ok(arrived) = tokio::time::timeout(SOON, all).await {
                arrived?;
                break;
            }
            let arrived = self.receiver.tally("outage").count();
            let expected = WAITING + fresh;
            anyhow::ensure!(start.elapsed() < patience, "{arrived} of {expected} arrived");
        }
        let drained = start.elapsed();
        self.all_arrived(steady, theirs).await?;
        let tallies = steady.tenants.iter().map(|tenant| self.receiver.tally(tenant));
        let times: Vec<u64> = tallies.flat_map(|tally| tally.take_times()).collect();
        let mut row = Row::new("beside its end", u64::try_from(times.len())?, start.elapsed());
        row.times_ms = Percentiles::of(times);
        row.notes.push(format!(
            "all of them, and {fresh} that came meanwhile, delivered {:.0} s after its return",
            drained.as_secs_f64()
        ));
        Ok(row.costing(&costs.since(self.stack), peaks(self.stack)))
    }

    /// Has one delivery wait and come again. When RabbitMQ does that for the first time since it was started, whatever
    /// comes beside it waits for a tenth of a second and more, and that is no neighbour's doing.
    async fn warm_up(&self, tenant: &str) -> anyhow::Result<()> {
        self.subscribe_all(tenant, "fail", 1, json!({"retry": {"schedule": ["1s"]}})).await?;
        self.publish(tenant, 1).await?;
        self.arrived(tenant, 2).await
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
            self.arrived(tenant, before + each * steady.endpoints).await?;
            times.extend(self.receiver.tally(tenant).take_times());
        }
        let mut row = Row::new("", u64::try_from(times.len())?, start.elapsed());
        row.times_ms = Percentiles::of(times);
        Ok(row.costing(&costs.since(self.stack), peaks(self.stack)))
    }
}

/// Names the rows of healthy deliveries alone and beside others, and says how much worse these are.
fn compared(name: &str, mut alone: Row, mut beside: Row) -> Vec<Row> {
    alone.name = format!("{name}: alone");
    beside.name = format!("{name}: beside");
    let worse = worse(&alone, &beside);
    beside.notes.push(format!("p99 is {worse:.2} of what it is alone"));
    vec![alone, beside]
}

/// How much longer deliveries take beside others, by p99.
fn worse(before: &Row, beside: &Row) -> f64 {
    let p99 = |row: &Row| row.times_ms.map_or(0.0, |times| times.p99);
    p99(beside) / p99(before).max(0.001)
}
