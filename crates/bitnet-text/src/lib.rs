//! Text to token ids and back: tokenizers, chat templates and files of prompts, from Hugging Face
//! files or GGUF metadata.
//!
//! Invariant of this crate: the same tokenizer gives the same ids, whatever container it was read
//! from; what a container cannot say is named ([`TokenizerNote`]), never guessed.

#![forbid(unsafe_code)]
// files and templates of strangers are interpreted here
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod chat_template;
mod model_input;
mod prompt_file;
mod reasoning;
mod tokenizer;

pub use chat_template::{ChatContext, ChatMessage, ChatTemplate};
pub use model_input::TextSettings;
pub use prompt_file::{PROMPT_FILE_BYTES, PromptEntry, parse_prompt_file};
pub use reasoning::{Passage, REASONING_TAGS, ReasoningSplitter, text_before};
pub use tokenizer::{
    ChatTemplates, DecodeStream, TEMPLATE_TOKENS, TemplateHashes, Tokenizer, TokenizerDigest,
    TokenizerNote, additional_template_files, check_tokenizer_rules, has_gguf_tokenizer,
    is_refused_tokenizer, normal_template_names, notes_of_directory, notes_of_gguf,
    pre_tokenizer_names, pre_tokenizer_of_vocabulary, pre_tokenizer_of_word, tokenizer_class_note,
    tokenizer_files_from_gguf, tokenizer_to_gguf, tokenizer_to_gguf_with_notes,
};
pub use tokenizer::{
    GGUF_END_OF_TURN, GGUF_PRE_TOKENIZER, GgufTokenizerKeys, gguf_ends_of_turn,
    is_gguf_tokenizer_key,
};
