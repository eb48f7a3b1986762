//! The command line, as its users have it: the binary, a shell, and what it says to paste.

use reqwest::StatusCode;
use serde_json::{Value, json};
use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::support::{
    ADMIN, GIT, GIT_TOKEN, OWNER, REGISTRY, RESPONDER, Stand, Store, VIEWER, declaration, secrets, text, time,
};

const REMIT: &str = env!("CARGO_BIN_EXE_remit");

/// Runs a command with an environment of its own, at most half a minute.
async fn run(mut command: Command, stdin: &str) -> Output {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // A command that does not read it may be gone already.
    let _ = pipe.write_all(stdin.as_bytes()).await;
    drop(pipe);
    timeout(Duration::from_secs(30), child.wait_with_output()).await.expect("it ends").unwrap()
}

fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", env!("PATH"));
    command
}

/// What a command said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn of(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("text");
        Self { code: output.status.code().expect("an exit code"), out: text(output.stdout), err: text(output.stderr) }
    }

    #[track_caller]
    fn ended(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}{}", self.out, self.err);
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|_| panic!("not JSON: {}", self.out))
    }
}

/// `remit …` against a broker with a configuration, as a CI job or as an operator.
struct Shell {
    stand: Stand,
}

impl Shell {
    async fn new() -> Self {
        let stand = Stand::new(Store::Embedded).await;
        let shell = Self { stand };
        for (name, token) in [
            ("rita", RESPONDER),
            ("victor", VIEWER),
            ("ada", ADMIN),
            ("git", GIT_TOKEN),
            ("evidence", &shell.stand.evidence()),
        ] {
            shell.file(name, token, 0o600);
        }
        shell
    }

    fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        let path = self.stand.dir.path().join(name);
        fs::write(&path, format!("{text}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    /// Runs `remit` with arguments that are separated by spaces; `DIR/` names the stand's directory.
    async fn remit(&self, line: &str) -> Said {
        self.remit_reading(line, "").await
    }

    async fn remit_reading(&self, line: &str, stdin: &str) -> Said {
        let dir = format!("{}/", self.stand.dir.path().display());
        let mut command = clean(REMIT);
        command.args(line.split(' ').map(|word| word.replace("DIR/", &dir))).env("REMIT_URL", &self.stand.broker.url);
        Said::of(run(command, stdin).await)
    }

    async fn declare(&self) -> String {
        let line = format!(
            "task declare --purpose p --owner {OWNER} --access {GIT}=read,write --evidence file:DIR/evidence --output json"
        );
        text(&self.remit(&line).await.ended(0).json(), "task")
    }

    async fn mint(&self, task: &str) -> String {
        let line = format!("mint token {task} --resource {GIT} --privilege read --evidence file:DIR/evidence");
        let said = self.remit(&line).await.ended(0);
        assert_eq!(said.out.lines().count(), 1, "{}", said.out);
        said.out.trim().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verify_reads_status_lists() {
    let shell = Shell::new().await;
    let task = shell.declare().await;
    let token = shell.mint(&task).await;
    let verify = format!("verify --issuer {} --audience {GIT} --status-list", shell.stand.broker.url);
    let said = shell.remit_reading(&verify, &token).await.ended(0);
    assert!(said.out.contains("no, says the status list"), "{}", said.out);
    let said = shell.remit_reading(&format!("{verify} --output json"), &token).await.ended(0).json();
    assert_eq!((&said["accepted"], &said["status_list"]), (&json!(true), &json!({"ended": false})));
    let said = shell.remit(&format!("task revoke {task} --reason r --operator-token-file DIR/rita")).await.ended(0);
    assert!(said.out.contains("services that read status lists"), "{}", said.out);
    let refused = shell.remit_reading(&verify, &token).await.ended(5);
    assert!(refused.out.contains("not accepted: its task has ended, says the status list"), "{}", refused.out);
    shell.remit_reading(&format!("{verify} --introspect --service-token-file DIR/git"), &token).await.ended(2);
}

/// A token on standard input is read, and goes nowhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn find_says_what_it_is_and_where_it_looked() {
    let shell = Shell::new().await;
    let task = shell.declare().await;
    let token = shell.mint(&task).await;
    let dir = shell.stand.dir.path().join("leaf");
    shell.remit(&format!("mint cert {task} --dir {} --evidence file:DIR/evidence", dir.display())).await.ended(0);
    let certificate = fs::read_dir(&dir).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
    let certificate = certificate.into_iter().find(|text| text.contains("BEGIN CERTIFICATE")).expect("a certificate");
    let victor = "--operator-token-file DIR/victor";
    for (what, input) in [(&*task, ""), ("-", &*token), ("-", &*certificate)] {
        let said = shell.remit_reading(&format!("find {what} {victor}"), input).await.ended(0);
        assert!(said.out.contains(&task) && said.out.contains(OWNER), "{what}: {}", said.out);
        assert!(said.out.contains("the log of this broker alone"), "{}", said.out);
        assert!(!said.out.contains(&token) && !said.err.contains(&token));
    }
    let said = shell.remit_reading(&format!("find - {victor} --output json"), &token).await.ended(0);
    assert_eq!(said.json()["matches"][0]["task"], *task);
    // That nothing is found is told by the code too.
    let said = shell.remit(&format!("find 2.1 {victor}")).await.ended(1);
    assert!(said.out.contains("looked at"), "{}", said.out);
    // A token on the command line, and what is none on standard input, go nowhere.
    for (what, input) in [(&*token, ""), ("-", "no token"), ("-", ""), ("task_1", "")] {
        let said = shell.remit_reading(&format!("find {what} {victor}"), input).await.ended(2);
        assert!(said.out.is_empty() && !said.err.contains(&token), "{}", said.err);
    }
    assert!(!shell.stand.whole_audit().iter().any(|line| line.to_string().contains(&token)));
    let said = shell.remit(&format!("workloads {victor}")).await.ended(0);
    assert!(said.out.contains("spiffe://example.com/ci/acme/payments") && said.out.contains(OWNER), "{}", said.out);
    let said = shell.remit(&format!("workloads --limit 1 --output json {victor}")).await.ended(0).json();
    assert_eq!(said["workloads"][0]["live_tasks"], 1);
    shell.remit("workloads --evidence file:DIR/evidence").await.ended(1);
    let unused = shell.remit(&format!("report unused --owner {OWNER} {victor}")).await.ended(0);
    for words in [&*task, "never minted", "write at", "never seen", "1 of 1 tasks", "all that were declared since 20"] {
        assert!(unused.out.contains(words), "{words}: {}", unused.out);
    }
    let workload = "--workload spiffe://example.com/ci/acme/payments --since 2016-01-01T00:00:00Z --output json";
    let unused = shell.remit(&format!("report unused {workload} {victor}")).await.ended(0).json();
    assert_eq!(unused["tasks"][0]["never_minted"][0]["privilege"], "write");
    for wrong in ["", "--workload x", "--owner o --since yesterday", "--owner o --limit 0"] {
        shell.remit(format!("report unused {wrong} {victor}").replace("  ", " ").as_str()).await.ended(2);
    }
    shell.remit(&format!("workloads --limit 0 {victor}")).await.ended(2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_job_on_the_command_line() {
    let shell = Shell::new().await;
    let stand = &shell.stand;
    // Declared in words, with credentials and all.
    let said = shell
        .remit(&format!(
            "task declare --purpose p --owner {OWNER} --access {GIT}=read,write --credential {GIT}=read --credential {GIT}=read:jwt \
             --ttl 300 --sandbox sb-1 --environment staging --evidence file:DIR/evidence --output json"
        ))
        .await
        .ended(0);
    let declared = said.json();
    assert_eq!((&declared["state"], &declared["sandbox"]), (&json!("active"), &json!("sb-1")));
    assert_eq!(declared["credentials"].as_array().unwrap().len(), 2);
    // As text no token is printed.
    let shown = shell.remit(&format!("task declare --purpose p --owner {OWNER} --access {GIT}=read --credential {GIT}=read --evidence file:DIR/evidence")).await.ended(0);
    assert!(shown.out.contains("task_") && shown.out.contains("active") && !shown.out.contains("eyJ"), "{}", shown.out);
    // From a file, from standard input; a retry with the same key is the same task.
    shell.file("task.json", &declaration().to_string(), 0o644);
    let line = "task declare --file DIR/task.json --idempotency-key k1 --evidence file:DIR/evidence --output json";
    let (first, again) = (shell.remit(line).await.ended(0).json(), shell.remit(line).await.ended(0).json());
    assert_eq!(
        (&first["task"], &first["credentials"][0]["lease"]),
        (&again["task"], &again["credentials"][0]["lease"])
    );
    let line = "task declare --file - --evidence file:DIR/evidence --output json";
    let task = text(&shell.remit_reading(line, &declaration().to_string()).await.ended(0).json(), "task");

    // Shown: the broker's body, unchanged; as text, what a person wants to know.
    let body = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await;
    for who in ["--operator-token-file DIR/victor", "--evidence file:DIR/evidence"] {
        let said = shell.remit(&format!("task show {task} {who} --output json")).await.ended(0);
        assert_eq!(said.out.trim_end(), body.text);
        let said = shell.remit(&format!("task show {task} {who}")).await.ended(0);
        for word in [&*task, OWNER, "active", GIT, "Fix the flaky test in payments"] {
            assert!(said.out.contains(word), "no {word} in {}", said.out);
        }
    }
    let said = shell.remit("task list --operator-token-file DIR/victor --output json").await.ended(0);
    assert_eq!(said.out.trim_end(), stand.get("/v1/tasks", VIEWER).await.text);
    assert_eq!(said.json()["tasks"].as_array().unwrap().len(), 4);
    let said = shell.remit("task list --limit 2 --operator-token-file DIR/victor").await.ended(0);
    assert!(said.out.contains(&*task) && said.out.contains("--cursor task_"), "{}", said.out);

    // Minted, verified, revoked, not accepted any more.
    let token = shell.mint(&task).await;
    let verify =
        format!("verify --issuer {} --audience {GIT} --introspect --service-token-file DIR/git", stand.broker.url);
    let accepted = shell.remit_reading(&verify, &token).await.ended(0);
    assert!(accepted.out.contains("accepted (at+jwt)") && accepted.out.contains(&*task), "{}", accepted.out);
    let json = shell.remit_reading(&format!("{verify} --output json"), &token).await.ended(0).json();
    assert_eq!((&json["accepted"], &json["introspection"]["active"]), (&json!(true), &json!(true)));
    let said =
        shell.remit(&format!("task revoke {task} --reason runaway --operator-token-file DIR/rita")).await.ended(0);
    for word in [&*task, "revoked", "services that introspect", "services that only check signatures"] {
        assert!(said.out.contains(word), "no {word} in {}", said.out);
    }
    let said = shell
        .remit(&format!("task revoke {task} --reason again --operator-token-file DIR/rita --output json"))
        .await
        .ended(0);
    assert_eq!(said.out.trim_end(), stand.revoke(&task).await.text);
    let refused = shell.remit_reading(&verify, &token).await.ended(5);
    assert!(
        refused.out.contains("not accepted") && refused.out.contains("revoked") && refused.err.is_empty(),
        "{}",
        refused.out
    );
    let json = shell.remit_reading(&format!("{verify} --output json"), &token).await.ended(5).json();
    assert_eq!(json["accepted"], false);
    // By keys alone it still is one, and it says so.
    let keys_alone = format!("verify --issuer {} --audience {GIT}", stand.broker.url);
    let said = shell.remit_reading(&keys_alone, &token).await.ended(0);
    assert!(said.out.contains("keys alone show no revoke"), "{}", said.out);

    // Completed, by the workload.
    let task = shell.declare().await;
    let said = shell.remit(&format!("task complete {task} --evidence file:DIR/evidence --output json")).await.ended(0);
    assert_eq!(said.json()["state"], "completed");
    assert_eq!(said.out.trim_end(), stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.text);
}

/// What a person reads on a terminal has colours; what another program reads has none, whatever the environment says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn colours_are_for_terminals() {
    let shell = Shell::new().await;
    let task = shell.declare().await;
    let line = "task list --operator-token-file DIR/victor";
    let piped = shell.remit(line).await.ended(0).out;
    assert!(piped.contains(&task) && piped.is_ascii() && !piped.contains('\u{1b}'), "{piped}");
    // `script` gives it a terminal.
    let on_terminal = async |more: &[(&str, &str)]| {
        let dir = format!("{}/", shell.stand.dir.path().display());
        let mut command = clean("script");
        command.args(["-qec", &format!("{REMIT} {}", line.replace("DIR/", &dir)), "/dev/null"]);
        command.env("REMIT_URL", &shell.stand.broker.url).env("TERM", "xterm").envs(more.iter().copied());
        Said::of(run(command, "").await).ended(0).out
    };
    let seen = on_terminal(&[]).await;
    assert!(seen.contains(&task) && seen.contains('\u{1b}'), "{seen:?}");
    let seen = on_terminal(&[("NO_COLOR", "1")]).await;
    assert!(seen.contains(&task) && !seen.contains('\u{1b}'), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_credential_is_revoked() {
    let shell = Shell::new().await;
    let (task, token) = shell.stand.task_with_token().await;
    let lease = crate::support::claims(&token)["jti"].as_str().unwrap().to_owned();
    let revoke = format!("lease revoke {lease} --reason leaked");
    shell.remit(&format!("{revoke} --operator-token-file DIR/victor")).await.ended(1);
    shell.remit(&format!("lease revoke {lease} --operator-token-file DIR/rita")).await.ended(2);
    shell.remit("lease revoke x --reason leaked --operator-token-file DIR/rita").await.ended(2);
    let said = shell.remit(&format!("{revoke} --operator-token-file DIR/rita")).await.ended(0);
    for word in [&lease, &task, "revoked", "services that introspect", "services that follow the feed"] {
        assert!(said.out.contains(word), "{word} in {}", said.out);
    }
    let json = format!("{revoke} --task {task} --output json --operator-token-file DIR/rita");
    assert_eq!(shell.remit(&json).await.ended(0).json()["state"], "revoked");
    let found = shell.remit(&format!("find {lease} --operator-token-file DIR/victor")).await.ended(0);
    assert!(found.out.contains(", revoked 20"), "{}", found.out);
    let told = shell.remit(&format!("task timeline {task} --operator-token-file DIR/victor")).await.ended(0);
    assert!(told.out.contains("credential revoked") && told.out.contains("leaked"), "{}", told.out);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_listed_rotated_and_tainted() {
    let shell = Shell::new().await;
    let said = shell.remit("keys list --operator-token-file DIR/victor").await.ended(0);
    let lines: Vec<_> = said.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0], ["USE", "ALGORITHM", "STATE", "PUBLISHED", "KEY"], "{}", said.out);
    assert_eq!(lines[1][..3], ["access_token", "ES256", "signing"], "{}", said.out);
    shell.remit("keys rotate --operator-token-file DIR/victor").await.ended(1);
    let rotated = shell.remit("keys rotate --reason scheduled --operator-token-file DIR/ada").await.ended(0);
    assert_eq!(rotated.out.matches("prepared").count(), 6, "{}", rotated.out);
    assert!(rotated.out.contains("signs "), "{}", rotated.out);
    crate::support::wait_for("the change", || async {
        let said = shell.remit("keys list --operator-token-file DIR/victor").await.ended(0);
        said.out.matches("retired").count() == 6 && said.out.contains("goes in ")
    })
    .await;
    let json = shell.remit("keys list --output json --operator-token-file DIR/victor").await.ended(0).json();
    assert_eq!(json["keys"].as_array().unwrap().len(), 12);
    let line = shell.stand.audit().into_iter().find(|line| line["event"] == "key_rotation_requested").unwrap();
    assert_eq!((&line["reason"], &line["actor"]["name"]), (&json!("scheduled"), &json!("ada")));

    let kid = json["keys"][0]["kid"].as_str().unwrap();
    shell.remit(&format!("keys taint {kid} --operator-token-file DIR/victor")).await.ended(1);
    shell.remit("keys taint what --operator-token-file DIR/ada").await.ended(2);
    shell.remit(&format!("keys taint {} --operator-token-file DIR/ada", "A".repeat(43))).await.ended(1);
    let tainted = format!("keys taint {kid} --reason stolen --operator-token-file DIR/ada");
    let said = shell.remit(&tainted).await.ended(0);
    let line: Vec<_> = said.out.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((line[2], *line.last().unwrap()), ("tainted", kid), "{}", said.out);
    assert!(said.out.contains("until it fetches /jwks again"), "{}", said.out);
    assert_eq!(shell.remit(&format!("{tainted} --output json")).await.ended(0).json()["state"], "tainted");
    let line = shell.stand.audit().into_iter().find(|line| line["event"] == "key_taint_requested").unwrap();
    assert_eq!((&line["reason"], &line["kid"]), (&json!("stolen"), &json!(kid)));
}

/// What is typed, how it ends, and words that stand on standard error.
fn ends(task: &str, done: &str, issuer: &str) -> Vec<(i32, String, &'static [&'static str])> {
    let mint = |task: &str, over: &str| format!("mint token {task} --resource {GIT} --privilege read {over}");
    vec![
        (
            1,
            mint(done, "--evidence file:DIR/evidence"),
            &["not active", "task_not_active, HTTP 409", "declare a new one"],
        ),
        (
            1,
            format!("mint token {task} --resource {GIT} --privilege secret --evidence file:DIR/evidence"),
            &["policy_denied, HTTP 403"],
        ),
        (
            1,
            "task show task_01jd0000000000000000000000 --operator-token-file DIR/victor".into(),
            &["not_found, HTTP 404", "remit task list"],
        ),
        (
            1,
            format!("task revoke {task} --reason r --operator-token-file DIR/victor"),
            &["responder", "policy_denied, HTTP 403"],
        ),
        (2, "task show".into(), &["Usage:"]),
        (2, "task show task_1".into(), &["task_1"]),
        (2, "verify --issuer https://b".into(), &["--audience"]),
        (2, mint(task, "--evidence file:DIR/nothing"), &["nothing"]),
        (2, mint(task, "--evidence socket"), &["unix:"]),
        (2, format!("task revoke {task} --reason r --operator-token-file DIR/open"), &["open", "chmod 600"]),
        (2, format!("task revoke {task} --reason r --operator-token-file DIR/empty"), &["holds no token"]),
        (
            2,
            format!("task declare --purpose p --owner {OWNER} --access {GIT}=own --evidence file:DIR/evidence"),
            &["own"],
        ),
        (2, "task list --limit 1000 --operator-token-file DIR/victor".into(), &["1 to 200"]),
        (2, "serve --config a --listen b".into(), &["--listen"]),
        (3, mint(task, "--ttl 60"), &["evidence_invalid, HTTP 401", "--evidence"]),
        // An operator's token is no evidence: known, and refused for the role.
        (1, mint(task, "--evidence file:DIR/rita"), &["policy_denied, HTTP 403"]),
        (
            3,
            "task list --operator-token-file DIR/evidence-of-nobody".into(),
            &["evidence_invalid, HTTP 401", "no operator"],
        ),
        (
            4,
            "task list --url http://127.0.0.1:1 --operator-token-file DIR/victor".into(),
            &["cannot reach", "remit serve"],
        ),
        (4, "task list --url unix:DIR/none.sock".into(), &["cannot reach", "none.sock"]),
        (5, format!("verify --issuer {issuer} --audience {REGISTRY}"), &[]),
        (78, "serve --config DIR/evidence".into(), &["evidence", "line 1"]),
        (78, "serve --config DIR/nothing".into(), &["nothing"]),
        (78, "serve --data DIR/d --listen 0.0.0.0:0".into(), &["`listen.http`"]),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_commands_end() {
    let shell = Shell::new().await;
    let stand = &shell.stand;
    let task = shell.declare().await;
    let token = shell.mint(&task).await;
    shell.file("open", RESPONDER, 0o644);
    shell.file("empty", "", 0o600);
    shell.file("evidence-of-nobody", "nobody", 0o600);
    let done = shell.declare().await;
    shell.remit(&format!("task complete {done} --evidence file:DIR/evidence")).await.ended(0);
    for (code, line, words) in ends(&task, &done, &stand.broker.url) {
        let said = shell.remit_reading(&line, &token).await.ended(code);
        assert!(
            code == 5 || (said.err.starts_with("error: ") && said.out.is_empty()),
            "{line}: {}{}",
            said.out,
            said.err
        );
        for word in words {
            assert!(said.err.contains(word), "{line}: no {word} in {}", said.err);
        }
        for secret in [RESPONDER, VIEWER, &*token, &*stand.evidence()] {
            assert!(!said.err.contains(secret) && !said.out.contains(secret), "{line}: {}", said.err);
        }
    }
    assert_eq!(stand.introspect(&token).await["active"], true, "none of that was a revoke");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_scripts_rely_on() {
    let shell = Shell::new().await;
    let stand = &shell.stand;
    let task = shell.declare().await;
    // With `--output json` the broker's own words stand on standard error.
    let said = shell
        .remit("task show task_01jd0000000000000000000000 --operator-token-file DIR/victor --output json")
        .await
        .ended(1);
    let body: Value = serde_json::from_str(&said.err).expect("JSON");
    assert_eq!((&body["code"], &body["status"]), (&json!("not_found"), &json!(404)));
    let said = shell.remit("task list --url http://127.0.0.1:1 --output json").await.ended(4);
    let body: Value = serde_json::from_str(&said.err).expect("JSON");
    assert!(text(&body, "detail").contains("cannot reach"), "{body}");

    // A token is taken from the environment, a pipe, and never from a command line.
    let mut command = clean(REMIT);
    command.args(["task", "show", &task]).env("REMIT_URL", &stand.broker.url);
    command.env("REMIT_EVIDENCE", "env:ID_TOKEN").env("ID_TOKEN", stand.evidence());
    Said::of(run(command, "").await).ended(0);
    let script = format!("{REMIT} task list --url {} --operator-token-file <(echo {VIEWER})", stand.broker.url);
    let mut bash = clean("bash");
    bash.args(["-c", &script]);
    assert!(Said::of(run(bash, "").await).ended(0).out.contains(&*task));
}

/// A store that is out of reach is not a refusal, but "try again".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_out_of_reach_is_told_apart() {
    let mut stand = Stand::new(Store::Redis).await;
    stand.redis.as_mut().unwrap().kill().await;
    let mut command = clean(REMIT);
    let evidence = stand.evidence();
    command.args(["task", "list", "--evidence", "env:E"]).env("REMIT_URL", &stand.broker.url).env("E", evidence);
    let said = Said::of(run(command, "").await).ended(4);
    assert!(said.err.contains("temporarily_unavailable, HTTP 503") && said.err.contains("try again"), "{}", said.err);
}

/// `remit serve` without a configuration.
struct Trial {
    dir: tempfile::TempDir,
    child: Child,
    banner: String,
}

impl Drop for Trial {
    fn drop(&mut self) {
        let dir = self.dir.path();
        secrets::note_files(dir);
        let mut places = secrets::places(dir);
        places.retain(|(path, _)| !path.contains("/data/keys/") && !path.ends_with("/operator.token"));
        secrets::expect_none(secrets::mark(dir), &places);
    }
}

impl Trial {
    async fn start() -> Self {
        // A space in it, as people have them.
        let dir = tempfile::Builder::new().prefix("remit trial ").tempdir().unwrap();
        secrets::mark(dir.path());
        let mut child = clean(REMIT)
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(dir.path().join("data"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut banner = String::new();
        let read = async {
            while !banner.contains("run the broker as a user of its own.") {
                let line = lines.next_line().await.unwrap().unwrap_or_else(|| panic!("the banner ends: {banner}"));
                banner += &line;
                banner.push('\n');
            }
        };
        timeout(Duration::from_secs(20), read).await.expect("a banner");
        Self { dir, child, banner }
    }

    /// The commands of the banner, as one script: what is indented by two spaces after an empty line.
    fn scripts(&self) -> Vec<String> {
        let paragraphs = self.banner.split("\n\n").filter(|paragraph| paragraph.starts_with("  "));
        paragraphs.map(str::to_owned).collect()
    }

    /// In a session of its own, as a terminal gives it: the one that these tests run in may have begun outside this PID
    /// namespace, and then every process is an instance of its own.
    async fn sh(&self, script: &str) -> Said {
        let mut sh = clean("setsid");
        sh.args(["sh", "-euc", script]).current_dir("/");
        Said::of(run(sh, "").await)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_serve_says_to_paste_works() {
    let mut trial = Trial::start().await;
    let banner = &trial.banner;
    assert!(banner.starts_with("remit is ready") && banner.contains("unseparated"), "{banner}");
    let word = banner.split_whitespace().find(|word| word.starts_with("http://127.0.0.1:")).expect("its address");
    assert!(!word.ends_with(":0"), "{word}");
    let client = crate::support::client();
    let get = async |path: &str| client.get(format!("{word}{path}")).send().await.unwrap();
    assert_eq!(get("/readyz").await.status(), StatusCode::OK);
    // The issuer names the port that it really has.
    let metadata = get("/.well-known/oauth-authorization-server").await.json::<Value>().await.unwrap();
    assert_eq!(metadata["issuer"], word);
    let data = trial.dir.path().join("data");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data.join("operator.token")), 0o600);
    assert_eq!(mode(&data.join("keys/store.key")), 0o600);
    assert!(banner.contains(&data.join("operator.token").display().to_string()), "{banner}");

    let [curl, agent, operator] = &*trial.scripts() else { panic!("{:#?}", trial.scripts()) };
    // With curl: a task, a token, and its issuer is the broker.
    let declared = trial.sh(curl).await.ended(0).json();
    assert_eq!(declared["state"], "active");
    let token = text(&declared["credentials"][0], "access_token");
    assert_eq!(crate::support::claims(&token)["iss"], word);
    // The rest, in one shell as it is meant to be pasted.
    let said = trial.sh(&format!("{agent}\n{operator}\n{REMIT} task show $TASK")).await.ended(0);
    let token = said.out.lines().find(|line| line.starts_with("eyJ")).expect("a token");
    assert_eq!(crate::support::claims(token)["aud"], "http://127.0.0.1:9000");
    for word in ["active", "revoked", "me@example.com", "not what it was declared for"] {
        assert!(said.out.contains(word), "no {word} in {}", said.out);
    }
    // The sample policy refuses secrets, so that a denial can be seen.
    let secret = curl.replace("\"write\"]", "\"write\", \"secret\"]");
    assert_ne!(&secret, curl);
    let refused = trial.sh(&secret).await.ended(0).json();
    assert_eq!((&refused["code"], &refused["status"]), (&json!("policy_denied"), &json!(403)));

    let pid = trial.child.id().unwrap().to_string();
    Command::new("kill").args(["-INT", &pid]).status().await.unwrap();
    let status = timeout(Duration::from_secs(10), trial.child.wait()).await.expect("it ends").unwrap();
    assert_eq!(status.code(), Some(0));
    assert!(!data.join("remit.sock").exists());
}

/// The default data directory is where the client looks for the socket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn client_and_broker_meet_without_any_option() {
    let home = tempfile::tempdir().unwrap();
    let mut serve = clean(REMIT);
    serve.args(["serve", "--listen", "127.0.0.1:0"]).env("HOME", home.path()).stdout(Stdio::null()).kill_on_drop(true);
    let child = serve.spawn().unwrap();
    let socket = home.path().join(".local/state/remit/remit.sock");
    crate::support::wait_for("the broker", || async { tokio::net::UnixStream::connect(&socket).await.is_ok() }).await;
    let mut list = clean(REMIT);
    list.args(["task", "list", "--output", "json"]).env("HOME", home.path());
    assert_eq!(Said::of(run(list, "").await).ended(0).json(), json!({"tasks": [], "next_cursor": null}));
    drop(child);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn help_has_examples_and_exit_codes() {
    let help = async |line: &str| {
        let mut command = clean(REMIT);
        command.args(line.split(' '));
        Said::of(run(command, "").await).ended(0).out
    };
    let whole = help("--help").await;
    for word in ["Examples:", "remit demo", "remit task revoke", "Exit codes:", "serve", "verify", "mint"] {
        assert!(whole.contains(word), "no {word} in {whole}");
    }
    for code in ["   0  ", "   1  ", "   2  ", "   3  ", "   4  ", "   5  ", "  78  "] {
        assert!(whole.contains(code), "no {code:?} in {whole}");
    }
    assert!(!whole.contains("demo-agent"), "{whole}");
    for command in ["task declare", "mint token", "verify", "config check", "policy check", "openapi", "completions"] {
        let text = help(&format!("{command} --help")).await;
        assert!(text.contains("Example") && text.contains("remit "), "{text}");
    }
    for command in
        ["serve", "demo", "task list", "task show", "task renew", "task complete", "task revoke", "task report"]
    {
        assert!(help(&format!("{command} --help")).await.contains("Usage: remit "), "{command}");
    }
    assert!(help("--version").await.starts_with("remit "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_renewed_and_watched() {
    let shell = Shell::new().await;
    let stand = &shell.stand;
    let mut declaration = crate::support::declaration();
    declaration["ttl"] = json!(60);
    let declared = stand.declare(declaration).await.expect(StatusCode::CREATED);
    let task = text(&declared, "task");
    let said =
        shell.remit(&format!("task renew {task} --ttl 600 --evidence file:DIR/evidence --output json")).await.ended(0);
    assert!(time(&said.json(), "expires_at") > time(&declared, "expires_at"));
    let said = shell.remit(&format!("task renew {task} --ttl 601 --evidence file:DIR/evidence")).await.ended(2);
    assert!(said.err.contains("600 seconds"), "{}", said.err);

    let watch = async |options: &str| shell.remit(&format!("task watch {task} {options}")).await;
    let revoke = async {
        tokio::time::sleep(Duration::from_millis(1500)).await;
        stand.revoke(&task).await.expect(StatusCode::OK);
    };
    let own = "--evidence file:DIR/evidence --output json".to_owned();
    let (own, operator, ()) = tokio::join!(watch(&own), watch("--operator-token-file DIR/victor"), revoke);
    let states: Vec<_> =
        own.ended(0).out.lines().map(|line| text(&serde_json::from_str(line).unwrap(), "state")).collect();
    assert_eq!(states, ["active", "revoked"]);
    let said = operator.ended(0).out;
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains("active  deadline in") && lines[1].ends_with("revoked  a test says so"), "{said}");
    watch("--evidence file:DIR/nothing").await.ended(2);
    shell.remit("task watch task_01jd0000000000000000000000 --operator-token-file DIR/victor").await.ended(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_ones_own_is_made_and_shown() {
    let shell = Shell::new().await;
    let stand = &shell.stand;
    let config = fs::read_to_string(&stand.broker.config).unwrap();
    fs::write(&stand.broker.config, config + "[dpop]\nnonce = \"required\"\n").unwrap();
    let mut shell = shell;
    shell.stand.restart_broker().await;
    let own = "--key DIR/agent.key --evidence";
    let declared = shell
        .remit(&format!(
            "task declare --purpose p --owner {OWNER} --access {REGISTRY}=read --task-token DIR/task.token --output json \
             {own} file:DIR/evidence"
        ))
        .await
        .ended(0)
        .json();
    let task = text(&declared, "task");
    for name in ["agent.key", "task.token"] {
        let mode = fs::metadata(shell.stand.dir.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let read = |name: &str| fs::read_to_string(shell.stand.dir.path().join(name)).unwrap();
    assert_eq!(read("task.token"), text(&declared, "task_token"));
    // From here on the evidence is not needed, and without the key it is worth nothing.
    let mint = format!("mint token {task} --resource {REGISTRY} --privilege read");
    let token = shell.remit(&format!("{mint} {own} task-token:DIR/task.token")).await.ended(0).out;
    shell.remit(&format!("{mint} --evidence file:DIR/evidence")).await.ended(3);
    shell.remit(&format!("{mint} --key DIR/other.key --evidence task-token:DIR/task.token")).await.ended(3);
    shell.remit(&format!("{mint} --evidence task-token:DIR/task.token")).await.ended(2);
    // A renewal puts the next token in the place of the one that it was asked for with.
    let before = read("task.token");
    shell.remit(&format!("task renew {task} {own} task-token:DIR/task.token")).await.ended(0);
    assert_ne!(read("task.token"), before);
    shell.remit(&format!("task show {task} {own} task-token:DIR/task.token")).await.ended(0);
    shell.remit(&format!("task renew {task} --task-token DIR/none --evidence file:DIR/evidence")).await.ended(3);

    // To the service it goes with a proof, and is checked with it.
    shell.file("token", token.trim(), 0o600);
    let place = format!("{REGISTRY}/v2/acme?tag=1");
    let proof = format!("proof {place} --key DIR/agent.key --token-file DIR/token");
    let proof = shell.remit(&proof).await.ended(0).out;
    let verify = format!("verify --issuer {} --audience {REGISTRY}", shell.stand.broker.url);
    let said = shell.remit_reading(&format!("{verify} --proof {} --uri {place}", proof.trim()), &token).await.ended(0);
    assert!(said.out.contains("bound to  the key "), "{}", said.out);
    let said = shell.remit_reading(&verify, &token).await.ended(5);
    assert!(said.out.contains("it is bound to a key, and no bearer token"), "{}", said.out);
    for (other, why) in
        [(format!("--method POST --uri {place}"), "`htm`"), (format!("--uri {REGISTRY}/v2/other"), "`htu`")]
    {
        let line = format!("{verify} --proof {} {other}", proof.trim());
        let said = shell.remit_reading(&line, &token).await.ended(5);
        assert!(said.out.contains(why), "{}", said.out);
    }
    shell.remit(&format!("task complete {task} {own} task-token:DIR/task.token")).await.ended(0);
    shell.remit(&format!("{mint} {own} task-token:DIR/task.token")).await.ended(1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_done_is_reported() {
    let shell = Shell::new().await;
    let (task, _) = shell.stand.task_with_token().await;
    shell.file("prompt.txt", "Make a plan", 0o600);
    let report = |rest: &str| format!("task report {task} --evidence file:DIR/evidence --label plan {rest}");
    let said = shell.remit(&report("--sequence 1 --kind prompt --file DIR/prompt.txt --output json")).await.ended(0);
    assert_eq!(
        said.json(),
        json!({"task": task, "origin": "self_reported", "accepted": 1, "last_sequence": 1, "gaps": []})
    );
    let said = shell.remit_reading(&report("--sequence 4 --kind completion --file -"), "Done").await.ended(0);
    assert!(said.out.contains("missing") && said.out.contains("2 to 3"), "{}", said.out);
    let digest = remit::task::digest(b"elsewhere");
    let elsewhere = format!("--sequence 2 --kind tool_call --digest {digest} --size 9");
    shell.remit(&report(&elsewhere)).await.ended(0);
    let audit = shell.stand.audit();
    let lines: Vec<_> = audit.iter().filter(|line| line["event"] == "reported").collect();
    assert_eq!(lines.len(), 3);
    let of = |line: usize, content: &str| {
        let report = &lines[line]["reports"][0];
        assert_eq!(report["digest"], remit::task::digest(content.as_bytes()));
        assert_eq!((&report["size"], report.get("body")), (&json!(content.len()), None));
    };
    of(0, "Make a plan\n");
    of(1, "Done");
    of(2, "elsewhere");
    shell.remit(&report("--sequence 1 --kind prompt --digest sha-256:x --size 1")).await.ended(2);
    for wrong in
        ["--sequence 3 --kind prompt", "--sequence 3 --kind prompt --digest x", "--kind prompt --file DIR/prompt.txt"]
    {
        shell.remit(&report(wrong)).await.ended(2);
    }
    shell.remit(&report("--sequence 3 --kind prompt --file DIR/none")).await.ended(2);
    // The broker keeps no contents unless it is told to.
    let said = shell.remit(&report("--sequence 3 --kind prompt --file DIR/prompt.txt --with-body")).await.ended(2);
    assert!(said.err.contains("bodies = true"), "{}", said.err);
}

/// The log by the broker: all of it, what is asked for, and from where it ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_read_through_the_broker() {
    let shell = Shell::new().await;
    for _ in 0..3 {
        shell.stand.task_with_token().await;
    }
    let log = async |rest: &str| shell.remit(&format!("audit log --operator-token-file DIR/victor {rest}")).await;
    let all = log("--output json").await.ended(0).out;
    let mut lines: Vec<_> = all.lines().collect();
    let end: Value = serde_json::from_str(lines.pop().unwrap()).unwrap();
    assert_eq!((&end["more"], &end["unattributed"], &end["unreadable"]), (&json!(false), &json!(0), &json!(0)));
    let dir = shell.stand.dir.path().join("broker-audit");
    let segment = fs::read_to_string(dir.join("audit-00000000000000000001.jsonl")).unwrap();
    assert!(lines.len() > 6 && segment.lines().collect::<Vec<_>>().starts_with(&lines), "as it stands");
    // Some of them, and the rest; the look itself is on record.
    let cursor = |out: &str| {
        let end: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
        (text(&end, "cursor"), end["more"].clone())
    };
    let first = log("--output json --limit 4").await.ended(0).out;
    assert_eq!((first.lines().count(), cursor(&first).1), (5, json!(true)));
    let rest = log(&format!("--output json --cursor {}", cursor(&first).0)).await.ended(0).out;
    let put_together: Vec<_> = first.lines().take(4).chain(rest.lines()).take(lines.len()).collect();
    assert_eq!(put_together, lines);
    // For a person.
    let said = log(&format!("--owner {OWNER} --since 2026-01-01T00:00:00Z")).await.ended(0);
    assert!(said.out.lines().all(|line| line.contains("task=task_")), "{}", said.out);
    assert!(said.out.contains("  task_declared  spiffe://example.com/ci/acme/payments  "), "{}", said.out);
    assert!(said.err.contains("what comes from now on: --cursor "), "{}", said.err);
    for (rest, code) in [
        ("--owner nobody@example.com", 0),
        ("--sandbox nothing --attestor none --until 2016-01-01T00:00:00Z", 0),
        ("--workload payments", 2),
        ("--since yesterday", 2),
        ("--limit 0", 2),
        ("--cursor 1", 2),
        ("--cursor log_00000000000000000000:1", 2),
        ("--output json --evidence file:DIR/evidence --cursor x:1", 2),
    ] {
        let said = log(rest).await.ended(code);
        assert_eq!(said.out, "", "{rest}");
    }
    shell.remit("audit log --evidence file:DIR/evidence").await.ended(1);
    shell.remit("audit log").await.ended(3);
}

#[tokio::test]
async fn a_shell_completes_what_is_typed() {
    let completions = async |shell: &str| {
        let mut command = clean(REMIT);
        command.args(["completions", shell]);
        Said::of(run(command, "").await)
    };
    for (shell, start) in [("bash", "_remit() {"), ("zsh", "#compdef remit"), ("fish", "complete -c remit")] {
        let script = completions(shell).await.ended(0).out;
        assert!(script.contains(start), "{script}");
        for word in ["task", "revoke", "idempotency-key", "config", "policy"] {
            assert!(script.contains(word), "{shell}: no {word}");
        }
        assert!(!script.contains("demo-agent"), "{shell}");
    }
    completions("tcsh").await.ended(2);
    // As bash calls it when the Tab key is pressed after the last word.
    for (typed, all) in [
        ("remit ta", "task"),
        ("remit task rev", "revoke"),
        ("remit policy check --ca", "--cases"),
        ("remit --output j", "json"),
        ("remit demo-", ""),
    ] {
        let script = "source <(\"$0\" completions bash) && COMP_WORDS=($1) && COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) &&
            _remit remit \"${COMP_WORDS[-1]}\" \"${COMP_WORDS[-2]}\" && echo \"${COMPREPLY[*]}\"";
        let mut command = clean("bash");
        command.args(["-c", script, REMIT, typed]);
        assert_eq!(Said::of(run(command, "").await).ended(0).out.trim(), all, "{typed}");
    }
}

/// The story that the README starts with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_tells_the_whole_story() {
    let mut demo = clean(REMIT);
    let dir = tempfile::tempdir().unwrap();
    demo.arg("demo").env("TMPDIR", dir.path());
    let said = Said::of(run(demo, "").await).ended(0);
    let mut rest = &*said.out;
    for word in [
        "A broker and a service start",
        "broker at http://127.0.0.1:",
        "service at http://127.0.0.1:",
        "An agent starts. It holds no secret",
        "spiffe://localhost/unix/",
        "declared task_",
        "called the service: 200",
        "asked for the service's secrets: 403 policy_denied",
        "The security team does not like what it sees",
        "listed the live tasks: task_",
        "revoked it by its id: 1 task, 1 credential",
        "the agent called again: 401",
        "the agent asked for a new token: 409 task_not_active",
        "{\"active\": false}",
        "From sending the revoke to the first rejected call: ",
        "The whole story: ",
    ] {
        let at = rest.find(word).unwrap_or_else(|| panic!("no {word:?}, or not in its place, in {}", said.out));
        rest = &rest[at + word.len()..];
    }
    assert!(!said.out.contains("eyJ"), "a token was printed");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "something was left behind");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_timeline_is_told_to_people_and_to_machines() {
    let shell = Shell::new().await;
    let task = shell.declare().await;
    let token = shell.mint(&task).await;
    shell.stand.introspect(&token).await;
    shell.remit(&format!("task revoke {task} --reason \u{202e}r --operator-token-file DIR/rita")).await.ended(0);
    shell.stand.introspect(&token).await;
    let line = format!("task timeline {task} --operator-token-file DIR/victor");
    let mut said = shell.remit(&line).await.ended(0).out;
    for _ in 0..100 {
        if said.contains("refused after end") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        said = shell.remit(&line).await.ended(0).out;
    }
    let rows: Vec<_> = said.lines().collect();
    let at = |header: &str| rows[0].find(header).unwrap_or_else(|| panic!("{said}"));
    for (event, who, what) in [
        (
            "task declared",
            "workload",
            "“p” for team-payments@example.com, read, write at https://git.example.com, until",
        ),
        ("credential minted", "workload", "read, at https://git.example.com, at+jwt, until"),
        ("introspected", "service git", "alive, lease"),
        ("end requested", "operator rita", "revoked, \\u{202e}r"),
        ("task ended", "operator rita", "revoked, tasks 1, credentials 1"),
        ("refused after end", "service git", "not alive, lease"),
        ("looked", "operator victor", "at timeline"),
    ] {
        let row = rows.iter().find(|row| row[at("EVENT")..].starts_with(event)).unwrap_or_else(|| panic!("{said}"));
        assert!(row.contains(what), "{what}: {said}");
        assert!(who == "workload" || row[at("BY")..].starts_with(who), "{who}: {said}");
        assert!(row[at("RECORD")..].starts_with("A:"), "{said}");
    }
    assert!(said.contains("given attested.") && said.contains("evidence "), "{said}");
    assert!(said.contains("\nA is log_") && !said.contains("not all of it") && !said.contains('\u{202e}'), "{said}");
    let path = format!("/v1/tasks/{task}/timeline");
    let json = shell.remit(&format!("{line} --output json")).await.ended(0).json();
    let served = shell.stand.get(&path, VIEWER).await.json();
    let (told, served) = (json["events"].as_array().unwrap(), served["events"].as_array().unwrap());
    assert_eq!(told[..], served[..told.len()]);
    // As the workload that holds it.
    shell.remit(&format!("task timeline {task} --evidence file:DIR/evidence")).await.ended(0);
    shell.remit("task timeline task_01jd0000000000000000000000 --operator-token-file DIR/victor").await.ended(1);
}

#[tokio::test]
async fn the_command_ends_well_only_when_every_line_is_done() {
    let shell = Shell::new().await;
    let operator = "--operator-token-file DIR/rita";
    let task = shell.declare().await;
    shell.mint(&task).await;
    let said = shell.remit(&format!("task reach {task} {operator}")).await.ended(4).out;
    assert!(said.contains("active") && said.contains("not everywhere"), "{said}");
    // Its token is good for a while where nobody looks.
    let said = shell.remit(&format!("task revoke {task} --reason r {operator} --wait --timeout 1")).await.ended(4).out;
    assert!(
        said.contains("rejected by") && said.contains("services that introspect") && said.contains("done"),
        "{said}"
    );
    // Without a credential nothing is left after the longest of the others.
    let bare = shell.declare().await;
    let waits = format!("task revoke {bare} --reason r {operator} --wait --timeout 30 --output json");
    let lines = shell.remit(&waits).await.ended(0).out;
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert!(
        last["done"] == true && last["reach"].as_array().unwrap().iter().all(|line| line["done"] == true),
        "{last}"
    );
    shell.remit(&format!("task reach {bare} {operator}")).await.ended(0);
    shell.remit(&format!("task reach {bare} {operator} --timeout 3")).await.ended(2);
    shell.remit(&format!("task reach task_01jd0000000000000000000000 {operator} --wait")).await.ended(1);
}
