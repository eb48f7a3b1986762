//! What a revoke costs, and how soon it has arrived: at who asks, at who follows the feed, and at who reads lists.
//!
//! `cargo bench --bench revoke`, or a part of it: `-- cost`, `-- arrival`, `-- lists`, `-- alone`. Needs `redis-server`. Compare figures within one run
//! only. Nothing delegates over HTTP yet, so the tasks of a tree, down to the eighth level, are written to Redis by the bench; their
//! credentials are minted over HTTP.
//!
//! **What it costs** for 1, 1,000 and 100,000 credentials, over HTTP, on both stores, and on Redis for a tree of 1,000 tasks with one
//! credential each: medians. Beside every task of many credentials, and every tree, a task of one is revoked, on the same store at the same moment: the ratio of the two, of which the median is shown, is free of what a larger
//! file or a busier disk costs everybody. A bare request on the same connection is the limit. Redis itself counts its commands.
//!
//! **When it has arrived**, counted from when it was sent, as distributions. *The last acceptance* is the last moment at which a check was
//! answered with yes: by introspection, asked without a pause; by `remit::verify` on the feed, of ten verifiers that check all the time.
//! *All have heard* is the moment at which the last of all subscribers has read the state that says it. The limit is a server that does
//! nothing but tell as many octets to as many sockets, in turns with the revokes. Client, broker, store and subscribers share the cores.

mod alone;
mod bound;
mod stand;
mod subscribers;
mod trees;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use remit::{
    clock::{Clock as _, Moment, SystemClock},
    id::sha256_hex,
    verify::{Denial, Feed, Following, KeySet, Rejected, StatusList, Verified, Verifier},
};
use serde_json::{Value, json};
use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;
use x509_parser::{parse_x509_crl, pem::Pem};

use stand::{Result, SERVICE, Stand, Store, is_trial};
use subscribers::{Broadcast, Subscribers, caught_up};

const RESPONDER: &str = "responder";
const ASKS: &str = "service";
/// What is revoked, and how often. The first is all that a trial does, and a small tree.
const ROUNDS: [(Size, usize); 4] = [
    (Size { tasks: 1, credentials: 1 }, 20),
    (Size { tasks: 1, credentials: 1_000 }, 20),
    (Size { tasks: 1, credentials: 100_000 }, 6),
    (Size { tasks: 1_000, credentials: 1_000 }, 20),
];
const SMALL_TREE: Size = Size { tasks: 20, credentials: 20 };
/// Credentials in one call, and calls at a time.
const BATCH: usize = 32;
const CALLS: usize = 16;
/// How many subscribers check tokens, where there are as many.
const VERIFYING: usize = 10;
/// How long a verifier waits before it checks again.
const PAUSE: Duration = Duration::from_micros(50);
/// How often a reader fetches a list: a status list's `ttl`.
const REFETCH: Duration = Duration::from_secs(4);

#[tokio::main]
async fn main() -> Result<()> {
    let (operator, service) = (sha256_hex(RESPONDER.as_bytes()), sha256_hex(ASKS.as_bytes()));
    let parties = format!(
        "[keys]\njwks_max_age = 1\n\
         [[operator]]\nname = \"bench\"\nroles = [\"responder\"]\ntoken_sha256 = \"{operator}\"\n\
         [[service]]\nname = \"bench\"\naudiences = [\"{SERVICE}\"]\nbinding = \"none\"\nrevocation = \"feed\"\ntoken_sha256 = [\"{service}\"]\n"
    );
    if is_wanted("cost") {
        costs(&parties).await?;
    }
    if is_wanted("arrival") {
        for Arrival { store, brokers, size, subscribers, rounds } in arrivals() {
            let stand = Stand::start(store, &parties).await?;
            let second = if brokers == 2 {
                let places = [Path::new("audit"), Path::new("keys")];
                Some(Stand::start_in(store, Some(&stand), &parties, places[0], places[1]).await?)
            } else {
                None
            };
            let Size { tasks, credentials } = size;
            println!(
                "\n{store}, brokers: {brokers}, subscribers: {subscribers}, tasks: {tasks}, credentials: {credentials}, revokes: {rounds}"
            );
            arrival(&stand, second.as_ref(), size, subscribers, rounds).await?;
            if let Some(second) = second {
                second.stop().await?;
            }
            stand.stop().await?;
        }
    }
    if is_wanted("lists") {
        let stand = Stand::start(Store::Redis, &parties).await?;
        lists(&stand).await?;
        stand.stop().await?;
    }
    if is_wanted("alone") {
        let parties = parties.replace("binding = \"none\"", "binding = \"offered\"");
        let stand = Stand::start(Store::Redis, &parties).await?;
        alone::print(&stand).await?;
        stand.stop().await?;
    }
    Ok(())
}

