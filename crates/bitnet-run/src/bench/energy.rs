//! Energy of a run, from the counters that Linux shows below `/sys/class/powercap` (RAPL).
//!
//! Invariant: joules are the difference of two readings of the same counters, with at most one overflow between them; a
//! counter that cannot be read is an error that says why, never zero.
//!
//! Source: Linux kernel documentation, "Power Capping Framework" (`energy_uj`, `max_energy_range_uj`).

use std::path::{Path, PathBuf};

/// Most zones that are looked at, one level below the root and one below that.
const MOST_ZONES: usize = 1024;

/// One counter.
#[derive(Debug)]
struct Zone {
    name: String,
    file: PathBuf,
    range: u64, // microjoules at which it begins anew
}

/// The counters of all processor packages and of their memory.
#[derive(Debug)]
pub struct Counters(Vec<Zone>);

/// Microjoules of each counter.
#[derive(Debug, Clone)]
pub struct Reading(Vec<u64>);

impl Counters {
    /// The counters below a directory, `/sys/class/powercap` on a real machine.
    ///
    /// Packages count, and memory (`dram`), which no package contains. Other zones lie within a package (`core`, `uncore`)
    /// or contain everything (`psys`).
    ///
    /// # Errors
    /// Why energy cannot be measured.
    pub fn open(root: &Path) -> Result<Self, String> {
        let mut zones = Vec::new();
        for package in zones_in(root)? {
            let name = text(&package.join("name"))?;
            if !name.starts_with("package") {
                continue;
            }
            zones.push(Zone::open(&package, name)?);
            for part in zones_in(&package)? {
                let name = text(&part.join("name"))?;
                if name == "dram" {
                    zones.push(Zone::open(&part, name)?);
                }
            }
        }
        match zones.is_empty() {
            true => Err(format!("{} has no counter of a package", root.display())),
            false => Ok(Self(zones)),
        }
    }

    /// Names of the counters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|zone| zone.name.as_str())
    }

    /// What the counters show now.
    ///
    /// # Errors
    /// A counter that cannot be read any more.
    pub fn read(&self) -> Result<Reading, String> {
        let all: Result<_, _> = self.0.iter().map(|zone| number(&zone.file)).collect();
        all.map(Reading)
    }

    /// Joules between two readings.
    pub fn joules(&self, before: &Reading, after: &Reading) -> f64 {
        let both = before.0.iter().zip(&after.0).zip(&self.0);
        let each = both.map(|((&before, &after), zone)| match after >= before {
            true => after - before,
            // the kernel's counter goes up to the range and begins anew
            false => zone.range.saturating_sub(before).saturating_add(after),
        });
        each.map(|microjoules| microjoules as f64 / 1e6).sum()
    }
}

impl Zone {
    fn open(directory: &Path, name: String) -> Result<Self, String> {
        let file = directory.join("energy_uj");
        number(&file)?;
        let range = number(&directory.join("max_energy_range_uj"))?;
        Ok(Self { name, file, range })
    }
}

/// Directories that hold a zone, in the order of their names.
fn zones_in(directory: &Path) -> Result<Vec<PathBuf>, String> {
    let failed = |e: std::io::Error| format!("{}: {e}", directory.display());
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    let mut zones = Vec::new();
    for entry in entries.take(MOST_ZONES) {
        let path = entry.map_err(failed)?.path();
        // the class directory holds links to all zones; those of parts have two colons and are read within their package
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_nested = directory.join("name").exists();
        let colons = if is_nested { 2 } else { 1 };
        if name.matches(':').count() == colons && path.join("name").is_file() {
            zones.push(path);
        }
    }
    zones.sort();
    Ok(zones)
}

fn text(path: &Path) -> Result<String, String> {
    let bytes = bitnet_formats::read_file(path, 4096).map_err(|e| e.to_string())?;
    Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
}

fn number(path: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => format!(
            "{}: only the administrator may read it; hint: `sudo chmod a+r {}`",
            path.display(),
            path.display()
        ),
        _ => format!("{}: {e}", path.display()),
    })?;
    let expected = |_| {
        format!(
            "{}: expected a number, found `{}`",
            path.display(),
            text.trim()
        )
    };
    text.trim().parse().map_err(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(at: &Path, name: &str, energy: u64) {
        std::fs::create_dir_all(at).unwrap();
        std::fs::write(at.join("name"), format!("{name}\n")).unwrap();
        std::fs::write(at.join("energy_uj"), format!("{energy}\n")).unwrap();
        std::fs::write(at.join("max_energy_range_uj"), "1000000\n").unwrap();
    }

    fn tree(name: &str) -> PathBuf {
        let root = std::env::temp_dir().join(format!("powercap-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        zone(&root.join("intel-rapl:0"), "package-0", 100);
        zone(&root.join("intel-rapl:0/intel-rapl:0:0"), "core", 7);
        zone(&root.join("intel-rapl:0/intel-rapl:0:1"), "dram", 900_000);
        // the class directory lists the parts as well
        zone(&root.join("intel-rapl:0:1"), "dram", 900_000);
        zone(&root.join("intel-rapl:1"), "psys", 5);
        std::fs::create_dir_all(root.join("intel-rapl")).unwrap();
        root
    }

    #[test]
    fn packages_and_their_memory_count_once_and_overflow() {
        let root = tree("counts");
        let counters = Counters::open(&root).unwrap();
        assert!(counters.names().eq(["package-0", "dram"]));
        let before = counters.read().unwrap();
        zone(&root.join("intel-rapl:0"), "package-0", 600_100);
        // 100,000 to the end of the range, and 50,000 more
        zone(&root.join("intel-rapl:0/intel-rapl:0:1"), "dram", 50_000);
        let after = counters.read().unwrap();
        assert_eq!(counters.joules(&before, &after), 0.75);
        std::fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let root = tree("errors");
        std::fs::write(root.join("intel-rapl:0/energy_uj"), "much").unwrap();
        let error = Counters::open(&root).unwrap_err();
        assert!(
            error.ends_with("expected a number, found `much`"),
            "{error}"
        );
        std::fs::remove_dir_all(root.join("intel-rapl:0")).unwrap();
        let error = Counters::open(&root).unwrap_err();
        assert!(error.ends_with("has no counter of a package"), "{error}");
        std::fs::remove_dir_all(&root).unwrap();
        assert!(Counters::open(&root).is_err());
    }
}
