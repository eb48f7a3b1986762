//! A broker that dies at every step of what it does, one after the other, and what is there when it comes back.

use remit::{failpoint::Step, task::digest};
use reqwest::{RequestBuilder, StatusCode};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};
use tokio::io::AsyncBufReadExt as _;

use crate::{
    both,
    certificates::Certified,
    evidence::{accounts_for_intents, as_text, audit, directory},
    rotation::{in_state, list, published, rotated},
    support::{
        ADMIN, Answer, GIT, Prover, RESPONDER, Server, Stand, Store, VIEWER, claims, declaration, free_port,
        mortal_broker, part, settled, text,
    },
};

/// Nothing passes a step more often than that while it is watched.
const MOST: u32 = 40;

/// A broker that can be made to die.
struct Mortal {
    stand: Stand,
    armed: PathBuf,
    /// Where it has died so far.
    deaths: BTreeSet<&'static str>,
    /// How many things that it was about to do were listed as not settled.
    unsettled: usize,
}

/// What a client was given.
#[derive(Default)]
struct Got {
    tokens: Vec<String>,
    certificates: Vec<Value>,
    leases: BTreeSet<String>,
}

impl Got {
    fn take(&mut self, answer: &Value) {
        match answer {
            Value::Array(all) => all.iter().for_each(|one| self.take(one)),
            Value::Object(all) => {
                let member = |name: &str| all.get(name).and_then(Value::as_str).map(str::to_owned);
                self.leases.extend(member("lease"));
                self.leases.extend(member("task_token").map(|token| text(&claims(&token), "jti")));
                self.tokens.extend(member("access_token"));
                self.certificates.extend(member("certificate").is_some().then(|| answer.clone()));
                all.values().for_each(|one| self.take(one));
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

impl Mortal {
    async fn new(mut stand: Stand) -> Self {
        let armed = stand.dir.path().join("armed");
        File::create(&armed).unwrap();
        stand.broker.stop().await;
        stand.broker = Server::start_mortal(&stand.broker.config.clone(), &armed).await;
        Self { stand, armed, deaths: BTreeSet::new(), unsettled: 0 }
    }

    /// What the file said, which nobody reads or writes meanwhile.
    fn put(&self, text: &str) -> String {
        let mut file = OpenOptions::new().read(true).write(true).open(&self.armed).unwrap();
        file.lock().unwrap();
        let mut said = String::new();
        file.read_to_string(&mut said).unwrap();
        file.set_len(0).unwrap();
        file.rewind().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        said
    }

    fn arm(&self, step: Step, nth: u32) {
        self.put(&format!("{} {nth}", step.name()));
    }

    /// Whether the broker has died, or survived all that came; from now on it lives.
    async fn died(&mut self, step: Step) -> bool {
        if self.put("") != "died" {
            return false;
        }
        self.stand.broker.child.wait().await.expect("it is gone");
        self.deaths.insert(step.name());
        let (found, code) = audit(&["verify", as_text(&directory(&self.stand))]);
        assert_eq!(code, 0, "what a crash leaves is no fault: {found}");
        self.stand.broker = Server::start_mortal(&self.stand.broker.config.clone(), &self.armed).await;
        true
    }

    /// Asserts that it has died wherever that is for this test to see.
    #[track_caller]
    fn has_died_at_all(&self, by: By) {
        for step in steps(by) {
            assert!(self.deaths.contains(step.name()), "not at {}: {:?}", step.name(), self.deaths);
        }
    }

    /// Whether the log is good, and says of everything that it was done, or not, or that it cannot be told.
    fn log_is_good(&mut self) {
        // What nobody waits for may come between the two looks.
        let (lines, found) = loop {
            let lines = self.stand.whole_audit();
            let (found, code) = audit(&["verify", as_text(&directory(&self.stand))]);
            assert_eq!(code, 0, "{found}");
            if lines.last().is_some_and(|last| last["sequence"] == found["last"]) {
                break (lines, found);
            }
        };
        accounts_for_intents(&found, &lines);
        self.unsettled = found["unsettled"].as_array().unwrap().len();
    }
}

async fn send(request: RequestBuilder) -> Option<Answer> {
    let response = request.send().await.ok()?;
    let (status, headers) = (response.status(), response.headers().clone());
    Some(Answer { status, headers, text: response.text().await.ok()? })
}

/// What is asked of the broker when it dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Declare,
    Mint,
    Certify,
    Renew,
    Report,
    Complete,
    Revoke,
    RevokeLease,
}

/// One call, which can be made again.
struct Asked {
    deed: Deed,
    /// The task; the key under which it is declared, where that is what is asked.
    task: String,
    /// Its first credential, where it is declared already.
    lease: String,
    evidence: String,
    csr: String,
    prover: Prover,
}

impl Asked {
    fn new(stand: &Stand, deed: Deed, task: String, lease: String) -> Self {
        let key = rcgen::KeyPair::generate().expect("a key");
        let csr = rcgen::CertificateParams::default().serialize_request(&key).expect("a request").pem().expect("PEM");
        // Evidence that comes with a key serves nobody without it.
        let evidence = stand.issuer.evidence(&stand.broker.url, json!({"ref": task}));
        Self { deed, task, lease, evidence, csr, prover: Prover::new() }
    }

    fn request(&self, stand: &Stand) -> RequestBuilder {
        let Self { deed, task, lease, evidence, .. } = self;
        let post = |path: &str, body: Value| {
            let request = stand.client.post(stand.url(path));
            let proof = self.prover.proof("POST", &stand.url(path), json!({}));
            match deed {
                Deed::Revoke | Deed::RevokeLease => request.bearer_auth(RESPONDER).json(&body),
                // Whoever shows a key gets a task token too. The header is nothing to the others.
                Deed::Declare => {
                    request.bearer_auth(evidence).header("idempotency-key", task).header("dpop", proof).json(&body)
                }
                Deed::Renew => request.bearer_auth(evidence).header("dpop", proof).json(&body),
                Deed::Mint | Deed::Certify | Deed::Report | Deed::Complete => request.bearer_auth(evidence).json(&body),
            }
        };
        let report = json!({"kind": "prompt", "label": "p", "digest": digest(b"what"), "size": 4, "sequence": 1});
        match deed {
            Deed::Declare => post("/v1/tasks", declaration()),
            Deed::Mint => post(
                &format!("/v1/tasks/{task}/credentials"),
                json!({"credentials": [{"resource": GIT, "privilege": "read"}, {"resource": GIT, "privilege": "write"}]}),
            ),
            Deed::Certify => post(&format!("/v1/tasks/{task}/certificate"), json!({"csr": self.csr})),
            Deed::Renew => post(&format!("/v1/tasks/{task}/renew"), json!({"ttl": 600})),
            Deed::Report => post(&format!("/v1/tasks/{task}/reports"), json!({"reports": [report]})),
            Deed::Complete => post(&format!("/v1/tasks/{task}/complete"), json!({})),
            Deed::Revoke => post(&format!("/v1/tasks/{task}/revoke"), json!({"reason": "a test says so"})),
            Deed::RevokeLease => post(&format!("/v1/leases/{lease}/revoke"), json!({"reason": "a test says so"})),
        }
    }
}

/// Has a broker die at every step of a deed, until it gets through, and looks each time what is left.
async fn dies_at_every_step(stand: Stand, deed: Deed) {
    let mut mortal = Mortal::new(stand).await;
    let mut rounds = 0;
    for step in Step::ALL {
        for nth in 1.. {
            assert!(nth < MOST, "{deed:?} does not come to an end of {}", step.name());
            rounds += 1;
            let (mut got, mut task) = (Got::default(), format!("key-{rounds}"));
            if deed != Deed::Declare {
                let mut short = declaration();
                short["ttl"] = 300.into();
                let answer = mortal.stand.declare(short).await.expect(StatusCode::CREATED);
                got.take(&answer);
                task = text(&answer, "task");
            }
            let since = mortal.stand.whole_audit().len();
            let lease = got.leases.first().cloned().unwrap_or_default();
            let asked = Asked::new(&mortal.stand, deed, task, lease);
            mortal.arm(*step, nth);
            let answered = send(asked.request(&mortal.stand)).await;
            let says = answered.as_ref().map_or("", |answer| &answer.text);
            let succeeded = answered.as_ref().is_some_and(|answer| answer.status.is_success());
            if succeeded {
                got.take(&serde_json::from_str(says).unwrap());
            }
            let is_dead = mortal.died(*step).await;
            let place = format!("{deed:?} at {} {nth}", step.name());
            assert!(is_dead || succeeded, "{place}: {says}");
            if !is_dead {
                break;
            }
            left_well(&mortal.stand, &asked, since, got, &place).await;
            mortal.log_is_good();
        }
    }
    mortal.has_died_at_all(By::Calls);
    if matches!(deed, Deed::Complete | Deed::Revoke | Deed::RevokeLease) {
        mortal.has_died_at_all(By::Ends);
    }
    assert!(mortal.unsettled > 0, "nothing was left unsettled");
}

/// Locks a sandbox, and waits until all of it has ended; `None` where the broker died of that.
async fn lock_out(stand: &Stand, sandbox: u32) -> Option<Value> {
    let body = json!({"match": {"sandbox": format!("sb-{sandbox}")}, "reason": "r"});
    let answer = send(stand.client.post(stand.url("/v1/locks")).bearer_auth(RESPONDER).json(&body)).await?;
    let locked = answer.expect(StatusCode::CREATED);
    let path = format!("/v1/locks/{}", text(&locked, "lock"));
    loop {
        let shown = send(stand.client.get(stand.url(&path)).bearer_auth(VIEWER)).await?.expect(StatusCode::OK);
        if shown["progress"]["done"] == true {
            return Some(shown);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What the same again has to come to.
async fn came_to(
    stand: &Stand,
    deed: Deed,
    task: &str,
    (answer, got): (&Value, &Got),
    declared: Option<&str>,
    place: &str,
) {
    let lines = stand.whole_audit();
    match deed {
        Deed::Declare => {
            assert!(declared.is_none_or(|declared| declared == task), "{place}: a retry declares another task");
            let minted = |line: &&Value| line["task"] == *task && line["event"] == "credential_minted";
            let leases: BTreeSet<_> = lines.iter().filter(minted).map(|line| text(line, "lease")).collect();
            assert_eq!(leases.len(), 1, "{place}: a retry mints another credential");
        }
        Deed::Renew => {
            let seen = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK);
            assert_eq!(seen["expires_at"], answer["expires_at"], "{place}");
        }
        Deed::Report => assert_eq!((&answer["last_sequence"], &answer["gaps"]), (&json!(1), &json!([])), "{place}"),
        Deed::Complete | Deed::Revoke => {
            let state = if deed == Deed::Complete { "completed" } else { "revoked" };
            assert_eq!(answer["state"], state, "{place}");
        }
        Deed::RevokeLease => {
            assert_eq!(answer["state"], "revoked", "{place}");
            for token in &got.tokens {
                assert_eq!(stand.introspect(token).await["active"], false, "{place}");
            }
            // Nobody else's: the task goes on.
            let another = stand.mint(task).await.expect(StatusCode::OK);
            let token = text(&another["credentials"][0], "access_token");
            assert_eq!(stand.introspect(&token).await["active"], true, "{place}");
        }
        Deed::Mint | Deed::Certify => {}
    }
}

/// Looks at what a death has left of a task, asks for the same again, and ends it.
async fn left_well(stand: &Stand, asked: &Asked, since: usize, mut got: Got, place: &str) {
    let deed = asked.deed;
    let lines = stand.whole_audit();
    let of = |task: &str, event: &str| {
        lines.iter().filter(|line| line["task"] == task && line["event"] == event).cloned().collect::<Vec<_>>()
    };
    // Nothing is out that is not on record.
    for lease in &got.leases {
        assert!(lines.iter().any(|line| line["lease"] == **lease), "{place}: {lease} has no record");
    }
    let declared = lines[since..].iter().find(|line| line["event"] == "task_declared").map(|line| text(line, "task"));
    let declared = declared.filter(|_| deed == Deed::Declare);
    let task = declared.as_ref().or((deed != Deed::Declare).then_some(&asked.task));

    if let Some(task) = task {
        // In the list first: that somebody looked at a task which is not there yet is not told in its story.
        let listed = stand.get("/v1/tasks", VIEWER).await.expect(StatusCode::OK);
        if listed["tasks"].as_array().unwrap().iter().any(|listed| listed["task"] == *task) {
            let seen = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK);
            let alive = seen["state"] == "active";
            // What the log says has ended has ended, and what nobody asked to end has not.
            assert!(!alive || of(task, "task_ended").is_empty(), "{place}: {seen}");
            assert!(alive || !of(task, "end_requested").is_empty(), "{place}: {seen}");
            for token in &got.tokens {
                // One that is being revoked by itself is dead where the log says so, and alive where nobody is on record who asked for it.
                let (asked, done) = (of(task, "credential_revocation_requested"), of(task, "credential_revoked"));
                if asked.is_empty() || !done.is_empty() {
                    assert_eq!(stand.introspect(token).await["active"], alive && done.is_empty(), "{place}");
                }
            }
            // Nothing lives longer than the log says.
            let deadlines = [of(task, "task_declared"), of(task, "task_renewed")].concat();
            assert!(deadlines.iter().any(|line| line["expires_at"] == seen["expires_at"]), "{place}: {seen}");
        } else {
            assert!(deed == Deed::Declare && got.leases.is_empty(), "{place}: {task} is gone");
        }
    }

    let certificates = std::mem::take(&mut got.certificates);

    // The same again comes to an end, and to the same one.
    let answer = send(asked.request(stand)).await.expect("an answer");
    assert!(answer.status.is_success(), "{place}: again: {}", answer.text);
    let answer = answer.json();
    got.take(&answer);
    let task = if deed == Deed::Declare { text(&answer, "task") } else { asked.task.clone() };
    came_to(stand, deed, &task, (&answer, &got), declared.as_deref(), place).await;

    // Whatever it was, it can be ended for good.
    let credentials: BTreeSet<_> = got.tokens.iter().map(|token| text(&claims(token), "jti")).collect();
    let first = stand.revoke(&task).await.expect(StatusCode::OK);
    assert_eq!(first["state"], if deed == Deed::Complete { "completed" } else { "revoked" }, "{place}");
    assert!(first["credentials"].as_u64().unwrap() >= credentials.len() as u64, "{place}: {first}");
    assert_eq!(settled(stand.revoke(&task).await.expect(StatusCode::OK)), settled(first), "{place}");
    for token in &got.tokens {
        assert_eq!(stand.introspect(token).await["active"], false, "{place}");
    }
    for certificate in certificates {
        Certified::of(certificate).is_revoked_soon(stand, &stand.broker).await;
    }
    stand.mint(&task).await.refused(409, "task_not_active");

    // The story is whole, whoever told it.
    let story = stand.get(&format!("/v1/tasks/{task}/timeline"), VIEWER).await.expect(StatusCode::OK);
    assert_eq!(story["complete"], true, "{place}: {story}");
    let told: BTreeSet<_> =
        story["events"].as_array().unwrap().iter().map(|event| event["source"]["sequence"].as_u64().unwrap()).collect();
    for line in stand.whole_audit().iter().filter(|line| line["task"] == *task && line["outcome"] != "done") {
        let sequence = line["sequence"].as_u64().unwrap();
        assert!(told.contains(&sequence) || told.iter().all(|last| *last < sequence), "{place}: {line} is left out");
    }
}

/// Who in here sees a broker die at a step. One that is added is given to somebody, or this does not compile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Calls,
    Ends,
    Log,
    Keys,
}

fn shown_by(step: Step) -> By {
    match step {
        Step::StoreAsked
        | Step::StoreWritten
        | Step::AuditAsked
        | Step::AuditWritten
        | Step::AuditSynced
        | Step::Answering => By::Calls,
        Step::JournalWritten | Step::JournalSynced => By::Ends,
        Step::SegmentMade | Step::SegmentTurned | Step::CheckpointKept | Step::CheckpointAnchored => By::Log,
        Step::FileWritten | Step::FilePlaced => By::Keys,
    }
}

fn steps(by: By) -> impl Iterator<Item = Step> {
    Step::ALL.iter().copied().filter(move |step| shown_by(*step) == by)
}

both! {
    async fn a_declaration(stand) {
        dies_at_every_step(stand, Deed::Declare).await;
    }

    async fn a_mint(stand) {
        dies_at_every_step(stand, Deed::Mint).await;
    }

    async fn a_certificate(stand) {
        dies_at_every_step(stand, Deed::Certify).await;
    }

    async fn a_renewal(stand) {
        dies_at_every_step(stand, Deed::Renew).await;
    }

    async fn a_report(stand) {
        dies_at_every_step(stand, Deed::Report).await;
    }

    async fn a_completion(stand) {
        dies_at_every_step(stand, Deed::Complete).await;
    }

    async fn a_revoke(stand) {
        dies_at_every_step(stand, Deed::Revoke).await;
    }

    async fn a_revoke_of_one_credential(stand) {
        dies_at_every_step(stand, Deed::RevokeLease).await;
    }

    /// A lock, and what it ends behind its answer: in the journal, in the store, and between them.
    async fn a_lock(stand) {
        let mut mortal = Mortal::new(stand).await;
        let mut rounds = 0;
        for step in &[Step::JournalWritten, Step::JournalSynced, Step::StoreAsked, Step::StoreWritten] {
            for nth in 1.. {
                let place = format!("a lock at {} {nth}", step.name());
                assert!(nth < MOST, "{place}: it does not come to an end");
                rounds += 1;
                let mut declaration = declaration();
                declaration["sandbox"] = format!("sb-{rounds}").into();
                let declared = mortal.stand.declare(declaration.clone()).await.expect(StatusCode::CREATED);
                let (task, token) = (text(&declared, "task"), text(&declared["credentials"][0], "access_token"));
                mortal.arm(*step, nth);
                let first = lock_out(&mortal.stand, rounds).await;
                let is_dead = mortal.died(*step).await;
                let stand = &mortal.stand;
                // What was answered holds; and what was not can be asked again.
                if first.is_some() {
                    stand.declare(declaration.clone()).await.refused(403, "locked");
                }
                lock_out(stand, rounds).await.unwrap_or_else(|| panic!("{place}: again"));
                stand.declare(declaration).await.refused(403, "locked");
                assert_eq!(stand.introspect(&token).await["active"], false, "{place}");
                let shown = stand.get(&format!("/v1/tasks/{task}"), VIEWER).await.expect(StatusCode::OK);
                assert_eq!(shown["state"], "revoked", "{place}");
                if !is_dead {
                    break;
                }
                mortal.log_is_good();
            }
        }
        mortal.has_died_at_all(By::Ends);
    }
}

/// Between the segments of the log, and between a checkpoint and whoever else is to have it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log() {
    let elsewhere = tempfile::tempdir().unwrap();
    let anchor = elsewhere.path().join("anchored");
    let config = format!(
        "[audit]\ncheckpoint_every = 1\nsegment_bytes = 4194304\n[[audit.anchor]]\npath = \"{}\"\n",
        anchor.display()
    );
    let mut mortal = Mortal::new(Stand::with(Store::Embedded, &config).await).await;
    let mut long = declaration();
    let words = |of: usize| (0..32).map(|at| format!("{of} {at} {}", "x".repeat(200))).collect::<Vec<_>>();
    long["authorization_details"] = (0..6)
        .map(|of| json!({"type": "remit:access", "locations": [GIT], "privileges": ["read"], "actions": words(of)}))
        .collect();
    let mut declared = Vec::new();
    for step in steps(By::Log) {
        mortal.arm(step, 1);
        let stand = &mortal.stand;
        let declare = || stand.client.post(stand.url("/v1/tasks")).bearer_auth(stand.evidence()).json(&long);
        let mut answered = 0;
        while let Some(answer) = send(declare()).await {
            declared.push(text(&answer.expect(StatusCode::CREATED), "task"));
            answered += 1;
            assert!(answered < 1000, "not at {}", step.name());
        }
        assert!(mortal.died(step).await);
        let (dir, anchors) = (directory(&mortal.stand), ["--anchor", as_text(&anchor)]);
        let anchors: &[&str] = if anchor.exists() { &anchors } else { &[] };
        let (found, code) = audit(&[&["verify", as_text(&dir)], anchors].concat());
        assert_eq!(code, 0, "{}: {found}", step.name());
        mortal.log_is_good();
        let lines = mortal.stand.whole_audit();
        let known: BTreeSet<_> =
            lines.iter().filter(|line| line["event"] == "task_declared").map(|line| text(line, "task")).collect();
        assert!(declared.iter().all(|task| known.contains(task)), "{}", step.name());
    }
    mortal.has_died_at_all(By::Log);
    assert!(remit::audit::segment::Segment::list(&directory(&mortal.stand)).unwrap().len() >= 3);
}

/// While the keys change: whatever is left, one of each kind signs, and nothing that was minted is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_of_keys() {
    let mut mortal = Mortal::new(Stand::new(Store::Embedded).await).await;
    for step in steps(By::Keys) {
        for nth in 1..MOST {
            rotated(&mortal.stand).await;
            let (_, before) = mortal.stand.task_with_token().await;
            let seen = in_state(&list(&mortal.stand).await, "signing");
            mortal.arm(step, nth);
            let stand = &mortal.stand;
            let ask = || stand.client.post(stand.url("/v1/keys/rotate")).bearer_auth(ADMIN).json(&json!({}));
            let mut signing = send(ask()).await.map(|_| seen.clone());
            while signing.as_ref() == Some(&seen) || signing.as_ref().is_some_and(|keys| keys.len() < seen.len()) {
                tokio::time::sleep(Duration::from_millis(50)).await;
                let answer = send(stand.client.get(stand.url("/v1/keys")).bearer_auth(VIEWER)).await;
                let settled = |answer: &Answer| in_state(&answer.json(), "prepared").is_empty();
                signing = match answer {
                    Some(answer) if !settled(&answer) => Some(seen.clone()),
                    answer => answer.map(|answer| in_state(&answer.json(), "signing")),
                };
            }
            let is_dead = mortal.died(step).await;
            let place = format!("{} {nth}", step.name());
            rotated(&mortal.stand).await;
            let stand = &mortal.stand;
            assert_eq!(in_state(&list(stand).await, "signing").len(), seen.len(), "{place}");
            let (_, token) = stand.task_with_token().await;
            for token in [&before, &token] {
                assert_eq!(stand.introspect(token).await["active"], true, "{place}");
                let kid = text(&part(token, 0), "kid");
                assert!(published(stand, "/jwks").await.contains(&kid), "{place}: {kid} is not published");
            }
            mortal.log_is_good();
            if !is_dead {
                break;
            }
        }
    }
    mortal.has_died_at_all(By::Keys);
}

/// In the middle of a taint: the log lists it as not settled, and the same again comes to its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_taint_of_a_key() {
    let mut mortal = Mortal::new(Stand::new(Store::Embedded).await).await;
    let (_, token) = mortal.stand.task_with_token().await;
    let path = format!("/v1/keys/{}/taint", text(&part(&token, 0), "kid"));
    // It is kept on this broker's own disk first.
    mortal.arm(Step::FileWritten, 1);
    let stand = &mortal.stand;
    let asked = send(stand.client.post(stand.url(&path)).bearer_auth(ADMIN).json(&json!({}))).await;
    assert!(asked.is_none() && mortal.died(Step::FileWritten).await);
    let (found, code) = audit(&["verify", as_text(&directory(&mortal.stand))]);
    let unsettled: Vec<_> = found["unsettled"].as_array().unwrap().iter().map(|one| text(one, "event")).collect();
    assert_eq!((code, &*unsettled), (0, &["key_taint_requested".to_owned()][..]), "{found}");
    let stand = &mortal.stand;
    assert_eq!(stand.post(&path, ADMIN, json!({})).await.expect(StatusCode::OK)["state"], "tainted");
    assert_eq!(stand.introspect(&token).await["active"], false);
    mortal.log_is_good();
    assert_eq!(mortal.unsettled, 1, "what came of the second is on record");
}

