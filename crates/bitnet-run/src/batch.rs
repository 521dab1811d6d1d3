//! `bitnet-run MODEL --batch`: the requests of a file through the engine of the server.
//!
//! Invariant: the answers keep the order of the lines, and the file of answers has the same bytes however often the run was
//! interrupted. Until it is complete, its lines are in `OUT.part`, behind one line that says whose they are.

use crate::args::Generate;
use crate::open;
use crate::serve::{half_of_memory, name_of};
use bitnet_cli::{Console, ErrorCode, ExitStatus, Failure, FormatError, GlobalArgs, Progress};
use bitnet_formats::{Artifact, OutputLock};
use bitnet_serve::{
    ApiError, ApiOptions, Begun, Endpoint, Engine, EngineOptions, Running, Service, begin, parse,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Texts at once, unless a flag says more.
const DEFAULT_PARALLEL: usize = 4;
/// Requests that are begun for each text that runs, so that a long one holds no others up.
const AHEAD: usize = 8;
/// Longest line.
const MOST_LINE_BYTES: usize = 64 << 20;

pub fn run(
    args: &Generate,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    let (Some(path), Some(batch), Some(output)) = (&args.model, &args.batch, &args.output) else {
        return Err(Failure::usage("expected a model, --batch and -o"));
    };
    if batch == Path::new("-") {
        let message =
            "--batch: expected a file, found `-`: an interrupted run reads the requests again";
        return Err(Failure::usage(message)
            .hint("write the requests to a file first; ./- is a file called `-`"));
    }
    Artifact::check(output, args.force)?;
    let input = Input::open(batch)?;
    let loaded = open::model(path, &args.compute, global.thread_count())?;
    open::announce(console, &loaded)?;
    let open::Loaded { checkpoint, model } = loaded;
    let mut inputs = checkpoint.inputs();
    inputs.add(batch);
    inputs.refuse(output)?;
    inputs.refuse(&part_of(output))?;
    // one run at a time appends
    let _lock = OutputLock::take(output)?;
    let tokenizer = open::tokenizer(&checkpoint)?;
    let parallel = args.parallel.map_or(DEFAULT_PARALLEL, |n| n.get());
    let identity = json!({
        "batch": 1,
        "input_sha256": input.sha256,
        "model": std::path::absolute(path).unwrap_or_else(|_| path.clone()),
        "model_bytes": model_bytes(path),
        "kv_type": format!("{:?}", args.compute.kv_type),
        "ctx": args.ctx,
        "max_tokens": args.max_new_tokens,
    });
    let mut part = Part::open(output, &identity.to_string(), args.force)?;
    if part.lines > 0 {
        console.note(format!("continuing behind line {}", part.lines))?;
    }
    let options = EngineOptions {
        parallel,
        context: args.ctx,
        kv_bytes: None,
        kv_at_most: half_of_memory(),
        prefix_cache: true,
    };
    let engine = Engine::start(Arc::new(model), Arc::new(tokenizer), options)?;
    // the memory that happens to be free must not decide where an answer ends
    if engine.room(0) <= engine.context() {
        let context = engine.context();
        let message = format!("expected memory for the KV cache of {context} tokens, found less");
        return Err(FormatError::new(ErrorCode::LimitExceeded, message)
            .hint("set a smaller --ctx")
            .into());
    }
    let options = ApiOptions {
        name: name_of(path),
        lenient: false,
        repeatable: true,
    };
    let service = Arc::new(Service::new(Arc::new(engine), options)?);
    let progress = Progress::new(console);
    let bar = progress.bytes("answering", input.bytes);
    let mut lines = BufReader::new(input.file);
    let mut waiting: VecDeque<(usize, Line)> = VecDeque::new();
    let (mut number, mut failed) = (0, 0);
    loop {
        let text = next_line(&mut lines, batch, number)?;
        if let Some(text) = &text {
            let bytes = text.len();
            let line = match () {
                () if number < part.lines => Line::Written,
                () if text.trim_ascii().is_empty() => Line::Empty,
                () => begin_line(&service, text, number, args.max_new_tokens),
            };
            waiting.push_back((bytes, line));
            number += 1;
        }
        while waiting.len() >= parallel * AHEAD || (text.is_none() && !waiting.is_empty()) {
            if let Some((bytes, line)) = waiting.pop_front() {
                failed += write_line(&mut part, line)?;
                bar.advance(bytes as u64);
            }
        }
        if text.is_none() {
            break;
        }
    }
    bar.finish();
    checkpoint.check_inputs()?;
    let written = part.publish(output, args.force)?;
    console.summary(format!(
        "{}: {} answers, {failed} of this run are errors",
        output.display(),
        written.answers
    ))?;
    console.json(&json!({
        "status": "answered",
        "answers": written.answers,
        "errors": failed,
        "output": {"path": output, "bytes": written.bytes, "sha256": written.sha256},
    }))?;
    Ok(ExitStatus::Done)
}

/// The requests.
struct Input {
    file: File,
    bytes: u64,
    sha256: String,
}

impl Input {
    fn open(path: &Path) -> Result<Self, Failure> {
        let located = |e: std::io::Error| FormatError::io(path, &e);
        let (mut file, _) = bitnet_formats::open_regular(path)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 16];
        let mut bytes = 0;
        loop {
            let read = match file.read(&mut buffer) {
                Ok(0) => break,
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                read => read.map_err(located)?,
            };
            hash.update(&buffer[..read]);
            bytes += read as u64;
        }
        file.seek(SeekFrom::Start(0)).map_err(located)?;
        Ok(Self {
            file,
            bytes,
            sha256: bitnet_formats::hex(&hash.finalize()),
        })
    }
}

