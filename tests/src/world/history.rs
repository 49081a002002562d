//! The history of attempts, beside what the endpoints saw.

use std::collections::HashSet;

use doorbell_common::attempt::AttemptRecord;
use doorbell_platform::broker::topology::ATTEMPTS;

use super::World;

impl World {
    /// Checks that every POST that came stands in the history, once everything is settled: for stories
    /// in which no dispatcher is killed.
    ///
    /// # Errors
    /// One is missing, or there is something in the history that is no record.
    pub async fn check_history(&self) -> anyhow::Result<()> {
        let mut recorded = HashSet::new();
        for message in self.outsider().await?.whole_stream(ATTEMPTS).await? {
            for line in message.data.split(|byte| *byte == b'\n') {
                let record: AttemptRecord = serde_json::from_slice(line)?;
                recorded.insert((
                    record.event.to_string(),
                    record.subscription.to_string(),
                    record.attempt,
                ));
            }
        }
        let posts = self.receiver.posts();
        let missing: Vec<_> = posts
            .iter()
            .map(|post| {
                let subscription = post.headers.get("doorbell-subscription");
                let subscription = subscription.and_then(|id| id.to_str().ok()).unwrap_or_default();
                (post.id.clone(), subscription.to_owned(), post.attempt)
            })
            .filter(|attempt| !recorded.contains(attempt))
            .collect();
        anyhow::ensure!(
            missing.is_empty(),
            "{} of {} POSTs are not in the history: {:?} …",
            missing.len(),
            posts.len(),
            missing.iter().take(3).collect::<Vec<_>>()
        );
        Ok(())
    }
}
