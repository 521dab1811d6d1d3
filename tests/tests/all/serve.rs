//! The server: its API, its answers under load, and what it does with wrong requests.
//!
//! Invariant: every test talks to a server over TCP, with a model of this repository.

mod api;
mod batch;
mod exact;
mod faults;
mod invariance;
mod load;
mod openapi;
mod tools;

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_kernels::Backend;
use bitnet_model::{LoadOptions, Model};
use bitnet_serve::{ApiOptions, Engine, EngineOptions, Server, ServerOptions, Service, Stopper};
use bitnet_tests::fixtures::repository;
use bitnet_tests::http_client;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

fn demo() -> PathBuf {
    repository().join("tests/fixtures/demo/checkpoint")
}

/// How a server of a test differs from the usual one.
struct Setup {
    engine: EngineOptions,
    server: ServerOptions,
    lenient: bool,
    backend: Backend,
    threads: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            engine: EngineOptions::default(),
            server: ServerOptions {
                port: 0,
                queue: 1000,
                ..ServerOptions::default()
            },
            lenient: false,
            backend: Backend::best(),
            threads: 1,
        }
    }
}

/// A server that runs in this process.
struct Running {
    address: SocketAddr,
    stopper: Stopper,
    thread: Option<JoinHandle<bool>>,
    ignored: Arc<Mutex<Vec<String>>>,
}

impl Running {
    fn start(path: &Path, setup: Setup) -> Self {
        let checkpoint = Checkpoint::open(path, &OpenOptions::default()).unwrap();
        let options = LoadOptions {
            backend: setup.backend,
            threads: setup.threads,
            ..LoadOptions::default()
        };
        let model = Model::load(&checkpoint, &options).unwrap();
        let tokenizer = checkpoint.tokenizer().unwrap().unwrap();
        let engine = Engine::start(Arc::new(model), Arc::new(tokenizer), setup.engine).unwrap();
        let options = ApiOptions {
            name: "demo".to_owned(),
            lenient: setup.lenient,
            repeatable: false,
        };
        let service = Service::new(Arc::new(engine), options).unwrap();
        let server = Server::bind(Arc::new(service), setup.server).unwrap();
        let (address, stopper) = (server.address(), server.stopper());
        let ignored: Arc<Mutex<Vec<String>>> = Arc::default();
        let heard = Arc::clone(&ignored);
        let hear = move |name: &str| heard.lock().unwrap().push(name.to_owned());
        let thread = std::thread::spawn(move || server.run(hear).unwrap());
        Self {
            address,
            stopper,
            thread: Some(thread),
            ignored,
        }
    }

    fn demo() -> Self {
        Self::start(&demo(), Setup::default())
    }

    fn post(&self, path: &str, body: &serde_json::Value) -> http_client::Reply {
        http_client::post(self.address, path, body)
    }

    /// The answer to a request that succeeds.
    fn ask(&self, path: &str, body: &serde_json::Value) -> serde_json::Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.json()
    }

    /// A counter or gauge.
    fn metric(&self, name: &str) -> u64 {
        let reply = http_client::get(self.address, "/metrics");
        let lines = reply.text().lines();
        let mut values = lines.filter_map(|line| line.strip_prefix(&format!("bitnet_{name} ")));
        let value = values.next().unwrap_or_else(|| panic!("no metric {name}"));
        value.parse().unwrap()
    }

    /// Stops it; whether all requests finished.
    fn stop(mut self) -> bool {
        self.stopper.stop();
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
