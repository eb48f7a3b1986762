//! Tokens as GitHub Actions, GitLab CI and Kubernetes write them, under the preset of each and nothing given by hand that
//! the preset knows.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use reqwest::StatusCode;
use ring::signature::{KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};

use crate::support::{GIT, Issuer, OWNER, Server, Stand, Store, VIEWER, declaration, now, text};

const AUDIENCE: &str = "https://broker.example.com";
const GITHUB: &str = "https://token.actions.githubusercontent.com";
const GITLAB: &str = "https://gitlab.com";
const CLUSTER: &str = "https://kubernetes.default.svc.cluster.local";
const EKS: &str = "https://oidc.eks.eu-central-1.amazonaws.com/id/5A1B2C3D4E5F60718293A4B5C6D7E8F9";

/// An issuer that signs RS256, as these do.
struct Rsa(RsaKeyPair);

impl Rsa {
    fn new() -> Self {
        let made = std::process::Command::new("openssl")
            .args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-outform", "DER"])
            .output()
            .expect("openssl");
        // With this output form, openssl writes PKCS #1 or #8, by version.
        let key = RsaKeyPair::from_pkcs8(&made.stdout).or_else(|_| RsaKeyPair::from_der(&made.stdout));
        Self(key.expect("an RSA key"))
    }

    fn jwks(&self) -> Value {
        let public = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(self.0.public_key());
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        json!({"keys": [{"kty": "RSA", "kid": "k1", "use": "sig", "alg": "RS256",
            "n": encode(&public.n), "e": encode(&public.e)}]})
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let mut signature = vec![0; self.0.public().modulus_len()];
        let random = ring::rand::SystemRandom::new();
        self.0.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).expect("signed");
        format!("{signed}.{}", encode(&signature))
    }
}

/// The four issuers: two of CI, a cluster that signs ES256 and one that signs RS256.
struct Issuers {
    dir: tempfile::TempDir,
    rsa: Rsa,
    ec: Issuer,
}

impl Issuers {
    fn new() -> Self {
        let issuers = Self { dir: tempfile::tempdir().unwrap(), rsa: Rsa::new(), ec: Issuer::new() };
        std::fs::write(issuers.dir.path().join("rsa.json"), issuers.rsa.jwks().to_string()).unwrap();
        std::fs::write(issuers.dir.path().join("ec.json"), issuers.ec.jwks().to_string()).unwrap();
        issuers
    }

    /// What stands in the configuration: the keys, because no test asks the real issuers for theirs, and what no preset can know.
    fn config(&self) -> String {
        let attestor = |name: &str, preset: &str, keys: &str, more: &str| {
            let keys = self.dir.path().join(keys);
            format!(
                "[[attestor]]\ntype = \"oidc\"\nname = \"{name}\"\npreset = \"{preset}\"\naudience = \"{AUDIENCE}\"\n\
                 keys_file = \"{}\"\nowners = [\"{OWNER}\"]\n{more}\n",
                keys.display()
            )
        };
        [
            attestor("github", "github-actions", "rsa.json", ""),
            attestor("gitlab", "gitlab-ci", "rsa.json", ""),
            attestor("cluster", "kubernetes", "ec.json", &format!("issuer = \"{CLUSTER}\"")),
            attestor(
                "eks",
                "kubernetes",
                "rsa.json",
                &format!(
                    "issuer = \"{EKS}\"\nkind = \"ai_agent\"\nselectors = []\n\
                     workload = \"/eks/{{/kubernetes.io/namespace}}/{{/kubernetes.io/pod/name}}\""
                ),
            ),
        ]
        .concat()
    }

    fn github(&self, over: Value) -> String {
        let header = json!({"typ": "JWT", "alg": "RS256", "x5t": "ykNaY4qM_ta4k2TgZOCEYLkcYlA", "kid": "k1"});
        self.rsa.sign(&header, &over_laid(github(), over))
    }

    fn gitlab(&self, over: Value) -> String {
        self.rsa.sign(&json!({"kid": "k1", "typ": "JWT", "alg": "RS256"}), &over_laid(gitlab(), over))
    }

    fn pod(&self, over: Value) -> String {
        self.ec.key.sign("JWT", &over_laid(pod(CLUSTER), over)).unwrap()
    }

