//! AMX int8 for many tokens, on the tiles of [`avx512_vbmi`] and, with groups of scales, [`avx512_vnni`];
//! few tokens go the way of those kernels.
//!
//! `tdpbssd` adds to 16 tokens x 16 rows of 32-bit sums the products of 16 x 64 signed bytes (tokens, a
//! panel with [runs](activations::RUN)) and 64 x 16 (rows, a dword of four columns each: just what a line of
//! a [`tile`] becomes when its field is spread out). Per step of 64 columns, 32 tokens and 32 rows are four
//! products for four loads. The trits of [`CHUNK`] columns lie spread out in L1 while the panels of all
//! tokens pass by in L2; between chunks the sums wait in memory.
//!
//! Tiles are state of the thread, and the compiler knows nothing of them: every product is one block of
//! assembly that loads what it needs and stores what it made, between [`Tiles::of`] and its drop, which
//! gives them back so that no switch of contexts saves them.
//!
//! Invariant: bytes of weights that are no trit of the matrix are 0, and bytes of activations behind the last
//! column are, so a step may cover more columns than there are.

use super::avx512_lines::{load, store};
use super::avx512_triples;
use super::avx512_vbmi::{self, Decoder};
use super::avx512_vnni;
use super::tile::{self, BLOCK, ROWS};
use crate::activations::{Activations, Panel, RUN};
use crate::contract::{Sink, TernaryOps, Tile};
use crate::kernel::{Kernel, lacking};
use crate::lines::{LINE, Line};
use crate::peak::Peak;
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;
use std::sync::OnceLock;

pub(super) const KERNEL: Kernel = Kernel {
    name: "amx_int8",
    requires: "AMX-INT8 granted by the system, AVX-512 F, BW, VBMI, VNNI, GFNI",
    is_available: || {
        static GRANTED: OnceLock<bool> = OnceLock::new();
        (avx512_vbmi::KERNEL.is_available)()
            && is_x86_feature_detected!("gfni")
            && *GRANTED.get_or_init(|| has_amx() && is_granted())
    },
    missing: || {
        let mut missing = (avx512_vbmi::KERNEL.missing)();
        missing.extend(lacking!(x86: "gfni" = "GFNI"));
        missing.extend(missing_amx());
        missing
    },
    ternary: TernaryOps {
        dots: |tile, x, tokens, scratch, dots, sink| {
            // SAFETY: the caller's: the CPU has what this kernel requires.
            unsafe { base_three(tile, x, tokens, scratch, dots, sink) }
        },
        ..with_panels(avx512_vbmi::TERNARY)
    },
    grouped: Some(TernaryOps {
        dots: |tile, x, tokens, scratch, dots, sink| {
            // SAFETY: as above.
            unsafe { two_bits(tile, x, tokens, scratch, dots, sink) }
        },
        ..with_panels(avx512_vnni::TERNARY)
    }),
    tabled: Some(TernaryOps {
        dots: |tile, x, tokens, scratch, dots, sink| {
            // SAFETY: as above.
            unsafe { triples(tile, x, tokens, scratch, dots, sink) }
        },
        ..with_panels(avx512_vnni::TABLED)
    }),
    float: avx512_vnni::FLOAT,
    peak: Some(Peak {
        instruction: "tdpbssd",
        step_macs: (4 * TOKENS * ROWS / 2 * LINE) as u64,
        steps: 1_000_000,
        run: peak,
    }),
};

/// Tokens of a tile of activations or sums.
const TOKENS: usize = 16;

/// Quads of a step, what one product adds up: 64 columns.
const STEP: usize = RUN;

/// Most columns that are spread out at a time: 32 rows are 20 KiB, and the tokens that meet them pass through
/// the rest of L1. A multiple of a step and of the blocks of both tiles.
const CHUNK: usize = 640;

/// Up to so many tokens the kernels below are taken. Four are faster here (measured), three were not tried.
const FEW: usize = 2;

