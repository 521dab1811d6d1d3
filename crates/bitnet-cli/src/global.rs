//! Flags that every program has.
//!
//! Invariant: they mean the same in every program.

use clap::{Args, ValueEnum};
use std::num::NonZeroUsize;

/// More threads than this is a typing error.
const MOST_THREADS: usize = 1024;

/// When output is colored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ColorWhen {
    /// On a terminal, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// Flags that every program has; flatten them into the program's own.
#[derive(Debug, Clone, Default, Args)]
pub struct GlobalArgs {
    /// Use N worker threads [default: all available cores], for example --threads 2
    ///
    /// The number of threads never changes a result.
    #[arg(long, short = 'j', global = true, value_name = "N", value_parser = threads, allow_hyphen_values = true, help_heading = "General")]
    pub threads: Option<NonZeroUsize>,

    /// Print only errors and results: no notes, warnings or progress
    ///
    /// A command that writes a file, such as a conversion, prints nothing then. A verdict, a table, generated text and the
    /// object of --json are results.
    #[arg(long, short = 'q', global = true, help_heading = "General")]
    pub quiet: bool,

    /// Color the output: auto, always or never; NO_COLOR is honored
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        hide_possible_values = true,
        help_heading = "General"
    )]
    pub color: ColorWhen,

    /// Print exactly one JSON object on stdout, also on failure
    ///
    /// formats/report.md lists the keys. Progress and notes are not printed.
    #[arg(long, global = true, help_heading = "General")]
    pub json: bool,
}

impl GlobalArgs {
    /// `--threads`, or the cores this process may use.
    pub fn thread_count(&self) -> usize {
        let available = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.threads.map_or_else(available, NonZeroUsize::get)
    }
}

/// A number of threads, for clap's `value_parser`.
///
/// # Errors
/// One line saying what was expected.
pub fn threads(text: &str) -> Result<NonZeroUsize, String> {
    let expected = || format!("expected a number from 1 to {MOST_THREADS}");
    let n: NonZeroUsize = text.parse().map_err(|_| expected())?;
    if n.get() > MOST_THREADS {
        Err(expected())
    } else {
        Ok(n)
    }
}
