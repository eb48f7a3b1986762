//! Connections: how many there are at a time, who is at the other end, and how long one may keep us waiting.
//!
//! HTTP/1.1, and HTTP/2 for clients that begin with it.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{ConnectInfo, Request},
    http::header,
    response::Response,
};
use hyper::{
    body::{Frame, Incoming},
    rt::Executor,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use socket2::SockRef;
use std::{
    any::Any,
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::{sleep, timeout},
};
use tokio_rustls::server::TlsStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Caller, Network, Tls};
use crate::attest::Peer;

/// How long a connection may be without a request under way: before the first one is there, head and all, and after each
/// answer. So this is how long an idle connection is kept, half a head is waited for, and an answer may lie unread; of an answer
/// without an end, the next piece.
const IDLE: Duration = Duration::from_secs(10);
/// How often it is looked at whether a piece lies unread.
const LOOK: Duration = Duration::from_secs(2);
/// How long whoever is at the other end of TCP may acknowledge nothing of what was sent: then their machine is gone.
const SILENT: Duration = Duration::from_secs(30);
/// How many octets the system keeps that cannot be sent yet. What is beyond waits, and so it shows that nobody reads.
const UNSENT: u32 = 32 * 1024;
/// How long a connection that was told to end may take over it.
const FAREWELL: Duration = Duration::from_secs(5);
/// How long a connection takes new requests. Then its caller connects anew, to the certificate and the settings of that time.
const MAX_AGE: Duration = Duration::from_secs(600);
/// How long a TLS handshake may take, and how many may be under way on a listener: one more ends the oldest, because whoever means
/// it is done in a moment.
const HANDSHAKE: Duration = Duration::from_secs(5);
const MOST_HANDSHAKES: usize = 128;
/// The largest head of an HTTP/1.1 request, in octets; evidence beyond any sense is still refused as evidence. At most 100
/// fields in it, and 16 KiB in HTTP/2, are the library's own bounds.
const MAX_HEAD: usize = 128 * 1024;
/// How many requests one connection may have under way: more than one in HTTP/2, or when callers hang up early.
const MOST_REQUESTS: u32 = 16;
/// How long to wait before another try after the system refused to give us a connection.
const PAUSE: Duration = Duration::from_millis(250);

/// A request's share of what its connection and its listener can hold; free again when all that it set off has ended.
#[derive(Clone)]
pub(super) struct Room {
    _request: Arc<OwnedSemaphorePermit>,
    _connection: Arc<OwnedSemaphorePermit>,
}

/// The room of an answer without an end. Its connection takes it in the place of its listener's, to the end of the connection: those who
/// are told something take up no room of those who ask.
#[derive(Clone)]
pub(super) struct Apart {
    _room: Arc<dyn Any + Send + Sync>,
}

impl Apart {
    /// It is kept by holding this.
    pub(super) fn new(room: Arc<dyn Any + Send + Sync>) -> Self {
        Self { _room: room }
    }
}

/// The room that a connection takes up.
struct Place {
    listener: Arc<Semaphore>,
    taken: Mutex<Taken>,
}

enum Taken {
    /// With its listener.
    Usual(Arc<OwnedSemaphorePermit>),
    /// With those who are told something.
    Elsewhere { _room: Apart },
}

impl Place {
    fn new(listener: Arc<Semaphore>, permit: OwnedSemaphorePermit) -> Self {
        Self { listener, taken: Mutex::new(Taken::Usual(Arc::new(permit))) }
    }

    /// Room for another request: the connection's own, or where it is apart, one more of the listener's. `None`: it is stopping.
    async fn ask(&self) -> Option<Arc<OwnedSemaphorePermit>> {
        if let Taken::Usual(permit) = &*self.taken.lock().unwrap_or_else(PoisonError::into_inner) {
            return Some(permit.clone());
        }
        self.listener.clone().acquire_owned().await.ok().map(Arc::new)
    }

    /// From now on it is apart.
    fn set_apart(&self, apart: Apart) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Taken::Usual(_) = &*taken {
            *taken = Taken::Elsewhere { _room: apart };
        }
    }
}

