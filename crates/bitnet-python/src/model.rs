//! A loaded model.
//!
//! Invariant: texts, tokens and logits are those of `bitnet-run`. A closed model and one of a parent process are
//! refused.

use crate::failure::{raised, usage};
use crate::process::{self, Owned};
use crate::stream::{Ended, Message, Pieces, Sink};
use crate::work::{self, Watch};
use bitnet_cli::{Console, Failure, GlobalArgs, Located, Reads};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_model::{Generation, Sampler, TextStream};
use bitnet_run::library::{self, Loaded, ModelSettings, Sampling};
use bitnet_text::{ChatContext, Tokenizer};
use numpy::{IntoPyArray, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use serde_json::{Map, Value};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

/// Tokens between two looks at signals.
const BATCH: usize = 64;

/// What a model needs.
struct Held {
    loaded: Loaded,
    tokenizer: OnceLock<Result<Tokenizer, Failure>>,
    /// Keeps the files of a remote model.
    _located: Located,
}

impl Held {
    fn load(path: &Path, settings: &ModelSettings) -> Result<Self, Failure> {
        let located = locate(path)?;
        Ok(Self {
            loaded: library::load(located.path(), settings)?,
            tokenizer: OnceLock::new(),
            _located: located,
        })
    }

    fn tokenizer(&self) -> Result<&Tokenizer, Failure> {
        let read = || library::tokenizer(&self.loaded.checkpoint);
        let tokenizer = self.tokenizer.get_or_init(read);
        tokenizer.as_ref().map_err(|failure| {
            let mut failure = failure.clone();
            if failure.hints.iter().any(|hint| hint.contains("--tokens")) {
                failure.hints = vec!["give token ids instead of a text".to_owned()];
            }
            failure
        })
    }
}

/// A path of a model that may be remote.
pub fn locate(path: &Path) -> Result<Located, Failure> {
    let global = GlobalArgs {
        json: true,
        ..GlobalArgs::default()
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut console = Console::new(&global, &mut out, &mut err);
    bitnet_cli::locate(path, Reads::Whole, &mut console)
}

/// A loaded model; `bitnet_toolchain.Model` explains it.
#[pyclass(module = "bitnet_toolchain._native", frozen)]
pub struct Model {
    held: Owned<RwLock<Option<Arc<Held>>>>,
}

impl Model {
    fn open(&self, py: Python<'_>) -> PyResult<Arc<Held>> {
        let held = self.held.get(py)?;
        let held = held.read().unwrap_or_else(PoisonError::into_inner);
        let held = held.as_ref().map(Arc::clone);
        held.ok_or_else(|| usage(py, "the model is closed", Some("open it again")))
    }
}

/// What a text is continued with.
struct Request {
    ids: Vec<u32>,
    most: usize,
    context: usize,
    sampler: Sampler,
    stop: Vec<String>,
    ignore_eos: bool,
    as_text: bool,
}

#[pymethods]
impl Model {
    #[new]
    #[pyo3(signature = (path, threads, kernel, kv_type, layout, repack, ternary_trained))]
    #[expect(
        clippy::too_many_arguments,
        reason = "the keywords of bitnet_toolchain.Model"
    )]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        threads: usize,
        kernel: Option<String>,
        kv_type: Option<String>,
        layout: Option<String>,
        repack: bool,
        ternary_trained: bool,
    ) -> PyResult<Self> {
        let settings = ModelSettings {
            kernel,
            kv_type,
            layout,
            repack,
            ternary_trained,
            threads,
        };
        let held = work::run(py, None, move |_| Held::load(&path, &settings))?;
        let held = held.map_err(|failure| raised(py, &failure))?;
        Ok(Self {
            held: Owned::new(RwLock::new(Some(Arc::new(held)))),
        })
    }

    /// Name of the kernel.
    #[getter]
    fn kernel(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(self.open(py)?.loaded.model.backend().name())
    }

    /// Threads that compute.
    #[getter]
    fn threads(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.open(py)?.loaded.model.threads())
    }

    /// Rows of the output head.
    #[getter]
    fn vocab_size(&self, py: Python<'_>) -> PyResult<usize> {
        Ok(self.open(py)?.loaded.model.config().vocab_size)
    }

    /// Most tokens of a text.
    #[getter]
    fn context_length(&self, py: Python<'_>) -> PyResult<usize> {
        let held = self.open(py)?;
        Ok(held.loaded.model.config().max_position_embeddings)
    }

    /// Whether the model is closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        let held = self.held.get(py)?.read();
        Ok(held.unwrap_or_else(PoisonError::into_inner).is_none())
    }

    /// Frees the memory of the model, when its last generation has ended.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let held = self.held.get(py)?.write();
        let taken = held.unwrap_or_else(PoisonError::into_inner).take();
        py.detach(move || drop(taken));
        Ok(())
    }

    fn tokenize(&self, py: Python<'_>, text: String, add_special: bool) -> PyResult<Vec<u32>> {
        let held = self.open(py)?;
        let ids = work::run(py, None, move |_| {
            Ok::<_, Failure>(held.tokenizer()?.encode(&text, add_special)?)
        })?;
        ids.map_err(|failure| raised(py, &failure))
    }

    fn detokenize(&self, py: Python<'_>, ids: Vec<u32>, skip_special: bool) -> PyResult<String> {
        let held = self.open(py)?;
        let text = work::run(py, None, move |_| {
            let tokenizer = held.tokenizer()?;
            let vocab = held
                .loaded
                .model
                .config()
                .vocab_size
                .max(tokenizer.vocab_size());
            check_ids(&ids, vocab)?;
            Ok::<_, Failure>(tokenizer.decode(&ids, skip_special)?)
        })?;
        text.map_err(|failure| raised(py, &failure))
    }

    /// `messages` and `tools` are JSON lists, `variables` is a JSON object.
    fn apply_chat_template(
        &self,
        py: Python<'_>,
        messages: &str,
        tools: Option<&str>,
        variables: &str,
        add_generation_prompt: bool,
    ) -> PyResult<String> {
        let json = |text: &str| {
            let parsed: Result<Value, _> = serde_json::from_str(text);
            parsed.map_err(|e| usage(py, &format!("expected JSON: {e}"), None))
        };
        let list = |text: &str| match json(text)? {
            Value::Array(list) => Ok(list),
            _ => Err(usage(py, "expected a list", None)),
        };
        let variables = match json(variables)? {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        let context = ChatContext {
            messages: list(messages)?,
            tools: tools.map(list).transpose()?,
            documents: None,
            add_generation_prompt,
            variables,
        };
        let held = self.open(py)?;
        let text = work::run(py, None, move |_| {
            let template = held.tokenizer()?.chat()?.ok_or_else(|| {
                Failure::new(ErrorCode::ChatTemplate, "this model has no chat template")
                    .hint("continue plain text with generate(text)")
            })?;
            Ok::<_, Failure>(template.render_context(&context)?)
        })?;
        text.map_err(|failure| raised(py, &failure))
    }

    /// The logits of every token, `(tokens, vocab)`.
    fn logits<'py>(&self, py: Python<'py>, ids: Vec<u32>) -> PyResult<Bound<'py, PyArray2<f32>>> {
        // the array's module panics without it
        py.import("numpy")?;
        let held = self.open(py)?;
        let vocab = held.loaded.model.config().vocab_size;
        let tokens = ids.len();
        let logits = work::run(py, None, move |watch: &Watch| {
            let Loaded { checkpoint, model } = &held.loaded;
            check_ids(&ids, vocab)?;
            refuse_no_tokens(&ids)?;
            let logits = library::prompt_logits(model, &ids, Some(BATCH), &|| watch.check())?;
            checkpoint.check_inputs()?;
            Ok::<_, Failure>(logits)
        })?;
        let logits = logits.map_err(|failure| raised(py, &failure))?;
        logits.into_pyarray(py).reshape([tokens, vocab])
    }

    /// Begins to continue `ids`, as text or as tokens.
    #[expect(
        clippy::too_many_arguments,
        reason = "the keywords of bitnet_toolchain.Model.generate"
    )]
    fn generate(
        &self,
        py: Python<'_>,
        ids: Vec<u32>,
        max_new_tokens: usize,
        temperature: Option<f64>,
        top_k: Option<usize>,
        top_p: Option<f64>,
        min_p: Option<f64>,
        seed: Option<u64>,
        stop: Vec<String>,
        ignore_eos: bool,
        ctx: Option<usize>,
        as_text: bool,
    ) -> PyResult<Pieces> {
        process::enter(py)?;
        let held = self.open(py)?;
        let sampling = Sampling {
            temperature,
            top_k,
            top_p,
            min_p,
            seed,
        };
        let prepared = || {
            let model = &held.loaded.model;
            check_ids(&ids, model.config().vocab_size)?;
            refuse_no_tokens(&ids)?;
            if stop.iter().any(String::is_empty) {
                return Err(Failure::usage("stop: expected a text that is not empty"));
            }
            let context = library::context(model, ids.len(), max_new_tokens, ctx)?;
            // a full context ends a text like `max_new_tokens` does
            let most = max_new_tokens.min(context + 1 - ids.len());
            Ok(Request {
                context,
                sampler: sampling.sampler()?,
                ids,
                most,
                stop,
                ignore_eos,
                as_text,
            })
        };
        let request = prepared().map_err(|failure| raised(py, &failure))?;
        Pieces::start(py, move |sink| generate(&held, request, sink))
    }
}

