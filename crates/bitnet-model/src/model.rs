//! A loaded network.
//!
//! Invariant: the logits of a position follow from the tokens up to it and the model alone: not from
//! the kernel, the threads, or how the tokens came in batches (`formats/numerics.md`). Every buffer
//! is row-major with tokens outermost; its shape stands beside it.

use crate::dense_head::{Screen, TopLogits};
use crate::kv_cache::KvType;
use crate::load::LoadOptions;
use crate::rope::Ropes;
use crate::rotation::Rotation;
use crate::round::RowOps;
use crate::sampler;
use crate::sequence::Sequence;
use crate::threads::ModelThreads;
use crate::weights::{Block, Weights};
use crate::workspace::Workspace;
use bitnet_checkpoint::{Checkpoint, Config};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_kernels::{Backend, PackedMatrix};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock, RwLockReadGuard};

/// Tokens that go through the layers together.
pub(crate) const ROUND_TOKENS: usize = 256;

/// Tokens whose logits are all computed together where only the largest are wanted: their logits stay small.
const FULL_TOKENS: usize = 8;

/// Numbers of models, so that a sequence finds its own.
static NUMBERS: AtomicU64 = AtomicU64::new(0);

/// A loaded network. It owns its weights, or shares the bytes of the files that hold them, and never looks back at
/// the checkpoint.
///
/// ```
/// use bitnet_checkpoint::{Checkpoint, OpenOptions};
/// use bitnet_formats::FormatError;
/// use bitnet_model::{Generation, LoadOptions, Model, Sampler, TextStream};
/// # let path = std::path::Path::new("../../tests/fixtures/demo/packed");
///
/// let checkpoint = Checkpoint::open(path, &OpenOptions::default())?;
/// let tokenizer = checkpoint.tokenizer()?.expect("the model has a tokenizer");
/// let model = Model::load(&checkpoint, &LoadOptions::default())?;
///
/// let stop_tokens = Generation::stop_tokens(&model, &tokenizer);
/// let mut generation = Generation::new(&model, 64, Sampler::greedy(), stop_tokens)?;
/// let prompt = tokenizer.encode("<|user|>Add 34 and 28.<|end|><|assistant|>", true)?;
/// let mut answer = String::new();
/// let text = TextStream::new(&tokenizer, &[]);
/// generation.run_text(text, &prompt, 40, |piece| {
///     answer.push_str(piece);
///     Ok::<(), FormatError>(())
/// })?;
/// assert_eq!(answer, "4+8=12, 1+3+2=6, so 62");
/// # Ok::<(), FormatError>(())
/// ```
#[derive(Debug)]
pub struct Model {
    pub(crate) number: u64,
    pub(crate) config: Arc<Config>,
    pub(crate) backend: Backend,
    pub(crate) kv_type: KvType,
    pub(crate) rotation: Option<Arc<Rotation>>,
    pub(crate) weights: Arc<Weights>,
    pub(crate) threads: ModelThreads,
    ropes: Arc<RwLock<Ropes>>,
    head: Arc<HeadState>,
}

/// What is known of the output head beside its rows.
#[derive(Debug, Default)]
struct HeadState {
    used: AtomicBool,
    screen: OnceLock<Option<Screen>>,
    screened: AtomicUsize,
    full: AtomicUsize,
}

/// How the largest logits were found, how often.
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

