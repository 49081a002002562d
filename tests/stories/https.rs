//! Endpoints over TLS, as nearly all are: who is trusted, and what a connection costs.

use anyhow::Context as _;
use doorbell_local::certificates::Authority;
use doorbell_tests::engines;
use doorbell_tests::tls_front::TlsFront;
use doorbell_tests::wait::seconds;
use doorbell_tests::{Setup, World, eventually};
use rcgen::CertificateParams;
use reqwest::Method;
use rustls::version::{TLS12, TLS13};
use serde_json::{Value, json};

use crate::names::{at, start_with};

/// More hosts than the TLS library would remember sessions of.
const HOSTS: usize = 100;

pub(crate) async fn an_endpoint_is_called_over_tls_if_its_certificate_is_good() -> anyhow::Result<()>
{
    let ours = Authority::new("ours")?;
    let (world, _names) = start_with("https", trusting(&ours, "https")?).await?;
    let good = ours.certify(&["*.names.dev"])?;
    let another = Authority::new("another")?.certify(&["*.names.dev"])?;
    let mut expired = CertificateParams::new(vec!["expired.names.dev".to_owned()])?;
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let expired = ours.certify_as(&expired)?;
    let elsewhere = ours.certify(&["elsewhere.names.dev"])?;
    for (name, certificate, versions, detail) in [
        ("newest", &good, [&TLS13], ""),
        ("older", &good, [&TLS12], ""),
        ("unknown", &another, [&TLS13], "from no authority that is known here"),
        ("expired", &expired, [&TLS13], "certificate expired"),
        ("misnamed", &elsewhere, [&TLS13], "not valid for name \"misnamed.names.dev\""),
    ] {
        let front = TlsFront::start(world.receiver.address(), certificate, &versions).await?;
        let body = over_tls(&world, name, &front);
        let outcome = if detail.is_empty() { "delivered" } else { "tls" };
        let found = tested(&world, &body).await?;
        assert_eq!(found["outcome"], outcome, "{name}: {found}");
        assert!(
            found["detail"].as_str().is_some_and(|text| text.contains(detail)),
            "{name}: {found}"
        );
        if detail.is_empty() {
            world.subscribe_as("acme", name, body).await?;
        }
    }
    // One that speaks no TLS at all.
    let plain = at(&world, "plain").to_string().replace("http:", "https:").parse()?;
    let found = tested(&world, &plain).await?;
    assert_eq!(found["detail"], "TLS failed: what answers there speaks no TLS", "{found}");
    world.in_force().await;
    for n in 0..50 {
        world.publish("acme", "made.known", n.into()).await?;
    }
    let posts = |name| world.receiver.posts_to(name);
    eventually("all events come", seconds(60), || async {
        ["newest", "older"].iter().all(|name| posts(name).len() == 1 + 50)
    })
    .await?;
    // But for those of the test calls, whose subscriptions have other secrets.
    let verified = |name| posts(name).iter().filter(|post| post.verified).count();
    assert_eq!(["newest", "older"].map(verified), [50, 50]);
    world.finish().await
}

/// A handshake from nothing costs several times what a POST does.
pub(crate) async fn who_was_called_before_is_known_again() -> anyhow::Result<()> {
    let ours = Authority::new("ours")?;
    let mut setup = trusting(&ours, "sessions")?;
    setup.dispatchers = 1;
    // Each POST has a connection of its own.
    setup.dispatcher_extra.push(("DOORBELL_MAX_IDLE_CONNECTIONS".to_owned(), "0".to_owned()));
    let (world, _names) = start_with("sessions", setup).await?;
    let certificate = ours.certify(&["*.names.dev"])?;
    let front = TlsFront::start(world.receiver.address(), &certificate, &[&TLS13]).await?;
    let lines: String = (0..HOSTS)
        .map(|n| format!("{}\n", over_tls(&world, &format!("host-{n}"), &front)))
        .collect();
    world.control.lines("/v1/tenants/many/subscriptions/bulk", lines).await?;
    world.in_force().await;
    for times in 1..=2 {
        world.publish("many", "again", json!({})).await?;
        // Not only sent: tickets come with the answers.
        until_delivered(&world, times * HOSTS).await?;
    }
    assert_eq!(front.handshakes(), (HOSTS, HOSTS));
    world.finish().await
}

/// Waits until so many deliveries have ended well.
pub(crate) async fn until_delivered(world: &World, count: usize) -> anyhow::Result<()> {
    let expected = f64::from(u32::try_from(count)?);
    eventually("all hosts have answered", seconds(60), || async {
        let delivered = world.metric("doorbell_deliveries_total{state=\"delivered\"}").await;
        delivered.is_ok_and(|delivered| delivered > expected - 0.5)
    })
    .await
}

/// Dispatchers that trust this authority.
fn trusting(authority: &Authority, name: &str) -> anyhow::Result<Setup> {
    let folder = engines::folder().join("certificates");
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{name}.pem"));
    std::fs::write(&file, authority.pem())?;
    let file = file.to_str().context("the path of the workspace is no text")?.to_owned();
    let dispatcher_extra = vec![("DOORBELL_ENDPOINT_CA_FILE".to_owned(), file)];
    Ok(Setup { dispatcher_extra, ..Setup::default() })
}

/// A subscription for an endpoint of ours behind this front.
fn over_tls(world: &World, endpoint: &str, front: &TlsFront) -> Value {
    let mut body = at(world, endpoint);
    body["url"] =
        format!("https://{endpoint}.names.dev:{}/{endpoint}", front.address.port()).into();
    body
}

/// What a test call says of such a subscription.
async fn tested(world: &World, body: &Value) -> anyhow::Result<Value> {
    let list = "/v1/tenants/tested/subscriptions";
    let created = world.control.call(Method::POST, list, body.clone()).await?.body;
    let path = format!("{list}/{}/test", created["id"].as_str().context("not created")?);
    Ok(world.control.call(Method::POST, &path, Value::Null).await?.body)
}
