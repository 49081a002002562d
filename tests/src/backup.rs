//! A backup of what lasts in Redis, as its operator would have one.

use redis::aio::MultiplexedConnection;

/// What one server has of one Doorbell, but for what has a time to live.
#[derive(Debug)]
pub struct Backup(Vec<(String, Vec<u8>)>);

impl Backup {
    /// Makes one of the keys with this prefix.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn make(redis: &mut MultiplexedConnection, prefix: &str) -> anyhow::Result<Self> {
        let keys: Vec<String> =
            redis::cmd("KEYS").arg(format!("{prefix}:*{{*")).query_async(redis).await?;
        let mut saved = Vec::new();
        let lasting =
            |key: &String| ["{main}", "{slot-", "{tenant-"].iter().any(|part| key.contains(part));
        for key in keys.into_iter().filter(lasting) {
            let value: Option<Vec<u8>> = redis::cmd("DUMP").arg(&key).query_async(redis).await?;
            saved.extend(value.map(|value| (key, value)));
        }
        // Tenants' records after all else of theirs, and the epoch last: until then nobody believes what is there. (Who
        // starts a server from its file need not think of that.)
        saved.sort_by_key(|(key, _)| (key.ends_with(":epoch"), key.ends_with(":record")));
        Ok(Self(saved))
    }

    /// Puts everything back.
    ///
    /// # Errors
    /// Redis did not answer.
    pub async fn restore(self, redis: &mut MultiplexedConnection) -> anyhow::Result<()> {
        for (key, value) in self.0 {
            let mut restore = redis::cmd("RESTORE");
            restore.arg(key).arg(0).arg(value).arg("REPLACE");
            restore.query_async::<()>(redis).await?;
        }
        Ok(())
    }
}
