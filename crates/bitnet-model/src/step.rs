//! A step: new tokens of one or more sequences, together through the network.
//!
//! Invariant: the bits of a sequence do not depend on who else is in the batch, nor on how its tokens came in
//! steps and rounds (`formats/numerics.md`). A step that fails leaves every sequence where it was.

use crate::model::Model;
use crate::profile::Part;
use crate::round::{Round, Span};
use crate::sequence::Sequence;
use crate::workspace::Workspace;
use bitnet_formats::{ErrorCode, FormatError};
use std::borrow::Cow;
use std::ops::Range;

/// Most tokens that a recurrent state reads again in the rounds of the next step: more take rounds of their own, behind
/// which there is a snapshot.
const FEW_UNREAD: usize = 32;

/// New tokens of a sequence.
#[derive(Debug)]
pub struct Slice<'a> {
    /// The text that they continue.
    pub sequence: &'a mut Sequence,
    /// The tokens, of which there may be none.
    pub tokens: &'a [u32],
    /// What the step is to say of them.
    pub want: Want,
}

/// Which logits a step returns of a slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// None; the tokens are only appended.
    Nothing,
    /// Of the last token, `(vocab,)`.
    Last,
    /// Of every token, `(tokens, vocab)`.
    All,
    /// So many of the largest logits of the last token: exactly those of [`Want::Last`], mostly without reading all of
    /// the output head.
    ///
    /// The second time a model is asked for them it builds an int8 copy of its head: a text of one token
    /// does not wait for it.
    Top(usize),
    /// As [`Top`](Self::Top), of every token.
    TopOfEach(usize),
}

/// What a step says of a slice.
#[derive(Debug, Clone, PartialEq)]
pub enum StepLogits {
    /// Nothing was asked for, or there was no token.
    Nothing,
    /// `(vocab,)` or `(tokens, vocab)`.
    Rows(Vec<f32>),
    /// The largest logits with their tokens, in falling order, of equal ones the lower token first.
    Top(Vec<(u32, f32)>),
    /// The same of every token.
    TopOfEach(Vec<Vec<(u32, f32)>>),
}

impl StepLogits {
    /// The rows; none if others were asked for.
    pub fn into_rows(self) -> Vec<f32> {
        match self {
            Self::Rows(rows) => rows,
            Self::Nothing | Self::Top(_) | Self::TopOfEach(_) => Vec::new(),
        }
    }

    /// The largest logits; none if others were asked for.
    pub fn into_top(self) -> Vec<(u32, f32)> {
        match self {
            Self::Top(top) => top,
            Self::Nothing | Self::Rows(_) | Self::TopOfEach(_) => Vec::new(),
        }
    }

    /// The largest logits of every token; none if others were asked for.
    pub fn into_top_of_each(self) -> Vec<Vec<(u32, f32)>> {
        match self {
            Self::TopOfEach(top) => top,
            Self::Nothing | Self::Rows(_) | Self::Top(_) => Vec::new(),
        }
    }
}

/// Some tokens of a slice as rows of a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Number of the slice.
    pub slice: usize,
    /// Which of its tokens.
    pub tokens: Range<usize>,
    /// Which rows they are.
    pub rows: Range<usize>,
}

impl Piece {
    /// The part behind the first tokens of every slice, `unread`, and counted from there, if there is any.
    fn behind(self, unread: &[Vec<u32>]) -> Option<Self> {
        let Self {
            slice,
            tokens,
            rows,
        } = self;
        let skipped = unread[slice].len();
        let from = tokens.start.max(skipped);
        (from < tokens.end).then(|| Self {
            slice,
            tokens: from - skipped..tokens.end - skipped,
            rows: rows.start + (from - tokens.start)..rows.end,
        })
    }
}

impl Model {
    /// Whether the files of the weights are as they were when they were opened, so far as steps need them: else every step
    /// fails. A file that was renamed, removed or replaced is.
    ///
    /// # Errors
    /// `input-changed`.
    pub fn check_weights(&self) -> Result<(), FormatError> {
        self.weights.intact()
    }

