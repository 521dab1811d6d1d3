//! The one pass that reads, hashes, converts and writes. Threads live here and nowhere else.
//!
//! Invariant: the bytes written depend on the plan and the source alone. Threads share out pieces of
//! one tensor; tensors are converted, digested and written in plan order. Every queue is bounded, so
//! working memory is a few tensors whatever the model's size.
//!
//! ```text
//! walk ──(bytes are in the page cache)──▶ convert ──pieces──▶ write (and hash, in `Artifact`)
//!                                            └────matrices──▶ digest (certificate)
//! ```

mod dense;

use crate::certificate::Digests;
use crate::plan::{Action, Item, Loss, PIECE, Plan, Request, stored_order};
use crate::scales::{self, scale_bytes, scales_of};
use crate::source_hash::SourceHash;
use crate::transcode::transcode;
use bitnet_checkpoint::{
    Checkpoint, Config, DenseRecord, DenseTensor, Slot, TensorDigest, Verdict, code_row_len,
};
use bitnet_cli::{Bar, Progress};
use bitnet_formats::{
    Artifact, Bytes, ErrorCode, FileDigest, FormatError, Frames, PackedTensor, Packing, PlainType,
    ScaleRounding,
};
use bitnet_ternary::{Scales, TernaryMatrix};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::ScopedJoinHandle;

/// Pieces that may wait for the disk.
pub const QUEUE: usize = 3;
/// Bytes of one task when a tensor is shared out.
const TASK: usize = 128 << 10;

/// What a pass found out.
#[derive(Debug)]
pub struct Passed {
    /// Of each file of the source, if it was hashed.
    pub sources: Vec<Option<FileDigest>>,
    pub artifacts: Vec<Artifact>,
    pub digests: Digests,
    pub losses: Vec<Loss>,
    pub masters: QuantizedMasters,
}

/// Master weights that the absmean rule made ternary on the way.
#[derive(Debug, Clone, Copy, Default)]
pub struct QuantizedMasters {
    /// Linears.
    pub tensors: usize,
    /// Sum of the squares of what the rule changed.
    pub change: f64,
    /// Sum of the squares of the weights.
    pub total: f64,
}

impl QuantizedMasters {
    /// By which part of their size (root mean square) the weights were changed; `None` without any.
    pub fn relative_change(&self) -> Option<f64> {
        (self.total > 0.0).then(|| (self.change / self.total).sqrt())
    }
}

/// A piece of an output tensor.
enum Piece {
    Made(Vec<u8>),
    /// Bytes of a source tensor, straight from the map.
    Source(Slot, Range<usize>),
    /// Bytes of a source tensor that were read.
    Read(Bytes),
}

/// Converts everything in the plan; the artifacts are written but not finished. `walked`: which files of the source
/// are hashed.
pub fn run(
    checkpoint: &Checkpoint,
    plan: &Plan,
    request: &Request<'_>,
    artifacts: Vec<Artifact>,
    walked: Vec<bool>,
    threads: usize,
    progress: &Progress,
) -> Result<Passed, FormatError> {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("convert-{i}"))
        .build()
        .map_err(|e| {
            FormatError::new(
                ErrorCode::Io,
                format!("cannot start {threads} threads: {e}"),
            )
            .because(e)
        })?;
    let walk = SourceHash::new(&checkpoint.file, walked);
    std::thread::scope(|scope| {
        let walker = scope.spawn(|| walk.run(progress));
        let (pieces, to_write) = sync_channel(QUEUE);
        let writer = scope.spawn(|| write(checkpoint, plan, artifacts, to_write, progress));
        let (matrices, to_digest) = sync_channel(1);
        let digester = scope.spawn(|| digest(&checkpoint.config, to_digest));

        let mut converter = Converter {
            checkpoint,
            plan,
            rounding: request.rounding,
            walk: &walk,
            pieces,
            matrices,
            losses: Vec::new(),
            known_losses: plan.losses.iter().map(|l| l.tensor.clone()).collect(),
            masters: QuantizedMasters::default(),
            dense: BTreeMap::new(),
            scales: HashMap::new(),
        };
        // this thread is one of the pool's while it computes
        let converted = pool.install(|| converter.run());
        let losses = std::mem::take(&mut converter.losses);
        let masters = converter.masters;
        let dense = std::mem::take(&mut converter.dense);
        // closes both queues
        drop(converter);
        match converted {
            Ok(()) => walk.want_all(),
            Err(_) => walk.stop(),
        }
        let written = join(writer);
        let mut digests = join(digester);
        digests.dense = dense;
        let sources = join(walker);
        // the walk reads first: everything else that failed is a consequence
        if let Some(failure) = walk.failure() {
            return Err(failure);
        }
        // a reader that went away stops the converter: its own error says more than the closed queue
        let artifacts = written?;
        converted?;
        let sources = sources.ok_or_else(stopped)?;
        Ok(Passed {
            sources,
            artifacts,
            digests,
            losses,
            masters,
        })
    })
}

fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    match thread.join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

fn stopped() -> FormatError {
    FormatError::new(ErrorCode::Io, "the conversion was stopped")
}

/// A matrix on its way to the certificate.
struct Digestible {
    slot: Slot,
    source: Trits,
    /// What the output holds, where that differs, and by which relative error.
    rounded: Option<(TernaryMatrix, f64)>,
    /// Whether the output holds other numbers than trits times scales.
    is_unfolded: bool,
}

/// The trits of a matrix and their scales.
enum Trits {
    Matrix(Arc<TernaryMatrix>),
    /// What is left of a matrix that was transcoded: its codes, its one scale (0 where no trit has it).
    Codes {
        shape: (usize, usize),
        codes: Vec<u8>,
        scale: f32,
    },
}

impl Trits {
    fn digest(&self, name: &str) -> TensorDigest {
        match self {
            Self::Matrix(matrix) => TensorDigest::of(name, matrix),
            Self::Codes {
                shape,
                codes,
                scale,
            } => TensorDigest::of_codes(name, *shape, codes, *scale),
        }
    }
}

/// Digests matrices as they come.
fn digest(config: &Config, matrices: Receiver<Digestible>) -> Digests {
    let mut digests = Digests::default();
    for Digestible {
        slot,
        source,
        rounded,
        is_unfolded,
    } in matrices
    {
        let name = slot.to_string();
        let of_source = source.digest(&name).in_place(config, slot);
        if is_unfolded {
            digests.source.insert(of_source);
            continue;
        }
        digests.output.insert(match rounded {
            None => of_source.clone(),
            Some((matrix, error)) => {
                digests.rounded.insert(name.clone(), error);
                TensorDigest::of(&name, &matrix).in_place(config, slot)
            }
        });
        digests.source.insert(of_source);
    }
    digests
}

/// Writes pieces as they come; they come in plan order.
fn write(
    checkpoint: &Checkpoint,
    plan: &Plan,
    mut artifacts: Vec<Artifact>,
    pieces: Receiver<(usize, Piece)>,
    progress: &Progress,
) -> Result<Vec<Artifact>, FormatError> {
    for (artifact, file) in artifacts.iter_mut().zip(&plan.files) {
        artifact.set_len(file.header.total)?;
        artifact.write(&file.header.bytes)?;
    }
    let mut frames: Vec<Option<Frames>> =
        plan.files.iter().map(|f| f.header.frames.clone()).collect();
    let mut file_bar: Option<(usize, Bar)> = None;
    let tensor_bar = progress.bytes("", 0);
    let whole = progress.whole(plan.files.iter().map(|file| file.header.total).sum());
    let mut current = usize::MAX;
    for (index, piece) in pieces {
        let Some(item) = plan.items.get(index) else {
            continue;
        };
        let Some(artifact) = artifacts.get_mut(item.file) else {
            continue;
        };
        if current != index {
            current = index;
            if let Some(Some(frames)) = frames.get_mut(item.file) {
                close_tensors(frames, artifact, item.offset)?;
            }
            artifact.write_zeros(item.offset.saturating_sub(artifact.position()))?;
            tensor_bar.restart(&item.tensor.name, item.tensor.len);
            if file_bar.as_ref().is_none_or(|(file, _)| *file != item.file) {
                let (path, header) = (&plan.files[item.file].path, &plan.files[item.file].header);
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                let bar = progress.bytes(format!("write {name}"), header.total);
                if let Some((_, old)) = file_bar.replace((item.file, bar)) {
                    old.finish();
                }
            }
        }
        let source;
        let bytes = match &piece {
            Piece::Made(bytes) => bytes.as_slice(),
            Piece::Read(bytes) => bytes,
            Piece::Source(slot, range) => {
                source = match checkpoint.tensor_range(*slot) {
                    Some(info) => {
                        checkpoint.file.check_part_of(info)?;
                        let range = range.start as u64..range.end as u64;
                        checkpoint.file.read_part(info, range)?
                    }
                    None => Bytes::default(),
                };
                &source
            }
        };
        artifact.write(bytes)?;
        if let Some(Some(frames)) = frames.get_mut(item.file) {
            frames.update(bytes);
        }
        whole.advance(bytes.len() as u64)?;
        tensor_bar.advance(bytes.len() as u64);
        if let Some((_, bar)) = &file_bar {
            bar.advance(bytes.len() as u64);
        }
    }
    tensor_bar.finish();
    for ((artifact, file), frames) in artifacts.iter_mut().zip(&plan.files).zip(&mut frames) {
        if let Some(frames) = frames {
            close_tensors(frames, artifact, file.header.total)?;
        }
        artifact.write_zeros(file.header.total.saturating_sub(artifact.position()))?;
    }
    // headers and padding
    whole.finish()?;
    Ok(artifacts)
}

