//! nginx, as the distribution has it, with `deploy/sidecar/nginx.conf`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Instant,
};

use super::{AT_ONCE, Sidecar};
use crate::support::{GIT, OWNER, REGISTRY, Stand, Store, free_port, pki::Authority, secrets, text, wait_for};

struct Nginx {
    dir: PathBuf,
    port: u16,
    server: Child,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Asked by a signal it takes its workers along.
        let _ = Command::new("nginx").arg("-c").arg(self.dir.join("nginx.conf")).args(["-s", "stop"]).output();
        let _ = self.server.wait();
        if std::thread::panicking() {
            eprintln!("{}", fs::read_to_string(self.dir.join("error.log")).unwrap_or_default());
        }
    }
}

impl Nginx {
    async fn start(stand: &Stand, servers: &Authority, sidecar: &str) -> Self {
        let (dir, [port, service]) = (stand.dir.path().join("nginx"), [free_port(), free_port()]);
        fs::create_dir(&dir).unwrap();
        servers.serves(&dir.join("tls.crt"), &dir.join("tls.key"));
        let here = dir.display().to_string();
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/sidecar/nginx.conf");
        let mut block = fs::read_to_string(shipped).unwrap();
        for (shipped, ours) in [
            ("127.0.0.1:8421", sidecar.trim_start_matches("http://")),
            ("127.0.0.1:9000", &format!("127.0.0.1:{service}")),
            ("listen 8443", &format!("listen 127.0.0.1:{port}")),
            ("server_name git.example.com", "server_name localhost"),
        ] {
            assert_eq!(block.matches(shipped).count(), 1, "{shipped}");
            block = block.replace(shipped, ours);
        }
        let block = block.replace("/etc/nginx", &here);
        // The service says what it was told, and nothing that it was not.
        let said = ["task", "workload", "owner", "privilege", "sandbox", "lease", "actor"]
            .map(|name| format!("{name}=$http_remit_{name};"))
            .concat();
        let behind = format!(
            "server {{ listen 127.0.0.1:{service}; location / {{ return 200 \"{said}auth=$http_authorization$http_dpop;\"; }} }}"
        );
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {here}/{name};\n"))
            .concat();
        let config = format!(
            "daemon off;\npid {here}/pid;\nerror_log {here}/error.log;\nevents {{}}\nhttp {{\naccess_log {here}/access.log;\n{temporary}{block}\n{behind}\n}}\n"
        );
        fs::write(dir.join("nginx.conf"), config).unwrap();
        let server = Command::new("nginx").arg("-c").arg(dir.join("nginx.conf")).stderr(Stdio::null()).spawn();
        let server = server.expect("nginx: tests/run installs it");
        let nginx = Self { dir, port, server };
        wait_for("nginx", || async { nginx.call("/", &[], None).0 != 0 }).await;
        nginx
    }

