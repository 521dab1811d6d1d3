//! `bitnet-convert`: checkpoint in, packed artifact out.
//!
//! Invariant: nothing lossy happens unasked, nothing is written before everything that can be refused
//! was checked, and an output appears whole or not at all. The input is opened for reading only.

#![forbid(unsafe_code)]

mod args;
mod certificate;
mod convert;
mod inspect;
mod jobs;
mod list;
mod look_ahead;
mod pairs;
mod pipeline;
mod plan;
mod publish;
mod push;
mod readers;
mod scales;
mod side_files;
mod source_hash;
mod state;
mod stored;
mod targets;
mod transcode;
mod unfold;

pub use pairs::{Condition, Pair, Source, fits, pairs};
pub use state::{StateTensor, dense_values, state_names, state_tensor, weights};
pub use targets::{Kind, TARGETS, Target};
pub use transcode::{PackedRows, transcode};

use args::{Args, Command, SourceArgs};
use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_cli::{Console, ExitStatus, Failure, Located, Reads};
use clap::CommandFactory;
use serde_json::Value;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

/// Runs the program; `args` includes its name. Results go to stdout (`out`), messages to stderr (`err`).
///
/// ```
/// # use std::ffi::OsString;
/// use bitnet_cli::ExitStatus;
///
/// let model = "../../tests/fixtures/demo/packed";
/// let (mut out, mut err) = (Vec::new(), Vec::new());
/// let args = ["bitnet-convert", "inspect", model, "--json"].map(OsString::from);
/// let status = bitnet_convert::run(args.into_iter(), &mut out, &mut err);
/// assert_eq!(status, ExitStatus::Done);
/// let report: serde_json::Value = serde_json::from_slice(&out).unwrap();
/// assert_eq!(report["family"], "bitnet_2b_4t");
/// ```
pub fn run(
    args: impl Iterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> ExitStatus {
    let args: Args = match bitnet_cli::parse_with(args, out, err, args::explain) {
        Ok(args) => args,
        Err(status) => return status,
    };
    if let Some(Command::Documents(documents)) = &args.command {
        let written = documents.write(command(), &args.global, out);
        let console = Console::new(&args.global, out, err);
        return console.finish(written.map(|()| ExitStatus::Done));
    }
    let mut console = Console::new(&args.global, out, err);
    let result = match &args.command {
        Some(_)
            if args.convert.conversion.source.is_some()
                || args.convert.conversion.output.is_some() =>
        {
            Err(Failure::usage(
                "a conversion and a subcommand in one command line",
            ))
        }
        Some(Command::Inspect(inspect)) => inspect::run(inspect, &mut console),
        Some(Command::List) => list::run(&mut console),
        Some(Command::Plan(plan)) => jobs::plan(plan, &mut console),
        Some(Command::Job(job)) => jobs::job(job, &args.global, &mut console),
        Some(Command::Finish(finish)) => jobs::finish(finish, &args.global, &mut console),
        Some(Command::Push(push)) => push::run(push, &mut console),
        _ => convert::run(&args, &mut console),
    };
    console.finish(result.map(|()| ExitStatus::Done))
}

/// Whether a text is a plan (`PLAN.json`) that this version reads; errors name `path`.
///
/// # Errors
/// `malformed`.
pub fn check_plan(path: &Path, text: &[u8]) -> Result<(), Failure> {
    jobs::check_plan(path, text)
}

/// The definition of the command line, for tests of its help and documentation.
pub fn command() -> clap::Command {
    bitnet_cli::named(Args::command())
}

/// Makes paths of the models that a command line names: the source, and the copy that its layout is found with. Both are
/// good while the first of the results lives.
fn locate(
    source: &Path,
    how: &SourceArgs,
    reads: Reads,
    console: &mut Console<'_>,
) -> Result<(Vec<Located>, SourceArgs), Failure> {
    let mut how = how.clone();
    let mut held = vec![bitnet_cli::locate(source, reads, console)?];
    let copies = bitnet_cli::locate_all(&mut how.against, reads, console)?;
    held.extend(copies);
    Ok((held, how))
}

/// Opens a source, with a look at the data where its type ids leave several layouts.
fn open(path: &Path, how: &SourceArgs) -> Result<Checkpoint, Failure> {
    let options = OpenOptions {
        layout: how.layout.clone(),
        ternary_trained: how.ternary_trained,
        ..OpenOptions::default()
    };
    if bitnet_formats::origin_of(path).is_some_and(|origin| origin.headers_only) {
        return Ok(Checkpoint::open(path, &options)?);
    }
    let against = match &how.against {
        Some(copy) => Some(Checkpoint::open(copy, &options)?),
        None => None,
    };
    Ok(Checkpoint::open_with_evidence(
        path,
        &options,
        against.as_ref(),
    )?)
}

/// Keys of the configuration that nothing here reads, for reports.
fn unknown_keys_json(checkpoint: &Checkpoint) -> Value {
    let keys = checkpoint.unknown_keys.iter();
    keys.map(|key| Value::from(key.key.as_str())).collect()
}

/// The parts of a larger model whose tensors are skipped, with the number of tensors of each.
fn skipped_parts(checkpoint: &Checkpoint) -> Value {
    let mut parts = serde_json::Map::new();
    for name in &checkpoint.skipped {
        let inner = name.strip_prefix("model.").unwrap_or(name);
        let part = inner.split('.').next().unwrap_or(inner);
        let count = parts.get(part).and_then(Value::as_u64).unwrap_or(0);
        parts.insert(part.to_owned(), (count + 1).into());
    }
    Value::Object(parts)
}

/// Says what was not read of the source: unknown keys, an index without shards, parts beside the language model.
fn warn_of_the_source(checkpoint: &Checkpoint, console: &mut Console<'_>) -> Result<(), Failure> {
    if !checkpoint.skipped.is_empty() {
        console.warn(format_args!(
            "only the language model is read; {} tensors of other parts are skipped: {}",
            checkpoint.skipped.len(),
            skipped_parts(checkpoint)
        ))?;
    }
    /// Keys that are named one by one.
    const NAMED: usize = 8;
    for key in checkpoint.unknown_keys.iter().take(NAMED) {
        console.warn(format_args!(
            "the key `{}` = {} is unknown and ignored; make sure that the network does not depend on it",
            key.key.escape_debug(),
            key.value.escape_debug()
        ))?;
    }
    let more = checkpoint.unknown_keys.len().saturating_sub(NAMED);
    if more > 0 {
        console.warn(format_args!(
            "{more} more keys are unknown and ignored; --json lists them"
        ))?;
    }
    if let Some(index) = &checkpoint.stale_index {
        console.warn(format_args!(
            "{} is ignored: none of its shards exist, and a model in one file lies beside it",
            index.display()
        ))?;
    }
    Ok(())
}
