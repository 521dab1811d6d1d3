//! The network, top to bottom, as in the paper's figure.
//!
//! Invariant: the logits of a position follow from the tokens up to it and the model alone: not from
//! the kernel, the threads, or how the tokens came in batches (`formats/numerics.md`). Every buffer
//! is row-major with tokens outermost; its shape stands beside it.

mod embed;
mod windows;

use crate::attention::{Scores, attention};
use crate::bit_linear::LinearInput;
use crate::dense_head::Screen;
use crate::kv_cache::{KvCache, KvType};
use crate::profile::{Clock, Part, Profile};
use crate::rope::RopeTable;
use crate::sampler;
use crate::threads::{self, Pools};
use crate::weights::{LoadOptions, Weights};
use bitnet_checkpoint::Checkpoint;
use bitnet_checkpoint::{Activation, Config};
use bitnet_checkpoint::{LayerSlot, Slot};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::{Backend, PackedMatrix};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Tokens of a prompt that go through the layers together.
const BATCH_TOKENS: usize = 256;

/// Scratch that is larger than what a batch needs by more than this factor is given back.
const KEPT_SCRATCH: usize = 8;

/// A loaded network.
#[derive(Debug)]
pub struct Model {
    checkpoint: Checkpoint,
    backend: Backend,
    kv_type: KvType,
    weights: Weights,
    pools: Pools,
    head: HeadState,
}

/// What is known of the output head beside its rows.
#[derive(Debug, Default)]
struct HeadState {
    used: AtomicBool,
    screen: OnceLock<Option<Screen>>,
    screened: AtomicUsize,
    full: AtomicUsize,
}

/// How often [`Model::forward_top_k`] took which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HeadPasses {
    /// Bounds first, few rows afterwards.
    pub screened: usize,
    /// The full product: before there was a screen, or because its bounds did not help.
    pub full: usize,
    /// Rows that the bounds from six bits did not rule out, and those from eight did neither, so that they
    /// were computed, in all passes together.
    pub rows: (usize, usize),
}

/// A text in progress: keys and values of its tokens, and scratch.
#[derive(Debug)]
pub struct Session {
    context: usize,
    position: usize,
    cache: KvCache,
    rope: RopeTable,
    sliding_rope: Option<RopeTable>,
    buffers: Buffers,
    clock: Clock,
}

/// Which logits a forward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// Of every token, `(tokens, vocab)`.
    All,
    /// Of the last token, `(vocab,)`.
    Last,
    /// None; the tokens are only appended.
    None,
}

/// Scratch of one batch, kept to keep its memory.
#[derive(Debug)]
struct Buffers {
    input: LinearInput,
    x: Vec<f32>,    // (tokens, hidden): the residual stream
    h: Vec<f32>,    // (tokens whose logits are wanted, hidden): normed
    q: Vec<f32>,    // (tokens, heads * head_dim)
    k: Vec<f32>,    // (tokens, kv_heads * head_dim)
    v: Vec<f32>,    // (tokens, kv_heads * head_dim)
    a: Vec<f32>,    // (tokens, heads * head_dim): attention
    gate: Vec<f32>, // (tokens, inter)
    up: Vec<f32>,   // (tokens, inter)
    y: Vec<f32>,    // (tokens, hidden): what a block adds to x
    n: Vec<f32>,    // (tokens, hidden) where there are norms to share or to add: normed, else empty
}

impl Buffers {
    fn new(model: &Model) -> Self {
        let empty = Vec::new;
        Self {
            input: LinearInput::new(model.backend, model.config().activation_quantization),
            x: empty(),
            h: empty(),
            q: empty(),
            k: empty(),
            v: empty(),
            a: empty(),
            gate: empty(),
            up: empty(),
            y: empty(),
            n: empty(),
        }
    }

