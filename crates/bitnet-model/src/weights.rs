//! The weights of a network: matrices packed for a backend, gains widened to f32.
//!
//! Invariant: loading streams. Ternary matrices are unpacked a strip of rows at a time, in parallel over
//! matrices, and the pages of the file are given back as they are packed; embeddings and head
//! stay in the mapped file ([`DenseMatrix`]). Every shape was checked against the configuration when
//! the checkpoint was opened; what the forward pass relies on is checked here once more.

mod tiles;

pub use tiles::best_backend;

use crate::kv_cache::KvType;
use crate::vocabulary::Vocabulary;
use bitnet_checkpoint::Checkpoint;
use bitnet_checkpoint::{LayerSlot, Slot};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::{Backend, PackedMatrix};
use bitnet_ternary::{MatrixError, Scales, TernaryMatrix};
use rayon::prelude::*;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows that are unpacked at a time: small enough for L2, whole tiles of every kernel.
const STRIP_ROWS: usize = 64;

/// How a model is loaded.
#[derive(Clone, Copy)]
pub struct LoadOptions<'a> {
    /// Which kernel computes.
    pub backend: Backend,
    /// How sessions keep keys and values.
    pub kv_type: KvType,
    /// Where linears stay that the file holds as tiles.
    pub tiles: TilesIn,
    /// Threads that compute; 0: as many as the rayon pool has from which a forward pass is called (the
    /// global one, if from none). Loading runs on rayon.
    pub threads: usize,
    /// Called with (tensors done, tensors in all).
    pub progress: Option<&'a (dyn Fn(usize, usize) + Sync)>,
}

/// Where linears stay that a file holds as tiles (`formats/packed.md`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TilesIn {
    /// In the mapped file; another layout than the kernel's is refused.
    File,
    /// In the mapped file; another layout is packed again in memory.
    FileOrMemory,
    /// In memory of the process, on huge pages where the system has them, whatever their layout.
    Memory,
}

impl Default for LoadOptions<'_> {
    /// The fastest kernel, f32 keys and values, the threads of the caller's rayon pool.
    fn default() -> Self {
        Self {
            backend: Backend::best(),
            kv_type: KvType::default(),
            tiles: TilesIn::File,
            threads: 0,
            progress: None,
        }
    }
}

impl fmt::Debug for LoadOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadOptions")
            .field("backend", &self.backend)
            .field("kv_type", &self.kv_type)
            .finish_non_exhaustive()
    }
}

/// Everything the forward pass multiplies with.
#[derive(Debug)]
pub(crate) struct Weights {
    pub embeddings: Vocabulary, // (vocab, hidden)
    pub layers: Vec<LayerWeights>,
    pub output_norm: Vec<f32>,   // (hidden,)
    pub output_head: Vocabulary, // (vocab, hidden), the embeddings when tied
}

/// One decoder layer.
#[derive(Debug)]
pub(crate) struct LayerWeights {
    pub input_norm: Vec<f32>, // (hidden,)
    pub projection_norms: Option<ProjectionNorms>,
    pub q_proj: PackedMatrix,               // (heads * head_dim, hidden)
    pub k_proj: PackedMatrix,               // (kv_heads * head_dim, hidden)
    pub v_proj: PackedMatrix,               // (kv_heads * head_dim, hidden)
    pub q_norm: Option<Vec<f32>>,           // (head_dim,)
    pub k_norm: Option<Vec<f32>>,           // (head_dim,)
    pub attn_sub_norm: Option<Vec<f32>>,    // (heads * head_dim,)
    pub o_proj: PackedMatrix,               // (hidden, heads * head_dim)
    pub attn_branch_norm: Option<Vec<f32>>, // (hidden,)
    pub post_attention_norm: Vec<f32>,      // (hidden,)
    pub gate_proj: PackedMatrix,            // (inter, hidden)
    pub up_proj: PackedMatrix,              // (inter, hidden)
    pub ffn_sub_norm: Option<Vec<f32>>,     // (inter,)
    pub down_proj: PackedMatrix,            // (hidden, inter)
    pub ffn_branch_norm: Option<Vec<f32>>,  // (hidden,)
}

/// Input norms of linears that share their input, `(hidden,)` each.
#[derive(Debug)]
pub(crate) struct ProjectionNorms {
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
}

impl LayerWeights {
    /// A linear by its slot.
    pub(crate) fn linear(&self, slot: LayerSlot) -> Option<&PackedMatrix> {
        match slot {
            LayerSlot::QProj => Some(&self.q_proj),
            LayerSlot::KProj => Some(&self.k_proj),
            LayerSlot::VProj => Some(&self.v_proj),
            LayerSlot::OProj => Some(&self.o_proj),
            LayerSlot::GateProj => Some(&self.gate_proj),
            LayerSlot::UpProj => Some(&self.up_proj),
            LayerSlot::DownProj => Some(&self.down_proj),
            LayerSlot::InputNorm
            | LayerSlot::QProjNorm
            | LayerSlot::KProjNorm
            | LayerSlot::VProjNorm
            | LayerSlot::QNorm
            | LayerSlot::KNorm
            | LayerSlot::AttnSubNorm
            | LayerSlot::AttnBranchNorm
            | LayerSlot::PostAttentionNorm
            | LayerSlot::GateProjNorm
            | LayerSlot::UpProjNorm
            | LayerSlot::FfnSubNorm
            | LayerSlot::FfnBranchNorm => None,
        }
    }
}

