#![no_main]
bitnet_fuzz::executable!(CHECKPOINT);