/// Where connections come from.
pub enum Listener {
    /// TCP in the clear; where there are networks, for callers in one of them alone.
    Tcp(TcpListener, Option<Vec<Network>>),
    /// A Unix socket, where the kernel says who connects.
    Unix(UnixListener),
    /// TLS on TCP.
    Tls(TcpListener, Tls),
}

impl Listener {
    /// Serves `router`, on `most` connections at a time, until `stop`. Connections run on `tasks`, and finish what is under way
    /// after `stop`.
    pub async fn serve(self, router: Router, most: usize, stop: CancellationToken, tasks: TaskTracker) {
        let room = Arc::new(Semaphore::new(most));
        let handshakes = Arc::new(Handshakes::default());
        let accept = async {
            loop {
                let (router, stop, tasks) = (router.clone(), stop.clone(), tasks.clone());
                let served = Served { router, stop, tasks, room: room.clone(), max_age: MAX_AGE };
                if let Err(error) = self.accept(served, &room, &handshakes).await {
                    // Too many open files, usually: it passes, and the listener must outlive it.
                    tracing::error!(%error, "a connection could not be accepted");
                    sleep(PAUSE).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept => {}
        }
    }

    async fn accept(&self, served: Served, room: &Arc<Semaphore>, handshakes: &Arc<Handshakes>) -> io::Result<()> {
        let tasks = served.tasks.clone();
        // Room first: who finds none waits in the system's queue, and costs us no file descriptor.
        let free = async || room.clone().acquire_owned().await.map_err(io::Error::other);
        match self {
            Self::Tcp(listener, from) => {
                let permit = free().await?;
                let (stream, address) = listener.accept().await?;
                if from.as_ref().is_some_and(|from| !from.iter().any(|network| network.contains(address.ip()))) {
                    tracing::debug!(%address, "not one of the proxies that `listen.behind_proxy` names");
                    return Ok(());
                }
                at_once(&stream);
                tasks.spawn(served.run(stream, Caller::Anybody, permit));
            }
            Self::Unix(listener) => {
                let permit = free().await?;
                let (stream, _) = listener.accept().await?;
                // Before anything is read: whoever connected may be gone, or another program, by then.
                let peer = Peer::of(&stream).inspect_err(|error| tracing::warn!(%error, "a peer is unknown")).ok();
                tasks.spawn(served.run(stream, Caller::Process(peer), permit));
            }
            Self::Tls(listener, tls) => {
                // What is no connection yet takes up no room of those that are.
                let (stream, _) = listener.accept().await?;
                at_once(&stream);
                let (tls, room, under_way) = (tls.clone(), room.clone(), handshakes.begin());
                tasks.spawn(async move {
                    let shaken = under_way.carry_out(shake(&tls, stream, room), &served.stop).await;
                    if let Some((stream, caller, permit)) = shaken {
                        served.run(stream, caller, permit).await;
                    }
                });
            }
        }
        Ok(())
    }
}

/// Answers are written whole: waiting for more to send only delays them. And who does not take them is not waited for.
fn at_once(stream: &TcpStream) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "a connection is gone already");
    }
    let socket = SockRef::from(stream);
    if let Err(error) = socket.set_tcp_user_timeout(Some(SILENT)).and_then(|()| socket.set_tcp_notsent_lowat(UNSENT)) {
        tracing::debug!(%error, "it may take long until it shows that nobody reads");
    }
}

/// A handshake, and then room for the connection.
async fn shake(
    tls: &Tls,
    stream: TcpStream,
    room: Arc<Semaphore>,
) -> Option<(TlsStream<TcpStream>, Caller, OwnedSemaphorePermit)> {
    let (stream, certificate) =
        tls.accept(stream).await.inspect_err(|error| tracing::debug!(%error, "a handshake failed")).ok()?;
    let permit = room.acquire_owned().await.ok()?;
    Some((stream, Caller::Tls(certificate.map(Arc::new)), permit))
}

/// The handshakes that are under way on a listener, the oldest first.
#[derive(Default)]
struct Handshakes(Mutex<VecDeque<CancellationToken>>);

/// A handshake that is under way, until it is dropped.
struct Handshake {
    all: Arc<Handshakes>,
    cut_off: CancellationToken,
}

