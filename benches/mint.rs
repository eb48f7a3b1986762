//! What a mint costs: its signature, and the whole of it over HTTP, on both stores, on 1 and on 64 connections; and what it costs more
//! when its credential is bound to a key (the client's own signature of the proof included), or is signed with RSA; what a certificate
//! costs; and what it costs that the audit log is on disk.
//!
//! `cargo bench --bench mint`. Needs `redis-server` and `openssl`. The ratios are the point; compare other figures within one run only. The limit that
//! says most is the last one: a server that does for every request what a mint cannot do without (a round trip to the store that reads
//! and writes, one signature, one synced line in a log) and nothing else. Client, broker and limits share the cores.

mod bound;
mod limit;
mod stand;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use remit::{claims::Claims, jose::SigningKey};
use ring::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair,
        KeyPair as _, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
    },
};
use rustls::pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};
use tokio::sync::oneshot;

use limit::{Bare, Work, compare, nothing, redirected, send, work};
use stand::{Result, SERVICE, Stand, Store, is_trial};

const CONNECTIONS: [usize; 2] = [1, 64];
/// Octets of a lease, of a task, and of the line of a mint in the audit log, about.
const LEASE: usize = 300;
const TASK: usize = 720;
const LINE: usize = 580;
/// Octets of a request for a certificate and of a certificate, about, without their signatures.
const CSR: usize = 100;
const CERTIFICATE: usize = 400;
/// A task has at most 64 certificates at a time.
const OF_A_TASK: usize = 60;

#[tokio::main]
async fn main() -> Result<()> {
    let service = format!(
        "[[service]]\nname = \"s\"\naudiences = [\"{SERVICE}\"]\nbinding = \"offered\"\nrevocation = \"none\"\n"
    );
    for store in [Store::Redis, Store::Embedded] {
        let stand = Arc::new(Stand::start(store, &service).await?);
        let token = first_token(&stand).await?;
        if let Store::Redis = store {
            signing(&token).await?;
        }
        minting(&stand, store, &token).await?;
        binding(&stand, store).await?;
        Box::pin(with_rsa(&stand, store, &service, &token)).await?;
        certifying(&stand, store).await?;
        Box::pin(recording(&stand, store, &service)).await?;
        Arc::into_inner(stand).ok_or("the stand is in use")?.stop().await?;
    }
    Ok(())
}

async fn first_token(stand: &Stand) -> Result<String> {
    let minted: Value = stand.mint(&stand.declare().await?, 1).send().await?.error_for_status()?.json().await?;
    Ok(minted["credentials"][0]["access_token"].as_str().ok_or("no token")?.to_owned())
}

/// A token from its claims, beside a bare signature over as many octets.
async fn signing(token: &str) -> Result<()> {
    let payload = token.split('.').nth(1).ok_or("no payload")?;
    let claims: Claims = serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload)?)?;
    let key = SigningKey::from_pkcs8(&SigningKey::generate()?)?;
    let shared = Arc::new((key, claims));
    let token_work = work(move |_| {
        let shared = shared.clone();
        async move {
            let (key, claims) = &*shared;
            std::hint::black_box(key.sign("at+jwt", claims)?);
            Ok(())
        }
    });
    compare("sign a token, one thread", 1, &token_work, &[("a signature by ring", signature(token)?)]).await
}

async fn minting(stand: &Stand, store: Store, token: &str) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (stored, name) = match &stand.redis {
        Some(redis) => (script(redis.connection.clone()).await?, "a Redis script"),
        None => (synced(&dir.path().join("store"), LEASE)?, "a synced write"),
    };
    let (logged, signed) = (synced(&dir.path().join("log"), LINE)?, signature(token)?);
    let parts = {
        let stored = stored.clone();
        work(move |connection| {
            let (stored, logged, signed) = (stored(connection), logged(connection), signed(connection));
            async move {
                stored.await?;
                tokio::try_join!(logged, signed)?;
                Ok(())
            }
        })
    };
    for connections in CONNECTIONS {
        let mut requests = Vec::new();
        for _ in 0..connections {
            requests.push(stand.mint(&stand.declare().await?, 1).build()?);
        }
        let first = requests.first().and_then(reqwest::Request::try_clone).ok_or("no request")?;
        let answer = stand.client.execute(first).await?.error_for_status()?.bytes().await?.len();
        let (http, all) = (Bare::serve(answer, nothing()).await?, Bare::serve(answer, parts.clone()).await?);
        let limits = [
            ("HTTP alone", send(&stand.client, redirected(&requests, &http.url)?)),
            (name, stored.clone()),
            ("HTTP, store, signature, synced line", send(&stand.client, redirected(&requests, &all.url)?)),
        ];
        let what = format!("mint, {store}, {connections} at a time");
        compare(&what, connections, &send(&stand.client, requests), &limits).await?;
    }
    Ok(())
}