/// Whether this part was asked for, or none was.
fn is_wanted(part: &str) -> bool {
    let parts: Vec<_> =
        std::env::args().filter(|part| ["cost", "arrival", "lists", "alone"].contains(&part.as_str())).collect();
    parts.is_empty() || parts.iter().any(|wanted| wanted == part)
}

async fn costs(parties: &str) -> Result<()> {
    println!(
        "{:<10}{:>8}{:>12}{:>12}{:>15}{:>10}{:>15}{:>16}",
        "store", "tasks", "credentials", "revoke", "of one beside", "ratio", "bare request", "store commands"
    );
    for store in [Store::Embedded, Store::Redis] {
        let stand = Stand::start(store, parties).await?;
        cost(store, &stand).await?;
        stand.stop().await?;
    }
    Ok(())
}

/// How much a revoke ends: so many tasks, of which the first is the root, and so many credentials of all of them.
#[derive(Clone, Copy)]
struct Size {
    tasks: usize,
    credentials: usize,
}

struct Arrival {
    store: Store,
    brokers: usize,
    size: Size,
    subscribers: usize,
    /// How many revokes.
    rounds: usize,
}

fn arrivals() -> Vec<Arrival> {
    let of = |store, brokers, (tasks, credentials), subscribers, rounds| {
        let size = Size { tasks, credentials };
        Arrival { store, brokers, size, subscribers, rounds }
    };
    if is_trial() {
        let tree = of(Store::Redis, 1, (20, 1), 3, 2);
        return vec![of(Store::Embedded, 1, (1, 1), 1, 2), of(Store::Redis, 2, (1, 33), 30, 2), tree];
    }
    let mut all = Vec::new();
    for (store, brokers) in [(Store::Embedded, 1), (Store::Redis, 1), (Store::Redis, 2)] {
        all.extend([1, 100, 1_000].map(|subscribers| of(store, brokers, (1, 1), subscribers, 200)));
    }
    let (many, most) = (of(Store::Redis, 1, (1, 1_000), 1_000, 200), of(Store::Redis, 1, (1, 100_000), 1_000, 10));
    all.extend([many, most, of(Store::Redis, 1, (1_000, 1), 1_000, 200)]);
    all
}

async fn cost(store: Store, stand: &Stand) -> Result<()> {
    // The first revoke loads the script and opens the connection.
    revoke(stand, &task(stand, 1).await?.0).await?;
    let trial = [ROUNDS[0], (SMALL_TREE, 1)];
    for (size, rounds) in if is_trial() { &trial[..] } else { &ROUNDS[..] } {
        if size.tasks > 1 && stand.redis.is_none() {
            // A file is held open by the broker alone.
            continue;
        }
        let (mut times, mut controls, mut commands) = (Vec::new(), Vec::new(), None::<u64>);
        for round in 0..*rounds {
            let (one, many) = (task(stand, 1).await?.0, sized(stand, *size).await?.0);
            // Whoever comes first pays for what the mints left to do, so they take turns.
            if round % 2 == 0 {
                controls.push(revoke(stand, &one).await?);
            }
            let before = count(stand).await?;
            times.push(revoke(stand, &many).await?);
            // The broker looks at its store now and then; the round with the fewest commands is without such a look.
            let spent = count(stand).await?.zip(before).map(|(after, before)| after - before);
            commands = commands.into_iter().chain(spent).min();
            if round % 2 == 1 {
                controls.push(revoke(stand, &one).await?);
            }
        }
        let floor = round_trip(stand).await?;
        let ratio = median(times.iter().zip(&controls).map(|(time, control)| time / control).collect());
        let (time, control) = (median(times), median(controls));
        let commands = commands.map_or_else(|| "-".to_owned(), |commands| commands.to_string());
        let Size { tasks, credentials } = size;
        println!(
            "{store:<10}{tasks:>8}{credentials:>12}{time:>9.2} ms{control:>12.2} ms{ratio:>9.2}x{floor:>12.2} ms{commands:>16}"
        );
    }
    Ok(())
}

