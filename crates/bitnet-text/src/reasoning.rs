//! The reasoning of a model and its answer: text between `<think>` and `</think>`, and what follows.
//!
//! Invariant: the passages follow from the whole text alone, however the pieces cut it.

const THINK: &str = "<think>";
const THOUGHT: &str = "</think>";

/// The tags, which some tokenizers have as special tokens.
pub const REASONING_TAGS: [&str; 2] = [THINK, THOUGHT];

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Passage {
    /// What the model thinks, without the tags.
    Reasoning(String),
    /// What it answers.
    Answer(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing came but white space.
    Start,
    Reasoning,
    /// Line breaks behind the reasoning are dropped.
    Thought,
    Answer,
}

/// A text that is cut into reasoning and answer while it comes.
#[derive(Debug, Clone)]
pub struct ReasoningSplitter {
    state: State,
    held: String,
    begun: bool, // whether reasoning has text
}

impl ReasoningSplitter {
    /// `reasoning`: whether the model writes `<think>`, and whether the prompt has done so already.
    pub fn new(reasoning: Option<bool>) -> Self {
        Self {
            state: match reasoning {
                Some(true) => State::Reasoning,
                Some(false) => State::Start,
                None => State::Answer,
            },
            held: String::new(),
            begun: false,
        }
    }

    /// What is certain with `piece` behind it, at most one passage of each kind.
    pub fn push(&mut self, piece: &str) -> Vec<Passage> {
        self.held.push_str(piece);
        let mut passages = Vec::new();
        while self.advance(&mut passages) {}
        passages
    }

    /// What is left.
    pub fn finish(&mut self) -> Option<Passage> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            _ if held.is_empty() => None,
            State::Thought => None,
            State::Reasoning => Some(Passage::Reasoning(held)),
            State::Start | State::Answer => Some(Passage::Answer(held)),
        }
    }

    /// One transition; whether there may be another one.
    fn advance(&mut self, passages: &mut Vec<Passage>) -> bool {
        match self.state {
            State::Start => {
                let text = self.held.trim_start();
                if let Some(rest) = text.strip_prefix(THINK) {
                    self.held = rest.to_owned();
                    self.state = State::Reasoning;
                    return true;
                }
                if THINK.starts_with(text) {
                    return false;
                }
                self.state = State::Answer;
                true
            }
            State::Reasoning => {
                if !self.begun {
                    self.held = self.held.trim_start_matches('\n').to_owned();
                    self.begun = !self.held.is_empty();
                }
                let (text, ended) = text_before(&mut self.held, THOUGHT);
                if !text.is_empty() {
                    passages.push(Passage::Reasoning(text));
                }
                if ended {
                    self.state = State::Thought;
                }
                ended
            }
            State::Thought => {
                self.held = self.held.trim_start_matches('\n').to_owned();
                if self.held.is_empty() {
                    return false;
                }
                self.state = State::Answer;
                true
            }
            State::Answer => {
                if !self.held.is_empty() {
                    passages.push(Passage::Answer(std::mem::take(&mut self.held)));
                }
                false
            }
        }
    }
}

/// Takes the text in front of a tag out of `held`, without white space at its end, and the tag, and whether the tag is
/// there; without the tag, the text that cannot belong to one.
pub fn text_before(held: &mut String, tag: &str) -> (String, bool) {
    if let Some((before, behind)) = held.split_once(tag) {
        let (before, behind) = (before.trim_end().to_owned(), behind.to_owned());
        *held = behind;
        return (before, true);
    }
    let begins = |n: &usize| tag.get(..*n).is_some_and(|part| held.ends_with(part));
    let tail = (1..tag.len()).rev().find(begins).unwrap_or(0);
    let end = held.len().saturating_sub(tail);
    let certain = held.get(..end).unwrap_or_default().trim_end().len();
    let rest = held.split_off(certain);
    (std::mem::replace(held, rest), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passages_are_the_same_however_the_text_is_cut() {
        for (text, reasoning, thought, answer) in [
            ("plain <text>", Some(false), "", "plain <text>"),
            (
                "<think>\na < b\n</think>\n\nyes",
                Some(false),
                "a < b",
                "yes",
            ),
            ("so</think>no", Some(true), "so", "no"),
            ("never ends", Some(true), "never ends", ""),
            ("<think>x</think>", None, "", "<think>x</think>"),
            ("<thi", Some(false), "", "<thi"),
            ("", Some(true), "", ""),
        ] {
            for step in [1, 2, 3, 5, 1000] {
                let characters: Vec<char> = text.chars().collect();
                let mut splitter = ReasoningSplitter::new(reasoning);
                let (mut found, mut said) = (String::new(), String::new());
                let mut take = |passage| match passage {
                    Passage::Reasoning(text) => found.push_str(&text),
                    Passage::Answer(text) => said.push_str(&text),
                };
                for piece in characters.chunks(step) {
                    let piece: String = piece.iter().collect();
                    splitter.push(&piece).into_iter().for_each(&mut take);
                }
                splitter.finish().into_iter().for_each(&mut take);
                assert_eq!(
                    (found.as_str(), said.as_str()),
                    (thought, answer),
                    "{text:?} by {step}"
                );
            }
        }
    }
}
