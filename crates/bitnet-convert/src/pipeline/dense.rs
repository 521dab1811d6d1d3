//! Items whose bytes are not packed trits: dense numbers, master weights, and parts that are carried along.
//!
//! Invariant: a value that changes is measured and becomes a loss of the report; bytes that only move are copied.

use super::{Converter, Digestible, Piece, TASK, Trits, stopped};
use crate::certificate::DenseDigest;
use crate::plan::{Item, Loss, PIECE, stored_order};
use crate::scales;
use crate::stored::Stored;
use crate::targets::Kind;
use crate::unfold::{Change, Unfolding, stored_row};
use bitnet_checkpoint::{
    DensePieces, DenseReader, DenseRecord, DenseTensor, Slot, StoredOrder, Verdict, dense_sha256,
    shape_for_gguf, shape_for_hf,
};
use bitnet_formats::{
    Encoding, ErrorCode, Exactness, FormatError, PlainType, ScaleRounding, TensorInfo,
    dense_to_f32, encode_dense,
};
use bitnet_ternary::TernaryMatrix;
use rayon::prelude::*;
use std::ops::Range;

impl<'a> Converter<'a> {
    pub(super) fn dequantise(
        &self,
        index: usize,
        matrix: &TernaryMatrix,
        to: PlainType,
    ) -> Result<(), FormatError> {
        let row = matrix.cols() * to.size();
        let rows_per_piece = (PIECE as usize / row.max(1)).max(1);
        for first in (0..matrix.rows()).step_by(rows_per_piece) {
            let rows = rows_per_piece.min(matrix.rows() - first);
            let mut out = vec![0; rows * row];
            let rows_per_task = (TASK / row.max(1)).max(1);
            out.par_chunks_mut((rows_per_task * row).max(1))
                .enumerate()
                .for_each(|(n, out)| {
                    scales::dequantise(matrix, to, first + n * rows_per_task, out);
                });
            self.send(index, Piece::Made(out))?;
        }
        Ok(())
    }

    /// Rotated weights turned back, row by row.
    pub(super) fn unfold(
        &mut self,
        index: usize,
        item: &Item,
        slot: Slot,
        to: PlainType,
    ) -> Result<(), FormatError> {
        self.wait_for(slot)?;
        let Some(rotation) = self.checkpoint.config.rotation.clone() else {
            return Ok(());
        };
        let family = self.checkpoint.family;
        let order = match self.plan.target.kind {
            Kind::Gguf => family.gguf_order(&self.plan.config, slot),
            Kind::HuggingFace => None,
        };
        let unfolding = Unfolding {
            rotation: &rotation,
            columns: match order {
                Some(StoredOrder::TiledColumns(heads)) => Some(heads),
                _ => None,
            },
            to,
        };
        let shape = self.plan.config.shape(slot);
        let (rows, cols) = match shape[..] {
            [rows, cols] => (rows, cols.max(1)),
            _ => return Ok(()),
        };
        let source = match self.checkpoint.is_ternary(slot) {
            true => Some(self.matrix(slot)?),
            false => None,
        };
        // rows as the target keeps them; columns are moved behind
        let matrix = match &source {
            Some(source) => Some(self.in_target_order(slot, source)?),
            None => None,
        };
        let dense = match source {
            Some(_) => None,
            None => Some(self.checkpoint.dense(slot)?),
        };
        let row_of = |row: usize| -> Result<Vec<f64>, FormatError> {
            if let Some(matrix) = &matrix {
                return Ok(stored_row(matrix, row));
            }
            let Some(dense) = &dense else {
                return Ok(Vec::new());
            };
            let row_bytes = dense.bytes.len() / rows.max(1);
            let mut values = vec![0f32; cols];
            dense.widen(
                &dense.bytes[row * row_bytes..(row + 1) * row_bytes],
                &mut values,
            )?;
            Ok(values.into_iter().map(f64::from).collect())
        };
        let rows_per_piece = (PIECE as usize / (cols * to.size())).max(1);
        let mut written = DenseDigest::default();
        let mut change = Change::default();
        for first in (0..rows).step_by(rows_per_piece) {
            let some = first..rows.min(first + rows_per_piece);
            let parts: Vec<(Vec<u8>, Vec<f32>, Change)> = some
                .into_par_iter()
                .map(|row| {
                    let (mut bytes, mut values) = (Vec::new(), Vec::new());
                    let change = unfolding.row(&row_of(row)?, &mut bytes, &mut values);
                    Ok((bytes, values, change))
                })
                .collect::<Result<_, FormatError>>()?;
            let mut out = Vec::new();
            for (bytes, values, part) in parts {
                out.extend_from_slice(&bytes);
                written.update(&values);
                change = change.merge(part);
            }
            self.send(index, Piece::Made(out))?;
        }
        let verdict = match change.absolute > 0.0 {
            true => Verdict::Rounded(change.relative),
            false => Verdict::Exact,
        };
        let name = slot.to_string();
        let record = DenseRecord {
            name: name.clone(),
            shape,
            values_sha256: written.finish(),
            verdict,
        };
        self.dense.insert(name, record);
        if verdict != Verdict::Exact {
            self.losses.push(Loss {
                tensor: item.tensor.name.clone(),
                kind: "dense-rounding",
                max_relative: Some(change.relative),
                max_absolute: Some(change.absolute),
            });
        }
        if let Some(source) = source {
            let matrix = Digestible {
                slot,
                source: Trits::Matrix(source),
                rounded: None,
                is_unfolded: true,
            };
            self.matrices.send(matrix).map_err(|_| stopped())?;
        }
        Ok(())
    }

