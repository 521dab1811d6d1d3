//! Says for which target the programs are compiled.

use std::io::Write;

fn main() -> std::io::Result<()> {
    let target = std::env::var("TARGET").unwrap_or_default();
    let lines =
        format!("cargo::rerun-if-changed=build.rs\ncargo::rustc-env=BITNET_TARGET={target}\n");
    std::io::stdout().write_all(lines.as_bytes())
}
