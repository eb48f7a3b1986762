//! What may be removed because it was kept for long enough. It is gone for good then, so a clock that is wrong for a while, or was when
//! the machine started, takes nothing with it.

use crate::clock::{Clock, Time};

/// How long a broker has to have run before it removes anything, and how far the wall clock may go away meanwhile from the one that never
/// jumps, in seconds.
const HOUR: u64 = 3600;

/// How many of the segments that began then, in order, ended so many seconds ago or more. Of the last one nobody knows.
pub(super) fn kept_for(begins: &[Time], now: Time, retention: u64) -> usize {
    let is_over = |at: usize| {
        let (own, later) = (begins.get(at), begins.get(at + 1..).unwrap_or_default());
        // One that begins in the future was begun while the clock was wrong: when the one before it ended, the next one says.
        let next = later.iter().find(|began| **began <= now);
        // And none ended before it began.
        let ended = next.map(|next| own.filter(|own| **own <= now).map_or(*next, |own| *next.max(own)));
        ended.is_some_and(|ended| u64::try_from((now - ended).num_seconds()).is_ok_and(|age| age >= retention))
    };
    (0..begins.len()).take_while(|at| is_over(*at)).count()
}

/// Whether the wall clock can be gone by.
pub(super) struct Steady {
    /// What it said when the broker was started.
    wall: Time,
    /// What the clock said then that never jumps, in seconds.
    running: u64,
    /// Whether it was said that it cannot be.
    is_told: bool,
}

impl Steady {
    /// From now on.
    pub(super) fn new(clock: &dyn Clock) -> Self {
        Self { wall: clock.now(), running: clock.running().as_secs(), is_told: false }
    }

    /// Whether the broker has run for an hour, however often it was started before, and the clock was not set meanwhile.
    pub(super) fn is_believed(&mut self, clock: &dyn Clock) -> bool {
        let ran = clock.running().as_secs().saturating_sub(self.running);
        let gone = (clock.now() - self.wall).num_seconds();
        let was_set = gone.saturating_sub_unsigned(ran).unsigned_abs() > HOUR;
        if was_set && !self.is_told {
            tracing::error!(
                seconds = gone.saturating_sub_unsigned(ran),
                "the clock was set while the broker ran: nothing is removed from the audit log as long as it is an hour away from where it \
                 was, or until the broker is started again"
            );
        }
        self.is_told = was_set;
        !was_set && ran >= HOUR
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use chrono::TimeDelta;

    const DAY: u64 = 86_400;

    fn at(day: i64) -> Time {
        Time::from_timestamp(1_770_000_000 + day * 86_400, 0).unwrap()
    }

    #[test]
    fn a_segment_is_as_old_as_the_next_one() {
        let kept = |begins: &[i64], now: i64| {
            kept_for(&begins.iter().map(|day| at(*day)).collect::<Vec<_>>(), at(now), 10 * DAY)
        };
        assert_eq!(kept(&[0, 1, 2, 3], 10), 0);
        assert_eq!(kept(&[0, 1, 2, 3], 11), 1);
        assert_eq!(kept(&[0, 1, 2, 3], 12), 2);
        assert_eq!(kept(&[0, 1, 2, 3], 1000), 3, "the last one grows");
        // The clock was ahead when one of them began: what is before it, and the segment itself, is as old as what comes after it.
        let far = 26_000;
        assert_eq!(kept(&[0, far, 2, 3], 11), 0);
        assert_eq!(kept(&[0, far, 2, 3], 12), 2);
        assert_eq!(kept(&[0, far, 2, 3], 13), 3, "day 2 is over when day 3 begins");
        assert_eq!(kept(&[0, far, far], 1000), 0, "nobody knows");
        // And it was behind: nothing ended before it began.
        assert_eq!(kept(&[0, -9000, 2, 3], 1), 0);
        assert_eq!(kept(&[0, -9000, 2, 3], 10), 1);
        assert_eq!(kept(&[], 1), 0);
    }

    #[test]
    fn a_clock_is_believed_after_an_hour_and_unless_it_is_set() {
        let clock = ManualClock::at(at(0));
        let mut steady = Steady::new(&clock);
        assert!(!steady.is_believed(&clock), "it has only been started");
        clock.advance(TimeDelta::minutes(59));
        assert!(!steady.is_believed(&clock));
        clock.advance(TimeDelta::minutes(1));
        assert!(steady.is_believed(&clock));
        for by in [TimeDelta::days(26_000), TimeDelta::days(-1), TimeDelta::minutes(61)] {
            clock.set(by);
            assert!(!steady.is_believed(&clock), "{by}");
            clock.set(-by);
            assert!(steady.is_believed(&clock), "{by}");
        }
        clock.set(TimeDelta::minutes(2));
        assert!(steady.is_believed(&clock), "it is put right now and then");
    }
}
