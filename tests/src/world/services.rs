//! The services of a world: started, asked, killed and stopped.

use std::time::Duration;

use anyhow::Context as _;
use doorbell_local::ports;
use doorbell_local::services::Kind;
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Running, World};
use crate::engines;
use crate::wait::{eventually, seconds};

/// How long a service may take to be ready, on a slow machine with everything on it.
const READY: Duration = seconds(90);
/// Lines of its log that are shown of one that is not.
const LAST_LINES: usize = 30;

impl World {
    pub(super) async fn start_service(
        &self,
        kind: Kind,
        name: &str,
        api_port: Option<u16>,
    ) -> anyhow::Result<()> {
        let [admin_port] = ports::free()?;
        let mut environment = self.environment.clone();
        if kind == Kind::Dispatcher {
            environment.extra.extend(self.dispatcher_extra.clone());
        }
        let service = environment.service(kind, name, admin_port, api_port);
        let process = service.spec.start()?;
        engines::note(&process)?;
        self.services.lock().await.insert(name.to_owned(), Running { service, process });
        Ok(())
    }

    /// Waits until every service says that it is ready.
    ///
    /// # Errors
    /// One is not, in time.
    pub async fn until_all_ready(&self) -> anyhow::Result<()> {
        let names: Vec<String> = self.services.lock().await.keys().cloned().collect();
        for name in names {
            self.until_readiness(&name, true).await?;
        }
        Ok(())
    }

    /// Waits until a service says that it is ready, or not.
    ///
    /// # Errors
    /// It does not, in time.
    pub async fn until_readiness(&self, name: &str, ready: bool) -> anyhow::Result<()> {
        let waited = eventually(&format!("{name} ready: {ready}"), READY, || async {
            self.is_ready(name).await == ready
        })
        .await;
        let Err(error) = waited else { return Ok(()) };
        // Where the tests ran, the log may be gone by now.
        let log = self.environment.logs.join(format!("{name}.log"));
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(LAST_LINES).collect();
        let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
        let readiness = self.readiness(name).await;
        Err(error.context(format!("{readiness:?}\nthe end of {}:\n{last}", log.display())))
    }

    /// Whether a service says that it is ready.
    pub async fn is_ready(&self, name: &str) -> bool {
        let Some(url) = self.admin_url(name).await else { return false };
        self.http
            .get(format!("{url}/readyz"))
            .send()
            .await
            .is_ok_and(|response| response.status().is_success())
    }

    /// What a service says of its readiness.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn readiness(&self, name: &str) -> anyhow::Result<Value> {
        let url = self.admin_url(name).await.context("no such service")?;
        Ok(self.http.get(format!("{url}/readyz")).send().await?.json().await?)
    }

    /// A metric's value, summed over all services; `what` is the name with its labels.
    ///
    /// # Errors
    /// A service did not answer.
    pub async fn metric(&self, what: &str) -> anyhow::Result<f64> {
        let names: Vec<String> = self.services.lock().await.keys().cloned().collect();
        let mut sum = 0.0;
        for name in names {
            sum += self.metric_of(&name, what).await?;
        }
        Ok(sum)
    }

    /// The same of one service.
    ///
    /// # Errors
    /// It did not answer.
    pub async fn metric_of(&self, name: &str, what: &str) -> anyhow::Result<f64> {
        let url = {
            let services = self.services.lock().await;
            services.get(name).context("no such service")?.service.admin_url.clone()
        };
        let text = self.http.get(format!("{url}/metrics")).send().await?.text().await?;
        let line = text.lines().find_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
        Ok(line.map(str::parse::<f64>).transpose()?.unwrap_or(0.0))
    }

    async fn has_ended(&self, name: &str) -> bool {
        self.services.lock().await.get_mut(name).is_some_and(|running| running.process.has_ended())
    }

    async fn admin_url(&self, name: &str) -> Option<String> {
        self.services.lock().await.get(name).map(|running| running.service.admin_url.clone())
    }

    /// Kills a service at once and starts it again.
    ///
    /// # Errors
    /// There is no such service, or it could not be started.
    pub async fn kill_and_restart(&self, name: &str) -> anyhow::Result<()> {
        let mut services = self.services.lock().await;
        let running = services.get_mut(name).context("no such service")?;
        running.process.kill().await;
        running.process = running.service.spec.start()?;
        engines::note(&running.process)
    }

    /// Kills a service at once.
    ///
    /// # Errors
    /// There is no such service.
    pub async fn kill(&self, name: &str) -> anyhow::Result<()> {
        self.services.lock().await.get_mut(name).context("no such service")?.process.kill().await;
        Ok(())
    }

    /// Starts a service again that was killed or stopped.
    ///
    /// # Errors
    /// There is no such service, or it could not be started.
    pub async fn restart(&self, name: &str) -> anyhow::Result<()> {
        let mut services = self.services.lock().await;
        let running = services.get_mut(name).context("no such service")?;
        running.process = running.service.spec.start()?;
        engines::note(&running.process)
    }

    /// Stops a service, and starts it again with further environment variables.
    ///
    /// # Errors
    /// There is no such service, or it could not be started.
    pub async fn restart_with(&self, name: &str, variables: &[(&str, &str)]) -> anyhow::Result<()> {
        self.stop(name).await?;
        let mut services = self.services.lock().await;
        let running = services.get_mut(name).context("no such service")?;
        let added = variables.iter().map(|(name, value)| ((*name).to_owned(), value.into()));
        running.service.spec.environment.extend(added);
        drop(services);
        self.restart(name).await?;
        self.until_readiness(name, true).await
    }

    /// The process of a service.
    ///
    /// # Errors
    /// There is no such service.
    pub async fn pid(&self, name: &str) -> anyhow::Result<i32> {
        Ok(self.services.lock().await.get(name).context("no such service")?.process.pid())
    }

    /// Sends a service a signal.
    ///
    /// # Errors
    /// There is no such service.
    pub async fn signal(&self, name: &str, signal: Signal) -> anyhow::Result<()> {
        self.services.lock().await.get(name).context("no such service")?.process.signal(signal)
    }

    /// Asks a service to stop and waits; answers its exit code. One that has only just been started is asked once
    /// it can hear: before that, any signal ends it. One may be asked twice.
    ///
    /// # Errors
    /// There is no such service, or it does not come up.
    pub async fn stop(&self, name: &str) -> anyhow::Result<Option<i32>> {
        self.admin_url(name).await.with_context(|| format!("no such service: {name}"))?;
        eventually(&format!("{name} is up"), READY, || async {
            self.has_ended(name).await || self.readiness(name).await.is_ok()
        })
        .await?;
        let mut services = self.services.lock().await;
        Ok(services.get_mut(name).context("no such service")?.process.stop(seconds(60)).await)
    }
}
