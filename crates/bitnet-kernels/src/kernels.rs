//! The table of kernels.
//!
//! Invariant: a kernel is one file and one row here.

#[cfg(target_arch = "x86_64")]
mod amx_int8;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx2_lines;
#[cfg(target_arch = "x86_64")]
mod avx2_screen;
#[cfg(target_arch = "x86_64")]
mod avx512_attention;
#[cfg(target_arch = "x86_64")]
mod avx512_lines;
#[cfg(target_arch = "x86_64")]
mod avx512_screen;
#[cfg(target_arch = "x86_64")]
mod avx512_triples;
#[cfg(target_arch = "x86_64")]
mod avx512_vbmi;
#[cfg(target_arch = "x86_64")]
mod avx512_vnni;
#[cfg(target_arch = "x86_64")]
mod avx_vnni;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod fixed_lookup;
#[cfg(target_arch = "x86_64")]
mod lookup;
#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "aarch64")]
mod neon_dotprod;
#[cfg(target_arch = "aarch64")]
mod neon_float;
#[cfg(target_arch = "aarch64")]
mod neon_lines;
#[cfg(target_arch = "aarch64")]
mod neon_screen;
mod scalar;
#[cfg(target_arch = "x86_64")]
mod ssse3;
#[cfg(target_arch = "x86_64")]
mod streams;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tile_pack;

use crate::kernel::Kernel;

/// All kernels of this architecture, fastest first, `scalar` last.
pub static KERNELS: &[Kernel] = &[
    #[cfg(target_arch = "x86_64")]
    amx_int8::KERNEL,
    #[cfg(target_arch = "x86_64")]
    avx512_vbmi::KERNEL,
    #[cfg(target_arch = "x86_64")]
    avx512_vnni::KERNEL,
    #[cfg(target_arch = "x86_64")]
    avx_vnni::KERNEL,
    #[cfg(target_arch = "x86_64")]
    avx2::KERNEL,
    #[cfg(target_arch = "x86_64")]
    ssse3::KERNEL,
    #[cfg(target_arch = "aarch64")]
    neon_dotprod::KERNEL,
    #[cfg(target_arch = "aarch64")]
    neon::KERNEL,
    scalar::KERNEL,
];
