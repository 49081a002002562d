//! Programs of other people: ordinary AMQP clients publish, the official `standardwebhooks`
//! libraries verify.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context as _;
use doorbell_local::packages::{self, Package};
use doorbell_local::paths;
use doorbell_tests::api::subscription;
use doorbell_tests::wait::seconds;
use doorbell_tests::world::binaries;
use doorbell_tests::{World, eventually};
use reqwest::Method;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{ChildStdout, Command};

pub(crate) async fn python_publishes_and_verifies() -> anyhow::Result<()> {
    let folder = installed("python").await?;
    let script = sources("python").join("interop.py");
    exchange("python", folder.join("venv/bin/python").into(), &script).await
}

pub(crate) async fn node_publishes_and_verifies() -> anyhow::Result<()> {
    let folder = installed("node").await?;
    // Node looks for its packages beside the program.
    let script = folder.join("interop.mjs");
    std::fs::copy(sources("node").join("interop.mjs"), &script)?;
    exchange("node", "node".into(), &script).await
}

pub(crate) async fn the_rust_example_publishes() -> anyhow::Result<()> {
    let example = binaries()?.join("examples/publish");
    anyhow::ensure!(
        example.exists(),
        "{} is missing: cargo test --workspace builds it",
        example.display()
    );
    let world = World::start("rust").await?;
    world.subscribe("acme", "all", &["payment.*"]).await?;
    world.in_force().await;
    let output =
        Command::new(example).args([world.environment.amqp_url.as_str(), "acme"]).output().await?;
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("100 events confirmed"), "{said}");
    eventually("all arrive", seconds(30), || async { world.receiver.accepted("all") == 100 })
        .await?;
    assert!(world.receiver.posts().iter().all(|post| post.verified));
    world.finish().await
}

async fn exchange(tenant: &str, program: OsString, script: &Path) -> anyhow::Result<()> {
    let world = World::start(tenant).await?;
    let mut child = Command::new(program)
        .arg(script)
        .arg(&world.environment.amqp_url)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("no output")?).lines();
    let port = next(&mut lines).await?["port"].as_u64().context("no port")?;
    let body = subscription(&format!("http://127.0.0.1:{port}/hook"), &["#"]);
    let created = world
        .control
        .call(Method::POST, &format!("/v1/tenants/{tenant}/subscriptions"), body)
        .await?;
    let secret = created.body["secret"].as_str().context("no secret")?;
    world.in_force().await;
    child.stdin.take().context("no input")?.write_all(format!("{secret}\n").as_bytes()).await?;
    let result = next(&mut lines).await?;
    assert_eq!(result["verified"], 5);
    assert!(child.wait().await?.success());
    world.finish().await
}

async fn next(lines: &mut Lines<BufReader<ChildStdout>>) -> anyhow::Result<Value> {
    let line = tokio::time::timeout(seconds(90), lines.next_line())
        .await
        .context("the program is silent")??;
    Ok(serde_json::from_str(&line.context("the program has ended")?)?)
}

fn sources(language: &str) -> PathBuf {
    paths::workspace().join("tests/interop").join(language)
}

/// The language's packages, installed once into the target folder.
async fn installed(language: &str) -> anyhow::Result<PathBuf> {
    let folder = paths::workspace().join("target/interop").join(language);
    let done = folder.join("installed");
    if done.exists() {
        return Ok(folder);
    }
    std::fs::create_dir_all(&folder)?;
    match language {
        "python" => install_python(&folder).await?,
        _ => install_node(&folder).await?,
    }
    std::fs::write(done, "")?;
    Ok(folder)
}

async fn install_python(folder: &Path) -> anyhow::Result<()> {
    if run("python3", &["-c".into(), "import venv, ensurepip".into()], folder).await.is_err() {
        let python =
            Package { name: "python3-venv", proof: "/usr/lib/python3/dist-packages/no-such-proof" };
        tokio::task::spawn_blocking(move || {
            packages::ensure(&[python], |line| eprintln!("{line}"))
        })
        .await??;
    }
    run("python3", &["-m".into(), "venv".into(), folder.join("venv").into()], folder).await?;
    let requirements = sources("python").join("requirements.txt");
    let pip = folder.join("venv/bin/pip");
    run(
        pip,
        &["install".into(), "--quiet".into(), "--requirement".into(), requirements.into()],
        folder,
    )
    .await
}

async fn install_node(folder: &Path) -> anyhow::Result<()> {
    if run("npm", &["--version".into()], folder).await.is_err() {
        let node = Package { name: "npm", proof: "/usr/bin/npm" };
        tokio::task::spawn_blocking(move || packages::ensure(&[node], |line| eprintln!("{line}")))
            .await??;
    }
    std::fs::copy(sources("node").join("package.json"), folder.join("package.json"))?;
    run(
        "npm",
        &["install".into(), "--silent".into(), "--no-audit".into(), "--no-fund".into()],
        folder,
    )
    .await
}

async fn run(
    program: impl Into<OsString>,
    arguments: &[OsString],
    folder: &Path,
) -> anyhow::Result<()> {
    let program = program.into();
    let output = Command::new(&program)
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .await?;
    let error = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(output.status.success(), "{} failed: {error}", program.display());
    Ok(())
}
