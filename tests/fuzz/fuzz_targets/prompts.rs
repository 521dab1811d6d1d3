#![no_main]
bitnet_fuzz::executable!(PROMPTS);