impl Weights {
    /// Loads every slot, in the order of the forward pass.
    pub(crate) fn load(
        checkpoint: &Checkpoint,
        options: &LoadOptions<'_>,
    ) -> Result<Self, FormatError> {
        let config = &checkpoint.config;
        let total = config.slots().len();
        let done = AtomicUsize::new(0);
        let tick = || {
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if let Some(progress) = options.progress {
                progress(done, total);
            }
        };
        let embeddings = Vocabulary::open(checkpoint, options, Slot::TokenEmbeddings)?;
        tick();
        checkpoint.prefer_huge_tiles();
        // every linear on its own: threads share nothing, and the strips of one stay in one L2
        let slots: Vec<Slot> = (0..config.num_hidden_layers)
            .flat_map(|layer| LayerSlot::LINEARS.map(|slot| Slot::Layer(layer, slot)))
            .collect();
        let linears: Vec<Result<PackedMatrix, FormatError>> = slots
            .par_iter()
            .with_max_len(1)
            .map(|slot| {
                let matrix = linear(checkpoint, options, *slot);
                if !matches!(&matrix, Ok(matrix) if matrix.is_mapped()) {
                    checkpoint.release(*slot);
                }
                tick();
                matrix
            })
            .collect();
        // the error of the first slot, whichever failed first in time
        let mut linears = linears
            .into_iter()
            .collect::<Result<Vec<_>, _>>()?
            .into_iter();
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for layer in 0..config.num_hidden_layers {
            let Some(
                [
                    q_proj,
                    k_proj,
                    v_proj,
                    o_proj,
                    gate_proj,
                    up_proj,
                    down_proj,
                ],
            ) = take(&mut linears)
            else {
                break; // there are as many as slots
            };
            let gain = |slot| {
                let gain = gain(checkpoint, Slot::Layer(layer, slot));
                tick();
                gain
            };
            let input_norm = gain(LayerSlot::InputNorm)?;
            let post_attention_norm = gain(LayerSlot::PostAttentionNorm)?;
            let optional = |there: bool, slot| there.then(|| gain(slot)).transpose();
            let attn_sub_norm = optional(config.attn_sub_norm, LayerSlot::AttnSubNorm)?;
            let ffn_sub_norm = optional(config.ffn_sub_norm, LayerSlot::FfnSubNorm)?;
            let norms = config.norms;
            let projection_norms = match norms.projections {
                true => Some(ProjectionNorms {
                    q: gain(LayerSlot::QProjNorm)?,
                    k: gain(LayerSlot::KProjNorm)?,
                    v: gain(LayerSlot::VProjNorm)?,
                    gate: gain(LayerSlot::GateProjNorm)?,
                    up: gain(LayerSlot::UpProjNorm)?,
                }),
                false => None,
            };
            layers.push(LayerWeights {
                input_norm,
                projection_norms,
                q_proj,
                k_proj,
                v_proj,
                q_norm: optional(norms.heads, LayerSlot::QNorm)?,
                k_norm: optional(norms.heads, LayerSlot::KNorm)?,
                attn_sub_norm,
                o_proj,
                attn_branch_norm: optional(norms.branches, LayerSlot::AttnBranchNorm)?,
                post_attention_norm,
                gate_proj,
                up_proj,
                ffn_sub_norm,
                down_proj,
                ffn_branch_norm: optional(norms.branches, LayerSlot::FfnBranchNorm)?,
            });
        }
        let output_norm = gain(checkpoint, Slot::OutputNorm)?;
        tick();
        let output_head = if config.tie_word_embeddings {
            embeddings.clone()
        } else {
            let head = Vocabulary::open(checkpoint, options, Slot::OutputHead)?;
            tick();
            head
        };
        Ok(Self {
            embeddings,
            layers,
            output_norm,
            output_head,
        })
    }
}

/// The next `N` items, if there are so many.
fn take<T, const N: usize>(items: &mut impl Iterator<Item = T>) -> Option<[T; N]> {
    items.take(N).collect::<Vec<T>>().try_into().ok()
}

