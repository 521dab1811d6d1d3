//! Shell completions and man pages, from the same definitions as `--help`.
//!
//! Invariant: nothing here is written by hand, so it cannot disagree with the program.

use crate::failure::Failure;
use crate::global::GlobalArgs;
use crate::suggest::did_you_mean;
use clap::{Command, Subcommand};
use std::io::Write;

pub use clap_complete::Shell;

/// Subcommands that every program has.
#[derive(Debug, Clone, Subcommand)]
pub enum Documents {
    /// Print a completion script for a shell
    ///
    /// For bash, write the script to ~/.local/share/bash-completion/completions/PROGRAM. For zsh, write the script to
    /// _PROGRAM in a directory of $fpath. For fish, write the script to ~/.config/fish/completions/PROGRAM.fish.
    #[command(
        after_help = "Example:\n  PROGRAM completions bash > ~/.local/share/bash-completion/completions/PROGRAM"
    )]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page of the program, or of one of its commands
    #[command(after_help = "Example:\n  PROGRAM man > PROGRAM.1")]
    Man {
        /// The command [default: the program itself]
        #[arg(value_name = "COMMAND")]
        command: Option<String>,
    },
}

impl Documents {
    /// Writes the document of a program to stdout.
    ///
    /// # Errors
    /// `--json`, a command that does not exist, a closed pipe or a full disk.
    pub fn write(
        &self,
        program: Command,
        global: &GlobalArgs,
        out: &mut dyn Write,
    ) -> Result<(), Failure> {
        if global.json {
            let failure = Failure::usage("this command prints a text, not JSON");
            return Err(failure.hint("leave out --json"));
        }
        match self {
            Self::Completions { shell } => completions(program, *shell, out),
            Self::Man { command: None } => man_page(program, out),
            Self::Man {
                command: Some(name),
            } => {
                let mut program = program;
                // gives commands the name of their page and the flags of all commands
                program.build();
                if let Some(sub) = program.find_subcommand(name) {
                    return man_page(sub.clone(), out);
                }
                let names = program.get_subcommands().map(Command::get_name);
                let failure = Failure::usage(format!("unknown command `{name}`"));
                let meant = did_you_mean(name, names);
                let listed = format!("run `{} --help` to list the commands", program.get_name());
                Err(meant.into_iter().fold(failure, Failure::hint).hint(listed))
            }
        }
    }
}

/// The definition of a program, with its own name in place of `PROGRAM` in the texts of [`Documents`].
#[must_use]
pub fn named(command: Command) -> Command {
    let program = command.get_name().to_owned();
    let text = |styled: Option<&clap::builder::StyledStr>| {
        styled.map(|styled| styled.to_string().replace("PROGRAM", &program))
    };
    ["completions", "man"]
        .iter()
        .fold(command, |command, name| {
            if command.find_subcommand(name).is_none() {
                return command;
            }
            command.mut_subcommand(name, |sub| {
                let (about, help) = (text(sub.get_long_about()), text(sub.get_after_help()));
                let sub = sub.after_help(help.unwrap_or_default());
                match about {
                    Some(about) => sub.long_about(about),
                    None => sub,
                }
            })
        })
}

fn completions(mut command: Command, shell: Shell, out: &mut dyn Write) -> Result<(), Failure> {
    let name = command.get_name().to_owned();
    // clap_complete panics when its writer fails, so it writes to memory
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, name, &mut script);
    Ok(out.write_all(&script)?)
}

/// A page that is the same on every machine: without the kernel of this one.
fn man_page(command: Command, out: &mut dyn Write) -> Result<(), Failure> {
    let command = command
        .version(env!("CARGO_PKG_VERSION"))
        .long_version(None::<&str>);
    Ok(clap_mangen::Man::new(command).render(out)?)
}
