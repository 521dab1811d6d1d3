//! The frame of every executable: the allocator that measures, and the panics that are bugs.
//!
//! Invariant: a panic that a reader does not catch itself ends the process.

#![allow(missing_docs)]

pub use bitnet_fuzz_targets as targets;
pub use libfuzzer_sys;

/// Defines the executable of a target.
#[macro_export]
macro_rules! executable {
    ($name:ident) => {
        #[global_allocator]
        static MEASURED: $crate::targets::memory::Measured = $crate::targets::memory::Measured;

        $crate::libfuzzer_sys::fuzz_target!(
            init: {
                // libfuzzer-sys aborts on every panic; readers may catch those of libraries
                let _ = std::panic::take_hook();
            },
            |data: &[u8]| {
                $crate::targets::$name.examine(data, false, $crate::targets::memory::peak_of);
            }
        );

        $crate::libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
            if let (Some(mutate), true) = ($crate::targets::$name.mutate, seed % 2 == 0) {
                let most = most.min(data.len());
                if let Some(len) = mutate(&mut data[..most], size, seed) {
                    return len;
                }
            }
            $crate::libfuzzer_sys::fuzzer_mutate(data, size, most)
        });
    };
}
