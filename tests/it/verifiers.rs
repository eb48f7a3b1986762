//! The one-file verifiers of `deploy/verifiers/`: each runs the vectors, follows a broker that lies, forgets and falls silent, and
//! then one that does not.

use reqwest::{Method, StatusCode};
use serde_json::json;
use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::OnceCell,
};

use crate::{
    both,
    support::{GIT, GIT_TOKEN, RESPONDER, Server, Stand, Store, made, part, text},
    taint::taint,
};

fn deploy(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(path)
}

/// Runs a program until it ends well, and yields what it wrote.
async fn run(command: &mut Command) -> String {
    command.env("no_proxy", "*").env("PYTHONDONTWRITEBYTECODE", "1").kill_on_drop(true);
    let output = tokio::time::timeout(Duration::from_secs(300), command.output()).await.expect("it ends");
    let output = output.unwrap_or_else(|error| panic!("{command:?}: {error}; tests/run installs what is missing"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?} failed\n{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said
}

fn python() -> Command {
    Command::new(made("target/venv/bin/python"))
}

/// `live_verifier.py` is that broker. It starts the verifier and says what it saw, one thing a line.
async fn follows(verifier: &[&Path]) {
    let live = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/clients/live_verifier.py");
    let said = run(python().arg(live).args(verifier)).await;
    assert_eq!(said.lines().count(), 9, "{said}");
}

/// Copies the files of a directory, and not what is in directories of it.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            fs::copy(&path, to.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
}

/// What is committed is what the generator writes.
#[tokio::test]
async fn the_vectors_are_those_of_their_generator() {
    let dir = tempfile::tempdir().expect("a directory");
    run(python().arg(deploy("vectors/generate.py")).arg(dir.path())).await;
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.retain(|name| Path::new(name).extension().is_some_and(|extension| extension == "json"));
        names.sort();
        names
    };
    let made = names(dir.path());
    assert_eq!(made, names(&deploy("vectors")));
    for name in made {
        let [made, committed] =
            [dir.path().join(&name), deploy("vectors").join(&name)].map(|path| fs::read(path).unwrap());
        assert!(made == committed, "{}: run deploy/vectors/generate.py", name.display());
    }
}

#[tokio::test]
async fn the_verifier_in_python() {
    run(python().args(["-m", "unittest", "test_vectors"]).current_dir(deploy("verifiers/python"))).await;
    follows(&[&made("target/venv/bin/python"), &deploy("verifiers/python/example.py")]).await;
}

#[tokio::test]
async fn the_verifier_in_go() {
    let dir = tempfile::tempdir().expect("a directory");
    let example = dir.path().join("example");
    let go = |arguments: &[&str]| {
        let mut go = Command::new("go");
        go.current_dir(deploy("verifiers/go")).env("GOFLAGS", "-mod=readonly -buildvcs=false").args(arguments);
        go
    };
    run(&mut go(&["vet", "./..."])).await;
    let said = run(&mut go(&["test", "-count=1", "-v", "-run", "^TestVectors$", "."])).await;
    assert!(said.contains("--- PASS: TestVectors/"), "{said}");
    run(go(&["build", "-o"]).arg(&example).arg("./example")).await;
    follows(&[&example]).await;
}

/// Where `tests/run` has put its libraries, so that nothing is written beside it.
async fn typescript() -> PathBuf {
    static COMPILED: OnceCell<PathBuf> = OnceCell::const_new();
    let compiled = COMPILED.get_or_init(|| async {
        let dir = made("target/deploy/verifiers/typescript");
        copy(&deploy("verifiers/typescript"), &dir);
        let vectors = made("target/deploy").join("vectors");
        if vectors.exists() {
            fs::remove_dir_all(&vectors).expect("removed");
        }
        copy(&deploy("vectors"), &vectors);
        run(Command::new("npm").args(["run", "build"]).current_dir(&dir)).await;
        dir
    });
    compiled.await.clone()
}

#[tokio::test]
async fn the_verifier_in_typescript() {
    let dir = typescript().await;
    run(Command::new("node").args(["--test", "vectors.test.mjs"]).current_dir(&dir)).await;
    follows(&[Path::new("node"), &dir.join("example.mjs")]).await;
}

