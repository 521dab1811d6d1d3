//! Text to token ids and back: tokenizers, chat templates and files of prompts, from Hugging Face
//! files or GGUF metadata.
//!
//! Invariant of this crate: the same tokenizer gives the same ids, whatever container it was read
//! from; what a container cannot say is named ([`TokenizerNote`]), never guessed.

#![forbid(unsafe_code)]

mod chat_template;
mod prompt_file;
mod tokenizer;

pub use chat_template::{ChatMessage, ChatTemplate};
pub use prompt_file::{PROMPT_FILE_BYTES, PromptEntry, parse_prompt_file};
pub use tokenizer::{
    DecodeStream, TEMPLATE_TOKENS, Tokenizer, TokenizerDigest, TokenizerNote,
    check_tokenizer_rules, has_gguf_tokenizer, is_refused_tokenizer, notes_of_directory,
    notes_of_gguf, pre_tokenizer_names, pre_tokenizer_of_vocabulary, pre_tokenizer_of_word,
    template_of_directory, template_of_files, template_of_gguf, tokenizer_class_note,
    tokenizer_files_from_gguf, tokenizer_to_gguf, tokenizer_to_gguf_with_notes,
};