    fn resize(&mut self, config: &Config, tokens: usize) {
        let (hidden, inter) = (config.hidden_size, config.intermediate_size);
        let q = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;
        let norms = config.norms;
        let n = if norms.projections || norms.branches {
            hidden
        } else {
            0
        };
        for (buffer, width) in [
            (&mut self.x, hidden),
            (&mut self.q, q),
            (&mut self.k, kv),
            (&mut self.v, kv),
            (&mut self.a, q),
            (&mut self.gate, inter),
            (&mut self.up, inter),
            (&mut self.y, hidden),
            (&mut self.n, n),
        ] {
            buffer.resize(tokens * width, 0.0);
            // a prompt's batch is 36 MB of a 2B model, and one prompt comes before many single tokens
            if buffer.capacity() / KEPT_SCRATCH > buffer.len() {
                buffer.shrink_to_fit();
            }
        }
    }
}

impl Session {
    /// Tokens so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Most tokens it can hold.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Forgets all tokens from `position` on, if there are any.
    pub fn truncate(&mut self, position: usize) {
        self.position = self.position.min(position);
    }

    /// Measures where the time of the following passes goes.
    pub fn begin_profile(&mut self) {
        self.clock.begin();
    }

    /// Where the time of the passes since [`begin_profile`](Self::begin_profile) went; stops measuring.
    pub fn end_profile(&mut self) -> Profile {
        self.clock.end()
    }

    /// Keys and values.
    pub fn cache(&self) -> &KvCache {
        &self.cache
    }
}

impl Model {
    /// Loads a checkpoint: streams the ternary matrices into the backend's layout, one at a time;
    /// embeddings and head stay in the mapped file.
    ///
    /// # Errors
    /// Whatever is wrong with a tensor.
    pub fn load(checkpoint: Checkpoint, options: &LoadOptions<'_>) -> Result<Self, FormatError> {
        checkpoint.refuse_rotation()?;
        let weights = Weights::load(&checkpoint, options)?;
        Ok(Self {
            checkpoint,
            backend: options.backend,
            kv_type: options.kv_type,
            weights,
            pools: Pools::new(options.threads),
            head: HeadState::default(),
        })
    }

    /// Sizes and wiring.
    pub fn config(&self) -> &Config {
        &self.checkpoint.config
    }

    /// Where the weights came from.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// The kernel that computes.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Bytes of the packed ternary matrices.
    pub fn ternary_bytes(&self) -> usize {
        self.linears().map(PackedMatrix::byte_len).sum()
    }

    /// Ternary weights: the multiply-accumulates of one token in the linear layers.
    pub fn ternary_weights(&self) -> usize {
        self.linears().map(|m| m.rows() * m.cols()).sum()
    }

    fn linears(&self) -> impl Iterator<Item = &PackedMatrix> {
        let layers = self.weights.layers.iter();
        layers.flat_map(|layer| {
            LayerSlot::LINEARS
                .into_iter()
                .filter_map(move |slot| layer.linear(slot))
        })
    }

    /// Bytes of weights that one generated token reads: ternary matrices and output head, or the copy
    /// that screens it.
    pub fn bytes_per_token(&self) -> usize {
        let head = match self.head.screen.get() {
            Some(Some(screen)) => screen.byte_len(),
            _ => self.weights.output_head.byte_len(),
        };
        self.ternary_bytes() + head
    }

    /// As [`bytes_per_token`](Self::bytes_per_token), of a token whose logits are all computed.
    pub fn full_bytes_per_token(&self) -> usize {
        self.ternary_bytes() + self.weights.output_head.byte_len()
    }

    /// The memory that a generated token reads: ternary matrices, a ternary head or the copy that screens a
    /// dense one, once there is one. What the bytes mean is the kernel's own; how fast they can be read is a limit of it.
    pub fn packed_bytes(&self) -> Vec<&[u8]> {
        let screen = self.head.screen.get().and_then(Option::as_ref);
        self.linears()
            .map(PackedMatrix::packed_bytes)
            .chain(self.weights.output_head.packed_bytes())
            .chain(screen.into_iter().flat_map(Screen::packed_bytes))
            .collect()
    }

    /// How often the head was screened so far.
    pub fn head_passes(&self) -> HeadPasses {
        HeadPasses {
            screened: self.head.screened.load(Ordering::Relaxed),
            full: self.head.full.load(Ordering::Relaxed),
            rows: match self.head.screen.get() {
                Some(Some(screen)) => screen.rows_left(),
                _ => (0, 0),
            },
        }
    }

