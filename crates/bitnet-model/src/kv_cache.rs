//! Keys and values of the positions so far, in blocks of 256 positions.
//!
//! Invariant: a block belongs to fixed positions `[256 b, 256 b + 256)` of one layer, whatever was
//! appended when: attention walks the blocks in order, and its sums are those of the blocks
//! (`formats/numerics.md`). Memory grows with the positions used, a block at a time, and nothing is
//! ever moved.

use bitnet_checkpoint::Config;
use bitnet_kernels::{AlignedBytes, Backend, DenseType};
use std::ops::Range;

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
}

impl KvType {
    /// `f32` or `f16`, the value of `--kv-type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
        }
    }

    /// The inverse of [`as_str`](Self::as_str).
    pub fn by_name(name: &str) -> Option<Self> {
        [Self::F32, Self::F16]
            .into_iter()
            .find(|t| t.as_str() == name)
    }

    pub(crate) fn dense_type(self) -> DenseType {
        match self {
            Self::F32 => DenseType::F32,
            Self::F16 => DenseType::F16,
        }
    }

    fn size(self) -> usize {
        self.dense_type().size()
    }
}

/// Keys and values of every layer.
#[derive(Debug)]
pub struct KvCache {
    kv_type: KvType,
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    blocks: Vec<AlignedBytes>, // (layers, 2, kv_heads, BLOCK_POSITIONS, head_dim) each, little-endian
}

impl KvCache {
    /// An empty cache for `layers` layers of a network.
    pub(crate) fn new(config: &Config, layers: usize, kv_type: KvType) -> Self {
        Self {
            kv_type,
            layers,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            blocks: Vec::new(),
        }
    }

    /// The cache of one layer.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> LayerCache<'_> {
        assert!(layer < self.layers, "layer {layer} of {}", self.layers);
        LayerCache { cache: self, layer }
    }

    /// Bytes of keys and values of one position in all layers.
    pub fn position_bytes(&self) -> usize {
        2 * self.layers * self.kv_heads * self.row_bytes()
    }

    /// Bytes allocated.
    pub fn byte_len(&self) -> usize {
        self.blocks.iter().map(|block| block.len()).sum()
    }

    /// Bytes of one head's key at one position.
    fn row_bytes(&self) -> usize {
        self.head_dim * self.kv_type.size()
    }

    /// Makes room for the positions of a block, all of which are about to be `written`, or else one after
    /// another: then nobody pays for those that no text reaches.
    fn extend_to(&mut self, block: usize, written: bool) {
        let bytes = BLOCK_POSITIONS * self.position_bytes();
        while self.blocks.len() <= block {
            self.blocks.push(match written {
                true => AlignedBytes::on_huge_pages(bytes),
                false => AlignedBytes::zeroed(bytes),
            });
        }
    }
}

/// Keys and values of one layer.
#[derive(Debug)]
pub(crate) struct LayerCache<'a> {
    cache: &'a mut KvCache,
    layer: usize,
}

impl LayerCache<'_> {
    pub(crate) fn head_dim(&self) -> usize {
        self.cache.head_dim
    }

    pub(crate) fn kv_heads(&self) -> usize {
        self.cache.kv_heads
    }

    pub(crate) fn dtype(&self) -> DenseType {
        self.cache.kv_type.dense_type()
    }

    /// Where in a block a head's keys (0) or values (1) start.
    fn start(&self, which: usize, head: usize) -> usize {
        let head = (2 * self.layer + which) * self.cache.kv_heads + head;
        head * BLOCK_POSITIONS * self.cache.row_bytes()
    }

    /// Stores keys and values, `(tokens, kv_heads * head_dim)` each, of the positions from `position`
    /// on, over whatever was there.
    pub(crate) fn store(
        &mut self,
        backend: Backend,
        position: usize,
        keys: &[f32],
        values: &[f32],
    ) {
        let (dim, bytes) = (self.cache.head_dim, self.cache.row_bytes());
        let width = self.cache.kv_heads * dim;
        let tokens = keys.chunks_exact(width).zip(values.chunks_exact(width));
        let all = position..position + tokens.len();
        for (position, (keys, values)) in all.clone().zip(tokens) {
            let (block, row) = (position / BLOCK_POSITIONS, position % BLOCK_POSITIONS);
            let first = block * BLOCK_POSITIONS;
            let written = all.start <= first && first + BLOCK_POSITIONS <= all.end;
            self.cache.extend_to(block, written);
            for (which, from) in [keys, values].into_iter().enumerate() {
                for (head, from) in from.chunks_exact(dim).enumerate() {
                    let at = self.start(which, head) + row * bytes;
                    let to = &mut self.cache.blocks[block][at..at + bytes];
                    match self.cache.kv_type {
                        KvType::F32 => {
                            for (to, value) in to.as_chunks_mut().0.iter_mut().zip(from) {
                                *to = value.to_le_bytes();
                            }
                        }
                        KvType::F16 => backend.narrow(from, to),
                    }
                }
            }
            // a full block is read through at every token, which on small pages takes half as long again
            if row + 1 == BLOCK_POSITIONS && self.layer + 1 == self.cache.layers {
                self.cache.blocks[block].settle();
            }
        }
    }

    /// Some keys and values of a head in a block, `(rows, head_dim)` each, little-endian.
    pub(crate) fn block(&self, block: usize, kv_head: usize, rows: Range<usize>) -> (&[u8], &[u8]) {
        let bytes = self.cache.row_bytes();
        let rows = |which: usize| {
            let from = self.start(which, kv_head);
            &self.cache.blocks[block][from + rows.start * bytes..from + rows.end * bytes]
        };
        (rows(0), rows(1))
    }
}
