//! What the kernel says of real processes: curl and Python at the other end of the Unix socket.

use serde_json::{Value, json};
use std::{os::unix::fs::PermissionsExt as _, path::Path, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child, ChildStdin, ChildStdout, Command},
    time::timeout,
};

use crate::support::{Answer, GIT, OWNER, RESPONDER, Stand, Store, VIEWER, socket_client, text};

const PATIENCE: Duration = Duration::from_secs(30);

/// A shell in a process session of its own, whose children call the broker.
struct Session {
    _shell: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
    socket: String,
    /// What is run instead of `curl`.
    program: String,
}

struct Reply {
    status: u16,
    body: Value,
}

impl Session {
    fn start(stand: &Stand) -> Self {
        let mut command = Command::new("setsid");
        command.args(["--wait", "sh"]).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut shell = command.spawn().expect("setsid and sh");
        let (input, output) = (shell.stdin.take().unwrap(), shell.stdout.take().unwrap());
        let socket = stand.broker.socket.display().to_string();
        Self { _shell: shell, input, output: BufReader::new(output).lines(), socket, program: "curl".to_owned() }
    }

    fn program(mut self, program: &str) -> Self {
        program.clone_into(&mut self.program);
        self
    }

    async fn call(&mut self, arguments: &str, path: &str) -> Reply {
        let Self { program, socket, .. } = self;
        let line = format!(
            "{program} -sS --max-time 20 --unix-socket '{socket}' -w '\\n%{{http_code}}\\n' {arguments} 'http://localhost{path}'\n"
        );
        self.input.write_all(line.as_bytes()).await.unwrap();
        let mut next = async || timeout(PATIENCE, self.output.next_line()).await.expect("an answer").unwrap().unwrap();
        let (body, status) = (next().await, next().await);
        Reply { status: status.parse().unwrap(), body: serde_json::from_str(&body).unwrap_or_default() }
    }

    async fn get(&mut self, path: &str) -> Reply {
        self.call("", path).await
    }

    async fn post(&mut self, path: &str, body: &Value) -> Reply {
        self.call(&format!("-H 'content-type: application/json' -d '{body}'"), path).await
    }

    async fn declare(&mut self) -> Value {
        self.post("/v1/tasks", &agent_task()).await.expect(201)
    }
}

impl Reply {
    #[track_caller]
    fn expect(self, status: u16) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        self.body
    }

    #[track_caller]
    fn refused(self, status: u16, code: &str) {
        assert_eq!(self.expect(status)["code"], code);
    }
}

fn agent_task() -> Value {
    json!({"purpose": "Fix it", "owner": OWNER,
        "authorization_details": [{"type": "remit:access", "locations": [GIT], "privileges": ["read"]}],
        "credentials": [{"resource": GIT, "privilege": "read"}]})
}

fn credentials() -> Value {
    json!({"credentials": [{"resource": GIT, "privilege": "read"}]})
}

/// Lets other users reach the socket; every secret beside it is closed to them on its own.
fn open_directory(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711)).unwrap();
}