    /// An empty session of at most `context` tokens. Memory grows with the tokens used.
    ///
    /// # Errors
    /// `context-exceeded` for more than the model was made for, and for 0.
    pub fn session(&self, context: usize) -> Result<Session, FormatError> {
        let most = self.config().max_position_embeddings;
        if context == 0 || context > most {
            return Err(FormatError::new(
                ErrorCode::ContextExceeded,
                format!("expected a context of 1 to {most} tokens, found {context}"),
            ));
        }
        Ok(self.new_session(context, self.config().num_hidden_layers))
    }

    fn new_session(&self, context: usize, layers: usize) -> Session {
        let config = self.config();
        Session {
            context,
            position: 0,
            cache: KvCache::new(config, layers, self.kv_type),
            rope: RopeTable::new(&config.rope, config.head_dim),
            sliding_rope: config
                .sliding_rope()
                .map(|rope| RopeTable::new(&rope, config.head_dim)),
            buffers: Buffers::new(self),
            clock: Clock::default(),
        }
    }

    /// Appends `tokens` to the session and returns the logits asked for: `(tokens, vocab)`,
    /// `(vocab,)` or nothing.
    ///
    /// Runs on as many threads as [`LoadOptions::threads`] says.
    ///
    /// # Errors
    /// `context-exceeded`, `usage` for a token id beyond the vocabulary, `non-finite` naming the linear
    /// whose input overflowed. The session is then as it was.
    pub fn forward(
        &self,
        session: &mut Session,
        tokens: &[u32],
        want: Logits,
    ) -> Result<Vec<f32>, FormatError> {
        let before = session.position;
        let result = self
            .pools
            .enter(|| self.forward_batches(session, tokens, want));
        if result.is_err() {
            session.position = before;
        }
        result
    }

