//! The kernel's word for who is at the other end of a Unix socket → [`Attested`].
//!
//! The kernel says who *connected*. With `SO_PEERPIDFD` (Linux 6.5) that process is held by a descriptor that can never
//! refer to another one; what it runs is taken down at accept and compared at every request. Without it only uid and
//! gid are certain, and the task says `unpinned`. None of this is a boundary within one uid: processes of one user may
//! trace each other, hand sockets on, and run each other's programs.

use serde_json::json;

use super::{Attested, Facts, Kind, Rejected, UnixConfig, executable::Hashes, template::PathTemplate};
use crate::id::TrustDomain;

pub use super::peer::Peer;

/// What the workload template may ask for.
const CLAIMS: [&str; 3] = ["uid", "gid", "exe_sha256"];

/// The kernel as attestor.
pub(super) struct Attestor {
    pub(super) name: String,
    kind: Kind,
    pub(super) workload: PathTemplate,
    pub(super) owners: Option<Vec<String>>,
    domain: TrustDomain,
    hashes: Hashes,
}

impl Attestor {
    /// Checks the configuration.
    ///
    /// # Errors
    /// When the workload template is not one, or asks for what the kernel does not say.
    pub(super) fn build(config: &UnixConfig, domain: &TrustDomain) -> Result<Self, String> {
        let mistake = |what: String| format!("attestor `{}`: `workload`: {what}", config.name);
        let workload = PathTemplate::parse(&config.workload, domain).map_err(mistake)?;
        if workload.claims().any(|claim| !CLAIMS.contains(&claim)) {
            return Err(mistake("the kernel attests only {uid}, {gid} and {exe_sha256}; use one of them".into()));
        }
        Ok(Self {
            name: config.name.clone(),
            kind: config.kind,
            workload,
            owners: config.owners.clone(),
            domain: domain.clone(),
            hashes: Hashes::new(),
        })
    }

