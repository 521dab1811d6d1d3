//! `bitnet-run kernels`: what this build has and what this CPU runs.
//!
//! Invariant: lists the same table that chooses.

use bitnet_cli::{Console, ExitStatus, Failure, Table};
use bitnet_kernels::{Backend, KERNELS};
use serde_json::json;

pub fn run(console: &mut Console<'_>) -> Result<ExitStatus, Failure> {
    let chosen = Backend::best().name();
    let mut table = Table::new(&["kernel", "available", "chosen", "reason"]);
    let mut rows = Vec::new();
    for kernel in KERNELS {
        let available = (kernel.is_available)();
        let reason = match (available, kernel.requires) {
            (true, "" | "nothing") => "runs everywhere".to_owned(),
            (true, requires) => format!("this CPU has {requires}"),
            (false, requires) => format!(
                "skipped: needs {requires}; this machine lacks {}",
                (kernel.missing)().join(", ")
            ),
        };
        let yes = |b: bool| if b { "yes" } else { "no" }.to_owned();
        table.row([
            kernel.name.to_owned(),
            yes(available),
            yes(kernel.name == chosen),
            reason.clone(),
        ]);
        rows.push(json!({
            "name": kernel.name, "available": available, "chosen": kernel.name == chosen, "reason": reason,
        }));
    }
    console.line(&table)?;
    console.json(&json!({ "kernels": rows }))?;
    Ok(ExitStatus::Done)
}
