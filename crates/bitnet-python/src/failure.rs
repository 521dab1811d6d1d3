//! Failures as `bitnet_toolchain.BitnetError`.
//!
//! Invariant: code, message and hint are those that the programs print.

use bitnet_cli::Failure;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;
use std::any::Any;

static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();

/// A failure as the exception.
pub fn raised(py: Python<'_>, failure: &Failure) -> PyErr {
    let hint = (!failure.hints.is_empty()).then(|| failure.hints.join("; "));
    error(py, failure.code.as_str(), &failure.message, hint.as_deref())
}

/// A request that makes no sense.
pub fn usage(py: Python<'_>, message: &str, hint: Option<&str>) -> PyErr {
    error(py, "usage", message, hint)
}

/// A panic of the library as the exception.
pub fn panicked(py: Python<'_>, panic: &(dyn Any + Send)) -> PyErr {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    let message = format!("the library failed: {}", text.unwrap_or("no reason"));
    let hint = "report this as a bug, with the call and the model";
    error(py, "internal", &message, Some(hint))
}

fn error(py: Python<'_>, code: &str, message: &str, hint: Option<&str>) -> PyErr {
    let class = CLASS.import(py, "bitnet_toolchain._errors", "BitnetError");
    match class.and_then(|class| class.call1((code, message, hint))) {
        Ok(instance) => PyErr::from_value(instance),
        Err(error) => error,
    }
}