/// A verifier that is asked about tokens, one after the other.
pub(crate) struct Asked {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Asked {
    pub(crate) fn start(mut command: Command, stand: &Stand) -> Self {
        command.args([&*stand.broker.url, GIT]).env("REMIT_BEARER", GIT_TOKEN).env("no_proxy", "*");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        Self { child, lines }
    }

    /// `accept` and of whom, or why not.
    pub(crate) async fn of(&mut self, token: &str) -> String {
        let stdin = self.child.stdin.as_mut().expect("a pipe");
        stdin.write_all(format!("{token}\n").as_bytes()).await.expect("written");
        let line = tokio::time::timeout(Duration::from_secs(30), self.lines.next_line()).await.expect("an answer");
        line.expect("text").expect("it runs")
    }

    /// Asks until the answer is this, at most for so long: never one of `never`.
    pub(crate) async fn becomes(&mut self, token: &str, answer: &str, never: &[&str]) {
        let begun = Instant::now();
        loop {
            let said = self.of(token).await;
            if said.starts_with(answer) {
                return;
            }
            assert!(!never.iter().any(|never| said.starts_with(never)), "{said} in the place of {answer}");
            assert!(begun.elapsed() < Duration::from_secs(20), "{said} in the place of {answer}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

pub(crate) fn in_python() -> Command {
    let mut command = python();
    command.arg(deploy("verifiers/python/example.py"));
    command
}

async fn in_go(dir: &Path) -> Command {
    let example = dir.join("example");
    let mut go = Command::new("go");
    go.current_dir(deploy("verifiers/go")).env("GOFLAGS", "-mod=readonly -buildvcs=false");
    run(go.args(["build", "-o"]).arg(&example).arg("./example")).await;
    Command::new(example)
}

async fn in_typescript() -> Command {
    let dir = typescript().await;
    let mut command = Command::new("node");
    command.arg(dir.join("example.mjs"));
    command
}

both! {
    /// From the broker as it is: accepted, revoked at once, stale when the broker is gone, and itself again when that is back.
    async fn they_follow_a_broker(stand) {
        let mut stand = stand;
        let go = in_go(stand.dir.path()).await;
        let mut all: Vec<_> = [in_python(), go, in_typescript().await].into_iter().map(|command| Asked::start(command, &stand)).collect();
        let (task, token) = stand.task_with_token().await;
        let (_, lives) = stand.task_with_token().await;
        for verifier in &mut all {
            verifier.becomes(&token, "accept", &["revoked"]).await;
            assert_eq!(verifier.of("garbage").await, "invalid");
        }
        stand.revoke(&task).await.expect(StatusCode::OK);
        for verifier in &mut all {
            verifier.becomes(&token, "revoked", &["invalid", "stale", "gap"]).await;
            assert_eq!(verifier.of(&token).await, "revoked");
            assert!(verifier.of(&lives).await.starts_with("accept"));
        }
        // Nothing is heard: nothing is accepted, and what was revoked is not taken for alive by anybody.
        stand.broker.stop().await;
        for verifier in &mut all {
            verifier.becomes(&lives, "stale", &["invalid", "revoked"]).await;
        }
        let config = stand.broker.config.clone();
        stand.broker = Server::start(&config).await;
        for verifier in &mut all {
            verifier.becomes(&lives, "accept", &["invalid", "revoked"]).await;
            assert_eq!(verifier.of(&token).await, "revoked");
        }
        // The set of keys that they hold has the tainted one still.
        taint(&stand, &text(&part(&lives, 0), "kid")).await;
        for verifier in &mut all {
            verifier.becomes(&lives, "revoked", &["invalid", "stale", "gap"]).await;
        }
    }
}

/// What one broker on a store revokes reaches whoever follows another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_hear_of_what_another_broker_revokes() {
    let stand = Stand::new(Store::Redis).await;
    let second = stand.second_broker().await;
    let mut verifier = Asked::start(in_python(), &stand);
    let (task, token) = stand.task_with_token().await;
    verifier.becomes(&token, "accept", &["revoked"]).await;
    let path = format!("/v1/tasks/{task}/revoke");
    let revoke = stand.call_at(&second, Method::POST, &path, Some(RESPONDER), Some(json!({"reason": "a leak"})));
    revoke.await.expect(StatusCode::OK);
    verifier.becomes(&token, "revoked", &["invalid", "stale", "gap"]).await;
}
