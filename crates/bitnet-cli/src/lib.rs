//! What the programs share: exit status, error text, progress, report.
//!
//! Invariant: a program is a library function `run(args, out, err) -> ExitStatus` that prints
//! nothing anywhere else. Results go to stdout (`out`), messages to stderr (`err`). `--json` prints exactly one
//! JSON object on stdout, also on failure. Only [`main`] handles signals, terminals and the exit code of the
//! process, so a test that calls `run` sees all output.
//!
//! A program looks like this:
//!
//! ```
//! use bitnet_cli::{Console, ExitStatus, Failure, GlobalArgs};
//! use std::{ffi::OsString, io::Write};
//!
//! #[derive(clap::Parser)]
//! #[command(name = "bitnet-example", version, about = "Shows the shape of a program")]
//! struct Args {
//!     /// What to open, for example ./model.gguf
//!     model: std::path::PathBuf,
//!     #[command(flatten)]
//!     global: GlobalArgs,
//! }
//!
//! pub fn run(args: impl Iterator<Item = OsString>, out: &mut dyn Write, err: &mut dyn Write) -> ExitStatus {
//!     let args: Args = match bitnet_cli::parse(args, out, err) {
//!         Ok(args) => args,
//!         Err(status) => return status,
//!     };
//!     let mut console = Console::new(&args.global, out, err);
//!     let result = work(&args, &mut console);
//!     console.finish(result)
//! }
//!
//! fn work(args: &Args, console: &mut Console<'_>) -> Result<ExitStatus, Failure> {
//!     console.note("opening")?; // stderr, silent under --quiet and --json
//!     console.line(args.model.display())?; // stdout, silent under --json
//!     console.json(&serde_json::json!({"status": "done"}))?; // stdout, only under --json
//!     Ok(ExitStatus::Done)
//! }
//!
//! // main.rs: fn main() -> std::process::ExitCode { bitnet_cli::main(bitnet_example::run) }
//! let (mut out, mut err) = (Vec::new(), Vec::new());
//! let args = ["bitnet-example", "model.gguf"].map(OsString::from);
//! assert_eq!(run(args.into_iter(), &mut out, &mut err), ExitStatus::Done);
//! assert_eq!(out, b"model.gguf\n");
//! assert_eq!(err, b"opening\n");
//! ```

#![forbid(unsafe_code)]

mod args;
mod console;
mod exit_status;
mod failure;
mod figures;
mod generate;
mod global;
mod located;
mod main_entry;
mod observer;
mod process;
mod progress;
mod resources;
mod size;
mod suggest;
mod table;
mod terminal;
mod values;
mod version;
mod words;

pub use args::{parse, parse_with};
pub use console::Console;
pub use exit_status::ExitStatus;
pub use failure::Failure;
pub use figures::{fixed, percent, scientific};
pub use generate::{Documents, Shell, named};
pub use global::{ColorWhen, GlobalArgs, threads};
pub use located::{Shown, locate, locate_all, publish, push};
pub use main_entry::{main, main_of};
pub use observer::{Observer, Whole, observed};
pub use process::{StopRequest, interrupted, on_interrupt};
pub use progress::{Bar, Progress};
pub use resources::{
    CpuTimes, ResourceMonitor, available_bytes, cpu_times, peak_rss_bytes, resident_bytes,
};
pub use size::{human_bytes, human_duration, parse_size};
pub use suggest::{did_you_mean, nearest};
pub use table::Table;
pub use values::{layout, number, whole, whole_from};
pub use version::{long_version, set_commit};
pub use words::{command_first, is_flag, is_told_by_clap, words_without_command};

pub use bitnet_formats::{ErrorCode, FormatError, shell_word};
pub use bitnet_remote::{Located, Location, Reads};
