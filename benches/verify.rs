//! What a check of a token costs a service: with the library, in memory, of one that was not seen before and of one that comes again; and
//! by introspection, over HTTP, on both stores, on 1 and on 64 connections.
//!
//! `cargo bench --bench verify`. Needs `redis-server`. The ratios are the point; compare other figures within one run only. The limit that
//! says most is the last one: a server that does for every request what introspection cannot do without (one look into the store, one
//! signature to check) and nothing else. Client, broker and limits share the cores.

mod limit;
mod stand;

use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use remit::{
    clock::{Clock as _, Moment, SystemClock},
    id::{Location, sha256_hex},
    jose::SigningKey,
    verify::{Asked, Feed, KeySet, Keys, Verifier},
};
use ring::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use serde_json::{Value, json};
use std::sync::Arc;

use limit::{Bare, Work, compare, nothing, redirected, send, work};
use stand::{Result, SERVICE, Stand, Store};

/// Entries in the set of a verifier that follows the feed.
const HELD: [u32; 2] = [0, 100_000];
const CONNECTIONS: [usize; 2] = [1, 64];
const SERVICE_TOKEN: &str = "bench";
/// Octets of a lease, of a task, about.
const LEASE: usize = 300;
const TASK: usize = 720;

#[tokio::main]
async fn main() -> Result<()> {
    let service = format!(
        "[[service]]\nname = \"bench\"\naudiences = [\"{SERVICE}\"]\nbinding = \"none\"\nrevocation = \"introspection\"\n\
         token_sha256 = [\"{}\"]\n",
        sha256_hex(SERVICE_TOKEN.as_bytes())
    );
    for store in [Store::Redis, Store::Embedded] {
        let stand = Stand::start(store, &service).await?;
        let minted: Value = stand.mint(&stand.declare().await?, 1).send().await?.error_for_status()?.json().await?;
        let token = minted["credentials"][0]["access_token"].as_str().ok_or("no token")?;
        let jwks = stand.client.get(stand.url("/jwks")).send().await?.error_for_status()?.bytes().await?;
        let checked = signature_check(&jwks, token)?;
        if let Store::Redis = store {
            for again in [false, true] {
                let seen = if again { "again" } else { "first" };
                let verify = verify(&stand, &jwks, token, again)?;
                compare(&format!("remit::verify, {seen}"), 1, &verify, &[("a check by ring", checked.clone())]).await?;
                for held in HELD {
                    let following = following(&stand, &jwks, token, held, again)?;
                    let what = format!("remit::verify, {seen}, following, {held} entries");
                    compare(&what, 1, &following, &[("a check by ring", checked.clone())]).await?;
                }
            }
        }
        introspection(&stand, store, token, checked).await?;
        stand.stop().await?;
    }
    Ok(())
}

/// All that a service checks that does not ask: form, signature, issuer, audience, times. A verifier that is new has seen no token.
fn verify(stand: &Stand, jwks: &[u8], token: &str, again: bool) -> Result<Work> {
    let (issuer, audience, keys) = (stand.url(""), SERVICE.parse::<Location>()?, KeySet::from_jwks(jwks)?);
    let verifier = move || Verifier::offline_until_expiry(&issuer, audience.clone()).with_access_keys(keys.clone());
    let shared = Arc::new((verifier(), verifier, token.to_owned()));
    Ok(work(move |_| {
        let shared = shared.clone();
        async move {
            let (known, new, token) = &*shared;
            let now = SystemClock.now();
            std::hint::black_box(if again { known.verify(token, now) } else { new().verify(token, now) }?);
            Ok(())
        }
    }))
}

/// The same with the revocation feed, in whose set as much is held.
fn following(stand: &Stand, jwks: &[u8], token: &str, held: u32, again: bool) -> Result<Work> {
    let key = SigningKey::from_pkcs8(&SigningKey::generate()?)?;
    let mut jwk = serde_json::to_value(key.public())?;
    (jwk["use"], jwk["remit_purpose"]) = ("sig".into(), "revocations".into());
    let feed = Arc::new(Feed::new(&stand.url("")));
    feed.believe(Keys::read(jwks, b"{\"keys\":[]}", json!({ "keys": [jwk] }).to_string().as_bytes())?);
    let (now, generation) = (Moment::now(), claims(token)?["urn:remit:task"]["generation"].clone());
    let (at, asked) = (now.wall.timestamp(), Asked::new(now)?);
    let entries: Vec<Value> =
        (1..=held).map(|n| json!({"lease": format!("{n:032x}"), "at": at, "until": at + 600})).collect();
    // Good for as long as a state may be; it is measured for less.
    let state = json!({"iss": stand.url(""), "broker": "bench", "iat": at, "exp": at + 60, "generation": generation,
        "sequence": 1, "nonce": asked.nonce(), "entries": entries});
    feed.answered(&key.sign("remit-revocations+jwt", &state)?, &asked, &Moment::now())?;
    let audience: Location = SERVICE.parse()?;
    let verifier = move || Verifier::following(feed.clone(), audience.clone());
    let shared = Arc::new((verifier(), verifier, token.to_owned()));
    Ok(work(move |_| {
        let shared = shared.clone();
        async move {
            let (known, new, token) = &*shared;
            let now = Moment::now();
            std::hint::black_box(if again { known.verify(token, &now) } else { new().verify(token, &now) }?);
            Ok(())
        }
    }))
}

