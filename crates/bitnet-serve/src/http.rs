//! The HTTP server.
//!
//! Invariant: the runtime's one thread never computes and never waits for the engine; what takes long (JSON, templates,
//! tokenizing) runs on threads beside it.

mod body;
mod connection;
mod guard;
mod routes;

use crate::api::Service;
use bitnet_formats::{ErrorCode, FormatError};
use body::Gate;
use guard::Guard;
use hyper_util::service::TowerToHyperService;
use routes::{Shared, router};
use std::future::Future;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::watch;

/// Threads that read requests.
const READERS: usize = 4;
/// After the grace period, for the last errors to be sent.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a server listens.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Host name or address.
    pub host: String,
    /// Port; 0: a free one.
    pub port: u16,
    /// Keys, one of which every request needs; none: no request does.
    pub keys: Vec<String>,
    /// Origins whose pages may ask; `*`: all.
    pub origins: Vec<String>,
    /// Whether `/` has a page.
    pub web: bool,
    /// Most requests that wait, beside those in progress.
    pub queue: usize,
    /// Most bytes of a body.
    pub most_body: usize,
    /// How long running requests may take once the server is to stop.
    pub grace: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 8080,
            keys: Vec::new(),
            origins: Vec::new(),
            web: true,
            queue: 256,
            most_body: 32 << 20,
            grace: Duration::from_secs(30),
        }
    }
}

/// Stops a server, from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<watch::Sender<bool>>);

impl Stopper {
    /// No new requests; running ones finish.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

/// A server that listens.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    service: Arc<Service>,
    options: ServerOptions,
    stop: Stopper,
}

impl Server {
    /// Takes the port.
    ///
    /// # Errors
    /// `io` for an address that cannot be listened on.
    pub fn bind(service: Arc<Service>, options: ServerOptions) -> Result<Self, FormatError> {
        let (host, port) = (&options.host, options.port);
        let refused = |e: std::io::Error| {
            let message = format!("cannot listen on {host}:{port}: {e}");
            let error = FormatError::new(ErrorCode::Io, message).because(e);
            error.hint("choose another port with --port, or --port 0 for a free one")
        };
        let host_name = host.trim_start_matches('[').trim_end_matches(']');
        let addresses: Vec<SocketAddr> = (host_name, port)
            .to_socket_addrs()
            .map_err(refused)?
            .collect();
        let listener = TcpListener::bind(&addresses[..]).map_err(refused)?;
        listener.set_nonblocking(true).map_err(refused)?;
        let address = listener.local_addr().map_err(refused)?;
        Ok(Self {
            listener,
            address,
            service,
            options,
            stop: Stopper(Arc::new(watch::channel(false).0)),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What stops it.
    pub fn stopper(&self) -> Stopper {
        self.stop.clone()
    }

    /// Serves until it is stopped; whether all running requests finished in time. `ignored` hears the name of each unknown
    /// field that was ignored, once, and `…` for those behind the first 256.
    ///
    /// # Errors
    /// `io` if the system gives no threads; `internal` never: a request that fails is answered.
    pub fn run(self, mut ignored: impl FnMut(&str)) -> Result<bool, FormatError> {
        let failed = |e: std::io::Error| {
            let message = format!("cannot start the server: {e}");
            FormatError::new(ErrorCode::Io, message).because(e)
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(READERS)
            .build()
            .map_err(failed)?;
        let engine = Arc::clone(&self.service.engine);
        let mut names = self.service.ignored();
        let shared = Arc::new(Shared {
            guard: Guard::new(&self.options.keys, &self.options.origins),
            gate: Arc::new(Gate::new(engine.parallel() + self.options.queue)),
            most_body: self.options.most_body,
            stop: self.stop.0.subscribe(),
            service: self.service,
        });
        let service = TowerToHyperService::new(router(shared, self.options.web));
        let stop = self.stop.0.subscribe();
        let grace = self.options.grace;
        let finished = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(self.listener).map_err(failed)?;
            let mut serving = pin!(connection::serve(listener, service, stop, grace));
            let finished = std::future::poll_fn(|cx| {
                while let Poll::Ready(Some(name)) = names.poll_recv(cx) {
                    ignored(&name);
                }
                serving.as_mut().poll(cx)
            })
            .await;
            if !finished {
                engine.abort();
                tokio::time::sleep(LAST_WORDS).await;
            }
            Ok::<bool, FormatError>(finished)
        })?;
        runtime.shutdown_timeout(LAST_WORDS);
        engine.stop();
        Ok(finished)
    }
}
