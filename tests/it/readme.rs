//! The README is true: every `sh` block runs, in order, in one session of bash, and prints what the `text` block right
//! after it shows.
//!
//! What differs here from what a reader does: `remit` is the binary that is being tested, so building and `PATH` are left out,
//! and `./tests/run` is not run, because it runs this test.

use std::{
    fs::{self, File},
    io::Write as _,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The ports of the tour.
const PORTS: [u16; 2] = [8420, 9000];
/// Nobody takes longer to read it.
const DEADLINE: Duration = Duration::from_secs(300);
/// Stands in the output in front of what a block prints, with the block's line in the README.
const MARK: &str = "@@@ README.md:";
/// In a `text` block: anything, within a line or as a line of its own.
const ANYTHING: char = '…';

#[test]
fn every_command_does_what_the_readme_shows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let blocks = blocks(&fs::read_to_string(root.join("README.md")).unwrap());
    let shown = blocks.iter().filter(|block| block.shows.is_some()).count();
    assert!(blocks.len() >= 12 && shown >= 10, "{} blocks, {shown} with output: not the README", blocks.len());
    let output = run(root, &blocks);
    for Block { line, shows, .. } in &blocks {
        let Some(expected) = shows else { continue };
        let mark = format!("{MARK}{line}\n");
        let printed = output.split(&mark).nth(1).unwrap().split(MARK).next().unwrap();
        let masked = |text: &str| text.lines().map(words).filter(|line| !line.is_empty()).collect::<Vec<_>>();
        let any = |line: &Vec<String>| matches!(line.as_slice(), [only] if only.chars().eq([ANYTHING]));
        let same = |one: &Vec<String>, other: &Vec<String>| {
            matches(one, other, &|word| word.contains(ANYTHING), &|one, other| one == other)
        };
        assert!(
            matches(&masked(expected), &masked(printed), &any, &same),
            "README.md:{line}: the block does not print what the README shows\n--- shown\n{expected}\n--- printed\n{printed}"
        );
    }
}

#[test]
fn the_second_command_is_the_one_that_is_run_for_every_change() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let blocks = blocks(&fs::read_to_string(root.join("README.md")).unwrap());
    assert!(blocks.iter().any(|block| block.commands.trim() == "./tests/run"));
    let ci = fs::read_to_string(root.join(".ci/run")).unwrap();
    assert!(ci.lines().any(|line| line.starts_with("section ") && line.ends_with(" ./tests/run")), "{ci}");
}

#[test]
fn every_link_into_the_repository_leads_somewhere() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join("README.md")).unwrap();
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    for target in targets.filter(|target| !target.starts_with("https://") && !target.starts_with('#')) {
        assert!(root.join(target).exists(), "{target}");
    }
}

/// An `sh` block.
struct Block {
    /// Where it stands in the README.
    line: usize,
    commands: String,
    /// The `text` block right after it.
    shows: Option<String>,
}

fn blocks(readme: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut lines = readme.lines().zip(1..);
    let mut just_ended = false;
    while let Some((line, number)) = lines.next() {
        let Some(language) = line.strip_prefix("```") else {
            just_ended &= line.is_empty();
            continue;
        };
        let body = lines.by_ref().map(|(line, _)| line).take_while(|line| *line != "```");
        let text: String = body.flat_map(|line| [line, "\n"]).collect();
        match (language, blocks.last_mut()) {
            ("sh", _) => blocks.push(Block { line: number, commands: text, shows: None }),
            ("text", Some(block)) if just_ended => block.shows = Some(text),
            ("text" | "toml" | "json", _) => {}
            _ => panic!("README.md:{number}: a block of `{language}`"),
        }
        just_ended = language == "sh";
    }
    blocks
}

/// A line as it is run here.
fn command(line: &str) -> String {
    match line {
        "cargo build --release" | "export PATH=\"$PWD/target/release:$PATH\"" | "./tests/run" => ":".to_owned(),
        _ => {
            let command = line.strip_prefix("cargo run --release -- ").map(|rest| format!("remit {rest}"));
            let command = command.unwrap_or_else(|| line.to_owned());
            assert!(!command.starts_with("cargo") && !command.starts_with("./"), "how is this to be run here? {line}");
            command
        }
    }
}