/// Runs a Python program in a session of its own.
async fn python(program: &str, arguments: &[&str]) -> String {
    let mut command = Command::new("setsid");
    command.args(["--wait", "python3", "-c", &format!("{ASK}{program}")]).args(arguments).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").expect("python3");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// One request on a connection that stays open.
const ASK: &str = r#"
import os, socket, sys, time
def connect():
    s = socket.socket(socket.AF_UNIX)
    s.connect(sys.argv[1])
    s.set_inheritable(True)
    return s
def ask(s):
    s.sendall(b"GET /v1/tasks HTTP/1.1\r\nHost: localhost\r\n\r\n")
    f, length = s.makefile("rb"), 0
    print(f.readline().split()[1].decode(), flush=True)
    while (header := f.readline()) not in (b"\r\n", b""):
        if header.lower().startswith(b"content-length:"):
            length = int(header.split(b":")[1])
    print(f.read(length).decode(), flush=True)
"#;

/// An agent's own children act for it; another session is another instance, for which the task does not exist.
#[tokio::test]
async fn a_task_belongs_to_the_process_session_that_declared_it() {
    let stand = Stand::new(Store::Embedded).await;
    let (mut agent, mut other) = (Session::start(&stand), Session::start(&stand));
    let declared = agent.declare().await;
    let task = format!("/v1/tasks/{}", text(&declared, "task"));
    // A container, pod or unit is one instance as a whole. Where the tests run inside one, so are both sessions.
    let instance = text(&declared, "instance");
    let apart = instance.starts_with("session:");
    assert!(apart || ["container:", "pod:", "unit:"].iter().any(|kind| instance.starts_with(kind)), "{instance}");
    assert_eq!(other.declare().await["instance"] != declared["instance"], apart);

    if apart {
        other.get(&task).await.refused(404, "not_found");
        other.post(&format!("{task}/credentials"), &credentials()).await.refused(404, "not_found");
        other.post(&format!("{task}/complete"), &json!({})).await.refused(404, "not_found");
        other.post(&format!("{task}/revoke"), &json!({"reason": "envy"})).await.refused(404, "not_found");
        let scope = format!("{} read", text(&declared, "task"));
        let form = format!("-d grant_type=client_credentials -d resource={GIT} --data-urlencode 'scope={scope}'");
        assert_eq!(other.call(&form, "/oauth2/token").await.expect(400)["error"], "invalid_grant");
        let listed = other.get("/v1/tasks").await.expect(200);
        assert_eq!(listed["tasks"].as_array().unwrap().len(), 1, "its own: {listed}");
    }

    // Every call is another process of the agent's session.
    assert_eq!(agent.get(&task).await.expect(200)["state"], "active");
    agent.post(&format!("{task}/credentials"), &credentials()).await.expect(200);
    assert_eq!(agent.post(&format!("{task}/complete"), &json!({})).await.expect(200)["state"], "completed");
    agent.post(&format!("{task}/credentials"), &credentials()).await.refused(409, "task_not_active");
    let next = agent.declare().await;
    agent.post(&format!("/v1/tasks/{}/revoke", text(&next, "task")), &json!({"reason": "done"})).await.expect(200);
}

#[tokio::test]
async fn two_users_are_two_workloads() {
    const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups curl";
    let own = nix::unistd::geteuid();
    assert!(own.is_root(), "this test runs a process as another user, which takes root: run the tests as root");
    let stand = Stand::new(Store::Embedded).await;
    open_directory(stand.dir.path());
    let mut agent = Session::start(&stand);
    let ours = agent.declare().await;
    // The same session, so that nothing but the user differs.
    let mut agent = agent.program(NOBODY);
    let theirs = agent.declare().await;
    assert_eq!(ours["workload"], format!("spiffe://example.com/unix/{own}"));
    assert_eq!(theirs["workload"], "spiffe://example.com/unix/65534");
    assert_eq!(ours["instance"], theirs["instance"]);
    agent.get(&format!("/v1/tasks/{}", text(&ours, "task"))).await.refused(404, "not_found");
    agent.get(&format!("/v1/tasks/{}", text(&theirs, "task"))).await.expect(200);
    // Only a caller with the broker's own user could read its files.
    assert_eq!((&ours["marks"], &theirs["marks"]), (&json!(["unseparated"]), &json!([])));
}

/// What was attested is the program that connected. The same program may go on, another one may not.
#[tokio::test]
async fn a_connection_does_not_survive_another_program() {
    const PROGRAM: &str = r#"
if len(sys.argv) > 3:
    ask(socket.socket(fileno=int(sys.argv[3])))
    sys.exit()
s = connect()
ask(s)
fd = str(s.fileno())
if sys.argv[2] == "same":
    os.execv("/proc/self/exe", [sys.executable, "-c", open("/proc/self/cmdline").read().split("\0")[2], *sys.argv[1:3], fd])
request = 'GET /v1/tasks HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n'
os.execv("/bin/sh", ["sh", "-c", f'printf "{request}" >&{fd}; cat <&{fd}'])
"#;
    let stand = Stand::new(Store::Embedded).await;
    let socket = stand.broker.socket.display().to_string();
    let same = python(PROGRAM, &[&socket, "same"]).await;
    assert_eq!(same.lines().filter(|line| *line == "200").count(), 2, "{same}");
    let other = python(PROGRAM, &[&socket, "other"]).await;
    assert!(other.starts_with("200\n"), "{other}");
    assert!(other.contains("HTTP/1.1 401 ") && other.contains(r#""code":"evidence_invalid""#), "{other}");
}

#[tokio::test]
async fn a_connection_does_not_survive_its_process() {
    const PROGRAM: &str = r"
s = connect()
ask(s)
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
ask(s)
";
    let stand = Stand::new(Store::Embedded).await;
    let said = python(PROGRAM, &[&stand.broker.socket.display().to_string()]).await;
    let said: Vec<&str> = said.lines().collect();
    assert_eq!((said[0], said[2]), ("200", "401"), "{said:?}");
    assert!(said[3].contains(r#""code":"evidence_invalid""#), "{said:?}");
}

/// Paths and hashes of executables are facts for policy.
#[tokio::test]
async fn policy_can_tell_executables_apart() {
    let agents = tempfile::tempdir().unwrap();
    let curl = std::fs::read("/usr/bin/curl").expect("curl in /usr/bin");
    let agent = |name: &str, bytes: &[u8]| {
        let path = agents.path().canonicalize().unwrap().join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.display().to_string()
    };
    // The same program, byte for byte, at another path; and one that differs by a byte that nothing reads.
    let (good, moved, changed) =
        (agent("good", &curl), agent("moved", &curl), agent("changed", &[curl.as_slice(), b"\n"].concat()));
    let sha256 = remit::id::sha256_hex(&curl);
    let by = |selector: &str| {
        format!(
            r#"@id("one-executable") permit (principal, action in Remit::Action::"read", resource)
               when {{ context.attested.selectors.contains("{selector}") }};"#
        )
    };
    for (selector, allowed) in
        [(format!("unix:path:{good}"), [true, false, false]), (format!("unix:sha256:{sha256}"), [true, true, false])]
    {
        let stand = Stand::under(&by(&selector), |config| config).await;
        for (program, allowed) in [&good, &moved, &changed].into_iter().zip(allowed) {
            let reply = Session::start(&stand).program(program).post("/v1/tasks", &agent_task()).await;
            let expected = if allowed { 201 } else { 403 };
            assert_eq!(reply.status, expected, "{selector} of {program}: {}", reply.body);
            if allowed {
                assert_eq!(reply.body["policies"], json!(["one-executable"]));
            } else {
                assert_eq!(reply.body["denied"][0]["policies"], json!([]));
            }
        }
    }
}

#[tokio::test]
async fn an_explicit_authorization_beats_the_kernel() {
    let stand = Stand::new(Store::Embedded).await;
    let client = socket_client(&stand.broker.socket);
    let url = "http://localhost/v1/tasks";
    let declare = async |bearer: Option<&str>| {
        let mut request = client.post(url).json(&agent_task());
        if let Some(bearer) = bearer {
            request = request.bearer_auth(bearer);
        }
        Answer::of(request.send().await.unwrap()).await
    };
    let get = async |bearer: &str| Answer::of(client.get(url).bearer_auth(bearer).send().await.unwrap()).await;
    let created = reqwest::StatusCode::CREATED;
    let kernel = declare(None).await.expect(created);
    assert_eq!(kernel["attestor"], "kernel");
    assert_eq!(declare(Some(&stand.evidence())).await.expect(created)["attestor"], "ci");
    // Bad evidence is not made good by whoever carries it.
    declare(Some("garbage")).await.refused(401, "evidence_invalid");
    declare(Some("")).await.refused(401, "evidence_invalid");
    // An operator is an operator here, too: sees every task, may revoke, and holds none.
    let all = get(VIEWER).await.expect(reqwest::StatusCode::OK);
    assert_eq!(all["tasks"].as_array().unwrap().len(), 2);
    declare(Some(RESPONDER)).await.refused(403, "policy_denied");
    let revoke = client.post(format!("{url}/{}/revoke", text(&kernel, "task"))).json(&json!({"reason": "r"}));
    Answer::of(revoke.bearer_auth(RESPONDER).send().await.unwrap()).await.expect(reqwest::StatusCode::OK);
}

#[tokio::test]
async fn on_tcp_nobody_is_attested_by_the_kernel() {
    let stand = Stand::new(Store::Embedded).await;
    let post = reqwest::Method::POST;
    stand.call(post.clone(), "/v1/tasks", None, Some(agent_task())).await.refused(401, "evidence_invalid");
    stand.call(reqwest::Method::GET, "/v1/tasks", None, None).await.refused(401, "evidence_invalid");
    let scope = "task_01jd0000000000000000000000 read";
    let form = [("grant_type", "client_credentials"), ("resource", GIT), ("scope", scope)];
    stand.form("/oauth2/token", None, &form).await.oauth_refused(401, "invalid_client");
}
