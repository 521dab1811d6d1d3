//! `bitnet-run perplexity`: how well the model predicts a text.
//!
//! Invariant: the text is cut into windows of `--ctx` tokens that do not overlap; every token of a
//! window but its first is predicted from those before it, once. Sums are f64.

use crate::args::Perplexity as PerplexityArgs;
use crate::{open, prompts};
use bitnet_cli::{Console, ExitStatus, Failure, GlobalArgs, fixed};
use bitnet_formats::Limits;
use bitnet_model::Logits;
use serde_json::json;

/// Window when neither flag nor model says less; what the field's published figures use.
const DEFAULT_WINDOW: usize = 512;

pub fn run(
    args: &PerplexityArgs,
    global: &GlobalArgs,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    let text = prompts::whole_file(&args.file, Limits::default().text_bytes)?;
    let threads = global.thread_count();
    let loaded = open::predictor(&args.model.model, &args.model.compute, threads)?;
    open::announce(console, &loaded)?;
    let open::Loaded { checkpoint, model } = loaded;
    let ids = open::tokenizer(&checkpoint)?.encode(&text, true)?;
    let most = model.config().max_position_embeddings;
    let window = args.ctx.unwrap_or(DEFAULT_WINDOW.min(most));
    if window < 2 || window > most {
        return Err(Failure::usage(format!(
            "--ctx: expected 2 to {most} tokens, found {window}"
        )));
    }
    if ids.len() < 2 {
        return Err(Failure::usage(format!(
            "{}: expected at least 2 tokens, found {}",
            args.file.display(),
            ids.len()
        )));
    }
    let vocab = model.config().vocab_size;
    let (mut sum, mut squares, mut count) = (0f64, 0f64, 0usize);
    for part in ids.chunks(window).filter(|p| p.len() > 1) {
        let mut session = model.session(part.len())?;
        let logits = model.forward(&mut session, part, Logits::All)?;
        for (row, &next) in logits.chunks_exact(vocab).zip(&part[1..]) {
            let nll = negative_log_likelihood(row, next);
            sum += nll;
            squares += nll * nll;
            count += 1;
        }
        console.note(format!(
            "{count} tokens, perplexity so far {:.4}",
            (sum / count as f64).exp()
        ))?;
    }
    checkpoint.check_inputs()?;
    let n = count as f64;
    let mean = sum / n;
    // standard error of the mean, carried through exp to first order
    let deviation = if count > 1 {
        ((squares / n - mean * mean).max(0.0) / (n - 1.0)).sqrt()
    } else {
        0.0
    };
    let perplexity = mean.exp();
    console.line(format!(
        "perplexity {perplexity:.4} +/- {:.4}",
        perplexity * deviation
    ))?;
    console.line(format!(
        "mean nll   {} +/- {deviation:.6} over {count} tokens, windows of {window}",
        fixed(mean, 6)
    ))?;
    console.json(&json!({
        "status": "computed", "perplexity": perplexity, "perplexity_standard_error": perplexity * deviation,
        "nll_mean": mean, "nll_standard_error": deviation, "tokens": count, "ctx": window,
        "kernel": model.backend().name(), "threads": global.thread_count(),
    }))?;
    Ok(ExitStatus::Done)
}

/// `-log softmax(logits)[token]` in f64.
fn negative_log_likelihood(logits: &[f32], token: u32) -> f64 {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
    let total: f64 = logits.iter().map(|&v| f64::from(v - max).exp()).sum();
    total.ln() - f64::from(logits[token as usize] - max)
}