impl Handshakes {
    fn begin(self: &Arc<Self>) -> Handshake {
        let cut_off = CancellationToken::new();
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|one| !one.is_cancelled());
        if all.len() >= MOST_HANDSHAKES
            && let Some(oldest) = all.pop_front()
        {
            oldest.cancel();
        }
        all.push_back(cut_off.clone());
        Handshake { all: self.clone(), cut_off }
    }
}

impl Handshake {
    /// Does the work, unless it takes too long, is cut off or has to `stop`.
    async fn carry_out<T>(self, work: impl Future<Output = Option<T>>, stop: &CancellationToken) -> Option<T> {
        tokio::select! {
            done = timeout(HANDSHAKE, work) => done.ok().flatten(),
            () = self.cut_off.cancelled() => None,
            () = stop.cancelled() => None,
        }
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        self.cut_off.cancel();
        self.all.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|one| !one.is_cancelled());
    }
}

/// What a connection is served with.
struct Served {
    router: Router,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// What all connections of the listener share.
    room: Arc<Semaphore>,
    max_age: Duration,
}

impl Served {
    async fn run(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
        caller: Caller,
        permit: OwnedSemaphorePermit,
    ) {
        let Self { router, stop, tasks, room, max_age } = self;
        let router = TowerToHyperService::new(router);
        let place = Arc::new(Place::new(room, permit));
        let streams = Arc::new(Streams::default());
        let requests = Arc::new(Semaphore::new(MOST_REQUESTS as usize));
        let (busy, watched) = watch::channel(0);
        let busy = Arc::new(busy);
        let sent = streams.clone();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let under_way = UnderWay::begin(&busy);
            let (router, requests) = (router.clone(), requests.clone());
            request.extensions_mut().insert(ConnectInfo(caller.clone()));
            let (place, sent) = (place.clone(), sent.clone());
            async move {
                // Whoever cancels requests as fast as they make them waits for those that they cancelled.
                if let Ok(permit) = requests.acquire_owned().await
                    && let Some(connection) = place.ask().await
                {
                    request.extensions_mut().insert(Room { _request: Arc::new(permit), _connection: connection });
                }
                let mut answer = router.call(request).await?;
                if let Some(apart) = answer.extensions_mut().remove::<Apart>() {
                    place.set_apart(apart);
                }
                Ok::<_, Infallible>(sent.until_told(answer, under_way))
            }
        });
        let mut protocol = auto::Builder::new(Tracked(tasks));
        protocol.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(MAX_HEAD);
        protocol.http2().timer(TokioTimer::new()).max_concurrent_streams(MOST_REQUESTS);
        let mut connection = pin!(protocol.serve_connection(TokioIo::new(stream), service));
        let lives = async {
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
                () = sleep(max_age) => {
                    connection.as_mut().graceful_shutdown();
                    tokio::select! {
                        ended = connection.as_mut() => ended,
                        () = idle(watched) => timeout(FAREWELL, connection).await.unwrap_or(Ok(())),
                    }
                }
                () = idle(watched.clone()) => {
                    connection.as_mut().graceful_shutdown();
                    timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
                }
            }
        };
        let ended = tokio::select! {
            ended = lives => ended,
            () = streams.lie_unread() => {
                tracing::debug!("a connection was cut off: nobody reads what is sent");
                Ok(())
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error, "a connection failed");
        }
    }
}

/// Counts a request as under way, until it is answered or its caller gives up.
struct UnderWay(Arc<watch::Sender<usize>>);

