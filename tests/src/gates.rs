//! The gates: how close to Hugging Face transformers an implementation has to come.
//!
//! Invariant: one set of thresholds (`formats/numerics.md`, "Gates"), applied alike to the runtime
//! and to the oracle. Both come as closures, so nothing here knows how anything is computed.
//!
//! Activation rounding is a step function: a difference in the last bit of a norm flips an int8 now and
//! then, and a flip moves its token by about 1e-3. Elementwise tolerances on logits are therefore wrong;
//! the gates start from recorded inputs instead and end with distributions.

use crate::golden::{Golden, Prompt, Tensor, linear_slot};
use bitnet_model::Slot;
use bitnet_ternary::{Scales, TernaryMatrix};
use sha2::{Digest, Sha256};
use std::fmt;

/// Gate 1: absmean scales may differ by this many ulp, the order of summing is free.
pub const ABSMEAN_ULP: u32 = 4;
/// Gate 2: relative error (norm) of one linear from its recorded input.
pub const LINEAR: f64 = 1e-6;
/// Gate 3: relative error (norm) of most layers from their recorded input.
pub const MOST_LAYERS: f64 = 2e-6;
/// Gate 3: of any layer (a flip happened).
pub const ANY_LAYER: f64 = 2e-2;
/// Gate 4: mean KL divergence from the f32 golden, nats.
pub const MEAN_KL: f64 = 2e-3;
/// Gate 4: share of positions with the same likeliest token.
pub const TOP1: f64 = 0.96;
/// Gate 4: golden margin above which the likeliest token must be the same.
pub const MARGIN: f64 = 0.3;
/// Gate 5: mean negative log likelihood of the stream.
pub const NLL: f64 = 0.02;

/// What an implementation answers; errors as text.
pub type Answer = Result<Vec<f32>, String>;

/// Gate 1 for one linear: codes and scale are those of `ternary.json`.
///
/// # Errors
/// What differs.
pub fn ternary(truth: &crate::golden::TernaryTruth, matrix: &TernaryMatrix) -> Result<(), String> {
    let name = &truth.name;
    if truth.shape[..] != [matrix.rows(), matrix.cols()] {
        let found = (matrix.rows(), matrix.cols());
        return Err(format!(
            "{name}: expected shape {:?}, found {found:?}",
            truth.shape
        ));
    }
    let codes: Vec<u8> = matrix.trits().iter().map(|t| *t as u8).collect();
    let sha256 = hex(&Sha256::digest(&codes));
    if sha256 != truth.sha256 {
        return Err(format!(
            "{name}: expected codes {}, found {sha256}",
            truth.sha256
        ));
    }
    let Scales::PerTensor(alpha) = matrix.scales() else {
        return Err(format!(
            "{name}: expected one scale, found {}",
            matrix.scales().structure()
        ));
    };
    let ulp = alpha.to_bits().abs_diff(truth.alpha.to_bits());
    if ulp > if truth.alpha_is_exact { 0 } else { ABSMEAN_ULP } {
        return Err(format!(
            "{name}: expected alpha {:e}, found {alpha:e}: {ulp} ulp",
            truth.alpha
        ));
    }
    Ok(())
}

/// Gate 2, measured: relative error of each linear of the trace.
///
/// # Errors
/// If the implementation fails.
pub fn linears(
    golden: &Golden,
    mut linear: impl FnMut(Slot, &[f32], usize) -> Answer,
) -> Result<Vec<(Slot, f64)>, String> {
    let mut errors = Vec::new();
    for (name, input) in &golden.trace {
        // `layer0.self_attn.q_proj.in`; norms have the same form and are no linears
        let Some(path) = name
            .strip_prefix("layer0.")
            .and_then(|n| n.strip_suffix(".in"))
        else {
            continue;
        };
        let Some(slot) = linear_slot(&format!("layers.0.{path}")) else {
            continue;
        };
        let want = recorded(golden, &format!("layer0.{path}.out"))?;
        let got = linear(slot, &input.data, input.rows_cols().0)?;
        errors.push((slot, relative(&want.data, &got)?));
    }
    Ok(errors)
}