/// Generates on this thread.
fn generate(held: &Held, request: Request, sink: &Sink) -> Result<(), Ended> {
    let Loaded { checkpoint, model } = &held.loaded;
    let tokenizer = match request.as_text || !request.ignore_eos {
        true => held.tokenizer().map(Some),
        false => Ok(None),
    };
    // tokens need no tokenizer, and end at the stop tokens that the model alone knows
    let tokenizer = match (tokenizer, request.as_text) {
        (Err(failure), true) => return Err(failure.into()),
        (tokenizer, _) => tokenizer.ok().flatten(),
    };
    let stop_tokens = match (request.ignore_eos, tokenizer) {
        (true, _) => Vec::new(),
        (false, Some(tokenizer)) => Generation::stop_tokens(model, tokenizer),
        (false, None) => model.config().eos_token_ids.clone(),
    };
    let mut generation = Generation::new(model, request.context, request.sampler, stop_tokens)?;
    match tokenizer {
        Some(tokenizer) if request.as_text => {
            let text = TextStream::new(tokenizer, &request.stop);
            generation.run_text::<Ended>(text, &request.ids, request.most, |piece| {
                sink.send(Message::Text(piece.to_owned()))
            })?
        }
        _ => generation.run::<Ended>(&request.ids, request.most, |token| {
            sink.send(Message::Token(token))?;
            Ok(ControlFlow::Continue(()))
        })?,
    };
    Ok(checkpoint.check_inputs()?)
}

/// Refuses a prompt without tokens, as the program does.
fn refuse_no_tokens(ids: &[u32]) -> Result<(), Failure> {
    match ids.is_empty() {
        true => Err(
            Failure::new(ErrorCode::Tokenizer, "the prompt has no tokens")
                .hint("give a text that is not empty"),
        ),
        false => Ok(()),
    }
}

/// Refuses ids that the vocabulary does not have.
fn check_ids(ids: &[u32], vocab: usize) -> Result<(), FormatError> {
    let beyond = |id: &u32| usize::try_from(*id).is_ok_and(|id| id >= vocab);
    match ids.iter().position(beyond) {
        None => Ok(()),
        Some(at) => {
            let found = ids.get(at).copied().unwrap_or_default();
            let message = format!(
                "token {at}: expected an id below {vocab}, the size of the vocabulary, found {found}"
            );
            Err(FormatError::new(ErrorCode::Usage, message))
        }
    }
}
