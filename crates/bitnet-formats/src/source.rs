//! Bytes of one file, wherever it is: mapped, read by range, or in memory.
//!
//! Invariant: nothing outside of this module knows how a file is read. A range that is not in the source, and a source
//! that changed while it was read, are errors; neither is ever a signal or a panic.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod mapped;
mod memory;
mod mount;
mod pread;

pub use self::memory::Memory;
pub use self::mount::Mount;
pub use self::pread::Pread;

use self::mapped::Mapped;
use crate::error::{ErrorCode, FormatError};
use std::fmt;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

/// The bytes of one file.
pub trait Source: fmt::Debug + Send + Sync {
    /// How many bytes there were when the source was opened.
    fn len(&self) -> u64;

    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What errors call the source: a path, or a URL without credentials.
    fn name(&self) -> &str;

    /// The path that a file was opened by; the name of every other source.
    fn path(&self) -> &Path {
        Path::new(self.name())
    }

    /// The bytes of a range.
    ///
    /// # Errors
    /// `truncated` for a range that is not in the source, `input-changed` if the source is shorter than it was, `io`.
    fn read(&self, range: Range<u64>) -> Result<Bytes, FormatError>;

    /// Whether the source is still the one that was opened, with the content that it had. Ask before publishing a
    /// result that was computed from its bytes.
    ///
    /// # Errors
    /// `input-changed`.
    fn check(&self) -> Result<(), FormatError> {
        Ok(())
    }

    /// Whether the bytes that [`read`](Self::read) gave are still those of the file that was opened. Unlike
    /// [`check`](Self::check), a file that was renamed or removed is intact: its bytes can still be read.
    ///
    /// # Errors
    /// `input-changed`.
    fn intact(&self) -> Result<(), FormatError> {
        Ok(())
    }

    /// The SHA-256 of the whole file that its origin announced, lower-case hex, where it is not checked yet.
    fn announced_sha256(&self) -> Option<&str> {
        None
    }

    /// How far one reader may be ahead of another without that the bytes between them are fetched twice.
    fn window(&self) -> u64 {
        u64::MAX
    }

    /// A hint: these bytes will be read soon.
    fn will_need(&self, _range: Range<u64>) {}

    /// A hint: these bytes will not be read again soon, so their pages need not count as this process's memory.
    /// They stay readable.
    fn release(&self, _range: Range<u64>) {}

    /// A hint: these bytes will be read over and over, and huge pages make that faster.
    fn prefer_huge_pages(&self, _range: Range<u64>) {}
}

/// How a file is opened.
pub type Opener<'a> = dyn Fn(&Path) -> Result<Arc<dyn Source>, FormatError> + Sync + 'a;

/// The longest file that a system with 32-bit addresses maps: a model may have many files, and its tensors need addresses too.
const MOST_MAPPED_OF_32_BITS: u64 = 1 << 28;

/// The longest file that is mapped.
const MOST_MAPPED: u64 = match usize::BITS {
    ..=32 => MOST_MAPPED_OF_32_BITS,
    _ => MOST_BYTES,
};

/// The most bytes that one buffer or one mapping can have.
const MOST_BYTES: u64 = isize::MAX as u64;

/// Opens a file of this disk: mapped where a mapping is safe and has room, else read by range. A path that stands for a remote
/// file ([`Mount`]) opens that.
///
/// # Errors
/// The file cannot be opened, or is not a regular file (a directory, a pipe, a device).
pub fn open_source(path: &Path) -> Result<Arc<dyn Source>, FormatError> {
    if let Some(source) = mount::mounted(path) {
        return Ok(source);
    }
    match Mapped::is_safe() {
        true => open_mapped_up_to(path, MOST_MAPPED),
        false => open_pread(path),
    }
}

/// Maps a file of at most `most` bytes; reads a longer one by range, and one for which the system has no addresses.
fn open_mapped_up_to(path: &Path, most: u64) -> Result<Arc<dyn Source>, FormatError> {
    match Mapped::open(path, most) {
        Ok(mapped) => Ok(Arc::new(mapped)),
        Err(e) if e.code == ErrorCode::LimitExceeded => open_pread(path),
        Err(e) => Err(e),
    }
}

/// Opens a file of this disk as a mapping.
///
/// # Errors
/// As [`open_source`]; `limit-exceeded` if this process has no room for the mapping.
pub fn open_mapped(path: &Path) -> Result<Arc<dyn Source>, FormatError> {
    Ok(Arc::new(Mapped::open(path, MOST_BYTES)?))
}