fn claims(token: &str) -> Result<Value> {
    let payload = token.split('.').nth(1).ok_or("no claims")?;
    Ok(serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(payload)?)?)
}

/// The signature of the same token.
fn signature_check(jwks: &[u8], token: &str) -> Result<Work> {
    let (input, signature) = token.rsplit_once('.').ok_or("no signature")?;
    let jwks: Value = serde_json::from_slice(jwks)?;
    let header: Value =
        serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(token.split('.').next().ok_or("no header")?)?)?;
    let keys = jwks["keys"].as_array().ok_or("no keys")?;
    let jwk = keys.iter().find(|jwk| jwk["kid"] == header["kid"]).ok_or("no key")?;
    let mut point = vec![4];
    for coordinate in ["x", "y"] {
        point.extend(BASE64_URL_SAFE_NO_PAD.decode(jwk[coordinate].as_str().ok_or("no coordinate")?)?);
    }
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    let shared = Arc::new((key, input.to_owned(), BASE64_URL_SAFE_NO_PAD.decode(signature)?));
    Ok(work(move |_| {
        let shared = shared.clone();
        async move {
            let (key, input, signature) = &*shared;
            Ok(key.verify(input.as_bytes(), signature).map_err(|_| "not verified")?)
        }
    }))
}

async fn introspection(stand: &Stand, store: Store, token: &str, checked: Work) -> Result<()> {
    let url = stand.url("/oauth2/introspect");
    let request = stand.client.post(url).bearer_auth(SERVICE_TOKEN).form(&[("token", token)]).build()?;
    let first = request.try_clone().ok_or("no request")?;
    let answer = stand.client.execute(first).await?.error_for_status()?.bytes().await?;
    if serde_json::from_slice::<Value>(&answer)?["active"] != true {
        return Err("the token is not active".into());
    }
    let requests = vec![request];
    let look = match &stand.redis {
        Some(redis) => look(redis.connection.clone()).await?,
        // What is in memory is read there.
        None => nothing(),
    };
    let parts = {
        let look = look.clone();
        work(move |connection| {
            let (look, checked) = (look(connection), checked(connection));
            async move {
                checked.await?;
                look.await
            }
        })
    };
    let (http, all) = (Bare::serve(answer.len(), nothing()).await?, Bare::serve(answer.len(), parts).await?);
    for connections in CONNECTIONS {
        let mut limits = vec![("HTTP alone", send(&stand.client, redirected(&requests, &http.url)?))];
        if let Store::Redis = store {
            limits.push(("MGET", look.clone()));
        }
        limits.push(("HTTP, store, check", send(&stand.client, redirected(&requests, &all.url)?)));
        let asked = requests.iter().filter_map(reqwest::Request::try_clone).collect();
        let what = format!("introspect, {store}, {connections} at a time");
        compare(&what, connections, &send(&stand.client, asked), &limits).await?;
    }
    Ok(())
}

/// Reads a lease, a task, and that nothing has ended it.
async fn look(mut connection: redis::aio::MultiplexedConnection) -> Result<Work> {
    for (key, octets) in [("bench:lease", LEASE), ("bench:task", TASK)] {
        redis::cmd("SET").arg(key).arg("x".repeat(octets)).exec_async(&mut connection).await?;
    }
    Ok(work(move |_| {
        let mut connection = connection.clone();
        async move {
            let mut get = redis::cmd("MGET");
            get.arg("bench:lease").arg("bench:task").arg("bench:renewal").arg("bench:end");
            let held: Vec<Option<String>> = get.query_async(&mut connection).await?;
            if held.len() == 4 { Ok(()) } else { Err("not what was written".into()) }
        }
    }))
}
