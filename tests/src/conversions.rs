//! Fixtures converted, and the certificates beside them.
//!
//! Invariant: a conversion that is refused says that the target cannot hold the source, or the test fails.

use crate::fixtures::Fixture;
use crate::program::run;
use bitnet_cli::ExitStatus;
use bitnet_convert::Target;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// Converts into `dir`; `None` when the target cannot hold the source, which it has to say.
///
/// # Panics
/// If it fails for another reason, or loses something.
pub fn convert(source: &Fixture, target: &Target, dir: &Path) -> Option<PathBuf> {
    let suffix = match target.name.starts_with("gguf") {
        true => ".gguf",
        false => "",
    };
    let out = dir.join(format!("{}.{}{suffix}", source.name, target.name));
    let mut args: Vec<OsString> = vec![source.checkpoint.clone().into(), "-o".into()];
    args.extend([out.clone().into(), "--to".into(), target.name.into()]);
    args.push("--json".into());
    if source.ternary_trained() {
        args.push("--ternary-trained".into());
    }
    let ran = run(bitnet_convert::run, args);
    let json = ran.json();
    if ran.status == ExitStatus::Done {
        assert_eq!(json["lossless"], true, "{}: {json}", out.display());
        return Some(out);
    }
    let code = json["error"]["code"].as_str().unwrap_or_default();
    let (name, to) = (&source.name, target.name);
    let refused = matches!(code, "scale-rounding" | "target-cannot-hold");
    assert!(refused, "{name} to {to}: {json}");
    None
}

/// Where `bitnet-convert` leaves the certificate of an output.
pub fn certificate_of(output: &Path) -> PathBuf {
    if output.is_dir() {
        return output.join("certificate.json");
    }
    let mut name = output.as_os_str().to_owned();
    name.push(".certificate.json");
    name.into()
}