/// Opens a file of this disk to be read by range.
///
/// # Errors
/// As [`open_source`].
pub fn open_pread(path: &Path) -> Result<Arc<dyn Source>, FormatError> {
    Ok(Arc::new(Pread::open(path)?))
}

/// Reads a file of this disk into memory.
///
/// # Errors
/// As [`open_source`].
pub fn open_in_memory(path: &Path) -> Result<Arc<dyn Source>, FormatError> {
    let name = path.display().to_string();
    let bytes = crate::input::read_file(path, u64::MAX)?;
    Ok(Arc::new(Memory::new(name, bytes)))
}

/// What was read from a source, unless it changed meanwhile: then what was found is not what the file said when
/// it was opened.
pub(crate) fn as_opened<T>(
    source: &dyn Source,
    read: impl FnOnce() -> Result<T, FormatError>,
) -> Result<T, FormatError> {
    let found = read();
    source.check()?;
    found
}

/// A range that lies in a source that lies in memory.
///
/// # Errors
/// `truncated`, `limit-exceeded`.
fn checked_range(source: &dyn Source, range: &Range<u64>) -> Result<Range<usize>, FormatError> {
    checked_len(source, range)?;
    match (usize::try_from(range.start), usize::try_from(range.end)) {
        (Ok(start), Ok(end)) => Ok(start..end),
        _ => Err(too_large(range.end).in_file(source.path())),
    }
}

/// The length of a range that lies in a source. The range may begin where this machine has no addresses.
///
/// # Errors
/// `truncated`, `limit-exceeded` for more bytes than one buffer can have.
pub fn checked_len(source: &dyn Source, range: &Range<u64>) -> Result<usize, FormatError> {
    let (start, end, len) = (range.start, range.end, source.len());
    if start > end || end > len {
        let needed = end.saturating_sub(start);
        let message = format!("needs {needed} bytes at {start}, file ends at {len}");
        return Err(FormatError::new(ErrorCode::Truncated, message).in_file(source.path()));
    }
    in_memory(end.saturating_sub(start), MOST_BYTES).map_err(|e| e.in_file(source.path()))
}

/// Refuses a number of bytes that no buffer of this machine can have.
///
/// # Errors
/// `limit-exceeded`.
pub(crate) fn fits_in_memory(bytes: u64) -> Result<usize, FormatError> {
    in_memory(bytes, MOST_BYTES)
}

fn in_memory(bytes: u64, most: u64) -> Result<usize, FormatError> {
    match usize::try_from(bytes) {
        Ok(count) if bytes <= most => Ok(count),
        _ => Err(too_large(bytes)),
    }
}

fn too_large(bytes: u64) -> FormatError {
    let message = format!("{bytes} bytes are more than this process can address");
    let error = FormatError::new(ErrorCode::LimitExceeded, message);
    match usize::BITS {
        ..=32 => error.hint("use the programs for a system with 64-bit addresses"),
        _ => error,
    }
}

/// Bytes that are cheap to clone: a view of a mapping, or of a buffer that the clones share.
#[derive(Clone, Default)]
pub struct Bytes {
    // None: no bytes
    owner: Option<Arc<dyn AsRef<[u8]> + Send + Sync>>,
    range: Range<usize>,
}

impl Bytes {
    /// All bytes of an owner.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        let range = 0..(*owner).as_ref().len();
        let owner = Some(owner);
        Self { owner, range }
    }

    /// Some of these bytes; `None` if the range is not in them.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let at = |place: usize| self.range.start.saturating_add(place);
        Some(Self {
            owner: self.owner.clone(),
            range: at(range.start)..at(range.end),
        })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all = self.owner.as_ref().map_or(&[][..], |o| (**o).as_ref());
        // the range was checked when it was made
        all.get(self.range.clone()).unwrap_or(&[])
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(Arc::new(bytes))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

impl Eq for Bytes {}

impl<B: AsRef<[u8]> + ?Sized> PartialEq<B> for Bytes {
    fn eq(&self, other: &B) -> bool {
        **self == *other.as_ref()
    }
}

/// A source that counts what is read of it.
#[cfg(test)]
pub(crate) mod counting {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[derive(Debug)]
    pub(crate) struct Counting {
        source: Arc<dyn Source>,
        count: AtomicU64,
    }

