//! The native part of the Python package `bitnet_toolchain`.
//!
//! Invariant: every function of this crate calls the library that the programs call; it computes nothing itself. A
//! failure, a panic and a wrong argument are Python exceptions. No function holds the interpreter while it works.

mod checkpoint;
mod failure;
mod model;
mod process;
mod program;
mod stream;
mod work;

use pyo3::prelude::*;

/// The native part of `bitnet_toolchain`.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    bitnet_cli::set_commit(bitnet_commit::commit!());
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(program::call, module)?)?;
    module.add_function(wrap_pyfunction!(program::main, module)?)?;
    module.add_class::<model::Model>()?;
    module.add_class::<stream::Pieces>()?;
    module.add_class::<checkpoint::Checkpoint>()
}
