//! The engine: a thread that steps a model for many texts at once.
//!
//! Invariant: one thread owns everything that a step changes. A request is refused before it starts, or it runs to its end.

mod job;
mod metrics;
mod prefix_cache;
mod request;
mod scheduler;

use bitnet_formats::{ErrorCode, FormatError};
use bitnet_model::Model;
use bitnet_text::Tokenizer;
pub use metrics::Metrics;
pub use request::{Client, Continuation, Embed, Event, Events, Generate, TokenLogprob};
use scheduler::{Command, Limits, Scheduler};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Positions of a block of keys and values: what memory grows by.
const BLOCK_POSITIONS: usize = 256;

/// Limits of an engine.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Texts in progress at once.
    pub parallel: usize,
    /// Tokens of a text, prompt included; `None`: what the model was made for.
    pub context: Option<usize>,
    /// Bytes of keys and values; `None`: what `parallel` texts need, at most [`kv_at_most`](Self::kv_at_most).
    pub kv_bytes: Option<usize>,
    /// Most bytes of keys and values where their number is not given.
    pub kv_at_most: usize,
    /// Whether keys and values of texts that ended are kept for texts that begin alike.
    pub prefix_cache: bool,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            parallel: 4,
            context: None,
            kv_bytes: None,
            kv_at_most: usize::MAX,
            prefix_cache: true,
        }
    }
}

