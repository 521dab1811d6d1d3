//! Keys and values of the positions so far, in blocks of 256 positions.
//!
//! Invariant: a block belongs to fixed positions `[256 b, 256 b + 256)` of all layers with attention, whatever was
//! appended when: attention walks the blocks in order, and its sums are those of the blocks
//! (`formats/numerics.md`). Memory grows with the positions used, a block at a time, and nothing is
//! ever moved. Caches may share blocks; a block is written by a cache that has it alone, and copied first
//! if it has not.

use bitnet_checkpoint::Attention;
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::{AlignedBytes, Backend, DenseType, RowType};
use std::ops::Range;
use std::sync::Arc;

/// Positions in a block; part of the definition of attention, independent of everything.
pub(crate) const BLOCK_POSITIONS: usize = 256;

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// As computed.
    #[default]
    F32,
    /// Rounded to nearest even; half the memory, equally deterministic.
    F16,
    /// Codes of eight bits with a scale for every 32: 28 % of the memory, equally deterministic.
    Q8,
}

impl KvType {
    /// `f32`, `f16` or `q8`, the value of `--kv-type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8 => "q8",
        }
    }

    /// The inverse of [`as_str`](Self::as_str).
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16, Self::Q8]
            .into_iter()
            .find(|t| t.as_str() == name)
    }

    pub(crate) fn row_type(self) -> RowType {
        match self {
            Self::F32 => RowType::Dense(DenseType::F32),
            Self::F16 => RowType::Dense(DenseType::F16),
            Self::Q8 => RowType::Q8,
        }
    }
}

/// Keys and values of every layer with attention.
///
/// The layers of a block lie in one allocation: one layer of 256 positions is less than a huge page.
#[derive(Debug)]
pub struct KvCache {
    kv_type: KvType,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    blocks: Vec<Arc<AlignedBytes>>, // (layers, 2, kv_heads, BLOCK_POSITIONS) rows each, of head_dim numbers
}

impl KvCache {
    /// An empty cache for layers with attention, all of the same shape.
    pub(crate) fn new(layers: &[Attention], kv_type: KvType) -> Self {
        let shape = |attention: &Attention| (attention.kv_heads, attention.head_dim);
        let (kv_heads, head_dim) = layers.first().map_or((1, 2), shape);
        assert!(
            layers
                .iter()
                .all(|layer| shape(layer) == (kv_heads, head_dim)),
            "layers with attention differ in their heads"
        );
        Self {
            kv_type,
            layers: layers.len(),
            kv_heads,
            head_dim,
            blocks: Vec::new(),
        }
    }

