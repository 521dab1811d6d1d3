//! Grouped-query causal attention, block by block.
//!
//! Invariant: what a position attends to, and in which order its sums run, follows from the position
//! alone. It sees the blocks `[0, 256), [256, 512), ...` up to itself; each block gives a part (weighted
//! values, maximum, sum), and parts are merged in increasing order (`formats/numerics.md`,
//! "Attention"). The parts of different blocks know nothing of each other, so a single token's are
//! computed on all threads; a prompt is split by tokens instead. The query heads of a KV head go
//! together: each key and value is loaded once for all of them.

use crate::kv_cache::{BLOCK_POSITIONS, LayerCache};
use crate::threads;
use bitnet_kernels::{Backend, Output};

/// Tokens of a prompt in a unit of work: they find the block of the token before them in L2.
const TILE_TOKENS: usize = 8;

/// What a part has behind its weighted values: maximum and sum.
const EXTRA: usize = 2;

/// Softmax attention of the tokens at positions `first..` over everything up to each of them.
///
/// `q` and `out` are `(tokens, heads * head_dim)`; `cache` holds keys and values of all positions up
/// to the last token's. Head `h` reads KV head `h / (heads / kv_heads)`.
pub(crate) fn attention(
    backend: Backend,
    cache: &LayerCache,
    first: usize,
    heads: usize,
    q: &[f32],
    out: &mut [f32],
) {
    let (dim, kv_heads) = (cache.head_dim(), cache.kv_heads());
    let width = heads * dim;
    let tokens = q.len() / width;
    let group = heads / kv_heads; // query heads per KV head
    let pieces = threads::pieces(2 * q.len() * (first + tokens));
    let task = Task {
        backend,
        cache,
        group,
        dim,
        factor: (1.0 / (dim as f64).sqrt()) as f32, // head_dim^-0.5
    };
    let blocks = (first + tokens).div_ceil(BLOCK_POSITIONS);
    let queries =
        |token: usize, kv_head: usize| &q[token * width + kv_head * group * dim..][..group * dim];

    if tokens == 1 && pieces > 1 && blocks > 1 {
        // one token: KV heads and blocks are all there is to split
        let part = group * (dim + EXTRA);
        let mut parts = vec![0.0; kv_heads * blocks * part]; // (kv_heads, blocks, group, dim + 2)
        let units = parts.chunks_exact_mut(part).enumerate().collect();
        threads::for_each(pieces, units, |(unit, part): (usize, &mut [f32])| {
            let (kv_head, block) = (unit / blocks, unit % blocks);
            task.block(
                kv_head,
                block,
                first,
                queries(0, kv_head),
                &mut Vec::new(),
                part,
            );
        });
        let outs = out.chunks_exact_mut(group * dim);
        for (parts, out) in parts.chunks_exact_mut(blocks * part).zip(outs) {
            let (merged, others) = parts.split_at_mut(part);
            for next in others.chunks_exact(part) {
                task.merge(merged, next);
            }
            task.finish(merged, out);
        }
        return;
    }

    let mut units = Vec::with_capacity(kv_heads * tokens.div_ceil(TILE_TOKENS));
    for (tile, out) in out.chunks_mut(TILE_TOKENS * width).enumerate() {
        let mut rest = Output::new(out, out.len() / width, width);
        for kv_head in 0..kv_heads {
            let (out, others) = rest.split_at((kv_head + 1) * group * dim);
            rest = others;
            units.push((kv_head, tile * TILE_TOKENS, out));
        }
    }
    // a KV head's tiles one after the other: its keys and values stay in L2
    units.sort_by_key(|(kv_head, token, _)| (*kv_head, *token));
    threads::for_each(pieces, units, |(kv_head, token, mut out)| {
        let mut scores = Vec::new();
        let mut merged = vec![0.0; group * (dim + EXTRA)]; // (group, dim + 2)
        let mut next = merged.clone(); // (group, dim + 2)
        for t in 0..out.tokens() {
            let position = first + token + t;
            let q = queries(token + t, kv_head);
            task.block(kv_head, 0, position, q, &mut scores, &mut merged);
            for block in 1..=position / BLOCK_POSITIONS {
                task.block(kv_head, block, position, q, &mut scores, &mut next);
                task.merge(&mut merged, &next);
            }
            task.finish(&mut merged, out.token_mut(t));
        }
    });
}

/// What all units share.
struct Task<'a> {
    backend: Backend,
    cache: &'a LayerCache,
    group: usize,
    dim: usize,
    factor: f32,
}

