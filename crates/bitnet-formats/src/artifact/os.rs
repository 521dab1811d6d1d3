//! The system calls behind artifacts: what Linux does better than the portable calls, and the
//! portable calls for the others.
//!
//! Invariant: each either did its one step or changed nothing; none replaces a path unless its
//! comment says so.

#[cfg(target_os = "linux")]
pub(super) use self::linux::{exchange, link, rename_new, reserve, swap, unnamed_file};
#[cfg(not(target_os = "linux"))]
pub(super) use self::portable::{exchange, link, rename_new, reserve, swap, unnamed_file};

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

#[cfg(target_os = "linux")]
mod linux {
    use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags};
    use rustix::io::Errno;
    use std::fs::File;
    use std::io;
    use std::os::fd::AsRawFd;
    use std::path::{Path, PathBuf};

    /// What a system says that does not have a kind of rename; a sandbox may say that it is not permitted.
    macro_rules! unsupported {
        () => {
            Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP
        };
    }

    fn descriptor(file: &File) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
    }

    /// A file without a name in this directory's file system, if that can be had and named later.
    pub(in crate::artifact) fn unnamed_file(directory: &Path) -> Option<File> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(directory, flags, Mode::from(0o666)).ok()?);
        descriptor(&file).exists().then_some(file)
    }

    /// Names a file that has none; fails if the path exists.
    pub(in crate::artifact) fn link(file: &File, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        if super::NO_LINKS.get() {
            return Err(Errno::OPNOTSUPP.into());
        }
        Ok(rustix::fs::linkat(
            CWD,
            descriptor(file),
            CWD,
            path,
            AtFlags::SYMLINK_FOLLOW,
        )?)
    }

    /// Reserves blocks without changing the length. `false` where the file system cannot.
    pub(in crate::artifact) fn reserve(file: &File, bytes: u64) -> io::Result<bool> {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, 0, bytes) {
            Ok(()) => Ok(true),
            Err(e @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => Err(e.into()),
            Err(_) => Ok(false),
        }
    }

    /// Renames, failing if the new path exists.
    pub(in crate::artifact) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            Err(unsupported!()) => super::rename_unless_there(from, to),
            done => Ok(done?),
        }
    }

    /// Swaps two paths.
    pub(in crate::artifact) fn exchange(from: &Path, to: &Path) -> io::Result<()> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
            Err(unsupported!()) => super::exchange_in_steps(from, to),
            done => Ok(done?),
        }
    }

    /// Swaps two files; `false` where the file system cannot, and nothing has changed then.
    pub(in crate::artifact) fn swap(from: &Path, to: &Path) -> io::Result<bool> {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::EXCHANGE) {
            Err(unsupported!()) => Ok(false),
            done => Ok(done.map(|()| true)?),
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod portable {
    use std::fs::File;
    use std::io;
    use std::path::Path;

    pub(in crate::artifact) fn unnamed_file(_directory: &Path) -> Option<File> {
        None
    }

    pub(in crate::artifact) fn link(_file: &File, _path: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(in crate::artifact) fn reserve(_file: &File, _bytes: u64) -> io::Result<bool> {
        Ok(false)
    }

    pub(in crate::artifact) fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
        super::rename_unless_there(from, to)
    }

    pub(in crate::artifact) fn exchange(from: &Path, to: &Path) -> io::Result<()> {
        super::exchange_in_steps(from, to)
    }

    pub(in crate::artifact) fn swap(_from: &Path, _to: &Path) -> io::Result<bool> {
        Ok(false)
    }
}

#[cfg(test)]
thread_local! {
    /// Whether [`link`] fails in this thread, as on a file system that cannot name an unnamed file.
    pub(super) static NO_LINKS: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Renames over a file. Windows may refuse that while a program has the file open: then it moves aside first.
pub(super) fn replace(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if cfg!(windows) && e.kind() == ErrorKind::PermissionDenied => {
            replace_open(from, to).map_err(|_| e)
        }
        done => done,
    }
}

/// As [`replace`], for a file that is open. A `kill -9` between the two renames leaves no output, and the old one under a name
/// beginning with a dot.
pub(super) fn replace_open(from: &Path, to: &Path) -> io::Result<()> {
    let mut aside = from.as_os_str().to_owned();
    aside.push("-open");
    fs::rename(to, &aside)?;
    if let Err(e) = fs::rename(from, to) {
        fs::rename(&aside, to)?;
        return Err(e);
    }
    // what cannot be removed yet is removed by the next writer
    let _ = fs::remove_file(&aside);
    Ok(())
}

/// For file systems that cannot refuse to replace: a second name, which is refused if the name exists, then
/// the first name goes. Directories, and file systems without second names, are looked at first, which
/// leaves a short race.
pub(super) fn rename_unless_there(from: &Path, to: &Path) -> io::Result<()> {
    if fs::symlink_metadata(from)?.is_file() {
        match fs::hard_link(from, to) {
            Ok(()) => return fs::remove_file(from),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => return Err(e),
            Err(_) => {}
        }
    }
    match fs::symlink_metadata(to) {
        Ok(_) => Err(ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}

/// For file systems that cannot swap: the old directory moves aside for a moment, in which a
/// `kill -9` leaves no output (and the old one under a name beginning with a dot).
pub(super) fn exchange_in_steps(from: &Path, to: &Path) -> io::Result<()> {
    let mut aside = from.as_os_str().to_owned();
    aside.push("-old");
    fs::rename(to, &aside)?;
    if let Err(e) = fs::rename(from, to) {
        fs::rename(&aside, to)?;
        return Err(e);
    }
    fs::rename(&aside, from)
}