    impl Counting {
        pub(crate) fn new(bytes: &[u8]) -> Self {
            Self::of(Arc::new(Memory::new("memory", bytes.to_vec())))
        }

        pub(crate) fn of(source: Arc<dyn Source>) -> Self {
            let count = AtomicU64::new(0);
            Self { source, count }
        }

        /// Bytes that were read, each as often as it was.
        pub(crate) fn count(&self) -> u64 {
            self.count.load(Ordering::Relaxed)
        }
    }

    impl Source for Counting {
        fn len(&self) -> u64 {
            self.source.len()
        }

        fn name(&self) -> &str {
            self.source.name()
        }

        fn read(&self, range: Range<u64>) -> Result<Bytes, FormatError> {
            let bytes = self.source.read(range)?;
            self.count.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            Ok(bytes)
        }
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use std::io::Write;

    /// The same bytes in every kind of source.
    fn all_of(path: &Path) -> [Arc<dyn Source>; 3] {
        [
            open_mapped(path).unwrap(),
            open_pread(path).unwrap(),
            open_in_memory(path).unwrap(),
        ]
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn every_source_reads_the_same_ranges_and_refuses_the_same() {
        let dir = tempfile::tempdir().unwrap();
        for len in [0u64, 1, 4095, 4096, 4097, 100_000] {
            let path = dir.path().join(format!("{len}"));
            let bytes: Vec<u8> = (0..len).map(|i| (i * i % 251) as u8).collect();
            std::fs::write(&path, &bytes).unwrap();
            for source in all_of(&path) {
                assert_eq!((source.len(), source.is_empty()), (len, len == 0));
                assert_eq!(source.path(), path);
                assert_eq!(source.name(), path.display().to_string());
                source.prefer_huge_pages(0..u64::MAX);
                source.will_need(0..1);
                source.release(0..u64::MAX);
                source.will_need(3..u64::MAX);
                source.will_need(u64::MAX - 1..u64::MAX);
                assert_eq!(source.read(0..len).unwrap(), bytes);
                for range in [0..len / 2, len / 2..len, len..len, len.min(7)..len] {
                    let expected = &bytes[range.start as usize..range.end as usize];
                    assert_eq!(source.read(range).unwrap(), expected);
                }
                #[expect(clippy::reversed_empty_ranges)]
                for bad in [0..len + 1, len + 1..len + 1, 1..0, u64::MAX - 1..u64::MAX] {
                    let error = source.read(bad.clone()).unwrap_err();
                    assert_eq!(error.code, ErrorCode::Truncated, "{bad:?}: {error}");
                    assert_eq!(error.file.as_deref(), Some(&*path));
                }
                source.check().unwrap();
                source.intact().unwrap();
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn a_file_that_is_too_long_to_map_is_read_by_range() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, b"0123456789").unwrap();
        for (most, kind) in [(10, "Mapped"), (9, "Pread"), (0, "Pread")] {
            let source = open_mapped_up_to(&path, most).unwrap();
            assert!(format!("{source:?}").starts_with(kind), "{source:?}");
            assert_eq!(source.read(3..7).unwrap(), *b"3456");
        }
        let error = Mapped::open(&path, 9).unwrap_err();
        assert_eq!(error.code, ErrorCode::LimitExceeded);
        let message = "10 bytes are more than this process can address";
        assert_eq!(error.message, message);
        // what is no file is not tried twice
        let error = open_mapped_up_to(dir.path(), 0).unwrap_err();
        assert_eq!(error.code, ErrorCode::Io);
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn a_range_may_begin_beyond_the_addresses_of_32_bits() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let (start, len) = (5 << 30, (5 << 30) + 4);
        let mut file = std::fs::File::create(&path).unwrap();
        // a hole takes no room on the disk; a file system without holes has no room for this test
        if file.set_len(start).is_err() {
            return;
        }
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(start)).unwrap();
        file.write_all(b"last").unwrap();
        drop(file);
        let source = open_source(&path).unwrap();
        assert_eq!(source.len(), len);
        assert_eq!(source.read(start..len).unwrap(), *b"last");
        assert_eq!(source.read(start - 2..len - 2).unwrap(), *b"\0\0la");
        let error = source.read(len..len + 1).unwrap_err();
        assert_eq!(error.code, ErrorCode::Truncated);
    }

    #[test]
    fn a_buffer_is_no_longer_than_addresses_reach() {
        assert_eq!(in_memory(0, 0).unwrap(), 0);
        assert_eq!(in_memory(7, 7).unwrap(), 7);
        for (bytes, most) in [(8, 7), (u64::MAX, MOST_BYTES), (MOST_BYTES + 1, MOST_BYTES)] {
            let error = in_memory(bytes, most).unwrap_err();
            assert_eq!(error.code, ErrorCode::LimitExceeded, "{bytes}");
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn only_regular_files() {
        let dir = tempfile::tempdir().unwrap();
        for open in [open_mapped, open_pread, open_in_memory] {
            let error = open(dir.path()).unwrap_err();
            assert_eq!(error.code, ErrorCode::Io);
            assert!(
                error
                    .to_string()
                    .ends_with("expected a regular file, found a directory")
            );
            let error = open(&dir.path().join("absent")).unwrap_err();
            assert_eq!(error.code, ErrorCode::Io);
        }
    }

    /// A file of two pages behind the first, shortened to `keep` bytes.
    fn shrink(path: &Path, keep: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        file.set_len(keep).unwrap();
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn a_file_that_shrinks_is_an_error_for_every_reader_of_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for keep in [0, 1, 70_000, 299_999] {
            std::fs::write(&path, vec![7; 300_000]).unwrap();
            for open in [open_mapped, open_pread] {
                let source = open(&path).unwrap();
                let held = source.read(0..300_000).unwrap();
                source.intact().unwrap();
                shrink(&path, keep);
                // whatever the bytes are now, reading them is no signal
                let sum: u64 = held.iter().map(|b| u64::from(*b)).sum();
                assert!(sum <= 7 * 300_000);
                for found in [source.check(), source.intact()] {
                    let error = found.unwrap_err();
                    assert_eq!(error.code, ErrorCode::InputChanged, "{error}");
                    assert_eq!(error.file.as_deref(), Some(&*path));
                    assert!(error.hint.is_some());
                }
                std::fs::write(&path, vec![7; 300_000]).unwrap();
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn what_was_lost_stays_lost_and_no_other_source_is_blamed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("file"), dir.path().join("other"));
        for path in [&path, &other] {
            std::fs::write(path, vec![7; 300_000]).unwrap();
        }
        let (source, other) = (open_mapped(&path).unwrap(), open_mapped(&other).unwrap());
        let held = source.read(0..300_000).unwrap();
        shrink(&path, 0);
        let found: Vec<u8> = held.to_vec();
        assert!(found[8192..].iter().all(|b| *b == 0));
        // it comes back, and so may its time stamps: the reader was given zeros all the same
        std::fs::write(&path, vec![7; 300_000]).unwrap();
        assert_eq!(source.read(0..1).unwrap_err().code, ErrorCode::InputChanged);
        other.check().unwrap();
        assert_eq!(other.read(0..300_000).unwrap(), vec![7; 300_000]);
        assert_eq!(open_mapped(&path).unwrap().read(0..9).unwrap(), [7; 9]);
    }

    #[test]
    #[cfg_attr(miri, ignore = "files")]
    fn a_file_that_is_renamed_or_removed_is_intact() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for open in [open_mapped, open_pread] {
            std::fs::write(&path, b"12345").unwrap();
            let source = open(&path).unwrap();
            std::fs::rename(&path, dir.path().join("elsewhere")).unwrap();
            source.intact().unwrap();
            assert_eq!(source.read(0..5).unwrap(), *b"12345");
            assert!(source.check().is_err());
            std::fs::write(&path, b"54321").unwrap();
            source.intact().unwrap();
            let source = open(&path).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            let mut file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all(b"x").unwrap();
            let error = source.intact().unwrap_err();
            assert_eq!(error.code, ErrorCode::InputChanged);
        }
    }

    #[test]
    fn slices_of_bytes_share_their_owner() {
        let bytes = Bytes::from((0..100).collect::<Vec<u8>>());
        let part = bytes.slice(10..20).unwrap();
        assert_eq!(part, (10..20).collect::<Vec<u8>>());
        assert_eq!(part.slice(3..4).unwrap(), [13]);
        assert!(part.slice(3..11).is_none());
        assert_eq!(part.as_ptr(), bytes[10..].as_ptr());
        assert_eq!(Bytes::default(), []);
        assert_eq!(Bytes::default().slice(0..0).unwrap(), []);
    }
}
