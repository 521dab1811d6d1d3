//! An open checkpoint: names, trits and scales, numbers.
//!
//! Invariant: a checkpoint computes nothing and holds no tensor; each call reads what it gives.

use crate::failure::{raised, usage};
use crate::model::locate;
use crate::process::Owned;
use crate::work;
use bitnet_checkpoint::{HfStorage, OpenOptions, Slot};
use bitnet_cli::{Failure, Located};
use bitnet_ternary::Scales;
use numpy::{IntoPyArray, PyArray2, PyArrayDyn, PyArrayMethods};
use pyo3::prelude::*;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

struct Held {
    checkpoint: bitnet_checkpoint::Checkpoint,
    _located: Located,
}

/// An open checkpoint; `bitnet_toolchain.Checkpoint` explains it.
#[pyclass(module = "bitnet_toolchain._native", frozen)]
pub struct Checkpoint {
    held: Owned<RwLock<Option<Arc<Held>>>>,
}

/// A canonical name without `.weight`.
fn module(slot: Slot) -> String {
    let name = slot.to_string();
    match name.strip_suffix(".weight") {
        Some(module) => module.to_owned(),
        None => name,
    }
}

impl Held {
    /// The slot that a name means: the canonical one, or that of the file, with or without `.weight`.
    fn slot(&self, name: &str) -> Option<Slot> {
        let bare = name.strip_suffix(".weight").unwrap_or(name);
        let slots = self.checkpoint.slots();
        let is_named = |slot: &Slot| slot.to_string() == name || module(*slot) == bare;
        let in_file = |slot: &Slot| {
            let info = self.checkpoint.tensor_range(*slot);
            info.is_some_and(|info| {
                info.name == name || info.name.strip_suffix(".weight") == Some(bare)
            })
        };
        let mut all = slots.iter();
        let found = all.find(|slot| is_named(slot));
        found
            .or_else(|| slots.iter().find(|slot| in_file(slot)))
            .copied()
    }

    fn names(&self, wanted: impl Fn(Slot) -> bool) -> impl Iterator<Item = Slot> {
        let slots = self.checkpoint.slots().into_iter();
        slots
            .filter(|slot| wanted(*slot))
            .collect::<Vec<_>>()
            .into_iter()
    }
}

impl Checkpoint {
    fn held(&self, py: Python<'_>) -> PyResult<Arc<Held>> {
        let held = self.held.get(py)?;
        let held = held.read().unwrap_or_else(PoisonError::into_inner);
        let held = held.as_ref().map(Arc::clone);
        held.ok_or_else(|| usage(py, "the checkpoint is closed", Some("open it again")))
    }

    fn named(&self, py: Python<'_>, name: &str) -> PyResult<(Arc<Held>, Slot)> {
        let held = self.held(py)?;
        match held.slot(name) {
            Some(slot) => Ok((held, slot)),
            None => {
                let message = format!("this network has no tensor `{name}`");
                Err(usage(py, &message, Some("names() lists every tensor")))
            }
        }
    }
}

#[pymethods]
impl Checkpoint {
    #[new]
    fn new(
        py: Python<'_>,
        path: PathBuf,
        layout: Option<String>,
        ternary_trained: bool,
    ) -> PyResult<Self> {
        let options = OpenOptions {
            layout,
            ternary_trained,
            ..OpenOptions::default()
        };
        let held = work::run(py, None, move |_| {
            let located = locate(&path)?;
            let opened = located.path().to_owned();
            let checkpoint =
                bitnet_checkpoint::Checkpoint::open_with_evidence(&opened, &options, None)?;
            Ok::<_, Failure>(Held {
                checkpoint,
                _located: located,
            })
        })?;
        let held = held.map_err(|failure| raised(py, &failure))?;
        Ok(Self {
            held: Owned::new(RwLock::new(Some(Arc::new(held)))),
        })
    }

    /// Modules whose weights are trits.
    fn linears(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let held = self.held(py)?;
        let names = held.names(|slot| held.checkpoint.is_ternary(slot));
        Ok(names.map(module).collect())
    }

