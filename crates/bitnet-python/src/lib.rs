//! The native part of the Python package `bitnet_toolchain`.
//!
//! Invariant: every function of this crate calls the library that the programs call; it computes nothing itself.

use numpy as _;
use pyo3::prelude::*;

/// The native part of `bitnet_toolchain`.
#[pymodule]
fn _native(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
