//! What `--version` says.
//!
//! Invariant: no date and no path: two builds of one commit say the same.

use std::sync::OnceLock;

static COMMIT: OnceLock<&str> = OnceLock::new();

/// Sets the commit that this process was built from; the first call counts.
pub fn set_commit(commit: &'static str) {
    let _ = COMMIT.set(commit);
}

/// The version, and below it the commit, the target and the kernel that computes by default.
pub fn long_version(kernel: &str) -> String {
    format!(
        "{}\ncommit: {}\ntarget: {}\nkernel: {kernel}",
        env!("CARGO_PKG_VERSION"),
        COMMIT.get().unwrap_or(&"unknown"),
        env!("BITNET_TARGET"),
    )
}