    /// Appends `tokens` to the session and returns the `k` largest logits of the last one with their
    /// tokens, in falling order, of equal ones the lower token first: exactly the logits of
    /// [`forward`](Self::forward), mostly without reading all of the head.
    ///
    /// The second call builds the screen, an int8 copy of the head, in parallel: a text of one token
    /// does not wait for it.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_top_k(
        &self,
        session: &mut Session,
        tokens: &[u32],
        k: usize,
    ) -> Result<Vec<(u32, f32)>, FormatError> {
        let before = session.position;
        let result = self.pools.enter(|| {
            self.forward_batches(session, tokens, Logits::None)?;
            if tokens.is_empty() {
                return Ok(Vec::new());
            }
            let Buffers { x, h, .. } = &mut session.buffers;
            let hidden = self.config().hidden_size;
            let x = &x[x.len() - hidden..];
            h.resize(hidden, 0.0);
            self.head_input(x, h);
            let top = self.top_k(h, k);
            session.clock.lap(Part::Head);
            top
        });
        if result.is_err() {
            session.position = before;
        }
        result
    }

    /// The `k` largest logits of the final hidden state `h`, `(hidden,)`.
    fn top_k(&self, h: &[f32], k: usize) -> Result<Vec<(u32, f32)>, FormatError> {
        let (head, state) = (&self.weights.output_head, &self.head);
        if state.used.swap(true, Ordering::Relaxed) {
            let screen = match state.screen.get() {
                Some(screen) => screen,
                None => {
                    let screen = head.screen(&self.checkpoint, self.backend)?;
                    state.screen.get_or_init(|| screen)
                }
            };
            if let Some(screen) = screen
                && let Some(top) = head.top_k(&self.checkpoint, self.backend, screen, h, k)?
            {
                state.screened.fetch_add(1, Ordering::Relaxed);
                return Ok(top);
            }
        }
        state.full.fetch_add(1, Ordering::Relaxed);
        let mut logits = vec![0.0; head.rows()]; // (vocab,)
        head.multiply(&self.checkpoint, self.backend, h, &mut logits)?;
        Ok(sampler::top(&logits, k))
    }

    fn forward_batches(
        &self,
        session: &mut Session,
        tokens: &[u32],
        want: Logits,
    ) -> Result<Vec<f32>, FormatError> {
        let (hidden, vocab) = (self.config().hidden_size, self.weights.output_head.rows());
        if session.context - session.position < tokens.len() {
            return Err(FormatError::new(
                ErrorCode::ContextExceeded,
                format!(
                    "{} tokens do not fit behind {} in a context of {}",
                    tokens.len(),
                    session.position,
                    session.context
                ),
            ));
        }
        let wanted = match want {
            Logits::All => tokens.len() * vocab,
            Logits::Last => vocab,
            Logits::None => 0,
        };
        let mut logits = Vec::with_capacity(wanted); // (tokens, vocab), (vocab,) or nothing
        let batches = tokens.len().div_ceil(BATCH_TOKENS);
        session.clock.start();
        for (batch, tokens) in tokens.chunks(BATCH_TOKENS).enumerate() {
            self.start_batch(session, tokens.len());
            self.look_up(tokens, &mut session.buffers.x)?;
            session.clock.lap(Part::Elementwise);
            for layer in 0..self.weights.layers.len() {
                self.decoder_layer(layer, layer, session)?;
            }
            session.position += tokens.len();
            let first = match want {
                Logits::All => 0,
                Logits::Last if batch + 1 == batches => tokens.len() - 1,
                Logits::Last | Logits::None => continue,
            };
            let Buffers { x, h, .. } = &mut session.buffers;
            let x = &x[first * hidden..];
            h.resize(x.len(), 0.0);
            self.head_input(x, h);
            let at = logits.len();
            logits.resize(at + (tokens.len() - first) * vocab, 0.0);
            let head = &self.weights.output_head;
            head.multiply(&self.checkpoint, self.backend, h, &mut logits[at..])?;
            session.clock.lap(Part::Head);
        }
        Ok(logits)
    }

    /// Rows of the embedding matrix into `x`, `(tokens, hidden)`.
    fn look_up(&self, tokens: &[u32], x: &mut [f32]) -> Result<(), FormatError> {
        let embeddings = &self.weights.embeddings;
        for (token, x) in tokens
            .iter()
            .zip(x.chunks_exact_mut(self.config().hidden_size))
        {
            let row = *token as usize;
            if row >= embeddings.rows() {
                return Err(FormatError::new(
                    ErrorCode::Usage,
                    format!(
                        "expected a token id below {}, found {token}",
                        embeddings.rows()
                    ),
                ));
            }
            embeddings.row(&self.checkpoint, row, x)?;
            self.scale(self.config().factors.embedding, x);
        }
        Ok(())
    }

    /// Makes room for a batch of `tokens` at the session's position.
    fn start_batch(&self, session: &mut Session, tokens: usize) {
        session.buffers.resize(self.config(), tokens);
        session.rope.extend_to(session.position + tokens);
        if let Some(rope) = &mut session.sliding_rope {
            rope.extend_to(session.position + tokens);
        }
    }

    /// One decoder layer on `x` of the session's batch; `cached` is its layer in the cache.
    fn decoder_layer(
        &self,
        layer: usize,
        cached: usize,
        session: &mut Session,
    ) -> Result<(), FormatError> {
        let config = self.config();
        let (hidden, heads) = (config.hidden_size, config.num_attention_heads);
        let kv_heads = config.num_key_value_heads;
        let w = &self.weights.layers[layer];
        let at = |linear| Slot::Layer(layer, linear);
        let Session {
            position,
            cache,
            rope,
            sliding_rope,
            buffers,
            clock,
            ..
        } = session;
        let window = config.window(layer);
        let rope = match (window, sliding_rope) {
            (Some(_), Some(sliding)) => &*sliding,
            _ => &*rope,
        };
        let Buffers {
            input,
            x,
            q,
            k,
            v,
            a,
            gate,
            up,
            y,
            n,
            ..
        } = buffers;

        // q, k, v = linear(norm(x)); norm_q(norm(x)), ... where each has a norm of its own
        match &w.projection_norms {
            None => {
                input.prepare(at(LayerSlot::QProj), hidden, (x, hidden), |_, x, h| {
                    self.norm(x, &w.input_norm, h);
                })?;
                clock.lap(Part::Elementwise);
                input.multiply([
                    (&w.q_proj, &mut *q),
                    (&w.k_proj, &mut *k),
                    (&w.v_proj, &mut *v),
                ]);
            }
            Some(norms) => {
                self.norm_tokens(x, &w.input_norm, n);
                for (slot, gain, matrix, out) in [
                    (LayerSlot::QProj, &norms.q, &w.q_proj, &mut *q),
                    (LayerSlot::KProj, &norms.k, &w.k_proj, &mut *k),
                    (LayerSlot::VProj, &norms.v, &w.v_proj, &mut *v),
                ] {
                    self.normed_linear(at(slot), input, (n, gain), (matrix, out), clock)?;
                }
            }
        }
        clock.lap(Part::Linears);

        // a = softmax(rope(norm(q)) rope(norm(K))^T * factor) V
        self.rotate(rope, *position, q, heads, w.q_norm.as_deref());
        self.rotate(rope, *position, k, kv_heads, w.k_norm.as_deref());
        let mut cache = cache.layer_mut(cached);
        cache.store(self.backend, *position, k, v);
        let scores = Scores {
            factor: config.attention_factor(),
            window,
        };
        attention(self.backend, &cache, (*position, heads), scores, q, a);
        clock.lap(Part::Attention);

        // y = linear(norm(a))
        let width = heads * config.head_dim;
        input.prepare(at(LayerSlot::OProj), width, (a, width), |_, a, normed| {
            self.sub_norm(a, w.attn_sub_norm.as_deref(), normed);
        })?;
        clock.lap(Part::Elementwise);
        input.multiply([(&w.o_proj, &mut *y)]);
        clock.lap(Part::Linears);
        self.end_branch(y, w.attn_branch_norm.as_deref(), n);

        // x += y;  gate, up = linear(norm(x)), or as q, k and v
        match &w.projection_norms {
            None => {
                input.prepare(at(LayerSlot::GateProj), hidden, (x, hidden), |t, x, h| {
                    self.backend.add(&y[t * hidden..(t + 1) * hidden], x);
                    self.norm(x, &w.post_attention_norm, h);
                })?;
                clock.lap(Part::Elementwise);
                input.multiply([(&w.gate_proj, &mut *gate), (&w.up_proj, &mut *up)]);
            }
            Some(norms) => {
                self.add(y, x);
                self.norm_tokens(x, &w.post_attention_norm, n);
                for (slot, gain, matrix, out) in [
                    (LayerSlot::GateProj, &norms.gate, &w.gate_proj, &mut *gate),
                    (LayerSlot::UpProj, &norms.up, &w.up_proj, &mut *up),
                ] {
                    self.normed_linear(at(slot), input, (n, gain), (matrix, out), clock)?;
                }
            }
        }
        clock.lap(Part::Linears);

        // x += linear(norm(act(gate) * up))
        let width = config.intermediate_size;
        input.prepare(
            at(LayerSlot::DownProj),
            width,
            (gate, width),
            |t, gate, f| {
                self.activate(gate, &up[t * width..(t + 1) * width]);
                self.sub_norm(gate, w.ffn_sub_norm.as_deref(), f);
            },
        )?;
        clock.lap(Part::Elementwise);
        input.multiply([(&w.down_proj, &mut *y)]);
        clock.lap(Part::Linears);
        self.end_branch(y, w.ffn_branch_norm.as_deref(), n);
        self.add(y, x);
        clock.lap(Part::Elementwise);
        Ok(())
    }

    /// `out = rms_norm(x) * gain` of one token, `(width,)`.
    fn norm(&self, x: &[f32], gain: &[f32], out: &mut [f32]) {
        self.backend
            .rms_norm(x, gain, self.config().rms_norm_eps, out);
    }

    /// `out = norm(x)` if the network has this norm, else `x`; one token.
    fn sub_norm(&self, x: &[f32], gain: Option<&[f32]>, out: &mut [f32]) {
        match gain {
            Some(gain) => self.norm(x, gain, out),
            None => out.copy_from_slice(x),
        }
    }

    /// `out = linear(norm(n))`: a linear whose input no other one reads, because its norm is its own. `n`
    /// is `(tokens, hidden)`.
    fn normed_linear(
        &self,
        slot: Slot,
        input: &mut LinearInput,
        (n, gain): (&mut [f32], &[f32]),
        (matrix, out): (&PackedMatrix, &mut [f32]),
        clock: &mut Clock,
    ) -> Result<(), FormatError> {
        let hidden = self.config().hidden_size;
        input.prepare(slot, hidden, (n, hidden), |_, n, h| self.norm(n, gain, h))?;
        clock.lap(Part::Elementwise);
        input.multiply([(matrix, out)]);
        clock.lap(Part::Linears);
        Ok(())
    }

    /// `y = norm(y) * factor`, as far as the network has them: what attention or the MLP adds to the
    /// residual stream, `(tokens, hidden)`. `spare` has its length.
    fn end_branch(&self, y: &mut Vec<f32>, gain: Option<&[f32]>, spare: &mut Vec<f32>) {
        if let Some(gain) = gain {
            self.norm_tokens(y, gain, spare);
            std::mem::swap(y, spare);
        }
        self.scale(self.config().factors.residual, y);
    }

    /// `x *= factor`
    fn scale(&self, factor: f32, x: &mut [f32]) {
        if factor != 1.0 {
            self.backend.scale(factor, x);
        }
    }

    /// What the head multiplies with, both `(tokens, hidden)`.
    fn head_input(&self, x: &[f32], out: &mut [f32]) {
        self.output_norm(x, out);
        self.divide_for_head(out);
    }

    /// `h /= head_divisor`, one rounding each.
    fn divide_for_head(&self, h: &mut [f32]) {
        let divisor = self.config().factors.head_divisor;
        if divisor != 1.0 {
            h.iter_mut().for_each(|h| *h /= divisor);
        }
    }

    /// `out = norm(x)` by the last norm, both `(tokens, hidden)`.
    fn output_norm(&self, x: &[f32], out: &mut [f32]) {
        self.norm_tokens(x, &self.weights.output_norm, out);
    }

    /// `out = norm(x)`, both `(tokens, hidden)`.
    fn norm_tokens(&self, x: &[f32], gain: &[f32], out: &mut [f32]) {
        let width = self.config().hidden_size;
        threads::for_tokens(out, width, |first, out| {
            let x = x[first * width..].chunks_exact(width);
            for (x, out) in x.zip(out.chunks_exact_mut(width)) {
                self.norm(x, gain, out);
            }
        });
    }

    /// Norms the heads of `x`, `(tokens, heads * head_dim)`, if the network does, and rotates them; tokens
    /// at positions `first..`.
    fn rotate(
        &self,
        rope: &RopeTable,
        first: usize,
        x: &mut [f32],
        heads: usize,
        gain: Option<&[f32]>,
    ) {
        let dim = self.config().head_dim;
        threads::for_tokens(x, heads * dim, |token, x| {
            let mut normed = vec![0.0; gain.map_or(0, <[f32]>::len)]; // (head_dim,)
            for (position, x) in (first + token..).zip(x.chunks_exact_mut(heads * dim)) {
                let (cos, sin) = rope.at(position); // (head_dim / 2,)
                for head in x.chunks_exact_mut(dim) {
                    if let Some(gain) = gain {
                        self.norm(head, gain, &mut normed);
                        head.copy_from_slice(&normed);
                    }
                    self.backend.rotate_halves(head, cos, sin);
                }
            }
        });
    }

    /// `gate = act(gate) * up` of one token, both `(inter,)`.
    fn activate(&self, gate: &mut [f32], up: &[f32]) {
        match self.config().hidden_act {
            Activation::Relu2 => self.backend.relu2_mul(gate, up),
            Activation::Silu => self.backend.silu_mul(gate, up),
            Activation::GeluTanh => self.backend.gelu_tanh_mul(gate, up),
        }
    }

    /// `x += y`, both `(tokens, hidden)`.
    fn add(&self, y: &[f32], x: &mut [f32]) {
        let width = self.config().hidden_size;
        threads::for_tokens(x, width, |token, x| {
            self.backend.add(&y[token * width..][..x.len()], x);
        });
    }
}
