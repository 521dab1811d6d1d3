//! `bitnet-run demo`: the first command of a person who installed the programs, without a network.
//!
//! Invariant: the model that computes is the one that is named; nothing is downloaded. A program without the model beside it
//! (`cargo install`) has a copy inside.

use crate::args::{Demo, Generate};
use crate::{chat, generate, open};
use bitnet_cli::{Console, ErrorCode, ExitStatus, Failure, GlobalArgs, shell_word};
use bitnet_formats::{ScratchDirectory, without_verbatim_prefix};
use bitnet_model::{Generation, Sampler, Speculation, TextStream};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Names the directory of the model.
const VARIABLE: &str = "BITNET_DEMO_MODEL";
/// Where the model lies beside the directory of an installed program.
const INSTALLED: [&str; 2] = [
    "../share/bitnet-toolchain/demo",
    "share/bitnet-toolchain/demo",
];
/// Where the model lies in a checkout.
const IN_CHECKOUT: &str = "tests/fixtures/demo/packed";
/// What reports call the model inside the program.
const BUILT_IN: &str = "built-in";
/// The files of the model inside the program.
const FILES: [(&str, &[u8]); 6] = [
    ("config.json", include_bytes!("../demo/config.json")),
    (
        "generation_config.json",
        include_bytes!("../demo/generation_config.json"),
    ),
    (
        "model.safetensors",
        include_bytes!("../demo/model.safetensors"),
    ),
    (
        "special_tokens_map.json",
        include_bytes!("../demo/special_tokens_map.json"),
    ),
    ("tokenizer.json", include_bytes!("../demo/tokenizer.json")),
    (
        "tokenizer_config.json",
        include_bytes!("../demo/tokenizer_config.json"),
    ),
];
/// A question that the model was trained for.
const QUESTION: &str = "Add 34 and 28.";
/// Tokens of an answer: more than the model was trained to give.
const MOST_TOKENS: usize = 128;

pub fn run(
    args: &Demo,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    if args.chat && console.is_json() {
        return Err(Failure::usage("--json answers one question").hint("leave out --chat"));
    }
    // dropped last: files of the model may be mapped until then
    let place = find()?;
    let (path, name) = (place.path(), place.name());
    let how = generate_args(path, args);
    let started = Instant::now();
    let loaded = open::predictor(path, &how.compute, global.thread_count())?;
    let load_seconds = started.elapsed().as_secs_f64();
    let open::Loaded { checkpoint, model } = loaded;
    let tokenizer = open::tokenizer(&checkpoint)?;
    console.note(format!(
        "the demo model: {}, {} layers of width {}, trained to answer small questions; kernel {}, {} threads; {}",
        checkpoint.family.name,
        model.config().num_hidden_layers,
        model.config().hidden_size,
        model.backend().name(),
        model.threads(),
        name,
    ))?;
    let question = args.prompt.as_deref().unwrap_or(QUESTION);
    console.line(format_args!("> {question}"))?;
    let prompt = chat::first_turn(&tokenizer, &how, question)?;
    let stop_tokens = open::stop_tokens(&how, &model, Some(&tokenizer));
    let context = generate::context(&model, prompt.ids.len(), how.max_new_tokens, how.ctx)?;
    let mut generation = Generation::new(&model, context, Sampler::greedy(), stop_tokens)?;
    let mut answer = String::new();
    let stream = TextStream::new(&tokenizer, &[]);
    let most = MOST_TOKENS.min(context + 1 - prompt.ids.len());
    let generated = generation.run_text::<Failure>(stream, &prompt.ids, most, |piece| {
        answer.push_str(piece);
        console.text(piece)
    })?;
    checkpoint.check_inputs()?;
    console.text("\n")?;
    console.aside(format_args!(
        "[{} tokens, {:.1} tokens/s]",
        generated.tokens.len(),
        generated.tokens_per_second()
    ))?;
    let facts = generate::Facts {
        model: &model,
        mode: Speculation::Off,
        threads: global.thread_count(),
        load_seconds,
        prompt: &prompt.ids,
        generated: &generated,
        text: Some(&answer),
    };
    let mut object = facts.to_json();
    object["model"] = name.into();
    object["prompt"] = question.into();
    console.json(&object)?;
    if args.chat || console.is_interactive() {
        console.note(
            "ask more: \"Sort these words: moon, nest, key\" or \"What date is 5 days after March 29?\"",
        )?;
        let setup = chat::Setup {
            args: &how,
            model: &model,
            tokenizer: &tokenizer,
            sampler: Sampler::greedy(),
            logits: generate::logit_options(&how),
            rule: None,
            other_command: Some(match &place {
                // the directory of this run is gone when the command is typed
                Place::BuiltIn(_) => "bitnet-run MODEL --chat".to_owned(),
                Place::Directory(path) => format!("bitnet-run {} --chat", shell_word(path)),
            }),
        };
        return chat::interactive(setup, console);
    }
    // the model inside the program has no path for other programs
    let more = match &place {
        Place::BuiltIn(_) => String::new(),
        Place::Directory(path) => {
            let shown = shell_word(path);
            format!(
                "bitnet-convert {shown} -o demo.gguf\n  bitnet-verify demo.gguf --against {shown}\n  "
            )
        }
    };
    console.note(format_args!(
        "try next:\n  \
         bitnet-run demo --chat                          chat with this model\n  \
         bitnet-run demo -p \"Sort these words: b, c, a\"  ask it something else\n  \
         {more}bitnet-run --help                               run a model of your own"
    ))?;
    Ok(ExitStatus::Done)
}