    pub(super) fn copy_master(&self, index: usize, slot: Slot) -> Result<(), FormatError> {
        let source = self.checkpoint.linear(slot)?;
        let head_dim = match source.order {
            None => return self.send_source(index, slot, 0..source.info.len as usize),
            Some(StoredOrder::PairedRows { head_dim }) => head_dim,
            Some(order) => return self.copy_heads(index, slot, order),
        };
        let bytes = self.checkpoint.file.read(&source.info)?;
        // a GGUF of master weights keeps q and k in paired rows: back to the order of the checkpoint
        let row = bytes.len() / source.rows.max(1);
        let half = head_dim / 2;
        for first in (0..source.rows).step_by(head_dim.max(1)) {
            let mut head = Vec::with_capacity(head_dim * row);
            for r in 0..head_dim {
                let at = (first + 2 * (r % half) + r / half) * row;
                head.extend_from_slice(bytes.get(at..at + row).unwrap_or(&[]));
            }
            self.send(index, Piece::Made(head))?;
        }
        Ok(())
    }

    /// Master weights of value heads, back in the order of the checkpoint.
    pub(super) fn copy_heads(
        &self,
        index: usize,
        slot: Slot,
        order: StoredOrder,
    ) -> Result<(), FormatError> {
        let source = self.checkpoint.linear(slot)?;
        let bytes = self.checkpoint.file.read(&source.info)?;
        let row = bytes.len() / source.rows.max(1);
        let size = row / source.cols.max(1);
        let part = |at: usize, len: usize| bytes.get(at..at + len).unwrap_or(&[]);
        let mut out = Vec::with_capacity(bytes.len());
        for r in 0..source.rows {
            match order {
                StoredOrder::TiledRows(heads) => {
                    out.extend_from_slice(part(heads.tiled(r) * row, row))
                }
                StoredOrder::TiledColumns(heads) => {
                    for c in 0..source.cols {
                        out.extend_from_slice(part(r * row + heads.tiled(c) * size, size));
                    }
                }
                StoredOrder::PairedRows { .. } => out.extend_from_slice(part(r * row, row)),
            }
            if out.len() as u64 >= PIECE {
                self.send(index, Piece::Made(std::mem::take(&mut out)))?;
            }
        }
        self.send(index, Piece::Made(out))
    }

    /// The bytes of a part that is not computed.
    pub(super) fn carry(&self, index: usize, info: &TensorInfo) -> Result<(), FormatError> {
        for start in (0..info.len).step_by(PIECE as usize) {
            let range = start..info.len.min(start + PIECE);
            if !self.walk.wait_for(info, range.clone()) {
                return Err(stopped());
            }
            self.checkpoint.file.check_part_of(info)?;
            let bytes = self.checkpoint.file.read_part(info, range)?;
            self.send(index, Piece::Made(bytes.to_vec()))?;
        }
        Ok(())
    }

    /// A small tensor in the order and form of a target of the other kind.
    pub(super) fn shape(
        &mut self,
        index: usize,
        item: &Item,
        slot: Slot,
        to: Encoding,
    ) -> Result<(), FormatError> {
        let dense = self.checkpoint.dense(slot)?;
        let rows = dense.shape.first().copied().unwrap_or(1);
        let order = stored_order(self.checkpoint, self.plan.target, slot);
        let mut bytes = dense.bytes.to_vec();
        let mut error = 0.0;
        let to_hf = self.plan.target.kind == Kind::HuggingFace;
        if to != dense.encoding || to_hf && dense.shape.len() == 1 {
            let mut values = vec![0f32; dense.shape.iter().product()];
            dense.widen(&dense.bytes, &mut values)?;
            if to_hf {
                (values, error) = shape_for_hf(slot, &values);
            }
            bytes.clear();
            encode_dense(&values, to, &mut bytes)?;
        }
        if error > 0.0 && self.rounding == ScaleRounding::Refuse {
            let message = format!(
                "no f32 A_log has the rates of this file: the nearest ones mean rates that differ by {error:.1e}"
            );
            return Err(FormatError::new(ErrorCode::TargetCannotHold, message).hint(
                "pass --allow-scale-rounding to store the nearest, or choose a GGUF target",
            ));
        }
        let bytes = shape_for_gguf(&bytes, rows, order)?;
        let verdict = match error > 0.0 {
            false => Verdict::Exact,
            true => Verdict::Rounded(error),
        };
        let digest = dense_sha256(&dense)?;
        self.record(slot, &dense, digest, verdict);
        if error > 0.0 {
            self.losses.push(Loss {
                tensor: item.tensor.name.clone(),
                kind: "dense-rounding",
                max_relative: Some(error),
                max_absolute: None,
            });
        }
        self.send(index, Piece::Made(bytes))
    }

