//! A sequence with a workspace of its own: the plain way to run one text.
//!
//! Invariant: a pass is a step of one slice.

use crate::kv_cache::KvCache;
use crate::model::Model;
use crate::profile::Profile;
use crate::sequence::Sequence;
use crate::step::{Slice, StepLogits, Want};
use crate::workspace::Workspace;
use bitnet_formats::FormatError;

/// A text in progress, and the scratch to continue it.
#[derive(Debug)]
pub struct Session {
    sequence: Sequence,
    workspace: Workspace,
}

/// Which logits a forward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Of every token, `(tokens, vocab)`.
    All,
    /// Of the last token, `(vocab,)`.
    Last,
    /// None; the tokens are only appended.
    None,
}

impl Session {
    /// Tokens so far.
    pub fn position(&self) -> usize {
        self.sequence.position()
    }

    /// Most tokens it can hold.
    pub fn context(&self) -> usize {
        self.sequence.context()
    }

    /// Forgets all tokens from `position` on, if there are any.
    pub fn truncate(&mut self, position: usize) {
        self.sequence.truncate(position);
    }

    /// Measures where the time of the following passes goes.
    pub fn begin_profile(&mut self) {
        self.workspace.begin_profile();
    }

    /// Where the time of the passes since [`begin_profile`](Self::begin_profile) went; stops measuring.
    pub fn end_profile(&mut self) -> Profile {
        self.workspace.end_profile()
    }

    /// Keys and values.
    pub fn cache(&self) -> &KvCache {
        self.sequence.cache()
    }

    /// The text.
    pub fn sequence(&self) -> &Sequence {
        &self.sequence
    }
}

impl Model {
    /// An empty session of at most `context` tokens. Memory grows with the tokens used.
    ///
    /// # Errors
    /// `context-exceeded` for more than the model was made for, and for 0.
    pub fn session(&self, context: usize) -> Result<Session, FormatError> {
        Ok(Session {
            sequence: self.sequence(context)?,
            workspace: self.workspace(),
        })
    }

    /// Appends `tokens` to the session and returns the logits asked for: `(tokens, vocab)`,
    /// `(vocab,)` or nothing.
    ///
    /// # Errors
    /// As [`step`](Self::step). The session is then as it was.
    pub fn forward(
        &self,
        session: &mut Session,
        tokens: &[u32],
        want: Logits,
    ) -> Result<Vec<f32>, FormatError> {
        let want = match want {
            Logits::All => Want::All,
            Logits::Last => Want::Last,
            Logits::None => Want::Nothing,
        };
        self.pass(session, tokens, want).map(StepLogits::into_rows)
    }

    /// Appends `tokens` to the session and returns the `k` largest logits of the last one with their
    /// tokens ([`Want::Top`]).
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_top_k(
        &self,
        session: &mut Session,
        tokens: &[u32],
        k: usize,
    ) -> Result<Vec<(u32, f32)>, FormatError> {
        self.pass(session, tokens, Want::Top(k))
            .map(StepLogits::into_top)
    }

    pub(crate) fn pass(
        &self,
        session: &mut Session,
        tokens: &[u32],
        want: Want,
    ) -> Result<StepLogits, FormatError> {
        let slice = Slice {
            sequence: &mut session.sequence,
            tokens,
            want,
        };
        let found = self.step(&mut [slice], &mut session.workspace)?;
        Ok(found.into_iter().next().unwrap_or(StepLogits::Nothing))
    }
}
