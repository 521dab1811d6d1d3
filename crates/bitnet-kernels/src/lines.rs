//! Memory in cache lines: what packed weights and scratch are made of.
//!
//! Invariant: a [`Line`] is 64 bytes at a 64-byte boundary, so a reference to one justifies every
//! aligned vector load inside it; and the lines of a [`Lines`] are always written before they are seen.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// Bytes in a [`Line`].
pub(crate) const LINE: usize = 64;

/// One cache line.
#[derive(Clone, Copy, Debug)]
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

/// [`as_words_mut`], to read.
pub(crate) fn as_words<T: Word>(lines: &[Line]) -> &[T] {
    const { assert!(size_of::<T>() == 4 && align_of::<T>() <= LINE) };
    // SAFETY: as in as_words_mut.
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), lines.len() * LINE / 4) }
}

/// Fetches the line at an address, which will be used soon, into the cache. Any address will do.
#[inline(always)]
pub(crate) fn prefetch<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86-64, and a prefetch reads nothing, whatever the address.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// [`prefetch`] into the second level, for what is read once from memory: the first level has few
/// requests under way, and they limit a stream that goes through it.
#[inline(always)]
pub(crate) fn prefetch_l2<T>(at: *const T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Under Miri, which writes zeros one by one, sizes of memory are divided by two to this power: smaller ones reach the
/// same code.
const SHRINK: u32 = if cfg!(miri) { 8 } else { 0 };

/// Bytes of a huge page: a matvec touches every page of a matrix once, and small ones cost it a third of
/// its speed in address translation.
const HUGE_PAGE: usize = (2 << 20) >> SHRINK;

/// Bytes of a region. It is address space: only the huge pages that are written become memory. The last
/// page of each is half empty, so there are few.
const REGION: usize = (256 << 20) >> SHRINK;

/// From so many bytes on, packed weights lie in regions.
const LARGE: usize = (256 << 10) >> SHRINK;

/// One allocation of zeros that starts at a huge page. Matrices are put into it one behind the other: few of
/// them are whole numbers of huge pages.
struct Region {
    start: NonNull<Line>,
    lines: usize,
    base: NonNull<u8>,
    layout: Layout, // of `base`
}

// SAFETY: a Region is memory that is reached only through the disjoint Lines inside it.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// The region that is being filled, and how many of its lines are taken. It lives as long as a matrix
/// in it does.
static FILLING: Mutex<(Weak<Region>, usize)> = Mutex::new((Weak::new(), 0));

impl Region {
    /// How at least `bytes`, not 0, are allocated; `None` for more than can be.
    fn layout(bytes: usize) -> Option<Layout> {
        let bytes = bytes.checked_next_multiple_of(HUGE_PAGE)?;
        // a stricter alignment would have the allocator write zeros itself
        Layout::from_size_align(bytes.checked_add(HUGE_PAGE)?, 1).ok()
    }

    /// Memory of this [`layout`](Self::layout), of which none is memory before it is written; `None` if the
    /// system has not so much.
    fn new(layout: Layout) -> Option<Self> {
        let bytes = layout.size().checked_sub(HUGE_PAGE).filter(|b| *b > 0)?;
        // SAFETY: the layout is not empty.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skipped = base.as_ptr().addr().wrapping_neg() % HUGE_PAGE;
        Some(Self {
            // SAFETY: fewer bytes than a huge page are skipped, and there is one more than is used.
            start: unsafe { base.add(skipped) }.cast(),
            lines: bytes / LINE,
            base,
            layout,
        })
    }

    /// Gives the system advice about all of it; a system may ignore advice.
    fn advise(&self, advice: &[i32]) {
        for &advice in advice {
            advice::give(self.start, self.lines * LINE, advice);
        }
    }

    /// `count` lines of zeros of some region that nobody else is given.
    fn take(count: usize) -> (NonNull<Line>, Arc<Self>) {
        let mut filling = FILLING.lock().unwrap_or_else(PoisonError::into_inner);
        let open = filling.0.upgrade().map(|region| (region, filling.1));
        let (region, used) = open
            .filter(|(region, used)| used + count <= region.lines)
            .unwrap_or_else(|| {
                let layout = Self::layout(REGION.max(count * LINE))
                    .expect("lines of a matrix that is in memory");
                let region = Self::new(layout).unwrap_or_else(|| handle_alloc_error(layout));
                region.advise(&[advice::HUGEPAGE]);
                (Arc::new(region), 0)
            });
        *filling = (Arc::downgrade(&region), used + count);
        // SAFETY: `used + count` lines fit into the region (the filter, or its size).
        (unsafe { region.start.add(used) }, region)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: `base` came from alloc_zeroed with this very layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

/// A fixed number of lines.
pub(crate) struct Lines {
    start: NonNull<Line>,
    count: usize,
    region: Option<Arc<Region>>, // or an allocation of its own
}

// SAFETY: a Lines owns its memory as a Box<[Line]> does, and Line is plain bytes.
unsafe impl Send for Lines {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Lines {}

impl Lines {
    /// `count` lines of zeros, for a while.
    pub fn zeroed(count: usize) -> Self {
        let layout = Self::layout(count).expect("lines of a matrix that is in memory");
        Self::try_zeroed(count).unwrap_or_else(|| handle_alloc_error(layout))
    }

    /// [`zeroed`](Self::zeroed); `None` if the system has not so much memory.
    fn try_zeroed(count: usize) -> Option<Self> {
        if count == 0 {
            return Some(Self {
                start: NonNull::dangling(),
                count: 0,
                region: None,
            });
        }
        // SAFETY: the layout of one line or more is not empty.
        let start = NonNull::new(unsafe { alloc_zeroed(Self::layout(count)?) }.cast::<Line>())?;
        Some(Self {
            start,
            count,
            region: None,
        })
    }

    /// `count` lines of zeros for packed weights, on huge pages where the system has them.
    pub fn resident(count: usize) -> Self {
        if count < LARGE / LINE {
            return Self::zeroed(count);
        }
        let (start, region) = Region::take(count);
        Self {
            start,
            count,
            region: Some(region),
        }
    }

    /// `count` lines of zeros on huge pages of their own, which go when they do; `None` if the system has not so
    /// much memory.
    pub fn alone(count: usize) -> Option<Self> {
        Self::of_region(count, advice::HUGEPAGE)
    }

    /// The same on small pages: the system gives memory for what is written.
    pub fn growing(count: usize) -> Option<Self> {
        Self::of_region(count, advice::NOHUGEPAGE)
    }

    fn of_region(count: usize, advice: i32) -> Option<Self> {
        if count < LARGE / LINE {
            return Self::try_zeroed(count);
        }
        let layout = Region::layout(count.checked_mul(LINE)?)?;
        let region = Arc::new(Region::new(layout)?);
        region.advise(&[advice]);
        Some(Self {
            start: region.start,
            count,
            region: Some(region),
        })
    }

    /// Brings all of it onto huge pages, where the system has them: for what was written and will be read
    /// over and over.
    pub fn settle(&self) {
        if let Some(region) = &self.region {
            region.advise(&[advice::HUGEPAGE, advice::COLLAPSE]);
        }
    }

    /// How `count` lines are allocated; `None` for more than can be.
    fn layout(count: usize) -> Option<Layout> {
        Layout::array::<Line>(count).ok()
    }
}

/// `madvise`, for hints: their results do not matter.
#[cfg(all(target_os = "linux", not(miri)))]
mod advice {
    use super::{Line, NonNull};

    pub const HUGEPAGE: i32 = libc::MADV_HUGEPAGE;
    pub const NOHUGEPAGE: i32 = libc::MADV_NOHUGEPAGE;
    /// `MADV_COLLAPSE`, which libc knows for glibc alone.
    pub const COLLAPSE: i32 = 25;

    pub fn give(start: NonNull<Line>, bytes: usize, advice: i32) {
        // SAFETY: the range is one live allocation that starts at a page boundary (Region::new); none of
        // the advice above changes contents.
        unsafe { libc::madvise(start.as_ptr().cast(), bytes, advice) };
    }
}

#[cfg(any(not(target_os = "linux"), miri))]
mod advice {
    use super::{Line, NonNull};

    pub const HUGEPAGE: i32 = 0;
    pub const NOHUGEPAGE: i32 = 0;
    pub const COLLAPSE: i32 = 0;

    pub fn give(_: NonNull<Line>, _: usize, _: i32) {}
}

impl Drop for Lines {
    fn drop(&mut self) {
        if self.region.is_none()
            && self.count > 0
            && let Some(layout) = Self::layout(self.count)
        {
            // SAFETY: without a region `start` came from alloc_zeroed with this very layout (zeroed).
            unsafe { dealloc(self.start.as_ptr().cast(), layout) }
        }
    }
}

impl Clone for Lines {
    fn clone(&self) -> Self {
        let mut lines = match self.region {
            Some(_) => Self::resident(self.count),
            None => Self::zeroed(self.count),
        };
        lines.copy_from_slice(self);
        lines
    }
}

impl Deref for Lines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: `start` is valid for `count` initialized lines (zeroed, resident), or dangling and count is 0.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.count) }
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in deref, and &mut self is the only way to them.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.count) }
    }
}

