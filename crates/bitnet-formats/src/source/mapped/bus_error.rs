//! What happens when a page of a mapped file is read and the file has no such page any more.
//!
//! Invariant: for an address in a watched mapping, the signal ends in pages of zeros and a note that the mapping is
//! lost; the note is written before the zeros can be read. For every other address, the handler that was installed
//! before this module handles it.
//!
//! The kernel sends SIGBUS to the thread that reads a page behind the end of a file that shrank. No check before a
//! read can rule that out, because another process may shrink the file right after the check.

use std::ops::Range;

/// A note about one mapping, for as long as the value lives.
pub(super) struct Watch(os::Watch);

impl Watch {
    /// Watches the addresses of a mapping.
    pub(super) fn over(addresses: Range<usize>) -> Self {
        Self(os::Watch::over(addresses))
    }

    /// Whether a page of it could not be read.
    pub(super) fn is_lost(&self) -> bool {
        self.0.is_lost()
    }
}

/// Handles the signal from now on, on systems that have it; `false` if pages can be lost and the system refuses.
pub(super) fn install() -> bool {
    os::install()
}

#[cfg(any(target_os = "linux", target_os = "android", target_vendor = "apple"))]
mod os {
    use std::ops::Range;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Mutex, OnceLock, PoisonError};

    /// The addresses of one mapping. The handler reads them at any time, so they are atomics: `end` is written
    /// last when a mapping begins and first when it ends.
    struct Place {
        start: AtomicUsize,
        /// 0: no mapping is here.
        end: AtomicUsize,
        lost: AtomicBool,
    }

    impl Place {
        // a value to copy, never shared
        #[allow(clippy::declare_interior_mutable_const)]
        const FREE: Self = Self {
            start: AtomicUsize::new(0),
            end: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        };

        fn is_free(&self) -> bool {
            self.end.load(Ordering::SeqCst) == 0
        }

        /// The end of the mapping, if the address is in it.
        fn end_around(&self, address: usize) -> Option<usize> {
            let end = self.end.load(Ordering::SeqCst);
            let start = self.start.load(Ordering::SeqCst);
            // another mapping may have taken the place in between
            let same = self.end.load(Ordering::SeqCst) == end;
            (same && start <= address && address < end).then_some(end)
        }
    }

    /// Places of mappings. Never freed, so that the handler may walk them while another thread adds some.
    struct Places {
        places: [Place; 64],
        more: OnceLock<&'static Places>,
    }

    impl Places {
        // as above
        #[allow(clippy::declare_interior_mutable_const)]
        const FREE: Self = Self {
            places: [Place::FREE; 64],
            more: OnceLock::new(),
        };

        /// The first place that an addition finds free. Called by one thread at a time.
        fn free(&'static self) -> &'static Place {
            match self.places.iter().find(|place| place.is_free()) {
                Some(place) => place,
                None => self
                    .more
                    .get_or_init(|| Box::leak(Box::new(Places::FREE)))
                    .free(),
            }
        }

        /// The place of the mapping around an address, and where the mapping ends.
        fn around(&'static self, address: usize) -> Option<(&'static Place, usize)> {
            let mut all = Some(self);
            while let Some(places) = all {
                let mut found = places.places.iter();
                let found = found.find_map(|place| Some((place, place.end_around(address)?)));
                if found.is_some() {
                    return found;
                }
                all = places.more.get().copied();
            }
            None
        }
    }

    static PLACES: Places = Places::FREE;
    /// Held while a place is taken.
    static TAKING: Mutex<()> = Mutex::new(());
    /// What handled the signal before.
    static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();
    static PAGE: AtomicUsize = AtomicUsize::new(0);

    pub(super) struct Watch(&'static Place);

    impl Watch {
        pub(super) fn over(addresses: Range<usize>) -> Self {
            let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
            let place = PLACES.free();
            place.lost.store(false, Ordering::SeqCst);
            place.start.store(addresses.start, Ordering::SeqCst);
            place.end.store(addresses.end, Ordering::SeqCst);
            Self(place)
        }

        pub(super) fn is_lost(&self) -> bool {
            self.0.lost.load(Ordering::SeqCst)
        }
    }

    impl Drop for Watch {
        fn drop(&mut self) {
            self.0.end.store(0, Ordering::SeqCst);
        }
    }

    pub(super) fn install() -> bool {
        static INSTALLED: OnceLock<bool> = OnceLock::new();
        *INSTALLED.get_or_init(|| {
            // SAFETY: sysconf and sigaction get valid arguments: a known name, a signal that may be handled, and
            // structures that live through the calls; zeros are a valid sigaction (no handler, no flags). The
            // handler has the signature that SA_SIGINFO asks for and does only what a handler may.
            unsafe {
                let page = libc::sysconf(libc::_SC_PAGESIZE);
                let Some(page) = usize::try_from(page).ok().filter(|p| p.is_power_of_two()) else {
                    return false;
                };
                PAGE.store(page, Ordering::SeqCst);
                // asked before: a fault of another mapping may come as soon as the handler is there
                let mut before: libc::sigaction = std::mem::zeroed();
                if libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut before) != 0 {
                    return false;
                }
                let _ = BEFORE.set(before);
                let mut own: libc::sigaction = std::mem::zeroed();
                let handler: extern "C" fn(_, _, _) = on_bus_error;
                own.sa_sigaction = handler as libc::sighandler_t;
                own.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
                libc::sigemptyset(&raw mut own.sa_mask);
                libc::sigaction(libc::SIGBUS, &raw const own, std::ptr::null_mut()) == 0
            }
        })
    }

    /// The handler. It loads and stores atomics and makes system calls, all of which signal handlers may do: it
    /// takes no lock and allocates nothing.
    extern "C" fn on_bus_error(
        signal: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        // SAFETY: the kernel gives a valid siginfo to a handler with SA_SIGINFO; SIGBUS has an address.
        let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
        // codes of what processes send to each other are not positive
        if code > 0 && replace(address) {
            return;
        }
        // SAFETY: the arguments are those that the kernel gave.
        unsafe { pass_on(signal, code, info, context) };
    }

    /// Puts zeros in the place of a mapping's pages, from that of `address` on. `false` if it is not one of ours.
    fn replace(address: usize) -> bool {
        let Some((place, end)) = PLACES.around(address) else {
            return false;
        };
        // before anything else may read a zero
        place.lost.store(true, Ordering::SeqCst);
        let page = PAGE.load(Ordering::SeqCst);
        // a power of two
        let start = address & page.wrapping_neg();
        let Some(end) = end.checked_next_multiple_of(page) else {
            return false;
        };
        let len = end.saturating_sub(start);
        // SAFETY: a thread just read `address`, so its mapping is alive and stays so until that read is done: the
        // pages from there to its end belong to it alone, and what is behind its end in the last page nobody
        // maps. They stay readable, which is all that views of the mapping ask. To the end, because a file that
        // lacks one page mostly lacks the next ones, and each page by itself would be a mapping more.
        let replaced = unsafe {
            libc::mmap(
                std::ptr::with_exposed_provenance_mut(start),
                len,
                libc::PROT_READ,
                libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_FIXED | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        replaced != libc::MAP_FAILED
    }

    /// Does what would have happened without this module.
    ///
    /// # Safety
    /// The arguments are those of a handler of a signal.
    unsafe fn pass_on(
        signal: libc::c_int,
        code: libc::c_int,
        info: *mut libc::siginfo_t,
        context: *mut libc::c_void,
    ) {
        let before = BEFORE.get();
        let handler = before.map_or(libc::SIG_DFL, |before| before.sa_sigaction);
        let flags = before.map_or(0, |before| before.sa_flags);
        if handler == libc::SIG_IGN && code <= 0 {
            return;
        }
        if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
            // SAFETY: valid arguments; zeros are the default action. The read happens again when this returns, and
            // ends the process; a signal that was sent is sent again.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &raw const default, std::ptr::null_mut());
                if code <= 0 {
                    libc::raise(signal);
                }
            }
        } else if flags & libc::SA_SIGINFO != 0 {
            // SAFETY: a handler that was registered with SA_SIGINFO has this signature.
            unsafe {
                let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                    std::mem::transmute(handler);
                handler(signal, info, context);
            }
        } else {
            // SAFETY: a handler that was registered without SA_SIGINFO has this signature.
            unsafe {
                let handler: extern "C" fn(libc::c_int) = std::mem::transmute(handler);
                handler(signal);
            }
        }
    }
}

