#![no_main]
bitnet_fuzz::executable!(SERVER);
