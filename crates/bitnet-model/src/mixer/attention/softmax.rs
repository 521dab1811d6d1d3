//! Grouped-query causal attention, block by block.
//!
//! Invariant: what a position attends to, and in which order its sums run, follows from the position
//! alone. It sees the blocks `[0, 256), [256, 512), ...` up to itself; each block gives a part (weighted
//! values, maximum, sum), and parts are merged in increasing order (`formats/numerics.md`,
//! "Attention"). The parts of different blocks know nothing of each other, so those of single tokens, of whichever
//! sequences, are computed on all threads; prompts are split by tokens instead. The query heads of a KV head go
//! together: each key and value is loaded once for all of them.
//!
//! In a layer with a window, a position sees the last positions only, itself included: of the block
//! where its window begins, lanes count from that beginning.

use crate::kv_cache::{BLOCK_POSITIONS, LayerCache};
use crate::threads;
use bitnet_kernels::{AttentionScratch, Backend, HeadBlock, Output, RowType};
use std::cell::RefCell;
use std::cmp::Reverse;
use std::mem;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

/// Tokens of a prompt in a unit of work: they share the keys that the first of them lays out.
const TILE_TOKENS: usize = 32;

/// What a part has behind its weighted values: maximum and sum.
const EXTRA: usize = 2;

thread_local! {
    /// Every thread's own, kept from layer to layer.
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

#[derive(Default)]
struct Scratch {
    kernel: AttentionScratch,
    q: Vec<f32>,      // (tokens, group, dim)
    seen: Vec<usize>, // (tokens, group): how much of a block each query sees
    merged: Vec<f32>, // (tokens, group, dim + 2)
    next: Vec<f32>,   // (tokens, group, dim + 2)
}

/// What layers differ in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scores {
    /// Times every product of a query and a key.
    pub factor: f32,
    /// Positions that a position sees, itself included; `None`: all up to itself.
    pub window: Option<usize>,
}

/// The queries of one sequence: tokens at positions `first..`.
pub(crate) struct Queries<'a> {
    /// Keys and values of all positions up to the last token's.
    pub cache: LayerCache<'a>,
    /// Position of the first token.
    pub first: usize,
    /// `(tokens, heads * head_dim)`.
    pub q: &'a [f32],
    /// Likewise: weighted values.
    pub out: &'a mut [f32],
}

/// Softmax attention of some sequences, which know nothing of each other: of every token over what it sees.
///
/// Head `h` reads KV head `h / (heads / kv_heads)`. All caches are of the same layer of the same network.
pub(crate) fn attention(
    backend: Backend,
    heads: usize,
    scores: Scores,
    sequences: Vec<Queries<'_>>,
) {
    let Some(Queries { cache, .. }) = sequences.first() else {
        return;
    };
    let (dim, kv_heads) = (cache.head_dim(), cache.kv_heads());
    let task = Task {
        backend,
        stored: cache.row_type(),
        group: heads / kv_heads, // query heads per KV head
        kv_heads,
        dim,
        scores,
    };
    let (single, several): (Vec<_>, Vec<_>) = sequences
        .into_iter()
        .partition(|queries| queries.q.len() == heads * dim);
    if !single.is_empty() {
        task.single_tokens(single);
    }
    if !several.is_empty() {
        task.several_tokens(several);
    }
}

/// How many of `left` blocks a thread takes together: two thirds of its share of them. So runs are few, and
/// the last ones are single blocks, when threads end together.
fn run_length(left: usize, threads: usize) -> usize {
    (2 * left).div_ceil(3 * threads)
}

/// What all units share.
struct Task {
    backend: Backend,
    stored: RowType,
    group: usize,
    kv_heads: usize,
    dim: usize,
    scores: Scores,
}

/// Some tokens of a sequence and one KV head.
struct Unit<'a> {
    cache: LayerCache<'a>,
    kv_head: usize,
    first: usize,    // position of the first token
    q: &'a [f32],    // (tokens, heads * dim), all heads
    out: Output<'a>, // (tokens, group * dim)
}

