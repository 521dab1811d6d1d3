#![no_main]
bitnet_fuzz::executable!(TOKENIZER_JSON);
