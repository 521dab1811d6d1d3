//! Program: prompt in, text out.
//!
//! Invariant: what is computed depends on the model and the flags alone, never on the kernel or
//! the number of threads; both only decide how long it takes.

#![forbid(unsafe_code)]

mod args;
mod bench;
mod chat;
mod embed;
mod generate;
mod kernels;
mod logits;
mod open;
mod perplexity;
mod prompts;

use args::{Args, Command};
use bitnet_cli::{Console, ExitStatus};
use std::ffi::OsString;
use std::io::Write;

/// Runs the program; `args` includes its name. stdout (`out`) is data, stderr (`err`) is talk.
pub fn run(
    args: impl Iterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> ExitStatus {
    let args: Args = match bitnet_cli::parse_with(args, out, err, args::explain) {
        Ok(args) => args,
        Err(status) => return status,
    };
    let mut console = Console::new(&args.global, out, err);
    let global = &args.global;
    let result = match &args.command {
        Some(Command::Logits(a)) => logits::run(a, global, &mut console),
        Some(Command::Embed(a)) => embed::run(a, global, &mut console),
        Some(Command::Perplexity(a)) => perplexity::run(a, global, &mut console),
        Some(Command::Bench(a)) => bench::run(a, global, &mut console),
        Some(Command::Kernels) => kernels::run(&mut console),
        None => generate::run(&args.generate, global, &mut console),
    };
    console.finish(result)
}