    /// The API server writes no `typ`.
    fn eks(&self, over: Value) -> String {
        self.rsa.sign(&json!({"alg": "RS256", "kid": "k1"}), &over_laid(pod(EKS), over))
    }
}

fn over_laid(mut claims: Value, over: Value) -> Value {
    let Value::Object(over) = over else { panic!("no object") };
    for (name, value) in over {
        // `a|b.c` reaches into `a`.
        match name.rsplit_once('|') {
            Some((outer, inner)) => *member(&mut claims[outer], inner) = value,
            None if value.is_null() => drop(claims.as_object_mut().unwrap().remove(&name)),
            None => claims[name] = value,
        }
    }
    claims
}

fn member<'a>(object: &'a mut Value, path: &str) -> &'a mut Value {
    path.split('.').fold(object, |object, name| &mut object[name])
}

/// The claims of a job of a push to main, as GitHub documents them.
fn github() -> Value {
    let now = now();
    json!({
        "jti": "3a9bcf1a-5d1b-4b1c-8f0e-2f2ad1d0b3b5",
        "sub": "repo:acme/payments:ref:refs/heads/main",
        "aud": AUDIENCE,
        "ref": "refs/heads/main",
        "sha": "8fe1b322a576d59fe6257052a4107df7dc1b8c78",
        "repository": "acme/payments",
        "repository_owner": "acme",
        "repository_owner_id": "65",
        "run_id": "6543210987",
        "run_number": "10",
        "run_attempt": "1",
        "repository_visibility": "private",
        "repository_id": "74",
        "actor_id": "12",
        "actor": "octocat",
        "workflow": "ci",
        "head_ref": "",
        "base_ref": "",
        "event_name": "push",
        "ref_protected": "true",
        "ref_type": "branch",
        "workflow_ref": "acme/payments/.github/workflows/ci.yml@refs/heads/main",
        "workflow_sha": "8fe1b322a576d59fe6257052a4107df7dc1b8c78",
        "job_workflow_ref": "acme/payments/.github/workflows/ci.yml@refs/heads/main",
        "job_workflow_sha": "8fe1b322a576d59fe6257052a4107df7dc1b8c78",
        "runner_environment": "github-hosted",
        "enterprise": "acme",
        "enterprise_id": "123",
        "environment": "staging",
        "iss": GITHUB,
        "nbf": now - 600,
        "iat": now,
        "exp": now + 300,
    })
}

/// The claims of an `id_token` of a job in a subgroup's project, as GitLab documents them.
fn gitlab() -> Value {
    let now = now();
    json!({
        "namespace_id": "72",
        "namespace_path": "acme/platform",
        "project_id": "20",
        "project_path": "acme/platform/payments",
        "user_id": "1",
        "user_login": "sample-user",
        "user_email": "sample-user@example.com",
        "user_identities": [{"provider": "github", "extern_uid": "2435223452345"}],
        "user_access_level": "developer",
        "groups_direct": ["acme", "acme/platform"],
        "pipeline_id": "574",
        "pipeline_source": "push",
        "job_id": "302",
        "job_source": "push",
        "ref": "main",
        "ref_type": "branch",
        "ref_path": "refs/heads/main",
        "ref_protected": "true",
        "environment": "staging",
        "environment_protected": "false",
        "deployment_tier": "staging",
        "environment_action": "start",
        "runner_id": 1,
        "runner_environment": "self-hosted",
        "sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
        "project_visibility": "private",
        "ci_config_ref_uri": "gitlab.com/acme/platform/payments//.gitlab-ci.yml@refs/heads/main",
        "ci_config_sha": "714a629c0b401fdce83e847fc9589983fc6f46bc",
        "jti": "235b3a54-b797-45c7-ae9a-f72d7bc6ef5b",
        "iss": GITLAB,
        "iat": now,
        "nbf": now - 5,
        "exp": now + 3600,
        "sub": "project_path:acme/platform/payments:ref_type:branch:ref:main",
        "aud": AUDIENCE,
    })
}

