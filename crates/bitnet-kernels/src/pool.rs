//! A pool of threads for regions of a few microseconds: a decoded token enters some 150 of them. Written by hand, because
//! rayon's workers sleep in the serial gaps between regions and take as long to wake as a region lasts.
//!
//! A region is a number of items; a free thread, the caller included, takes the next item. Helpers
//! that have nothing to do spin for tens of microseconds, then yield, then park: the gaps inside a
//! token cost no system call, and an idle pool costs no CPU. Nobody waits for a helper that took no
//! item, so more threads than cores, or a machine that is busy otherwise, cost time but never a stop.
//!
//! Invariant: the closure of a region is called only by a thread that took one of its items, and
//! [`Pool::run`] returns only after every item that was taken is done. It is never called after that.
//! `tests/pool-model` tries this file with every order of steps that the memory model of the language allows.

use super::primitives::{
    Arc, AtomicBool, AtomicU64, AtomicUsize, JoinHandle, Mutex, Ordering, SPINS, Slot, Thread,
    WAITS, YIELDS, fence, thread,
};
use std::any::Any;
use std::mem::ManuallyDrop;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// What the two sides write lies in lines of its own (pairs of lines: they are prefetched so).
#[repr(align(128))]
struct Apart<T>(T);

/// What a region calls for each of its items.
#[derive(Clone, Copy)]
struct Job {
    closure: *const (dyn Fn(usize) + Sync),
    items: usize,
}

struct Shared {
    /// Items of the region that nobody has taken yet.
    left: Apart<AtomicUsize>,
    /// Items of the region that are done.
    done: Apart<AtomicUsize>,
    /// Written by the caller between regions only; read by threads that took an item.
    job: Apart<Slot<Job>>,
    stop: AtomicBool,
    /// Whether `busy` is kept.
    timed: AtomicBool,
    /// Nanoseconds that all threads worked on items of the region.
    busy: Apart<AtomicU64>,
    parked: Vec<AtomicBool>, // (helpers,)
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

// SAFETY: `job` is the only field that is not Sync by itself. The caller writes it while no item is
// left and none is being worked on (`run` waits for that), and publishes it by the Release store to
// `left`; helpers read it after they took an item by an Acquire operation on `left`.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a Sync closure, which any thread may call.
unsafe impl Send for Shared {}

/// Some threads that work for one caller at a time.
pub struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<Thread>,
    handles: Vec<JoinHandle<()>>,
    idle: Duration,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`run`](Self::run) being one of them. If the system
    /// gives fewer, the pool is smaller.
    pub fn new(threads: usize) -> Self {
        let wanted = threads.saturating_sub(1);
        let nothing: *const (dyn Fn(usize) + Sync) = &|_: usize| ();
        let shared = Arc::new(Shared {
            left: Apart(AtomicUsize::new(0)),
            done: Apart(AtomicUsize::new(0)),
            job: Apart(Slot::new(Job {
                closure: nothing,
                items: 0,
            })),
            stop: AtomicBool::new(false),
            timed: AtomicBool::new(false),
            busy: Apart(AtomicU64::new(0)),
            parked: (0..wanted).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        });
        let handles: Vec<_> = (0..wanted)
            .map_while(|helper| {
                let shared = Arc::clone(&shared);
                thread::Builder::new()
                    .name(format!("bitnet-{}", helper + 1))
                    .spawn(move || shared.help(helper))
                    .ok()
            })
            .collect();
        let helpers = handles.iter().map(|h| h.thread().clone()).collect();
        Self {
            shared,
            helpers,
            handles,
            idle: Duration::ZERO,
        }
    }

    /// Threads, the caller included.
    pub fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Whether to read the clock at every item, for [`take_idle`](Self::take_idle).
    pub fn measure_idle(&mut self, on: bool) {
        self.shared.timed.store(on, Ordering::Relaxed);
        self.idle = Duration::ZERO;
    }

    /// How much longer the regions since the last call took than if their work had been shared evenly
    /// and without overhead.
    pub fn take_idle(&mut self) -> Duration {
        std::mem::take(&mut self.idle)
    }

    /// Calls `f` for every number below `items`, each once, on any of the threads; returns when all
    /// are done.
    ///
    /// # Panics
    /// If `f` did, after all other items are done.
    pub fn run(&mut self, items: usize, f: &(dyn Fn(usize) + Sync)) {
        if items <= 1 || self.helpers.is_empty() {
            (0..items).for_each(f);
            return;
        }
        let shared = &*self.shared;
        let started = shared.timed.load(Ordering::Relaxed).then(Instant::now);
        shared.busy.0.store(0, Ordering::Relaxed);
        // SAFETY: only the lifetime changes. The closure is called by threads that took an item of this
        // region, and below we wait until every item is done, panics included, before `f` can end.
        let closure = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync)>(f)
        };
        // SAFETY: the last region is over: no item is left and all are done, so nobody reads the job
        // (`&mut self`: nobody else is here either).
        unsafe { shared.job.0.write(Job { closure, items }) };
        shared.done.0.store(0, Ordering::Relaxed);
        shared.left.0.store(items, Ordering::Release);
        // a helper says that it parks, then looks at `left` once more; we do it the other way round
        fence(Ordering::SeqCst);
        let parked = shared.parked.iter().zip(&self.helpers);
        for (parked, helper) in parked.take(items - 1) {
            if parked.load(Ordering::Relaxed) {
                helper.unpark();
            }
        }
        while shared.work() {}
        let mut turns = 0;
        while shared.done.0.load(Ordering::Acquire) < items {
            turns += 1;
            match turns {
                0..SPINS => thread::spin_loop(),
                SPINS..WAITS => thread::yield_now(),
                // the thread with the last item is not running
                _ => thread::sleep(Duration::from_micros(50)),
            }
        }
        if let Some(started) = started {
            let busy = Duration::from_nanos(shared.busy.0.load(Ordering::Relaxed));
            let threads = self.helpers.len() as u32 + 1;
            self.idle += started.elapsed().saturating_sub(busy / threads);
        }
        let panic = shared
            .panic
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// Calls `f` with every item.
    ///
    /// # Panics
    /// As [`run`](Self::run); items whose call panicked, or which were not reached, are not dropped.
    pub fn run_each<T: Send>(&mut self, items: Vec<T>, f: impl Fn(T) + Sync) {
        /// Some items, each read once, by whatever thread.
        struct Items<T>(*const T);
        // SAFETY: the items are Send, and each goes to one thread.
        unsafe impl<T: Send> Sync for Items<T> {}
        impl<T> Items<T> {
            /// # Safety
            /// `at` is below the number of items and was not taken before.
            unsafe fn take(&self, at: usize) -> T {
                // SAFETY: the caller's promise.
                unsafe { self.0.add(at).read() }
            }
        }

        let mut items: Vec<ManuallyDrop<T>> = items.into_iter().map(ManuallyDrop::new).collect();
        let taken = Items(items.as_mut_ptr().cast::<T>().cast_const());
        // SAFETY: `run` calls with every number below the length once; the vector outlives it and
        // never drops what is in it.
        self.run(items.len(), &|at| f(unsafe { taken.take(at) }));
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for helper in &self.helpers {
            helper.unpark();
        }
        for handle in self.handles.drain(..) {
            // helpers catch panics
            let _ = handle.join();
        }
    }
}

