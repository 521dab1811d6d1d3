//! Connections: how long they may do nothing, and how they end.
//!
//! Invariant: a client that sends or reads nothing gives its connection up after a while; there are at most so many
//! connections at once.

use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::time::{Instant, Sleep, sleep, timeout};

/// Most connections at once.
const MOST_CONNECTIONS: u32 = 4096;
/// For the headers of a request, and between two requests.
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// For a client to read something of what was sent.
const READ_WITHIN: Duration = Duration::from_secs(60);
/// Most bytes of headers, with the line in front of them.
pub(super) const MOST_HEADER_BYTES: usize = 64 << 10;

/// The address of a client, as an extension of its requests.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub IpAddr);

/// A service that tells requests where they come from.
struct WithPeer<S> {
    inner: S,
    peer: Peer,
}

impl<S: Service<Request<Incoming>>> Service<Request<Incoming>> for WithPeer<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.peer);
        self.inner.call(request)
    }
}

/// A connection whose client has to read.
struct Timed {
    stream: TcpStream,
    limit: Pin<Box<Sleep>>,
    waits: bool, // whether a write waits for the client
}

impl Timed {
    fn watch<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.waits = false;
            return done;
        }
        if !self.waits {
            self.waits = true;
            self.limit.as_mut().reset(Instant::now() + READ_WITHIN);
        }
        match self.limit.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Timed {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Timed {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.watch(cx, done)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let done = Pin::new(&mut this.stream).poll_write_vectored(cx, parts);
        this.watch(cx, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

/// Whichever of two futures is ready first; of both, the first.
async fn either<A>(first: impl Future<Output = ()>, second: impl Future<Output = A>) -> Option<A> {
    let (mut first, mut second) = (pin!(first), pin!(second));
    std::future::poll_fn(|cx| {
        if first.as_mut().poll(cx).is_ready() {
            return Poll::Ready(None);
        }
        second.as_mut().poll(cx).map(Some)
    })
    .await
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // a sender that is gone stops nothing, and nothing stops it either
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Serves connections until `stop`, then lets running requests finish within `grace`; whether all did.
pub(super) async fn serve<S>(
    listener: TcpListener,
    service: S,
    mut stop: watch::Receiver<bool>,
    grace: Duration,
) -> bool
where
    S: Service<Request<Incoming>, Response = axum::response::Response> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let slots = Arc::new(Semaphore::new(MOST_CONNECTIONS as usize));
    loop {
        let next = async {
            let slot = Arc::clone(&slots).acquire_owned().await;
            (slot, listener.accept().await)
        };
        let Some((slot, accepted)) = either(stopped(&mut stop), next).await else {
            break;
        };
        let (Ok(slot), Ok((stream, peer))) = (slot, accepted) else {
            // too many open files: wait for one to close
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let service = WithPeer {
            inner: service.clone(),
            peer: Peer(peer.ip()),
        };
        let stop = stop.clone();
        tokio::spawn(async move {
            connection(stream, service, stop).await;
            drop(slot);
        });
    }
    drop(listener);
    let all = slots.acquire_many(MOST_CONNECTIONS);
    timeout(grace, all).await.is_ok()
}

async fn connection<S>(stream: TcpStream, service: S, mut stop: watch::Receiver<bool>)
where
    S: Service<Request<Incoming>, Response = axum::response::Response>,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let timed = Timed {
        stream,
        limit: Box::pin(sleep(READ_WITHIN)),
        waits: false,
    };
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        // more, so that headers beyond the limit are refused with a reason
        .max_buf_size(2 * MOST_HEADER_BYTES)
        .serve_connection(TokioIo::new(timed), service);
    let mut connection = pin!(connection);
    if either(stopped(&mut stop), connection.as_mut())
        .await
        .is_none()
    {
        connection.as_mut().graceful_shutdown();
        let _ = connection.await;
    }
}
