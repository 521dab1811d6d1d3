#![no_main]
bitnet_fuzz::executable!(SHARD_INDEX);
