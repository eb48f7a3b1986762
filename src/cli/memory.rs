//! What is in memory stays there: keys and tokens are in no core dump, and in no debugger of the same user.

use nix::sys::{
    prctl::set_dumpable,
    resource::{Resource, setrlimit},
};

/// No core file is written of this process; and where it is one that holds the broker's keys, no program that takes core dumps is
/// given one either (it is asked whatever the limit is, core(5)), and `/proc/PID` shows its memory, open files and environment to
/// nobody without `CAP_SYS_PTRACE`.
///
/// Clients stay as open as any other process of their user: the kernel attestor of a broker without that capability has to be able
/// to look at them, and all that they hold is that user's own.
///
/// # Errors
/// In a sentence.
pub(super) fn keep(with_keys: bool) -> Result<(), String> {
    let failed = |error| format!("core dumps cannot be switched off: {error}");
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(failed)?;
    if with_keys { set_dumpable(false).map_err(failed) } else { Ok(()) }
}