/// A model that continues many texts at once.
#[derive(Debug)]
pub struct Engine {
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    limits: Limits,
    commands: Mutex<Option<Sender<Command>>>,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Engine {
    /// Starts the engine's thread.
    ///
    /// # Errors
    /// `context-exceeded` for a context beyond the model's; `limit-exceeded` for a budget that holds no text; `io` if the
    /// system gives no thread.
    pub fn start(
        model: Arc<Model>,
        tokenizer: Arc<Tokenizer>,
        options: EngineOptions,
    ) -> Result<Self, FormatError> {
        let most = model.config().max_position_embeddings;
        let context = options.context.unwrap_or(most);
        let block_bytes = model
            .sequence(context)?
            .cache()
            .position_bytes()
            .saturating_mul(BLOCK_POSITIONS);
        let parallel = options.parallel.max(1);
        let mut limits = Limits {
            parallel,
            context,
            kv_bytes: usize::MAX,
            block_bytes,
            block_positions: BLOCK_POSITIONS,
            prefix_cache: options.prefix_cache,
        };
        let all = limits.bytes(context, 1).saturating_mul(parallel);
        limits.kv_bytes = options.kv_bytes.unwrap_or(all.min(options.kv_at_most));
        let least = limits.bytes(1, 1);
        if limits.kv_bytes < least {
            let message = format!(
                "expected a KV cache of at least {least} bytes, one block of {BLOCK_POSITIONS} tokens, found {}",
                limits.kv_bytes
            );
            return Err(FormatError::new(ErrorCode::LimitExceeded, message));
        }
        let (commands, receiver) = channel();
        let metrics = Arc::new(Metrics::default());
        // before any request can ask
        Metrics::set(&metrics.budget_bytes, limits.kv_bytes);
        let stop = Arc::new(AtomicBool::new(false));
        let worker = Worker {
            model: Arc::clone(&model),
            tokenizer: Arc::clone(&tokenizer),
            limits,
            metrics: Arc::clone(&metrics),
            stop: Arc::clone(&stop),
        };
        let builder = std::thread::Builder::new().name("engine".to_owned());
        let thread = builder.spawn(move || worker.run(&receiver)).map_err(|e| {
            let message = format!("cannot start the engine's thread: {e}");
            FormatError::new(ErrorCode::Io, message).because(e)
        })?;
        Ok(Self {
            model,
            tokenizer,
            limits,
            commands: Mutex::new(Some(commands)),
            metrics,
            stop,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// The model.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Its tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens of a text, prompt included.
    pub fn context(&self) -> usize {
        self.limits.context
    }

    /// New tokens that fit behind a prompt of so many tokens.
    pub fn room(&self, prompt: usize) -> usize {
        let blocks = self.limits.kv_bytes.checked_div(self.limits.block_bytes);
        let tokens = blocks.map_or(usize::MAX, |blocks| blocks.saturating_mul(BLOCK_POSITIONS));
        // the last new token is never read
        tokens.min(self.limits.context).saturating_sub(prompt) + 1
    }

    /// Texts in progress at once.
    pub fn parallel(&self) -> usize {
        self.limits.parallel
    }

    /// What it counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Begins to continue texts.
    ///
    /// # Errors
    /// `usage` for a token beyond the vocabulary and for no prompt; `context-exceeded` for an empty prompt and for one that does not fit
    /// the context; `limit-exceeded` for a text whose keys and values never fit the memory for them; `busy` after
    /// [`stop`](Self::stop).
    pub fn generate(&self, request: Generate) -> Result<Events, FormatError> {
        for prompt in &request.prompts {
            self.check(prompt)?;
            let bytes = self.limits.bytes(prompt.len(), request.how.most);
            if bytes > self.limits.kv_bytes {
                let message = format!(
                    "expected a text whose KV cache has at most {} bytes, found {bytes} bytes for {} prompt tokens and {} new ones",
                    self.limits.kv_bytes,
                    prompt.len(),
                    request.how.most
                );
                return Err(FormatError::new(ErrorCode::LimitExceeded, message).hint(
                    "set a smaller max_tokens, or give the server more memory with --kv-memory",
                ));
            }
        }
        if request.prompts.is_empty() || request.choices == 0 {
            return Err(FormatError::new(ErrorCode::Usage, "no prompt"));
        }
        let (sender, events) = Events::channel();
        self.send(Command::Generate(Box::new(request), sender))?;
        Ok(events)
    }

    /// Begins to turn texts into vectors.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn embed(&self, request: Embed) -> Result<Events, FormatError> {
        for text in &request.texts {
            self.check(text)?;
        }
        if request.texts.is_empty() {
            return Err(FormatError::new(ErrorCode::Usage, "no text"));
        }
        let (sender, events) = Events::channel();
        self.send(Command::Embed(request, sender))?;
        Ok(events)
    }

    fn check(&self, tokens: &[u32]) -> Result<(), FormatError> {
        let context = self.limits.context;
        if tokens.is_empty() || tokens.len() > context {
            let message = format!(
                "expected a prompt of 1 to {context} tokens, found {}",
                tokens.len()
            );
            return Err(FormatError::new(ErrorCode::ContextExceeded, message));
        }
        let vocab = self.model.config().vocab_size;
        match tokens.iter().find(|token| **token as usize >= vocab) {
            None => Ok(()),
            Some(token) => Err(FormatError::new(
                ErrorCode::Usage,
                format!("expected a token id below {vocab}, found {token}"),
            )),
        }
    }

    fn send(&self, command: Command) -> Result<(), FormatError> {
        let stopped = || FormatError::new(ErrorCode::Busy, "the server stops");
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
        let commands = commands.as_ref().ok_or_else(stopped)?;
        commands.send(command).map_err(|_| stopped())?;
        Metrics::add(&self.metrics.requests, 1);
        Ok(())
    }

    /// Ends all texts at the next step.
    pub fn abort(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Ends all texts at once, and waits for the engine's thread.
    pub fn stop(&self) {
        self.abort();
        self.finish();
    }

    /// Takes no more requests, and waits until all texts have ended.
    pub fn finish(&self) {
        let commands = self
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        drop(commands);
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What the engine's thread owns.
struct Worker {
    model: Arc<Model>,
    tokenizer: Arc<Tokenizer>,
    limits: Limits,
    metrics: Arc<Metrics>,
    stop: Arc<AtomicBool>,
}

impl Worker {
    fn run(&self, commands: &Receiver<Command>) {
        /// Says that the thread is gone, after a panic too.
        struct Gone<'a>(&'a Metrics);
        impl Drop for Gone<'_> {
            fn drop(&mut self) {
                self.0.dead.store(true, Ordering::Relaxed);
            }
        }
        let _gone = Gone(&self.metrics);
        Scheduler::new(
            &self.model,
            &self.tokenizer,
            self.limits,
            &self.metrics,
            &self.stop,
        )
        .run(commands);
    }
}
