//! nginx, as the distribution has it, in front of a service: it takes certificates of tasks, and sees a revoke by the lists of the broker.

use reqwest::StatusCode;
use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    support::{ADMIN, Stand, Store, free_port, pki::Authority, wait_for},
    upstream::ORGANIZATION,
};

/// Stopped with the test.
struct Stopped(Child);

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// nginx with `deploy/nginx/mtls.conf`, and `deploy/nginx/refresh` beside it.
struct Nginx {
    dir: PathBuf,
    port: u16,
    refresh: Option<Stopped>,
    server: Child,
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Asked by a signal it takes its workers along.
        let _ = Command::new("nginx").arg("-c").arg(self.dir.join("nginx.conf")).args(["-s", "stop"]).output();
        let _ = self.server.wait();
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx")
}

impl Nginx {
    /// With these lists of CAs above the broker's.
    async fn start(stand: &Stand, servers: &Authority, more: &str) -> Self {
        let (dir, port) = (stand.dir.path().join("nginx"), free_port());
        fs::create_dir(&dir).unwrap();
        servers.serves(&dir.join("tls.crt"), &dir.join("tls.key"));
        for (path, name) in [("/pki/ca.pem", "ca.pem"), ("/pki/crl.pem", "crl.pem")] {
            let text = stand.client.get(stand.url(path)).send().await.unwrap().text().await.unwrap();
            fs::write(dir.join(name), if name == "crl.pem" { text + more } else { text }).unwrap();
        }
        fs::write(dir.join("more.pem"), more).unwrap();
        let here = dir.display().to_string();
        let shipped = fs::read_to_string(sources().join("mtls.conf")).unwrap();
        let block = shipped
            .replace("/etc/nginx/remit", &here)
            .replace("/etc/nginx", &here)
            .replace("listen 8443", &format!("listen 127.0.0.1:{port}"))
            .replace("server_name git.example.com", "server_name localhost")
            // The service stands in for itself, and says whom it was told.
            .replace("proxy_pass http://127.0.0.1:9000;", "return 200 \"$ssl_client_verify $ssl_client_serial\\n\";");
        assert_eq!(block.matches(&here).count(), 4, "{block}");
        let config = format!(
            "daemon off;\nuser root;\npid {here}/pid;\nerror_log {here}/error.log;\nevents {{}}\nhttp {{\naccess_log off;\n{block}\n}}\n"
        );
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {here}/{name};\n"))
            .concat();
        let user = if is_root() { config } else { config.replace("user root;\n", "") };
        fs::write(dir.join("nginx.conf"), user.replace("access_log off;\n", &format!("access_log off;\n{temporary}")))
            .unwrap();
        let server = Command::new("nginx").arg("-c").arg(dir.join("nginx.conf")).stderr(Stdio::null()).spawn();
        let server = server.expect("nginx: tests/run installs it");
        let mut refresh = Command::new(sources().join("refresh"));
        refresh.arg(&stand.broker.url).arg(&dir).env("EVERY", "1").env("no_proxy", "*");
        if !more.is_empty() {
            refresh.env("MORE", dir.join("more.pem"));
        }
        refresh.env("NGINX", format!("nginx -c {here}/nginx.conf")).stderr(Stdio::null());
        let refresh = Some(Stopped(refresh.spawn().expect("a shell")));
        let nginx = Self { dir, port, refresh, server };
        wait_for("nginx", || async { nginx.call(None).0 != 0 }).await;
        nginx
    }

    /// What it tells the service: verified, and the serial of a certificate that the broker made.
    async fn takes(&self, identity: &Path) {
        let (status, said) = self.answer(Some(identity)).await;
        let log = fs::read_to_string(self.dir.join("error.log")).unwrap();
        assert!(status == 200 && said.starts_with("SUCCESS 01"), "{status} {said}: {log}");
    }

    /// Waits for this status: lists take their time, and a worker that a reload sends home may cut a call or answer by older lists.
    async fn comes_to(&self, status: u16, identity: &Path) {
        wait_for(&format!("{status} for {}", identity.display()), || async { self.call(Some(identity)).0 == status })
            .await;
    }

