//! Who checks tokens without asking the broker for each of them: with its keys alone, with the binding besides, or by asking the sidecar.

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use remit::{
    clock::{Clock as _, SystemClock},
    id::LeaseId,
    jose::SigningKey,
    verify::{KeySet, Presented, UntilExpiry, Verifier},
};
use serde_json::{Value, json};
use std::{
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    process::{Child, Command},
    task::JoinSet,
};

use super::{ask, distribution, ms, revoke, task};
use crate::bound;
use crate::stand::{Result, SERVICE, Stand, free_port, is_trial};

/// How long the tokens live that are good until they expire, in seconds.
const TTL: u32 = 20;

/// Prints how long each of these kinds accepts what was revoked.
pub(crate) async fn print(stand: &Stand) -> Result<()> {
    let rounds = if is_trial() { 2 } else { 200 };
    println!("\nwithout asking the broker for each token, revokes: {rounds}");
    println!("    {:<44}{:>10}{:>10}{:>10}", "", "p50 ms", "p99 ms", "max ms");
    distribution("last acceptance, remit verifier", sidecar(stand, rounds).await?);
    let Known { holder, thief } = by_keys(stand, rounds).await?;
    distribution(&format!("last acceptance, keys alone, of {TTL} s"), holder);
    println!("    keys and binding, by whoever has the token alone: {thief} of {} accepted", 4 * rounds);
    Ok(())
}

/// The sidecar on its own machine, asked without a pause.
async fn sidecar(stand: &Stand, rounds: usize) -> Result<Vec<f64>> {
    let at = format!("127.0.0.1:{}", free_port()?);
    let mut command = Command::new(env!("CARGO_BIN_EXE_remit"));
    command.args(["verifier", "--broker", &stand.url(""), "--audience", SERVICE, "--listen", &at]);
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let _running: Child = silent.spawn()?;
    let ready =
        async || Result::Ok(stand.client.get(format!("http://{at}/readyz")).send().await?.status().is_success());
    while !ready().await.unwrap_or_default() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut accepted = Vec::new();
    for _ in 0..rounds {
        let (task, token) = task(stand, 1).await?;
        let mut asking = JoinSet::new();
        asking.spawn(ask(stand.client.clone(), format!("http://{at}/introspect"), Arc::new(token)));
        tokio::time::sleep(Duration::from_millis(3)).await;
        let begun = Instant::now();
        revoke(stand, &task).await?;
        let last = asking.join_next().await.ok_or("nobody asks")???;
        accepted.push(last.saturating_duration_since(begun).as_secs_f64() * 1000.0);
    }
    Ok(accepted)
}

/// What is accepted by whoever knows nothing but keys.
struct Known {
    /// From whoever holds the key that the token is bound to: how long after the revoke, in milliseconds.
    holder: Vec<f64>,
    /// From whoever has the token and another key: how often.
    thief: usize,
}

struct Bound {
    token: String,
    revoked: Instant,
    last: Option<Instant>,
}

async fn by_keys(stand: &Stand, rounds: usize) -> Result<Known> {
    let jwks = stand.client.get(stand.url("/jwks")).send().await?.error_for_status()?.bytes().await?;
    let verifier =
        Verifier::offline_until_expiry(&stand.url(""), SERVICE.parse()?).with_access_keys(KeySet::from_jwks(&jwks)?);
    let [mine, other] = [(); 2].map(|()| SigningKey::generate().and_then(|key| SigningKey::from_pkcs8(&key)));
    let (mine, other) = (mine?, other?);
    let (mut bound, mut thief) = (Vec::new(), 0);
    for _ in 0..rounds {
        let task = stand.declare().await?;
        let minted: Value =
            stand.client.execute(bound::mint(stand, &task, &mine, TTL)?).await?.error_for_status()?.json().await?;
        let token = minted["credentials"][0]["access_token"].as_str().ok_or("no token")?.to_owned();
        thief += stolen(&verifier, &token, &other)?;
        let revoked = Instant::now();
        revoke(stand, &task).await?;
        thief += stolen(&verifier, &token, &other)?;
        bound.push(Bound { token, revoked, last: None });
    }
    let begun = Instant::now();
    let known = tokio::task::spawn_blocking(move || {
        let mut open: Vec<_> = (0..bound.len()).collect();
        while !open.is_empty() && ms(begun) < f64::from(TTL) * 2000.0 {
            let mut still = Vec::new();
            for at in open {
                if shown(&verifier, &bound[at].token, &mine)? {
                    bound[at].last = Some(Instant::now());
                    still.push(at);
                }
            }
            open = still;
        }
        if !open.is_empty() {
            return Err("a token outlives its `exp`".into());
        }
        let held = |one: &Bound| Some((one.last? - one.revoked).as_secs_f64() * 1000.0);
        let holder = bound.iter().map(held).collect::<Option<Vec<_>>>().ok_or("one was never accepted")?;
        Result::Ok(Known { holder, thief })
    });
    known.await?
}

/// How often whoever has no key to it gets through with a token: as it is, and with a proof by another key.
fn stolen(verifier: &Verifier<UntilExpiry>, token: &str, other: &SigningKey) -> Result<usize> {
    let bare = verifier.verify_presented(Presented::Bearer(token), SystemClock.now()).is_ok();
    Ok(usize::from(bare) + usize::from(shown(verifier, token, other)?))
}

/// Whether it is accepted with a proof by this key.
fn shown(verifier: &Verifier<UntilExpiry>, token: &str, key: &SigningKey) -> Result<bool> {
    let now = SystemClock.now();
    let digest = ring::digest::digest(&ring::digest::SHA256, token.as_bytes());
    let claims = json!({
        "jti": LeaseId::random().map_err(|_| "no random bytes")?, "htm": "GET", "htu": SERVICE, "iat": now.timestamp(),
        "ath": BASE64_URL_SAFE_NO_PAD.encode(digest),
    });
    let proof = key.prove(&claims)?;
    let presented = Presented::Dpop { token, proof: &proof, method: "GET", uri: SERVICE };
    Ok(verifier.verify_presented(presented, now).is_ok())
}
