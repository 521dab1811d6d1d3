//! What is fuzzed: one function for each reader of bytes from strangers, with the invariants that hold for any input.
//!
//! Invariant: a target depends on its input alone. What a reader refuses is an error with one line of text; a panic, more
//! memory than [`Target::most_memory`], or another result for the same bytes is a bug.
//!
//! `tests/fuzz` runs these functions under libFuzzer (`scripts/fuzz`); the ordinary tests run them on every input that
//! once failed (`tests/fuzz/regressions`).

mod containers;
mod json;
pub mod memory;
mod models;
mod mutate;
mod packings;
mod record;
mod records;
mod requests;
mod scratch;
pub mod seeds;
mod text;
mod zip;

pub use mutate::{Mutator, gguf_with_a_lie, safetensors_with_a_lie};
pub use record::Record;

use std::hash::{DefaultHasher, Hasher};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Bytes of memory that every input may take, beside [`BYTES_PER_BYTE`] for each of its own.
const FREE_BYTES: usize = 16 << 20;
/// Bytes of memory for each byte of an input.
const BYTES_PER_BYTE: usize = 4;
/// Longest time that an input may take.
const MOST_TIME: Duration = Duration::from_secs(2);
/// One input in so many is read twice while fuzzing.
const TWICE_IN: u64 = 16;

