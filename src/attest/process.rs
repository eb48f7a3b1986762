//! What `/proc` says about a process. All of it is read by number, so it says something about the peer only if the
//! pidfd still refers to a living process *after* it was read: a number is not given away while its process lives.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

/// Enough to tell one process from any other that had or will have its number, and to see that it runs what it ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Identity {
    /// Clock ticks between boot and its start.
    pub(super) start: u64,
    /// Its executable; absent where the broker may not look.
    pub(super) executable: Option<Executable>,
}

/// Which file a process runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Executable {
    pub(super) path: PathBuf,
    pub(super) device: u64,
    pub(super) inode: u64,
    /// Whether no path leads to it any more.
    pub(super) deleted: bool,
}

/// The fields of `/proc/PID/stat` that are used.
struct Stat {
    session: i32,
    start: u64,
}

impl Identity {
    /// # Errors
    /// When there is no such process, or `/proc` hides it.
    pub(super) fn read(pid: i32) -> io::Result<Self> {
        let link = exe(pid);
        let executable = fs::read_link(&link).and_then(|path| {
            let file = fs::metadata(&link)?;
            Ok(Executable { path, device: file.dev(), inode: file.ino(), deleted: file.nlink() == 0 })
        });
        Ok(Self { start: stat(pid)?.start, executable: executable.ok() })
    }
}

/// The name through which the file that a process runs can be opened, whatever has become of its path.
pub(super) fn exe(pid: i32) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/exe"))
}

/// Which process session a process acts for, as an instance. The leader's start time tells the session from later ones
/// with its number. Where the leader has gone, or the session began outside the broker's view, nothing could tell two
/// sessions apart, so the process stands for itself alone.
///
/// # Errors
/// When there is no such process, or `/proc` hides it.
pub(super) fn instance(pid: i32, boot: &str) -> io::Result<String> {
    let own = stat(pid)?;
    let leader = if own.session > 0 { stat(own.session).ok() } else { None };
    Ok(match leader {
        Some(leader) if leader.session == own.session => format!("session:{boot}:{}:{}", own.session, leader.start),
        Some(_) | None => format!("process:{boot}:{pid}:{}", own.start),
    })
}

/// Whether another process holds it by `ptrace` and could speak for it.
///
/// # Errors
/// When there is no such process, or `/proc` hides it.
pub(super) fn is_traced(pid: i32) -> io::Result<bool> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let tracer = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    Ok(tracer.is_none_or(|tracer| tracer.trim() != "0"))
}

/// Whether a process sees the files that the broker or the machine's first process sees. Where it does not, it may have
/// put any file at any path.
pub(super) fn shares_files(pid: i32) -> bool {
    let namespace = |of: &str| fs::read_link(Path::new("/proc").join(of).join("ns/mnt")).ok();
    let theirs = namespace(&pid.to_string());
    theirs.is_some() && (theirs == namespace("self") || theirs == namespace("1"))
}

/// The paths of its control groups.
///
/// # Errors
/// When there is no such process, or `/proc` hides it.
pub(super) fn cgroup(pid: i32) -> io::Result<String> {
    fs::read_to_string(format!("/proc/{pid}/cgroup"))
}

/// The id of this boot of the machine.
///
/// # Errors
/// When `/proc` does not show it.
pub(super) fn boot_id() -> io::Result<String> {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned())
}

/// The process that one of our pidfds refers to.
///
/// # Errors
/// When the descriptor is none, or the process is gone.
pub(super) fn of_pidfd(descriptor: i32) -> io::Result<i32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{descriptor}"))?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    let pid = pid.and_then(|pid| pid.trim().parse().ok()).filter(|pid| *pid >= 0);
    pid.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the peer process is gone"))
}

fn stat(pid: i32) -> io::Result<Stat> {
    let text = fs::read(format!("/proc/{pid}/stat"))?;
    parse_stat(&String::from_utf8_lossy(&text)).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The second field is the program's name in parentheses and may hold anything, parentheses and spaces too; so what
/// follows the last `)` is the third field.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
    Some(Stat { session: fields.get(6 - 3)?.parse().ok()?, start: fields.get(22 - 3)?.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_pass_for_fields() {
        let rest = "S 1 2 77 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1";
        let text = format!("9 (x) R 1 1 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 6 (y) {rest}");
        let stat = parse_stat(&text).unwrap();
        assert_eq!((stat.session, stat.start), (77, 4242));
        assert!(parse_stat("9 (x").is_none());
        assert!(parse_stat("9 (x) S 1 2").is_none());
    }

    #[test]
    fn this_process_is_what_it_is() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let identity = Identity::read(pid).unwrap();
        assert_eq!(identity, Identity::read(pid).unwrap());
        assert_eq!(identity.executable.unwrap().path, std::env::current_exe().unwrap());
        assert!(shares_files(pid) && !is_traced(pid).unwrap());
        assert!(Identity::read(i32::MAX).is_err() && instance(i32::MAX, "b").is_err());
    }
}
