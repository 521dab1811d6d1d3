//! The tokenizer classes of transformers, and what each of them says without looking at a file.
//!
//! Invariant: facts of transformers 5.24; [`class_rules`](super::class_rules) finds the class of a directory.

/// A tokenizer class of transformers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Class {
    /// `TokenizersBackend` and every name that means it: `tokenizer.json` as it is.
    #[default]
    Backend,
    Qwen2,
    Qwen35,
    Gpt2,
    Llama,
    Gemma,
    /// A class that is not known here.
    Other(String),
}

impl Class {
    /// Its name in `tokenizer_class`.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Backend => "TokenizersBackend",
            Self::Qwen2 => "Qwen2Tokenizer",
            Self::Qwen35 => "Qwen3_5Tokenizer",
            Self::Gpt2 => "GPT2Tokenizer",
            Self::Llama => "LlamaTokenizer",
            Self::Gemma => "GemmaTokenizer",
            Self::Other(name) => name,
        }
    }

    /// Whether the class brings its own rules and drops the `added_tokens` of `tokenizer.json`.
    pub(super) fn rebuilds(&self) -> bool {
        !matches!(self, Self::Backend | Self::Other(_))
    }

    /// Whether the class adds its special tokens once more, without flags, at the end.
    pub(super) fn resets_special(&self) -> bool {
        matches!(self, Self::Qwen2)
    }

    /// The text of a special token (`bos`, ...) that no file names.
    pub(super) fn default_text(&self, name: &str) -> Option<&'static str> {
        const END: Option<&str> = Some("<|endoftext|>");
        match (self, name) {
            (Self::Qwen2 | Self::Qwen35, "unk" | "eos" | "pad") => END,
            (Self::Gpt2, "unk" | "bos" | "eos") => END,
            (Self::Llama, "unk") | (Self::Gemma, "unk") => Some("<unk>"),
            (Self::Llama, "bos") => Some("<s>"),
            (Self::Llama, "eos") => Some("</s>"),
            (Self::Gemma, "bos") => Some("<bos>"),
            (Self::Gemma, "eos") => Some("<eos>"),
            (Self::Gemma, "pad") => Some("<pad>"),
            (Self::Gemma, "mask") => Some("<mask>"),
            _ => None,
        }
    }
}