/// Bytes of a model's files: enough to notice that another model stands at its path.
fn model_bytes(path: &Path) -> u64 {
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |meta| meta.len());
    match bitnet_formats::read_directory(path) {
        Ok(entries) => entries.flatten().map(|entry| length(&entry.path())).sum(),
        Err(_) => length(path),
    }
}

/// The next line with its end.
fn next_line(
    lines: &mut impl BufRead,
    path: &Path,
    number: usize,
) -> Result<Option<Vec<u8>>, Failure> {
    let mut line = Vec::new();
    let read = lines
        .take(MOST_LINE_BYTES as u64 + 1)
        .read_until(b'\n', &mut line)
        .map_err(|e| FormatError::io(path, &e))?;
    if read > MOST_LINE_BYTES {
        let message = format!(
            "expected lines of at most {MOST_LINE_BYTES} bytes, found more in line {number}"
        );
        return Err(FormatError::new(ErrorCode::LimitExceeded, message)
            .in_file(path)
            .into());
    }
    Ok((read > 0).then_some(line))
}

/// A line on its way to its answer.
enum Line {
    /// An earlier run wrote the answer.
    Written,
    /// No request.
    Empty,
    /// The name of the request, its number, and what became of it.
    Begun(Value, usize, Result<Begun, ApiError>),
}

fn begin_line(service: &Arc<Service>, text: &[u8], number: usize, most: usize) -> Line {
    let mut name = json!(format!("line-{number}"));
    let begun = read_request(text, &mut name, most).and_then(|(endpoint, body)| {
        service.set_number(number as u64);
        begin(service, endpoint, body, 0)
    });
    Line::Begun(name, number, begun)
}

/// The endpoint and the body of a line.
fn read_request(text: &[u8], name: &mut Value, most: usize) -> Result<(Endpoint, Value), ApiError> {
    let mut line = parse(text)?;
    let refused = |what: &str| {
        let body = format!(
            "expected an object with `prompt`, `messages` or `input`, or with `url` and `body`; {what}"
        );
        ApiError::bad_request(body)
    };
    let Some(map) = line.as_object_mut() else {
        return Err(refused("found another value"));
    };
    if let Some(id) = map.shift_remove("custom_id").filter(|id| !id.is_null()) {
        *name = id;
    }
    let (endpoint, mut body) = match map.get("url").and_then(Value::as_str) {
        Some(url) => {
            let endpoint = Endpoint::by_path(url).filter(|endpoint| endpoint.computes());
            let endpoint = endpoint.ok_or_else(|| refused("found another `url`"))?;
            match map.get("method").and_then(Value::as_str) {
                None | Some("POST") => {}
                Some(_) => return Err(refused("found another `method` than POST")),
            }
            let body = map.shift_remove("body");
            (endpoint, body.ok_or_else(|| refused("found no `body`"))?)
        }
        None => {
            let endpoint = match () {
                () if map.contains_key("messages") => Endpoint::Chat,
                () if map.contains_key("prompt") => Endpoint::Completions,
                () if map.contains_key("input") => Endpoint::Embeddings,
                () => return Err(refused("found none of them")),
            };
            if endpoint == Endpoint::Completions && map.get("max_tokens").is_none_or(Value::is_null)
            {
                map.insert("max_tokens".to_owned(), most.into());
            }
            (endpoint, line)
        }
    };
    // a batch has no streams
    if body.get("stream").and_then(Value::as_bool).unwrap_or(false) {
        return Err(ApiError::bad_request("`stream`: a batch has no streams"));
    }
    if let Some(body) = body.as_object_mut() {
        body.shift_remove("stream");
    }
    Ok((endpoint, body))
}

