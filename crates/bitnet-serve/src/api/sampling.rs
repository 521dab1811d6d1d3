//! Fields that every kind of generation has.
//!
//! Invariant: a field means what the flag of `bitnet-run` with its name means, and an absent field what an absent flag means:
//! without fields for sampling the likeliest token is taken.

use super::error::ApiError;
use super::fields::{Fields, short};
use super::service::Service;
use bitnet_model::{LogitOptions, SamplerOptions};
use serde_json::Value;

/// Most stop strings.
pub(crate) const MOST_STOPS: usize = 64;
/// Most bytes of a stop string.
const MOST_STOP_BYTES: usize = 4096;
/// Most texts for one prompt.
pub(crate) const MOST_CHOICES: u64 = 128;

/// How texts are drawn, and where they end.
#[derive(Debug)]
pub(crate) struct Sampling {
    pub sampler: Option<SamplerOptions>,
    pub logits: LogitOptions,
    pub stops: Vec<String>,
    pub stop_tokens: Vec<u32>,
    pub ignore_eos: bool,
    pub choices: usize,
}

impl Sampling {
    /// Takes the fields.
    pub(crate) fn take(fields: &mut Fields, service: &Service) -> Result<Self, ApiError> {
        let vocab = service.vocab();
        let temperature = fields.number("temperature", 0.0, f64::INFINITY)?;
        let top_k = top_k(fields)?;
        let top_p = fields.number("top_p", 0.0, 1.0)?;
        let min_p = fields.number("min_p", 0.0, 1.0)?;
        let seed = fields.whole("seed", 0, u64::MAX)?;
        // without a draw there is nothing that a seed could change
        let draws = temperature != Some(0.0);
        let sampled = temperature.is_some()
            || top_k.is_some()
            || top_p.is_some()
            || min_p.is_some()
            || seed.is_some();
        let defaults = SamplerOptions::default();
        let sampler = (sampled && draws).then(|| SamplerOptions {
            temperature: temperature.unwrap_or(defaults.temperature),
            top_k: top_k.unwrap_or(defaults.top_k),
            top_p: top_p.unwrap_or(defaults.top_p),
            min_p: min_p.unwrap_or(defaults.min_p),
            seed: seed.unwrap_or_else(|| service.seed()),
        });
        let choices = fields.whole("n", 1, MOST_CHOICES)?.unwrap_or(1) as usize;
        Ok(Self {
            sampler,
            logits: LogitOptions {
                repetition_penalty: fields
                    .number("repetition_penalty", 0.01, 100.0)?
                    .unwrap_or(1.0),
                presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
                frequency_penalty: fields
                    .number("frequency_penalty", -2.0, 2.0)?
                    .unwrap_or(0.0),
                bias: bias(fields, vocab)?,
            },
            stops: stops(fields)?,
            stop_tokens: match fields.take("stop_token_ids") {
                None => Vec::new(),
                Some(value) => tokens(&value, vocab)
                    .ok_or_else(|| ApiError::field("stop_token_ids", "expected token ids"))?,
            },
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            choices,
        })
    }
}

/// -1 and 0 both mean all tokens.
fn top_k(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.take("top_k") {
        None => Ok(None),
        Some(value) if value.as_i64() == Some(-1) => Ok(Some(0)),
        Some(value) => match value.as_u64().and_then(|k| usize::try_from(k).ok()) {
            Some(k) => Ok(Some(k)),
            None => Err(ApiError::field(
                "top_k",
                format!("expected a whole number from 0 on, found {}", short(&value)),
            )),
        },
    }
}

fn bias(fields: &mut Fields, vocab: usize) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = fields.object("logit_bias")? else {
        return Ok(Vec::new());
    };
    let entry = |(id, bias): (&String, &Value)| {
        let id: u32 = id.parse().ok().filter(|id| (*id as usize) < vocab)?;
        let bias = bias
            .as_f64()
            .filter(|bias| (-100.0..=100.0).contains(bias))?;
        Some((id, bias as f32))
    };
    map.iter()
        .map(|pair| {
            entry(pair).ok_or_else(|| {
                ApiError::field(
                    "logit_bias",
                    format!(
                        "expected token ids below {vocab} with numbers from -100 to 100, found {}: {}",
                        short(&Value::String(pair.0.clone())),
                        short(pair.1)
                    ),
                )
            })
        })
        .collect()
}

fn stops(fields: &mut Fields) -> Result<Vec<String>, ApiError> {
    let refused = || {
        ApiError::field(
            "stop",
            format!(
                "expected a string or up to {MOST_STOPS} strings of 1 to {MOST_STOP_BYTES} bytes"
            ),
        )
    };
    let list = match fields.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if list.len() > MOST_STOPS {
        return Err(refused());
    }
    list.into_iter()
        .map(|stop| match stop {
            Value::String(text) if (1..=MOST_STOP_BYTES).contains(&text.len()) => Ok(text),
            _ => Err(refused()),
        })
        .collect()
}

/// A list of token ids.
pub(crate) fn tokens(value: &Value, vocab: usize) -> Option<Vec<u32>> {
    let id = |value: &Value| {
        let id = u32::try_from(value.as_u64()?).ok()?;
        ((id as usize) < vocab).then_some(id)
    };
    value.as_array()?.iter().map(id).collect()
}

/// How an answer is sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Streaming {
    pub stream: bool,
    pub usage: bool,
}

impl Streaming {
    /// Takes the fields.
    pub(crate) fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let mut usage = false;
        if let Some(options) = fields.take("stream_options") {
            let mut options = Fields::inside("stream_options", options)?;
            usage = options.boolean("include_usage")?.unwrap_or(false);
            options.boolean("include_obfuscation")?;
            options.finish(false)?;
        }
        Ok(Self { stream, usage })
    }
}