/// Bytes that start at a cache line, all 0 at first.
pub struct AlignedBytes {
    lines: Lines,
    len: usize,
}

impl AlignedBytes {
    /// `len` bytes of which the system gives memory for what is written; `None` if it has not so much.
    pub fn zeroed(len: usize) -> Option<Self> {
        let lines = Lines::growing(len.div_ceil(LINE))?;
        Some(Self { lines, len })
    }

    /// `len` bytes on huge pages, where the system has them: reading through them takes no time for address
    /// translation, but a byte that is written makes two megabytes memory. `None` if the system has not so much.
    pub fn on_huge_pages(len: usize) -> Option<Self> {
        let lines = Lines::alone(len.div_ceil(LINE))?;
        Some(Self { lines, len })
    }

    /// Brings them onto huge pages: all of it is memory then.
    pub fn settle(&self) {
        self.lines.settle();
    }
}

impl std::fmt::Debug for AlignedBytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBytes({})", self.len)
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &as_bytes(&self.lines)[..self.len]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        let lines: &mut [Line] = &mut self.lines;
        // SAFETY: as in as_bytes, and any bytes are a Line.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<u8>(), size_of_val(lines))
        };
        &mut bytes[..self.len]
    }
}

/// Bytes that more than one owner reads, such as a mapped file.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Lines inside bytes that somebody else made, which live as long as these.
#[derive(Clone)]
pub(crate) struct SharedLines {
    lines: NonNull<[Line]>, // inside what `_owner` lent
    _owner: SharedBytes,
}

