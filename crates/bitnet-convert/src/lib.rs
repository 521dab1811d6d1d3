//! `bitnet-convert`: checkpoint in, packed artifact out.
//!
//! Invariant: nothing lossy happens unasked, nothing is written before everything that can be refused
//! was checked, and an output appears whole or not at all. The input is opened for reading only.

#![forbid(unsafe_code)]

mod args;
mod certificate;
mod convert;
mod inspect;
mod list;
mod look_ahead;
mod pairs;
mod pipeline;
mod plan;
mod readers;
mod scales;
mod side_files;
mod source_hash;
mod targets;
mod transcode;

pub use pairs::{Condition, Pair, Source, fits, pairs};
pub use targets::{Kind, TARGETS, Target};
pub use transcode::{PackedRows, transcode};

use args::{Args, Command, SourceArgs};
use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_cli::{Console, ExitStatus, Failure};
use clap::CommandFactory;
use serde_json::Value;
use std::ffi::OsString;
use std::io::Write;
use std::path::Path;

/// The program; see the crate.
pub fn run(
    args: impl Iterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> ExitStatus {
    let args: Args = match bitnet_cli::parse_with(args, out, err, args::explain) {
        Ok(args) => args,
        Err(status) => return status,
    };
    // these two write to `out` themselves
    let script = match &args.command {
        Some(Command::Completions { shell }) => {
            Some(bitnet_cli::completions(Args::command(), *shell, out))
        }
        Some(Command::Man) => Some(bitnet_cli::man_page(Args::command(), out)),
        _ => None,
    };
    let mut console = Console::new(&args.global, out, err);
    let result = match (&args.command, script) {
        (Some(_), _) if args.convert.source.is_some() || args.convert.output.is_some() => Err(
            Failure::usage("a conversion and a subcommand in one command line"),
        ),
        (_, Some(written)) => written,
        (Some(Command::Inspect(inspect)), _) => inspect::run(inspect, &mut console),
        (Some(Command::List), _) => list::run(&mut console),
        _ => convert::run(&args, &mut console),
    };
    console.finish(result.map(|()| ExitStatus::Done))
}

/// The definition of the command line, for tests of its help and documentation.
pub fn command() -> clap::Command {
    Args::command()
}

/// Opens a source, with a look at the data where its type ids leave several layouts.
fn open(path: &Path, how: &SourceArgs) -> Result<Checkpoint, Failure> {
    let options = OpenOptions {
        layout: how.layout.clone(),
        ternary_trained: how.ternary_trained,
        ..OpenOptions::default()
    };
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

/// Says what was not read of the source: unknown keys, an index without shards.
fn warn_of_the_source(checkpoint: &Checkpoint, console: &mut Console<'_>) -> Result<(), Failure> {
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