    /// What a call comes to: the status (0 where there was none), and headers and body of the answer.
    fn call(&self, path: &str, headers: &[&str], identity: Option<&Path>) -> (u16, String) {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-i", "--noproxy", "*", "--max-time", "5", "-w", "\n%{http_code}"]);
        curl.arg("--cacert").arg(self.dir.join("../ca.crt"));
        for header in headers {
            curl.args(["-H", header]);
        }
        if let Some(dir) = identity {
            curl.arg("--cert").arg(dir.join("cert.pem")).arg("--key").arg(dir.join("key.pem"));
        }
        let output = curl.arg(format!("https://localhost:{}{path}", self.port)).output().expect("curl");
        let said = String::from_utf8(output.stdout).unwrap();
        let (answer, status) = said.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), answer.to_owned())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_lets_through_who_is_accepted_until_the_task_is_revoked() {
    let stand = Stand::new(Store::Redis).await;
    let servers = Authority::new("servers");
    fs::write(stand.dir.path().join("ca.crt"), servers.certificate.pem()).unwrap();
    let sidecar = Sidecar::of(&stand, GIT, &["--client-cert-header", "X-Client-Cert"]).await;
    let nginx = Nginx::start(&stand, &servers, &sidecar.url).await;
    let (task, token) = stand.task_with_token().await;
    let (_, other) = stand.task_with_token().await;
    secrets::note_token("a token", &token);
    let (one, two) = (format!("Authorization: Bearer {token}"), format!("Authorization: Bearer {other}"));

    let (status, said) = nginx.call("/notes?page=1", &[&one], None);
    assert_eq!(status, 200, "{said}");
    let workload = "spiffe://example.com/ci/acme/payments";
    for part in [
        format!("task={task};"),
        format!("workload={workload};"),
        format!("owner={OWNER};"),
        "sandbox=sb-7f3;".to_owned(),
    ] {
        assert!(said.contains(&part), "{part}: {said}");
    }
    assert!(said.contains("privilege=read;") && said.contains("auth=;") && said.contains("actor=;"), "{said}");
    // What a client says of itself does not arrive, in whatever spelling.
    let lies = [
        "Remit-Task: task_01jd0000000000000000000000",
        "remit-owner: root@example.com",
        "REMIT-PRIVILEGE: secret",
        "Remit-Actor: me",
        "Remit_Task: task_01jd0000000000000000000000",
        "X-Forwarded-Uri: /other",
        "X-Forwarded-Method: PUT",
        "X-Original-URI: /other",
        "X-Original-Method: PUT",
        "X-Client-Cert: nonsense",
    ];
    let (status, pretended) = nginx.call("/notes?page=1", &[&[&*one][..], &lies].concat(), None);
    let body = |said: &str| said.split("\r\n\r\n").nth(1).unwrap().to_owned();
    assert_eq!((status, body(&pretended)), (200, body(&said)));

    let (status, said) = nginx.call("/notes", &[], None);
    assert!(status == 401 && said.contains("www-authenticate: Bearer\r\n"), "{said}");
    let (status, said) = nginx.call("/notes", &[&one[..one.len() - 2]], None);
    assert!(status == 401 && said.contains("www-authenticate: Bearer error=\"invalid_token\""), "{said}");
    assert_eq!(nginx.call("/notes?access_token=x", &[&one], None).0, 403);
    assert_eq!(nginx.call("/_remit_auth", &[&one], None).0, 404, "it is nobody's to ask");

    stand.revoke(&task).await.expect(reqwest::StatusCode::OK);
    let begun = Instant::now();
    while nginx.call("/notes", &[&one], None).0 == 200 {
        assert!(begun.elapsed() < AT_ONCE, "nginx still lets it through");
    }
    let (status, said) = nginx.call("/notes", &[&one], None);
    assert!(status == 401 && said.contains("www-authenticate: Bearer error=\"invalid_token\""), "{said}");
    assert_eq!(nginx.call("/notes", &[&two], None).0, 200, "and the others it lets through");
    // Nobody to ask: nobody gets through.
    drop(sidecar);
    wait_for("the verifier to be gone", || async { nginx.call("/notes", &[&two], None).0 != 200 }).await;
    assert_eq!(nginx.call("/notes", &[&two], None).0, 500);
}

/// The certificate that nginx has seen the key of is the one that counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_tells_which_certificate_was_shown() {
    let place = crate::mtls::Place::of(Stand::new(Store::Embedded).await).await;
    let stand = &place.stand;
    let servers = Authority::new("in front");
    fs::write(stand.dir.path().join("ca.crt"), servers.certificate.pem()).unwrap();
    let sidecar = Sidecar::of(stand, REGISTRY, &["--client-cert-header", "X-Client-Cert"]).await;
    let nginx = Nginx::start(stand, &servers, &sidecar.url).await;
    let [mine, thief] = ["mine", "thief"].map(|name| {
        let (identity, dir) = (crate::mtls::own(), stand.dir.path().join(name));
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("cert.pem"), identity.certificate.pem()).unwrap();
        fs::write(dir.join("key.pem"), identity.key.serialize_pem()).unwrap();
        (identity, dir)
    });
    let evidence = stand.evidence();
    let task = place.declare(Some(&mine.0), Some(&evidence)).await;
    let token = text(&place.minted(Some(&mine.0), Some(&evidence), &task, REGISTRY).await, "access_token");
    let bearer = format!("Authorization: Bearer {token}");
    let (status, said) = nginx.call("/", &[&bearer], Some(&mine.1));
    assert!(status == 200 && said.contains(&format!("task={task};")), "{said}");
    assert_eq!(nginx.call("/", &[&bearer], Some(&thief.1)).0, 401);
    assert_eq!(nginx.call("/", &[&bearer], None).0, 401);
    let claimed = mine.0.certificate.pem().replace('\n', "%0A").replace(' ', "%20").replace('+', "%2B");
    assert_eq!(
        nginx.call("/", &[&bearer, &format!("X-Client-Cert: {claimed}")], None).0,
        401,
        "a header is no certificate"
    );
}