/// Writes the answer of a line; 1 if it is an error.
fn write_line(part: &mut Part, line: Line) -> Result<usize, Failure> {
    let (name, number, begun) = match line {
        Line::Written => return Ok(0),
        Line::Empty => {
            part.write("")?;
            return Ok(0);
        }
        Line::Begun(name, number, begun) => (name, number, begun),
    };
    let answer = match begun {
        Ok(Begun::Body(body, _)) => Ok(body),
        Ok(Begun::Running(running)) => Running::wait(running),
        Err(error) => Err(error),
    };
    let (status, body) = match &answer {
        Ok(body) => (200, body.clone()),
        Err(error) => (error.status, error.body()),
    };
    let line = json!({
        "id": format!("line-{number}"),
        "custom_id": name,
        "response": {"status_code": status, "request_id": format!("line-{number}"), "body": body},
        "error": null,
    });
    part.write(&line.to_string())?;
    Ok(usize::from(answer.is_err()))
}

/// Answers that are not published yet.
struct Part {
    path: PathBuf,
    file: File,
    lines: usize, // of an earlier run
}

/// What was published.
struct Written {
    answers: usize,
    bytes: u64,
    sha256: String,
}

/// Where the answers of an interrupted batch wait.
fn part_of(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".part");
    name.into()
}

impl Part {
    /// Continues what an earlier run of the same batch left, or starts.
    fn open(output: &Path, identity: &str, force: bool) -> Result<Self, Failure> {
        let path = part_of(output);
        let located = |e: std::io::Error| FormatError::io(&path, &e);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(located)?;
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        let mut whole = 0u64; // bytes of whole lines
        let mut count = 0usize; // of them
        let mut is_own = false;
        loop {
            line.clear();
            let read = reader.read_until(b'\n', &mut line).map_err(located)?;
            if read == 0 || line.last() != Some(&b'\n') {
                break;
            }
            if count == 0 {
                is_own = line.strip_suffix(b"\n") == Some(identity.as_bytes());
                if !is_own {
                    break;
                }
            }
            whole += read as u64;
            count += 1;
        }
        // half a line is what an interruption left of the first one
        let is_foreign = !is_own && !identity.as_bytes().starts_with(&line);
        // the first line of every batch begins so
        let is_batch = line.starts_with(b"{\"batch\":1,");
        if is_foreign && !(force && is_batch) {
            let message = "expected answers to the same requests of the same model, found others";
            let hint = match is_batch {
                true => "pass --force to start over, or remove the file",
                false => "move the file: no batch wrote it",
            };
            return Err(FormatError::new(ErrorCode::Exists, message)
                .in_file(&path)
                .hint(hint)
                .into());
        }
        let mut part = Self {
            lines: count.saturating_sub(1),
            path,
            file,
        };
        if !is_own || force {
            part.lines = 0;
            whole = 0;
        }
        let located = |e: std::io::Error| FormatError::io(&part.path, &e);
        part.file.set_len(whole).map_err(located)?;
        part.file.seek(SeekFrom::End(0)).map_err(located)?;
        if whole == 0 {
            part.write(identity)?;
        }
        Ok(part)
    }

    fn write(&mut self, line: &str) -> Result<(), Failure> {
        let bytes = format!("{line}\n");
        let written = self.file.write_all(bytes.as_bytes());
        written.map_err(|e| FormatError::io(&self.path, &e).into())
    }

    /// Moves the answers to their place.
    fn publish(mut self, output: &Path, force: bool) -> Result<Written, Failure> {
        let located = |e: std::io::Error| FormatError::io(&self.path, &e);
        self.file.seek(SeekFrom::Start(0)).map_err(located)?;
        let mut artifact = Artifact::create(output, force)?;
        let mut lines = BufReader::new(&self.file);
        let mut line = Vec::new();
        let mut number = 0;
        let mut answers = 0;
        while lines.read_until(b'\n', &mut line).map_err(located)? > 0 {
            // the first line says whose answers they are; an empty one stands for an empty line
            if number > 0 && line.len() > 1 {
                artifact.write(&line)?;
                answers += 1;
            }
            number += 1;
            line.clear();
        }
        let digest = artifact.finish()?;
        std::fs::remove_file(&self.path).map_err(|e| {
            let message = format!("the output is complete, but this file stays: {e}");
            FormatError::new(ErrorCode::Io, message)
                .in_file(&self.path)
                .hint("remove the file")
                .because(e)
        })?;
        Ok(Written {
            answers,
            bytes: digest.bytes,
            sha256: digest.sha256,
        })
    }
}
