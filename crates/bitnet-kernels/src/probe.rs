//! What this machine can do at most: the pace of a kernel's multiply instruction, and of reading memory.
//!
//! Invariant: a limit is measured by a loop that does nothing else, on as many threads as it is compared
//! with, and long enough that the clock has fallen to what it sustains.

use crate::backend::Backend;
use crate::lines::{LINE, Line, Lines, as_bytes};
use std::hint::black_box;
use std::ops::Range;
use std::sync::Barrier;
use std::time::Instant;

/// The measured pace of the kernel's multiply instruction: the limit of its matrix products.
impl Backend {
    /// The instruction; `None` for a kernel that none is known for.
    pub fn peak_instruction(&self) -> Option<&'static str> {
        self.kernel().peak.as_ref().map(|peak| peak.instruction)
    }

    /// Runs the instruction alone on this thread, some 20 ms, and returns the multiply-accumulates done.
    pub fn run_peak(&self) -> Option<u64> {
        let peak = self.kernel().peak.as_ref()?;
        // SAFETY: self exists, so the CPU has what the kernel requires.
        unsafe { (peak.run)(peak.steps) };
        Some(peak.step_macs * peak.steps as u64)
    }

    /// Billions of multiply-accumulates a second of `threads` threads together, in some 20 ms; 0 counts as 1.
    pub fn peak_gmacs(&self, threads: usize) -> Option<f64> {
        let macs = self.kernel().peak.as_ref()?;
        let macs = (macs.step_macs * macs.steps as u64) as f64 * threads.max(1) as f64;
        let seconds = seconds_of_all(threads, |_| {
            self.run_peak();
        });
        Some(macs / seconds / 1e9)
    }
}

/// Seconds from when all threads are ready until the last one is done.
fn seconds_of_all(threads: usize, run: impl Fn(usize) + Sync) -> f64 {
    let threads = threads.max(1);
    let ready = Barrier::new(threads);
    std::thread::scope(|scope| {
        for thread in 1..threads {
            let (ready, run) = (&ready, &run);
            scope.spawn(move || {
                ready.wait();
                run(thread);
            });
        }
        ready.wait();
        let started = Instant::now();
        run(0);
        started
    })
    .elapsed()
    .as_secs_f64()
}

/// Memory to be read plainly.
pub struct MemoryProbe<'a> {
    own: Lines,
    lent: Vec<&'a [u8]>, // read behind `own`, whole chunks of each
}

impl std::fmt::Debug for MemoryProbe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MemoryProbe({} bytes)", self.byte_len())
    }
}

/// What is read at a time, and asked for ahead.
type Chunk = [u8; LINE];

impl MemoryProbe<'static> {
    /// Of `bytes` bytes of its own, rounded up to cache lines, on huge pages as packed weights are; far more
    /// than the caches hold, if it is to be memory.
    pub fn new(bytes: usize) -> Self {
        let mut own = Lines::resident(bytes.div_ceil(LINE));
        // what was never written is one page of zeros, and lies in the cache
        own.fill(Line([1; LINE]));
        let lent = Vec::new();
        Self { own, lent }
    }
}

impl<'a> MemoryProbe<'a> {
    /// Of memory that is there for another purpose, where it lies; of each part as many bytes as are
    /// whole cache lines. Parts that start at a line, as packed weights do, are read fastest.
    pub fn over(parts: Vec<&'a [u8]>) -> Self {
        Self {
            own: Lines::zeroed(0),
            lent: parts,
        }
    }

    fn parts(&self) -> impl Iterator<Item = &[Chunk]> {
        std::iter::once(as_bytes(&self.own))
            .chain(self.lent.iter().copied())
            .map(|part| part.as_chunks().0)
    }

    fn chunks(&self) -> usize {
        self.parts().map(<[Chunk]>::len).sum()
    }

    /// Bytes of the probe.
    pub fn byte_len(&self) -> usize {
        self.chunks() * LINE
    }

    /// Reads the first `bytes` bytes, at most all, on this thread.
    pub fn read(&self, bytes: usize) {
        self.read_range(0..bytes / LINE);
    }

    /// GB/s of one pass by `threads` threads, as many bytes each; 0 counts as 1.
    pub fn gb_s(&self, threads: usize) -> f64 {
        let share = self.chunks().div_ceil(threads.max(1));
        let seconds = seconds_of_all(threads, |thread| {
            self.read_range(thread * share..(thread + 1) * share);
        });
        self.byte_len() as f64 / seconds / 1e9
    }