/// The same tiles of weights, other panels: every CPU with AMX has 2 MiB of L2.
const fn with_panels(ops: TernaryOps) -> TernaryOps {
    TernaryOps {
        panel: Panel {
            tokens: TOKENS,
            quads: RUN,
        },
        block_bytes: 1280 << 10,
        scratch_lines: CHUNK / 4 * BLOCK,
        ..ops
    }
}

/// What CPU and system lack for AMX int8 with eight tiles of 16 rows and 64 bytes, the permission aside.
fn lacking_amx() -> Vec<&'static str> {
    const OSXSAVE: u32 = 1 << 27;
    const AMX_TILE: u32 = 1 << 24;
    const AMX_INT8: u32 = 1 << 25;
    const TILE_STATE: u64 = 3 << 17;
    let leaves = __cpuid(0).eax;
    let features = match leaves >= 7 {
        true => __cpuid_count(7, 0).edx,
        false => 0,
    };
    let mut missing = Vec::new();
    for (bit, name) in [(AMX_TILE, "AMX-TILE"), (AMX_INT8, "AMX-INT8")] {
        if features & bit == 0 {
            missing.push(name);
        }
    }
    if !missing.is_empty() {
        return missing;
    }
    // palette 1: bytes of a row in the upper half of ebx's lower, names in its upper; rows in ecx
    let is_palette = leaves >= 0x1d && {
        let palette = __cpuid_count(0x1d, 1);
        let (row, names, rows) = (
            palette.ebx & 0xffff,
            palette.ebx >> 16,
            palette.ecx & 0xffff,
        );
        (row, names, rows) == (LINE as u32, 8, TOKENS as u32)
    };
    if !is_palette {
        missing.push("AMX tiles of 16 rows and 64 bytes");
    }
    // SAFETY: OSXSAVE says that the system has enabled this instruction for programs.
    let is_enabled =
        __cpuid(1).ecx & OSXSAVE != 0 && unsafe { _xgetbv(0) } & TILE_STATE == TILE_STATE;
    if !is_enabled {
        missing.push("AMX tile state enabled by the operating system");
    }
    missing
}

/// Whether the CPU has them, and the system keeps their state.
fn has_amx() -> bool {
    lacking_amx().is_empty()
}

/// As [`lacking_amx`], and whether the process may use tiles.
fn missing_amx() -> Vec<&'static str> {
    let missing = lacking_amx();
    match missing.is_empty() && !is_granted() {
        true => vec!["permission of the operating system to use AMX tiles (Linux 5.16 or newer)"],
        false => missing,
    }
}

/// Asks for the permission to use tiles, which is the process's for good.
#[cfg(target_os = "linux")]
fn is_granted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: this request reads and writes no memory of the process; kernels before 5.16 do not know it and say so.
    unsafe {
        libc::syscall(
            libc::SYS_arch_prctl,
            ARCH_REQ_XCOMP_PERM,
            XFEATURE_XTILEDATA,
        ) == 0
    }
}

/// Other systems have other ways, untested.
#[cfg(not(target_os = "linux"))]
fn is_granted() -> bool {
    false
}

/// The tiles of this thread, configured: `tmm0..=tmm3` sums, `tmm4` and `tmm5` activations, `tmm6` and `tmm7`
/// weights.
struct Tiles(());

impl Tiles {
    /// Tiles of 64 bytes a row, those of sums and activations of `tokens` rows.
    ///
    /// # Safety
    /// [`KERNEL`] is available.
    unsafe fn of(tokens: usize) -> Self {
        #[repr(C, align(64))]
        struct Config {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let mut config = Config {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: [0; 16],
            rows: [0; 16],
        };
        config.row_bytes[..8].fill(LINE as u16);
        config.rows[..6].fill(tokens.min(TOKENS) as u8);
        config.rows[6..8].fill(STEP as u8);
        // SAFETY: the system lets this process use tiles (the caller's), and this is a configuration of palette 1
        // with at most 16 rows of 64 bytes.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, preserves_flags, readonly));
        }
        Self(())
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: there is a Tiles, so the CPU has tiles; nobody else uses them.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) }
    }
}

