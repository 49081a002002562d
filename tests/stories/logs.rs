//! Whoever takes the logs.

use std::os::fd::AsRawFd as _;

use doorbell_local::ports;
use doorbell_local::services::Kind;
use doorbell_tests::api::Api;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Setup, World, engines, eventually};
use reqwest::Method;
use serde_json::json;

/// A driver of a container's logs whose server is away takes nothing, and leaves what it was given in a pipe.
pub(crate) async fn nothing_waits_for_whoever_takes_them() -> anyhow::Result<()> {
    /// Each is a line of some 250 bytes; a pipe has room for 64 KiB.
    const CHANGES: usize = 600;
    let world = World::with("logs", Setup { dispatchers: 1, ..Setup::default() }).await?;
    let [admin_port, api_port] = ports::free()?;
    let (nobody_reads, log) = std::io::pipe()?;
    let kind = Kind::ControlPlane;
    let mut spec = world.environment.service(kind, "unread", admin_port, Some(api_port)).spec;
    spec.log = format!("/proc/self/fd/{}", log.as_raw_fd()).into();
    let mut process = spec.start()?;
    engines::note(&process)?;
    let client = reqwest::Client::builder().no_proxy().timeout(seconds(30)).build()?;
    let ask = async |what: &str| -> anyhow::Result<String> {
        let url = format!("http://127.0.0.1:{admin_port}/{what}");
        Ok(client.get(url).send().await?.error_for_status()?.text().await?)
    };
    eventually("it is ready", seconds(60), || async { ask("readyz").await.is_ok() }).await?;
    let key = &world.environment.admin_key;
    let api = Api::new(&format!("http://127.0.0.1:{api_port}"), key)?;
    for n in 0..CHANGES {
        let path = format!("/v1/tenants/t-{n}");
        let put = api.call(Method::PUT, &path, json!({}));
        let answer = tokio::time::timeout(seconds(30), put).await??;
        assert!(answer.status.is_success(), "{n}: {}", answer.body);
    }
    ask("livez").await?;
    assert!(ask("metrics").await?.contains("doorbell_log_lines_dropped_total 0"));
    assert_eq!(process.stop(seconds(30)).await, Some(0), "nor does its end wait");
    drop((nobody_reads, log));
    world.finish().await
}