impl Model {
    /// Loads a checkpoint: streams the ternary matrices into the backend's layout, on as many threads as
    /// [`LoadOptions::threads`] says; embeddings and head stay in the mapped file, which the model keeps open.
    ///
    /// # Errors
    /// Whatever is wrong with a tensor.
    pub fn load(checkpoint: &Checkpoint, options: &LoadOptions<'_>) -> Result<Self, FormatError> {
        let rotation = Rotation::new(&checkpoint.config)?;
        let threads = ModelThreads::new(options.threads);
        let weights = threads.load(|| Weights::load(checkpoint, options))?;
        // if a file changed, every other error is a consequence
        checkpoint.file.check()?;
        let weights = weights?;
        Ok(Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            config: Arc::new(checkpoint.config.clone()),
            backend: options.backend,
            kv_type: options.kv_type,
            rotation,
            weights: Arc::new(weights),
            threads,
            ropes: Arc::new(RwLock::new(Ropes::new(&checkpoint.config))),
            head: Arc::default(),
        })
    }

    /// The same model on another number of threads; 0: all that the system offers. The two share weights, and a
    /// sequence of one is a sequence of the other.
    pub fn with_threads(&self, threads: usize) -> Self {
        Self {
            number: self.number,
            config: Arc::clone(&self.config),
            backend: self.backend,
            kv_type: self.kv_type,
            rotation: self.rotation.clone(),
            weights: Arc::clone(&self.weights),
            threads: ModelThreads::new(threads),
            ropes: Arc::clone(&self.ropes),
            head: Arc::clone(&self.head),
        }
    }

    /// Sizes and wiring.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The kernel that computes.
    pub fn backend(&self) -> Backend {
        self.backend
    }

    /// Threads that compute.
    pub fn threads(&self) -> usize {
        self.threads.count()
    }

    /// An empty sequence of at most `context` tokens. Memory grows with the tokens used.
    ///
    /// # Errors
    /// `context-exceeded` for more than the model was made for, and for 0.
    pub fn sequence(&self, context: usize) -> Result<Sequence, FormatError> {
        let most = self.config().max_position_embeddings;
        if context == 0 || context > most {
            return Err(FormatError::new(
                ErrorCode::ContextExceeded,
                format!("expected a context of 1 to {most} tokens, found {context}"),
            ));
        }
        let layers = 0..self.weights.layers.len();
        Ok(Sequence::new(
            self.number,
            &self.config,
            layers,
            self.kv_type,
            context,
        ))
    }

    /// Scratch for steps, which go through the layers 256 tokens at a time.
    pub fn workspace(&self) -> Workspace {
        self.workspace_of(ROUND_TOKENS)
    }

    /// Scratch for steps that go through the layers up to `most_rows` tokens at a time: its memory is in proportion.
    /// The number changes no bit.
    pub fn workspace_of(&self, most_rows: usize) -> Workspace {
        let network = (&*self.config, self.rotation.clone());
        Workspace::new(self.number, self.backend, network, most_rows)
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
        self.weights.layers.iter().flat_map(Block::linears)
    }

    /// Bytes of weights that one generated token reads: ternary matrices and output head, or the copy
    /// that screens it.
    pub fn bytes_per_token(&self) -> usize {
        let head = match self.head.screen.get() {
            Some(Some(screen)) => screen.byte_len(),
            _ => self.weights.output_head.byte_len(),
        };
        self.ternary_bytes() - self.idle_bytes() + head
    }

    /// Bytes of experts that a token does not go to.
    fn idle_bytes(&self) -> usize {
        self.weights.layers.iter().map(Block::idle_bytes).sum()
    }

    /// As [`bytes_per_token`](Self::bytes_per_token), of a token whose logits are all computed.
    pub fn full_bytes_per_token(&self) -> usize {
        self.ternary_bytes() - self.idle_bytes() + self.weights.output_head.byte_len()
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

    /// Rotary tables with at least so many positions.
    pub(crate) fn ropes(&self, positions: usize) -> RwLockReadGuard<'_, Ropes> {
        let ropes = self.ropes.read().unwrap_or_else(PoisonError::into_inner);
        if ropes.reach(positions) {
            return ropes;
        }
        drop(ropes);
        let mut ropes = self.ropes.write().unwrap_or_else(PoisonError::into_inner);
        ropes.extend_to(positions);
        drop(ropes);
        self.ropes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Refuses a token id beyond the vocabulary.
    pub(crate) fn check_tokens(&self, tokens: &[u32]) -> Result<(), FormatError> {
        let rows = self.weights.embeddings.rows();
        match tokens.iter().find(|token| **token as usize >= rows) {
            None => Ok(()),
            Some(token) => Err(FormatError::new(
                ErrorCode::Usage,
                format!("expected a token id below {rows}, found {token}"),
            )),
        }
    }

    /// Rows of the embedding matrix into `x`, `(tokens, hidden)`.
    pub(crate) fn look_up(&self, tokens: &[u32], x: &mut [f32]) -> Result<(), FormatError> {
        self.check_tokens(tokens)?;
        let hidden = self.config().hidden_size;
        for (token, x) in tokens.iter().zip(x.chunks_exact_mut(hidden)) {
            self.weights.embeddings.row(*token as usize, x)?;
            if let Some(rotation) = &self.rotation {
                rotation.turn_back(self.backend, x);
            }
            self.row_ops().scale(self.config().factors.embedding, x);
        }
        Ok(())
    }

    /// The operations on rows.
    pub(crate) fn row_ops(&self) -> RowOps<'_> {
        RowOps {
            backend: self.backend,
            config: self.config(),
        }
    }

    /// What the head multiplies with, both `(tokens, hidden)`.
    pub(crate) fn head_input(&self, x: &[f32], out: &mut [f32]) {
        self.output_norm(x, out);
        self.finish_for_head(out);
    }

    /// `h /= head_divisor`, one rounding each; then rotated if the head is. `h` is `(tokens, hidden)`.
    pub(crate) fn finish_for_head(&self, h: &mut [f32]) {
        let divisor = self.config().factors.head_divisor;
        if divisor != 1.0 {
            h.iter_mut().for_each(|h| *h /= divisor);
        }
        if let Some(rotation) = &self.rotation {
            rotation.turn_for_head(self.backend, h, self.config().hidden_size);
        }
    }

    /// `out = norm(x)` by the last norm, both `(tokens, hidden)`.
    pub(crate) fn output_norm(&self, x: &[f32], out: &mut [f32]) {
        self.row_ops().norm_rows(x, &self.weights.output_norm, out);
    }

    /// The `ks[t]` largest logits of each final hidden state `h[t]`, `h: (tokens, hidden)`. The tokens share one pass over
    /// the head.
    pub(crate) fn top_k(&self, h: &[f32], ks: &[usize]) -> Result<Vec<TopLogits>, FormatError> {
        let (head, state) = (&self.weights.output_head, &self.head);
        let hidden = self.config().hidden_size;
        let mut found: Vec<Option<TopLogits>> = vec![None; ks.len()];
        if state.used.swap(true, Ordering::Relaxed) {
            let screen = match state.screen.get() {
                Some(screen) => screen,
                None => {
                    let screen = head.screen(self.backend)?;
                    state.screen.get_or_init(|| screen)
                }
            };
            if let Some(screen) = screen {
                found = head.top_k(self.backend, screen, h, ks)?;
                let screened = found.iter().flatten().count();
                state.screened.fetch_add(screened, Ordering::Relaxed);
            }
        }
        let left: Vec<usize> = (0..ks.len()).filter(|t| found[*t].is_none()).collect();
        state.full.fetch_add(left.len(), Ordering::Relaxed);
        for tokens in left.chunks(FULL_TOKENS) {
            let rows = tokens.iter().map(|t| &h[t * hidden..(t + 1) * hidden]);
            let h: Vec<f32> = rows.flatten().copied().collect(); // (tokens, hidden)
            let mut logits = vec![0.0; tokens.len() * head.rows()]; // (tokens, vocab)
            head.multiply(self.backend, &h, &mut logits)?;
            for (t, logits) in tokens.iter().zip(logits.chunks_exact(head.rows())) {
                found[*t] = Some(sampler::top(logits, ks[*t]));
            }
        }
        Ok(found.into_iter().flatten().collect())
    }
}
