//! An answer on its way to the terminal or to a file.
//!
//! Invariant: away from a terminal, what is written is what the model wrote. On a terminal no control character of a
//! model reaches it, and thinking can be told from the answer.

use crate::args::ShowThoughts;
use bitnet_cli::{Console, Failure};
use bitnet_text::{Passage, ReasoningSplitter};
use std::time::Instant;

/// Shows the pieces of one answer.
pub struct AnswerView {
    splitter: Option<ReasoningSplitter>,
    thoughts: ShowThoughts,
    cleans: bool,
    thinking_since: Option<Instant>,
}

impl AnswerView {
    /// `reasoning`: whether the model thinks between tags, and whether the prompt has opened them. `thoughts` is what a
    /// person asked for; without that, thinking is shown, and between its tags away from a terminal.
    pub fn new(
        reasoning: Option<bool>,
        thoughts: Option<ShowThoughts>,
        console: &Console<'_>,
    ) -> Self {
        let terminal = console.writes_to_terminal() && !console.is_json();
        let splits = match thoughts {
            Some(ShowThoughts::Fold | ShowThoughts::Hide) => true,
            Some(ShowThoughts::Show) | None => terminal,
        };
        let splits = splits && reasoning.is_some();
        Self {
            splitter: splits.then(|| ReasoningSplitter::new(reasoning)),
            thoughts: thoughts.unwrap_or(ShowThoughts::Show),
            cleans: terminal,
            thinking_since: None,
        }
    }

    /// Whether thinking is told from the answer.
    pub fn splits(&self) -> bool {
        self.splitter.is_some()
    }

    /// A piece of the text.
    pub fn push(&mut self, piece: &str, console: &mut Console<'_>) -> Result<(), Failure> {
        let Some(splitter) = &mut self.splitter else {
            return self.write(piece, console);
        };
        for passage in splitter.push(piece) {
            self.show(passage, console)?;
        }
        Ok(())
    }

    /// The end of the text, without a line break.
    pub fn finish(&mut self, console: &mut Console<'_>) -> Result<(), Failure> {
        let last = self.splitter.as_mut().and_then(ReasoningSplitter::finish);
        if let Some(passage) = last {
            self.show(passage, console)?;
        }
        self.end_thinking("", console)
    }

    fn show(&mut self, passage: Passage, console: &mut Console<'_>) -> Result<(), Failure> {
        match passage {
            Passage::Reasoning(text) => {
                let begins = self.thinking_since.is_none();
                self.thinking_since.get_or_insert_with(Instant::now);
                match (self.thoughts, begins) {
                    (ShowThoughts::Hide, _) | (ShowThoughts::Fold, false) => Ok(()),
                    (ShowThoughts::Fold, true) => console.text(console.dim("[thinking")),
                    (ShowThoughts::Show, true) if !console.is_colored() => {
                        console.text("[thinking]\n")?;
                        self.write(&text, console)
                    }
                    (ShowThoughts::Show, _) => {
                        let text = self.clean(&text);
                        console.text(console.dim(&text))
                    }
                }
            }
            Passage::Answer(text) => {
                self.end_thinking("\n", console)?;
                self.write(&text, console)
            }
        }
    }

    /// Sets the answer apart from the thinking in front of it.
    fn end_thinking(&mut self, behind: &str, console: &mut Console<'_>) -> Result<(), Failure> {
        let Some(since) = self.thinking_since.take() else {
            return Ok(());
        };
        match self.thoughts {
            ShowThoughts::Hide => Ok(()),
            ShowThoughts::Fold => {
                let took = format!(" took {:.1} s]", since.elapsed().as_secs_f64());
                let text = console.dim(&took);
                console.text(format_args!("{text}{behind}"))
            }
            ShowThoughts::Show if behind.is_empty() => Ok(()),
            ShowThoughts::Show if console.is_colored() => console.text("\n\n"),
            ShowThoughts::Show => console.text("\n[answer]\n"),
        }
    }

    fn write(&self, text: &str, console: &mut Console<'_>) -> Result<(), Failure> {
        match text.is_empty() {
            true => Ok(()),
            false => console.text(self.clean(text)),
        }
    }

    /// Without control characters where a terminal would obey them.
    fn clean(&self, text: &str) -> String {
        if !self.cleans {
            return text.to_owned();
        }
        let shown = |c: char| match c.is_control() && !matches!(c, '\n' | '\t') {
            true => char::REPLACEMENT_CHARACTER,
            false => c,
        };
        text.chars().map(shown).collect()
    }
}
