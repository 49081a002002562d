//! How a story ends: with clean stops, and with nothing left behind.

use std::collections::BTreeMap;

use anyhow::Context as _;
use doorbell_common::rung::DelayQueue;
use doorbell_common::sideline::Lane;
use doorbell_platform::broker::topology;
use reqwest::Method;

use super::World;
use crate::amqp::Outsider;
use crate::receiver::Post;
use crate::wait::{eventually, seconds};

impl World {
    /// Ends the story: every service stops cleanly, and no message is left in any queue.
    ///
    /// # Errors
    /// A service did not stop with 0, or something was left behind.
    pub async fn finish(self) -> anyhow::Result<()> {
        self.finish_with(&[]).await
    }

    /// The same, with messages in these queues expected.
    ///
    /// # Errors
    /// A service did not stop with 0, or something was left behind.
    pub async fn finish_with(self, expected: &[(&str, u32)]) -> anyhow::Result<()> {
        let outsider = self.outsider().await?;
        self.until_quiet(&outsider, expected).await?;
        let names: Vec<String> = self.services.lock().await.keys().cloned().collect();
        for name in names {
            let code = self.stop(&name).await?;
            anyhow::ensure!(code == Some(0), "{name} ended with {code:?}, not 0");
        }
        // What was with a service unsettled is in its queue again by now.
        let mut depths = self.depths(&outsider).await?;
        for inbox in Lane::ALL.map(topology::retries) {
            if depths.remove(inbox).is_some() {
                // A nudge says nothing, and nobody was left to drop it.
                let left = self.left_in(inbox, &outsider).await?;
                depths.extend((left > 0).then(|| (inbox.to_owned(), left)));
            }
        }
        anyhow::ensure!(depths == sorted(expected), "unsettled at the end: {depths:?}");
        self.check_keys().await?;
        drop(outsider);
        // RabbitMQ gives up on it where that takes it too long, and has done a part.
        let path = format!("vhosts/{}", self.vhost);
        eventually("its virtual host is deleted", seconds(60), || async {
            self.engines.manage(Method::DELETE, &path).await.is_ok()
                || self.engines.manage(Method::GET, &path).await.is_err()
        })
        .await
    }

    /// How many POSTs came again although their endpoint had accepted the event before, once no message is left that
    /// could bring another one.
    ///
    /// # Errors
    /// Some message is left.
    pub async fn duplicates(&self) -> anyhow::Result<usize> {
        self.until_quiet(&self.outsider().await?, &[]).await?;
        let duplicates = self.ledger.duplicates(&self.receiver);
        // The same attempt again is a message that came again, another one a POST whose answer did not come.
        for post in duplicates.iter().take(5) {
            let (endpoint, id) = (&post.endpoint, &post.id);
            let posts = self.receiver.posts_to(endpoint);
            let since = |other: &Post| post.at.saturating_duration_since(other.at);
            let others = posts.iter().filter(|other| other.id == *id && other.at < post.at);
            let before: Vec<_> = others.map(|other| (other.attempt, since(other))).collect();
            let attempt = post.attempt;
            eprintln!("{id} came to {endpoint} as attempt {attempt}, and before as {before:.1?}");
        }
        if !duplicates.is_empty() {
            eprintln!("{}", self.outcomes().await);
        }
        Ok(duplicates.len())
    }

    /// Waits until no message is left in any queue, but for those that are expected, nor in hand.
    async fn until_quiet(
        &self,
        outsider: &Outsider,
        expected: &[(&str, u32)],
    ) -> anyhow::Result<()> {
        let in_hand = || async { self.metric("doorbell_messages_in_hand").await.unwrap_or(1.0) };
        // In hand, then in queues, then in hand again: a message on its way from one to the other
        // is seen by one of these.
        let quiet = || async {
            in_hand().await < 0.5
                && self.depths(outsider).await.is_ok_and(|depths| depths == sorted(expected))
                && in_hand().await < 0.5
        };
        let drained = eventually("nothing is left in queues or in hand", seconds(60), quiet).await;
        let (depths, in_hand) = (self.depths(outsider).await?, in_hand().await);
        drained.with_context(|| format!("left behind: {depths:?}, and {in_hand} in hand"))
    }