/// Runs all blocks and returns what they print. Nothing that they started is left behind.
fn run(root: &Path, blocks: &[Block]) -> String {
    for port in PORTS {
        wait_until_free(port);
    }
    let _ = fs::remove_dir_all(root.join("target/tour"));
    let dir = tempfile::tempdir().unwrap();
    let (script, output) = (dir.path().join("readme.sh"), dir.path().join("output"));
    let mut file = File::create(&script).unwrap();
    let binaries = Path::new(env!("CARGO_BIN_EXE_remit")).parent().unwrap().display();
    writeln!(file, "set -euo pipefail\nexport PATH=\"{binaries}:$PATH\"").unwrap();
    for Block { line, commands, .. } in blocks {
        writeln!(file, "printf '\\n{MARK}{line}\\n'").unwrap();
        for line in commands.lines() {
            writeln!(file, "{}", command(line)).unwrap();
        }
    }
    drop(file);
    let stdout = File::create(&output).unwrap();
    let stderr = stdout.try_clone().unwrap();
    // A session of its own, as a terminal gives it, and the process group of everything that it starts.
    let mut bash = Command::new("setsid");
    for variable in ["REMIT_URL", "REMIT_EVIDENCE", "REMIT_OPERATOR_TOKEN_FILE", "REMIT_LOG"] {
        bash.env_remove(variable);
    }
    // A file for the output: what is left behind would keep a pipe open.
    bash.arg("bash").arg(&script).current_dir(root).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    let mut session = Session(bash.spawn().unwrap());
    let begun = Instant::now();
    let status = loop {
        match session.0.try_wait().unwrap() {
            Some(status) => break Some(status),
            None if begun.elapsed() > DEADLINE => break None,
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let left = session.end();
    let output = fs::read_to_string(&output).unwrap();
    assert!(status.is_some_and(|status| status.success()), "{status:?} (none: it took too long)\n{output}");
    assert!(!left, "the tour leaves a process behind\n{output}");
    for port in PORTS {
        wait_until_free(port);
    }
    output
}

/// Another checkout's tests may be running the same tour.
fn wait_until_free(port: u16) {
    let begun = Instant::now();
    while let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
        assert!(
            begun.elapsed() < Duration::from_secs(30),
            "the tour of README.md needs 127.0.0.1:{port}: stop what listens there ({error})"
        );
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// The process group of the tour.
struct Session(Child);

impl Session {
    /// Ends whatever is left of it, and says whether anything was.
    fn end(&self) -> bool {
        let group = self.0.id().to_string();
        let kill = Command::new("bash").args(["-c", "kill -KILL -- -$0 2>/dev/null", &group]).status();
        kill.is_ok_and(|status| status.success())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            self.end();
            let _ = self.0.wait();
        }
    }
}

/// The words of a line, with what is another every time replaced: ids, tokens, times, ports. Counts, statuses and exit
/// codes stay.
fn words(line: &str) -> Vec<String> {
    let separates = |c: char| c.is_whitespace() || "\",{}[]()".contains(c);
    let words: Vec<&str> = line.split(separates).filter(|word| !word.is_empty()).collect();
    let at = |index: usize| words.get(index).copied().unwrap_or_default();
    let varies = |index: usize| ["s", "min", "h"].contains(&at(index + 1)) || (index > 0 && at(index - 1) == "process");
    words.iter().enumerate().map(|(index, word)| mask(word, varies(index))).collect()
}

fn mask(word: &str, varies: bool) -> String {
    let number = word.trim_start_matches(':');
    let is_count = number.len() <= 3 && number.chars().all(|c| c.is_ascii_digit()) && !varies;
    if word.contains(ANYTHING) || is_count {
        return word.to_owned();
    }
    // A digest in base64url may hold no digit.
    let is_digest = word.len() == 43 && word.chars().all(|c| c.is_ascii_alphanumeric() || "-_".contains(c));
    if is_digest || word.len() >= 20 && word.contains(|c: char| c.is_ascii_digit()) && !word.contains("://") {
        return "#".to_owned();
    }
    let mut masked = String::new();
    for c in word.chars() {
        match c {
            '0'..='9' if masked.ends_with('#') => {}
            '0'..='9' => masked.push('#'),
            // Not on a terminal.
            '✓' => masked.push('+'),
            _ => masked.push(c),
        }
    }
    masked
}

/// Whether `actual` is `expected`, where some items of `expected` stand for any number of items.
fn matches<T>(expected: &[T], actual: &[T], any: &impl Fn(&T) -> bool, same: &impl Fn(&T, &T) -> bool) -> bool {
    match expected.split_first() {
        None => actual.is_empty(),
        Some((first, rest)) if any(first) => (0..=actual.len()).any(|from| matches(rest, &actual[from..], any, same)),
        Some((first, rest)) => {
            actual.split_first().is_some_and(|(item, others)| same(first, item) && matches(rest, others, any, same))
        }
    }
}

#[test]
fn what_is_compared() {
    let same = |one: &str, other: &str| {
        let (one, other) = (words(one), words(other));
        matches(&one, &other, &|word| word.contains(ANYTHING), &|one, other| one == other)
    };
    assert!(same("  ✓   12.5 ms  called: 401", "  +    1.0 ms  called: 401"));
    assert!(!same("called: 401", "called: 200") && !same("exit code 5", "exit code 4"));
    assert!(same("process 26174 is alive for 4 min 59 s", "process 7 is alive for 12 min 0 s"));
    assert!(!same(r#"{"credentials":2}"#, r#"{"credentials":1}"#));
    assert!(same(r#""task": "task_01m7xqp38d7nnr05e3xcpprz0r","#, r#""task": "task_01m7xqmxgckxrha03q9b0fg1qp","#));
    assert!(same("at 2026-11-21T00:21:51.532Z  (0 s ago)", "at 2027-01-01T00:00:00.001Z  (3 s ago)"));
    assert!(same(
        r#"{"access_token": "eyJ…", … "scope": "read"}"#,
        r#"{"access_token": "eyJh.x.y", "a": 1, "scope": "read"}"#
    ));
    assert!(!same(r#"{"active": …"#, r#"{"inactive": false}"#));
}
