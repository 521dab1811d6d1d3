#![no_main]
bitnet_fuzz::executable!(CHAT_TEMPLATE);