    /// The cache of one layer, to read.
    pub(crate) fn layer(&self, layer: usize) -> LayerCache<'_> {
        LayerCache { cache: self, layer }
    }

    /// Bytes of keys and values of one position in all layers.
    pub fn position_bytes(&self) -> usize {
        2 * self.layers * self.kv_heads * self.row_bytes()
    }

    /// Bytes allocated, shared ones included.
    pub fn byte_len(&self) -> usize {
        self.blocks.iter().map(|block| block.len()).sum()
    }

    /// Bytes of the blocks that this cache shares with others.
    pub fn shared_byte_len(&self) -> usize {
        let shared = |block: &&Arc<AlignedBytes>| Arc::strong_count(block) > 1;
        self.blocks.iter().filter(shared).map(|b| b.len()).sum()
    }

    /// A cache of the same positions below `position`. Blocks are shared until one of the two writes to them.
    pub(crate) fn fork(&self, position: usize) -> Self {
        let blocks = position.div_ceil(BLOCK_POSITIONS);
        Self {
            blocks: self.blocks.iter().take(blocks).cloned().collect(),
            ..*self
        }
    }

    /// Bytes of one head's key at one position.
    fn row_bytes(&self) -> usize {
        let bytes = self.kv_type.row_type().row_bytes(self.head_dim);
        bytes.unwrap_or(usize::MAX)
    }

    /// Bytes of a block; `None` for more than a number holds.
    fn block_bytes(&self) -> Option<usize> {
        [self.layers, self.kv_heads, self.row_bytes()]
            .into_iter()
            .try_fold(2 * BLOCK_POSITIONS, usize::checked_mul)
    }

    /// Makes room for `positions`, which are about to be written: blocks that are missing, and copies of those
    /// that others have, too. Memory that is not there yet is none of anybody's before it is written.
    ///
    /// # Errors
    /// `limit-exceeded` if the system has not so much memory.
    pub(crate) fn reserve(&mut self, positions: Range<usize>) -> Result<(), FormatError> {
        if positions.is_empty() {
            return Ok(());
        }
        let bytes = self.block_bytes();
        let none = || {
            let blocks = positions.end.div_ceil(BLOCK_POSITIONS);
            let all = bytes.and_then(|bytes| bytes.checked_mul(blocks));
            let message = format!(
                "expected {} bytes of memory for keys and values of {} positions, found less",
                all.map_or_else(|| "too many".to_owned(), |all| all.to_string()),
                positions.end
            );
            FormatError::new(ErrorCode::LimitExceeded, message)
                .hint("give a shorter text, or keep keys and values in fewer bits: --kv-type q8")
        };
        let (bytes, row_bytes) = (bytes.ok_or_else(none)?, self.row_bytes());
        for number in positions.start / BLOCK_POSITIONS..positions.end.div_ceil(BLOCK_POSITIONS) {
            let first = number * BLOCK_POSITIONS;
            let block = self.blocks.get_mut(number);
            if block.and_then(Arc::get_mut).is_some() {
                continue;
            }
            // a block whose positions come one after another: nobody pays for those that no text reaches
            let whole = positions.start <= first && first + BLOCK_POSITIONS <= positions.end;
            let block = match whole {
                true => AlignedBytes::on_huge_pages(bytes),
                false => AlignedBytes::zeroed(bytes),
            };
            let mut block = block.ok_or_else(none)?;
            match self.blocks.get_mut(number) {
                None => {
                    self.blocks.try_reserve(1).map_err(|_| none())?;
                    self.blocks.push(Arc::new(block));
                }
                Some(shared) => {
                    let kept = positions.start.saturating_sub(first).min(BLOCK_POSITIONS);
                    let row = row_bytes;
                    let heads = shared
                        .chunks_exact(BLOCK_POSITIONS * row)
                        .zip(block.chunks_exact_mut(BLOCK_POSITIONS * row));
                    for (from, to) in heads {
                        to[..kept * row].copy_from_slice(&from[..kept * row]);
                    }
                    *shared = Arc::new(block);
                }
            }
        }
        Ok(())
    }

    /// Stores keys and values of a layer, `(tokens, kv_heads * head_dim)` each, of the positions from
    /// `position` on, over whatever was there.
    ///
    /// # Panics
    /// Without [`reserve`](Self::reserve) before.
    pub(crate) fn store(
        &mut self,
        backend: Backend,
        layer: usize,
        position: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let (dim, bytes, kv_type) = (self.head_dim, self.row_bytes(), self.kv_type);
        let width = self.kv_heads * dim;
        let (last, heads) = (layer + 1 == self.layers, self.kv_heads);
        let tokens = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (position, (keys, values)) in (position..).zip(tokens) {
            let (number, row) = (position / BLOCK_POSITIONS, position % BLOCK_POSITIONS);
            let block = self.blocks.get_mut(number).and_then(Arc::get_mut);
            let block = block.expect("a block that was reserved");
            for (which, from) in [keys, values].into_iter().enumerate() {
                for (head, from) in from.chunks_exact(dim).enumerate() {
                    let head = (2 * layer + which) * heads + head;
                    let at = (head * BLOCK_POSITIONS + row) * bytes;
                    let to = &mut block[at..at + bytes];
                    match kv_type {
                        KvType::F32 => {
                            for (to, value) in to.as_chunks_mut().0.iter_mut().zip(from) {
                                *to = value.to_le_bytes();
                            }
                        }
                        KvType::F16 => backend.narrow(from, to),
                        KvType::Q8 => backend.narrow_q8(from, to),
                    }
                }
            }
            // a full block is read through at every token, which on small pages takes half as long again
            if row + 1 == BLOCK_POSITIONS && last {
                block.settle();
            }
        }
    }
}

