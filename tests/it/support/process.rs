//! Real processes on free ports.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::process::{Child, ChildStdout, Command};

use super::secrets;

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

/// A file to add to.
fn append(path: &Path) -> fs::File {
    fs::OpenOptions::new().append(true).create(true).open(path).expect("a file")
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

/// A running `remit serve --config`. When it goes away, what it wrote and said is searched for secrets.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) config: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) child: Child,
    log: PathBuf,
    since: usize,
}

impl Server {
    pub(crate) async fn start(config: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["serve", "--config"]).arg(config).env("REMIT_LOG", "remit=trace,info");
        Self::run(command, config, &config.with_extension("stderr")).await
    }

    /// The same with everything that it has to say, in a file.
    pub(crate) async fn start_talking(config: &Path, log: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["serve", "--config"]).arg(config).env("REMIT_LOG", "trace");
        fs::write(log, "").expect("written");
        Self::run(command, config, log).await
    }

    /// The same with what it has to say at `debug`, as JSON.
    pub(crate) async fn start_json(config: &Path, log: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["serve", "--log-format", "json", "--config"]).arg(config).env("REMIT_LOG", "remit=debug");
        fs::write(log, "").expect("written");
        Self::run(command, config, log).await
    }

    /// The same with a standard output that somebody reads, or does not.
    pub(crate) async fn start_piped(config: &Path) -> (Self, ChildStdout) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
        command.args(["serve", "--config"]).arg(config).env("REMIT_LOG", "remit=trace,info").stdout(Stdio::piped());
        let mut server = Self::launch(command, config, &config.with_extension("stderr")).await;
        let stdout = server.child.stdout.take().expect("a pipe");
        (server, stdout)
    }

    /// The same of a build that dies where the file `armed` says.
    pub(crate) async fn start_mortal(config: &Path, armed: &Path) -> Self {
        Self::run(mortal_broker(config, armed), config, &config.with_extension("stderr")).await
    }

    /// The same as a process whose files can be kept from growing with [`Server::limit_files`]: a write beyond the limit is then
    /// an error, as on a full disk, and no signal.
    pub(crate) async fn start_limitable(config: &Path) -> Self {
        let mut command = Command::new("sh");
        command
            .args(["-c", "trap '' XFSZ; exec \"$0\" serve --config \"$1\"", env!("CARGO_BIN_EXE_remit")])
            .arg(config);
        Self::run(command.env("REMIT_LOG", "off"), config, &config.with_extension("stderr")).await
    }

    /// No file of the process grows beyond `octets`; `None`: as it was.
    pub(crate) async fn limit_files(&self, octets: Option<u64>) {
        let pid = self.child.id().expect("it runs").to_string();
        // Only the soft limit, so that it can be lifted again without privileges.
        let limit = octets.map_or_else(|| "unlimited".to_owned(), |octets| octets.to_string());
        let status = Command::new("prlimit").args(["--pid", &pid, &format!("--fsize={limit}:")]).status().await;
        assert!(status.expect("prlimit (util-linux)").success());
    }

    async fn run(mut command: impl std::borrow::BorrowMut<Command>, config: &Path, log: &Path) -> Self {
        command.borrow_mut().stdout(append(&config.with_extension("stdout")));
        Self::launch(command, config, log).await
    }

    async fn launch(mut command: impl std::borrow::BorrowMut<Command>, config: &Path, log: &Path) -> Self {
        let since = secrets::mark(config.parent().expect("a directory"));
        let text = std::fs::read_to_string(config).expect("a configuration");
        let listen = text.split_once("\nhttp = \"").and_then(|(_, rest)| rest.split('"').next());
        let url = format!("http://{}", listen.expect("where it listens"));
        let command = command.borrow_mut().stdin(Stdio::null()).kill_on_drop(true);
        let mut child = command.stderr(append(log)).spawn().expect("remit starts");
        let client = super::client();
        for attempt in 0.. {
            if let Ok(answer) = client.get(format!("{url}/readyz")).send().await
                && answer.status().is_success()
            {
                break;
            }
            if let Ok(Some(status)) = child.try_wait() {
                panic!("the broker ended: {status}\n{}", fs::read_to_string(log).unwrap_or_default());
            }
            assert!(attempt < 400, "the broker did not become ready");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        let (socket, config, log) = (config.with_extension("sock"), config.to_owned(), log.to_owned());
        let server = Self { url, config, socket, child, log, since };
        secrets::note_files(server.dir());
        server
    }

    fn dir(&self) -> &Path {
        self.config.parent().expect("a directory")
    }

    /// Its `/metrics`, as far as it still answers.
    fn metrics(&self) -> Vec<u8> {
        let mut answer = Vec::new();
        let address = self.url.trim_start_matches("http://");
        if let Ok(mut stream) = std::net::TcpStream::connect(address) {
            let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
            let request = format!("GET /metrics HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
            let _ = stream.write_all(request.as_bytes()).and_then(|()| stream.read_to_end(&mut answer));
        }
        answer
    }

    /// Whatever it wrote that is not there to hold secrets.
    pub(crate) fn left(&self) -> Vec<(String, Vec<u8>)> {
        let mut places = written_by(&self.config);
        for path in [&self.log, &self.config.with_extension("stdout")] {
            places.push((path.display().to_string(), fs::read(path).expect("what it said")));
        }
        places
    }

    pub(crate) async fn terminate(&self) {
        let pid = self.child.id().expect("it runs").to_string();
        Command::new("kill").args(["-TERM", &pid]).status().await.expect("kill");
    }

    /// SIGTERM, and the time it took to be gone.
    pub(crate) async fn stop(&mut self) -> Duration {
        secrets::note_files(self.dir());
        let begun = tokio::time::Instant::now();
        self.terminate().await;
        let status = self.child.wait().await.expect("it ends");
        assert!(status.success(), "{status}");
        begun.elapsed()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // One that has ended already answers nothing: whoever has its address now is another.
        let running = matches!(self.child.try_wait(), Ok(None));
        let metrics = if running { self.metrics() } else { Vec::new() };
        let _ = self.child.start_kill();
        for _ in 0..400 {
            if !matches!(self.child.try_wait(), Ok(None)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        secrets::note_files(self.dir());
        let mut places = self.left();
        places.push((format!("{}/metrics", self.url), metrics));
        places
            .push((format!("the errors that {} answered with", self.url), secrets::errors_of(&self.url).into_bytes()));
        if std::thread::panicking() {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            let worth = |line: &&str| line.contains("WARN") || line.contains("ERROR");
            said.lines().filter(worth).for_each(|line| eprintln!("{line}"));
        }
        secrets::expect_none(self.since, &places);
    }
}

/// The audit log, the copies of its checkpoints, the journal and the embedded store of a configuration.
pub(crate) fn written_by(config: &Path) -> Vec<(String, Vec<u8>)> {
    let dir = config.parent().expect("a directory");
    let text = fs::read_to_string(config).expect("it was deleted before what it wrote could be searched");
    // A test may have made it one that is refused.
    let table: toml::Table = text.parse().unwrap_or_default();
    let store = table.get("store").and_then(|store| store["url"].as_str()).unwrap_or_default();
    let directories = ["audit", "journal"];
    let directories = directories.iter().filter_map(|name| table.get("files")?.get(name)?.as_str());
    let anchors = table.get("audit").and_then(|audit| audit.get("anchor")?.as_array());
    let anchors = anchors.into_iter().flatten().filter_map(|anchor| anchor.get("path")?.as_str());
    let mut places: Vec<_> = directories.flat_map(|name| secrets::places(&dir.join(name))).collect();
    for file in anchors.chain(store.strip_prefix("redb:")) {
        places.extend(fs::read(dir.join(file)).ok().map(|octets| (dir.join(file).display().to_string(), octets)));
    }
    places
}
