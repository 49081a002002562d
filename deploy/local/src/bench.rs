//! The benchmark: how many deliveries a second, as a ratio to a bare loop of POSTs to the same
//! receiver in the same run. Everything is on one machine, so only the ratios mean something.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use doorbell_producer::{NewEvent, Publisher};
use futures_util::StreamExt as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::state::StackState;

/// Bytes of data in each event.
const DATA_BYTES: usize = 1000;
/// POSTs of the bare loop that are in flight at once.
const AT_ONCE: usize = 256;
/// Publishes in flight at once.
const PUBLISHES: usize = 500;
/// How long a scenario may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Measures a running stack; `say` hears each line.
///
/// # Errors
/// Something could not be set up, or deliveries did not all arrive.
pub async fn run(stack: &StackState, events: u32, say: impl Fn(&str)) -> anyhow::Result<()> {
    let counter = Arc::new(AtomicU64::new(0));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let base = format!("http://{}", listener.local_addr()?);
    let router = Router::new().route("/{endpoint}", post(count)).with_state(Arc::clone(&counter));
    #[expect(clippy::disallowed_methods, reason = "the receiver lives as long as its process")]
    tokio::spawn(std::future::IntoFuture::into_future(axum::serve(listener, router)));
    let http = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(AT_ONCE).build()?;
    let deliveries = u64::from(events);
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    say(&format!(
        "bench: {deliveries} deliveries of {DATA_BYTES} bytes each scenario, {cores} cores for everything"
    ));

    let raw = raw_loop(&http, &format!("{base}/raw"), deliveries).await?;
    say(&format!("  bare loop of POSTs   {raw:>9.0} a second"));
    let publisher = Publisher::connect(&stack.amqp_url).await?;
    for (name, endpoints) in [("one to one", 1), ("one to ten", 10), ("one to a hundred", 100)] {
        let tenant = format!("bench-{endpoints}");
        for n in 0..endpoints {
            subscribe(&http, stack, &tenant, &format!("{base}/{n}")).await?;
        }
        // A change is in force everywhere within two seconds.
        tokio::time::sleep(Duration::from_secs(2)).await;
        let events = (deliveries / endpoints).max(1);
        counter.store(0, Ordering::Release);
        let start = Instant::now();
        publish(&publisher, &tenant, events).await?;
        let confirmed = start.elapsed();
        arrived(&counter, events * endpoints).await.with_context(|| format!("scenario {name}"))?;
        let rate = per_second(events * endpoints, start.elapsed());
        let published = per_second(events, confirmed);
        say(&format!(
            "  {name:<19}  {rate:>9.0} a second, {:.2} of the bare loop ({published:.0} published a second)",
            rate / raw
        ));
    }
    publisher.close().await;
    Ok(())
}

async fn count(State(counter): State<Arc<AtomicU64>>, _body: Bytes) -> StatusCode {
    counter.fetch_add(1, Ordering::AcqRel);
    StatusCode::NO_CONTENT
}

fn data() -> Vec<u8> {
    format!("\"{}\"", "x".repeat(DATA_BYTES - 2)).into_bytes()
}

async fn raw_loop(http: &reqwest::Client, url: &str, count: u64) -> anyhow::Result<f64> {
    let body = Bytes::from(data());
    let start = Instant::now();
    let posts = futures_util::stream::iter(0..count)
        .map(|_| async {
            http.post(url).body(body.clone()).send().await?.error_for_status()?.bytes().await
        })
        .buffer_unordered(AT_ONCE);
    let failed = posts.filter(|result| std::future::ready(result.is_err())).count().await;
    anyhow::ensure!(failed == 0, "{failed} POSTs of the bare loop failed");
    Ok(per_second(count, start.elapsed()))
}

async fn subscribe(
    http: &reqwest::Client,
    stack: &StackState,
    tenant: &str,
    url: &str,
) -> anyhow::Result<()> {
    let path = format!("{}/v1/tenants/{tenant}/subscriptions", stack.control_plane_url);
    let body = json!({ "url": url, "events": ["#"] });
    http.post(path).bearer_auth(&stack.admin_key).json(&body).send().await?.error_for_status()?;
    Ok(())
}

async fn publish(publisher: &Publisher, tenant: &str, count: u64) -> anyhow::Result<()> {
    let event = NewEvent::new(tenant, "bench.event", data());
    let publishing = futures_util::stream::iter(0..count)
        .map(|_| publisher.publish(&event))
        .buffer_unordered(PUBLISHES);
    let results: Vec<_> =
        publishing.filter(|result| std::future::ready(result.is_err())).collect().await;
    anyhow::ensure!(results.is_empty(), "{} events were not confirmed", results.len());
    Ok(())
}

async fn arrived(counter: &AtomicU64, expected: u64) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while counter.load(Ordering::Acquire) < expected {
        let seen = counter.load(Ordering::Acquire);
        anyhow::ensure!(
            Instant::now() < deadline,
            "{seen} of {expected} arrived within {PATIENCE:?}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
fn per_second(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64()
}
