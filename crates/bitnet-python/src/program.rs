//! The programs as functions: called for their JSON object, or as the process.
//!
//! Invariant: a call gives exactly what the program prints with `--json`.

use crate::failure::usage;
use crate::work;
use bitnet_cli::ExitStatus;
use pyo3::prelude::*;
use std::ffi::OsString;
use std::io::Write;
use std::vec::IntoIter;

type Run = fn(IntoIter<OsString>, &mut dyn Write, &mut dyn Write) -> ExitStatus;

fn by_name(py: Python<'_>, program: &str) -> PyResult<Run> {
    match program {
        "bitnet-convert" => Ok(bitnet_convert::run),
        "bitnet-verify" => Ok(bitnet_verify::run),
        "bitnet-run" => Ok(bitnet_run::run),
        _ => Err(usage(py, &format!("no program `{program}`"), None)),
    }
}

/// Runs a program with these arguments. Gives its exit status and what it wrote to stdout.
#[pyfunction]
#[pyo3(signature = (program, arguments, progress=None))]
pub fn call(
    py: Python<'_>,
    program: &str,
    arguments: Vec<OsString>,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<(u8, String)> {
    let run = by_name(py, program)?;
    let name = OsString::from(program);
    let words: Vec<OsString> = [name].into_iter().chain(arguments).collect();
    work::run(py, progress, move |_| {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = run(words.into_iter(), &mut out, &mut err);
        (status.code(), String::from_utf8_lossy(&out).into_owned())
    })
}

/// Runs a program as this process: its streams, its signals. Gives its exit status.
#[pyfunction]
pub fn main(py: Python<'_>, program: &str, arguments: Vec<OsString>) -> PyResult<u8> {
    let run = by_name(py, program)?;
    let words = arguments.into_iter();
    Ok(py.detach(move || bitnet_cli::main_of(words, run)).code())
}