    /// Waits until no queue has a message, not even one that RabbitMQ's own worker is about to move on:
    /// such a one is neither ready nor with a consumer. For stories that kill RabbitMQ.
    ///
    /// # Errors
    /// Some do, for too long.
    pub async fn until_nothing_waits(&self) -> anyhow::Result<()> {
        // What `list_queues` says may be old, where a queue has another leader than it had. Newer ones want
        // the name of a function, older ones the function.
        let count = format!(
            "Ask = fun(Leader) -> try ra:consistent_query(Leader, fun rabbit_fifo:query_messages_total/1) \
             catch error:function_clause -> ra:consistent_query(Leader, {{rabbit_fifo, query_messages_total, []}}) end end, \
             Count = fun(Queue) -> case Ask(amqqueue:get_pid(Queue)) of {{ok, Number, _}} -> Number; Other -> Other end end, \
             Counts = [{{amqqueue:get_name(Queue), Count(Queue)}} || Queue <- rabbit_amqqueue:list(<<\"{}\">>), \
             amqqueue:get_type(Queue) =:= rabbit_quorum_queue], \
             [Some || {{_, Number}} = Some <- Counts, Number =/= 0].",
            self.vhost
        );
        let count = || async { self.engines.rabbitmq.lock().await.ctl(&["eval", &count]).await };
        let waited = eventually("no queue has a message", seconds(120), || async {
            count().await.is_ok_and(|text| text.trim() == "[]")
        });
        if let Err(error) = waited.await {
            let counted = format!("counted: {:?}", count().await);
            return Err(error.context(counted).context(self.whereabouts().await));
        }
        Ok(())
    }

    /// Takes out what is left in a retry-scheduler's inbox; answers how much says something.
    async fn left_in(&self, inbox: &str, outsider: &Outsider) -> anyhow::Result<u32> {
        let mut left = 0;
        while let Some(message) = outsider.take(inbox).await? {
            let kind = message.properties.content_type().clone();
            let is_nudge = kind.is_some_and(|kind| kind.as_str().ends_with(".nudge"));
            left += u32::from(!is_nudge);
        }
        Ok(left)
    }

    pub(super) async fn depths(
        &self,
        outsider: &Outsider,
    ) -> anyhow::Result<BTreeMap<String, u32>> {
        let mut queues = topology::ingress_queues();
        queues.extend(DelayQueue::all().map(DelayQueue::name));
        queues.extend(topology::sideline_queues());
        let others = [
            topology::PAGES,
            topology::SIDELINE_PAGES,
            topology::DELIVERIES,
            topology::RETRIES,
            topology::SIDELINE_RETRIES,
            topology::REJECTED,
            topology::QUARANTINE,
            topology::UNROUTED,
        ];
        queues.extend(others.map(str::to_owned));
        let mut depths = BTreeMap::new();
        for queue in queues {
            let depth = outsider.depth(&queue).await?;
            if depth > 0 {
                depths.insert(queue, depth);
            }
        }
        Ok(depths)
    }

    /// Redis has no key that would stay for ever but those of tenants and subscriptions.
    async fn check_keys(&self) -> anyhow::Result<()> {
        let mut redis = self.engines.redis_link().await?;
        let (pattern, mut cursor) = (format!("{}:*", self.vhost), 0_u64);
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
            let (next, keys): (u64, Vec<String>) = scan.query_async(&mut redis).await?;
            let mut asking = redis::pipe();
            for key in &keys {
                asking.cmd("TTL").arg(key);
            }
            let ttls: Vec<i64> = match keys.as_slice() {
                [] => vec![],
                _ => asking.query_async(&mut redis).await?,
            };
            for (key, ttl) in keys.iter().zip(ttls) {
                let lasting =
                    ["{main}", "{slot-", "{tenant-"].iter().any(|part| key.contains(part));
                // -1 is one that stays; one that has just gone is -2.
                anyhow::ensure!(ttl != -1 || lasting, "the key {key} has no time to live");
            }
            if next == 0 {
                return Ok(());
            }
            cursor = next;
        }
    }
}

fn sorted(expected: &[(&str, u32)]) -> BTreeMap<String, u32> {
    expected.iter().map(|(queue, depth)| ((*queue).to_owned(), *depth)).collect()
}