/// The product alone, into four sums.
fn peak(steps: usize) {
    // SAFETY: whoever calls this has the kernel (`Peak::run`), and the products read and write tiles only.
    unsafe {
        let _tiles = Tiles::of(TOKENS);
        asm!(
            "tilezero tmm4",
            "tilezero tmm5",
            "tilezero tmm6",
            "tilezero tmm7",
            "2:",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "dec {steps}",
            "jnz 2b",
            steps = inout(reg) steps.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack, nomem),
        );
    }
}

/// The 1.6-bit tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,gfni")]
fn base_three(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    if tokens.len() <= FEW {
        return avx512_vbmi::few_tokens(tile, x, tokens, dots, sink);
    }
    many_tokens::<{ avx512_vbmi::QUADS }>(tile, x, tokens, scratch, dots, sink, |lines, trits| {
        spread_base_three(lines, trits)
    });
}

/// The tile of triples.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,gfni")]
fn triples(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    let lines = &avx512_triples::two_bits_of(tile);
    let (cols, group) = (tile.cols, tile.group);
    two_bits(&Tile { lines, cols, group }, x, tokens, scratch, dots, sink);
}

/// The 2-bit tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,gfni")]
fn two_bits(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
) {
    if tokens.len() <= FEW {
        return avx512_vnni::few_tokens(tile, x, tokens, dots, sink);
    }
    many_tokens::<4>(tile, x, tokens, scratch, dots, sink, |lines, trits| {
        spread_two_bits(lines, trits)
    });
}

/// The matrices over GF(2) that take field `f` out of every byte: with `u` its bits `(high, low)`, never
/// `(1, 1)`, the trit `u - 1` has `not low` as its lowest bit and `not (low xor high)` as all others. The
/// instruction wants the row of bit 0 in the highest byte; `not` is its constant.
const FIELDS: [i64; 4] = {
    let mut matrices = [0; 4];
    let mut f = 0;
    while f < 4 {
        let (low, both) = (1u8 << (2 * f), 3u8 << (2 * f));
        matrices[f] = i64::from_le_bytes([both, both, both, both, both, both, both, low]);
        f += 1;
    }
    matrices
};

/// The trits of field `f`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn trits<const F: usize>(fields: __m512i) -> __m512i {
    _mm512_gf2p8affine_epi64_epi8::<0xff>(fields, _mm512_set1_epi64(FIELDS[F]))
}

/// The trits of some blocks, two lines (rows 0-15, rows 16-31) per quad.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,gfni")]
fn spread_base_three(lines: &[Line], to: &mut [Line]) {
    let decoder = Decoder::new();
    let to = to.as_chunks_mut::<BLOCK>().0;
    let to = to.as_chunks_mut::<{ avx512_vbmi::QUADS }>().0;
    for (block, to) in lines.as_chunks::<BLOCK>().0.iter().zip(to) {
        for half in 0..2 {
            let (fields, fifth) = decoder.decode(load(&block[half]));
            store(&mut to[0][half], trits::<0>(fields));
            store(&mut to[1][half], trits::<1>(fields));
            store(&mut to[2][half], trits::<2>(fields));
            store(&mut to[3][half], trits::<3>(fields));
            // 81 u: the lowest bits of 0, 81 and 162 are 00, 01 and 10
            store(&mut to[4][half], trits::<0>(fifth));
        }
    }
}

/// The trits of some blocks, two lines per quad.
#[target_feature(enable = "avx512f,avx512bw,gfni")]
fn spread_two_bits(lines: &[Line], to: &mut [Line]) {
    let to = to.as_chunks_mut::<BLOCK>().0.as_chunks_mut::<4>().0;
    for (block, to) in lines.as_chunks::<BLOCK>().0.iter().zip(to) {
        for half in 0..2 {
            let fields = load(&block[half]);
            store(&mut to[0][half], trits::<0>(fields));
            store(&mut to[1][half], trits::<1>(fields));
            store(&mut to[2][half], trits::<2>(fields));
            store(&mut to[3][half], trits::<3>(fields));
        }
    }
}

