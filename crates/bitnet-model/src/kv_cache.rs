//! Keys and values of the positions so far, in blocks of 256 positions.
//!
//! Invariant: a block belongs to fixed positions `[256 b, 256 b + 256)` of one layer, whatever was
//! appended when: attention walks the blocks in order, and its sums are those of the blocks
//! (`formats/numerics.md`). Memory grows with the positions used, a block at a time, and nothing is
//! ever moved.

use crate::config::Config;
use bitnet_kernels::DenseType;
use bitnet_ternary::f32_to_f16;

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
#[derive(Debug, Clone)]
pub struct KvCache {
    layers: Vec<LayerCache>,
}

impl KvCache {
    /// An empty cache for `layers` layers of a network.
    pub(crate) fn new(config: &Config, layers: usize, kv_type: KvType) -> Self {
        let layer = LayerCache {
            kv_type,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            blocks: Vec::new(),
        };
        Self {
            layers: vec![layer; layers],
        }
    }

    /// The cache of one layer.
    pub(crate) fn layer_mut(&mut self, layer: usize) -> &mut LayerCache {
        &mut self.layers[layer]
    }

    /// Bytes of keys and values of one position in all layers.
    pub fn position_bytes(&self) -> usize {
        let bytes = |l: &LayerCache| 2 * l.kv_heads * l.head_dim * l.kv_type.size();
        self.layers.iter().map(bytes).sum()
    }

    /// Bytes allocated.
    pub fn byte_len(&self) -> usize {
        self.layers
            .iter()
            .map(|layer| layer.blocks.len() * 2 * layer.block_bytes())
            .sum()
    }
}

/// Keys and values of one layer.
#[derive(Debug, Clone)]
pub(crate) struct LayerCache {
    kv_type: KvType,
    kv_heads: usize,
    head_dim: usize,
    blocks: Vec<Block>,
}

#[derive(Debug, Clone)]
struct Block {
    keys: Aligned,   // (kv_heads, BLOCK_POSITIONS, head_dim), little-endian
    values: Aligned, // (kv_heads, BLOCK_POSITIONS, head_dim), little-endian
}

/// Bytes that start at a cache line: vectors of a row then lie in one line each, not in two.
#[derive(Debug)]
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn zeroed(len: usize) -> Self {
        const LINE: usize = 64;
        let bytes = vec![0; len + LINE];
        // where the address cannot be known (Miri), any start will do
        let start = bytes.as_ptr().align_offset(LINE).min(LINE);
        Self { bytes, start, len }
    }

    fn get(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.len]
    }

    fn get_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.len]
    }
}

impl Clone for Aligned {
    fn clone(&self) -> Self {
        let mut copy = Self::zeroed(self.len);
        copy.get_mut().copy_from_slice(self.get());
        copy
    }
}

impl LayerCache {
    fn block_bytes(&self) -> usize {
        self.kv_heads * BLOCK_POSITIONS * self.head_dim * self.kv_type.size()
    }

    pub(crate) fn head_dim(&self) -> usize {
        self.head_dim
    }

    pub(crate) fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    pub(crate) fn dtype(&self) -> DenseType {
        self.kv_type.dense_type()
    }

    /// Stores keys and values, `(tokens, kv_heads * head_dim)` each, of the positions from `position`
    /// on, over whatever was there.
    pub(crate) fn store(&mut self, position: usize, keys: &[f32], values: &[f32]) {
        let width = self.kv_heads * self.head_dim;
        let size = self.kv_type.size();
        let tokens = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (position, (keys, values)) in (position..).zip(tokens) {
            let (block, row) = (position / BLOCK_POSITIONS, position % BLOCK_POSITIONS);
            while self.blocks.len() <= block {
                let elements = BLOCK_POSITIONS * width;
                self.blocks.push(Block {
                    keys: Aligned::zeroed(elements * size),
                    values: Aligned::zeroed(elements * size),
                });
            }
            let block = &mut self.blocks[block];
            for (to, from) in [(&mut block.keys, keys), (&mut block.values, values)] {
                let to = to.get_mut();
                for (head, from) in from.chunks_exact(self.head_dim).enumerate() {
                    let at = (head * BLOCK_POSITIONS + row) * self.head_dim;
                    let to = &mut to[at * size..(at + self.head_dim) * size];
                    match self.kv_type {
                        KvType::F32 => {
                            for (to, value) in to.as_chunks_mut().0.iter_mut().zip(from) {
                                *to = value.to_le_bytes();
                            }
                        }
                        KvType::F16 => {
                            for (to, value) in to.as_chunks_mut().0.iter_mut().zip(from) {
                                *to = f32_to_f16(*value).to_le_bytes();
                            }
                        }
                    }
                }
            }
        }
    }

    /// The first `count` keys and values of a head in a block, `(count, head_dim)` each, little-endian.
    pub(crate) fn block(&self, block: usize, kv_head: usize, count: usize) -> (&[u8], &[u8]) {
        let row = self.head_dim * self.kv_type.size();
        let from = kv_head * BLOCK_POSITIONS * row;
        let range = from..from + count * row;
        let Block { keys, values } = &self.blocks[block];
        (&keys.get()[range.clone()], &values.get()[range])
    }
}