/// When it is started for the first time: whatever is there by then, the next one goes on with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_start() {
    let mut mortal = Mortal::new(Stand::new(Store::Embedded).await).await;
    let (config, dir) = (mortal.stand.broker.config.clone(), mortal.stand.dir.path().to_owned());
    for step in Step::ALL {
        for nth in 1..MOST {
            mortal.stand.broker.child.kill().await.expect("it is gone");
            for made in ["broker-keys", "broker-audit", "broker-journal"] {
                fs::remove_dir_all(dir.join(made)).unwrap();
            }
            for made in ["store.key", "remit.redb"] {
                fs::remove_file(dir.join(made)).unwrap();
            }
            mortal.arm(*step, nth);
            let mut starting = mortal_broker(&config, &mortal.armed).kill_on_drop(true).spawn().expect("remit starts");
            let ready = || mortal.stand.client.get(mortal.stand.url("/readyz")).send();
            while starting.try_wait().unwrap().is_none() && !ready().await.is_ok_and(|is| is.status().is_success()) {
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
            let is_dead = mortal.put("") == "died";
            starting.kill().await.expect("it is gone");
            mortal.stand.broker = Server::start_mortal(&config, &mortal.armed).await;
            let (_, token) = mortal.stand.task_with_token().await;
            assert_eq!(mortal.stand.introspect(&token).await["active"], true, "{} {nth}", step.name());
            mortal.log_is_good();
            if !is_dead {
                break;
            }
            mortal.deaths.insert(step.name());
        }
    }
    mortal.has_died_at_all(By::Keys);
}

/// Nobody has such a broker by mistake, and nobody reaches it from elsewhere.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_can_be_made_to_die_says_so_and_stays_at_home() {
    let mut stand = Stand::new(Store::Embedded).await;
    stand.broker.stop().await;
    let config = &stand.broker.config;
    let start = || {
        let mut command = mortal_broker(config, &stand.dir.path().join("armed"));
        command.env("REMIT_LOG", "warn").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true).spawn().expect("remit starts")
    };
    let mut at_home = start();
    let mut lines = tokio::io::BufReader::new(at_home.stderr.take().unwrap()).lines();
    let said = lines.next_line().await.unwrap().unwrap_or_default();
    assert!(said.contains("built with `failpoints`"), "{said}");
    at_home.kill().await.expect("it is gone");
    let text = fs::read_to_string(config).unwrap();
    fs::write(config, text.replace("[listen]", &format!("[listen]\nops = \"0.0.0.0:{}\"", free_port()))).unwrap();
    let output = start().wait_with_output().await.expect("it ends");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("serves on loopback alone"), "{said}");
}
