//! A real Redis, one per test.

use std::process::Stdio;
use tokio::process::{Child, Command};

use super::{free_port, secrets, wait_for};

/// When it goes away, its files are searched for secrets: the append-only one has every key and value that there ever was.
pub(crate) struct Redis {
    pub(crate) port: u16,
    pub(crate) dir: tempfile::TempDir,
    child: Child,
    arguments: Vec<String>,
    since: usize,
}

impl Drop for Redis {
    fn drop(&mut self) {
        let places = secrets::places(self.dir.path());
        let keeps = self.arguments.windows(2).any(|pair| pair == ["--appendonly", "yes"]);
        assert!(!keeps || std::thread::panicking() || !places.is_empty(), "there is nothing to search");
        secrets::expect_none(self.since, &places);
    }
}

impl Redis {
    /// Starts one; `--save ""` unless the arguments say otherwise.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let (port, dir) = (free_port(), tempfile::tempdir().expect("a temporary directory"));
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let since = secrets::mark(dir.path());
        let child = spawn(port, dir.path(), &arguments).await;
        Self { port, dir, child, arguments, since }
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The machine dies: no time to say anything.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// It hangs: connections stay, and nobody answers.
    pub(crate) async fn hang(&self) {
        self.signal("-STOP").await;
    }

    /// It goes on after it has hung.
    pub(crate) async fn go_on(&self) {
        let pid = self.child.id().expect("it runs").to_string();
        assert!(Command::new("kill").args(["-CONT", &pid]).status().await.expect("kill").success());
    }

    async fn signal(&self, signal: &str) {
        let about = self.cli(&["INFO", "server"]).await;
        let pid = about.lines().find_map(|line| line.strip_prefix("process_id:")).expect("its process").trim();
        assert!(Command::new("kill").args([signal, pid]).status().await.expect("kill").success());
    }

    /// Starts again on what is on disk.
    pub(crate) async fn start_again(&mut self) {
        self.child = spawn(self.port, self.dir.path(), &self.arguments).await;
    }

    /// What `redis-cli` prints.
    pub(crate) async fn cli(&self, arguments: &[&str]) -> String {
        let output = Command::new("redis-cli").args(["-p", &self.port.to_string()]).args(arguments).output().await;
        let output = output.expect("redis-cli is installed");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }
}

async fn spawn(port: u16, dir: &std::path::Path, arguments: &[String]) -> Child {
    let child = Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--dir"])
        .arg(dir)
        .args(arguments)
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .expect("redis-server is installed (tests/run installs it)");
    wait_for("Redis", || async { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() }).await;
    child
}
