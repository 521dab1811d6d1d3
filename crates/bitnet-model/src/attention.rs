//! Grouped-query causal attention, block by block.
//!
//! Invariant: what a position attends to, and in which order its sums run, follows from the position
//! alone. It sees the blocks `[0, 256), [256, 512), ...` up to itself; each block gives a maximum, a
//! sum and a weighted value, and blocks are merged in increasing order (`formats/numerics.md`,
//! "Attention"). Tiles of tokens, heads in a unit, and threads are scheduling.

use crate::kv_cache::{BLOCK_POSITIONS, LayerCache};
use crate::threads;
use bitnet_kernels::{Backend, Output};

/// Tokens that share one pass over a block of keys and values.
const TILE_TOKENS: usize = 8;

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
    let width = heads * cache.head_dim();
    let tokens = q.len() / width;
    let group = heads / cache.kv_heads();
    let pieces = threads::pieces(2 * q.len() * (first + tokens));
    // all heads of a KV head read the same keys together, unless that leaves threads without work
    let tiles = tokens.div_ceil(TILE_TOKENS);
    let together = if pieces == 1 || tiles * cache.kv_heads() >= 8 * pieces {
        group
    } else {
        1
    };
    let mut units = Vec::with_capacity(tiles * heads / together);
    for (tile, out) in out.chunks_mut(TILE_TOKENS * width).enumerate() {
        let mut rest = Output::new(out, out.len() / width, width);
        for head in (0..heads).step_by(together) {
            let (out, others) = rest.split_at((head + together) * cache.head_dim());
            rest = others;
            units.push(Unit {
                token: tile * TILE_TOKENS,
                head,
                heads: together,
                out,
            });
        }
    }
    threads::for_each(pieces, units, |unit| {
        let kv_head = unit.head / group;
        unit.run(backend, cache, first, kv_head, q, width);
    });
}

/// A tile of tokens and some heads that share a KV head.
struct Unit<'a> {
    token: usize,    // the first, in the batch
    head: usize,     // the first
    heads: usize,    // how many
    out: Output<'a>, // (tokens of the tile, heads * head_dim)
}

impl Unit<'_> {
    fn run(
        mut self,
        backend: Backend,
        cache: &LayerCache,
        first: usize, // position of the batch's first token
        kv_head: usize,
        q: &[f32], // (tokens of the batch, width)
        width: usize,
    ) {
        let dim = cache.head_dim();
        let tokens = self.out.tokens();
        let rows = tokens * self.heads; // row = token * heads + head, all of this unit
        let scale = (1.0 / (dim as f64).sqrt()) as f32; // head_dim^-0.5

        let mut queries = Vec::with_capacity(rows * dim); // (rows, dim)
        for token in self.token..self.token + tokens {
            let at = token * width + self.head * dim;
            queries.extend_from_slice(&q[at..at + self.heads * dim]);
        }
        let mut merged: Vec<Merged> = (0..rows).map(|_| Merged::new(dim)).collect();
        let mut scores = Vec::new(); // (rows, count)
        let mut weighted = vec![0.0; dim];
        let mut wide = Vec::new(); // (count, dim)

        let position = first + self.token; // of the tile's first token
        let last = position + tokens - 1;
        for block in 0..=last / BLOCK_POSITIONS {
            let start = block * BLOCK_POSITIONS;
            let count = (last + 1 - start).min(BLOCK_POSITIONS); // keys that the last token sees
            let token = start.saturating_sub(position); // the first that sees any of them
            let row = token * self.heads;
            scores.resize((rows - row) * count, 0.0);
            let keys = cache.keys(block, kv_head, count); // (count, dim)
            let mut view = Output::new(&mut scores, rows - row, count);
            backend.dense_rows(
                cache.key_type(),
                keys,
                dim,
                &queries[row * dim..],
                &mut view,
            );

            let values = cache.values(block, kv_head, count, &mut wide); // (count, dim)
            for (row, scores) in (row..).zip(scores.chunks_exact_mut(count)) {
                let seen = (position + row / self.heads + 1 - start).min(count);
                let weights = &mut scores[..seen]; // (seen,)
                backend.scale(scale, weights);
                let max = backend.max(weights);
                for weight in weights.iter_mut() {
                    *weight -= max;
                }
                backend.exp(weights);
                let sum = backend.sum(weights);
                weighted.fill(0.0);
                for (weight, value) in weights.iter().zip(values.chunks_exact(dim)) {
                    backend.axpy(*weight, value, &mut weighted);
                }
                merged[row].add(backend, max, sum, &weighted);
            }
        }
        for (row, merged) in merged.iter_mut().enumerate() {
            let (token, head) = (row / self.heads, row % self.heads);
            backend.scale(1.0 / merged.sum, &mut merged.weighted);
            self.out.token_mut(token)[head * dim..(head + 1) * dim]
                .copy_from_slice(&merged.weighted);
        }
    }
}

/// The blocks so far of one query: `sum = sum of exp(score - max)`, `weighted` the same times values.
struct Merged {
    max: f32,
    sum: f32,
    weighted: Vec<f32>, // (head_dim,)
}

impl Merged {
    fn new(dim: usize) -> Self {
        Self {
            max: f32::NEG_INFINITY,
            sum: 0.0,
            weighted: vec![0.0; dim],
        }
    }

    /// Merges the next block. The first one is taken as it is.
    fn add(&mut self, backend: Backend, max: f32, sum: f32, weighted: &[f32]) {
        if self.sum == 0.0 {
            (self.max, self.sum) = (max, sum);
            self.weighted.copy_from_slice(weighted);
            return;
        }
        let both = if max > self.max { max } else { self.max };
        let mut factors = [self.max - both, max - both];
        backend.exp(&mut factors);
        let [old, new] = factors;
        self.max = both;
        self.sum = sum.mul_add(new, self.sum * old);
        backend.scale(old, &mut self.weighted);
        backend.axpy(new, weighted, &mut self.weighted);
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
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                let got = pool.install(|| run(&config, kv, Backend::best(), &[100], tokens));
                assert_eq!(got, want);
            }
        }
    }
}