/// Gate 3, measured: relative error of each layer, from the recorded hidden state in front of it to
/// the one behind it (behind the last layer: what the final norm was given).
///
/// # Errors
/// If the implementation fails.
pub fn layers(
    golden: &Golden,
    mut layer: impl FnMut(usize, &[f32], usize) -> Answer,
) -> Result<Vec<f64>, String> {
    let count = (0..)
        .take_while(|i| golden.trace.contains_key(&format!("hidden_states.{i}")))
        .count();
    (0..count.saturating_sub(1))
        .map(|i| {
            let input = recorded(golden, &format!("hidden_states.{i}"))?;
            let last = i + 2 == count;
            let behind = if last {
                "final_norm.in".to_owned()
            } else {
                format!("hidden_states.{}", i + 1)
            };
            let want = recorded(golden, &behind)?;
            relative(&want.data, &layer(i, &input.data, input.rows_cols().0)?)
        })
        .collect()
}

/// How far one set of logits is from the golden one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Distance {
    /// Positions compared.
    pub positions: usize,
    /// Mean of KL(golden || other) over positions, nats.
    pub kl_mean: f64,
    /// Largest KL.
    pub kl_max: f64,
    /// Root mean square of the logit differences.
    pub rms: f64,
    /// Largest logit difference.
    pub max_abs: f64,
    /// Share of positions with the same likeliest token.
    pub top1: f64,
    /// Share of positions with a logit difference above 1e-4: those that a flip has reached.
    pub reached: f64,
    /// Largest golden margin (first minus second logit) of a position whose likeliest token differs.
    pub flipped_margin: f64,
}

/// Compares pairs of (golden, other) logits, `(positions, vocab)` each.
///
/// # Errors
/// If lengths differ.
pub fn distance<'a>(
    pairs: impl IntoIterator<Item = (&'a Tensor, &'a [f32])>,
) -> Result<Distance, String> {
    let mut d = Distance {
        positions: 0,
        kl_mean: 0.0,
        kl_max: 0.0,
        rms: 0.0,
        max_abs: 0.0,
        top1: 0.0,
        reached: 0.0,
        flipped_margin: 0.0,
    };
    let mut elements = 0;
    for (golden, other) in pairs {
        let (_, vocab) = golden.rows_cols();
        if golden.data.len() != other.len() {
            return Err(format!(
                "expected {} logits, found {}",
                golden.data.len(),
                other.len()
            ));
        }
        for (a, b) in golden
            .data
            .chunks_exact(vocab)
            .zip(other.chunks_exact(vocab))
        {
            let (la, lb) = (log_softmax(a), log_softmax(b));
            let kl: f64 = la.iter().zip(&lb).map(|(a, b)| a.exp() * (a - b)).sum();
            d.kl_mean += kl;
            d.kl_max = d.kl_max.max(kl);
            if kl.is_nan() {
                d.kl_max = f64::NAN;
            }
            let mut worst = 0.0;
            for (a, b) in a.iter().zip(b) {
                let error = f64::from(*a) - f64::from(*b);
                d.rms += error * error;
                worst = error.abs().max(worst);
            }
            d.max_abs = d.max_abs.max(worst);
            d.reached += f64::from(u8::from(worst > 1e-4));
            if argmax(a) == argmax(b) {
                d.top1 += 1.0;
            } else {
                d.flipped_margin = d.flipped_margin.max(margin(a));
            }
            d.positions += 1;
            elements += vocab;
        }
    }
    d.kl_mean /= d.positions as f64;
    d.top1 /= d.positions as f64;
    d.reached /= d.positions as f64;
    d.rms = (d.rms / elements as f64).sqrt();
    Ok(d)
}

/// Gate 4, measured.
#[derive(Debug, Clone, PartialEq)]
pub struct EndToEnd {
    /// From the f32 golden logits.
    pub ours: Distance,
    /// Of the golden logits in the checkpoint's own dtype from the f32 ones, on the same prompts.
    pub native: Option<Distance>,
    /// Prompt and step of greedy tokens that differ although all margins so far are at least
    /// [`MARGIN`].
    pub greedy: Vec<(String, usize)>,
    /// Greedy steps compared.
    pub greedy_steps: usize,
}