impl UnderWay {
    fn begin(busy: &Arc<watch::Sender<usize>>) -> Self {
        busy.send_modify(|count| *count += 1);
        Self(busy.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

/// The answers without an end that are being told on a connection.
#[derive(Default)]
struct Streams(Mutex<Vec<Weak<Piece>>>);

/// When a piece was handed over for sending, where none was asked for since.
#[derive(Default)]
struct Piece(Mutex<Option<Instant>>);

impl Piece {
    fn handed_over(&self, at: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = at;
    }

    fn lies_unread(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|since| since.elapsed() > IDLE)
    }
}

/// An answer without an end.
struct Told {
    body: Body,
    piece: Arc<Piece>,
    _under_way: UnderWay,
}

impl hyper::body::Body for Told {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let this = self.get_mut();
        this.piece.handed_over(None);
        let frame = ready!(Pin::new(&mut this.body).poll_frame(cx));
        this.piece.handed_over(Some(Instant::now()));
        Poll::Ready(frame)
    }
}

impl Streams {
    /// An answer that is sent bit by bit keeps its request under way until it has been told. Any other is ready as it is, and whether
    /// it is read is the caller's affair.
    fn until_told(&self, answer: Response, under_way: UnderWay) -> Response {
        let kind = answer.headers().get(header::CONTENT_TYPE);
        if kind.is_none_or(|kind| kind != "text/event-stream") {
            return answer;
        }
        let piece = Arc::new(Piece::default());
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|piece| piece.strong_count() > 0);
        all.push(Arc::downgrade(&piece));
        answer.map(|body| Body::new(Told { body, piece, _under_way: under_way }))
    }

    /// Waits until a piece of one of them has not been asked for in [`IDLE`]: neither protocol waits for its reader only so long.
    async fn lie_unread(&self) {
        loop {
            sleep(LOOK).await;
            let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if all.iter().filter_map(Weak::upgrade).any(|piece| piece.lies_unread()) {
                return;
            }
        }
    }
}

/// Waits until there has been no request for [`IDLE`]. The protocols' own deadlines leave gaps: before it is clear which
/// protocol is spoken, when an answer isn't read, and nearly everywhere in HTTP/2.
async fn idle(mut busy: watch::Receiver<usize>) {
    loop {
        let none = *busy.borrow_and_update() == 0;
        let changed = if none { timeout(IDLE, busy.changed()).await } else { Ok(busy.changed().await) };
        if !matches!(changed, Ok(Ok(()))) {
            return;
        }
    }
}

/// Runs what HTTP/2 does in the background where the shutdown waits for it.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Tracked {
    fn execute(&self, work: F) {
        self.0.spawn(work);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    const ASK: &[u8] = b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n";

    /// An old connection takes no more requests, and what is under way on it is finished.
    #[tokio::test]
    async fn a_connection_does_not_grow_old() {
        let (mut ours, theirs) = duplex(4096);
        let slow = || async {
            sleep(Duration::from_millis(300)).await;
            "done"
        };
        let served = Served {
            router: Router::new().route("/slow", get(slow)),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            room: Arc::new(Semaphore::new(1)),
            max_age: Duration::from_millis(400),
        };
        let permit = served.room.clone().acquire_owned().await.unwrap();
        let connection = TaskTracker::new().spawn(served.run(theirs, Caller::Anybody, permit));
        let mut said = [0; 512];
        let mut answer = async |ours: &mut tokio::io::DuplexStream| {
            ours.write_all(ASK).await.unwrap();
            let length = ours.read(&mut said).await.unwrap();
            String::from_utf8_lossy(&said[..length]).into_owned()
        };
        let (young, old) = (answer(&mut ours).await, answer(&mut ours).await);
        assert!(young.ends_with("done") && !young.contains("connection: close"), "{young}");
        assert!(old.ends_with("done") && old.contains("connection: close"), "{old}");
        assert_eq!(ours.read(&mut [0; 1]).await.unwrap(), 0);
        timeout(Duration::from_secs(1), connection).await.unwrap().unwrap();
    }

    /// Whoever begins one handshake too many ends the oldest, and who is done makes room.
    #[tokio::test]
    async fn the_oldest_handshake_makes_room() {
        let (all, stop) = (Arc::new(Handshakes::default()), CancellationToken::new());
        let begun: Vec<_> = (0..MOST_HANDSHAKES).map(|_| all.begin()).collect();
        assert!(begun.iter().all(|one| !one.cut_off.is_cancelled()));
        let newest = all.begin();
        assert!(begun[0].cut_off.is_cancelled() && !begun[1].cut_off.is_cancelled());
        assert_eq!(newest.carry_out(async { Some(1) }, &stop).await, Some(1));
        drop(all.begin());
        assert!(!begun[1].cut_off.is_cancelled());
        let oldest = begun.into_iter().next().unwrap();
        assert_eq!(oldest.carry_out(std::future::pending::<Option<()>>(), &stop).await, None);
    }
}
