//! Guesses of a smaller model of the same vocabulary.
//!
//! Invariant: the guesses are the likeliest tokens behind the text as it is now; what was read of guesses that the text did
//! not take is forgotten first.

use crate::model::Model;
use crate::session::Session;
use bitnet_formats::FormatError;

/// A draft model in the middle of a text.
#[derive(Debug)]
pub(crate) struct DraftModel<'m> {
    model: &'m Model,
    session: Session,
    read: Vec<u32>, // what the session has read
}

impl<'m> DraftModel<'m> {
    /// For texts of `context` tokens, or of the context of the draft model if that is shorter.
    pub(crate) fn new(model: &'m Model, context: usize) -> Result<Self, FormatError> {
        let most = model.config().max_position_embeddings;
        Ok(Self {
            model,
            session: model.session(context.min(most))?,
            read: Vec::new(),
        })
    }

    /// The likeliest `count` tokens behind a text; fewer where the context of the draft model ends.
    pub(crate) fn next(&mut self, text: &[u32], count: usize) -> Result<Vec<u32>, FormatError> {
        let room = (self.session.context() + 1).saturating_sub(text.len());
        let count = count.min(room);
        let Some(last) = text.len().checked_sub(1).filter(|_| count > 0) else {
            return Ok(Vec::new());
        };
        let same = self.read.iter().zip(&text[..last]);
        let same = same.take_while(|(a, b)| a == b).count();
        self.session.truncate(same);
        self.read.truncate(same);
        let mut draft = Vec::with_capacity(count);
        let mut fed = text[same..].to_vec();
        while draft.len() < count {
            let top = self.model.forward_top_k(&mut self.session, &fed, 1)?;
            self.read.append(&mut fed);
            let Some((token, _)) = top.first() else { break };
            draft.push(*token);
            fed.push(*token);
        }
        Ok(draft)
    }
}