    /// Appends the tokens of every slice to its sequence, and returns what each slice wants, in order.
    ///
    /// Linears read their weights once for all tokens of a round. Runs on as many threads as
    /// [`LoadOptions::threads`](crate::LoadOptions::threads) says; one step at a time, another one waits.
    ///
    /// # Errors
    /// `usage` for a sequence or a workspace of another model and for a token id beyond the vocabulary,
    /// `context-exceeded`, `limit-exceeded` for keys and values that find no memory, `non-finite` naming the linear
    /// whose input overflowed, `input-changed` if a file that holds weights was written to. Every sequence is then as it
    /// was.
    pub fn step(
        &self,
        batch: &mut [Slice<'_>],
        workspace: &mut Workspace,
    ) -> Result<Vec<StepLogits>, FormatError> {
        let vocab = self.weights.output_head.rows();
        let mut found: Vec<StepLogits> = batch
            .iter()
            .map(|slice| match slice.want {
                _ if slice.tokens.is_empty() => StepLogits::Nothing,
                Want::Nothing => StepLogits::Nothing,
                Want::Last => StepLogits::Rows(Vec::with_capacity(vocab)),
                Want::All => StepLogits::Rows(Vec::with_capacity(slice.tokens.len() * vocab)),
                Want::Top(_) => StepLogits::Top(Vec::new()),
                Want::TopOfEach(_) => StepLogits::TopOfEach(Vec::with_capacity(slice.tokens.len())),
            })
            .collect();
        self.rounds(batch, workspace, |batch, pieces, workspace| {
            self.logits(batch, pieces, workspace, &mut found)
        })?;
        Ok(found)
    }

    /// The rounds of a step; `done` is called behind the layers of each, with `x` of the stream as they left it.
    pub(crate) fn rounds(
        &self,
        batch: &mut [Slice<'_>],
        workspace: &mut Workspace,
        mut done: impl FnMut(&[Slice<'_>], &[Piece], &mut Workspace) -> Result<(), FormatError>,
    ) -> Result<(), FormatError> {
        self.check(batch, workspace)?;
        let before: Vec<usize> = batch.iter().map(|s| s.sequence.position()).collect();
        for slice in &mut *batch {
            slice.sequence.reserve(slice.tokens.len())?;
        }
        let result = self.threads.enter(|| {
            workspace.clock.start();
            let unread = self.read_again(batch, workspace)?;
            let tokens: Vec<Cow<'_, [u32]>> = batch
                .iter()
                .zip(&unread)
                .map(|(slice, unread)| match unread.is_empty() {
                    true => Cow::Borrowed(slice.tokens),
                    false => Cow::Owned([unread, slice.tokens].concat()),
                })
                .collect();
            for (slice, tokens) in batch.iter_mut().zip(&tokens) {
                slice.sequence.begin_step(tokens);
            }
            let lengths: Vec<usize> = tokens.iter().map(|tokens| tokens.len()).collect();
            for pieces in plan(&lengths, workspace.most_rows) {
                self.round(batch, &tokens, &pieces, workspace)?;
                let pieces = pieces.into_iter();
                let new: Vec<Piece> = pieces.filter_map(|p| p.behind(&unread)).collect();
                done(batch, &new, workspace)?;
            }
            Ok(())
        });
        // whatever was computed from bytes that are not the model's any more, an error too, says nothing
        let result = self.weights.intact().and(result);
        if result.is_err() {
            for (slice, before) in batch.iter_mut().zip(before) {
                slice.sequence.roll_back(before);
            }
        }
        result
    }

    /// Recurrent states that went back to a snapshot read the tokens behind it again. Those of which a slice lacks few are
    /// returned instead: its next tokens follow them in the same rounds.
    fn read_again(
        &self,
        batch: &mut [Slice<'_>],
        workspace: &mut Workspace,
    ) -> Result<Vec<Vec<u32>>, FormatError> {
        let mut unread: Vec<Vec<u32>> = batch.iter_mut().map(|s| s.sequence.rewind()).collect();
        let many: Vec<Cow<'_, [u32]>> = unread
            .iter_mut()
            .map(|unread| match unread.len() > FEW_UNREAD {
                true => Cow::Owned(std::mem::take(unread)),
                false => Cow::Borrowed(&[][..]),
            })
            .collect();
        let lengths: Vec<usize> = many.iter().map(|tokens| tokens.len()).collect();
        for pieces in plan(&lengths, workspace.most_rows) {
            self.round(batch, &many, &pieces, workspace)?;
        }
        Ok(unread)
    }

    /// Refuses what would fail on the way.
    fn check(&self, batch: &[Slice<'_>], workspace: &Workspace) -> Result<(), FormatError> {
        let refused = |message: String| Err(FormatError::new(ErrorCode::Usage, message));
        if workspace.model != self.number {
            return refused("expected a workspace of this model, found another's".to_owned());
        }
        for slice in batch {
            if slice.sequence.model() != self.number {
                return refused("expected a sequence of this model, found another's".to_owned());
            }
            self.check_tokens(slice.tokens)?;
        }
        Ok(())
    }

    /// Some tokens through the layers, of `tokens` of each slice.
    fn round(
        &self,
        batch: &mut [Slice<'_>],
        tokens: &[Cow<'_, [u32]>],
        pieces: &[Piece],
        workspace: &mut Workspace,
    ) -> Result<(), FormatError> {
        let Workspace {
            stream,
            mixer,
            mlp,
            clock,
            ..
        } = workspace;
        let hidden = self.config().hidden_size;
        let rows = pieces.last().map_or(0, |piece| piece.rows.end);
        stream.resize(self.config(), rows);
        let mut positions = Vec::with_capacity(rows); // (rows,)
        for piece in pieces {
            let slice = &batch[piece.slice];
            let x = &mut stream.x[piece.rows.start * hidden..piece.rows.end * hidden];
            self.look_up(&tokens[piece.slice][piece.tokens.clone()], x)?;
            positions.extend((slice.sequence.position()..).take(piece.rows.len()));
        }
        clock.lap(Part::Elementwise);
        let ropes = self.ropes(positions.iter().max().map_or(0, |last| last + 1));
        let mut spans = Vec::with_capacity(pieces.len());
        let mut slices = batch.iter_mut().enumerate();
        for Piece { slice, rows, .. } in pieces {
            let slice = slices.find(|(number, _)| number == slice);
            spans.extend(slice.map(|(_, slice)| Span {
                sequence: &mut *slice.sequence,
                rows: rows.clone(),
            }));
        }
        let mut round = Round {
            rows: self.row_ops(),
            ropes: &ropes,
            positions: &positions,
            spans,
            clock,
        };
        for (layer, block) in self.weights.layers.iter().enumerate() {
            block.forward(layer, &mut round, stream, mixer, mlp)?;
        }
        for span in round.spans {
            span.sequence.advance(span.rows.len());
        }
        Ok(())
    }

    /// The logits that a round gives its slices.
    fn logits(
        &self,
        batch: &[Slice<'_>],
        pieces: &[Piece],
        workspace: &mut Workspace,
        found: &mut [StepLogits],
    ) -> Result<(), FormatError> {
        let Workspace {
            stream, h, clock, ..
        } = workspace;
        let hidden = self.config().hidden_size;
        // which rows of the round a piece wants the logits of
        let wanted = |piece: &Piece| {
            let Slice { tokens, want, .. } = &batch[piece.slice];
            let first = match want {
                Want::All | Want::TopOfEach(_) => piece.rows.start,
                Want::Last | Want::Top(_) if piece.tokens.end == tokens.len() => piece.rows.end - 1,
                _ => piece.rows.end,
            };
            first..piece.rows.end
        };
        let k = |piece: &Piece| match batch[piece.slice].want {
            Want::Top(k) | Want::TopOfEach(k) => Some(k),
            _ => None,
        };
        let is_top = |piece: &&Piece| k(piece).is_some();
        let (top, full): (Vec<&Piece>, Vec<&Piece>) = pieces
            .iter()
            .filter(|piece| !wanted(piece).is_empty())
            .partition(is_top);
        h.clear();
        for piece in full.iter().chain(&top) {
            let (rows, at) = (wanted(piece), h.len());
            h.resize(at + rows.len() * hidden, 0.0);
            let x = &stream.x[rows.start * hidden..rows.end * hidden];
            self.head_input(x, &mut h[at..]);
        }
        let rows = full.iter().map(|piece| wanted(piece).len()).sum::<usize>();
        let (of_full, of_top) = h.split_at(rows * hidden);
        self.full_logits(&full, wanted, of_full, found)?;
        let ks: Vec<usize> = top
            .iter()
            .flat_map(|piece| std::iter::repeat_n(k(piece).unwrap_or(0), wanted(piece).len()))
            .collect();
        if !ks.is_empty() {
            let mut rows = self.top_k(of_top, &ks)?.into_iter();
            for piece in top {
                let mut rows = rows.by_ref().take(wanted(piece).len());
                match &mut found[piece.slice] {
                    StepLogits::Top(top) => *top = rows.next().unwrap_or_default(),
                    StepLogits::TopOfEach(of_each) => of_each.extend(rows),
                    StepLogits::Nothing | StepLogits::Rows(_) => {}
                }
            }
        }
        if !h.is_empty() {
            clock.lap(Part::Head);
        }
        Ok(())
    }

    /// All logits of the final hidden states `h`, `(wanted rows of all pieces, hidden)`.
    fn full_logits(
        &self,
        pieces: &[&Piece],
        wanted: impl Fn(&Piece) -> Range<usize>,
        h: &[f32],
        found: &mut [StepLogits],
    ) -> Result<(), FormatError> {
        let (head, vocab) = (&self.weights.output_head, self.weights.output_head.rows());
        if let [piece] = pieces {
            if let StepLogits::Rows(logits) = &mut found[piece.slice] {
                let at = logits.len();
                logits.resize(at + wanted(piece).len() * vocab, 0.0);
                head.multiply(self.backend, h, &mut logits[at..])?;
            }
            return Ok(());
        }
        let rows = h.len() / self.config().hidden_size;
        let mut all = vec![0.0; rows * vocab]; // (rows, vocab)
        head.multiply(self.backend, h, &mut all)?;
        let mut rest = &all[..];
        for piece in pieces {
            let (logits, others) = rest.split_at(wanted(piece).len() * vocab);
            rest = others;
            if let StepLogits::Rows(rows) = &mut found[piece.slice] {
                rows.extend_from_slice(logits);
            }
        }
        Ok(())
    }
}

/// Which tokens of slices of these lengths go together: in order, up to `most` rows a round.
fn plan(lengths: &[usize], most: usize) -> Vec<Vec<Piece>> {
    let (mut rounds, mut round, mut row) = (Vec::new(), Vec::new(), 0);
    for (slice, &length) in lengths.iter().enumerate() {
        let mut token = 0;
        while token < length {
            let count = (length - token).min(most - row);
            round.push(Piece {
                slice,
                tokens: token..token + count,
                rows: row..row + count,
            });
            (token, row) = (token + count, row + count);
            if row == most {
                rounds.push(std::mem::take(&mut round));
                row = 0;
            }
        }
    }
    if !round.is_empty() {
        rounds.push(round);
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_piece_behind_tokens_that_are_read_again_has_the_new_ones() {
        let piece = Piece {
            slice: 1,
            tokens: 2..9,
            rows: 10..17,
        };
        let behind = |unread| piece.clone().behind(&[Vec::new(), vec![0; unread]]);
        assert_eq!(behind(0), Some(piece.clone()));
        let new = |tokens, rows| Piece {
            slice: 1,
            tokens,
            rows,
        };
        assert_eq!(behind(2), Some(new(0..7, 10..17)));
        assert_eq!(behind(5), Some(new(0..4, 13..17)));
        assert_eq!(behind(8), Some(new(0..1, 16..17)));
        assert_eq!(behind(9), None);
    }

    #[test]
    fn rounds_hold_every_token_once_and_in_order() {
        for most in [1, 3, 8, 256] {
            for lengths in [&[][..], &[0], &[1], &[8], &[1, 0, 9, 1, 300, 2], &[1; 17]] {
                let rounds = plan(lengths, most);
                let mut seen = vec![0; lengths.len()];
                for (number, round) in rounds.iter().enumerate() {
                    let mut row = 0;
                    for piece in round {
                        assert_eq!(piece.rows.start, row);
                        assert_eq!(piece.tokens.start, seen[piece.slice]);
                        assert_eq!(piece.tokens.len(), piece.rows.len());
                        assert!(!piece.rows.is_empty());
                        (row, seen[piece.slice]) = (piece.rows.end, piece.tokens.end);
                    }
                    assert!(row == most || number + 1 == rounds.len() && row < most);
                }
                assert_eq!(seen, lengths, "{most}");
            }
        }
        let piece = |slice, tokens, rows| Piece {
            slice,
            tokens,
            rows,
        };
        let rounds = plan(&[1, 4, 1], 4);
        assert_eq!(rounds[0], [piece(0, 0..1, 0..1), piece(1, 0..3, 1..4)]);
        assert_eq!(rounds[1], [piece(1, 3..4, 0..1), piece(2, 0..1, 1..2)]);
    }
}
