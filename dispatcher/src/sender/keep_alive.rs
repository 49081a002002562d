//! Which connections are kept open for the POSTs to come. One that is kept in vain is a file, and some tens of
//! kilobytes, for seconds: an event for a million endpoints would have them by the ten thousand. So a connection
//! is kept to a host that was called within the time for which it would be, and there are so many at most; the
//! others are closed with their answer, which each end is told by `connection: close` (RFC 9112 §9.6).

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use url::Url;

/// Hosts are kept in so many maps, so that POSTs seldom meet at a lock.
const SHARDS: usize = 16;
/// With so many in one map, others are none that are called often.
const MOST_IN_SHARD: usize = 4096;

/// The connections that are kept, as far as can be told: the client tells only of those that it begins. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct KeepAlive {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shards: [Mutex<Shard>; SHARDS],
    hasher: RandomState,
    /// The most that may be kept, and how many are.
    most: usize,
    kept: AtomicUsize,
    /// For how long one is kept that nobody uses.
    idle: Duration,
}

#[derive(Debug)]
struct Shard {
    /// By their hashes: two with the same one only share what is known of them.
    hosts: HashMap<u64, Host>,
    looked_at: Instant,
}

/// What is known of the connections to one host.
#[derive(Debug)]
struct Host {
    /// When a POST to it last began or ended.
    called_at: Instant,
    /// How many POSTs use connections that are kept, and how many did at most since it was last looked at.
    in_use: usize,
    most_in_use: usize,
    /// How many connections are kept.
    kept: usize,
}

/// A POST in flight.
#[derive(Debug)]
pub(super) struct Use {
    keep_alive: KeepAlive,
    host: u64,
    keeps: bool,
}

impl KeepAlive {
    /// At most so many are kept, each for so long if nobody uses it.
    pub(super) fn new(most: usize, idle: Duration) -> Self {
        let looked_at = Instant::now();
        let shard = || Mutex::new(Shard { hosts: HashMap::new(), looked_at });
        let shards = std::array::from_fn(|_| shard());
        let (hasher, kept) = (RandomState::new(), AtomicUsize::new(0));
        Self { inner: Arc::new(Inner { shards, hasher, most, kept, idle }) }
    }

    /// A POST to this URL begins.
    pub(super) fn begin(&self, url: &Url) -> Use {
        let place = (url.scheme(), url.host_str(), url.port_or_known_default());
        let host = self.inner.hasher.hash_one(place);
        Use { keep_alive: self.clone(), host, keeps: self.inner.begin(host) }
    }
}

impl Inner {
    fn shard(&self, host: u64) -> MutexGuard<'_, Shard> {
        let number = usize::try_from(host).unwrap_or_default() % SHARDS;
        self.shards[number].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers whether the connection of a POST that begins is kept.
    fn begin(&self, host: u64) -> bool {
        let now = Instant::now();
        let mut shard = self.shard(host);
        if now - shard.looked_at > self.idle {
            shard.looked_at = now;
            self.forget(&mut shard, now);
        }
        let Some(host) = shard.hosts.get_mut(&host) else {
            if shard.hosts.len() < MOST_IN_SHARD {
                let first = Host { called_at: now, in_use: 0, most_in_use: 0, kept: 0 };
                shard.hosts.insert(host, first);
            }
            return false;
        };
        if host.is_deserted(now, self.idle) {
            self.keep(host, 0);
            host.called_at = now;
            return false;
        }
        host.called_at = now;
        if host.in_use == host.kept {
            if !self.take_one() {
                return false;
            }
            host.kept += 1;
        }
        host.in_use += 1;
        host.most_in_use = host.most_in_use.max(host.in_use);
        true
    }