/// Keys and values of one layer, to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LayerCache<'a> {
    cache: &'a KvCache,
    layer: usize,
}

impl<'a> LayerCache<'a> {
    pub(crate) fn head_dim(&self) -> usize {
        self.cache.head_dim
    }

    pub(crate) fn kv_heads(&self) -> usize {
        self.cache.kv_heads
    }

    pub(crate) fn row_type(&self) -> RowType {
        self.cache.kv_type.row_type()
    }

    /// Some keys and values of a head in a block, `(rows, head_dim)` each, as the cache stores them.
    pub(crate) fn block(
        &self,
        block: usize,
        kv_head: usize,
        rows: Range<usize>,
    ) -> (&'a [u8], &'a [u8]) {
        let bytes = self.cache.row_bytes();
        let rows = |which: usize| {
            let head = (2 * self.layer + which) * self.cache.kv_heads + kv_head;
            let from = head * BLOCK_POSITIONS * bytes;
            &self.cache.blocks[block][from + rows.start * bytes..from + rows.end * bytes]
        };
        (rows(0), rows(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(layers: usize) -> KvCache {
        KvCache {
            kv_type: KvType::F32,
            layers,
            kv_heads: 2,
            head_dim: 4,
            blocks: Vec::new(),
        }
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        for layers in [usize::MAX / (1 << 15), usize::MAX / 4, usize::MAX] {
            let error = cache(layers).reserve(0..1).unwrap_err();
            assert_eq!(error.code, ErrorCode::LimitExceeded, "{layers}");
        }
        cache(usize::MAX).reserve(0..0).unwrap();
    }

    #[test]
    fn forks_share_blocks_until_one_writes() {
        let backend = Backend::best();
        let rows = |from: usize, n: usize| -> Vec<f32> {
            (0..8 * n).map(|i| (8 * from + i) as f32).collect()
        };
        let mut first = cache(1);
        first.reserve(0..300).unwrap();
        first.store(backend, 0, 0, &rows(0, 300), &rows(1000, 300));
        let block = first.byte_len() / 2;
        assert_eq!(first.shared_byte_len(), 0);

        let mut second = first.fork(290);
        assert_eq!(
            (first.shared_byte_len(), second.shared_byte_len()),
            (2 * block, 2 * block)
        );
        // the full block stays shared, the other one is copied
        second.reserve(290..291).unwrap();
        second.store(backend, 0, 290, &rows(7, 1), &rows(7, 1));
        assert_eq!(
            (first.shared_byte_len(), second.shared_byte_len()),
            (block, block)
        );
        let key = |cache: &KvCache, position: usize| -> Vec<f32> {
            let (number, row) = (position / BLOCK_POSITIONS, position % BLOCK_POSITIONS);
            let (keys, _) = cache.layer(0).block(number, 1, row..row + 1);
            let words = keys.as_chunks().0.iter();
            words.map(|b| f32::from_le_bytes(*b)).collect()
        };
        for position in [0, 255, 256, 289] {
            let want = &rows(position, 1)[4..];
            assert_eq!(key(&first, position), want);
            assert_eq!(key(&second, position), want);
        }
        assert_eq!(key(&first, 290), &rows(290, 1)[4..]);
        assert_eq!(key(&second, 290), &rows(7, 1)[4..]);
        // a whole block that is written anew is not the other's
        second.reserve(0..256).unwrap();
        assert_eq!((first.shared_byte_len(), second.shared_byte_len()), (0, 0));
        assert_eq!(key(&first, 3), &rows(3, 1)[4..]);
    }
}
