//! Gate 4 of embedding models: the vectors of whole texts.

use super::answer::Answer;
use crate::reference::golden::Golden;
use crate::reference::thresholds::Thresholds;
use crate::verdict::Difference;
use bitnet_formats::FormatError;
use std::collections::BTreeMap;

/// Gate 4, measured: how far each vector is from the recorded one.
#[derive(Debug, Clone, Default)]
pub struct Embeddings {
    /// From the f32 golden vectors.
    pub ours: Vec<Distance>,
    /// Of the golden vectors in the checkpoint's own 16-bit type from the f32 ones.
    pub native: Vec<Distance>,
}

/// Two vectors of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Distance {
    /// The prompt.
    pub prompt: String,
    /// 1 less the cosine of the angle between them; NaN for vectors of different widths.
    pub one_less_cosine: f64,
    /// The largest difference of two elements.
    pub max_abs: f64,
}

impl Distance {
    fn of(prompt: &str, expected: &[f32], found: &[f32]) -> Self {
        let wide = |x: &[f32]| -> Vec<f64> { x.iter().map(|v| f64::from(*v)).collect() };
        let (e, f) = (wide(expected), wide(found));
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let cosine = match e.len() == f.len() {
            true => dot(&e, &f) / (dot(&e, &e) * dot(&f, &f)).sqrt(),
            false => f64::NAN,
        };
        let apart = e.iter().zip(&f).map(|(e, f)| (e - f).abs());
        Self {
            prompt: prompt.to_owned(),
            one_less_cosine: 1.0 - cosine,
            max_abs: apart.fold(0.0, f64::max),
        }
    }
}

/// Gate 4, measured; `embed` answers the vector of a sequence.
///
/// # Errors
/// Those of the implementation.
pub fn embeddings(
    golden: &Golden,
    mut embed: impl FnMut(&[u32]) -> Answer,
) -> Result<Embeddings, FormatError> {
    let mut measured = Embeddings::default();
    let of = |vectors: &BTreeMap<String, Vec<f32>>, name: &str| vectors.get(name).cloned();
    for prompt in &golden.prompts {
        let Some(expected) = of(&golden.embeddings, &prompt.name) else {
            continue;
        };
        let found = embed(&prompt.ids).map_err(|e| e.in_tensor(&prompt.name))?;
        let distance = Distance::of(&prompt.name, &expected, &found);
        measured.ours.push(distance);
        if let Some(native) = of(&golden.native_embeddings, &prompt.name) {
            let distance = Distance::of(&prompt.name, &expected, &native);
            measured.native.push(distance);
        }
    }
    Ok(measured)
}

impl Embeddings {
    /// Gate 4, judged: every angle within the bound, and on average closer than the native type is.
    pub fn violations(&self, bounds: &Thresholds) -> Vec<Difference> {
        let most = bounds.embedding_distance;
        let outside = |d: &&Distance| d.one_less_cosine > most || d.one_less_cosine.is_nan();
        let far = self.ours.iter().filter(outside);
        let mut all: Vec<_> = far
            .map(|d| {
                let what = format!(
                    "1 - cosine {:.2e}, expected at most {most:.0e}",
                    d.one_less_cosine
                );
                Difference::new(&d.prompt, what)
            })
            .collect();
        let (ours, native) = (mean(&self.ours), mean(&self.native));
        if !self.native.is_empty() && (ours > native || ours.is_nan()) {
            let what = format!(
                "mean 1 - cosine {ours:.2e}, expected less than the 16-bit reference's {native:.2e}"
            );
            all.push(Difference::new("embeddings", what));
        }
        all
    }

    /// Figures on one line.
    pub fn summary(&self) -> String {
        let worst = |of: fn(&Distance) -> f64| self.ours.iter().map(of).fold(0.0, f64::max);
        let native = match self.native.is_empty() {
            true => String::new(),
            false => format!("; 16-bit reference mean {:.1e}", mean(&self.native)),
        };
        format!(
            "{} vectors, 1 - cosine mean {:.1e}, largest {:.1e}, elements within {:.1e}{native}",
            self.ours.len(),
            mean(&self.ours),
            worst(|d| d.one_less_cosine),
            worst(|d| d.max_abs)
        )
    }
}

fn mean(distances: &[Distance]) -> f64 {
    let sum: f64 = distances.iter().map(|d| d.one_less_cosine).sum();
    sum / distances.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn angles_are_judged_and_other_widths_never_pass() {
        let bounds = Thresholds::default();
        let judged = |expected: &[f32], found: &[f32]| {
            let ours = vec![Distance::of("p", expected, found)];
            let native = Vec::new();
            Embeddings { ours, native }.violations(&bounds).len()
        };
        assert_eq!(judged(&[0.6, 0.8], &[0.6, 0.8]), 0);
        assert_eq!(judged(&[0.6, 0.8], &[0.8, 0.6]), 1);
        assert_eq!(judged(&[0.6, 0.8], &[0.6]), 1);
        assert_eq!(judged(&[0.6, 0.8], &[f32::NAN, 0.8]), 1);
        assert_eq!(judged(&[0.6, 0.8], &[0.0, 0.0]), 1);
    }
}
