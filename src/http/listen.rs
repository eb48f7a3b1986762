//! Connections: how many there are at a time, who is at the other end, and how long one may keep us waiting.
//!
//! HTTP/1.1, and HTTP/2 for clients that begin with it.

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Request},
    http::header,
    response::Response,
};
use http_body_util::BodyExt as _;
use hyper::{
    body::Incoming,
    rt::Executor,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use std::{future::Future, io, pin::pin, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::Caller;
use crate::attest::Peer;

/// How long a connection may be without a request under way: before the first one is there, head and all, and after each
/// answer. So this is how long an idle connection is kept, half a head is waited for, and an answer may lie unread.
const IDLE: Duration = Duration::from_secs(10);
/// How long a connection that was told to end may take over it.
const FAREWELL: Duration = Duration::from_secs(5);
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

/// Where connections come from.
pub enum Listener {
    /// TCP.
    Tcp(TcpListener),
    /// A Unix socket, where the kernel says who connects.
    Unix(UnixListener),
}

impl Listener {
    /// Serves `router`, on `most` connections at a time, until `stop`. Connections run on `tasks`, and finish what is under way
    /// after `stop`.
    pub async fn serve(self, router: Router, most: usize, stop: CancellationToken, tasks: TaskTracker) {
        let room = Arc::new(Semaphore::new(most));
        let accept = async {
            // Room first: who finds none waits in the system's queue, and costs us no file descriptor.
            while let Ok(permit) = room.clone().acquire_owned().await {
                let served = Served { router: router.clone(), permit, stop: stop.clone(), tasks: tasks.clone() };
                if let Err(error) = self.accept(served).await {
                    // Too many open files, usually: it passes, and the listener must outlive it.
                    tracing::error!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = accept => {}
        }
    }

    async fn accept(&self, served: Served) -> io::Result<()> {
        let tasks = served.tasks.clone();
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are written whole: waiting for more to send only delays them.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "a connection is gone already");
                }
                tasks.spawn(served.run(stream, Caller::Anybody));
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                // Before anything is read: whoever connected may be gone, or another program, by then.
                let peer = Peer::of(&stream).inspect_err(|error| tracing::warn!(%error, "a peer is unknown")).ok();
                tasks.spawn(served.run(stream, Caller::Process(peer)));
            }
        }
        Ok(())
    }
}

/// What a connection is served with.
struct Served {
    router: Router,
    permit: OwnedSemaphorePermit,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Served {
    async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin + 'static, caller: Caller) {
        let Self { router, permit, stop, tasks } = self;
        let router = TowerToHyperService::new(router);
        let connection = Arc::new(permit);
        let requests = Arc::new(Semaphore::new(MOST_REQUESTS as usize));
        let (busy, watched) = watch::channel(0);
        let busy = Arc::new(busy);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let under_way = UnderWay::begin(&busy);
            let (router, requests) = (router.clone(), requests.clone());
            request.extensions_mut().insert(ConnectInfo(caller.clone()));
            let connection = connection.clone();
            async move {
                // Whoever cancels requests as fast as they make them waits for those that they cancelled.
                if let Ok(permit) = requests.acquire_owned().await {
                    request.extensions_mut().insert(Room { _request: Arc::new(permit), _connection: connection });
                }
                let answer = router.call(request).await;
                answer.map(|answer| until_told(answer, under_way))
            }
        });
        let mut protocol = auto::Builder::new(Tracked(tasks));
        protocol.http1().timer(TokioTimer::new()).header_read_timeout(IDLE).max_buf_size(MAX_HEAD);
        protocol.http2().timer(TokioTimer::new()).max_concurrent_streams(MOST_REQUESTS);
        let mut connection = pin!(protocol.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            () = idle(watched) => {
                connection.as_mut().graceful_shutdown();
                timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
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

/// An answer that is sent bit by bit keeps its request under way until it has been told. Any other is ready as it is, and whether
/// it is read is the caller's affair.
fn until_told(answer: Response, under_way: UnderWay) -> Response {
    let kind = answer.headers().get(header::CONTENT_TYPE);
    if kind.is_none_or(|kind| kind != "text/event-stream") {
        return answer;
    }
    answer.map(|body| {
        Body::new(body.map_frame(move |frame| {
            let _until_then = &under_way;
            frame
        }))
    })
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