/// A KV head of a token whose blocks are computed one by one.
struct Head<'a> {
    blocks: usize,
    parts: Vec<(usize, &'a mut [f32])>, // those that are ready, with their numbers
    out: &'a mut [f32],                 // (group, dim)
}

impl Task {
    /// The first position that a position sees.
    fn begin(&self, position: usize) -> usize {
        let window = self.scores.window;
        window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// How many pieces of work the queries of some sequences are worth.
    fn pieces(&self, sequences: &[Queries<'_>]) -> usize {
        let width = self.group * self.kv_heads * self.dim;
        let work = sequences.iter().map(|queries| {
            let keys = queries.first + queries.q.len() / width;
            2 * queries.q.len() * keys.min(self.scores.window.unwrap_or(usize::MAX))
        });
        threads::pieces(work.sum())
    }

    /// Several tokens of each sequence.
    fn several_tokens(&self, sequences: Vec<Queries<'_>>) {
        let (pieces, head) = (self.pieces(&sequences), self.group * self.dim);
        let width = head * self.kv_heads;
        let mut units = Vec::new();
        for Queries {
            cache,
            first,
            q,
            out,
        } in sequences
        {
            for (tile, out) in out.chunks_mut(TILE_TOKENS * width).enumerate() {
                let token = tile * TILE_TOKENS;
                let mut rest = Output::new(out, out.len() / width, width);
                for kv_head in 0..self.kv_heads {
                    let (out, others) = rest.split_at((kv_head + 1) * head);
                    rest = others;
                    units.push(Unit {
                        cache,
                        kv_head,
                        first: first + token,
                        q: &q[token * width..],
                        out,
                    });
                }
            }
        }
        // the longest first, so that threads end together
        units.reverse();
        units.sort_by_key(|unit| Reverse(unit.first));
        threads::for_each(pieces, units, |unit| {
            SCRATCH.with_borrow_mut(|scratch| self.tile(unit, scratch));
        });
    }

    /// One token of each sequence: KV heads and blocks are all there is to split. A thread takes some blocks one
    /// behind the other, and whoever computes a head's last part merges all of them.
    fn single_tokens(&self, sequences: Vec<Queries<'_>>) {
        let pieces = self.pieces(&sequences);
        let (head, part) = (self.group * self.dim, self.group * (self.dim + EXTRA));
        let mut blocks: Vec<HeadBlock<'_>> = Vec::new();
        let mut owners: Vec<usize> = Vec::new(); // of each block, its head
        let mut heads: Vec<Mutex<Head<'_>>> = Vec::new();
        for Queries {
            cache,
            first: position,
            q,
            out,
        } in sequences
        {
            let begin = self.begin(position);
            let seen = begin / BLOCK_POSITIONS..position / BLOCK_POSITIONS + 1;
            let kv = q.chunks_exact(head).zip(out.chunks_exact_mut(head));
            for (kv_head, (q, out)) in kv.enumerate() {
                for block in seen.clone() {
                    let from = block * BLOCK_POSITIONS;
                    let rows =
                        begin.saturating_sub(from)..(position + 1 - from).min(BLOCK_POSITIONS);
                    let (keys, values) = cache.block(block, kv_head, rows);
                    blocks.push(HeadBlock { q, keys, values });
                    owners.push(heads.len());
                }
                heads.push(Mutex::new(Head {
                    blocks: seen.len(),
                    parts: Vec::with_capacity(seen.len()),
                    out,
                }));
            }
        }
        let mut all = SCRATCH.with_borrow_mut(|scratch| mem::take(&mut scratch.merged));
        all.resize(blocks.len() * part, 0.0); // (blocks, group, dim + 2)
        let (mut runs, mut rest) = (Vec::new(), &mut all[..]);
        while !rest.is_empty() {
            let left = rest.len() / part;
            let run = match pieces {
                1 => left,
                _ => run_length(left, threads::count()),
            };
            let parts = rest.split_off_mut(..run * part).unwrap_or_default();
            runs.push((blocks.len() - left, parts));
        }
        threads::for_each(pieces, runs, |(first, parts): (usize, &mut [f32])| {
            SCRATCH.with_borrow_mut(|scratch| {
                let blocks = &blocks[first..first + parts.len() / part];
                self.backend.attend_blocks(
                    self.stored,
                    blocks,
                    self.dim,
                    self.scores.factor,
                    &mut scratch.kernel,
                    parts,
                );
            });
            for (block, part) in (first..).zip(parts.chunks_exact_mut(part)) {
                let mut head = heads[owners[block]]
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                let Head { blocks, parts, out } = &mut *head;
                parts.push((block, part));
                if parts.len() == *blocks {
                    parts.sort_unstable_by_key(|(block, _)| *block);
                    if let Some(((_, merged), others)) = parts.split_first_mut() {
                        for (_, next) in others {
                            self.merge(merged, next);
                        }
                        self.finish(merged, out);
                    }
                }
            }
        });
        drop(heads);
        SCRATCH.with_borrow_mut(|scratch| scratch.merged = all);
    }

    /// The tokens of a unit and the query heads of its KV head.
    fn tile(&self, unit: Unit<'_>, scratch: &mut Scratch) {
        let Unit {
            cache,
            kv_head,
            first,
            q,
            mut out,
        } = unit;
        let keys = (cache, kv_head);
        let Scratch {
            kernel,
            q: queries,
            seen,
            merged,
            next,
        } = scratch;
        let (head, part) = (self.group * self.dim, self.group * (self.dim + EXTRA));
        let width = head * self.kv_heads;
        queries.clear();
        for q in q.chunks_exact(width).take(out.tokens()) {
            queries.extend_from_slice(&q[kv_head * head..(kv_head + 1) * head]);
        }
        merged.resize(out.tokens() * part, 0.0);
        next.resize(out.tokens() * part, 0.0);
        let end = first + out.tokens();
        let last_begin = self.begin(end - 1);
        // every query sees this block from its first position; how far a query sees is its own position
        let common = match last_begin {
            0 => 0,
            _ => last_begin / BLOCK_POSITIONS + 1,
        };
        if common == 0 {
            self.block(keys, 0, first..end, queries, kernel, seen, merged);
        } else {
            // windows that begin at different keys share none of the blocks in which they begin
            let tokens = merged
                .chunks_exact_mut(part)
                .zip(queries.chunks_exact(head));
            for (t, (merged, q)) in tokens.enumerate() {
                let (next, seen_by) = (&mut next[..part], first + t..first + t + 1);
                let (begin, own) = (self.begin(first + t), (first + t) / BLOCK_POSITIONS);
                merged.fill(0.0);
                for block in begin / BLOCK_POSITIONS..(own + 1).min(common) {
                    self.block(keys, block, seen_by.clone(), q, kernel, seen, next);
                    self.merge(merged, next);
                }
            }
        }
        for block in common.max(1)..end.div_ceil(BLOCK_POSITIONS) {
            // the tokens that see some of it
            let from = (block * BLOCK_POSITIONS).saturating_sub(first);
            let (q, next) = (&queries[from * head..], &mut next[from * part..]);
            self.block(keys, block, first + from..end, q, kernel, seen, next);
            self.merge(&mut merged[from * part..], next);
        }
        for (t, merged) in merged.chunks_exact_mut(part).enumerate() {
            self.finish(merged, out.token_mut(t));
        }
    }

    /// The parts of a block, for the queries `q: (tokens, group, dim)` of the tokens at `positions`: one
    /// position, or some whose windows begin at or before the block.
    #[allow(clippy::too_many_arguments)]
    fn block(
        &self,
        (cache, kv_head): (LayerCache<'_>, usize),
        block: usize,
        positions: Range<usize>,
        q: &[f32],
        kernel: &mut AttentionScratch,
        seen: &mut Vec<usize>,
        parts: &mut [f32], // (tokens, group, dim + 2)
    ) {
        let from = block * BLOCK_POSITIONS;
        let before = self.begin(positions.start).saturating_sub(from);
        let behind = |position: usize| (position + 1 - from).min(BLOCK_POSITIONS);
        let rows = before..behind(positions.end - 1);
        let rows = cache.block(block, kv_head, rows);
        seen.clear();
        for position in positions {
            seen.extend(std::iter::repeat_n(behind(position) - before, self.group));
        }
        let (stored, factor) = (self.stored, self.scores.factor);
        self.backend
            .attend(stored, rows, self.dim, factor, q, seen, kernel, parts);
    }

    /// Merges the next block's parts; both are `(queries, dim + 2)`.
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
    use crate::kv_cache::{KvCache, KvType};
    use bitnet_checkpoint::Attention;

    fn config() -> Attention {
        Attention {
            hidden_size: 64,
            heads: 6,
            kv_heads: 2,
            head_dim: 20,
            factor: (1.0 / 20f64.sqrt()) as f32,
            window: None,
            input_norms: false,
            biases: false,
            head_norms: false,
            norms_after_rope: false,
            sub_norm: false,
            branch_norm: false,
            rotary_dim: 20,
            output_gate: false,
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
        config: &Attention,
        kv: KvType,
        backend: Backend,
        splits: &[usize],
        tokens: usize,
    ) -> Vec<f32> {
        let (heads, dim) = (config.heads, config.head_dim);
        let kv_width = config.kv_heads * dim;
        let mut state = 7;
        let q = noise(&mut state, tokens * heads * dim);
        let k: Vec<f32> = noise(&mut state, tokens * kv_width)
            .iter()
            .map(|v| 3.0 * v)
            .collect();
        let v = noise(&mut state, tokens * kv_width);
        let mut cache = KvCache::new(&[*config], kv);
        let mut out = vec![0.0; q.len()];
        let (mut at, mut split) = (0, splits.iter().cycle());
        while at < tokens {
            let end = tokens.min(at + split.next().unwrap());
            cache.reserve(at..end).unwrap();
            cache.store(
                backend,
                0,
                at,
                &k[at * kv_width..end * kv_width],
                &v[at * kv_width..end * kv_width],
            );
            let range = at * heads * dim..end * heads * dim;
            let scores = Scores {
                factor: config.factor,
                window: config.window,
            };
            let queries = Queries {
                cache: cache.layer(0),
                first: at,
                q: &q[range.clone()],
                out: &mut out[range],
            };
            attention(backend, heads, scores, vec![queries]);
            at = end;
        }
        // against the textbook in f64, where nothing is rounded on the way into the cache
        if kv == KvType::F32 {
            for t in [0, 1, tokens / 2, tokens - 1] {
                for h in 0..heads {
                    let kv_head = h / (heads / config.kv_heads);
                    let q = &q[(t * heads + h) * dim..][..dim];
                    let seen = config.window.map_or(0, |n| (t + 1).saturating_sub(n))..=t;
                    let weights: Vec<f64> = seen
                        .clone()
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
                        let v = |p: usize| f64::from(v[p * kv_width + kv_head * dim + d]);
                        let weighed = seen.clone().zip(&weights).map(|(p, w)| w * v(p));
                        let want = weighed.sum::<f64>() / sum;
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
        // without a window; one inside a block, at its edge and over several
        for window in [None, Some(1), Some(20), Some(256), Some(300)] {
            check(window);
        }
    }

    fn check(window: Option<usize>) {
        let mut config = config();
        config.window = window;
        for kv in [KvType::F32, KvType::F16, KvType::Q8] {
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
                let pools = crate::threads::ModelThreads::new(threads);
                for splits in [&[100][..], &[1]] {
                    let got = pools.enter(|| run(&config, kv, Backend::best(), splits, tokens));
                    assert_eq!(got, want);
                }
            }
        }
    }
}
