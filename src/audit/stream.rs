//! Records on standard output too, as they stand in the files, for whatever collects the output of a container.
//!
//! A record goes there once it is durable, and the log does not wait for it: where nobody reads, what finds no room in the queue is left
//! out there, counted and told, and is in the files all the same.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::Builder,
    time::{Duration, Instant},
};

use crate::{
    metrics::Metrics,
    queue::{Entrance, Exit, bounded},
};

/// How many records may wait to be written, and of how many octets.
const RECORDS: usize = 4096;
const OCTETS: usize = 4 << 20;
/// The most that is written in one go, in octets, and one record.
const BATCH: usize = 1 << 16;
/// How often it is told what was left out.
const TELL: Duration = Duration::from_secs(60);
/// How long what still waits may take at the end.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an output that would block is left alone.
const PAUSE: Duration = Duration::from_millis(20);

/// The way of records to an output.
pub(super) struct Stream {
    entrance: Entrance<String>,
    /// How many were let in, and neither written nor given up.
    waiting: Arc<AtomicU64>,
    /// Ends with the thread.
    ended: mpsc::Receiver<()>,
    lost: Lost,
    metrics: Metrics,
}

impl Stream {
    /// Writes to standard output, past everything that buffers it.
    ///
    /// # Errors
    /// When there is none, or no thread.
    pub(super) fn to_stdout(metrics: Metrics) -> io::Result<Self> {
        let output = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Self::to(output, metrics)
    }

    fn to(output: impl Write + Send + 'static, metrics: Metrics) -> io::Result<Self> {
        let (entrance, exit) = bounded(RECORDS, OCTETS);
        let (end, ended) = mpsc::channel();
        let waiting = Arc::<AtomicU64>::default();
        let writer = Writer {
            exit,
            output,
            waiting: waiting.clone(),
            lost: Lost::default(),
            is_torn: false,
            metrics: metrics.clone(),
        };
        Builder::new().name("audit-stdout".to_owned()).spawn(move || {
            writer.run();
            drop(end);
        })?;
        Ok(Self { entrance, waiting, ended, lost: Lost::default(), metrics })
    }

    /// A record is durable. Waits for nothing.
    pub(super) fn offer(&mut self, line: &str) {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        if !self.entrance.offer(line.len() + 1, format!("{line}\n")) {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            self.metrics.streamed(false, 1);
            self.lost.add(1, "it is not read");
        }
    }

    /// There are no more records: what still waits is written, as far as that is possible in a moment.
    pub(super) fn finish(self) {
        let Self { entrance, waiting, ended, mut lost, metrics } = self;
        drop(entrance);
        // It says nothing, and is gone when the thread is.
        let _ = ended.recv_timeout(PATIENCE);
        let left = waiting.load(Ordering::Acquire);
        if left > 0 {
            metrics.streamed(false, left);
            lost.count += left;
        }
        lost.tell("it is not read");
    }
}

/// What was left out and is not told yet.
#[derive(Default)]
struct Lost {
    count: u64,
    told: Option<Instant>,
}

impl Lost {
    fn add(&mut self, more: u64, why: &str) {
        self.count += more;
        if self.told.is_none_or(|at| at.elapsed() >= TELL) {
            self.tell(why);
        }
    }

    fn tell(&mut self, why: &str) {
        if self.count > 0 {
            tracing::warn!(
                records = self.count,
                why,
                "records are left out of standard output; the audit log has them"
            );
            *self = Self { count: 0, told: Some(Instant::now()) };
        }
    }
}

/// The thread that an output can hold up.
struct Writer<W> {
    exit: Exit<String>,
    output: W,
    waiting: Arc<AtomicU64>,
    lost: Lost,
    /// Whether the last line has no end.
    is_torn: bool,
    metrics: Metrics,
}

impl<W: Write> Writer<W> {
    fn run(mut self) {
        while let Some((_, first)) = self.exit.wait() {
            let (mut lines, mut count) = (first, 1);
            while lines.len() < BATCH
                && let Some((_, next)) = self.exit.take()
            {
                lines.push_str(&next);
                count += 1;
            }
            let written = self.write(lines.as_bytes());
            self.waiting.fetch_sub(count, Ordering::AcqRel);
            self.metrics.streamed(written.is_ok(), count);
            if let Err(error) = written {
                self.lost.add(count, &error.to_string());
            }
        }
        self.lost.tell("it could not be written");
    }

    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.is_torn {
            // A part of a line takes no other with it.
            self.write_all(b"\n")?;
            self.is_torn = false;
        }
        self.write_all(lines)
    }

    /// An output that somebody else has made one that does not block is waited for as well.
    fn write_all(&mut self, mut octets: &[u8]) -> io::Result<()> {
        let all = octets.len();
        while !octets.is_empty() {
            let written = match self.output.write(octets) {
                Ok(0) => Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    octets = &octets[written..];
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    std::thread::sleep(PAUSE);
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = written {
                self.is_torn |= octets.len() < all;
                return Err(error);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// An output that fails after so many octets, once.
    #[derive(Clone, Default)]
    struct Output {
        written: Arc<Mutex<Vec<u8>>>,
        fails_at: Arc<Mutex<Option<usize>>>,
    }

    impl Write for Output {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            let (mut written, mut fails_at) = (self.written.lock().unwrap(), self.fails_at.lock().unwrap());
            let some = octets.len().min(7);
            if fails_at.is_some_and(|at| at <= written.len()) {
                *fails_at = None;
                return Err(io::ErrorKind::BrokenPipe.into());
            }
            written.extend_from_slice(&octets[..some]);
            Ok(some)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_failed_half_way_takes_no_other_line_with_it() {
        let output = Output::default();
        *output.fails_at.lock().unwrap() = Some(20);
        let metrics = Metrics::new("");
        let mut stream = Stream::to(output.clone(), metrics).unwrap();
        let said = || String::from_utf8(output.written.lock().unwrap().clone()).unwrap();
        for line in ["{\"sequence\":1}", "{\"sequence\":2}", "{\"sequence\":3}"] {
            let before = said().len();
            stream.offer(line);
            while said().len() < before + 5 || stream.waiting.load(Ordering::Acquire) > 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        stream.finish();
        assert_eq!(said(), "{\"sequence\":1}\n{\"seque\n{\"sequence\":3}\n");
    }

    #[test]
    fn nobody_waits_for_an_output_that_hangs() {
        struct Hangs;
        impl Write for Hangs {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                std::thread::sleep(Duration::from_secs(60));
                Ok(0)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut stream = Stream::to(Hangs, Metrics::new("")).unwrap();
        let begun = Instant::now();
        let line = "x".repeat(2000);
        for _ in 0..2 * RECORDS {
            stream.offer(&line);
        }
        let most = (OCTETS / line.len()) as u64 + 100;
        assert!(stream.waiting.load(Ordering::Acquire) <= most);
        stream.finish();
        assert!(begun.elapsed() < Duration::from_secs(10));
    }
}
