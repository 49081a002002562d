//! What was measured: lines for people while it runs, and JSON for programs at the end.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

/// Times in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Percentiles {
    p50: f64,
    p90: f64,
    pub(super) p99: f64,
    max: f64,
}

impl Percentiles {
    /// Of these times, in microseconds; `None` if there are none.
    pub(super) fn of(mut micros: Vec<u64>) -> Option<Self> {
        micros.sort_unstable();
        let last = micros.len().checked_sub(1)?;
        let at = |percent: usize| millis(micros.get(last * percent / 100).copied());
        Some(Self { p50: at(50), p90: at(90), p99: at(99), max: at(100) })
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { p50, p90, p99, max } = self;
        write!(f, "p50 {p50:.1} p90 {p90:.1} p99 {p99:.1} max {max:.1} ms")
    }
}

/// One measured thing.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) deliveries: u64,
    pub(super) seconds: f64,
    pub(super) per_second: f64,
    /// How much that is of the bare loop of POSTs with reqwest, in the same run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) of_reqwest: Option<f64>,
    /// From publishing to arrival.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) times_ms: Option<Percentiles>,
    /// CPU time of each process for each delivery, in microseconds.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) cpu_micros_per_delivery: BTreeMap<String, f64>,
    /// Peak memory of each process, in MiB.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) peak_mib: BTreeMap<String, u64>,
    /// What else is to be said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
}

impl Row {
    pub(super) fn new(name: &str, deliveries: u64, time: Duration) -> Self {
        let (seconds, per_second) = (time.as_secs_f64(), per_second(deliveries, time));
        Self { name: name.to_owned(), deliveries, seconds, per_second, ..Self::default() }
    }

    /// With what it cost, given the CPU time of each process in microseconds.
    pub(super) fn costing(
        mut self,
        cpu: &BTreeMap<String, u64>,
        peaks: BTreeMap<String, u64>,
    ) -> Self {
        let each = |micros: u64| number(micros) / number(self.deliveries.max(1));
        self.cpu_micros_per_delivery =
            cpu.iter().map(|(name, micros)| (name.clone(), each(*micros))).collect();
        self.peak_mib = peaks;
        self
    }

    /// The row in a few lines.
    pub(super) fn lines(&self) -> Vec<String> {
        let ratio = self.of_reqwest.map(|of| format!(", {of:.2} of the bare loop"));
        let mut lines = vec![format!(
            "  {:<28} {:>8.0} a second{}",
            self.name,
            self.per_second,
            ratio.unwrap_or_default()
        )];
        lines.extend(self.times_ms.map(|times| format!("      {times}")));
        let spent: Vec<String> = self
            .cpu_micros_per_delivery
            .iter()
            .filter(|(_, micros)| **micros >= 0.5)
            .map(|(name, micros)| format!("{name} {micros:.0}"))
            .collect();
        if !spent.is_empty() {
            lines.push(format!("      µs of CPU for each: {}", spent.join(", ")));
        }
        let peaks: Vec<String> =
            self.peak_mib.iter().map(|(name, mib)| format!("{name} {mib}")).collect();
        if !peaks.is_empty() {
            lines.push(format!("      peak MiB: {}", peaks.join(", ")));
        }
        lines.extend(self.notes.iter().map(|note| format!("      {note}")));
        lines
    }
}

pub(super) fn per_second(count: u64, time: Duration) -> f64 {
    number(count) / time.as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "what a benchmark counts is far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}

fn millis(micros: Option<u64>) -> f64 {
    number(micros.unwrap_or_default()) / 1000.0
}
