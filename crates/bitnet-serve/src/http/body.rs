//! Bodies: what requests send, and streams of events.
//!
//! Invariant: no more of a body is kept than its limit. A stream never waits for the engine's thread, nor the other way
//! round.

use crate::api::{ApiError, Running};
use axum::body::{Body, Bytes, HttpBody};
use hyper::HeaderMap;
use hyper::body::Frame;
use hyper::header::{CONTENT_LENGTH, EXPECT};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Interval, interval_at, timeout};

/// For the whole body of a request.
const BODY_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of a body over the limit that are read and dropped, so that its client reads the refusal.
const DROPPED: usize = 256 << 20;
/// A stream says that often that it lives.
const PING: Duration = Duration::from_secs(15);
/// Bytes of events that are sent at once.
const MOST_AT_ONCE: usize = 64 << 10;

/// The body of a request.
pub(super) async fn read(
    headers: &HeaderMap,
    body: Body,
    most: usize,
) -> Result<Vec<u8>, ApiError> {
    let too_long = || {
        ApiError::new(
            413,
            format!("expected a body of at most {most} bytes, found more"),
        )
        .code("body_too_large")
    };
    let said = headers.get(CONTENT_LENGTH);
    let said = said.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|said| said > most as u64) {
        // who expects to be asked sends nothing
        if !headers.contains_key(EXPECT) {
            drop_rest(body);
        }
        return Err(too_long());
    }
    let said = said.and_then(|said| usize::try_from(said).ok());
    let reading = async {
        let mut body = body;
        let mut bytes: Vec<u8> = Vec::with_capacity(said.unwrap_or(0).min(most).min(1 << 20));
        loop {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            let Some(frame) = frame else { break };
            let frame = frame.map_err(|e| {
                ApiError::new(400, format!("the body ended too early: {e}")).code("body_incomplete")
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if bytes.len().saturating_add(data.len()) > most {
                drop_rest(body);
                return Err(too_long());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    match timeout(BODY_WITHIN, reading).await {
        Ok(read) => read,
        Err(_) => Err(ApiError::new(408, "the body did not arrive in time").code("body_timeout")),
    }
}

/// Reads what is left of a body that was refused, and keeps nothing of it: a client that still sends reads the refusal
/// then, where a closed connection would take it away.
fn drop_rest(mut body: Body) {
    let reading = async move {
        let mut length = 0usize;
        while length <= DROPPED {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            let Some(Ok(frame)) = frame else { return };
            length = length.saturating_add(frame.data_ref().map_or(0, Bytes::len));
        }
    };
    tokio::spawn(timeout(BODY_WITHIN, reading));
}

/// How many requests are in progress or wait.
#[derive(Debug)]
pub(super) struct Gate {
    inside: AtomicUsize,
    most: usize,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Admitted(Arc<Gate>);

impl Gate {
    pub(super) fn new(most: usize) -> Self {
        Self {
            inside: AtomicUsize::new(0),
            most,
        }
    }

    /// Lets a request in, unless there are too many.
    pub(super) fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let admit = |inside: usize| (inside < self.most).then_some(inside + 1);
        let before = self
            .inside
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, admit);
        before.is_ok().then(|| Admitted(Arc::clone(self)))
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The events of an answer as server-sent events.
pub(super) struct EventBody {
    running: Option<(Running, Admitted)>,
    ping: Interval,
}

impl EventBody {
    pub(super) fn new(running: Running, admitted: Admitted) -> Self {
        Self {
            running: Some((running, admitted)),
            ping: interval_at(Instant::now() + PING, PING),
        }
    }
}

impl HttpBody for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let mut text = String::new();
        while let Some((running, _)) = &mut this.running {
            let said = match running.events.0.poll_recv(cx) {
                Poll::Pending => break,
                Poll::Ready(Some(event)) => running.push(&event),
                Poll::Ready(None) => {
                    let end = running.complete().map(|()| running.finish());
                    text.push_str(&end.unwrap_or_else(|e| format!("data: {}\n\n", e.body())));
                    this.running = None;
                    break;
                }
            };
            match said {
                Ok(said) => text.push_str(&said),
                Err(error) => {
                    text.push_str(&format!("data: {}\n\n", error.body()));
                    this.running = None;
                }
            }
            if text.len() >= MOST_AT_ONCE {
                break;
            }
        }
        if !text.is_empty() {
            this.ping.reset();
            return Poll::Ready(Some(Ok(Frame::data(text.into()))));
        }
        if this.running.is_none() {
            return Poll::Ready(None);
        }
        match this.ping.poll_tick(cx) {
            Poll::Ready(_) => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b": ping\n\n"))))),
            Poll::Pending => Poll::Pending,
        }
    }
}