/// The claims of a projected service-account token, as an API server of Kubernetes 1.30 and later writes them.
fn pod(issuer: &str) -> Value {
    let now = now();
    json!({
        "aud": [AUDIENCE, "https://vault.example.com"],
        "exp": now + 86_400,
        "iat": now,
        "iss": issuer,
        "jti": "e51f1fbc-4733-4b85-a59f-ba80c0523874",
        "kubernetes.io": {
            "namespace": "payments",
            "node": {"name": "ip-10-0-1-7.internal", "uid": "517eb86e-b863-451b-bf70-86cb61439a3a"},
            "pod": {"name": "fixer-7d4b9c-x2x8k", "uid": "0d8b260e-ef0e-45fb-be8e-ff44f97722e8"},
            "serviceaccount": {"name": "fixer", "uid": "e6a8680e-d103-4cce-80ea-03acbbeacf7d"},
            "warnafter": now + 3607,
        },
        "nbf": now,
        "sub": "system:serviceaccount:payments:fixer",
    })
}

/// One workload under a preset: its token, another instance's, and what the preset is documented to make of it.
struct Known {
    token: String,
    other: String,
    workload: &'static str,
    instance: &'static str,
    kind: &'static str,
}

fn all(issuers: &Issuers) -> Vec<(&'static str, Known)> {
    let pod_uid = "0d8b260e-ef0e-45fb-be8e-ff44f97722e8";
    let other_pod = json!({"kubernetes.io|pod.uid": "9c1f6a1e-7a06-4f5e-8d0f-5b7a5f3b2c11"});
    vec![
        (
            "github",
            Known {
                token: issuers.github(json!({})),
                other: issuers.github(json!({"run_attempt": "2"})),
                workload: "spiffe://example.com/ci/acme/payments",
                instance: "6543210987.1",
                kind: "ci",
            },
        ),
        (
            "gitlab",
            Known {
                token: issuers.gitlab(json!({})),
                other: issuers.gitlab(json!({"job_id": "303"})),
                workload: "spiffe://example.com/gitlab/acme/platform/payments",
                instance: "574.302",
                kind: "ci",
            },
        ),
        (
            "cluster",
            Known {
                token: issuers.pod(json!({})),
                other: issuers.pod(other_pod.clone()),
                workload: "spiffe://example.com/ns/payments/sa/fixer",
                instance: pod_uid,
                kind: "service",
            },
        ),
        (
            "eks",
            Known {
                token: issuers.eks(json!({})),
                other: issuers.eks(other_pod),
                workload: "spiffe://example.com/eks/payments/fixer-7d4b9c-x2x8k",
                instance: pod_uid,
                kind: "ai_agent",
            },
        ),
    ]
}

async fn preset_stand(store: Store) -> (Stand, Issuers) {
    let issuers = Issuers::new();
    (Stand::with(store, &issuers.config()).await, issuers)
}

/// A declaration whose words fit the attested ones.
fn task() -> Value {
    let mut declaration = declaration();
    for said in ["environment", "sandbox", "context"] {
        declaration.as_object_mut().unwrap().remove(said);
    }
    declaration
}

async fn a_task_belongs_to_the_instance_that_the_preset_names(store: Store) {
    let (stand, issuers) = preset_stand(store).await;
    for (attestor, known) in all(&issuers) {
        let declared = stand.post("/v1/tasks", &known.token, task()).await.expect(StatusCode::CREATED);
        assert_eq!(
            (&declared["workload"], &declared["instance"]),
            (&json!(known.workload), &json!(known.instance)),
            "{attestor}"
        );
        let access = text(&declared["credentials"][0], "access_token");
        let claims = crate::support::claims(&access);
        let about = &claims["urn:remit:task"];
        assert_eq!((&about["attestor"], &about["kind"]), (&json!(attestor), &json!(known.kind)));
        assert_eq!(claims["sub"], known.workload);
        assert_eq!(stand.introspect(&access).await["active"], true);

        let task_path = format!("/v1/tasks/{}", text(&declared, "task"));
        let mint = json!({"credentials": [{"resource": GIT, "privilege": "read"}]});
        let credentials = format!("{task_path}/credentials");
        // Another run of the same workload has tasks of its own, and does not see this one.
        let other = stand.post("/v1/tasks", &known.other, task()).await.expect(StatusCode::CREATED);
        assert_eq!(other["workload"], known.workload);
        assert_ne!(other["instance"], known.instance);
        stand.get(&task_path, &known.other).await.refused(404, "not_found");
        stand.post(&credentials, &known.other, mint.clone()).await.refused(404, "not_found");
        for end in ["complete", "revoke"] {
            let end = format!("{task_path}/{end}");
            stand.post(&end, &known.other, json!({"reason": "not mine"})).await.refused(404, "not_found");
        }
        let listed = stand.get("/v1/tasks", &known.other).await.expect(StatusCode::OK);
        assert_eq!(listed["tasks"].as_array().unwrap().len(), 1, "{attestor}");
        assert_eq!(listed["tasks"][0]["task"], other["task"]);
        // Its own instance goes on with it.
        stand.post(&credentials, &known.token, mint).await.expect(StatusCode::OK);
        stand.get(&task_path, VIEWER).await.expect(StatusCode::OK);
        stand.post(&format!("{task_path}/complete"), &known.token, json!({})).await.expect(StatusCode::OK);
        assert_eq!(stand.introspect(&access).await["active"], false);

        let mut theirs = task();
        theirs["owner"] = "other@example.com".into();
        stand.post("/v1/tasks", &known.token, theirs).await.refused(403, "policy_denied");
    }
}

