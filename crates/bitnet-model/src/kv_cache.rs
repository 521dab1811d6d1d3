//! Keys and values of the positions so far, in blocks of 256 positions.
//!
//! Invariant: a block belongs to fixed positions `[256 b, 256 b + 256)` of one layer, whatever was
//! appended when: attention walks the blocks in order, and its sums are those of the blocks
//! (`formats/numerics.md`). Memory grows with the positions used, a block at a time, and nothing is
//! ever moved.

use crate::config::Config;
use bitnet_kernels::DenseType;
use bitnet_ternary::{f16_to_f32, f32_to_f16};

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
    keys: Vec<u8>, // (kv_heads, BLOCK_POSITIONS, head_dim), little-endian, what `dense_rows` reads
    values: Values, // (kv_heads, BLOCK_POSITIONS, head_dim)
}

#[derive(Debug, Clone)]
enum Values {
    F32(Vec<f32>),
    F16(Vec<u16>),
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

    pub(crate) fn key_type(&self) -> DenseType {
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
                    keys: vec![0; elements * size],
                    values: match self.kv_type {
                        KvType::F32 => Values::F32(vec![0.0; elements]),
                        KvType::F16 => Values::F16(vec![0; elements]),
                    },
                });
            }
            let Block {
                keys: to_keys,
                values: to_values,
            } = &mut self.blocks[block];
            for head in 0..self.kv_heads {
                let from = head * self.head_dim..(head + 1) * self.head_dim;
                let at = (head * BLOCK_POSITIONS + row) * self.head_dim;
                let to = at..at + self.head_dim;
                let to_keys = &mut to_keys[at * size..(at + self.head_dim) * size];
                let (keys, values) = (&keys[from.clone()], &values[from]);
                match to_values {
                    Values::F32(to_values) => {
                        for (to, key) in to_keys.as_chunks_mut().0.iter_mut().zip(keys) {
                            *to = key.to_le_bytes();
                        }
                        to_values[to].copy_from_slice(values);
                    }
                    Values::F16(to_values) => {
                        for (to, key) in to_keys.as_chunks_mut().0.iter_mut().zip(keys) {
                            *to = f32_to_f16(*key).to_le_bytes();
                        }
                        for (to, value) in to_values[to].iter_mut().zip(values) {
                            *to = f32_to_f16(*value);
                        }
                    }
                }
            }
        }
    }

    /// The first `count` keys of a head in a block, `(count, head_dim)`, little-endian.
    pub(crate) fn keys(&self, block: usize, kv_head: usize, count: usize) -> &[u8] {
        let row = self.head_dim * self.kv_type.size();
        let from = kv_head * BLOCK_POSITIONS * row;
        &self.blocks[block].keys[from..from + count * row]
    }

    /// The first `count` values of a head in a block, `(count, head_dim)`; widened into `wide` when
    /// they are kept as f16.
    pub(crate) fn values<'a>(
        &'a self,
        block: usize,
        kv_head: usize,
        count: usize,
        wide: &'a mut Vec<f32>,
    ) -> &'a [f32] {
        let from = kv_head * BLOCK_POSITIONS * self.head_dim;
        let range = from..from + count * self.head_dim;
        match &self.blocks[block].values {
            Values::F32(values) => &values[range],
            Values::F16(values) => {
                wide.clear();
                wide.extend(values[range].iter().map(|v| f16_to_f32(*v)));
                wide
            }
        }
    }
}