/// The flags of a chat with the model at `path`.
fn generate_args(path: &Path, args: &Demo) -> Generate {
    let mut how = Generate::of_chat(path.to_owned());
    how.max_new_tokens = MOST_TOKENS;
    how.compute.kernel.clone_from(&args.kernel);
    how
}

/// Where the model is.
enum Place {
    /// In a directory that stays.
    Directory(PathBuf),
    /// In the program, and for this run in a directory.
    BuiltIn(ScratchDirectory),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Self::Directory(path) => path,
            Self::BuiltIn(scratch) => scratch.path(),
        }
    }

    fn name(&self) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::BuiltIn(_) => BUILT_IN.to_owned(),
        }
    }

    /// Writes the model inside the program to a directory.
    fn built_in() -> Result<Self, Failure> {
        let scratch = ScratchDirectory::create()?;
        for (name, content) in FILES {
            let path = scratch.path().join(name);
            std::fs::write(&path, content).map_err(|e| {
                let message = format!(
                    "the demo model cannot be written to {}: {e}",
                    path.display()
                );
                Failure::new(ErrorCode::Io, message).hint(
                    "free space in the directory for temporary files, or set TMPDIR to another one",
                )
            })?;
        }
        Ok(Self::BuiltIn(scratch))
    }
}

/// The model that ships with the programs.
fn find() -> Result<Place, Failure> {
    if let Some(path) = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        if is_model(&path) {
            return Ok(Place::Directory(path));
        }
        let message = format!("{VARIABLE}: no model at {}", path.display());
        return Err(Failure::new(ErrorCode::Io, message).hint(format!(
            "set {VARIABLE} to the directory of the demo model, or unset {VARIABLE}"
        )));
    }
    let program = std::env::current_exe().ok();
    let program = program.map(|path| path.canonicalize().unwrap_or(path));
    let directory = program.as_deref().and_then(Path::parent);
    let installed = INSTALLED
        .iter()
        .filter_map(|path| Some(directory?.join(path)));
    let here = std::env::current_dir().ok();
    let starts = [directory, here.as_deref()].into_iter().flatten();
    let checkouts = starts
        .flat_map(Path::ancestors)
        .map(|path| path.join(IN_CHECKOUT));
    let found = installed.chain(checkouts).find(|path| is_model(path));
    match found {
        Some(path) => Ok(Place::Directory(without_verbatim_prefix(
            path.canonicalize().unwrap_or(path),
        ))),
        None => Place::built_in(),
    }
}

fn is_model(path: &Path) -> bool {
    path.join("config.json").is_file()
}