/// Gate 4: all prompts, all positions, and greedy continuations up to the first small margin.
///
/// # Errors
/// If the implementation fails.
pub fn end_to_end(
    golden: &Golden,
    mut logits: impl FnMut(&[u32]) -> Answer,
) -> Result<EndToEnd, String> {
    let with_logits = || {
        golden
            .prompts
            .iter()
            .filter_map(|p| p.logits.as_ref().map(|l| (p, l)))
    };
    let mut answers = Vec::new();
    for (prompt, _) in with_logits() {
        answers.push(logits(&prompt.ids).map_err(|e| format!("prompt {}: {e}", prompt.name))?);
    }
    let ours = distance(
        with_logits()
            .zip(&answers)
            .map(|((_, golden), ours)| (golden, &ours[..])),
    )?;
    let native: Vec<(&Tensor, &[f32])> = with_logits()
        .filter_map(|(p, golden)| {
            p.native_logits
                .as_ref()
                .map(|native| (golden, &native.data[..]))
        })
        .collect();
    let native = if native.is_empty() {
        None
    } else {
        Some(distance(native)?)
    };

    let (mut greedy, mut greedy_steps) = (Vec::new(), 0);
    for (prompt, golden) in with_logits() {
        let Prompt {
            name,
            ids,
            greedy: want,
            greedy_margins,
            ..
        } = prompt;
        let steps = greedy_margins
            .iter()
            .take_while(|m| **m >= MARGIN)
            .count()
            .min(want.len());
        if steps == 0 {
            continue;
        }
        // as long as the tokens agree, continuing the golden tokens is continuing our own
        let text: Vec<u32> = ids.iter().chain(&want[..steps - 1]).copied().collect();
        let (_, vocab) = golden.rows_cols();
        let all = logits(&text).map_err(|e| format!("prompt {name}, continued: {e}"))?;
        let rows = all.chunks_exact(vocab).skip(ids.len() - 1);
        let wrong = rows
            .zip(want)
            .position(|(row, want)| argmax(row) != *want as usize);
        greedy.extend(wrong.map(|step| (name.clone(), step)));
        greedy_steps += steps;
    }
    Ok(EndToEnd {
        ours,
        native,
        greedy,
        greedy_steps,
    })
}

/// Gate 5, measured: mean negative log likelihood of the stream, ours minus golden.
///
/// # Errors
/// If the implementation fails.
pub fn nll_shift(golden: &Golden, mut logits: impl FnMut(&[u32]) -> Answer) -> Result<f64, String> {
    let stream = &golden.stream;
    let all = logits(stream)?;
    let vocab = all.len() / stream.len().max(1);
    let scored = stream.len().saturating_sub(1);
    let sum: f64 = all
        .chunks_exact(vocab.max(1))
        .zip(stream.iter().skip(1))
        .map(|(row, next)| -log_softmax(row)[*next as usize])
        .sum();
    Ok(sum / scored as f64 - golden.stream_nll)
}

/// Gates 2 to 5 of one implementation on one family.
#[derive(Debug, Clone)]
pub struct Report {
    /// Gate 2.
    pub linears: Vec<(Slot, f64)>,
    /// Gate 3.
    pub layers: Vec<f64>,
    /// Gate 4.
    pub end_to_end: EndToEnd,
    /// Gate 5.
    pub nll_shift: f64,
}

/// Measures gates 2 to 5.
///
/// # Errors
/// If the implementation fails.
pub fn measure(
    golden: &Golden,
    linear: impl FnMut(Slot, &[f32], usize) -> Answer,
    layer: impl FnMut(usize, &[f32], usize) -> Answer,
    mut logits: impl FnMut(&[u32]) -> Answer,
) -> Result<Report, String> {
    Ok(Report {
        linears: linears(golden, linear)?,
        layers: layers(golden, layer)?,
        end_to_end: end_to_end(golden, &mut logits)?,
        nll_shift: nll_shift(golden, &mut logits)?,
    })
}

