//! Shell completions and man pages, from the same definitions as `--help`.
//!
//! Invariant: nothing here is written by hand, so it cannot disagree with the program.

use crate::failure::Failure;
use clap::Command;
use std::io::Write;

pub use clap_complete::Shell;

/// Writes the completion script of `command` for `shell`.
///
/// # Errors
/// A closed pipe or a full disk.
pub fn completions(mut command: Command, shell: Shell, out: &mut dyn Write) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    // clap_complete panics when its writer fails, so it writes to memory
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    Ok(out.write_all(&script)?)
}

/// Writes the man page of `command` (roff), subcommands included.
///
/// # Errors
/// A closed pipe or a full disk.
pub fn man_page(command: Command, out: &mut dyn Write) -> Result<(), Failure> {
    Ok(clap_mangen::Man::new(command).render(out)?)
}
