#![no_main]
bitnet_fuzz::executable!(GGUF_TOKENIZER);