/// Where files that are mapped cannot shrink (Windows), and where nothing is known about them.
#[cfg(not(any(target_os = "linux", target_os = "android", target_vendor = "apple")))]
mod os {
    use std::ops::Range;

    pub(super) struct Watch;

    impl Watch {
        pub(super) fn over(_addresses: Range<usize>) -> Self {
            Self
        }

        pub(super) fn is_lost(&self) -> bool {
            false
        }
    }

    pub(super) fn install() -> bool {
        cfg!(windows)
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use std::io::Write;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    /// Whether this process is the one that the test below starts.
    const CHILD: &str = "BITNET_TEST_READS_A_FOREIGN_MAPPING";

    #[test]
    #[cfg_attr(miri, ignore = "signals")]
    fn a_mapping_of_somebody_else_still_ends_the_process() {
        if std::env::var_os(CHILD).is_some() {
            super::install();
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(&[7; 100_000]).unwrap();
            // SAFETY: the file shrinks on purpose; the test expects the signal.
            let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
            file.set_len(0).unwrap();
            std::process::exit(i32::from(map[50_000]) + 100);
        }
        let ended = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--test-threads", "1"])
            .arg(
                concat!(
                    module_path!(),
                    "::a_mapping_of_somebody_else_still_ends_the_process"
                )
                .split_once("::")
                .unwrap()
                .1,
            )
            .env(CHILD, "1")
            .output()
            .unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGBUS), "{ended:?}");
    }

    #[test]
    #[cfg_attr(miri, ignore = "signals")]
    fn more_mappings_than_one_array_of_places_are_watched() {
        let base = 1usize << (usize::BITS - 24); // nothing is mapped there, and nothing reads it
        let watches: Vec<_> = (0..200)
            .map(|n| super::Watch::over(base + n * 10..base + n * 10 + 5))
            .collect();
        assert!(watches.iter().all(|watch| !watch.is_lost()));
        drop(watches);
        let again = super::Watch::over(base..base + 5);
        assert!(!again.is_lost());
    }
}
