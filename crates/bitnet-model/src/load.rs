//! Tensors of a checkpoint as weights: matrices packed for a backend, gains widened to f32.
//!
//! Invariant: loading streams. Ternary matrices are unpacked a strip of rows at a time, in parallel over
//! matrices, and the pages of the file are given back as they are packed. Every shape was checked against the configuration when
//! the checkpoint was opened; what the forward pass relies on is checked here once more.

mod tiles;

pub use tiles::best_backend;

use crate::dense_rows::DenseRows;
use crate::kv_cache::KvType;
use bitnet_checkpoint::{ActivationQuantization, Checkpoint, LayerSlot, Slot};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::{Backend, Inputs, PackedMatrix};
use bitnet_ternary::{MatrixError, Scales, TernaryMatrix};
use rayon::prelude::*;
use std::collections::HashMap;
use std::fmt;

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
    /// Threads that load and compute; 0: all that the system offers.
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
    /// The fastest kernel, f32 keys and values, all threads.
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

/// The tensors of the layers of a checkpoint, on their way into blocks.
pub(crate) struct LayerTensors<'a> {
    checkpoint: &'a Checkpoint,
    tick: &'a (dyn Fn() + Sync),
    linears: HashMap<Slot, PackedMatrix>,
}

impl<'a> LayerTensors<'a> {
    /// Reads all linears, in parallel on the current rayon pool. `tick` is called for every tensor.
    pub(crate) fn read(
        checkpoint: &'a Checkpoint,
        options: &LoadOptions<'_>,
        tick: &'a (dyn Fn() + Sync),
    ) -> Result<Self, FormatError> {
        checkpoint.prefer_huge_tiles();
        let slots = checkpoint.config.slots();
        let slots: Vec<Slot> = slots.into_iter().filter(|slot| slot.is_ternary()).collect();
        // every linear on its own: threads share nothing, and the strips of one stay in one L2
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
        let linears = linears.into_iter().collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            checkpoint,
            tick,
            linears: slots.into_iter().zip(linears).collect(),
        })
    }

    /// Takes a linear.
    pub(crate) fn linear(
        &mut self,
        layer: usize,
        slot: LayerSlot,
    ) -> Result<PackedMatrix, FormatError> {
        let slot = Slot::Layer(layer, slot);
        self.linears.remove(&slot).ok_or_else(|| {
            FormatError::new(ErrorCode::MissingTensor, "this network has no such linear")
                .in_tensor(&slot.to_string())
        })
    }

    /// Reads the gain of a norm.
    pub(crate) fn gain(&self, layer: usize, slot: LayerSlot) -> Result<Vec<f32>, FormatError> {
        let gain = gain(self.checkpoint, Slot::Layer(layer, slot));
        (self.tick)();
        gain
    }

    /// Reads a small dense matrix.
    pub(crate) fn rows(&self, layer: usize, slot: LayerSlot) -> Result<DenseRows, FormatError> {
        let slot = Slot::Layer(layer, slot);
        let tensor = self.checkpoint.dense(slot)?;
        let expected = self.checkpoint.config.shape(slot);
        check_shape(slot, tensor.shape, &expected)?;
        let [rows, cols] = expected[..] else {
            return Err(FormatError::new(ErrorCode::WrongShape, "expected a matrix")
                .in_tensor(&slot.to_string()));
        };
        let found = DenseRows::new(&tensor, rows, cols);
        self.checkpoint.release(slot);
        (self.tick)();
        found
    }

    /// Reads the gain of a norm that the network may have.
    pub(crate) fn gain_if(
        &self,
        there: bool,
        layer: usize,
        slot: LayerSlot,
    ) -> Result<Option<Vec<f32>>, FormatError> {
        there.then(|| self.gain(layer, slot)).transpose()
    }
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
    // a head's input is never quantized
    let inputs = match (checkpoint.config.activation_quantization, slot) {
        (ActivationQuantization::Int8PerToken, Slot::Layer(..)) => Inputs::Int8,
        _ => Inputs::Float,
    };
    if let Some(source) = checkpoint.ternary_rows(slot)? {
        let (rows, cols) = source.shape();
        check_shape(slot, &[rows, cols], &checkpoint.config.shape(slot))?;
        let scales = source.scales().clone();
        let shape = (rows, cols);
        return PackedMatrix::by_strips_for(inputs, backend, shape, scales, STRIP_ROWS, |strips| {
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
    let matrix = in_normal_form(matrix).map_err(|error| {
        FormatError::new(ErrorCode::Malformed, error.to_string())
            .in_tensor(&slot.to_string())
            .because(error)
    })?;
    Ok(backend.pack_for(inputs, &matrix))
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
pub(crate) fn gain(checkpoint: &Checkpoint, slot: Slot) -> Result<Vec<f32>, FormatError> {
    let tensor = checkpoint.dense(slot)?;
    check_shape(slot, tensor.shape, &checkpoint.config.shape(slot))?;
    let mut gain = vec![0.0; tensor.shape.iter().product()];
    tensor.widen(&tensor.bytes, &mut gain)?;
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