    /// Reads these chunks of all parts, end to end, up to their ends.
    fn read_range(&self, range: Range<usize>) {
        let mut first = 0;
        for part in self.parts() {
            let at = |chunk: usize| chunk.clamp(first, first + part.len()) - first;
            read_chunks(&part[at(range.start)..at(range.end)]);
            first += part.len();
        }
    }
}

/// The body of every reader. Two streams, each fetched ahead: on Sapphire Rapids a fifth more than one stream
/// fetched ahead, and a tenth more than one left to the hardware. Four sums, so that none waits for itself.
#[inline(always)]
fn xor_of(chunks: &[Chunk], fetch: impl Fn(*const Chunk)) -> [Chunk; 4] {
    let mut sums = [[0; LINE]; 4];
    let mut add = |four: &[Chunk; 4]| {
        for (sum, chunk) in sums.iter_mut().zip(four) {
            fetch(std::ptr::from_ref(chunk));
            for (sum, byte) in sum.iter_mut().zip(chunk) {
                *sum ^= byte;
            }
        }
    };
    let (low, high) = chunks.split_at(chunks.len() / 2);
    let (low, high) = (low.as_chunks::<4>().0, high.as_chunks::<4>().0);
    for (low, high) in low.iter().zip(high) {
        add(low);
        add(high);
    }
    sums
}

#[cfg(not(target_arch = "x86_64"))]
fn read_chunks(chunks: &[Chunk]) {
    black_box(xor_of(chunks, |_| {}));
}

#[cfg(target_arch = "x86_64")]
use x86_64::read_chunks;

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::{Chunk, black_box, xor_of};
    use std::arch::x86_64::*;

    /// Bytes that are asked for ahead, as the matvecs do.
    const AHEAD: usize = 2048;

    #[inline(always)]
    fn fetch(chunk: *const Chunk) {
        // SAFETY: a prefetch reads nothing that the program sees, at any address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(chunk.wrapping_byte_add(AHEAD).cast()) };
    }

    /// Reads every byte.
    pub(super) fn read_chunks(chunks: &[Chunk]) {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: AVX-512 F was detected.
            unsafe { read_avx512(chunks) }
        } else if is_x86_feature_detected!("avx2") {
            // SAFETY: AVX2 was detected.
            unsafe { read_avx2(chunks) }
        } else {
            black_box(xor_of(chunks, fetch));
        }
    }

    #[target_feature(enable = "avx512f")]
    fn read_avx512(chunks: &[Chunk]) {
        black_box(xor_of(chunks, fetch));
    }

    #[target_feature(enable = "avx2")]
    fn read_avx2(chunks: &[Chunk]) {
        black_box(xor_of(chunks, fetch));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "measures the machine")]
    fn every_peak_counts_what_it_does() {
        for backend in Backend::available() {
            assert_eq!(
                backend.peak_instruction().is_some(),
                backend.run_peak().is_some_and(|macs| macs > 0),
            );
            for threads in [0, 1, 2] {
                let pace = backend.peak_gmacs(threads);
                assert!(pace.is_none_or(|p| p.is_finite() && p > 0.0), "{pace:?}");
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "measures the machine")]
    fn a_probe_is_as_long_as_asked_and_read_by_any_number_of_threads() {
        for bytes in [0, 1, 64, 1000, 3 << 20] {
            let probe = MemoryProbe::new(bytes);
            assert_eq!(probe.byte_len(), bytes.next_multiple_of(LINE));
            probe.read(0);
            probe.read(usize::MAX);
            for threads in [0, 1, 2, 5] {
                assert!(probe.gb_s(threads) >= 0.0);
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "measures the machine")]
    fn memory_that_is_lent_is_read_in_whole_lines() {
        let memory = vec![1; 10_000];
        let parts = vec![&memory[..63], &memory[1..1001], &[], &memory[64..8000]];
        let probe = MemoryProbe::over(parts);
        assert_eq!(probe.byte_len(), 960 + 7936);
        probe.read(1000);
        probe.read(usize::MAX);
        for threads in [0, 1, 2, 5, 500] {
            assert!(probe.gb_s(threads) > 0.0);
        }
        assert_eq!(MemoryProbe::over(Vec::new()).byte_len(), 0);
    }
}
