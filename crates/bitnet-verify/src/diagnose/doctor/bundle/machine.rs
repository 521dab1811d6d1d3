//! What a report of a fault says of the program and the machine.
//!
//! Invariant: nothing names the user, the host or a path.

use bitnet_kernels::{Backend, KERNELS, cpu_features, cpu_model};
use serde_json::{Value, json};

/// The version, the commit, the target and the kernel, as `--version` says them.
pub(super) fn program() -> Value {
    let text = bitnet_cli::long_version(Backend::best().name());
    let mut lines = text.lines();
    let mut object = json!({
        "name": "bitnet-verify",
        "version": lines.next().unwrap_or_default(),
    });
    for (key, value) in lines.filter_map(|line| line.split_once(": ")) {
        object[key] = value.into();
    }
    object
}

/// The CPU, the system, and the kernels with the reason for each that is not available.
pub(super) fn of_this() -> Value {
    let kernel = |kernel: &bitnet_kernels::Kernel| {
        let available = (kernel.is_available)();
        let lacks = match available {
            true => Vec::new(),
            false => (kernel.missing)(),
        };
        json!({"name": kernel.name, "available": available, "lacks": lacks})
    };
    json!({
        "system": std::env::consts::OS,
        "architecture": std::env::consts::ARCH,
        "cpu": cpu_model(),
        "features": cpu_features(),
        "threads": std::thread::available_parallelism().map(usize::from).ok(),
        "kernels": KERNELS.iter().map(kernel).collect::<Value>(),
    })
}