/// `dots: (tokens, groups, 32)`, of which `spread` gives the trits of some blocks of `F` quads.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni,gfni")]
fn many_tokens<const F: usize>(
    tile: &Tile<'_>,
    x: &Activations,
    tokens: Range<usize>,
    scratch: &mut [Line],
    dots: &mut [i32],
    sink: &mut dyn Sink<i32>,
    spread: impl Fn(&[Line], &mut [Line]),
) {
    let stride = tile.groups() * ROWS;
    let live_rows = tokens.len().min(TOKENS);
    // SAFETY: this is a product of the kernel, so it is available.
    let _tiles = unsafe { Tiles::of(live_rows) };
    for chunk in tile::chunks_of::<F>(CHUNK, tile.cols, tile.group) {
        // steps begin at multiples of 64 columns, where a group of 32 need not
        let quads = chunk.blocks.start * F..(chunk.blocks.end * F).min(tile.cols.div_ceil(4));
        let steps = quads.start / STEP..quads.end.div_ceil(STEP);
        let lead = quads.start % STEP * BLOCK;
        let end = lead + chunk.blocks.len() * F * BLOCK;
        scratch[..lead].fill(Line([0; LINE]));
        spread(
            &tile.lines[chunk.blocks.start * BLOCK..chunk.blocks.end * BLOCK],
            &mut scratch[lead..end],
        );
        if let Some(behind) = scratch.get_mut(end..steps.len() * STEP * BLOCK) {
            behind.fill(Line([0; LINE]));
        }
        let weights = &scratch[..steps.len() * STEP * BLOCK];
        let steps = steps.start * TOKENS * STEP..steps.end * TOKENS * STEP; // in a panel
        // the lines that are spread next, of this tile or of the one behind it, a part beside each product
        let ahead = tile.lines.as_ptr().wrapping_add(chunk.blocks.end * BLOCK);
        let part = (chunk.blocks.len() * BLOCK).div_ceil(tokens.len().div_ceil(2 * TOKENS));
        for (i, first) in tokens.clone().step_by(2 * TOKENS).enumerate() {
            for line in i * part..(i + 1) * part {
                _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line).cast());
            }
            let live = first..tokens.end.min(first + 2 * TOKENS);
            sink.soon(chunk.part(live.clone()));
            let dots = &mut dots[(first - tokens.start) * stride..];
            let sums = Sums {
                stride,
                go_on: !chunk.opens_group,
            };
            let at = chunk.group * ROWS;
            let a = &x.panel(first / TOKENS)[steps.clone()];
            if live.len() > TOKENS {
                let b = &x.panel(first / TOKENS + 1)[steps.clone()];
                let dots = &mut dots[at..at + (2 * TOKENS - 1) * stride + ROWS];
                // SAFETY: tiles are configured with 16 rows, because there are more tokens than that.
                unsafe { sums.add_two([a, b], weights, dots) };
            } else {
                let dots = &mut dots[at..at + (live_rows - 1) * stride + ROWS];
                // SAFETY: tiles are configured with live_rows.
                unsafe { sums.add_one(a, weights, live_rows, dots) };
            }
            if chunk.is_last() {
                sink.done(live.clone(), &dots[..live.len() * stride]);
            }
        }
    }
}

/// Where the sums of a product belong.
struct Sums {
    /// From token to token, in sums.
    stride: usize,
    /// Whether to add to the sums that are there.
    go_on: bool,
}

