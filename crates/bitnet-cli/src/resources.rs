//! What a run costs: time and memory, from `/proc/self/status`.
//!
//! Invariant: figures that the system does not offer are absent, never guessed. `RssAnon` is the
//! memory a program asked for; `VmHWM` also counts pages of mapped files, which the system takes
//! back whenever it likes. The kernel keeps a peak of the latter only, so the former is sampled.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often RssAnon is sampled: far shorter than a tensor takes.
const INTERVAL: Duration = Duration::from_millis(5);

fn status_field(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Peak resident memory of this process so far (`VmHWM`), mapped file pages included.
pub fn peak_rss_bytes() -> Option<u64> {
    status_field("VmHWM")
}

/// Resident memory of this process now (`VmRSS`), mapped file pages included.
pub fn resident_bytes() -> Option<u64> {
    status_field("VmRSS")
}

/// Memory that the system can give without swapping (`MemAvailable`).
pub fn available_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// Times of all CPUs since the machine started and of this process since it started, in the kernel's ticks.
#[derive(Debug, Clone, Copy)]
pub struct CpuTimes {
    /// Of all CPUs: busy, idle and taken by the host.
    pub all: u64,
    /// Of all CPUs: running programs or the kernel.
    pub busy: u64,
    /// Of all CPUs: taken away by the host of a virtual machine.
    pub steal: u64,
    /// This process, its ended children not counted.
    pub own: u64,
}

/// What `/proc/stat` and `/proc/self/stat` say; `None` on systems without them.
pub fn cpu_times() -> Option<CpuTimes> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let cpu = stat.lines().next()?.strip_prefix("cpu ")?;
    let mut fields = cpu
        .split_whitespace()
        .map_while(|field| field.parse::<u64>().ok());
    // user nice system idle iowait irq softirq steal
    let mut next = || fields.next();
    let (user, nice, system) = (next()?, next()?, next()?);
    let (idle, iowait, irq, softirq) = (next()?, next()?, next()?, next()?);
    let steal = next().unwrap_or(0);
    let own = std::fs::read_to_string("/proc/self/stat").ok()?;
    // behind the name in brackets, which may hold spaces: state is field 3, utime 14, stime 15
    let (_, behind) = own.rsplit_once(')')?;
    let mut own = behind.split_whitespace().skip(11);
    let mut ticks = || own.next()?.parse::<u64>().ok();
    let busy = user + nice + system + irq + softirq;
    Some(CpuTimes {
        all: busy + idle + iowait + steal,
        busy,
        steal,
        own: ticks()? + ticks()?,
    })
}

/// Measures a run from its creation on.
#[derive(Debug)]
pub struct ResourceMonitor {
    started: Instant,
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    sampler: Option<JoinHandle<()>>,
}

impl ResourceMonitor {
    /// Starts the clock and the sampler.
    pub fn start() -> Self {
        let peak = Arc::new(AtomicU64::new(status_field("RssAnon").unwrap_or(0)));
        let stop = Arc::new(AtomicBool::new(false));
        let (p, s) = (Arc::clone(&peak), Arc::clone(&stop));
        let sampler = std::thread::Builder::new()
            .name("rss-sampler".to_owned())
            .spawn(move || {
                while !s.load(Ordering::Relaxed) {
                    std::thread::park_timeout(INTERVAL);
                    match status_field("RssAnon") {
                        Some(now) => p.fetch_max(now, Ordering::Relaxed),
                        None => return,
                    };
                }
            })
            // no thread, no samples: the figure is then a lower bound taken at the end
            .ok();
        Self {
            started: Instant::now(),
            peak,
            stop,
            sampler,
        }
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }

    /// Largest anonymous memory seen since the start, sampled every 5 ms.
    pub fn rss_anon_peak_bytes(&self) -> Option<u64> {
        let now = status_field("RssAnon")?;
        Some(self.peak.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

impl Drop for ResourceMonitor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            sampler.thread().unpark();
            let _ = sampler.join();
        }
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_remembers_what_is_gone() {
        let monitor = ResourceMonitor::start();
        let before = monitor.rss_anon_peak_bytes().unwrap();
        let big = vec![1u8; 64 << 20];
        std::thread::sleep(Duration::from_millis(100));
        assert!(big.iter().all(|&b| b == 1));
        drop(big);
        assert!(monitor.rss_anon_peak_bytes().unwrap() >= before + (60 << 20));
        assert!(peak_rss_bytes().unwrap() >= 60 << 20);
        assert!(resident_bytes().unwrap() <= peak_rss_bytes().unwrap());
    }
}