/// With its records on disk before the answer, beside another broker whose log is in memory (`/dev/shm`).
async fn recording(stand: &Stand, store: Store, service: &str) -> Result<()> {
    let memory = tempfile::tempdir_in("/dev/shm")?;
    let forgetful = Stand::start_in(store, None, service, &memory.path().join("audit"), Path::new("keys")).await?;
    let connections = CONNECTIONS[1];
    let (mut on_disk, mut in_memory) = (Vec::new(), Vec::new());
    for _ in 0..connections {
        on_disk.push(stand.mint(&stand.declare().await?, 1).build()?);
        in_memory.push(forgetful.mint(&forgetful.declare().await?, 1).build()?);
    }
    let what = format!("mint with a durable audit, {store}, {connections} at a time");
    let limit = [("audit to memory", send(&forgetful.client, in_memory))];
    compare(&what, connections, &send(&stand.client, on_disk), &limit).await?;
    forgetful.stop().await
}

/// A credential that is bound to a key, beside one that is not.
async fn binding(stand: &Arc<Stand>, store: Store) -> Result<()> {
    let key = Arc::new(SigningKey::from_pkcs8(&SigningKey::generate()?)?);
    for connections in CONNECTIONS {
        let (mut requests, mut tasks) = (Vec::new(), Vec::new());
        for _ in 0..connections {
            tasks.push(stand.declare().await?);
            requests.push(stand.mint(&stand.declare().await?, 1).build()?);
        }
        let shared = Arc::new((stand.clone(), tasks, key.clone()));
        let bound = work(move |connection| {
            let shared = shared.clone();
            async move {
                let (stand, tasks, key) = &*shared;
                let request = bound::mint(stand, tasks.get(connection).ok_or("no task")?, key, 300)?;
                stand.client.execute(request).await?.error_for_status()?.bytes().await?;
                Ok(())
            }
        });
        let what = format!("mint, bound to a key, {store}, {connections} at a time");
        compare(&what, connections, &bound, &[("a mint that is not", send(&stand.client, requests))]).await?;
    }
    Ok(())
}