impl Sums {
    /// The products of two panels' steps, `(steps, 16, 16)` dwords, and the weights' `(steps, 16, 2)` lines:
    /// `dots[t * stride + row]` for 32 tokens.
    ///
    /// # Safety
    /// Tiles are configured with 16 rows.
    #[inline(always)]
    unsafe fn add_two(&self, a: [&[i32]; 2], weights: &[Line], dots: &mut [i32]) {
        let steps = weights.len() / (STEP * BLOCK);
        assert!(steps > 0 && a.iter().all(|a| a.len() == steps * STEP * TOKENS));
        assert!(dots.len() >= (2 * TOKENS - 1) * self.stride + ROWS);
        let low = dots.as_mut_ptr();
        // SAFETY: 16 rows of 64 bytes: of `a`, one behind the other; of `weights`, every second line from the
        // first and from the second on; of `dots`, two from each token's 32 sums on, the first 16 tokens at
        // `low`, the others at `high`. All are as long as that (asserted). The stack is left alone.
        unsafe {
            asm!(
                "test {go_on:e}, {go_on:e}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{low} + {stride}]",
                "tileloadd tmm1, [{low} + {stride} + 64]",
                "tileloadd tmm2, [{high} + {stride}]",
                "tileloadd tmm3, [{high} + {stride} + 64]",
                "3:",
                "tileloadd tmm6, [{w} + {quad}]",
                "tileloadd tmm4, [{a} + {line}]",
                "tileloadd tmm7, [{w} + {quad} + 64]",
                "tileloadd tmm5, [{b} + {line}]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                "add {a}, 1024",
                "add {b}, 1024",
                "add {w}, 2048",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{low} + {stride}], tmm0",
                "tilestored [{low} + {stride} + 64], tmm1",
                "tilestored [{high} + {stride}], tmm2",
                "tilestored [{high} + {stride} + 64], tmm3",
                go_on = in(reg) u32::from(self.go_on),
                low = in(reg) low,
                high = in(reg) low.add(TOKENS * self.stride),
                stride = in(reg) 4 * self.stride,
                a = inout(reg) a[0].as_ptr() => _,
                b = inout(reg) a[1].as_ptr() => _,
                w = inout(reg) weights.as_ptr() => _,
                line = in(reg) LINE,
                quad = in(reg) BLOCK * LINE,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }

    /// The same for one panel, of which the first `tokens` count.
    ///
    /// # Safety
    /// Tiles are configured with `tokens` rows.
    #[inline(always)]
    unsafe fn add_one(&self, a: &[i32], weights: &[Line], tokens: usize, dots: &mut [i32]) {
        let steps = weights.len() / (STEP * BLOCK);
        assert!(steps > 0 && a.len() == steps * STEP * TOKENS && tokens <= TOKENS);
        assert!(dots.len() >= (tokens - 1) * self.stride + ROWS);
        // SAFETY: as in add_two, with `tokens` rows of `a` and of `dots`.
        unsafe {
            asm!(
                "test {go_on:e}, {go_on:e}",
                "jnz 2f",
                "tilezero tmm0",
                "tilezero tmm1",
                "jmp 3f",
                "2:",
                "tileloadd tmm0, [{low} + {stride}]",
                "tileloadd tmm1, [{low} + {stride} + 64]",
                "3:",
                "tileloadd tmm4, [{a} + {line}]",
                "tileloadd tmm6, [{w} + {quad}]",
                "tileloadd tmm7, [{w} + {quad} + 64]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "add {a}, 1024",
                "add {w}, 2048",
                "dec {steps}",
                "jnz 3b",
                "tilestored [{low} + {stride}], tmm0",
                "tilestored [{low} + {stride} + 64], tmm1",
                go_on = in(reg) u32::from(self.go_on),
                low = in(reg) dots.as_mut_ptr(),
                stride = in(reg) 4 * self.stride,
                a = inout(reg) a.as_ptr() => _,
                w = inout(reg) weights.as_ptr() => _,
                line = in(reg) LINE,
                quad = in(reg) BLOCK * LINE,
                steps = inout(reg) steps => _,
                out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            );
        }
    }
}
