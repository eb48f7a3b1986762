//! Real processes on free ports.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::process::{Child, Command};

/// A port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port()
}

/// What `tests/run` makes.
pub(crate) fn made(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    assert!(path.exists(), "{} is missing: tests/run makes it; run the tests with tests/run", path.display());
    path
}

/// Waits until `ready` says so, at most 20 seconds.
pub(crate) async fn wait_for<F: Future<Output = bool>>(what: &str, mut ready: impl FnMut() -> F) {
    for _ in 0..400 {
        if ready().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{what} did not come up");
}

/// A broker that dies where the file `armed` says.
pub(crate) fn mortal_broker(config: &Path, armed: &Path) -> Command {
    let mut command = Command::new(made("target/failpoints/remit"));
    command.args(["serve", "--config"]).arg(config).env("REMIT_LOG", "error").env("REMIT_FAILPOINT", armed);
    command
}

/// A running `remit serve --config`.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) config: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) child: Child,
}

impl Server {
    pub(crate) async fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["serve", "--config"]).arg(config).env("REMIT_LOG", "warn");
        Self::run(command, config).await
    }

    /// The same with everything that it has to say, in a file.
    pub(crate) async fn start_talking(config: &Path, log: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["serve", "--config"]).arg(config).env("REMIT_LOG", "trace");
        command.stderr(std::fs::File::create(log).expect("a log file"));
        Self::run(command, config).await
    }

    /// The same with what it has to say at `debug`, as JSON.
    pub(crate) async fn start_json(config: &Path, log: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["serve", "--log-format", "json", "--config"]).arg(config).env("REMIT_LOG", "remit=debug");
        command.stderr(std::fs::File::create(log).expect("a log file"));
        Self::run(command, config).await
    }

    /// The same of a build that dies where the file `armed` says.
    pub(crate) async fn start_mortal(config: &Path, armed: &Path) -> Self {
        Self::run(mortal_broker(config, armed), config).await
    }

    /// The same as a process whose files can be kept from growing with [`Server::limit_files`]: a write beyond the limit is then
    /// an error, as on a full disk, and no signal.
    pub(crate) async fn start_limitable(config: &Path) -> Self {
        let mut command = Command::new("sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$0\" serve --config \"$1\"", env!("CARGO_BIN_EXE_remit")])
            .arg(config);
        Self::run(command.env("REMIT_LOG", "off"), config).await
    }

    /// No file of the process grows beyond `octets`; `None`: as it was.
    pub(crate) async fn limit_files(&self, octets: Option<u64>) {
        let pid = self.child.id().expect("it runs").to_string();
        // Only the soft limit, so that it can be lifted again without privileges.
        let limit = octets.map_or_else(|| "unlimited".to_owned(), |octets| octets.to_string());
        let status = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={limit}:")]).status().await;
        assert!(status.expect("prlimit (util-linux)").success());
    }

    async fn run(mut command: impl std::borrow::BorrowMut<Command>, config: &Path) -> Self {
        let text = std::fs::read_to_string(config).expect("a configuration");
        let listen = text.split_once("\nhttp = \"").and_then(|(_, rest)| rest.split('"').next());
        let url = format!("http://{}", listen.expect("where it listens"));
        let command = command.borrow_mut().stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().expect("remit starts");
        let client = super::client();
        for attempt in 0.. {
            if let Ok(answer) = client.get(format!("{url}/readyz")).send().await
                && answer.status().is_success()
            {
                break;
            }
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the broker ended: {status}");
            }
            assert!(attempt < 400, "the broker did not become ready");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        Self { url, socket: config.with_extension("sock"), config: config.to_owned(), child }
    }

    pub(crate) async fn terminate(&self) {
        let pid = self.child.id().expect("it runs").to_string();
        Command::new("kill").args(["-TERM", &pid]).status().await.expect("kill");
    }

    /// SIGTERM, and the time it took to be gone.
    pub(crate) async fn stop(&mut self) -> Duration {
        let begun = tokio::time::Instant::now();
        self.terminate().await;
        let status = self.child.wait().await.expect("it ends");
        assert!(status.success(), "{status}");
        begun.elapsed()
    }
}