/// A token for a service that takes RS256 alone, beside the bare signature, and beside a token with ES256.
async fn with_rsa(stand: &Stand, store: Store, service: &str, token: &str) -> Result<()> {
    let keys = tempfile::tempdir()?;
    let file = keys.path().join("access-token-rs256.pem");
    let mut openssl = Command::new("openssl");
    openssl.args(["genpkey", "-quiet", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out"]).arg(&file);
    if !openssl.status()?.success() {
        return Err("openssl made no key".into());
    }
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
    let signed = rsa_signature(&fs::read(&file)?, token)?;
    let service = format!("{service}algorithm = \"RS256\"\n");
    let rsa = Stand::start_in(store, None, &service, Path::new("audit"), keys.path()).await?;
    for connections in CONNECTIONS {
        let (mut requests, mut others) = (Vec::new(), Vec::new());
        for _ in 0..connections {
            requests.push(rsa.mint(&rsa.declare().await?, 1).build()?);
            others.push(stand.mint(&stand.declare().await?, 1).build()?);
        }
        let limits =
            [("a signature by ring with RSA", signed.clone()), ("a mint with ES256", send(&stand.client, others))];
        let what = format!("mint with RS256, {store}, {connections} at a time");
        compare(&what, connections, &send(&rsa.client, requests), &limits).await?;
    }
    rsa.stop().await
}

/// A signature with an RSA key (PEM) over as many octets as that token's.
fn rsa_signature(pem: &[u8], token: &str) -> Result<Work> {
    let document = PrivatePkcs8KeyDer::from_pem_slice(pem)?;
    let pair = RsaKeyPair::from_pkcs8(document.secret_pkcs8_der()).map_err(|_| "no key")?;
    let (input, _) = token.rsplit_once('.').ok_or("no signature")?;
    let shared = Arc::new((pair, SystemRandom::new(), input.to_owned()));
    Ok(work(move |_| {
        let shared = shared.clone();
        async move {
            let (pair, random, input) = &*shared;
            let mut signature = vec![0; pair.public().modulus_len()];
            let signed = pair.sign(&RSA_PKCS1_SHA256, random, input.as_bytes(), &mut signature);
            signed.map_err(|_| "not signed")?;
            std::hint::black_box(signature);
            Ok(())
        }
    }))
}

/// A signature over as many octets as that token's.
fn signature(token: &str) -> Result<Work> {
    let document = SigningKey::generate()?;
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &document, &random);
    let pair = pair.map_err(|_| "no key")?;
    let (input, _) = token.rsplit_once('.').ok_or("no signature")?;
    let shared = Arc::new((pair, random, input.to_owned()));
    Ok(work(move |_| {
        let shared = shared.clone();
        async move {
            let (pair, random, input) = &*shared;
            std::hint::black_box(pair.sign(random, input.as_bytes()).map_err(|_| "not signed")?);
            Ok(())
        }
    }))
}

/// A script that looks whether a task lives, and writes a lease.
async fn script(mut connection: redis::aio::MultiplexedConnection) -> Result<Work> {
    const SCRIPT: &str = "local held = redis.call('MGET', KEYS[1], KEYS[2]) \
        redis.call('SET', KEYS[3], ARGV[1], 'EX', 60) return held[2]";
    redis::cmd("SET").arg("bench:task").arg("t".repeat(TASK)).exec_async(&mut connection).await?;
    let shared = Arc::new((redis::Script::new(SCRIPT), AtomicU64::new(0), "l".repeat(LEASE)));
    Ok(work(move |_| {
        let (shared, mut connection) = (shared.clone(), connection.clone());
        async move {
            let (script, count, lease) = &*shared;
            let key = format!("bench:lease:{}", count.fetch_add(1, Ordering::Relaxed));
            let mut invocation = script.key("bench:end");
            invocation.key("bench:task").key(key).arg(lease);
            let held: String = invocation.invoke_async(&mut connection).await?;
            if held.len() == TASK { Ok(()) } else { Err("not what was written".into()) }
        }
    }))
}

/// Appends so many octets to a file and syncs it. Whoever comes while a sync is under way shares the next one.
fn synced(path: &Path, octets: usize) -> Result<Work> {
    let mut file = File::create(path)?;
    let line = vec![b'x'; octets];
    let (queue, calls) = mpsc::channel::<oneshot::Sender<()>>();
    // Ends with the last sender, or with an error that its callers learn of.
    thread::Builder::new().name("log".to_owned()).spawn(move || -> std::io::Result<()> {
        while let Ok(first) = calls.recv() {
            let waiting: Vec<_> = std::iter::once(first).chain(calls.try_iter()).collect();
            file.write_all(&line.repeat(waiting.len()))?;
            file.sync_data()?;
            for done in waiting {
                let _ = done.send(());
            }
        }
        Ok(())
    })?;
    Ok(work(move |_| {
        let queue = queue.clone();
        async move {
            let (done, answer) = oneshot::channel();
            queue.send(done)?;
            Ok(answer.await?)
        }
    }))
}

/// A certificate, beside a token, and beside the work on P-256 that it cannot be made without.
async fn certifying(stand: &Arc<Stand>, store: Store) -> Result<()> {
    for (connections, enough) in CONNECTIONS.into_iter().zip([300, 900]) {
        let (mut tasks, mut tokens) = (Vec::new(), Vec::new());
        for _ in 0..if is_trial() { connections } else { enough } {
            tasks.push(stand.declare().await?);
        }
        for _ in 0..connections {
            tokens.push(stand.mint(&stand.declare().await?, 1).build()?);
        }
        let limits = [("a check and a signature by ring", curve()?), ("a token", send(&stand.client, tokens))];
        let what = format!("certificate, {store}, {connections} at a time");
        compare(&what, connections, &certificates(stand, tasks)?, &limits).await?;
    }
    Ok(())
}

/// One certificate after the other, of one task after the other, each with a key of its own.
fn certificates(stand: &Arc<Stand>, tasks: Vec<String>) -> Result<Work> {
    let csr = || -> Result<String> {
        Ok(rcgen::CertificateParams::default().serialize_request(&rcgen::KeyPair::generate()?)?.pem()?)
    };
    let tasks = tasks.into_iter().map(|task| Ok((task, csr()?))).collect::<Result<Vec<_>>>()?;
    let shared = Arc::new((stand.clone(), tasks, AtomicUsize::new(0)));
    Ok(work(move |_| {
        let shared = shared.clone();
        async move {
            let (stand, tasks, count) = &*shared;
            let (task, csr) = tasks.get(count.fetch_add(1, Ordering::Relaxed) / OF_A_TASK).ok_or("no task is left")?;
            let request = stand.client.post(stand.url(&format!("/v1/tasks/{task}/certificate")));
            let request = request.bearer_auth(&stand.evidence[0]).json(&json!({"csr": csr, "ttl": 60}));
            request.send().await?.error_for_status()?.bytes().await?;
            Ok(())
        }
    }))
}

/// A signature checked, and another one made.
fn curve() -> Result<Work> {
    let random = SystemRandom::new();
    let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random).map_err(|_| "no key")?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document.as_ref(), &random);
    let pair = pair.map_err(|_| "no key")?;
    let signature = pair.sign(&random, &[0; CSR]).map_err(|_| "not signed")?;
    let shared = Arc::new((pair, random, signature));
    Ok(work(move |_| {
        let shared = shared.clone();
        async move {
            let (pair, random, signature) = &*shared;
            let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, pair.public_key().as_ref());
            key.verify(&[0; CSR], signature.as_ref()).map_err(|_| "not its signature")?;
            std::hint::black_box(pair.sign(random, &[1; CERTIFICATE]).map_err(|_| "not signed")?);
            Ok(())
        }
    }))
}
