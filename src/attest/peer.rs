//! The process at the other end of a Unix socket, taken down at accept and compared at every request.

use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt},
    unistd::{geteuid, getuid},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
};

use super::{
    Mark, Rejected, cgroup,
    process::{self, Identity},
};
use crate::id::sha256_hex;

/// The process at the other end of a connection, as it was when the connection was accepted.
#[derive(Debug, Clone)]
pub struct Peer(pub(super) Arc<Accepted>);

#[derive(Debug)]
pub(super) struct Accepted {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: i32,
    /// The process itself, where the kernel gives it.
    pub(super) pinned: Option<OwnedFd>,
    /// Absent where `/proc` shows nothing of it: another pid namespace, or a `/proc` that hides processes.
    pub(super) seen: Option<Seen>,
}

#[derive(Debug)]
pub(super) struct Seen {
    pub(super) identity: Identity,
    cgroups: Vec<String>,
    pub(super) instance: String,
    shares_files: bool,
}

impl Peer {
    /// Takes down who is at the other end. To be called when the connection is accepted, before anything is read.
    ///
    /// # Errors
    /// When the peer process has gone already, or the kernel does not answer: then there is nobody to talk to.
    pub fn of(stream: &tokio::net::UnixStream) -> io::Result<Self> {
        let credentials = getsockopt(stream, sockopt::PeerCredentials)?;
        let pid = credentials.pid();
        let pinned = match getsockopt(stream, sockopt::PeerPidfd) {
            Ok(descriptor) => Some(descriptor),
            Err(Errno::ENOPROTOOPT) => None,
            Err(error) => return Err(error.into()),
        };
        if let Some(descriptor) = &pinned
            && process::of_pidfd(descriptor.as_raw_fd())? != pid
        {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the peer process is gone"));
        }
        let seen = if pid > 0 { Seen::look(pid).ok() } else { None };
        let peer = Accepted { uid: credentials.uid(), gid: credentials.gid(), pid, pinned, seen };
        if peer.is_alive() {
            Ok(Self(Arc::new(peer)))
        } else {
            Err(io::Error::new(io::ErrorKind::NotConnected, "the peer process is gone"))
        }
    }

    /// Its user, by the kernel's word.
    #[must_use]
    pub fn uid(&self) -> u32 {
        self.0.uid
    }
}

impl Seen {
    pub(super) fn look(pid: i32) -> io::Result<Self> {
        let boot = process::boot_id()?;
        let cgroups = cgroup::paths(&process::cgroup(pid)?);
        let instance = match cgroup::instance(&cgroups, &boot) {
            Some(named) => named,
            None => process::instance(pid, &boot)?,
        };
        Ok(Self { identity: Identity::read(pid)?, cgroups, instance, shares_files: process::shares_files(pid) })
    }
}

impl Accepted {
    /// Whether the process that connected still lives; without a pidfd there is no telling.
    fn is_alive(&self) -> bool {
        let Some(descriptor) = &self.pinned else { return true };
        // A pidfd becomes readable when its process ends. Whatever else the kernel answers is no sign of life.
        let mut polled = [PollFd::new(descriptor.as_fd(), PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO) == Ok(0)
    }

    /// Checks that the peer is still what was accepted.
    pub(super) fn check(&self) -> Result<&Seen, Rejected> {
        let refused = |why: &str| Rejected::Refused(why.into());
        let seen = self.seen.as_ref().ok_or_else(|| refused("the broker cannot see the peer process in /proc"))?;
        let identity = Identity::read(self.pid).map_err(|_| refused("the peer process is gone"))?;
        let traced = process::is_traced(self.pid).map_err(|_| refused("the peer process is gone"))?;
        if !self.is_alive() {
            return Err(refused("the peer process is gone"));
        }
        if identity != seen.identity {
            return Err(refused("the peer is another process or runs another program than when it connected"));
        }
        if identity.executable.is_some_and(|executable| executable.deleted) {
            return Err(refused("the peer's executable was deleted or replaced; start it anew"));
        }
        if traced {
            return Err(refused("another process traces the peer and could speak for it"));
        }
        Ok(seen)
    }

    pub(super) fn marks(&self) -> Vec<Mark> {
        let own = [getuid().as_raw(), geteuid().as_raw()].contains(&self.uid);
        let unpinned = self.pinned.is_none().then_some(Mark::Unpinned);
        unpinned.into_iter().chain(own.then_some(Mark::Unseparated)).collect()
    }

    pub(super) fn selectors(&self, seen: &Seen, sha256: Option<&str>) -> BTreeSet<String> {
        let mut selectors = BTreeSet::from([format!("unix:uid:{}", self.uid), format!("unix:gid:{}", self.gid)]);
        if self.pinned.is_none() {
            return selectors;
        }
        let path = seen.identity.executable.as_ref().and_then(|executable| executable.path.to_str());
        if let Some(path) = path.filter(|path| seen.shares_files && !path.chars().any(char::is_control)) {
            selectors.insert(format!("unix:path:{path}"));
        }
        selectors.extend(sha256.map(|sha256| format!("unix:sha256:{sha256}")));
        selectors.extend(seen.cgroups.iter().map(|path| format!("unix:cgroup:{path}")));
        selectors
    }

    /// One digest for one process, on every connection it makes.
    pub(super) fn digest(&self, seen: &Seen) -> String {
        let mut facts = BTreeMap::from([
            ("gid", self.gid.to_string()),
            ("instance", seen.instance.clone()),
            ("uid", self.uid.to_string()),
        ]);
        if self.pinned.is_some() {
            facts.insert("pid", self.pid.to_string());
            facts.insert("start", seen.identity.start.to_string());
            if let Some(executable) = &seen.identity.executable {
                facts.insert("path", executable.path.to_string_lossy().into_owned());
                facts.insert("file", format!("{}:{}", executable.device, executable.inode));
            }
        }
        sha256_hex(serde_json::json!(facts).to_string().as_bytes())
    }
}
