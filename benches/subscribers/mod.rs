//! Those who follow the revocation feed, as many as are wanted, on sockets of their own; and a server that tells the same number of them as
//! many octets and does nothing else, which is the limit.

use remit::{
    clock::Moment,
    verify::{Asked, Feed, Keys},
};
use std::{sync::Arc, time::Instant};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinSet,
};

use crate::stand::{Result, Stand};

/// Somebody was told something new.
pub(crate) struct Heard {
    pub(crate) at: Instant,
    /// How long it was as an event.
    pub(crate) octets: usize,
}

/// Subscribers. They go with this.
pub(crate) struct Subscribers {
    heard: UnboundedReceiver<Heard>,
    told: UnboundedSender<Heard>,
    count: usize,
    tasks: JoinSet<Result<()>>,
}

impl Subscribers {
    pub(crate) fn none() -> Self {
        let (told, heard) = unbounded_channel();
        Self { heard, told, count: 0, tasks: JoinSet::new() }
    }

    /// One more at that address. With a feed it believes what it is told, from where the feed is on.
    pub(crate) async fn subscribe(&mut self, url: &str, feed: Option<Arc<Feed>>) -> Result<()> {
        let mut stream = TcpStream::connect(url.trim_start_matches("http://")).await?;
        stream.set_nodelay(true)?;
        let left = feed.as_ref().and_then(|feed| feed.last_event_id());
        let left = left.map(|id| format!("Last-Event-ID: {id}\r\n")).unwrap_or_default();
        let asked = format!("GET /v1/revocations HTTP/1.1\r\nHost: x\r\nAccept: text/event-stream\r\n{left}\r\n");
        stream.write_all(asked.as_bytes()).await?;
        let mut events = Events { stream, read: Vec::new() };
        let (mut last, _) = events.next(feed.as_deref()).await?;
        let told = self.told.clone();
        self.tasks.spawn(async move {
            loop {
                let (sequence, octets) = events.next(feed.as_deref()).await?;
                // What says nothing new keeps it fresh.
                if sequence > last {
                    last = sequence;
                    told.send(Heard { at: Instant::now(), octets })?;
                }
            }
        });
        self.count += 1;
        Ok(())
    }

    /// When the last of them has heard of one thing, and how long that was.
    pub(crate) async fn all_have_heard(&mut self) -> Result<Heard> {
        let mut last = self.heard.recv().await.ok_or("nobody subscribes")?;
        for _ in 1..self.count {
            let heard = tokio::select! {
                heard = self.heard.recv() => heard.ok_or("nobody subscribes")?,
                Some(ended) = self.tasks.join_next() => return Err(format!("a subscriber has ended: {ended:?}").into()),
            };
            last = if heard.at > last.at { heard } else { last };
        }
        Ok(last)
    }
}

struct Events {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Events {
    /// The sequence of the next state, and its octets.
    async fn next(&mut self, feed: Option<&Feed>) -> Result<(u64, usize)> {
        let end = loop {
            if let Some(end) = self.read.windows(2).position(|octets| octets == b"\n\n") {
                break end + 2;
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err("the stream has ended".into());
            }
        };
        let event: Vec<u8> = self.read.drain(..end).collect();
        let event = str::from_utf8(&event)?;
        let start = event.find("event: ").ok_or_else(|| format!("no event: {event}"))?;
        let event = event.get(start..).ok_or("no event")?;
        let line = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such line");
        let (_, sequence) = line("id: ")?.rsplit_once(':').ok_or("no sequence")?;
        if let Some(feed) = feed {
            feed.pushed(line("data: ")?, &Moment::now())?;
        }
        Ok((sequence.parse()?, event.len()))
    }
}

/// A feed that holds what the broker there holds.
pub(crate) async fn caught_up(stand: &Stand, at: &str) -> Result<Arc<Feed>> {
    let get = async |url: String| -> Result<String> {
        Ok(stand.client.get(url).send().await?.error_for_status()?.text().await?)
    };
    let feed = Arc::new(Feed::new(&stand.url("")));
    let [jwks, bundle, states] = ["/jwks", "/spiffe/bundle", "/v1/revocations/jwks"].map(|path| get(stand.url(path)));
    let (jwks, bundle, states) = tokio::try_join!(jwks, bundle, states)?;
    feed.believe(Keys::read(jwks.as_bytes(), bundle.as_bytes(), states.as_bytes())?);
    let asked = Asked::new(Moment::now())?;
    let state = get(format!("{at}/v1/revocations?nonce={}", asked.nonce())).await?;
    feed.answered(&state, &asked, &Moment::now())?;
    Ok(feed)
}

/// The limit: whoever connects is told, and that is all.
pub(crate) struct Broadcast {
    /// In as many parts as there are cores.
    parts: Vec<Vec<TcpStream>>,
    sequence: u64,
    pub(crate) subscribers: Subscribers,
}

impl Broadcast {
    pub(crate) async fn to(subscribers: usize) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let cores = std::thread::available_parallelism()?.get();
        let mut broadcast =
            Self { parts: (0..cores).map(|_| Vec::new()).collect(), sequence: 0, subscribers: Subscribers::none() };
        for at in 0..subscribers {
            let accept = async {
                let (mut stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                stream.write_all(event(0, 0).as_bytes()).await?;
                Result::Ok(stream)
            };
            let (stream, ()) = tokio::try_join!(accept, broadcast.subscribers.subscribe(&url, None))?;
            broadcast.parts[at % cores].push(stream);
        }
        Ok(broadcast)
    }

    /// Tells everybody something of that many octets, and how long it took until all had heard, in milliseconds.
    pub(crate) async fn tell(&mut self, octets: usize) -> Result<f64> {
        self.sequence += 1;
        let event = Arc::new(event(self.sequence, octets));
        let begun = Instant::now();
        let mut telling = JoinSet::new();
        for mut part in std::mem::take(&mut self.parts) {
            let event = event.clone();
            telling.spawn(async move {
                for stream in &mut part {
                    stream.write_all(event.as_bytes()).await?;
                }
                Result::Ok(part)
            });
        }
        let last = self.subscribers.all_have_heard().await?.at;
        while let Some(part) = telling.join_next().await {
            self.parts.push(part??);
        }
        Ok((last - begun).as_secs_f64() * 1000.0)
    }
}

fn event(sequence: u64, octets: usize) -> String {
    let outside = format!("event: state\nid: x:{sequence}\nretry: 1000\ndata: \n\n").len();
    let data = "x".repeat(octets.saturating_sub(outside));
    format!("event: state\nid: x:{sequence}\nretry: 1000\ndata: {data}\n\n")
}