/// A linear that the file holds in the layout of the kernel; `None` if it is to be packed.
fn mapped(
    checkpoint: &Checkpoint,
    options: &LoadOptions<'_>,
    slot: Slot,
) -> Result<Option<PackedMatrix>, FormatError> {
    let Some(tiles) = checkpoint.tiles(slot)? else {
        return Ok(None);
    };
    let (rows, cols) = tiles.shape();
    check_shape(slot, &[rows, cols], &checkpoint.config.shape(slot))?;
    match (tiles::are_for(&tiles, options.backend), options.tiles) {
        (true, TilesIn::File | TilesIn::FileOrMemory) => {
            tiles::map(&tiles, options.backend).map(Some)
        }
        (true, TilesIn::Memory) => Ok(Some(tiles::map(&tiles, options.backend)?.resident())),
        (false, TilesIn::FileOrMemory | TilesIn::Memory) => Ok(None),
        (false, TilesIn::File) => {
            let readers: Vec<_> = Backend::available()
                .filter(|b| tiles::are_for(&tiles, *b))
                .map(|b| format!("--kernel {}", b.name()))
                .collect();
            let hint = match readers.is_empty() {
                true => "no kernel of this cpu does".to_owned(),
                false => format!("{} does", readers.join(" or ")),
            };
            let message = format!(
                "kernel {} does not read the layout {} where it lies",
                options.backend.name(),
                tiles.layout()
            );
            Err(FormatError::new(ErrorCode::Kernel, message)
                .in_tensor(&slot.to_string())
                .in_file(&checkpoint.path)
                .hint(format!("{hint}; --repack packs it in memory for any")))
        }
    }
}

/// A ternary matrix: mapped, or unpacked and packed again for the backend, strip by strip where its
/// bytes allow.
pub(crate) fn linear(
    checkpoint: &Checkpoint,
    options: &LoadOptions<'_>,
    slot: Slot,
) -> Result<PackedMatrix, FormatError> {
    if let Some(matrix) = mapped(checkpoint, options, slot)? {
        return Ok(matrix);
    }
    let backend = options.backend;
    if let Some(source) = checkpoint.ternary_rows(slot)? {
        let (rows, cols) = source.shape();
        check_shape(slot, &[rows, cols], &checkpoint.config.shape(slot))?;
        let scales = source.scales().clone();
        return PackedMatrix::by_strips(backend, (rows, cols), scales, STRIP_ROWS, |strips| {
            let mut trits = vec![0; STRIP_ROWS * cols]; // (rows of the strip, cols)
            for strip in strips {
                trits.resize(strip.rows().len() * cols, 0);
                source.read(strip.rows().start, &mut trits)?;
                strip.pack(&trits);
            }
            Ok(())
        });
    }
    let matrix = checkpoint.ternary(slot)?;
    let shape = [matrix.rows(), matrix.cols()];
    check_shape(slot, &shape, &checkpoint.config.shape(slot))?;
    Ok(backend.pack(&in_normal_form(matrix).map_err(|error| {
        FormatError::new(ErrorCode::Malformed, error.to_string()).in_tensor(&slot.to_string())
    })?))
}

/// The matrix with its scales in normal form: a container that repeats one scale in every block says
/// what a container with one scale says, and must give the same answer.
fn in_normal_form(matrix: TernaryMatrix) -> Result<TernaryMatrix, MatrixError> {
    if matches!(matrix.scales(), Scales::PerTensor(_)) {
        return Ok(matrix);
    }
    let (rows, cols, scales) = (matrix.rows(), matrix.cols(), matrix.normal_scales());
    TernaryMatrix::new(rows, cols, matrix.into_trits(), scales)
}

/// The gain of a norm, widened.
fn gain(checkpoint: &Checkpoint, slot: Slot) -> Result<Vec<f32>, FormatError> {
    let tensor = checkpoint.dense(slot)?;
    check_shape(slot, tensor.shape, &checkpoint.config.shape(slot))?;
    let mut gain = vec![0.0; tensor.shape.iter().product()];
    tensor.widen(tensor.bytes, &mut gain)?;
    checkpoint.release(slot);
    Ok(gain)
}

fn check_shape(slot: Slot, found: &[usize], expected: &[usize]) -> Result<(), FormatError> {
    if found == expected {
        return Ok(());
    }
    Err(FormatError::new(
        ErrorCode::WrongShape,
        format!("expected shape {expected:?}, found {found:?}"),
    )
    .in_tensor(&slot.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_repeated_in_every_block_is_one_scale() {
        let trits: Vec<i8> = (0..2 * 64).map(|i| (i % 3) as i8 - 1).collect();
        let matrix = |scales| TernaryMatrix::new(2, 64, trits.clone(), scales).unwrap();
        let one = matrix(Scales::PerTensor(0.25));
        let repeated = matrix(Scales::PerGroup {
            group: 32,
            scales: vec![0.25; 4],
        });
        assert_eq!(in_normal_form(repeated).unwrap(), one);
        assert_eq!(
            in_normal_form(matrix(Scales::PerRow(vec![0.25; 2]))).unwrap(),
            one
        );
        let different = matrix(Scales::PerRow(vec![0.25, 0.5]));
        assert_eq!(in_normal_form(different.clone()).unwrap(), different);
    }
}
