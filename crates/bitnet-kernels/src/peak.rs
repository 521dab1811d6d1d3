//! The multiply instruction of a kernel, alone: the limit of its products.
//!
//! Invariant: a loop holds its operands in registers and does nothing but multiply.

/// The multiply instruction that a kernel lives on, alone.
pub(crate) struct Peak {
    /// As an assembler writes it.
    pub instruction: &'static str,
    /// Multiply-accumulates of one step of the loop.
    pub step_macs: u64,
    /// Steps that take some 20 ms.
    pub steps: usize,
    /// The loop: operands in registers, as many accumulators as hide the latency. Calling it is sound when
    /// the CPU has what the kernel requires.
    pub run: unsafe fn(steps: usize),
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::{VPDPBUSD_YMM, VPDPBUSD_ZMM, VPMADDUBSW_YMM};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::Peak;
    use std::arch::x86_64::*;
    use std::hint::black_box;

    /// 64 products an instruction.
    pub(crate) const VPDPBUSD_ZMM: Peak = Peak {
        instruction: "vpdpbusd zmm",
        step_macs: 16 * 64,
        steps: 8_000_000,
        run: dpbusd,
    };

    /// 32 products an instruction.
    pub(crate) const VPDPBUSD_YMM: Peak = Peak {
        instruction: "vpdpbusd ymm",
        step_macs: 12 * 32,
        steps: 8_000_000,
        run: dpbusd_ymm,
    };

    /// 32 products an instruction; the addition that must follow each is not counted.
    pub(crate) const VPMADDUBSW_YMM: Peak = Peak {
        instruction: "vpmaddubsw ymm",
        step_macs: 12 * 32,
        steps: 8_000_000,
        run: maddubs,
    };

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn dpbusd(steps: usize) {
        let (u, a) = (
            black_box(_mm512_set1_epi8(1)),
            black_box(_mm512_set1_epi8(2)),
        );
        let mut acc = [_mm512_setzero_si512(); 16];
        for _ in 0..steps {
            for acc in &mut acc {
                *acc = _mm512_dpbusd_epi32(*acc, u, a);
            }
        }
        black_box(acc);
    }

    #[target_feature(enable = "avxvnni")]
    fn dpbusd_ymm(steps: usize) {
        let (u, a) = (
            black_box(_mm256_set1_epi8(1)),
            black_box(_mm256_set1_epi8(2)),
        );
        let mut acc = [_mm256_setzero_si256(); 12];
        for _ in 0..steps {
            for acc in &mut acc {
                *acc = _mm256_dpbusd_avx_epi32(*acc, u, a);
            }
        }
        black_box(acc);
    }

    /// The product becomes its own next operand: there is no sum that would keep it.
    #[target_feature(enable = "avx2")]
    fn maddubs(steps: usize) {
        let a = black_box(_mm256_set1_epi8(2));
        let mut products = [black_box(_mm256_set1_epi8(1)); 12];
        for _ in 0..steps {
            for product in &mut products {
                *product = _mm256_maddubs_epi16(*product, a);
            }
        }
        black_box(products);
    }
}