async fn arrival(stand: &Stand, second: Option<&Stand>, size: Size, subscribers: usize, rounds: usize) -> Result<()> {
    let mut all = Subscribers::none();
    let mut verifiers = Vec::new();
    for at in 0..subscribers {
        // Every other one at the other broker.
        let url = second.filter(|_| at % 2 == 1).map_or_else(|| stand.url(""), |second| second.url(""));
        let feed = if at < VERIFYING { Some(caught_up(stand, &url).await?) } else { None };
        verifiers.extend(feed.clone().map(verifier).transpose()?);
        all.subscribe(&url, feed).await?;
    }
    let mut broadcast = Broadcast::to(subscribers).await?;
    let verifiers = Arc::new(verifiers);
    let mut told = Told::default();
    // The first of each is a rehearsal.
    for round in 0..=rounds {
        let (task, token) = sized(stand, size).await?;
        let (token, asked) = (Arc::new(token), stand.client.clone());
        // By turns, so that neither kind of check is in the other's way.
        let asks = round % 2 == 0;
        let mut checks = JoinSet::new();
        if asks {
            checks.spawn(ask(asked, stand.url("/oauth2/introspect"), token));
        } else {
            let verifiers = verifiers.clone();
            checks.spawn_blocking(move || check(&verifiers, &token));
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
        let begun = Instant::now();
        let answered = revoke(stand, &task).await?;
        let heard = all.all_have_heard().await?;
        let accepted = checks.join_next().await.ok_or("nobody checks")???;
        let bare = broadcast.tell(heard.octets).await?;
        if round == 0 {
            continue;
        }
        let since = |at: Instant| at.saturating_duration_since(begun).as_secs_f64() * 1000.0;
        told.octets = heard.octets;
        told.answered.push(answered);
        told.heard.push(since(heard.at));
        told.bare.push(bare);
        if asks { &mut told.asked } else { &mut told.checked }.push(since(accepted));
    }
    told.print(subscribers);
    Ok(())
}

/// Milliseconds, from when a revoke was sent.
#[derive(Default)]
struct Told {
    octets: usize,
    answered: Vec<f64>,
    asked: Vec<f64>,
    checked: Vec<f64>,
    heard: Vec<f64>,
    bare: Vec<f64>,
}

impl Told {
    fn print(self, subscribers: usize) {
        println!("    {:<44}{:>10}{:>10}{:>10}", "", "p50 ms", "p99 ms", "max ms");
        let (heard, bare) = (sorted(self.heard), sorted(self.bare));
        let ratios = [(500, "p50"), (990, "p99")]
            .map(|(share, name)| format!("{name} {:.2}", quantile(&heard, share) / quantile(&bare, share)));
        distribution("answered", self.answered);
        distribution("last acceptance, introspection", self.asked);
        distribution("last acceptance, remit::verify", self.checked);
        distribution("all have heard", heard);
        distribution("a bare broadcast", bare);
        println!("    of a bare broadcast: {}; {} octets to each of {subscribers}", ratios.join(", "), self.octets);
    }
}

fn distribution(what: &str, values: Vec<f64>) {
    let values = sorted(values);
    let at = |share| quantile(&values, share);
    println!("    {what:<44}{:>10.2}{:>10.2}{:>10.2}", at(500), at(990), at(1000));
}

fn sorted(mut values: Vec<f64>) -> Vec<f64> {
    values.sort_by(f64::total_cmp);
    values
}

/// The smallest of them that so many of a thousand are not above.
fn quantile(sorted: &[f64], share: usize) -> f64 {
    let at = (sorted.len() * share).div_ceil(1000).max(1) - 1;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}

fn verifier(feed: Arc<Feed>) -> Result<Verifier<Following>> {
    Ok(Verifier::following(feed, SERVICE.parse()?))
}

/// Asks without a pause until the answer is no: when it was yes for the last time.
async fn ask(client: reqwest::Client, url: String, token: Arc<String>) -> Result<Instant> {
    let mut last = None;
    loop {
        let asked = client.post(&url).bearer_auth(ASKS).form(&[("token", &*token)]).send().await?;
        if asked.error_for_status()?.json::<Value>().await?["active"] != true {
            return Ok(last.ok_or("it was never active")?);
        }
        last = Some(Instant::now());
    }
}

/// Checks with each in turn until all say no: when one of them said yes for the last time.
fn check(verifiers: &[Verifier<Following>], token: &str) -> Result<Instant> {
    let mut last = None;
    let mut accepting: Vec<_> = verifiers.iter().collect();
    while !accepting.is_empty() {
        let mut still = Vec::new();
        for verifier in accepting {
            match verifier.verify(token, &Moment::now()) {
                Ok(_) => {
                    last = Some(Instant::now());
                    still.push(verifier);
                }
                Err(Rejected::Denied(Denial::Revoked)) => {}
                Err(why) => return Err(why.into()),
            }
        }
        accepting = still;
        std::thread::sleep(PAUSE);
    }
    Ok(last.ok_or("it was never accepted")?)
}

/// What is dead, according to a list that was fetched.
enum Listed {
    /// A status list.
    Bits(StatusList),
    /// The serials of revocation lists.
    Serials(HashSet<String>),
}

/// What is revoked, and is looked for in lists.
struct Revoked {
    at: Instant,
    token: Verified,
    serial: String,
}

/// The readers of lists fetch them anew now and then: a revoke has arrived with the first that shows it.
async fn lists(stand: &Stand) -> Result<()> {
    let (rounds, readers, refetch) = if is_trial() { (2, 2, Duration::from_millis(500)) } else { (200, 8, REFETCH) };
    let jwks = stand.client.get(stand.url("/jwks")).send().await?.bytes().await?;
    let checks =
        Verifier::offline_until_expiry(&stand.url(""), SERVICE.parse()?).with_access_keys(KeySet::from_jwks(&jwks)?);
    let lists = Arc::new(KeySet::of_status_lists(&jwks)?);
    let mut tasks = Vec::new();
    for _ in 0..rounds {
        let (task, token) = task(stand, 1).await?;
        let token = checks.verify(&token, SystemClock.now())?;
        let csr = rcgen::CertificateParams::default().serialize_request(&rcgen::KeyPair::generate()?)?.pem()?;
        let request = stand.client.post(stand.url(&format!("/v1/tasks/{task}/certificate")));
        let request = request.bearer_auth(&stand.evidence[0]).json(&json!({"csr": csr}));
        let certificate: Value = request.send().await?.error_for_status()?.json().await?;
        tasks.push((task, token, certificate["lease"].as_str().ok_or("no serial")?.to_owned()));
    }
    let status = tasks.first().map(|(_, token, _)| token.claims().status.status_list.uri.clone()).ok_or("no task")?;
    // All that a reader fetched, and when.
    let mut reading = JoinSet::new();
    let end = Instant::now() + refetch * 2 + refetch * 4;
    for reader in 0..readers {
        let (client, lists, status) = (stand.client.clone(), lists.clone(), status.clone());
        let crl = stand.url("/pki/crl.pem");
        reading.spawn(async move {
            tokio::time::sleep(refetch * reader / readers).await;
            let (mut bits, mut serials) = (Vec::new(), Vec::new());
            while Instant::now() < end {
                let next = Instant::now() + refetch;
                let text = client.get(&status).send().await?.error_for_status()?.text().await?;
                bits.push((Instant::now(), Listed::Bits(StatusList::read(&text, &lists, &status, SystemClock.now())?)));
                let pem = client.get(&crl).send().await?.error_for_status()?.bytes().await?;
                serials.push((Instant::now(), Listed::Serials(serials_of(&pem)?)));
                tokio::time::sleep_until(next.into()).await;
            }
            Result::Ok([bits, serials])
        });
    }
    // Spread over two of their turns.
    tokio::time::sleep(refetch).await;
    let pause = refetch * 2 / rounds;
    let mut revoked = Vec::new();
    for (task, token, serial) in tasks {
        let at = Instant::now();
        revoke(stand, &task).await?;
        revoked.push(Revoked { at, token, serial });
        tokio::time::sleep_until((at + pause).into()).await;
    }
    let mut kinds = [Vec::new(), Vec::new()];
    while let Some(read) = reading.join_next().await {
        for (kind, fetched) in kinds.iter_mut().zip(read??) {
            for revoked in &revoked {
                kind.push(shown(&fetched, revoked)?);
            }
        }
    }
    println!("\nlists, fetched every {refetch:?} by each of {readers} readers, revokes: {rounds}");
    println!("    {:<44}{:>10}{:>10}{:>10}", "", "p50 ms", "p99 ms", "max ms");
    for (kind, values) in ["last acceptance, status list", "last acceptance, CRL"].into_iter().zip(kinds) {
        distribution(kind, values);
    }
    Ok(())
}

/// How long it took until a list showed it, in milliseconds.
fn shown(fetched: &[(Instant, Listed)], revoked: &Revoked) -> Result<f64> {
    let shows = |list: &Listed| match list {
        Listed::Bits(list) => list.check(&revoked.token, SystemClock.now()).is_err(),
        Listed::Serials(serials) => serials.contains(&revoked.serial),
    };
    let first = fetched.iter().find(|(at, list)| *at > revoked.at && shows(list)).ok_or("no list showed it")?;
    Ok((first.0 - revoked.at).as_secs_f64() * 1000.0)
}

fn serials_of(pem: &[u8]) -> Result<HashSet<String>> {
    let mut serials = HashSet::new();
    for list in Pem::iter_from_buffer(pem) {
        let list = list?;
        let (_, list) = parse_x509_crl(&list.contents).map_err(|_| BASE64_STANDARD.encode(&list.contents))?;
        // As the broker writes them, in hex.
        serials.extend(
            list.iter_revoked_certificates().map(|one| format!("{:0>40}", one.user_certificate.to_str_radix(16))),
        );
    }
    Ok(serials)
}

/// A task, or a tree, of that size: the root, and a token of the deepest.
async fn sized(stand: &Stand, Size { tasks, credentials }: Size) -> Result<(String, String)> {
    if tasks == 1 { task(stand, credentials).await } else { trees::tree(stand, tasks, credentials).await }
}

/// A task with that many credentials, and one of them.
async fn task(stand: &Stand, credentials: usize) -> Result<(String, String)> {
    let task = stand.declare().await?;
    let batches = (0..credentials.div_ceil(BATCH)).map(|batch| BATCH.min(credentials - batch * BATCH));
    let mint = async |batch| Result::Ok(stand.mint(&task, batch).send().await?.error_for_status()?.bytes().await?);
    let mut answers = stream::iter(batches).map(mint).buffer_unordered(CALLS);
    let mut last = None;
    while let Some(answer) = answers.try_next().await? {
        last = Some(answer);
    }
    let minted: Value = serde_json::from_slice(&last.ok_or("no credentials")?)?;
    let token = minted["credentials"][0]["access_token"].as_str().ok_or("no token")?.to_owned();
    drop(answers);
    Ok((task, token))
}

/// Revokes, and how long that took, in milliseconds.
async fn revoke(stand: &Stand, task: &str) -> Result<f64> {
    let begun = Instant::now();
    let request = stand.client.post(stand.url(&format!("/v1/tasks/{task}/revoke"))).bearer_auth(RESPONDER);
    request.json(&json!({"reason": "bench"})).send().await?.error_for_status()?.bytes().await?;
    Ok(ms(begun))
}

/// The same connection, and nothing done.
async fn round_trip(stand: &Stand) -> Result<f64> {
    let mut times = Vec::new();
    for _ in 0..50 {
        let begun = Instant::now();
        stand.client.get(stand.url("/healthz")).send().await?.bytes().await?;
        times.push(ms(begun));
    }
    Ok(median(times))
}

/// Commands that Redis has run so far, those inside scripts included.
async fn count(stand: &Stand) -> Result<Option<u64>> {
    let Some(redis) = &stand.redis else { return Ok(None) };
    let stats: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis.connection.clone()).await?;
    let calls = |line: &str| {
        let (name, rest) = line.strip_prefix("cmdstat_")?.split_once(":calls=")?;
        (name != "info").then(|| rest.split(',').next()?.parse::<u64>().ok()).flatten()
    };
    Ok(Some(stats.lines().filter_map(calls).sum()))
}

fn median(values: Vec<f64>) -> f64 {
    quantile(&sorted(values), 500)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