    /// A dense tensor, to be read in pieces with [`piece`](Self::piece).
    fn reader(&self, slot: Slot) -> Result<DenseReader<'a>, FormatError> {
        if !self.checkpoint.dense_is_as_stored(slot) {
            self.wait_for(slot)?;
        }
        self.checkpoint.dense_reader(slot)
    }

    /// A piece of a dense tensor, once the walk has read it. The values are finite.
    fn piece(
        &self,
        slot: Slot,
        reader: &DenseReader<'a>,
        range: Range<u64>,
    ) -> Result<DenseTensor<'a>, FormatError> {
        let info = reader.tensor().info;
        if self.checkpoint.dense_is_as_stored(slot) && !self.walk.wait_for(info, range.clone()) {
            return Err(stopped());
        }
        reader.read(range)
    }

    /// A dense tensor whose bytes stay as they are in the file.
    pub(super) fn copy_dense(&mut self, index: usize, slot: Slot) -> Result<(), FormatError> {
        let reader = self.reader(slot)?;
        let is_shaped = reader.tensor().is_shaped;
        let mut digest = DensePieces::new(reader.tensor())?;
        let (step, len) = (digest.piece_bytes(), reader.len());
        for start in (0..len).step_by(step) {
            let end = len.min(start + step as u64);
            let piece = self.piece(slot, &reader, start..end)?;
            digest.update(&piece)?;
            if is_shaped {
                continue;
            }
            let bytes = piece.bytes;
            for start in (0..bytes.len()).step_by(PIECE as usize) {
                let end = bytes.len().min(start + PIECE as usize);
                let part = bytes.slice(start..end).unwrap_or_default();
                self.send(index, Piece::Read(part))?;
            }
        }
        self.record(slot, reader.tensor(), digest.finish(), Verdict::Exact);
        match is_shaped {
            true => self.send_source(index, slot, 0..reader.tensor().info.len as usize),
            false => Ok(()),
        }
    }

    pub(super) fn recode(
        &mut self,
        index: usize,
        item: &Item,
        slot: Slot,
        to: Encoding,
    ) -> Result<(), FormatError> {
        let reader = self.reader(slot)?;
        let stored = Stored::of(self.plan, self.checkpoint, slot)?;
        let rounding = self.rounding;
        let shape = reader.tensor().shape;
        let row = shape.last().copied().unwrap_or(1).max(1);
        let rows = shape.iter().product::<usize>() / row;
        let row_bytes = reader.len() as usize / rows.max(1);
        // whole rows: blocks never cross one
        let rows_per_task = (TASK / 4 / row).max(1);
        let tasks_per_piece = (PIECE as usize / TASK).max(1);
        let mut exactness = Exactness::default();
        let mut written = DenseDigest::default();
        let step = (rows_per_task * tasks_per_piece * row_bytes).max(1);
        for start in (0..reader.len()).step_by(step) {
            let end = reader.len().min(start + step as u64);
            let dense = self.piece(slot, &reader, start..end)?;
            let tasks: Vec<(Vec<u8>, Vec<f32>, Exactness)> = dense
                .bytes
                .par_chunks((rows_per_task * row_bytes).max(1))
                .map(|bytes| {
                    let mut values = vec![0f32; bytes.len() / row_bytes.max(1) * row];
                    dense.widen(bytes, &mut values)?;
                    let mut out = Vec::new();
                    if let Some(stored) = stored {
                        let numbers = stored.numbers(&values, rounding)?;
                        encode_dense(&numbers, to, &mut out)?;
                        let read = stored.read(&numbers);
                        let exactness = Exactness::of(&values, &read);
                        return Ok((out, read, exactness));
                    }
                    let exactness = encode_dense(&values, to, &mut out)?;
                    if !exactness.is_exact() {
                        dense_to_f32(to, &out, &mut values)?;
                    }
                    Ok((out, values, exactness))
                })
                .collect::<Result<_, FormatError>>()?;
            let mut out = Vec::with_capacity(tasks.iter().map(|(o, ..)| o.len()).sum());
            for (bytes, values, e) in tasks {
                out.extend_from_slice(&bytes);
                written.update(&values);
                exactness = exactness.merge(e);
            }
            self.send(index, Piece::Made(out))?;
        }
        let verdict = match exactness.is_exact() {
            true => Verdict::Exact,
            false => Verdict::Rounded(exactness.max_rel),
        };
        self.record(slot, reader.tensor(), written.finish(), verdict);
        if verdict != Verdict::Exact {
            self.losses.push(Loss {
                tensor: item.tensor.name.clone(),
                kind: "dense-rounding",
                max_relative: Some(exactness.max_rel),
                max_absolute: Some(exactness.max_abs),
            });
        }
        Ok(())
    }
}
