//! What the processes of a stack cost: CPU time and memory, as Linux counts them.

use std::collections::BTreeMap;
use std::fs;

use crate::state::StackState;

/// Linux counts CPU time in hundredths of a second, whatever the kernel's own tick.
const MICROS_PER_TICK: u64 = 10_000;

/// The CPU time of each process, in microseconds, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Costs(BTreeMap<String, u64>);

impl Costs {
    /// Looks now, and begins to measure peaks of memory afresh.
    pub(super) fn begin(stack: &StackState) -> Self {
        for pid in stack.pids.values() {
            // Without the right to it the peak is that since the process began.
            let _refused = fs::write(format!("/proc/{pid}/clear_refs"), "5").is_err();
        }
        let cpu = |(name, pid): (&String, &i32)| Some((name.clone(), cpu_micros(*pid)?));
        Self(stack.pids.iter().filter_map(cpu).collect())
    }

    /// CPU time of each process since then, in microseconds.
    pub(super) fn since(&self, stack: &StackState) -> BTreeMap<String, u64> {
        let now = stack.pids.iter().filter_map(|(name, pid)| Some((name, cpu_micros(*pid)?)));
        now.filter_map(|(name, micros)| {
            Some((name.clone(), micros.saturating_sub(*self.0.get(name)?)))
        })
        .collect()
    }
}

/// The most memory that each process had since its peak was last reset, in MiB.
pub(super) fn peaks(stack: &StackState) -> BTreeMap<String, u64> {
    let peak = |(name, pid): (&String, &i32)| Some((name.clone(), peak_mib(*pid)?));
    stack.pids.iter().filter_map(peak).collect()
}

fn cpu_micros(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name, in parentheses, may hold anything; user and system time are the 12th and 13th
    // fields after it.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).take(2);
    let (user, system): (u64, u64) = (times.next()?.parse().ok()?, times.next()?.parse().ok()?);
    Some((user + system) * MICROS_PER_TICK)
}

fn peak_mib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? / 1024)
}
