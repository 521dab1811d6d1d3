//! `bitnet-run serve`: the model over HTTP.
//!
//! Invariant: a server that says it listens answers. The first SIGTERM or SIGINT lets running requests finish and ends with
//! status 0; the second one ends at once.

use crate::args::Serve;
use crate::{open, prompts};
use bitnet_cli::{Console, ErrorCode, ExitStatus, Failure, FormatError, GlobalArgs};
use bitnet_formats::read_file;
use bitnet_serve::{ApiOptions, Engine, EngineOptions, Server, ServerOptions, Service};
use serde_json::json;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Longest file of keys.
const MOST_KEY_BYTES: u64 = 1 << 20;

pub fn run(
    args: &Serve,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    let keys = match &args.api_key_file {
        Some(path) => keys(path)?,
        None => Vec::new(),
    };
    let threads = global.thread_count();
    let loaded = open::model(&args.model.model, &args.model.compute, threads)?;
    open::announce(console, &loaded)?;
    let open::Loaded { checkpoint, model } = loaded;
    let tokenizer = open::tokenizer(&checkpoint)?;
    let name = match &args.alias {
        Some(name) => name.clone(),
        None => name_of(&args.model.model),
    };
    let engine = EngineOptions {
        parallel: args.parallel.get(),
        context: args.ctx,
        kv_bytes: args.kv_memory.map(bytes),
        kv_at_most: half_of_memory(),
        prefix_cache: !args.no_prefix_cache,
    };
    let engine = Engine::start(Arc::new(model), Arc::new(tokenizer), engine)?;
    let options = ApiOptions {
        name: name.clone(),
        lenient: args.lenient,
        repeatable: false,
    };
    let service = Service::new(Arc::new(engine), options)?;
    let options = ServerOptions {
        host: args.host.clone(),
        port: args.port,
        keys,
        origins: args.allow_origin.clone(),
        web: !args.no_web,
        queue: args.queue,
        most_body: bytes(args.max_body),
        grace: Duration::from_secs(args.grace as u64),
    };
    let open_to_all = options.keys.is_empty();
    let server = Server::bind(Arc::new(service), options)?;
    let stopper = server.stopper();
    bitnet_cli::on_interrupt(move || stopper.stop());
    let address = server.address();
    if open_to_all && !address.ip().is_loopback() {
        console.warn(format!(
            "everybody who reaches {address} can use the model; pass --api-key-file to require a key"
        ))?;
    }
    let url = url(&args.host, address);
    console.note(format!("listening on {url}"))?;
    console.json(&json!({"status": "listening", "url": url, "model": name}))?;
    let finished = server.run(|name| {
        // names of fields come from outside; a terminal that is gone stops no server
        let shown: String = name.chars().flat_map(char::escape_debug).collect();
        let _ = console.warn(format!("the unknown field `{shown}` is ignored"));
    })?;
    if !finished {
        console.note(format!("requests were ended after {} s", args.grace))?;
    }
    checkpoint.check_inputs()?;
    Ok(ExitStatus::Done)
}

/// Bytes in memory; more than there can be is all there can be.
pub fn bytes(size: u64) -> usize {
    usize::try_from(size).unwrap_or(usize::MAX)
}

/// Most memory for keys and values that nobody asked for.
pub fn half_of_memory() -> usize {
    bitnet_cli::available_bytes().map_or(usize::MAX, |available| bytes(available / 2))
}

/// The name of a model's file or directory.
pub fn name_of(path: &Path) -> String {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let is_file = absolute
        .extension()
        .is_some_and(|extension| extension == "gguf" || extension == "safetensors");
    let name = match is_file {
        true => absolute.file_stem(),
        false => absolute.file_name(),
    };
    name.map_or_else(
        || "model".to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn url(host: &str, address: SocketAddr) -> String {
    let port = address.port();
    match host.contains(':') && !host.starts_with('[') {
        true => format!("http://[{host}]:{port}"),
        false => format!("http://{host}:{port}"),
    }
}

/// One key per line.
fn keys(path: &Path) -> Result<Vec<String>, Failure> {
    let text = prompts::utf8(read_file(path, MOST_KEY_BYTES)?, path)?;
    let mut keys = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let key = line.trim();
        let found = match () {
            () if key.is_empty() => continue,
            () if key.starts_with('#') => "one that begins with #",
            () if key.contains(char::is_whitespace) => "one with a blank",
            () if !key.chars().all(|c| c.is_ascii_graphic()) => {
                "one that no header can hold: a character beyond ASCII or a control character"
            }
            () => {
                keys.push(key.to_owned());
                continue;
            }
        };
        // the key itself is a secret
        let message = format!("line {}: expected one key, found {found}", number + 1);
        let error = FormatError::new(ErrorCode::Malformed, message).in_file(path);
        return Err(error
            .hint("write one key per line, of letters, digits and punctuation, without comments")
            .into());
    }
    if keys.is_empty() {
        let error = FormatError::new(
            ErrorCode::Malformed,
            "expected one key per line, found none",
        );
        return Err(error.in_file(path).into());
    }
    Ok(keys)
}