    /// Judges a peer as it is now.
    ///
    /// # Errors
    /// When it has ended, is no longer what was accepted, or nothing says which instance it is.
    pub(super) async fn attest(&self, peer: &Peer) -> Result<Attested, Rejected> {
        let accepted = &*peer.0;
        let mut seen = accepted.check()?;
        let mut sha256 = None;
        if let (Some(_), Some(executable)) = (&accepted.pinned, &seen.identity.executable) {
            sha256 = self.hashes.of(accepted.pid, executable).await;
            // The file was reached by the process's number, too.
            seen = accepted.check()?;
        }
        let mut claims = json!({"uid": accepted.uid, "gid": accepted.gid});
        if let Some(sha256) = &sha256 {
            claims["exe_sha256"] = sha256.as_str().into();
        }
        let workload = self.workload.fill(&claims, &self.domain);
        Ok(Attested {
            workload: workload.map_err(|unfit| Rejected::Refused(unfit.to_string()))?,
            instance: seen.instance.clone(),
            kind: self.kind,
            attestor: self.name.clone(),
            issuer: None,
            selectors: accepted.selectors(seen, sha256.as_deref()),
            facts: Facts::default(),
            owners: self.owners.clone(),
            marks: accepted.marks(),
            expires_at: None,
            digest: accepted.digest(seen),
            reusable: None,
            once: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attest::{
            Mark,
            peer::{Accepted, Seen},
        },
        id::sha256_hex,
    };
    use nix::unistd::getuid;
    use std::process::{Child, Command, Stdio};
    use tokio::net::{UnixListener, UnixStream};

    fn attestor(workload: &str) -> Result<Attestor, String> {
        let workload = workload.to_owned();
        let config = UnixConfig { name: "unix".into(), kind: Kind::AiAgent, workload, owners: None };
        Attestor::build(&config, &"localhost".parse().unwrap())
    }

    const CONNECT: &str = "import os,socket,sys
if sys.argv[2:] == ['fork']: os.fork()
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
sys.stdin.read()";

    /// A peer in a process and session of its own, which stays until its input ends.
    async fn child(listener: &UnixListener, arguments: &[&str]) -> (Child, UnixStream) {
        let path = listener.local_addr().unwrap();
        let mut command = Command::new("setsid");
        command.args(["python3", "-c", CONNECT]).arg(path.as_pathname().unwrap()).args(arguments);
        let child = command.stdin(Stdio::piped()).spawn().unwrap();
        (child, listener.accept().await.unwrap().0)
    }

    fn end(mut child: Child) {
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn this_process_is_attested() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert_eq!((peer.uid(), peer.0.pid), (getuid().as_raw(), i32::try_from(std::process::id()).unwrap()));
        assert!(peer.0.pinned.is_some());
        let attested = attestor("/unix/{uid}/{exe_sha256}").unwrap().attest(&peer).await.unwrap();
        let exe = std::env::current_exe().unwrap();
        let sha256 = sha256_hex(&std::fs::read(&exe).unwrap());
        assert_eq!(attested.workload().as_str(), format!("spiffe://localhost/unix/{}/{sha256}", peer.uid()));
        assert_eq!(attested.marks(), [Mark::Unseparated]);
        for selector in [
            format!("unix:uid:{}", getuid()),
            format!("unix:gid:{}", nix::unistd::getgid()),
            format!("unix:path:{}", exe.display()),
            format!("unix:sha256:{sha256}"),
        ] {
            assert!(attested.selectors().contains(&selector), "{selector}");
        }
        assert!(attestor("/unix/{pid}").is_err());
    }

    #[tokio::test]
    async fn a_child_acts_for_its_session_and_another_session_does_not() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let attestor = attestor("/unix/{uid}").unwrap();
        let (one, stream_one) = child(&listener, &["fork"]).await;
        let (stream_two, _) = listener.accept().await.unwrap();
        let (other, stream_other) = child(&listener, &[]).await;
        let mut attested = Vec::new();
        for stream in [&stream_one, &stream_two, &stream_other] {
            attested.push(attestor.attest(&Peer::of(stream).unwrap()).await.unwrap());
        }
        assert_eq!(attested[0].instance(), attested[1].instance());
        assert_ne!(attested[0].digest(), attested[1].digest());
        // Inside a container or a unit they would be the same instance by its name.
        if attested[0].instance().starts_with("session:") {
            assert_ne!(attested[0].instance(), attested[2].instance());
        }
        assert_eq!(attested[0].workload(), attested[2].workload());
        end(one);
        end(other);
    }

    #[tokio::test]
    async fn a_peer_that_ended_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let attestor = attestor("/unix/{uid}").unwrap();
        let (peer, stream) = child(&listener, &[]).await;
        let accepted = Peer::of(&stream).unwrap();
        assert!(attestor.attest(&accepted).await.is_ok());
        end(peer);
        assert!(matches!(attestor.attest(&accepted).await, Err(Rejected::Refused(_))));
        assert!(Peer::of(&stream).is_err());
    }

    #[tokio::test]
    async fn a_peer_that_runs_another_program_than_at_accept_is_refused() {
        const PROGRAM: &str = "import socket,sys,os; s=socket.socket(socket.AF_UNIX); s.set_inheritable(True); \
             s.connect(sys.argv[1]); s.recv(1); os.execvp('sleep', ['sleep', '60'])";
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("s")).unwrap();
        let attestor = attestor("/unix/{uid}").unwrap();
        let mut peer = Command::new("python3").args(["-c", PROGRAM]).arg(directory.path().join("s")).spawn().unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let accepted = Peer::of(&stream).unwrap();
        let before = attestor.attest(&accepted).await.unwrap();
        stream.writable().await.unwrap();
        stream.try_write(b"x").unwrap();
        let mut refused = false;
        for _ in 0..500 {
            refused = attestor.attest(&accepted).await.is_err();
            if refused {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(refused);
        let after = attestor.attest(&Peer::of(&stream).unwrap()).await.unwrap();
        assert_ne!(before.selectors(), after.selectors());
        assert_eq!(before.instance(), after.instance());
        peer.kill().unwrap();
        peer.wait().unwrap();
    }

    #[test]
    fn without_a_pinned_process_only_uid_and_gid_are_shown() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let seen = Seen::look(pid).unwrap();
        let unpinned = Accepted { uid: 4321, gid: 8765, pid, pinned: None, seen: None };
        assert!(unpinned.selectors(&seen, None).iter().eq(["unix:gid:8765", "unix:uid:4321"]));
        assert_eq!(unpinned.marks(), [Mark::Unpinned]);
        assert!(matches!(unpinned.check(), Err(Rejected::Refused(_))), "nothing says which instance it is");
    }
}
