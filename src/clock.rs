//! Time, as a parameter. One reading per request is taken here and handed down; nothing else looks at a clock.

use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use std::{
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    time::Duration,
};

/// A point in wall-clock time, UTC, to the millisecond.
pub type Time = DateTime<Utc>;

/// Where a broker reads the time.
pub trait Clock: Send + Sync {
    /// The current wall-clock time. Never used to measure durations.
    fn now(&self) -> Time;

    /// How long a clock has run that never jumps, since a beginning that is the same as long as the process runs.
    fn running(&self) -> Duration;
}

/// The machine's clock.
#[derive(Debug, Default, Clone, Copy)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    fn now(&self) -> Time {
        let now = Utc::now();
        now.duration_trunc(TimeDelta::milliseconds(1)).unwrap_or(now)
    }

    fn running(&self) -> Duration {
        monotonic()
    }
}

/// A clock that a test moves by hand.
#[derive(Debug)]
pub struct ManualClock {
    wall: AtomicI64,
    running: AtomicU64,
}

impl ManualClock {
    /// A clock that stands at `at`.
    #[must_use]
    pub fn at(at: Time) -> Self {
        Self { wall: AtomicI64::new(at.timestamp_millis()), running: AtomicU64::new(0) }
    }

    /// Lets so much time pass; backwards it is the wall clock alone that goes.
    pub fn advance(&self, by: TimeDelta) {
        self.running.fetch_add(u64::try_from(by.num_milliseconds()).unwrap_or_default(), Ordering::SeqCst);
        self.set(by);
    }

    /// Sets the wall clock, forwards or backwards, and no time passes.
    pub fn set(&self, by: TimeDelta) {
        self.wall.fetch_add(by.num_milliseconds(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Time {
        DateTime::from_timestamp_millis(self.wall.load(Ordering::SeqCst)).unwrap_or_default()
    }

    fn running(&self) -> Duration {
        Duration::from_millis(self.running.load(Ordering::SeqCst))
    }
}

/// The whole second that `time` lies in, which is what `iat` and `exp` can express (RFC 7519, `NumericDate`).
#[must_use]
pub fn whole_second(time: Time) -> Time {
    time.duration_trunc(TimeDelta::seconds(1)).unwrap_or(time)
}

/// `time` plus a number of whole seconds, or `None` past the end of time: a lifetime is never rounded to 'no expiry'.
#[must_use]
pub fn after(time: Time, seconds: u32) -> Option<Time> {
    whole_second(time).checked_add_signed(TimeDelta::seconds(i64::from(seconds)))
}

/// The same moment on two clocks: what the world calls it, and what nobody can turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock. It may jump.
    pub wall: Time,
    /// How long a clock has run that never jumps, since a beginning that is the same for all moments of a process.
    pub monotonic: Duration,
}

#[cfg(feature = "verify")]
impl Moment {
    /// Now, by the machine's clocks. Of the monotonic ones it is that which goes on counting while the machine sleeps, where there is one:
    /// what was fresh before is not fresh after.
    #[must_use]
    pub fn now() -> Self {
        Self { wall: SystemClock.now(), monotonic: monotonic() }
    }
}

#[cfg(all(feature = "verify", target_os = "linux"))]
fn monotonic() -> Duration {
    use nix::time::{ClockId, clock_gettime};
    // Nothing is fresh on a machine that does not count.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
}

#[cfg(not(all(feature = "verify", target_os = "linux")))]
fn monotonic() -> Duration {
    static BEGINNING: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    BEGINNING.get_or_init(std::time::Instant::now).elapsed()
}
