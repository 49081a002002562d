//! Logs, to stderr, by a thread of their own: whoever takes them may stand still, as a driver of a container's logs does
//! whose server is away, and nothing else waits for that. What finds no room meanwhile is dropped, and counted.

use std::io::Write as _;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntCounter, Registry};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::args::{CommonArgs, LogFormat};
use crate::service::WrongArguments;

/// Lines that may wait to be written, of some 200 bytes each.
const ROOM: usize = 16_384;
/// How long the end of a service waits for its last words to be written.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// The logs of this process.
pub(crate) struct Logs {
    writer: WorkerGuard,
    dropped: ErrorCounter,
}

/// Lines that found no room.
struct Dropped {
    lines: ErrorCounter,
    counter: IntCounter,
}

impl Logs {
    /// Logs from now on; panics, too.
    ///
    /// # Errors
    /// The filter is wrong.
    pub(crate) fn start(args: &CommonArgs) -> Result<Self, WrongArguments> {
        let filter = EnvFilter::try_new(&args.log)
            .map_err(|error| WrongArguments(format!("--log: {error}")))?;
        let writing = NonBlockingBuilder::default()
            .lossy(true)
            .buffered_lines_limit(ROOM)
            .thread_name("logs");
        let (lines, writer) = writing.finish(std::io::stderr());
        let dropped = lines.error_counter();
        let logs = tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(lines)
            // It would say so where nobody reads, and panic over that.
            .log_internal_errors(false);
        match args.log_format {
            LogFormat::Text => logs.with_ansi(false).init(),
            LogFormat::Json => logs.json().flatten_event(true).init(),
        }
        log_panics();
        Ok(Self { writer, dropped })
    }

    /// Counts in this registry what is dropped.
    ///
    /// # Errors
    /// The metric's name is taken.
    pub(crate) fn count(&self, registry: &Registry) -> prometheus::Result<()> {
        let counter = IntCounter::new(
            "doorbell_log_lines_dropped_total",
            "Lines of the log that were dropped, because nobody took those before them.",
        )?;
        registry.register(Box::new(Dropped { lines: self.dropped.clone(), counter }))
    }

    /// Writes what is left, and then this, if there is anything more to say.
    pub(crate) fn end(self, last_words: Option<String>) {
        for_a_moment(move || {
            drop(self.writer);
            if let Some(sentence) = last_words {
                say(&sentence);
            }
        });
    }
}

impl Collector for Dropped {
    fn desc(&self) -> Vec<&Desc> {
        self.counter.desc()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let lines = u64::try_from(self.lines.dropped_lines()).unwrap_or(u64::MAX);
        self.counter.inc_by(lines.saturating_sub(self.counter.get()));
        self.counter.collect()
    }
}

/// A panic is a bug: it is logged like everything else, with its place.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let message = panic.payload_as_str().unwrap_or("no message");
        tracing::error!(place, message, "panic");
    }));
}

/// Prints a fatal sentence. That nobody may be there to read it is no reason for another exit code.
pub(crate) fn say(sentence: &str) {
    let _unread = writeln!(std::io::stderr(), "{sentence}");
}

/// Does something that may take for ever, and does not wait for ever.
fn for_a_moment(work: impl FnOnce() + Send + 'static) {
    let (done, end) = mpsc::channel::<()>();
    thread::spawn(move || {
        work();
        drop(done);
    });
    let _too_late = end.recv_timeout(LAST_WORDS).is_err();
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Takes one line, and never another.
    struct Stuck(mpsc::Receiver<()>);

    impl io::Write for Stuck {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _never = self.0.recv().is_err();
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let (end, stuck) = mpsc::channel();
        let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(10);
        let (mut lines, writer) = builder.finish(Stuck(stuck));
        for _ in 0..100 {
            lines.write_all(b"a line\n").unwrap();
        }
        let counter = IntCounter::new("dropped", "Dropped.").unwrap();
        let dropped = Dropped { lines: lines.error_counter(), counter };
        for _ in 0..2 {
            let [family] = dropped.collect().try_into().unwrap();
            let count = family.get_metric()[0].get_counter().get_value();
            assert!((89.0..=90.0).contains(&count), "{count}");
        }
        drop(end);
        drop(writer);
    }
}