impl Task<'_> {
    /// The part of a block, for the queries `q: (group, dim)` of one token at `position`.
    fn block(
        &self,
        kv_head: usize,
        block: usize,
        position: usize,
        q: &[f32],
        scores: &mut Vec<f32>,
        part: &mut [f32], // (group, dim + 2)
    ) {
        let seen = (position + 1 - block * BLOCK_POSITIONS).min(BLOCK_POSITIONS);
        let rows = self.cache.block(block, kv_head, seen);
        scores.resize(self.group * seen, 0.0);
        let dtype = self.cache.dtype();
        self.backend
            .attend(dtype, rows, self.dim, self.factor, q, scores, part);
    }

    /// Merges the next block's part; both are `(group, dim + 2)`.
    fn merge(&self, so_far: &mut [f32], next: &[f32]) {
        let row = self.dim + EXTRA;
        for (so_far, next) in so_far.chunks_exact_mut(row).zip(next.chunks_exact(row)) {
            self.backend.merge(so_far, next);
        }
    }

    /// Divides by the sums; `out` is `(group, dim)`.
    fn finish(&self, merged: &mut [f32], out: &mut [f32]) {
        let rows = merged.chunks_exact_mut(self.dim + EXTRA);
        for (row, out) in rows.zip(out.chunks_exact_mut(self.dim)) {
            let (values, extra) = row.split_at_mut(self.dim);
            self.backend.scale(1.0 / extra[1], values);
            out.copy_from_slice(values);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::config::{Activation, ActivationQuantization, Rope, RopeScaling};
    use crate::kv_cache::{KvCache, KvType};

    fn config() -> Config {
        Config {
            hidden_size: 64,
            intermediate_size: 64,
            num_hidden_layers: 1,
            num_attention_heads: 6,
            num_key_value_heads: 2,
            head_dim: 20,
            vocab_size: 16,
            max_position_embeddings: 4096,
            rms_norm_eps: 1e-5,
            rope: Rope {
                theta: 10_000.0,
                scaling: RopeScaling::None,
            },
            hidden_act: Activation::Silu,
            attn_sub_norm: false,
            ffn_sub_norm: false,
            tie_word_embeddings: true,
            activation_quantization: ActivationQuantization::None,
            bos_token_id: None,
            eos_token_ids: Vec::new(),
        }
    }

    fn noise(state: &mut u32, len: usize) -> Vec<f32> {
        (0..len)
            .map(|_| {
                *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (*state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    fn run(
        config: &Config,
        kv: KvType,
        backend: Backend,
        splits: &[usize],
        tokens: usize,
    ) -> Vec<f32> {
        let (heads, dim) = (config.num_attention_heads, config.head_dim);
        let kv_width = config.num_key_value_heads * dim;
        let mut state = 7;
        let q = noise(&mut state, tokens * heads * dim);
        let k: Vec<f32> = noise(&mut state, tokens * kv_width)
            .iter()
            .map(|v| 3.0 * v)
            .collect();
        let v = noise(&mut state, tokens * kv_width);
        let mut cache = KvCache::new(config, 1, kv);
        let cache = cache.layer_mut(0);
        let mut out = vec![0.0; q.len()];
        let (mut at, mut split) = (0, splits.iter().cycle());
        while at < tokens {
            let end = tokens.min(at + split.next().unwrap());
            cache.store(
                at,
                &k[at * kv_width..end * kv_width],
                &v[at * kv_width..end * kv_width],
            );
            let range = at * heads * dim..end * heads * dim;
            attention(
                backend,
                cache,
                at,
                heads,
                &q[range.clone()],
                &mut out[range],
            );
            at = end;
        }
        // against the textbook in f64, where nothing is rounded on the way into the cache
        if kv == KvType::F32 {
            for t in [0, 1, tokens / 2, tokens - 1] {
                for h in 0..heads {
                    let kv_head = h / (heads / config.num_key_value_heads);
                    let q = &q[(t * heads + h) * dim..][..dim];
                    let weights: Vec<f64> = (0..=t)
                        .map(|p| {
                            let k = &k[p * kv_width + kv_head * dim..][..dim];
                            let dot: f64 = q
                                .iter()
                                .zip(k)
                                .map(|(a, b)| f64::from(*a) * f64::from(*b))
                                .sum();
                            (dot / (dim as f64).sqrt()).exp()
                        })
                        .collect();
                    let sum: f64 = weights.iter().sum();
                    for d in 0..dim {
                        let want: f64 = (0..=t)
                            .map(|p| weights[p] * f64::from(v[p * kv_width + kv_head * dim + d]))
                            .sum::<f64>()
                            / sum;
                        let got = f64::from(out[(t * heads + h) * dim + d]);
                        assert!(
                            (got - want).abs() < 2e-6,
                            "token {t} head {h}: {got} {want}"
                        );
                    }
                }
            }
        }
        out
    }

    #[test]
    fn is_softmax_attention_and_does_not_depend_on_splits_kernels_or_threads() {
        let config = config();
        for kv in [KvType::F32, KvType::F16] {
            let tokens = 2 * BLOCK_POSITIONS + 37;
            let want = run(&config, kv, Backend::best(), &[tokens], tokens);
            for backend in Backend::available() {
                for splits in [&[1][..], &[7, 250, 3], &[BLOCK_POSITIONS]] {
                    let got = run(&config, kv, backend, splits, tokens);
                    assert!(
                        got.iter()
                            .zip(&want)
                            .all(|(a, b)| a.to_bits() == b.to_bits())
                    );
                }
            }
            for threads in [1, 3] {
                let pools = crate::threads::Pools::new(threads);
                for splits in [&[100][..], &[1]] {
                    let got = pools.enter(|| run(&config, kv, Backend::best(), splits, tokens));
                    assert_eq!(got, want);
                }
            }
        }
    }
}