    /// Every tensor, by its canonical name.
    fn names(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let held = self.held(py)?;
        Ok(held.names(|_| true).map(|slot| slot.to_string()).collect())
    }

    /// `config.json` as text; of a GGUF file the one that a conversion would write.
    fn config_json(&self, py: Python<'_>) -> PyResult<String> {
        let held = self.held(py)?;
        let checkpoint = &held.checkpoint;
        Ok(match &checkpoint.config_json {
            Some(json) => json.to_string(),
            None => {
                let family = checkpoint.family;
                let storage = HfStorage::Dequantised;
                family
                    .hf_config_json(&checkpoint.config, None, storage)
                    .to_string()
            }
        })
    }

    /// The family of the network.
    #[getter]
    fn family(&self, py: Python<'_>) -> PyResult<&'static str> {
        Ok(self.held(py)?.checkpoint.family.name)
    }

    /// Trits `(rows, cols)` and scales, one or two dimensions.
    #[expect(clippy::type_complexity, reason = "a pair of arrays")]
    fn ternary<'py>(
        &self,
        py: Python<'py>,
        name: &str,
    ) -> PyResult<(Bound<'py, PyArray2<i8>>, Bound<'py, PyArrayDyn<f32>>)> {
        py.import("numpy")?;
        let (held, slot) = self.named(py, name)?;
        let matrix = work::run(py, None, move |_| held.checkpoint.ternary(slot))?;
        let matrix = matrix.map_err(|error| raised(py, &error.into()))?;
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let shape = match matrix.scales() {
            Scales::PerTensor(_) => vec![1],
            Scales::PerRow(_) => vec![rows, 1],
            Scales::PerGroup { group, .. } => vec![rows, cols / group],
        };
        let scales = matrix.scales().as_slice().to_vec();
        let trits = matrix.into_trits().into_pyarray(py).reshape([rows, cols])?;
        Ok((trits, scales.into_pyarray(py).reshape(shape)?))
    }

    /// The numbers of a tensor as f32; of a ternary one trits times scales.
    fn tensor<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        py.import("numpy")?;
        let (held, slot) = self.named(py, name)?;
        let read = work::run(py, None, move |_| match held.checkpoint.is_ternary(slot) {
            true => bitnet_convert::weights(&held.checkpoint, slot),
            false => bitnet_convert::dense_values(&held.checkpoint, slot),
        })?;
        let (shape, values) = read.map_err(|error| raised(py, &error.into()))?;
        values.into_pyarray(py).reshape(shape)
    }

    /// Canonical names with those of transformers.
    fn state_names(&self, py: Python<'_>) -> PyResult<Vec<(String, String)>> {
        let held = self.held(py)?;
        let names = bitnet_convert::state_names(&held.checkpoint);
        let names = names.map_err(|error| raised(py, &error.into()))?;
        Ok(names
            .into_iter()
            .map(|(slot, name)| (slot.to_string(), name))
            .collect())
    }

    /// The numbers of a tensor as transformers stores them.
    fn state_tensor<'py>(
        &self,
        py: Python<'py>,
        name: &str,
    ) -> PyResult<Bound<'py, PyArrayDyn<f32>>> {
        py.import("numpy")?;
        let (held, slot) = self.named(py, name)?;
        let read = work::run(py, None, move |_| {
            bitnet_convert::state_tensor(&held.checkpoint, slot, String::new())
        })?;
        let tensor = read.map_err(|error| raised(py, &error.into()))?;
        tensor.values.into_pyarray(py).reshape(tensor.shape)
    }

    /// Whether the checkpoint is closed.
    #[getter]
    fn closed(&self, py: Python<'_>) -> PyResult<bool> {
        let held = self.held.get(py)?.read();
        Ok(held.unwrap_or_else(PoisonError::into_inner).is_none())
    }

    /// Closes the files.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let held = self.held.get(py)?.write();
        let taken = held.unwrap_or_else(PoisonError::into_inner).take();
        py.detach(move || drop(taken));
        Ok(())
    }
}