impl Shared {
    /// Takes an item and works on it; `false` when there is none left.
    fn work(&self) -> bool {
        let take = |left: usize| left.checked_sub(1);
        let Ok(left) = self
            .left
            .0
            .fetch_update(Ordering::Acquire, Ordering::Relaxed, take)
        else {
            return false;
        };
        // SAFETY: we hold an item of the region, so the caller waits for us and writes no other job;
        // the Acquire above saw the Release (or a later operation in its release sequence) that
        // published this one.
        let Job { closure, items } = unsafe { self.job.0.read() };
        // SAFETY: as above: the closure lives until this item is counted as done.
        let f = unsafe { &*closure };
        let started = self.timed.load(Ordering::Relaxed).then(Instant::now);
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| f(items - left))) {
            *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        }
        if let Some(started) = started {
            let busy = started.elapsed().as_nanos() as u64;
            self.busy.0.fetch_add(busy, Ordering::Relaxed);
        }
        self.done.0.fetch_add(1, Ordering::Release);
        true
    }

    /// A helper's life.
    fn help(&self, helper: usize) {
        let mut turns = 0;
        while !self.stop.load(Ordering::Relaxed) {
            if self.left.0.load(Ordering::Relaxed) > 0 && self.work() {
                turns = 0;
                continue;
            }
            turns += 1;
            if turns < SPINS {
                thread::spin_loop();
            } else if turns < SPINS + YIELDS {
                thread::yield_now();
            } else {
                self.park(helper);
                turns = 0;
            }
        }
    }

    /// Sleeps until there may be something to do.
    fn park(&self, helper: usize) {
        let Some(parked) = self.parked.get(helper) else {
            return;
        };
        parked.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        // either we see the new region here, or its caller sees that we park and wakes us
        if self.left.0.load(Ordering::Relaxed) == 0 && !self.stop.load(Ordering::SeqCst) {
            thread::park();
        }
        parked.store(false, Ordering::Relaxed);
    }
}
