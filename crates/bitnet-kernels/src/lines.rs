//! Memory in cache lines: what packed weights and scratch are made of.
//!
//! Invariant: a [`Line`] is 64 bytes at a 64-byte boundary, so a reference to one justifies every
//! aligned vector load inside it; and the lines of a [`Lines`] are always written before they are seen.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// Bytes in a [`Line`].
pub(crate) const LINE: usize = 64;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line(pub [u8; LINE]);

const _: () = assert!(size_of::<Line>() == LINE && align_of::<Line>() == LINE);

/// The bytes of some lines, in order.
pub(crate) fn as_bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: a Line is exactly its 64 bytes (asserted above), without padding, and u8 has no
    // alignment to break.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

/// A number of four bytes any bits of which are a value.
pub(crate) trait Word: Copy {}

impl Word for i32 {}
impl Word for f32 {}

/// Lines as 16 numbers each, aligned so that no vector of them crosses a line.
pub(crate) fn as_words_mut<T: Word>(lines: &mut [Line]) -> &mut [T] {
    const { assert!(size_of::<T>() == 4 && align_of::<T>() <= LINE) };
    // SAFETY: a Line is 64 plain bytes without padding, aligned for T, as long as 16 of them
    // (asserted above), and any bits are a T, as any are bytes.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), lines.len() * LINE / 4) }
}

/// Bytes of a huge page; from this size on a [`Lines`] starts at one and asks for them.
const HUGE_PAGE: usize = 2 << 20;

/// A fixed number of lines, on huge pages where the system has them: a matvec touches every page of
/// a matrix once, and small ones cost it a quarter of its speed in address translation.
pub(crate) struct Lines {
    start: NonNull<Line>,
    count: usize,
}

// SAFETY: a Lines owns its memory as a Box<[Line]> does, and Line is plain bytes.
unsafe impl Send for Lines {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Lines {}

impl Lines {
    /// `count` lines of zeros.
    pub fn zeroed(count: usize) -> Self {
        let Some(layout) = Self::layout(count) else {
            return Self {
                start: NonNull::dangling(),
                count: 0,
            };
        };
        // SAFETY: layout() returns no empty layout.
        let Some(start) = NonNull::new(unsafe { alloc(layout) }.cast::<Line>()) else {
            handle_alloc_error(layout)
        };
        if layout.align() == HUGE_PAGE {
            advise_huge_pages(start, layout.size());
        }
        // SAFETY: the allocation is `count` lines large; all bits zero is a Line.
        unsafe { start.write_bytes(0, count) };
        Self { start, count }
    }

    /// How `count` lines are allocated; `None` for nothing at all.
    fn layout(count: usize) -> Option<Layout> {
        let layout = Layout::array::<Line>(count).expect("lines of a matrix that is in memory");
        let align = if layout.size() >= HUGE_PAGE {
            HUGE_PAGE
        } else {
            LINE
        };
        (count > 0).then(|| layout.align_to(align).expect("a power of two"))
    }
}

/// A hint, so its result does not matter.
#[cfg(target_os = "linux")]
fn advise_huge_pages(start: NonNull<Line>, bytes: usize) {
    use std::ffi::{c_int, c_void};
    unsafe extern "C" {
        fn madvise(address: *mut c_void, length: usize, advice: c_int) -> c_int;
    }
    const MADV_HUGEPAGE: c_int = 14;
    // SAFETY: the range is one live allocation that starts at a page boundary (the caller's check of
    // its alignment); this advice changes no contents.
    unsafe { madvise(start.as_ptr().cast(), bytes, MADV_HUGEPAGE) };
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: NonNull<Line>, _: usize) {}

impl Drop for Lines {
    fn drop(&mut self) {
        if let Some(layout) = Self::layout(self.count) {
            // SAFETY: `start` came from alloc with this very layout (zeroed is the only constructor).
            unsafe { dealloc(self.start.as_ptr().cast(), layout) }
        }
    }
}

impl Clone for Lines {
    fn clone(&self) -> Self {
        let mut lines = Self::zeroed(self.count);
        lines.copy_from_slice(self);
        lines
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: `start` is valid for `count` initialised lines (zeroed), or dangling and count is 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in deref, and &mut self is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_size_are_zero_aligned_and_their_own() {
        for count in [
            0,
            1,
            3,
            HUGE_PAGE / LINE - 1,
            HUGE_PAGE / LINE,
            HUGE_PAGE / LINE * 2 + 5,
        ] {
            let mut lines = Lines::zeroed(count);
            assert_eq!(lines.len(), count);
            assert!(as_bytes(&lines).iter().all(|b| *b == 0));
            if let Some(last) = lines.last_mut() {
                last.0 = [7; LINE];
                let copy = lines.clone();
                lines[count - 1].0 = [8; LINE];
                assert_eq!(copy[count - 1].0, [7; LINE]);
                assert_eq!(copy.as_ptr() as usize % LINE, 0);
            }
        }
    }
}
