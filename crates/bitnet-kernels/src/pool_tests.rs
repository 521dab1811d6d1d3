//! The pool on the threads of this machine.
//!
//! Invariant: no test depends on which thread takes an item.

use crate::{Pool, every};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

#[test]
fn every_item_once_with_any_number_of_threads() {
    for threads in [1, 2, 3, 17].into_iter().step_by(every(2)) {
        let mut pool = Pool::new(threads);
        assert_eq!(pool.threads(), threads);
        for region in (0..500).step_by(every(50)) {
            let items = region % 23;
            let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            pool.run(items, &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            if region % 100 == 0 {
                thread::sleep(Duration::from_millis(3)); // long enough to park
            }
        }
    }
}

#[test]
fn items_are_moved_and_borrowed_data_is_written() {
    let mut pool = Pool::new(4);
    let mut out = vec![0; 1000];
    let items: Vec<(usize, &mut [usize])> = out.chunks_mut(7).enumerate().collect();
    pool.run_each(items, |(i, part)| part.fill(i));
    assert!(out.iter().enumerate().all(|(i, v)| *v == i / 7));
}

#[test]
fn a_panic_reaches_the_caller_and_the_pool_goes_on() {
    let mut pool = Pool::new(3);
    let done = AtomicUsize::new(0);
    let result = catch_unwind(AssertUnwindSafe(|| {
        pool.run(10, &|i| {
            assert!(i != 4);
            done.fetch_add(1, Ordering::Relaxed);
        });
    }));
    assert!(result.is_err());
    assert_eq!(done.load(Ordering::Relaxed), 9);
    pool.run(5, &|_| {
        done.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(done.load(Ordering::Relaxed), 14);
}

#[cfg(target_os = "linux")]
#[test]
#[cfg_attr(miri, ignore = "files of the system")]
fn an_idle_pool_uses_no_cpu() {
    let ticks = || {
        let mut total = 0;
        for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            if stat.contains("(bitnet-") {
                let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split(' ').collect();
                total += fields[12].parse::<u64>().unwrap() + fields[13].parse::<u64>().unwrap();
            }
        }
        total
    };
    let mut pool = Pool::new(2);
    pool.run(4, &|_| ());
    thread::sleep(Duration::from_millis(50));
    let before = ticks();
    thread::sleep(Duration::from_millis(300));
    // other tests of this module may run pools of their own, but not for so long
    assert!(ticks() - before < 20, "{} ticks", ticks() - before);
}
