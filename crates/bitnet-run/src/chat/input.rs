//! Where the messages of a chat come from: a prompt with line editing, or the lines of standard input.
//!
//! Invariant: on a terminal the prompt is the program's only line; without one nothing but answers is written.

use super::command::COMMANDS;
use crate::prompts;
use bitnet_cli::{ErrorCode, Failure, FormatError};
use rustyline::completion::Completer;
use rustyline::error::ReadlineError;
use rustyline::highlight::Highlighter;
use rustyline::hint::Hinter;
use rustyline::history::FileHistory;
use rustyline::validate::{ValidationContext, ValidationResult, Validator};
use rustyline::{Config, Context, Editor, Helper};
use std::path::{Path, PathBuf};

/// Messages that the arrow keys bring back.
const MOST_HISTORY: usize = 1000;

/// Completes commands, and continues lines that end with a backslash.
struct Keys;

impl Helper for Keys {}
impl Highlighter for Keys {}
impl Hinter for Keys {
    type Hint = String;
}

impl Completer for Keys {
    type Candidate = String;

    fn complete(
        &self,
        line: &str,
        at: usize,
        _: &Context<'_>,
    ) -> rustyline::Result<(usize, Vec<String>)> {
        let begun = line.get(..at).unwrap_or_default();
        if !begun.starts_with('/') {
            return Ok((at, Vec::new()));
        }
        let names = COMMANDS.iter().map(|(name, ..)| *name);
        let meant = names.filter(|name| name.starts_with(begun));
        Ok((0, meant.map(str::to_owned).collect()))
    }
}

impl Validator for Keys {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match context.input().ends_with('\\') {
            true => ValidationResult::Incomplete,
            false => ValidationResult::Valid(None),
        })
    }
}

/// Where messages come from.
pub enum Input {
    /// A person at a terminal.
    Prompt(Box<Prompt>),
    /// A program: each line is a message.
    Lines,
}

/// A prompt with line editing and history.
pub struct Prompt {
    editor: Editor<Keys, FileHistory>,
    history: Option<PathBuf>,
    complaint: Option<Failure>, // why the history is not written any more
}

fn failed(error: ReadlineError) -> Failure {
    let message = format!("cannot read from the terminal: {error}");
    Failure::new(ErrorCode::Io, message).because(error)
}

fn of_history(path: &Path, error: ReadlineError) -> Failure {
    let failure = match &error {
        ReadlineError::Io(e) => Failure::from(FormatError::io(path, e)),
        other => Failure::new(ErrorCode::Malformed, format!("{}: {other}", path.display())),
    };
    failure.because(error)
}

impl Input {
    /// A prompt that remembers its lines in a file, or until the program ends.
    pub fn prompt(history: Option<&Path>) -> Result<Self, Failure> {
        let config = Config::builder()
            .max_history_size(MOST_HISTORY)
            .map_err(failed)?
            .bracketed_paste(true)
            .build();
        let mut editor = Editor::with_config(config).map_err(failed)?;
        editor.set_helper(Some(Keys));
        if let Some(path) = history {
            match path.exists() {
                true => editor.load_history(path),
                // a place that cannot be written is told now
                false => editor.save_history(path),
            }
            .map_err(|e| of_history(path, e))?;
        }
        let history = history.map(Path::to_owned);
        Ok(Self::Prompt(Box::new(Prompt {
            editor,
            history,
            complaint: None,
        })))
    }

    /// The next message; `None` when there are no more.
    pub fn next(&mut self) -> Result<Option<String>, Failure> {
        match self {
            Self::Prompt(prompt) => prompt.next(),
            Self::Lines => Ok(prompts::line(&mut std::io::stdin().lock())?),
        }
    }

    /// What went wrong since the last question, though the message came.
    pub fn complaint(&mut self) -> Option<Failure> {
        match self {
            Self::Prompt(prompt) => prompt.complaint.take(),
            Self::Lines => None,
        }
    }
}

impl Prompt {
    fn next(&mut self) -> Result<Option<String>, Failure> {
        let line = match self.editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if line.trim().is_empty() {
            return Ok(Some(line));
        }
        self.editor.add_history_entry(&line).map_err(failed)?;
        if let Some(path) = self.history.take() {
            match self.editor.append_history(&path) {
                Ok(()) => self.history = Some(path),
                // the conversation goes on without the file
                Err(error) => self.complaint = Some(of_history(&path, error)),
            }
        }
        Ok(Some(line.replace("\\\n", "\n")))
    }
}