// SAFETY: the lines are plain bytes that nobody writes while the owner is shared, and the owner may be
// sent to and shared with other threads.
unsafe impl Send for SharedLines {}
// SAFETY: as above.
unsafe impl Sync for SharedLines {}

impl SharedLines {
    /// The lines at `range` of the owner's bytes; `None` if they are not there, or no whole lines at
    /// a line's boundary.
    pub fn new(owner: SharedBytes, range: Range<usize>) -> Option<Self> {
        let bytes = (*owner).as_ref().get(range)?;
        let start = bytes.as_ptr().cast::<Line>();
        if !start.is_aligned() || !bytes.len().is_multiple_of(LINE) {
            return None;
        }
        let start = NonNull::new(start.cast_mut())?;
        let lines = NonNull::slice_from_raw_parts(start, bytes.len() / LINE);
        Some(Self {
            lines,
            _owner: owner,
        })
    }
}

impl Deref for SharedLines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: new() took them from a borrow of the owner: as many initialized bytes, aligned (checked
        // there), any of which make a Line. The borrow may last as long as the owner does, which is at
        // least as long as self: an Arc neither moves what it holds nor lends it mutably while two
        // have it, and nothing here writes.
        unsafe { self.lines.as_ref() }
    }
}

/// Lines that are only read.
#[derive(Clone)]
pub(crate) enum ReadLines {
    /// Made here.
    Own(Lines),
    /// Where somebody else keeps them.
    Shared(SharedLines),
}

