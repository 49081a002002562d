//! What an event costs as there is more of everything.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::json;
use tokio::time::Instant;

use super::Bench;
use crate::bench::IN_FORCE;
use crate::bench::costs::{Costs, peaks};
use crate::bench::report::{Percentiles, Row, per_second};

/// How long a stack at rest is watched.
const REST: Duration = Duration::from_secs(30);

impl Bench<'_> {
    /// What the stack does while nobody wants anything of it, with next to nothing in it and with many
    /// subscriptions.
    pub(super) async fn rest(&self) -> anyhow::Result<Vec<Row>> {
        let mut rows = vec![self.at_rest("at rest").await?];
        let (label, tenants) = ("rest", u64::from(self.plan.subscriptions).clamp(1, 100));
        let mut body = self.subscription("ok", label);
        body["events"] = json!(["never.#"]);
        let each = u64::from(self.plan.subscriptions) / tenants;
        for n in 0..tenants {
            self.subscribe(&format!("{label}-{n}"), &body, each).await?;
        }
        // So that the dispatcher knows them.
        self.publish_to(tenants, |n| format!("{label}-{n}")).await?;
        tokio::time::sleep(IN_FORCE).await;
        rows.push(self.at_rest(&format!("the same, {} subscriptions", each * tenants)).await?);
        Ok(rows)
    }

    async fn at_rest(&self, name: &str) -> anyhow::Result<Row> {
        let (costs, start) = (Costs::begin(self.stack), Instant::now());
        tokio::time::sleep(REST).await;
        let (cpu, time) = (costs.since(self.stack), start.elapsed());
        let mut row = Row::new(name, 0, time).costing(&BTreeMap::new(), peaks(self.stack));
        let percent =
            |micros: u64| Duration::from_micros(micros).as_secs_f64() / time.as_secs_f64();
        let spent =
            cpu.iter().map(|(name, micros)| format!("{name} {:.2}", 100.0 * percent(*micros)));
        row.notes.push(format!("percent of a core: {}", spent.collect::<Vec<_>>().join(", ")));
        Ok(row)
    }

    /// What an event costs as there is more that it is not for.
    pub(super) async fn growth(&self) -> anyhow::Result<Vec<Row>> {
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

    /// What it costs to find the one of a thousand subscriptions that wants an event: by its pattern
    /// in the index, or by its filter.
    pub(super) async fn filters(&self) -> anyhow::Result<Vec<Row>> {
        let unwanted = json!({
            "type": {"$startsWith": "bench"},
            "data": {"$or": [{"pad": {"$startsWith": "y"}}, {"at": {"$in": [-1, -2]}}]},
        });
        let mut rows = Vec::new();
        for (what, events, filter) in [
            ("999 other patterns", "never.#", serde_json::Value::Null),
            ("999 filters", "#", unwanted),
        ] {
            let tenant = what.replace(' ', "-");
            let mut body = self.subscription("ok", "unwanted");
            body["events"] = json!([events]);
            body["filter"] = filter;
            self.subscribe(&tenant, &body, 999).await?;
            self.subscribe_all(&tenant, "ok", 1, json!({})).await?;
            let (costs, start) = (Costs::begin(self.stack), Instant::now());
            self.publish(&tenant, self.deliveries / 4).await?;
            self.arrived(&tenant, self.deliveries / 4).await?;
            rows.push(self.row(&format!("one to one beside {what}"), &tenant, start, &costs));
        }
        Ok(rows)
    }

    /// One tenant's event for all of its subscriptions, which are as many as those of a broadcast.
    pub(super) async fn large_tenant(&self) -> anyhow::Result<Vec<Row>> {
        let (tally, count) = ("large-tenant", u64::from(self.plan.subscriptions));
        self.subscribe(tally, &self.subscription("ok", tally), count).await?;
        tokio::time::sleep(IN_FORCE).await;
        let mut rows = Vec::new();
        for (n, what) in [(1, "first event"), (2, "second event")] {
            let (costs, start) = (Costs::begin(self.stack), Instant::now());
            self.publish_one(tally).await?;
            self.arrived(tally, n * count).await?;
            let time = start.elapsed();
            let mut row = Row::new(&format!("{what} of a tenant with {count}"), count, time);
            row.times_ms = Percentiles::of(self.receiver.tally(tally).take_times());
            row.of_reqwest = Some(0.0);
            rows.push(row.costing(&costs.since(self.stack), peaks(self.stack)));
        }
        Ok(rows)
    }

    /// The last of all: its event comes to whoever wants everything, too.
    pub(super) async fn broadcast(&self) -> anyhow::Result<Vec<Row>> {
        let (tally, tenants) = ("broadcast", u64::from(self.plan.subscriptions).clamp(1, 100));
        let body = self.subscription("ok", tally);
        let creating = Instant::now();
        let each = u64::from(self.plan.subscriptions) / tenants;
        for n in 0..tenants {
            self.subscribe(&format!("broadcast-{n}"), &body, each).await?;
        }
        let created = creating.elapsed();
        tokio::time::sleep(IN_FORCE).await;
        let (costs, before) = (Costs::begin(self.stack), self.receiver.count_of_all());
        let start = Instant::now();
        self.publish_one("*").await?;
        self.arrived(tally, each * tenants).await?;
        // Those of earlier scenarios, too, which come first.
        let (count, time) = (self.receiver.count_of_all() - before, start.elapsed());
        let mut row = Row::new("broadcast", count, time);
        row.times_ms = Percentiles::of(self.receiver.tally(tally).take_times());
        row.of_reqwest = Some(0.0);
        row.notes.push(format!(
            "one event for {count} subscriptions, of which {} were created at {:.0} a second",
            each * tenants,
            per_second(each * tenants, created)
        ));
        let row = row.costing(&costs.since(self.stack), peaks(self.stack));
        Ok(vec![row])
    }
}
