//! Tokenizers and chat templates: programs from strangers.

use crate::containers;
use crate::record::Record;
use bitnet_formats::{FormatError, Gguf};
use bitnet_text::{
    ChatContext, ChatTemplate, Tokenizer, TokenizerDigest, notes_of_gguf, tokenizer_files_from_gguf,
};
use serde_json::json;

/// Texts that every tokenizer encodes.
const TEXTS: [&str; 6] = [
    "",
    "Hello world, it's 12345 o'clock!\n\n  <s> é <|im_end|>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "   \t \r\n 今天天气很好 \u{200b}\u{fffd}👩‍👩‍👧 \u{0}",
    "0123456789.0123456789.0123456789.0123456789.0123456789.0123456789.",
    "(((((((((((((((((((((((((((((())))))))))))))))))))))))))))))xxxxxxxxxxxxxxxxxx",
];

fn use_tokenizer(read: Result<Option<Tokenizer>, FormatError>, record: &mut Record) {
    let tokenizer = match read {
        Ok(Some(tokenizer)) => tokenizer,
        Ok(None) => return,
        Err(error) => return record.error(&error),
    };
    record.note(&(tokenizer.vocab_size(), tokenizer.bos(), tokenizer.eos()));
    for text in TEXTS {
        let ids = match tokenizer.encode(text, true) {
            Ok(ids) => ids,
            Err(error) => {
                record.error(&error);
                continue;
            }
        };
        record.result(&tokenizer.decode(&ids, false));
        record.result(&tokenizer.decode(&ids, true));
        record.note(&ids);
    }
    for id in [0, 1, 2, 3, 255, 256, u32::MAX] {
        record.note(&(tokenizer.token(id), tokenizer.token_bytes(id)));
    }
    match tokenizer.chat() {
        Ok(Some(template)) => record.result(&template.render(&[], true)),
        Ok(None) => {}
        Err(error) => record.error(&error),
    }
}

fn files(name: &str, data: &[u8]) -> [(String, Vec<u8>); 1] {
    [(name.to_owned(), data.to_vec())]
}

/// `tokenizer.json`; and as GGUF metadata, which mean the same.
pub(crate) fn tokenizer_json(data: &[u8], record: &mut Record) {
    let files = files("tokenizer.json", data);
    use_tokenizer(Tokenizer::from_files(&files), record);
    record.result(&TokenizerDigest::of_files(&files));
}

/// `tokenizer.model`.
pub(crate) fn sentencepiece(data: &[u8], record: &mut Record) {
    let files = files("tokenizer.model", data);
    use_tokenizer(Tokenizer::from_files(&files), record);
    record.result(&TokenizerDigest::of_files(&files));
}

/// The metadata of a GGUF file.
pub(crate) fn gguf_tokenizer(data: &[u8], record: &mut Record) {
    let file = match containers::open(&Gguf, "input.gguf", data) {
        Ok(file) => file,
        Err(error) => return record.error(&error),
    };
    let metadata = &file.metadata;
    use_tokenizer(Tokenizer::from_gguf(metadata), record);
    record.result(&TokenizerDigest::of_gguf(metadata));
    record.note(&notes_of_gguf(metadata));
    record.result(&tokenizer_files_from_gguf(metadata));
}

fn tool() -> serde_json::Value {
    json!({"type": "function", "function": {"name": "weather", "description": "The \"weather\"\n",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"]}}})
}

fn context() -> ChatContext {
    let call = json!({"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}});
    let mut context = ChatContext {
        messages: vec![
            json!({"role": "system", "content": "Be brief."}),
            json!({"role": "user", "content": "What is the weather in Łódź?\n"}),
            json!({"role": "assistant", "content": "", "tool_calls": [call]}),
            json!({"role": "tool", "content": "{\"rain\": 0.5}", "tool_call_id": "1"}),
            json!({"role": "assistant", "content": "<think>\nhm\n</think>\n\nIt rains."}),
            json!({"role": "user", "content": [{"type": "text", "text": "Thanks"}]}),
        ],
        tools: Some(vec![tool()]),
        documents: Some(vec![json!({"title": "a", "text": "b"})]),
        add_generation_prompt: true,
        ..ChatContext::default()
    };
    context
        .variables
        .insert("enable_thinking".to_owned(), json!(false));
    context.variables.insert("n".to_owned(), json!(3));
    context.variables.insert("x".to_owned(), json!(1.5));
    context
}

/// A chat template, rendered with a conversation that has everything.
pub(crate) fn chat_template(data: &[u8], record: &mut Record) {
    let Ok(source) = std::str::from_utf8(data) else {
        return;
    };
    let template = match ChatTemplate::new(source, "<s>", "</s>") {
        Ok(template) => template,
        Err(error) => return record.error(&error),
    };
    // the date is another one tomorrow
    let is_dated = source.contains("now") || source.contains("strftime");
    let rendered = template.render_context(&context());
    if !is_dated {
        record.result(&rendered);
    }
}