impl Deref for ReadLines {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        match self {
            Self::Own(lines) => lines,
            Self::Shared(lines) => lines,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_lines_are_whole_lines_of_bytes_that_outlive_their_maker() {
        struct Bytes(Lines);
        impl AsRef<[u8]> for Bytes {
            fn as_ref(&self) -> &[u8] {
                as_bytes(&self.0)
            }
        }
        let mut lines = Lines::zeroed(4);
        for (i, line) in lines.iter_mut().enumerate() {
            line.0.fill(i as u8);
        }
        let owner: SharedBytes = Arc::new(Bytes(lines));
        let shared = SharedLines::new(owner.clone(), LINE..3 * LINE).unwrap();
        for bad in [1..LINE + 1, 0..LINE - 1, 0..5 * LINE, 8 * LINE..9 * LINE] {
            assert!(
                SharedLines::new(owner.clone(), bad.clone()).is_none(),
                "{bad:?}"
            );
        }
        assert!(SharedLines::new(owner.clone(), 0..0).is_some_and(|l| l.is_empty()));
        drop(owner);
        let copy = shared.clone();
        drop(shared);
        assert_eq!(copy.iter().map(|l| l.0[63]).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn lines_of_every_size_are_zero_aligned_and_their_own() {
        let mut all = Vec::new();
        for count in [
            0,
            1,
            3,
            LARGE / LINE - 1,
            LARGE / LINE,
            HUGE_PAGE / LINE * 2 + 5,
        ] {
            let makes: [fn(usize) -> Lines; 4] = [
                Lines::zeroed,
                Lines::resident,
                |count| Lines::growing(count).unwrap(),
                |count| Lines::alone(count).unwrap(),
            ];
            for make in makes {
                let mut lines = make(count);
                assert_eq!(lines.len(), count);
                assert!(*as_bytes(&lines) == vec![0; count * LINE]);
                assert_eq!(lines.as_ptr() as usize % LINE, 0);
                lines.fill(Line([7; LINE]));
                let copy = lines.clone();
                lines.fill(Line([all.len() as u8; LINE]));
                assert!(*as_bytes(&copy) == vec![7; count * LINE]);
                all.push(lines);
            }
        }
        for (i, lines) in all.iter().enumerate() {
            assert!(*as_bytes(lines) == vec![i as u8; size_of_val(&**lines)]);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri ends where memory does")]
    fn more_memory_than_there_is_is_none() {
        for len in [usize::MAX / 4, usize::MAX / 2, usize::MAX] {
            assert!(AlignedBytes::zeroed(len).is_none());
            assert!(AlignedBytes::on_huge_pages(len).is_none());
        }
        assert_eq!(AlignedBytes::zeroed(0).unwrap().len(), 0);
    }

    #[test]
    fn regions_end_and_larger_matrices_have_their_own() {
        let lines = [REGION / 3, REGION / 3, REGION / 2, REGION + LINE, LARGE]
            .map(|bytes| Lines::resident(bytes / LINE));
        let mut ends: Vec<_> = lines.iter().map(|l| l.as_ptr_range()).collect();
        ends.sort_by_key(|r| r.start);
        assert!(ends.windows(2).all(|w| w[0].end <= w[1].start));
        assert!(
            lines
                .iter()
                .all(|l| l.last().is_some_and(|l| l.0 == [0; LINE]))
        );
    }
}
