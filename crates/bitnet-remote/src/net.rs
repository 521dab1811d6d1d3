//! Everything that talks to servers.
//!
//! Invariant: what is asynchronous runs on the threads of [`runtime`]; callers wait in [`block_on`] or for a channel.

pub(crate) mod cache;
pub(crate) mod carry;
pub(crate) mod chunks;
pub(crate) mod client;
pub(crate) mod download;
pub(crate) mod file;
pub(crate) mod hub;
pub(crate) mod locate;
pub(crate) mod push;
pub(crate) mod reach;
pub(crate) mod read_back;
pub(crate) mod select;
pub(crate) mod store;
pub(crate) mod upload;

use bitnet_formats::{ErrorCode, FormatError};
use std::future::Future;
use std::sync::OnceLock;
use tokio::runtime::{Builder, Runtime};

/// The threads that wait for the network.
pub(crate) fn runtime() -> Result<&'static Runtime, FormatError> {
    static RUNTIME: OnceLock<Result<Runtime, String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        // fails if the process has chosen one already
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut builder = Builder::new_multi_thread();
        let builder = builder.worker_threads(2).thread_name("remote").enable_all();
        builder.build().map_err(|e| e.to_string())
    });
    made.as_ref()
        .map_err(|e| FormatError::new(ErrorCode::Io, format!("cannot start threads: {e}")))
}

/// Waits for a result. Not to be called from the runtime's own threads.
pub(crate) fn block_on<T>(
    work: impl Future<Output = Result<T, FormatError>>,
) -> Result<T, FormatError> {
    runtime()?.block_on(work)
}