/// Writes what stands between the tensors that are written and the offset of the next.
fn close_tensors(
    frames: &mut Frames,
    artifact: &mut Artifact,
    offset: u64,
) -> Result<(), FormatError> {
    while artifact.position() < offset {
        let between = frames.next_tensor();
        if between.is_empty() {
            break;
        }
        artifact.write(&between)?;
    }
    Ok(())
}

struct Converter<'a> {
    checkpoint: &'a Checkpoint,
    plan: &'a Plan,
    rounding: ScaleRounding,
    walk: &'a SourceHash<'a>,
    pieces: SyncSender<(usize, Piece)>,
    matrices: SyncSender<Digestible>,
    losses: Vec<Loss>,
    known_losses: HashSet<String>,
    masters: QuantizedMasters,
    dense: BTreeMap<String, DenseRecord>,
    /// Of matrices that are written, until their own tensors are.
    scales: HashMap<Slot, Vec<f32>>,
}

impl Converter<'_> {
    fn run(&mut self) -> Result<(), FormatError> {
        for (index, item) in self.plan.items.iter().enumerate() {
            self.item(index, item).map_err(|e| {
                // where in the target, unless a place in the source is known
                e.in_tensor(&item.tensor.name)
            })?;
        }
        Ok(())
    }

    fn item(&mut self, index: usize, item: &Item) -> Result<(), FormatError> {
        match (&item.action, item.slot) {
            (Action::Ready(bytes), _) => self.send(index, Piece::Made(bytes.clone())),
            (Action::Scale(form), Some(_)) => {
                let slots = &form.slots;
                for slot in slots {
                    // a job of its own may write the matrix
                    if !self.scales.contains_key(slot) && self.checkpoint.linear(*slot).is_ok() {
                        let matrix = self.in_target_order(*slot, &self.matrix(*slot)?)?;
                        self.scales.insert(*slot, scales_of(form, &matrix)?);
                    }
                }
                let scales: Vec<&[f32]> = slots
                    .iter()
                    .map(|slot| self.scales.get(slot).map_or(&[][..], Vec::as_slice))
                    .collect();
                let bytes = scale_bytes(form, &scales);
                if bytes.len() as u64 != item.tensor.len {
                    let (expected, found) = (&item.tensor.shape, scales.concat().len());
                    let message = format!("expected scales of shape {expected:?}, found {found}");
                    return Err(FormatError::new(ErrorCode::TargetCannotHold, message));
                }
                if form.is_last {
                    self.scales.retain(|slot, _| !slots.contains(slot));
                }
                self.send(index, Piece::Made(bytes))
            }
            (Action::Carry(info), _) => self.carry(index, info),
            (_, None) => Ok(()),
            (Action::Shape(to), Some(slot)) => {
                self.wait_for(slot)?;
                self.shape(index, item, slot, *to)
            }
            (Action::Pack(packing), Some(slot)) => {
                self.wait_for(slot)?;
                if let Some(packed) = self.transcode(item, slot, *packing)? {
                    return self.send(index, Piece::Made(packed));
                }
                let source = self.matrix(slot)?;
                self.count_master(slot)?;
                let matrix = self.in_target_order(slot, &source)?;
                let beside = self.plan.scale_tensor(slot);
                let plain = beside.map_or(PlainType::F32, |form| form.plain);
                packing.check_trits(&matrix)?;
                let error = packing.check_scales(&matrix, self.rounding)?;
                let beside_error = scales::check_float(&matrix, plain, self.rounding)?;
                let packed = pack(*packing, &matrix, item.tensor.len);
                let rounded = if error > 0.0 {
                    Some((self.unpack(slot, *packing, &matrix, &packed)?, error))
                } else if beside_error > 0.0 {
                    Some((scales::rounded(&source, plain)?, beside_error))
                } else {
                    None
                };
                if let Some(form) = beside {
                    self.scales.insert(slot, scales_of(form, &matrix)?);
                }
                self.digest_matrix(item, slot, source, rounded)?;
                self.send(index, Piece::Made(packed))
            }
            (Action::Dequantise(plain), Some(slot)) => {
                let source = self.matrix(slot)?;
                self.count_master(slot)?;
                let matrix = self.in_target_order(slot, &source)?;
                let error = scales::check_float(&matrix, *plain, self.rounding)?;
                let rounded = match error > 0.0 {
                    true => Some((scales::rounded(&source, *plain)?, error)),
                    false => None,
                };
                self.digest_matrix(item, slot, source, rounded)?;
                self.dequantise(index, &matrix, *plain)
            }
            (Action::Unfold(plain), Some(slot)) => self.unfold(index, item, slot, *plain),
            (Action::CopyPacked(_), Some(slot)) => {
                let source = self.matrix(slot)?;
                self.digest_matrix(item, slot, source, None)?;
                self.send_source(index, slot, 0..item.tensor.len as usize)
            }
            (Action::CopyMaster, Some(slot)) => {
                let source = self.matrix(slot)?;
                self.digest_matrix(item, slot, source, None)?;
                self.copy_master(index, slot)
            }
            (Action::Copy, Some(slot)) => self.copy_dense(index, slot),
            (Action::Recode(to), Some(slot)) => self.recode(index, item, slot, *to),
        }
    }

    fn send(&self, index: usize, piece: Piece) -> Result<(), FormatError> {
        self.pieces.send((index, piece)).map_err(|_| stopped())
    }

    fn send_source(
        &self,
        index: usize,
        slot: Slot,
        range: Range<usize>,
    ) -> Result<(), FormatError> {
        for start in range.clone().step_by(PIECE as usize) {
            let end = range.end.min(start + PIECE as usize);
            self.send(index, Piece::Source(slot, start..end))?;
        }
        Ok(())
    }

    fn wait_for(&self, slot: Slot) -> Result<(), FormatError> {
        match self.checkpoint.tensor_range(slot) {
            Some(info) if !self.walk.wait_for(info, 0..info.len) => Err(stopped()),
            _ => Ok(()),
        }
    }

    /// The matrix of a linear in Hugging Face order.
    fn matrix(&self, slot: Slot) -> Result<Arc<TernaryMatrix>, FormatError> {
        self.wait_for(slot)?;
        Ok(Arc::new(self.checkpoint.ternary(slot)?))
    }

    /// Adds what quantizing changed in a linear of master weights, if it is one.
    fn count_master(&mut self, slot: Slot) -> Result<(), FormatError> {
        if let Some((change, total)) = self.checkpoint.absmean_change(slot)? {
            self.masters.tensors += 1;
            self.masters.change += change;
            self.masters.total += total;
        }
        Ok(())
    }

    fn in_target_order(
        &self,
        slot: Slot,
        matrix: &Arc<TernaryMatrix>,
    ) -> Result<Arc<TernaryMatrix>, FormatError> {
        // before packing: some packings mix rows
        match stored_order(self.checkpoint, self.plan.target, slot) {
            Some(order) => order.from_hf(matrix).map(Arc::new),
            None => Ok(Arc::clone(matrix)),
        }
    }

    /// What a reader of packed bytes will see, in Hugging Face order.
    fn unpack(
        &self,
        slot: Slot,
        packing: &dyn Packing,
        matrix: &TernaryMatrix,
        bytes: &[u8],
    ) -> Result<TernaryMatrix, FormatError> {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        // scales outside the bytes are f32 and never rounded
        let outside = (!packing.holds_scales()).then_some(matrix.scales());
        let seen = packing.unpack(&PackedTensor {
            bytes,
            rows,
            cols,
            outside,
        })?;
        match stored_order(self.checkpoint, self.plan.target, slot) {
            Some(order) => order.to_hf(&seen),
            None => Ok(seen),
        }
    }

    /// Packs a linear straight from its packed bytes, where it has one scale that `to` holds exactly and
    /// its rows keep their order, and sends it to the certificate; else `None`.
    fn transcode(
        &mut self,
        item: &Item,
        slot: Slot,
        to: &'static dyn Packing,
    ) -> Result<Option<Vec<u8>>, FormatError> {
        let permuted = stored_order(self.checkpoint, self.plan.target, slot).is_some();
        let Some(rows) = self.checkpoint.ternary_rows(slot)?.filter(|_| !permuted) else {
            return Ok(None);
        };
        let Scales::PerTensor(scale) = *rows.scales() else {
            return Ok(None);
        };
        let Some(probe) = scales::matrix(scale) else {
            return Ok(None);
        };
        let beside = self.plan.scale_tensor(slot);
        let plain = beside.map_or(PlainType::F32, |form| form.plain);
        if to.check_scales(&probe, ScaleRounding::Refuse) != Ok(0.0)
            || scales::check_float(&probe, plain, ScaleRounding::Refuse) != Ok(0.0)
        {
            return Ok(None);
        }
        let shape = rows.shape();
        let trailer = to.trailer(&probe);
        let units = (item.tensor.len as usize).saturating_sub(trailer.len());
        let mut packed = Vec::with_capacity(item.tensor.len as usize);
        packed.resize(units, 0);
        let mut codes = vec![0; shape.0 * code_row_len(shape.1)];
        let Some(any) = transcode(&rows, to, scale, &mut packed, &mut codes)? else {
            return Ok(None);
        };
        packed.extend_from_slice(&trailer);
        if let Some(form) = beside {
            let groups = form.group.map_or(1, |group| shape.0 * (shape.1 / group));
            self.scales.insert(slot, vec![scale; groups]);
        }
        let source = Trits::Codes {
            shape,
            codes,
            scale: if any { scale } else { 0.0 },
        };
        self.digest(
            item,
            Digestible {
                slot,
                source,
                rounded: None,
                is_unfolded: false,
            },
        )?;
        Ok(Some(packed))
    }

    /// As [`digest`](Self::digest), of a whole matrix.
    fn digest_matrix(
        &mut self,
        item: &Item,
        slot: Slot,
        source: Arc<TernaryMatrix>,
        rounded: Option<(TernaryMatrix, f64)>,
    ) -> Result<(), FormatError> {
        let source = Trits::Matrix(source);
        self.digest(
            item,
            Digestible {
                slot,
                source,
                rounded,
                is_unfolded: false,
            },
        )
    }

    /// Sends a matrix to the certificate and notes what rounding did to it.
    fn digest(&mut self, item: &Item, matrix: Digestible) -> Result<(), FormatError> {
        // those that the plan has seen are in the plan
        let name = &item.tensor.name;
        if let Some((_, error)) = &matrix.rounded
            && !self.known_losses.contains(name)
        {
            self.losses.push(Loss {
                tensor: name.clone(),
                kind: "scale-rounding",
                max_relative: Some(*error),
                max_absolute: None,
            });
        }
        self.matrices.send(matrix).map_err(|_| stopped())
    }

    fn record(
        &mut self,
        slot: Slot,
        dense: &DenseTensor<'_>,
        values_sha256: String,
        verdict: Verdict,
    ) {
        let (name, shape) = (slot.to_string(), dense.shape.to_vec());
        self.dense.insert(
            name.clone(),
            DenseRecord {
                name,
                shape,
                values_sha256,
                verdict,
            },
        );
    }
}

/// Packs a matrix, its units shared out over the pool.
fn pack(packing: &dyn Packing, matrix: &TernaryMatrix, len: u64) -> Vec<u8> {
    let trailer = packing.trailer(matrix);
    let units = (len as usize).saturating_sub(trailer.len());
    let mut out = Vec::with_capacity(len as usize);
    out.resize(units, 0);
    let unit = packing.unit_len(matrix.rows(), matrix.cols()).max(1);
    let units_per_task = (TASK / unit).max(1);
    out.par_chunks_mut(units_per_task * unit)
        .enumerate()
        .for_each(|(n, out)| {
            packing.pack_units(matrix, n * units_per_task, out);
        });
    out.extend_from_slice(&trailer);
    out
}
