//! Connections to endpoints: there are only so many of them, and files that they need.

use anyhow::Context as _;
use doorbell_tests::receiver::Post;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Setup, eventually, within};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::json;

use crate::https::until_delivered;
use crate::names::{at, start_with};

/// Hosts that an event is for.
const HOSTS: usize = 400;

/// A platform's endpoints are on as many hosts as it has customers, most of which are called now and then.
pub(crate) async fn hosts_that_are_called_once_leave_nothing_open() -> anyhow::Result<()> {
    let (world, _names) =
        start_with("many-hosts", Setup { dispatchers: 1, ..Setup::default() }).await?;
    let lines: String =
        (0..HOSTS).map(|n| format!("{}\n", at(&world, &format!("host-{n}")))).collect();
    world.control.lines("/v1/tenants/many/subscriptions/bulk", lines).await?;
    world.in_force().await;
    let pid = world.pid("dispatcher-1").await?;
    let before = open_files(pid)?;
    world.publish("many", "first", json!({})).await?;
    until_delivered(&world, HOSTS).await?;
    // Within less than they would be kept.
    within(seconds(2), "connections are closed", || async {
        open_files(pid).is_ok_and(|after| after < before + HOSTS / 4)
    })
    .await?;
    let is_closed =
        |post: &Post| post.headers.get("connection").is_some_and(|value| value == "close");
    assert!(world.receiver.posts().iter().all(|post| is_closed(post)));

    let came =
        |times: usize| (0..HOSTS).all(|n| world.receiver.count(&format!("host-{n}")) >= times);
    let opened = || world.metric("doorbell_connections_opened_total");
    let mut times = 1;
    loop {
        let before = opened().await?;
        times += 1;
        world.publish("many", "again", json!({})).await?;
        eventually("all hosts are called again", seconds(60), || async { came(times) }).await?;
        if opened().await? - before < 0.5 {
            break;
        }
        assert!(times < 30, "who is called often is called over the same connections");
    }
    world.settle(seconds(60)).await?;
    world.finish().await
}

/// What is missing to us says nothing of an endpoint.
pub(crate) async fn a_dispatcher_without_files_spends_no_attempts() -> anyhow::Result<()> {
    const EVENTS: usize = 50;
    let (world, _names) = start_with("short", Setup { dispatchers: 1, ..Setup::default() }).await?;
    // The name of one of them is known by then, and that of the other is asked for in vain.
    for (tenant, endpoint) in [("known", "known"), ("acme", "patient")] {
        world.subscribe_as(tenant, endpoint, at(&world, endpoint)).await?;
    }
    world.in_force().await;
    world.publish("known", "before", json!({})).await?;
    world.settle(seconds(30)).await?;
    let held = || async {
        world
            .metric("doorbell_deliveries_held_total{reason=\"shortage\"}")
            .await
            .unwrap_or_default()
    };
    // Its connection stays, for which there would be no file later.
    assert!(held().await < 0.5);
    let pid = world.pid("dispatcher-1").await?;
    // No more than it has already, however many these are.
    let allowed = allow_files(pid, 3)?;
    for n in 0..EVENTS {
        for tenant in ["known", "acme"] {
            world.publish(tenant, "not.yet", n.into()).await?;
        }
    }
    eventually("all are held", seconds(30), || async { held().await >= 100.0 }).await?;
    assert_eq!(["known", "patient"].map(|endpoint| world.receiver.count(endpoint)), [1, 0]);
    assert!(world.metric("doorbell_breakers_open").await? < 0.5);
    allow_files(pid, allowed)?;
    world.settle(seconds(90)).await?;
    let posts = world.receiver.posts();
    assert_eq!(posts.len(), 2 * EVENTS + 1);
    assert!(posts.iter().all(|post| post.attempt == 1), "an attempt was counted that was none");
    world.finish().await
}

/// How many files a process has open.
fn open_files(pid: i32) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Allows a process so many open files, and answers how many it was allowed before.
fn allow_files(pid: i32, files: usize) -> anyhow::Result<usize> {
    // Its own, as a child has what its parent has.
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: Some(files.try_into()?), maximum };
    let before = prlimit(Pid::from_raw(pid), Resource::Nofile, limit)?;
    Ok(before.current.context("it has no limit")?.try_into()?)
}
