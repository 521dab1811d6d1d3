//! `/v1/embeddings`.
//!
//! Invariant: a vector is that of `bitnet-run embed`: with the model's prompt in front, its pooling and its length.

use super::error::ApiError;
use super::fields::Fields;
use super::sampling::tokens;
use super::service::Service;
use crate::engine::{Client, Embed, Event};
use bitnet_checkpoint::Pooling;
use bitnet_text::TextSettings;
use serde_json::{Value, json};
use std::sync::Arc;

/// Most texts of a request.
const MOST_TEXTS: usize = 2048;

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Embeddings {
    name: String,
    base64: bool,
    tokens: usize,
    vectors: Vec<Vec<f32>>,
}

/// Reads a request.
pub(crate) fn prepare(
    service: &Arc<Service>,
    body: Value,
    client: Client,
) -> Result<(Embed, Embeddings, Vec<String>), ApiError> {
    let mut fields = Fields::new(body)?;
    service.take_model(&mut fields)?;
    let config = service.engine.model().config();
    let width = config.hidden_size;
    fields.refuse("dimensions", &[json!(width)])?;
    let base64 = match fields.text("encoding_format")?.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(_) => {
            let message = "expected \"float\" or \"base64\"";
            return Err(ApiError::field("encoding_format", message));
        }
    };
    let settings = &config.embedding;
    let prompt = match fields.text("prompt_name")? {
        None => settings.default_prompt().unwrap_or_default().to_owned(),
        Some(name) => match settings.prompt(&name) {
            Some(text) => text.to_owned(),
            None => {
                let names: Vec<&str> = settings.prompts.iter().map(|(n, _)| n.as_str()).collect();
                let message = match names[..] {
                    [] => "the model has no prompts".to_owned(),
                    _ => format!("expected one of: {}", names.join(", ")),
                };
                return Err(ApiError::field("prompt_name", message));
            }
        },
    };
    let input = fields.take("input");
    let ignored = fields.finish(service.lenient)?;
    let texts = read_input(service, input, &prompt)?;
    let answer = Embeddings {
        name: service.name.clone(),
        base64,
        tokens: texts.iter().map(|text| text.len()).sum(),
        vectors: vec![Vec::new(); texts.len()],
    };
    let request = Embed {
        client,
        texts,
        pooling: config.pooling.unwrap_or(Pooling::Last),
    };
    Ok((request, answer, ignored))
}

/// A text, token ids, or a list of either.
fn read_input(
    service: &Service,
    input: Option<Value>,
    prompt: &str,
) -> Result<Vec<Arc<[u32]>>, ApiError> {
    let refused = || {
        let message = format!(
            "expected a string, a list of strings, token ids or lists of them, up to {MOST_TEXTS} texts"
        );
        ApiError::field("input", message)
    };
    let inputs = match input {
        None => return Err(refused()),
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => {
            vec![Value::Array(list)]
        }
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if inputs.is_empty() || inputs.len() > MOST_TEXTS {
        return Err(refused());
    }
    let settings = TextSettings {
        prompt,
        max_seq_length: service.engine.model().config().embedding.max_seq_length,
    };
    inputs
        .into_iter()
        .map(|input| {
            let ids = match input {
                Value::String(text) => {
                    service.check_text(&text, "input")?;
                    settings.encode(service.tokenizer(), &text)?
                }
                ids => tokens(&ids, service.vocab()).ok_or_else(refused)?,
            };
            service.check_prompt(&ids, "input")?;
            Ok(ids.into())
        })
        .collect()
}

impl Embeddings {
    /// Takes an event.
    pub(crate) fn push(&mut self, event: &Event) {
        if let Event::Vector { index, vector } = event {
            self.vectors[*index].clone_from(vector);
        }
    }

    /// The answer.
    pub(crate) fn body(&self) -> Value {
        let rows = self.vectors.iter().enumerate().map(|(index, vector)| {
            let embedding = match self.base64 {
                true => json!(base64(vector)),
                false => numbers(vector),
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        });
        json!({
            "object": "list",
            "model": self.name,
            "data": rows.collect::<Vec<_>>(),
            "usage": {"prompt_tokens": self.tokens, "total_tokens": self.tokens},
        })
    }
}

/// The shortest decimals that read back as these f32.
fn numbers(vector: &[f32]) -> Value {
    let number = |v: &f32| {
        v.to_string()
            .parse::<f64>()
            .map_or(Value::Null, Value::from)
    };
    vector.iter().map(number).collect()
}

/// Little-endian f32 in base64.
fn base64(vector: &[f32]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for at in 0..4 {
            text.push(match at <= three.len() {
                true => char::from(LETTERS[(bits >> (18 - 6 * at)) as usize & 63]),
                false => '=',
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_little_endian_in_base64() {
        assert_eq!(base64(&[]), "");
        assert_eq!(base64(&[1.0]), "AACAPw==");
        assert_eq!(base64(&[1.0, -2.5]), "AACAPwAAIMA=");
        assert_eq!(base64(&[0.0, 1.0, 2.0]), "AAAAAAAAgD8AAABA");
        assert_eq!(numbers(&[0.1, 1.0]), json!([0.1, 1.0]));
    }
}