impl Report {
    /// Every gate that does not hold, one line each.
    pub fn violations(&self) -> Vec<String> {
        let mut all = Vec::new();
        // written so that NaN violates
        let mut holds = |ok: bool, what: String| {
            if !ok {
                all.push(what);
            }
        };
        for (slot, error) in &self.linears {
            holds(
                *error <= LINEAR,
                format!("gate 2: {slot}: relative error {error:.2e} > {LINEAR:e}"),
            );
        }
        let close = self.layers.iter().filter(|e| **e <= MOST_LAYERS).count();
        holds(
            2 * close > self.layers.len() || self.layers.is_empty(),
            format!(
                "gate 3: {close} of {} layers within {MOST_LAYERS:e}",
                self.layers.len()
            ),
        );
        for (layer, error) in self.layers.iter().enumerate() {
            holds(
                *error <= ANY_LAYER,
                format!("gate 3: layer {layer}: relative error {error:.2e} > {ANY_LAYER:e}"),
            );
        }
        let EndToEnd {
            ours,
            native,
            greedy,
            ..
        } = &self.end_to_end;
        holds(ours.positions > 0, "gate 4: no golden logits".to_owned());
        holds(
            ours.kl_mean <= MEAN_KL,
            format!("gate 4: mean KL {:.2e} > {MEAN_KL:e}", ours.kl_mean),
        );
        holds(
            ours.top1 >= TOP1,
            format!("gate 4: top-1 {:.4} < {TOP1}", ours.top1),
        );
        holds(
            ours.flipped_margin < MARGIN,
            format!(
                "gate 4: a token of margin {:.3} differs",
                ours.flipped_margin
            ),
        );
        if let Some(native) = native {
            holds(
                ours.kl_mean < native.kl_mean || ours.rms < native.rms,
                format!(
                    "gate 4: the native dtype is closer: KL {:.2e} and {:.2e}, rms {:.2e} and {:.2e}",
                    ours.kl_mean, native.kl_mean, ours.rms, native.rms
                ),
            );
        }
        for (prompt, step) in greedy {
            holds(
                false,
                format!("gate 4: greedy token {step} of prompt {prompt} differs"),
            );
        }
        holds(
            self.nll_shift.abs() <= NLL,
            format!("gate 5: mean nll shifts by {:+.2e}", self.nll_shift),
        );
        all
    }

    /// Column titles of [`Display`](fmt::Display).
    pub const TITLES: &'static str = "| linears, worst | layers, each | mean KL | KL of native | top-1 | reached by flips | max logit | greedy | nll shift |";
}

impl fmt::Display for Report {
    /// One row of a Markdown table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let worst = self.linears.iter().map(|(_, e)| *e).fold(0.0, f64::max);
        let layers: Vec<String> = self.layers.iter().map(|e| format!("{e:.1e}")).collect();
        let EndToEnd {
            ours,
            native,
            greedy,
            greedy_steps,
        } = &self.end_to_end;
        write!(
            f,
            "| {worst:.1e} | {} | {:.1e} | {} | {:.4} | {:.2} | {:.1e} | {}/{greedy_steps} | {:+.1e} |",
            layers.join(" "),
            ours.kl_mean,
            native.map_or("-".to_owned(), |n| format!("{:.1e}", n.kl_mean)),
            ours.top1,
            ours.reached,
            ours.max_abs,
            greedy_steps - greedy.len(),
            self.nll_shift
        )
    }
}

fn recorded<'a>(golden: &'a Golden, name: &str) -> Result<&'a Tensor, String> {
    golden
        .trace
        .get(name)
        .ok_or_else(|| format!("trace: no `{name}`"))
}

/// `|got - want| / |want|`, Euclidean.
fn relative(want: &[f32], got: &[f32]) -> Result<f64, String> {
    if want.len() != got.len() {
        return Err(format!(
            "expected {} values, found {}",
            want.len(),
            got.len()
        ));
    }
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let error = norm(
        &mut want
            .iter()
            .zip(got)
            .map(|(a, b)| f64::from(*a) - f64::from(*b)),
    );
    let size = norm(&mut want.iter().map(|v| f64::from(*v)));
    Ok(if error == 0.0 { 0.0 } else { error / size })
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = || logits.iter().map(|l| f64::from(*l) - f64::from(max));
    let log_sum = shifted().map(f64::exp).sum::<f64>().ln();
    shifted().map(|l| l - log_sum).collect()
}

fn argmax(logits: &[f32]) -> usize {
    let best = logits
        .iter()
        .enumerate()
        .reduce(|best, x| if x.1 > best.1 { x } else { best });
    best.map_or(0, |(i, _)| i)
}

/// Largest minus second largest.
fn margin(logits: &[f32]) -> f64 {
    let best = argmax(logits);
    let others = logits
        .iter()
        .enumerate()
        .filter(|(i, _)| *i != best)
        .map(|(_, l)| *l);
    let second = others.fold(f32::NEG_INFINITY, f32::max);
    f64::from(logits[best]) - f64::from(second)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
