#![no_main]
bitnet_fuzz::executable!(DENSE);