    /// Takes room for one more, if there is any.
    fn take_one(&self) -> bool {
        let more = |kept| (kept < self.most).then_some(kept + 1);
        self.kept.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).is_ok()
    }

    /// Forgets those that the client has closed meanwhile, for nobody has used them.
    fn forget(&self, shard: &mut Shard, now: Instant) {
        shard.hosts.retain(|_, host| {
            let is_deserted = host.is_deserted(now, self.idle);
            self.keep(host, if is_deserted { 0 } else { host.most_in_use });
            host.most_in_use = host.in_use;
            !is_deserted
        });
    }

    /// Of the connections to a host only so many are kept any more.
    fn keep(&self, host: &mut Host, fewer: usize) {
        self.kept.fetch_sub(host.kept - fewer, Ordering::Relaxed);
        host.kept = fewer;
    }
}

impl Host {
    /// Whether the client has closed all of its connections meanwhile.
    fn is_deserted(&self, now: Instant, idle: Duration) -> bool {
        self.in_use == 0 && now - self.called_at > idle
    }
}

impl Use {
    /// Whether its connection is kept.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut shard = self.keep_alive.inner.shard(self.host);
        let Some(host) = shard.hosts.get_mut(&self.host) else { return };
        host.called_at = Instant::now();
        if self.keeps {
            host.in_use -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: Duration = Duration::from_secs(4);

    fn url(host: usize) -> Url {
        format!("https://host-{host}.example.com/{host}").parse().unwrap()
    }

    /// POSTs to these hosts, all at once; answers how many of their connections are kept.
    fn call(keep_alive: &KeepAlive, hosts: impl IntoIterator<Item = usize>) -> usize {
        let calls: Vec<Use> = hosts.into_iter().map(|host| keep_alive.begin(&url(host))).collect();
        calls.iter().filter(|call| call.keeps()).count()
    }

    fn kept(keep_alive: &KeepAlive) -> usize {
        keep_alive.inner.kept.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_where_another_post_is_likely() {
        let keep_alive = KeepAlive::new(100, IDLE);
        // Seconds after the one before, POSTs at once, of which so many connections are kept, and so many are kept then.
        for (pause, posts, kept_of_them, kept_then) in [
            (0, 3, 2, 2),
            (1, 1, 1, 2),
            (4, 3, 3, 3),
            (5, 1, 0, 0),
            (1, 1, 1, 1),
            (3, 2, 2, 2),
            (4, 1, 1, 2),
            (4, 1, 1, 2),
            (1, 1, 1, 1),
            (5, 2, 1, 1),
        ] {
            tokio::time::advance(Duration::from_secs(pause)).await;
            let of_them = call(&keep_alive, std::iter::repeat_n(7, posts));
            assert_eq!((of_them, kept(&keep_alive)), (kept_of_them, kept_then), "{pause} s later");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_long_in_use_is_kept_all_the_same() {
        let keep_alive = KeepAlive::new(100, IDLE);
        let posts = [(), ()].map(|()| keep_alive.begin(&url(1)));
        assert_eq!(posts.each_ref().map(Use::keeps), [false, true]);
        tokio::time::advance(10 * IDLE).await;
        assert_eq!(call(&keep_alive, [1]), 1, "it is being called");
        drop(posts);
        assert_eq!(call(&keep_alive, [1, 1]), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn very_many_hosts_have_no_more_than_so_many() {
        let keep_alive = KeepAlive::new(100, IDLE);
        assert_eq!(call(&keep_alive, 0..100_000), 0, "each is called once");
        let known: usize =
            keep_alive.inner.shards.iter().map(|shard| shard.lock().unwrap().hosts.len()).sum();
        assert_eq!(known, SHARDS * MOST_IN_SHARD);
        assert_eq!(call(&keep_alive, 0..1000), 100);
        assert_eq!(call(&keep_alive, 0..1000), 100);
        // There is room again for others, wherever they are.
        tokio::time::advance(3 * IDLE).await;
        call(&keep_alive, 2000..3000);
        tokio::time::advance(IDLE / 2).await;
        assert_eq!(call(&keep_alive, 2000..3000), 100);
    }
}
