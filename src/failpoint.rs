//! Steps at which a broker can be made to die, so that a test sees what every one of them leaves behind.
//!
//! Only a build with the feature `failpoints` dies, which is no build for users: it is never optimised, says what it is when it
//! starts, and serves on loopback alone. Everywhere else a step is nothing at all.
//!
//! A broker passes every step of a use case by one of these few: whatever another use case does in the store, in the log or to a
//! file is a step without having to be named.

use std::net::SocketAddr;

/// Makes the steps, their list, and their names.
macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $step:ident => $name:literal,)+) => {
        /// Something that is done, or about to be.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step {
            $($(#[doc = $doc])+ $step,)+
        }

        impl Step {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$step,)+];

            /// What it is called where it is armed.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$step => $name,)+
                }
            }
        }
    };
}

steps! {
    /// The store is about to be told something.
    StoreAsked => "store.asked",
    /// The store was told, and nobody knows yet.
    StoreWritten => "store.written",
    /// Records are about to be written.
    AuditAsked => "audit.asked",
    /// Records are written, and not synced.
    AuditWritten => "audit.written",
    /// Records are durable, and nobody knows yet.
    AuditSynced => "audit.synced",
    /// Ends are written to the journal, and not synced.
    JournalWritten => "journal.written",
    /// Ends are in the journal, and nobody knows yet.
    JournalSynced => "journal.synced",
    /// The next segment is whole, and not in its place.
    SegmentMade => "segment.made",
    /// The next segment is the one that grows, and the one before can still be written to.
    SegmentTurned => "segment.turned",
    /// A checkpoint is beside the log, and nowhere else.
    CheckpointKept => "checkpoint.kept",
    /// A checkpoint is elsewhere too.
    CheckpointAnchored => "checkpoint.anchored",
    /// A key or another small file is written beside its place.
    FileWritten => "file.written",
    /// A key or another small file is in its place, or gone from it.
    FilePlaced => "file.placed",
    /// An answer is about to leave.
    Answering => "answering",
}

/// Whether a broker may serve there: everywhere, unless it can be made to die.
///
/// # Errors
/// In a sentence.
pub(crate) fn check(mut addresses: impl Iterator<Item = SocketAddr>) -> Result<(), String> {
    if !cfg!(feature = "failpoints") {
        return Ok(());
    }
    tracing::warn!("this broker was built with `failpoints`: it can be made to die, and is for tests alone");
    match addresses.find(|address| !address.ip().is_loopback()) {
        Some(address) => Err(format!(
            "{address}: this broker was built with `failpoints`, and serves on loopback alone: build it without"
        )),
        None => Ok(()),
    }
}

/// Dies here, if that is wanted.
#[cfg(not(feature = "failpoints"))]
#[inline]
pub(crate) const fn reached(_: Step) {}

#[cfg(feature = "failpoints")]
pub(crate) use armed::reached;

#[cfg(feature = "failpoints")]
mod armed {
    use std::{
        fs::{File, OpenOptions},
        io::{self, Read as _, Seek as _, Write as _},
        time::Duration,
    };

    use super::Step;

    #[cfg(not(debug_assertions))]
    compile_error!("a broker that can be made to die (`failpoints`) is for tests, and is not built with optimisation");

    /// Names the file that says where to die: the name of a step, and at which passing of it from now on.
    const ARMED: &str = "REMIT_FAILPOINT";

    /// How long a broker takes to die.
    const LINGER: Duration = Duration::from_millis(40);

    /// Dies if this is where, as a process does that is killed: nothing is flushed, nothing is told.
    #[expect(clippy::disallowed_methods, reason = "it is no setting: in a build for users it is not there")]
    pub(crate) fn reached(step: Step) {
        let Some(path) = std::env::var_os(ARMED) else { return };
        let Ok(file) = OpenOptions::new().read(true).write(true).open(path) else { return };
        if matches!(is_last(step, file), Ok(true)) {
            // Whatever does not wait for this step, and should, gets the time to go on without it.
            std::thread::sleep(LINGER);
            // Keys are in memory, and belong in no core.
            let _ = nix::sys::prctl::set_dumpable(false);
            std::process::abort();
        }
    }

    /// Counts a passing of the step, and says `died` where it is the last one.
    fn is_last(step: Step, mut file: File) -> io::Result<bool> {
        // Held until the file is closed, by whichever thread: no passing is counted twice, nor after the test has disarmed.
        file.lock()?;
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        let count = text.trim().split_once(' ').filter(|(name, _)| *name == step.name());
        let Some(count) = count.and_then(|(_, count)| count.parse::<u32>().ok()) else { return Ok(false) };
        file.set_len(0)?;
        file.rewind()?;
        match count {
            0 | 1 => file.write_all(b"died").map(|()| true),
            more => write!(file, "{} {}", step.name(), more - 1).map(|()| false),
        }
    }
}
