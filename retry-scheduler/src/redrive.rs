//! Sends messages on their way again that we had put aside: those that came too often without an end
//! (`doorbell.quarantine`), and those that nobody understood (`doorbell.rejected`). Each goes where it was
//! first published, and is judged and worked on as if it came from there.

use clap::ValueEnum;
use doorbell_platform::args::CommonArgs;
use doorbell_platform::broker::connection::{close, in_time};
use doorbell_platform::broker::topology::{self, QUARANTINE, REJECTED};
use doorbell_platform::broker::{Message, Publisher};
use doorbell_platform::health::{Dependency, Health};
use doorbell_platform::plumbing;
use doorbell_platform::service::Service;
use doorbell_platform::shutdown::Shutdown;
use futures_util::future::try_join_all;
use lapin::options::{BasicAckOptions, BasicGetOptions};
use lapin::{Channel, Connection};

/// Messages that are published and confirmed together.
const AT_ONCE: u32 = 100;

/// What to redrive.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Redrive {
    /// From which queue.
    #[arg(value_enum)]
    from: Aside,
    /// The oldest so many; without this, all that are there when it begins.
    #[arg(long)]
    most: Option<u32>,
}

/// A queue in which we put messages aside.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Aside {
    /// doorbell.quarantine: what came too often without an end.
    Quarantine,
    /// doorbell.rejected: what is no event, or was not allowed.
    Rejected,
}

impl Aside {
    fn queue(self) -> &'static str {
        match self {
            Self::Quarantine => QUARANTINE,
            Self::Rejected => REJECTED,
        }
    }
}

/// How it went.
#[derive(Clone, Copy, Debug, Default)]
struct Redriven {
    moved: u32,
    /// They do not say where they were published, and stay.
    unknown: u32,
}

impl Redrive {
    /// Carries it out, and says how it went.
    pub(crate) async fn carry_out(
        self,
        args: &CommonArgs,
        service: &Service,
    ) -> anyhow::Result<()> {
        let (broker, shutdown) = (plumbing::broker(args, service.name)?, &service.shutdown);
        let health = Health::new(&service.registry, &[(Dependency::RabbitmqPublish, true)])?;
        let connection = broker.connect("redrive").await?;
        let publisher = Publisher::start(broker, health, &service.registry, shutdown)?;
        let redriven = self.redrive(&connection, &publisher, shutdown).await;
        close(connection).await;
        // That is all: the publisher may end.
        shutdown.stop();
        let (Redriven { moved, unknown }, queue) = (redriven?, self.from.queue());
        tracing::info!(moved, queue, "redriven");
        anyhow::ensure!(
            unknown == 0,
            "{unknown} messages stay in {queue}: they do not say where they were published"
        );
        Ok(())
    }

    async fn redrive(
        self,
        connection: &Connection,
        publisher: &Publisher,
        shutdown: &Shutdown,
    ) -> anyhow::Result<Redriven> {
        let channel = in_time(connection, connection.create_channel()).await?;
        let there = in_time(connection, topology::waiting(&channel, self.from.queue())).await?;
        // What comes back meanwhile, because it is no better than before, is not sent round again.
        let mut left = self.most.map_or(there, |most| most.min(there));
        let mut redriven = Redriven::default();
        while left > 0 && !shutdown.is_stopping() {
            let most = left.min(AT_ONCE);
            let batch = in_time(connection, self.take(&channel, most)).await?;
            if batch.is_empty() {
                break;
            }
            left = left.saturating_sub(most);
            let publishing = batch.iter().filter_map(|(_, message)| message.as_ref());
            let publishing =
                try_join_all(publishing.map(|message| publisher.publish_surely(message)));
            // Whoever is told to stop meanwhile leaves them where they were; some may have gone all the same.
            let Some(published) = shutdown.until(publishing).await else { break };
            published?;
            for (tag, message) in batch {
                if message.is_none() {
                    redriven.unknown += 1;
                    continue;
                }
                redriven.moved += 1;
                in_time(connection, channel.basic_ack(tag, BasicAckOptions::default())).await?;
            }
        }
        // What is not acknowledged goes back to its place.
        in_time(connection, channel.close(200, "redriven".into())).await?;
        Ok(redriven)
    }

    /// The next messages, with what is to be published of each.
    async fn take(
        self,
        channel: &Channel,
        most: u32,
    ) -> lapin::Result<Vec<(u64, Option<Message>)>> {
        let mut batch = Vec::new();
        for _ in 0..most {
            let queue = self.from.queue().into();
            let Some(got) = channel.basic_get(queue, BasicGetOptions::default()).await? else {
                break;
            };
            let tag = got.delivery.delivery_tag;
            batch.push((tag, Message::redriven(got.delivery.into())));
        }
        Ok(batch)
    }
}