mod stores {
    use crate::support::Store;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn embedded() {
        super::a_task_belongs_to_the_instance_that_the_preset_names(Store::Embedded).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn redis() {
        super::a_task_belongs_to_the_instance_that_the_preset_names(Store::Redis).await;
    }
}

/// Facts and selectors are what a policy goes by: each of these permits one token and not the one that differs a little.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_see_what_the_presets_prove() {
    let issuers = Issuers::new();
    let policy = |id: &str, when: &str| {
        format!(
            "@id(\"{id}\") permit (principal, action, resource) when {{ principal.attestor == \"{id}\" && {when} }};\n"
        )
    };
    let policies = [
        policy(
            "github",
            "context.attested has repo && context.attested.repo == \"acme/payments\" &&
             context.attested has branch && context.attested.branch == \"refs/heads/main\" &&
             context.attested has environment && context.attested.environment == \"staging\" &&
             context.attested.selectors.contains(\"oidc:repository_owner_id:65\")",
        ),
        policy(
            "gitlab",
            "context.attested has repo && context.attested.repo == \"acme/platform/payments\" &&
             context.attested has branch && context.attested.branch == \"refs/heads/main\" &&
             context.attested.selectors.contains(\"oidc:ref_protected:true\") &&
             context.attested.selectors.contains(\"oidc:namespace_id:72\")",
        ),
        policy(
            "cluster",
            "context.attested has sandbox && context.attested.sandbox == context.attested.instance &&
             context.attested.selectors.contains(\"oidc:/kubernetes.io/namespace:payments\") &&
             context.attested.selectors.contains(\"oidc:/kubernetes.io/serviceaccount/uid:e6a8680e-d103-4cce-80ea-03acbbeacf7d\")",
        ),
    ]
    .concat();
    let stand = Stand::under(&policies, |config| format!("{config}\n{}", issuers.config())).await;
    for good in [
        issuers.github(json!({})),
        issuers.gitlab(json!({})),
        // Without an environment, and with a `sub` that the project has arranged otherwise.
        issuers.gitlab(json!({"environment": null, "environment_protected": null, "sub": "project_id:20"})),
        issuers.pod(json!({})),
    ] {
        stand.post("/v1/tasks", &good, task()).await.expect(StatusCode::CREATED);
    }
    for bad in [
        issuers.github(json!({"ref": "refs/tags/main", "ref_type": "tag"})),
        issuers.github(json!({"repository_owner_id": "66"})),
        // A tag may be called `main`: GitLab's `ref` is the same for both.
        issuers.gitlab(json!({"ref_type": "tag", "ref_path": "refs/tags/main"})),
        issuers.gitlab(json!({"ref_protected": "false"})),
        issuers.gitlab(json!({"project_path": "acme/platform/payments-fork"})),
        issuers.pod(json!({"kubernetes.io|namespace": "staging"})),
        issuers.pod(json!({"kubernetes.io|serviceaccount.uid": "another"})),
    ] {
        stand.post("/v1/tasks", &bad, task()).await.refused(403, "policy_denied");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_refused_and_never_normalised() {
    let (stand, issuers) = preset_stand(Store::Embedded).await;
    let mut rows = vec![
        ("github without a run", issuers.github(json!({"run_id": null}))),
        ("github, a run that could be two", issuers.github(json!({"run_id": "1.2"}))),
        ("github, another's keys", issuers.ec.key.sign("JWT", &github()).unwrap()),
        ("gitlab without a job", issuers.gitlab(json!({"job_id": null}))),
        ("gitlab, a dot in a pipeline", issuers.gitlab(json!({"pipeline_id": "5.74"}))),
        ("gitlab, upwards", issuers.gitlab(json!({"project_path": "acme/../other/payments"}))),
        ("gitlab, no group", issuers.gitlab(json!({"project_path": "/payments"}))),
        ("gitlab, a space", issuers.gitlab(json!({"project_path": "acme/pay ments"}))),
        ("gitlab, of another installation", issuers.gitlab(json!({"iss": "https://gitlab.example.com"}))),
        ("gitlab, its default audience", issuers.gitlab(json!({"aud": GITLAB}))),
        ("gitlab, by ES256", issuers.ec.key.sign("JWT", &gitlab()).unwrap()),
        ("a cluster's, for the API server", issuers.pod(json!({"aud": [CLUSTER]}))),
        ("a cluster's, of long ago", issuers.pod(json!({"iat": now() - 7200, "nbf": now() - 7200}))),
        ("a cluster's, of the other one", issuers.eks(json!({"iss": CLUSTER}))),
        ("without a namespace", issuers.pod(json!({"kubernetes.io|namespace": null}))),
        ("a namespace with a slash", issuers.pod(json!({"kubernetes.io|namespace": "payments/sa/x"}))),
        ("an escaped namespace", issuers.pod(json!({"kubernetes.io|namespace": "pay%6Dents"}))),
        ("a namespace that is a list", issuers.pod(json!({"kubernetes.io|namespace": ["payments"]}))),
        ("a pod without a uid", issuers.pod(json!({"kubernetes.io|pod.uid": null}))),
        ("an empty uid", issuers.pod(json!({"kubernetes.io|pod.uid": ""}))),
        // What Secrets held before 1.24, but with the times that it never had.
        (
            "a legacy token",
            issuers.pod(json!({"kubernetes.io": null, "kubernetes.io/serviceaccount/namespace": "payments",
                "kubernetes.io/serviceaccount/service-account.name": "fixer"})),
        ),
    ];
    for name in ["Fixer_é", "fixer:1", "fixer/1", "fix er", "..", "", "task", "fixer%2f1"] {
        rows.push(("a pod's name", issuers.eks(json!({"kubernetes.io|pod.name": name}))));
    }
    for (why, token) in rows {
        let answer = stand.post("/v1/tasks", &token, task()).await;
        assert_eq!(answer.status, 401, "{why}: {}", answer.text);
        answer.refused(401, "evidence_invalid");
    }
    // Case is kept, not folded: another name.
    let upper = issuers.eks(json!({"kubernetes.io|pod.name": "FIXER"}));
    let declared = stand.post("/v1/tasks", &upper, task()).await.expect(StatusCode::CREATED);
    assert_eq!(declared["workload"], "spiffe://example.com/eks/payments/FIXER");
}

/// `kubectl create token`, or a token bound to a Secret or a node: valid for the cluster, and of no instance.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_bound_to_no_pod_is_refused_and_the_log_says_why() {
    let (mut stand, issuers) = preset_stand(Store::Embedded).await;
    let log = stand.dir.path().join("log");
    let config = stand.broker.config.clone();
    stand.broker.stop().await;
    stand.broker = Server::start_talking(&config, &log).await;
    let mut created = pod(CLUSTER);
    let about = created["kubernetes.io"].as_object_mut().unwrap();
    about.remove("pod");
    about.remove("node");
    let unbound = issuers.ec.key.sign("JWT", &created).unwrap();
    stand.post("/v1/tasks", &unbound, task()).await.refused(401, "evidence_invalid");
    let said = std::fs::read_to_string(&log).unwrap();
    assert!(said.contains("not bound to a pod") && said.contains("serviceAccountToken"), "{said}");
    assert!(!said.contains(&unbound), "no token in the log");
}