/// One reader.
pub struct Target {
    /// Its name: also of its corpus, its regressions and its executable.
    pub name: &'static str,
    /// Reads an input.
    pub read: fn(&[u8], &mut Record),
    /// Bytes that any input may take beyond [`FREE_BYTES`], and why.
    more: (usize, &'static str),
    /// Changes an input so that its structure stays.
    pub mutate: Option<Mutator>,
    /// Longest input that is tried.
    pub longest: usize,
    /// Longest time of the processor that an input may take.
    pub most_time: Duration,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

/// The targets, each a static of its own: an executable that names one links no other.
macro_rules! targets {
    ($($(#[$doc:meta])* $id:ident $name:literal $read:path, $longest:expr, $mutate:expr, $more:expr;)*) => {
        $(
            $(#[$doc])*
            pub static $id: Target = Target {
                name: $name,
                read: $read,
                longest: $longest,
                most_time: MOST_TIME,
                mutate: $mutate,
                more: $more,
            };
        )*

        /// Every target.
        pub static TARGETS: &[&Target] = &[$(&$id),*];
    };
}

const NO_MORE: (usize, &str) = (0, "");

targets! {
    /// A GGUF file.
    GGUF "gguf" containers::gguf, 4096, Some(gguf_with_a_lie), NO_MORE;
    /// A safetensors file.
    SAFETENSORS "safetensors" containers::safetensors, 4096, Some(safetensors_with_a_lie), NO_MORE;
    /// A PyTorch archive or legacy file.
    PYTORCH "pytorch" containers::pytorch, 8192, None, NO_MORE;
    /// The pickle of a PyTorch archive.
    PICKLE "pickle" containers::pickle, 4096, None, NO_MORE;
    /// The index of a model in shards.
    SHARD_INDEX "shard_index" containers::shard_index, 2048, None, NO_MORE;
    /// A packed matrix.
    UNPACK "unpack" packings::unpack, 1024, None, NO_MORE;
    /// A packed matrix, packed otherwise.
    TRANSCODE "transcode" packings::transcode, 1024, None, NO_MORE;
    /// Dense values.
    DENSE "dense" packings::dense, 1024, None, NO_MORE;
    /// JSON.
    JSON "json" json::json, 2048, None, NO_MORE;
    /// `config.json`.
    CONFIG "config" models::config, 8192, None, NO_MORE;
    /// `tokenizer.json`.
    TOKENIZER_JSON "tokenizer_json" text::tokenizer_json, 1 << 15, None, NO_MORE;
    /// The tokenizer of a GGUF file.
    GGUF_TOKENIZER "gguf_tokenizer" text::gguf_tokenizer, 1 << 15, Some(gguf_with_a_lie), NO_MORE;
    /// `tokenizer.model`.
    SENTENCEPIECE "sentencepiece" text::sentencepiece, 1 << 14, None, NO_MORE;
    /// A chat template.
    CHAT_TEMPLATE "chat_template" text::chat_template, 8192, None,
        (32 << 20, "a template may hold 20 MB of values and write 2 MB of text");
    /// A file of prompts.
    PROMPTS "prompts" records::prompts, 2048, None, NO_MORE;
    /// A certificate.
    CERTIFICATE "certificate" records::certificate, 1 << 15, None, NO_MORE;
    /// A plan.
    PLAN "plan" records::plan, 4096, None, NO_MORE;
    /// Recorded logits.
    LOGITS "logits" records::logits, 8192, Some(safetensors_with_a_lie), NO_MORE;
    /// Names of models elsewhere, and answers of servers.
    HUB "hub" records::hub, 4096, None, NO_MORE;
    /// The body of a request.
    SERVER "server" requests::server, 4096, None, NO_MORE;
    /// A model in a GGUF file.
    CHECKPOINT_GGUF "checkpoint_gguf" models::checkpoint_gguf, 1 << 16, Some(gguf_with_a_lie), NO_MORE;
    /// A model in a directory.
    CHECKPOINT "checkpoint" models::checkpoint, 1 << 16, None, NO_MORE;
    /// A model for two programs.
    AGREEMENT "agreement" models::agreement, 1 << 16, None, NO_MORE;
}

/// The target of this name.
pub fn target_by_name(name: &str) -> Option<&'static Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}

impl Target {
    /// A target with the usual limits.
    pub const fn new(name: &'static str, read: fn(&[u8], &mut Record)) -> Self {
        Self {
            name,
            read,
            more: NO_MORE,
            mutate: None,
            longest: 4096,
            most_time: MOST_TIME,
        }
    }

    /// Most memory that an input of so many bytes may take.
    pub fn most_memory(&self, len: usize) -> usize {
        let (more, _) = self.more;
        BYTES_PER_BYTE * len + FREE_BYTES + more
    }

    /// Reads an input and checks what holds for all. `peak` runs its argument and says how many bytes were allocated at
    /// once meanwhile. With `always_twice`, or for some of the inputs, compares the results of two runs.
    ///
    /// # Panics
    /// If something does not hold.
    pub fn examine(
        &self,
        data: &[u8],
        always_twice: bool,
        peak: impl FnOnce(&mut dyn FnMut()) -> usize,
    ) {
        let mut hasher = DefaultHasher::new();
        hasher.write(data);
        let is_twice = always_twice || hasher.finish().is_multiple_of(TWICE_IN);
        let mut first = Record::new(is_twice);
        let started = Instant::now();
        let found = peak(&mut || (self.read)(data, &mut first));
        if started.elapsed() > self.most_time {
            // tests run beside each other in one process, a fuzzed target does not
            self.expect_fast(data, if always_twice { "thread-self" } else { "self" });
        }
        let most = self.most_memory(data.len());
        assert!(
            found <= most,
            "{}: {found} bytes of memory for an input of {} bytes, at most {most} are allowed",
            self.name,
            data.len()
        );
        if is_twice {
            let mut second = Record::new(true);
            (self.read)(data, &mut second);
            first.expect_same(&second, self.name);
        }
    }
}

impl Target {
    /// Measures again, in the time of the processor: the clock on the wall also counts what other programs do.
    fn expect_fast(&self, data: &[u8], whose: &str) {
        let before = processor_time(whose);
        (self.read)(data, &mut Record::new(false));
        let taken = processor_time(whose).saturating_sub(before);
        assert!(
            taken <= self.most_time,
            "{}: {taken:?} for an input of {} bytes, at most {:?} are allowed",
            self.name,
            data.len(),
            self.most_time
        );
    }
}

/// What this process (`self`) or thread (`thread-self`) has taken of the processor; where the system does not say it, the
/// time since the first call.
fn processor_time(whose: &str) -> Duration {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    let first = *FIRST.get_or_init(Instant::now);
    let read = || -> Option<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{whose}/stat")).ok()?;
        // behind the name in parentheses; user and system time are the 14th and 15th field, in hundredths
        let (_, fields) = text.rsplit_once(") ")?;
        let mut fields = fields.split(' ').skip(11);
        let user: u64 = fields.next()?.parse().ok()?;
        let system: u64 = fields.next()?.parse().ok()?;
        Some(Duration::from_millis((user + system) * 10))
    };
    read().unwrap_or_else(|| first.elapsed())
}

/// The directory of the fuzz tests in the repository.
pub fn directory() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map(PathBuf::from).unwrap_or(own)
}
