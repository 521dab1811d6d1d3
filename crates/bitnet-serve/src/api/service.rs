//! What all endpoints need of the model.
//!
//! Invariant: nothing in it changes after the start but the counter of answers and the names of fields that were ignored.

use super::error::ApiError;
use super::fields::Fields;
use super::tools::ToolFormat;
use crate::constraint::Grammars;
use crate::engine::Engine;
use bitnet_formats::FormatError;
use bitnet_model::Generation;
use bitnet_text::{ChatTemplate, Tokenizer};
use std::collections::HashSet;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// More bytes than a token stands for, as a rule: longer texts are refused before they are cut into tokens.
const MOST_BYTES_PER_TOKEN: usize = 256;

/// Most names of ignored fields that are said.
const MOST_IGNORED: usize = 256;
/// Most characters of a name that are said.
const MOST_NAME: usize = 100;

/// How the API serves an engine.
#[derive(Debug, Clone, Default)]
pub struct ApiOptions {
    /// The name of the model.
    pub name: String,
    /// Whether unknown fields are ignored.
    pub lenient: bool,
    /// Whether answers to the same requests are the same to the byte: numbered from 0, without the time of day, with
    /// seed 0 where there is none.
    pub repeatable: bool,
}

/// Who hears of fields that are ignored, and what was said.
#[derive(Debug, Default)]
struct Ignored(Mutex<(Option<UnboundedSender<String>>, HashSet<String>)>);

impl Ignored {
    fn lock(&self) -> MutexGuard<'_, (Option<UnboundedSender<String>>, HashSet<String>)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An engine with everything that the endpoints need beside it.
#[derive(Debug)]
pub struct Service {
    /// The engine.
    pub(crate) engine: Arc<Engine>,
    /// The name of the model.
    pub(crate) name: String,
    pub(crate) lenient: bool,
    repeatable: bool,
    /// When it started, in Unix seconds.
    pub(crate) started: u64,
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) tool_format: Option<ToolFormat>,
    /// Whether the model writes its reasoning between tags.
    pub(crate) reasons: bool,
    /// Special tokens that are tags of parts.
    pub(crate) tags: Vec<u32>,
    pub(crate) stop_tokens: Vec<u32>,
    grammars: OnceLock<Result<Grammars, FormatError>>,
    fingerprint: String,
    number: AtomicU64,
    ignored: Ignored,
}

impl Service {
    /// Prepares the endpoints.
    ///
    /// # Errors
    /// A chat template that does not compile.
    pub fn new(engine: Arc<Engine>, options: ApiOptions) -> Result<Self, FormatError> {
        let tokenizer = engine.tokenizer();
        let template = tokenizer.chat()?;
        let source = tokenizer.chat_template().unwrap_or_default();
        let tags = ["<think>", "</think>", "<tool_call>", "</tool_call>"];
        let tags = tags.into_iter().filter_map(|tag| tokenizer.id(tag));
        let tags = tags.filter(|id| tokenizer.is_special(*id)).collect();
        let stop_tokens = Generation::stop_tokens(engine.model(), tokenizer);
        let kernel = engine.model().config();
        let fingerprint = format!(
            "bitnet-{}-{}x{}",
            env!("CARGO_PKG_VERSION"),
            kernel.num_hidden_layers,
            kernel.hidden_size
        );
        Ok(Self {
            tool_format: ToolFormat::of_template(source),
            reasons: source.contains("<think>") || tokenizer.id("<think>").is_some(),
            template,
            tags,
            stop_tokens,
            name: options.name,
            lenient: options.lenient,
            repeatable: options.repeatable,
            started: now(),
            grammars: OnceLock::new(),
            fingerprint,
            number: AtomicU64::new(match options.repeatable {
                true => 0,
                false => random(),
            }),
            engine,
            ignored: Ignored::default(),
        })
    }

    /// The names of fields that were ignored, each once, as soon as a request has them; the last one is `…` if there are
    /// too many. Only the last receiver gets them.
    pub(crate) fn ignored(&self) -> UnboundedReceiver<String> {
        let (sender, receiver) = unbounded_channel();
        *self.ignored.lock() = (Some(sender), HashSet::new());
        receiver
    }

    /// Says that fields were ignored.
    pub(crate) fn say_ignored(&self, names: &[String]) {
        if names.is_empty() {
            return;
        }
        let (sender, said) = &mut *self.ignored.lock();
        for name in names {
            let shown: String = name.chars().take(MOST_NAME).collect();
            let name = match said.len() {
                MOST_IGNORED.. => "…".to_owned(),
                _ => shown,
            };
            if said.insert(name.clone())
                && let Some(sender) = sender
            {
                // a server that has ended warns of nothing
                let _ = sender.send(name);
            }
        }
    }

