//! Writes the first inputs of every target into the directory that `FUZZ_SEEDS` names.
#![no_main]
// the body of the macro is never reached: the seeds are all that this program makes
#![allow(unreachable_code)]

use bitnet_fuzz::{libfuzzer_sys, targets};

libfuzzer_sys::fuzz_target!(
    init: {
        let root = std::env::var_os("FUZZ_SEEDS").expect("FUZZ_SEEDS names a directory");
        let root = std::path::PathBuf::from(root);
        for (target, name, bytes) in targets::seeds::seeds() {
            let dir = root.join(target);
            std::fs::create_dir_all(&dir).expect("a directory can be created");
            std::fs::write(dir.join(name), bytes).expect("a file can be written");
        }
        std::process::exit(0);
    },
    |_data: &[u8]| {}
);
