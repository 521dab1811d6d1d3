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
use std::cell::RefCell;
use std::path::{Path, PathBuf};

/// Messages that the arrow keys bring back.
const MOST_HISTORY: usize = 1000;

/// What the last edits of a line were.
#[derive(Default)]
struct Edits {
    /// The line behind the last edit, in characters.
    length: usize,
    /// Whether its end came in one step, as of a pasted text or an earlier message.
    is_pasted: bool,
}

/// Completes commands, and continues lines at whose end a backslash was typed.
#[derive(Default)]
struct Keys {
    edits: RefCell<Edits>,
    /// What stood in front of the cursor each time that Enter continued the message, backslash included.
    continued: RefCell<Vec<String>>,
}

impl Keys {
    /// Notes an edit that left the cursor at a place.
    fn edited(&self, line: &str, at: usize) {
        let mut edits = self.edits.borrow_mut();
        let length = line.chars().count();
        let grown = length.saturating_sub(edits.length);
        // elsewhere than at the end, the end stays what it is
        if at == line.len() && grown > 0 {
            edits.is_pasted = grown > 1;
        }
        edits.length = length;
    }

    /// The message without the backslashes that Enter took for continuations; those of pasted lines stay.
    fn message(&self, line: &str) -> String {
        let mut message = line.to_owned();
        let mut continued = self.continued.take();
        // from the end, so that places stay
        continued.sort_by_key(|begun| std::cmp::Reverse(begun.len()));
        for begun in continued {
            let behind = line.strip_prefix(begun.as_str());
            // unless the beginning was edited afterwards
            if let (Some(at), true) = (
                begun.len().checked_sub(1),
                behind.is_some_and(|rest| rest.starts_with('\n')),
            ) {
                message.remove(at);
            }
        }
        message
    }
}

impl Helper for Keys {}
impl Highlighter for Keys {}
impl Hinter for Keys {
    type Hint = String;

    /// Is asked behind every edit, and hints at nothing.
    fn hint(&self, line: &str, at: usize, _: &Context<'_>) -> Option<String> {
        self.edited(line, at);
        None
    }
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
        let begun = context.input();
        // a pasted text is sent as it is
        if !begun.ends_with('\\') || self.edits.borrow().is_pasted {
            return Ok(ValidationResult::Valid(None));
        }
        let mut continued = self.continued.borrow_mut();
        if !continued.iter().any(|other| other == begun) {
            continued.push(begun.to_owned());
        }
        Ok(ValidationResult::Incomplete)
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
        editor.set_helper(Some(Keys::default()));
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
        if let Some(keys) = self.editor.helper() {
            keys.continued.take();
            keys.edits.take();
        }
        let line = match self.editor.readline("> ") {
            Ok(line) => line,
            Err(ReadlineError::Eof | ReadlineError::Interrupted) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if line.trim().is_empty() {
            return Ok(Some(line));
        }
        let message = self.editor.helper().map(|keys| keys.message(&line));
        let line = message.unwrap_or(line);
        self.editor.add_history_entry(&line).map_err(failed)?;
        if let Some(path) = self.history.take() {
            match self.editor.append_history(&path) {
                Ok(()) => self.history = Some(path),
                // the conversation goes on without the file
                Err(error) => self.complaint = Some(of_history(&path, error)),
            }
        }
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_backslashes_that_continued_a_message_are_taken_away() {
        let keys = |begun: &[&str]| Keys {
            continued: RefCell::new(begun.iter().map(|text| (*text).to_owned()).collect()),
            edits: RefCell::default(),
        };
        for (begun, line, message) in [
            (&["a\\", "a\\\nb\\"][..], "a\\\nb\\\nc", "a\nb\nc"),
            (&[][..], "cmd \\\n  --flag", "cmd \\\n  --flag"),
            (&["p \\\nq\\"][..], "p \\\nq\\\nr", "p \\\nq\nr"),
            // edited after it was continued
            (&["a\\"][..], "b\\\nc", "b\\\nc"),
            (&["é\\"][..], "é\\\nü", "é\nü"),
        ] {
            assert_eq!(keys(begun).message(line), message, "{line:?}");
        }
    }

    #[test]
    fn a_backslash_continues_a_message_if_it_was_typed() {
        let keys = Keys::default();
        let is_pasted = |line: &str, at: usize| {
            keys.edited(line, at);
            keys.edits.borrow().is_pasted
        };
        assert!(!is_pasted("a", 1) && !is_pasted("a\\", 2), "typed");
        keys.edits.take();
        assert!(is_pasted("cmd \\\nx \\", 9), "pasted");
        // the cursor moves, and the middle is edited
        assert!(is_pasted("cmd \\\nx \\", 3));
        assert!(is_pasted("cmdd \\\nx \\", 4));
        // a backslash is typed behind the text
        assert!(!is_pasted("cmdd \\\nx \\\\", 11));
    }
}