    /// Whether the model can still compute.
    ///
    /// # Errors
    /// 503 after its file was written to.
    pub(crate) fn check_model(&self) -> Result<(), ApiError> {
        let checked = self.engine.model().check_weights();
        checked.map_err(|error| ApiError {
            status: 503,
            ..ApiError::from(error)
        })
    }

    pub(crate) fn tokenizer(&self) -> &Tokenizer {
        self.engine.tokenizer()
    }

    /// The number of tokens that have logits.
    pub(crate) fn vocab(&self) -> usize {
        self.engine.model().config().vocab_size
    }

    /// What answers were computed with: nothing that changes them.
    pub(crate) fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Grammars over the vocabulary, which are made when they are first needed.
    pub(crate) fn grammars(&self) -> Result<&Grammars, ApiError> {
        let made = self
            .grammars
            .get_or_init(|| Grammars::new(self.tokenizer(), self.vocab(), &self.stop_tokens));
        made.as_ref().map_err(|error| error.clone().into())
    }

    /// A new name for an answer.
    pub(crate) fn id(&self, kind: &str) -> String {
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        format!("{kind}-{number:016x}")
    }

    /// The number of the next answer.
    pub fn set_number(&self, number: u64) {
        self.number.store(number, Ordering::Relaxed);
    }

    /// When an answer begins, in Unix seconds.
    pub(crate) fn created(&self) -> u64 {
        match self.repeatable {
            true => 0,
            false => now(),
        }
    }

    /// The seed of a request without one: a number that JSON readers hold exactly.
    pub(crate) fn seed(&self) -> u64 {
        match self.repeatable {
            true => 0,
            false => random() >> 11,
        }
    }

    /// Takes `model`, which has to be this one if it is there.
    pub(crate) fn take_model(&self, fields: &mut Fields) -> Result<(), ApiError> {
        match fields.text("model")? {
            Some(name) if name != self.name => Err(self.unknown_model(&name)),
            _ => Ok(()),
        }
    }

    pub(crate) fn unknown_model(&self, name: &str) -> ApiError {
        let shown: String = name.chars().take(100).collect();
        let message = format!(
            "the model `{shown}` does not exist; expected `{}`",
            self.name
        );
        ApiError::new(404, message)
            .code("model_not_found")
            .of("model")
    }

    /// Refuses to predict tokens with a network that was trained for vectors.
    pub(crate) fn predicts(&self) -> Result<(), ApiError> {
        match self.engine.model().config().pooling {
            None => Ok(()),
            Some(_) => {
                let message =
                    "this is an embedding model, which predicts no tokens; use /v1/embeddings";
                Err(ApiError::new(400, message).code("embedding_model"))
            }
        }
    }

    /// The tokens of a text.
    pub(crate) fn encode(
        &self,
        text: &str,
        special: bool,
        param: &str,
    ) -> Result<Vec<u32>, ApiError> {
        self.check_text(text, param)?;
        Ok(self.tokenizer().encode(text, special)?)
    }

    /// Refuses a text that is certainly longer than the context.
    pub(crate) fn check_text(&self, text: &str, param: &str) -> Result<(), ApiError> {
        let context = self.engine.context();
        let most = context.saturating_mul(MOST_BYTES_PER_TOKEN);
        if text.len() > most {
            let message = format!(
                "expected a text of at most {most} bytes for a context of {context} tokens, found {}",
                text.len()
            );
            return Err(ApiError::field(param, message).code("context_length_exceeded"));
        }
        Ok(())
    }

    /// Refuses prompts that leave no room in the context.
    pub(crate) fn check_prompt(&self, tokens: &[u32], param: &str) -> Result<(), ApiError> {
        let context = self.engine.context();
        match tokens.len() {
            0 => Err(ApiError::field(
                param,
                "the prompt has no tokens, and this model has no token to begin with",
            )),
            found if found > context => Err(ApiError::field(
                param,
                format!("expected a prompt of at most {context} tokens, found {found}"),
            )
            .code("context_length_exceeded")),
            _ => Ok(()),
        }
    }

    /// The text of a token as lists of log-probabilities have it.
    pub(crate) fn token_text(&self, id: u32) -> String {
        let bytes = self.tokenizer().token_bytes(id).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_else(|error| {
            let bytes = error.as_bytes().iter();
            let bytes: String = bytes.map(|byte| format!("\\x{byte:02x}")).collect();
            format!("bytes:{bytes}")
        })
    }
}

/// A number that nobody chose.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// Unix seconds.
fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