    /// What a call comes to that was not cut by a reload.
    async fn answer(&self, identity: Option<&Path>) -> (u16, String) {
        for _ in 0..20 {
            let answer = self.call(identity);
            if answer.0 != 0 {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("nginx does not answer")
    }

    /// What a call with the files of `remit mint cert` comes to: the status (0 where there was none) and the answer.
    fn call(&self, identity: Option<&Path>) -> (u16, String) {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "--noproxy", "*", "--max-time", "5", "-w", "\n%{http_code}"])
            .arg("--cacert")
            .arg(self.dir.join("../ca.crt"));
        if let Some(dir) = identity {
            curl.arg("--cert").arg(dir.join("cert.pem")).arg("--key").arg(dir.join("key.pem"));
        }
        let output = curl.arg(format!("https://localhost:{}/", self.port)).output().expect("curl");
        let said = String::from_utf8(output.stdout).unwrap();
        let (answer, status) = said.rsplit_once('\n').unwrap();
        (status.parse().unwrap(), answer.to_owned())
    }
}

fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output().expect("id");
    output.stdout == b"0\n"
}

async fn minted(stand: &Stand, name: &str) -> (String, PathBuf) {
    let (task, _) = stand.task_with_token().await;
    let dir = stand.dir.path().join(name);
    let evidence = stand.dir.path().join("evidence");
    fs::write(&evidence, stand.evidence()).unwrap();
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_remit"))
        .args([
            "--url",
            &stand.broker.url,
            "--evidence",
            &format!("file:{}", evidence.display()),
            "mint",
            "cert",
            &task,
            "--dir",
        ])
        .arg(&dir)
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    (task, dir)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_takes_certificates_of_tasks_until_they_are_revoked() {
    let stand = Stand::new(Store::Redis).await;
    let servers = Authority::new("servers");
    fs::write(stand.dir.path().join("ca.crt"), servers.certificate.pem()).unwrap();
    let (task, one) = minted(&stand, "one").await;
    let (_, other) = minted(&stand, "other").await;
    let mut nginx = Nginx::start(&stand, &servers, "").await;
    nginx.takes(&one).await;
    // Nobody else: no certificate, one of another authority, one whose key is another's.
    let stranger = stand.dir.path().join("stranger");
    fs::create_dir(&stranger).unwrap();
    Authority::new("stranger").serves(&stranger.join("cert.pem"), &stranger.join("key.pem"));
    assert_eq!((nginx.answer(None).await.0, nginx.answer(Some(&stranger)).await.0), (400, 400));
    let mixed = stand.dir.path().join("mixed");
    fs::create_dir(&mixed).unwrap();
    fs::copy(one.join("cert.pem"), mixed.join("cert.pem")).unwrap();
    fs::copy(other.join("key.pem"), mixed.join("key.pem")).unwrap();
    assert_eq!(nginx.call(Some(&mixed)).0, 0);

    stand.revoke(&task).await.expect(StatusCode::OK);
    nginx.comes_to(400, &one).await;
    // And the others it takes.
    nginx.comes_to(200, &other).await;
    nginx.comes_to(400, &one).await;

    // Without a refresher the lists run out, and nobody gets in.
    nginx.refresh = None;
    nginx.comes_to(400, &other).await;
}

/// Below a CA of the organisation it asks for the lists of all that are above; one of them says that an authority is tainted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nginx_takes_what_a_ca_of_the_organisation_vouches_for() {
    let stand = Stand::with(Store::Redis, &ORGANIZATION.config()).await;
    let servers = Authority::new("servers");
    fs::write(stand.dir.path().join("ca.crt"), servers.certificate.pem()).unwrap();
    let (task, one) = minted(&stand, "one").await;
    let (_, other) = minted(&stand, "other").await;
    let nginx = Nginx::start(&stand, &servers, &ORGANIZATION.lists()).await;
    for one in [&one, &other] {
        nginx.takes(one).await;
    }
    stand.revoke(&task).await.expect(StatusCode::OK);
    nginx.comes_to(400, &one).await;
    nginx.comes_to(200, &other).await;
    let keys = crate::rotation::list(&stand).await;
    let authority = keys["keys"].as_array().unwrap().iter().find(|key| key["use"] == "x509_svid").unwrap();
    let taint = format!("/v1/keys/{}/taint", authority["kid"].as_str().unwrap());
    stand.post(&taint, ADMIN, serde_json::json!({})).await.expect(StatusCode::OK);
    nginx.comes_to(400, &other).await;
    let (_, next) = minted(&stand, "next").await;
    nginx.comes_to(200, &next).await;
}
