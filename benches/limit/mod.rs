//! What is measured, beside limits that nothing could be faster than. All take turns in short rounds, so that whatever else the machine
//! does hits them alike; every round gives a ratio, and the median of the ratios is what counts.

use axum::{Router, body::Bytes, http::StatusCode, routing::post};
use futures_util::future::BoxFuture;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, task::JoinSet};

use crate::stand::{Result, is_trial};

/// Rounds, and how long each contender has in one. Odd, so that a median is one that was measured.
const ROUNDS: usize = 15;
const TURN: Duration = Duration::from_millis(200);
const TRIAL: Duration = Duration::from_millis(20);

/// Something that is done over and over, on the connection of that number.
pub(crate) type Work = Arc<dyn Fn(usize) -> BoxFuture<'static, Result<()>> + Send + Sync>;

pub(crate) fn work<F: Future<Output = Result<()>> + Send + 'static>(
    run: impl Fn(usize) -> F + Send + Sync + 'static,
) -> Work {
    Arc::new(move |connection| Box::pin(run(connection)))
}

/// Sends one of these requests, each connection its own, and reads the answer.
pub(crate) fn send(client: &reqwest::Client, requests: Vec<reqwest::Request>) -> Work {
    let client = client.clone();
    work(move |connection| {
        let client = client.clone();
        let request = requests.get(connection % requests.len().max(1)).and_then(reqwest::Request::try_clone);
        async move {
            let request = request.ok_or("a request that cannot be sent again")?;
            client.execute(request).await?.error_for_status()?.bytes().await?;
            Ok(())
        }
    })
}

/// The same requests to somebody else.
pub(crate) fn redirected(requests: &[reqwest::Request], url: &str) -> Result<Vec<reqwest::Request>> {
    let redirect = |request: &reqwest::Request| {
        let mut request = request.try_clone().ok_or("a request that cannot be sent again")?;
        *request.url_mut() = url.parse()?;
        Ok(request)
    };
    requests.iter().map(redirect).collect()
}

/// An HTTP server that reads a request, does the work and answers so many octets; it is gone when this is dropped.
pub(crate) struct Bare {
    pub(crate) url: String,
    _server: JoinSet<()>,
}

impl Bare {
    pub(crate) async fn serve(answer: usize, work: Work) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/", listener.local_addr()?);
        let answer = Bytes::from(vec![b' '; answer]);
        let handler = move |_: Bytes| {
            let (work, answer) = (work.clone(), answer.clone());
            async move { work(0).await.map(|()| answer).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR) }
        };
        let mut server = JoinSet::new();
        server.spawn(async move {
            let _ = axum::serve(listener, Router::new().route("/", post(handler))).await;
        });
        Ok(Self { url, _server: server })
    }
}

/// Work that is none.
pub(crate) fn nothing() -> Work {
    work(|_| async { Ok(()) })
}

/// One turn: how often it was done in a second, and how long the one in the middle took.
struct Turn {
    rate: f64,
    middle: f64,
}

/// Prints how often something is done in a second on so many connections, and its ratio to each limit.
pub(crate) async fn compare(what: &str, connections: usize, measured: &Work, limits: &[(&str, Work)]) -> Result<()> {
    let mut contenders = vec![measured.clone()];
    contenders.extend(limits.iter().map(|(_, limit)| limit.clone()));
    let mut turns: Vec<Vec<Turn>> = contenders.iter().map(|_| Vec::new()).collect();
    // What opens connections and loads scripts.
    for contender in &contenders {
        turn(contender, connections).await?;
    }
    for round in 0..if is_trial() { 1 } else { ROUNDS } {
        let mut order: Vec<usize> = (0..contenders.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let turn = turn(&contenders[at], connections).await?;
            turns[at].push(turn);
        }
    }
    let (measured, limits_turns) = turns.split_first().ok_or("nothing was measured")?;
    let rate = |turns: &[Turn]| median(turns.iter().map(|turn| turn.rate).collect());
    let middle = median(measured.iter().map(|turn| turn.middle).collect());
    println!("{what:<46}{:>9.0}/s{middle:>10.3} ms", rate(measured));
    for ((name, _), limit) in limits.iter().zip(limits_turns) {
        let ratios = measured.iter().zip(limit).map(|(measured, limit)| measured.rate / limit.rate).collect();
        println!("    of {name:<39}{:>9.0}/s{:>21.2}", rate(limit), median(ratios));
    }
    Ok(())
}

async fn turn(work: &Work, connections: usize) -> Result<Turn> {
    let begun = Instant::now();
    let end = begun + if is_trial() { TRIAL } else { TURN };
    let mut workers = JoinSet::new();
    for connection in 0..connections {
        let work = work.clone();
        workers.spawn(async move {
            let mut times = Vec::new();
            let mut last = Instant::now();
            while last < end {
                work(connection).await?;
                let now = Instant::now();
                times.push((now - last).as_secs_f64() * 1000.0);
                last = now;
            }
            Result::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(worker) = workers.join_next().await {
        times.extend(worker??);
    }
    #[expect(clippy::cast_precision_loss, reason = "a count of what was done in a moment")]
    let done = times.len() as f64;
    Ok(Turn { rate: done / begun.elapsed().as_secs_f64(), middle: median(times) })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
