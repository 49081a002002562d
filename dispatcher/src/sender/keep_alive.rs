//! Which connections are kept open for the POSTs to come. One that is kept in vain is a file, and some tens of
//! kilobytes, for seconds: an event for a million endpoints would have them by the ten thousand. So a connection
//! is kept to a host that was called within the time for which it would be, and only while not too many are unused; the
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
    /// With so many unused ones no more are kept, and how many there are.
    most: usize,
    unused: AtomicUsize,
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
    /// How many connections are kept, those included that POSTs use.
    kept: usize,
    /// How many POSTs use one of these, and how many did at most since it was last looked at.
    in_use: usize,
    most_in_use: usize,
}

/// A POST in flight.
#[derive(Debug)]
pub(super) struct Use {
    keep_alive: KeepAlive,
    host: u64,
    keeps: bool,
    /// Whether its connection is still good.
    stays: bool,
}

impl KeepAlive {
    /// None is kept more while so many are unused, each of them for so long.
    pub(super) fn new(most: usize, idle: Duration) -> Self {
        let looked_at = Instant::now();
        let shard = || Mutex::new(Shard { hosts: HashMap::new(), looked_at });
        let shards = std::array::from_fn(|_| shard());
        let (hasher, unused) = (RandomState::new(), AtomicUsize::new(0));
        Self { inner: Arc::new(Inner { shards, hasher, most, unused, idle }) }
    }

    /// A POST to this URL begins.
    pub(super) fn begin(&self, url: &Url) -> Use {
        let place = (url.scheme(), url.host_str(), url.port_or_known_default());
        let host = self.inner.hasher.hash_one(place);
        Use { keep_alive: self.clone(), host, keeps: self.inner.begin(host), stays: false }
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
                let first = Host { called_at: now, kept: 0, in_use: 0, most_in_use: 0 };
                shard.hosts.insert(host, first);
            }
            return false;
        };
        let is_deserted = host.is_deserted(now, self.idle);
        host.called_at = now;
        if is_deserted {
            self.keep(host, 0);
            return false;
        }
        if host.in_use < host.kept {
            self.unused.fetch_sub(1, Ordering::Relaxed);
        } else if self.unused.load(Ordering::Relaxed) < self.most {
            host.kept += 1;
        } else {
            return false;
        }
        host.in_use += 1;
        host.most_in_use = host.most_in_use.max(host.in_use);
        true
    }

    /// A POST ends that has used a connection which is kept, if it stays.
    fn end(&self, host: &mut Host, stays: bool) {
        host.in_use -= 1;
        if stays {
            self.unused.fetch_add(1, Ordering::Relaxed);
        } else {
            host.kept -= 1;
        }
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
    fn keep(&self, host: &mut Host, at_most: usize) {
        let closed = host.kept.saturating_sub(at_most);
        self.unused.fetch_sub(closed, Ordering::Relaxed);
        host.kept -= closed;
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

    /// The POST has ended well, and its connection may be used again; otherwise it is closed.
    pub(super) fn stay(mut self) {
        self.stays = true;
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut shard = self.keep_alive.inner.shard(self.host);
        let Some(host) = shard.hosts.get_mut(&self.host) else { return };
        host.called_at = Instant::now();
        if self.keeps {
            self.keep_alive.inner.end(host, self.stays);
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

    /// POSTs to these hosts, all at once, which end well; answers how many of their connections are kept.
    fn call(keep_alive: &KeepAlive, hosts: impl IntoIterator<Item = usize>) -> usize {
        let calls: Vec<Use> = hosts.into_iter().map(|host| keep_alive.begin(&url(host))).collect();
        let kept = calls.iter().filter(|call| call.keeps()).count();
        calls.into_iter().for_each(Use::stay);
        kept
    }

    fn unused(keep_alive: &KeepAlive) -> usize {
        keep_alive.inner.unused.load(Ordering::Relaxed)
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_kept_where_another_post_is_likely() {
        let keep_alive = KeepAlive::new(100, IDLE);
        // Seconds after the one before, POSTs at once, of which so many connections are kept, and so many are unused then.
        for (pause, posts, kept, unused_then) in [
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
            assert_eq!((of_them, unused(&keep_alive)), (kept, unused_then), "{pause} s later");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_is_long_in_use_is_kept_all_the_same() {
        let keep_alive = KeepAlive::new(100, IDLE);
        let posts = [(), ()].map(|()| keep_alive.begin(&url(1)));
        assert_eq!(posts.each_ref().map(Use::keeps), [false, true]);
        tokio::time::advance(10 * IDLE).await;
        assert_eq!(call(&keep_alive, [1]), 1, "it is being called");
        posts.into_iter().for_each(Use::stay);
        assert_eq!(unused(&keep_alive), 2);
        assert_eq!(call(&keep_alive, [1, 1]), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_hang_take_nobodys_place() {
        let keep_alive = KeepAlive::new(10, IDLE);
        let hanging: Vec<Use> = (0..100).map(|_| keep_alive.begin(&url(1))).collect();
        assert_eq!((call(&keep_alive, [2]), call(&keep_alive, [2])), (0, 1));
        // Their time is up, and their connections are closed.
        drop(hanging);
        assert_eq!(unused(&keep_alive), 1);
        tokio::time::advance(IDLE).await;
        assert_eq!(call(&keep_alive, [2, 2]), 2);
        assert_eq!(unused(&keep_alive), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn very_many_hosts_leave_no_more_than_so_many() {
        let keep_alive = KeepAlive::new(100, IDLE);
        let one_by_one = |hosts: std::ops::Range<usize>| {
            hosts.map(|host| call(&keep_alive, [host])).sum::<usize>()
        };
        assert_eq!(one_by_one(0..100_000), 0, "each is called once");
        let shards = keep_alive.inner.shards.iter();
        let known: usize = shards.map(|shard| shard.lock().unwrap().hosts.len()).sum();
        assert_eq!(known, SHARDS * MOST_IN_SHARD);
        assert_eq!(one_by_one(0..1000), 100);
        assert_eq!(one_by_one(0..1000), 100);
        assert_eq!(unused(&keep_alive), 100);
        // There is room again for others, wherever they are.
        tokio::time::advance(3 * IDLE).await;
        one_by_one(2000..3000);
        tokio::time::advance(IDLE / 2).await;
        assert_eq!(one_by_one(2000..3000), 100);
    }
}
