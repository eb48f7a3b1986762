//! The one-file verifiers of `deploy/verifiers/`: each runs the vectors, and then follows a broker that lies, forgets and falls silent.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::process::Command;

use crate::support::made;

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
#[tokio::test]
async fn the_verifier_in_typescript() {
    let dir = made("target/deploy/verifiers/typescript");
    copy(&deploy("verifiers/typescript"), &dir);
    let vectors = made("target/deploy").join("vectors");
    if vectors.exists() {
        fs::remove_dir_all(&vectors).expect("removed");
    }
    copy(&deploy("vectors"), &vectors);
    run(Command::new("npm").arg("test").current_dir(&dir)).await;
    follows(&[Path::new("node"), &dir.join("example.mjs")]).await;
}
