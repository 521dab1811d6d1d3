//! Program: prompt in, text out.
//!
//! Invariant: what is computed depends on the model and the flags alone, never on the kernel or
//! the number of threads; both only decide how long it takes.

#![forbid(unsafe_code)]

mod args;
mod batch;
mod bench;
mod chat;
mod demo;
mod embed;
mod form;
mod generate;
mod kernels;
pub mod library;
mod logits;
mod open;
mod perplexity;
mod prompts;
mod sampling;
mod serve;
mod speculate;

use args::{Args, Command};
use bitnet_cli::{Console, ExitStatus, Reads};
use std::ffi::OsString;
use std::io::Write;

/// Runs the program; `args` includes its name. Results go to stdout (`out`), messages to stderr (`err`).
///
/// ```
/// # use std::ffi::OsString;
/// use bitnet_cli::ExitStatus;
///
/// let model = "../../tests/fixtures/demo/packed";
/// let (mut out, mut err) = (Vec::new(), Vec::new());
/// let args = ["bitnet-run", model, "--chat", "-p", "Add 34 and 28.", "--quiet"].map(OsString::from);
/// let status = bitnet_run::run(args.into_iter(), &mut out, &mut err);
/// assert_eq!(status, ExitStatus::Done);
/// assert_eq!(String::from_utf8(out).unwrap().trim(), "4+8=12, 1+3+2=6, so 62");
/// ```
pub fn run(
    args: impl Iterator<Item = OsString>,
    out: &mut dyn Write,
    err: &mut dyn Write,
) -> ExitStatus {
    let words = args::in_order(args).into_iter();
    let args: Args = match bitnet_cli::parse_with(words, out, err, args::explain) {
        Ok(args) => args,
        Err(status) => return status,
    };
    if let Some(Command::Documents(documents)) = &args.command {
        let written = documents.write(command(), &args.global, out);
        let console = Console::new(&args.global, out, err);
        return console.finish(written.map(|()| ExitStatus::Done));
    }
    let mut console = Console::new(&args.global, out, err);
    if args.command.is_none()
        && let Err(failure) = args.generate.check()
    {
        return console.finish(Err(failure));
    }
    let mut args = args;
    // held until the program ends
    let _held = match bitnet_cli::locate_all(args.models(), Reads::Whole, &mut console) {
        Ok(held) => held,
        Err(failure) => return console.finish(Err(failure)),
    };
    let global = &args.global;
    let result = match &args.command {
        Some(Command::Demo(a)) => demo::run(a, global, &mut console),
        Some(Command::Logits(a)) => logits::run(a, global, &mut console),
        Some(Command::Embed(a)) => embed::run(a, global, &mut console),
        Some(Command::Perplexity(a)) => perplexity::run(a, global, &mut console),
        Some(Command::Bench(a)) => bench::run(a, global, &mut console),
        Some(Command::Serve(a)) => serve::run(a, global, &mut console),
        Some(Command::Kernels) => kernels::run(&mut console),
        Some(Command::Documents(_)) => Ok(ExitStatus::Done),
        None if args.generate.batch.is_some() => batch::run(&args.generate, global, &mut console),
        None => generate::run(&args.generate, global, &mut console),
    };
    console.finish(result)
}

/// The definition of the command line, for tests of its help and documentation.
pub fn command() -> clap::Command {
    bitnet_cli::named(<Args as clap::CommandFactory>::command())
}
