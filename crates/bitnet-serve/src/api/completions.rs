//! `/v1/completions`.
//!
//! Invariant: the text is what `bitnet-run -p` prints, the token ids are those of `--tokens`.

use super::answer::{DONE, Text, choice_of, data, usage};
use super::echo::Echo;
use super::error::ApiError;
use super::fields::Fields;
use super::sampling::{Sampling, Streaming, tokens};
use super::service::Service;
use crate::engine::{Client, Continuation, Event, Generate};
use serde_json::{Map, Value, json};
use std::ops::Range;
use std::sync::Arc;

/// What clients expect without `max_tokens`.
const DEFAULT_TOKENS: u64 = 16;
/// Most prompts of a request.
pub(crate) const MOST_PROMPTS: usize = 2048;
/// Most alternatives of a token.
pub(crate) const MOST_LOGPROBS: u64 = 20;
/// Most texts of a request.
pub(crate) const MOST_TEXTS: usize = 4096;

/// A prompt: its tokens, and its text, if the request has it as a text.
struct Prompt {
    tokens: Arc<[u32]>,
    text: Option<String>,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Completions {
    service: Arc<Service>,
    id: String,
    created: u64,
    streaming: Streaming,
    echo: Vec<Echo>, // the texts of the prompts, if they are wanted
    prompts: Vec<Arc<[u32]>>,
    choices: usize,
    top: Option<usize>,
    ids: bool,
    seed: Option<u64>,
    texts: Vec<Text>,
    sent: Vec<usize>, // log-probabilities of each text that were streamed
}

/// Reads a request.
pub(crate) fn prepare(
    service: &Arc<Service>,
    body: Value,
    client: Client,
) -> Result<(Generate, Completions, Vec<String>), ApiError> {
    let mut fields = Fields::new(body)?;
    service.take_model(&mut fields)?;
    service.predicts()?;
    let streaming = Streaming::take(&mut fields)?;
    let sampling = Sampling::take(&mut fields, service)?;
    let special = fields.boolean("add_special_tokens")?.unwrap_or(true);
    let prompts = take_prompts(service, &mut fields, special)?;
    let most = fields.whole("max_tokens", 0, u64::from(u32::MAX))?;
    let echo = fields.boolean("echo")?.unwrap_or(false);
    let logprobs = match fields.take("logprobs") {
        Some(Value::Bool(false)) => None,
        Some(value) => {
            let count = value.as_u64().filter(|count| *count <= MOST_LOGPROBS);
            Some(count.ok_or_else(|| {
                let message = format!("expected a whole number from 0 to {MOST_LOGPROBS}");
                ApiError::field("logprobs", message)
            })? as usize)
        }
        None => None,
    };
    let ids = fields.boolean("return_token_ids")?.unwrap_or(false);
    fields.refuse("best_of", &[json!(1), json!(sampling.choices)])?;
    fields.refuse("suffix", &[json!("")])?;
    fields.refuse("skip_special_tokens", &[json!(true)])?;
    let ignored = fields.finish(service.lenient)?;
    if prompts.len().saturating_mul(sampling.choices) > MOST_TEXTS {
        let message = format!("expected at most {MOST_TEXTS} texts, with `n` for each prompt");
        return Err(ApiError::field("prompt", message));
    }

    let mut echoed = Vec::new();
    if echo {
        for prompt in &prompts {
            let (tokens, text) = (&prompt.tokens, prompt.text.as_deref());
            echoed.push(Echo::new(service.tokenizer(), tokens, text)?);
        }
    }
    let prompts: Vec<Arc<[u32]>> = prompts.into_iter().map(|prompt| prompt.tokens).collect();
    let mut stop_tokens = sampling.stop_tokens;
    if !sampling.ignore_eos {
        stop_tokens.extend_from_slice(&service.stop_tokens);
    }
    let texts = prompts.len() * sampling.choices;
    let answer = Completions {
        service: Arc::clone(service),
        id: service.id("cmpl"),
        created: service.created(),
        streaming,
        echo: echoed,
        prompts: prompts.clone(),
        choices: sampling.choices,
        top: logprobs,
        ids,
        seed: sampling.sampler.map(|options| options.seed),
        texts: (0..texts).map(|_| Text::default()).collect(),
        sent: vec![0; texts],
    };
    let request = Generate {
        client,
        prompts,
        choices: sampling.choices,
        how: Continuation {
            sampler: sampling.sampler,
            logits: sampling.logits,
            most: most.unwrap_or(DEFAULT_TOKENS) as usize,
            stops: sampling.stops,
            stop_tokens,
            kept: Vec::new(),
            logprobs,
            echo,
            constraint: None,
        },
    };
    Ok((request, answer, ignored))
}

/// A text, token ids, or a list of either.
fn take_prompts(
    service: &Service,
    fields: &mut Fields,
    special: bool,
) -> Result<Vec<Prompt>, ApiError> {
    let refused = || {
        ApiError::field(
            "prompt",
            format!(
                "expected a string, a list of strings, token ids below {} or lists of them, up to {MOST_PROMPTS} prompts",
                service.vocab()
            ),
        )
    };
    let vocab = service.vocab();
    let prompts = match fields.take("prompt") {
        None => return Err(refused()),
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => {
            vec![Value::Array(list)]
        }
        Some(Value::Array(list)) => list,
        Some(one) => vec![one],
    };
    if prompts.is_empty() || prompts.len() > MOST_PROMPTS {
        return Err(refused());
    }
    prompts
        .into_iter()
        .map(|prompt| {
            let prompt = match prompt {
                Value::String(text) => Prompt {
                    tokens: service.encode(&text, special, "prompt")?.into(),
                    text: Some(text),
                },
                ids => Prompt {
                    tokens: tokens(&ids, vocab).ok_or_else(refused)?.into(),
                    text: None,
                },
            };
            service.check_prompt(&prompt.tokens, "prompt")?;
            Ok(prompt)
        })
        .collect()
}

impl Completions {
    /// Takes an event; what a stream says of it.
    pub(crate) fn push(&mut self, event: &Event) -> String {
        let Some(choice) = choice_of(event) else {
            return String::new();
        };
        let first = self.texts[choice].tokens.is_empty();
        self.texts[choice].add(event);
        if !self.streaming.stream {
            return String::new();
        }
        let (piece, end) = match event {
            Event::Token { text, .. } => (text.as_str(), false),
            Event::Done { text, .. } => (text.as_str(), true),
            _ => return String::new(),
        };
        let mut text = String::new();
        if first
            && (self.texts[choice].tokens.len() == 1 || end && self.texts[choice].tokens.is_empty())
        {
            text.push_str(self.echoed(choice));
        }
        text.push_str(piece);
        if text.is_empty() && !end {
            return String::new();
        }
        let due = match end {
            true => usize::MAX,
            false => self.due(choice),
        };
        let from = std::mem::replace(&mut self.sent[choice], due);
        let chunk = self.choice(choice, text, from..due, end);
        let mut chunk = self.envelope(vec![chunk]);
        if self.streaming.usage {
            chunk["usage"] = Value::Null;
        }
        data(&chunk)
    }

    /// The end of a stream.
    pub(crate) fn finish(&mut self) -> String {
        let mut text = String::new();
        if self.streaming.usage {
            let mut chunk = self.envelope(Vec::new());
            chunk["usage"] = self.usage();
            text.push_str(&data(&chunk));
        }
        text.push_str(DONE);
        text
    }

    /// The answer in one body.
    pub(crate) fn body(&mut self) -> Value {
        let choices = (0..self.texts.len())
            .map(|choice| {
                let text = format!("{}{}", self.echoed(choice), self.texts[choice].text);
                self.choice(choice, text, 0..usize::MAX, true)
            })
            .collect();
        let mut body = self.envelope(choices);
        body["usage"] = self.usage();
        body
    }

    fn echo(&self, choice: usize) -> Option<&Echo> {
        self.echo.get(choice / self.choices.max(1))
    }

    fn echoed(&self, choice: usize) -> &str {
        self.echo(choice).map_or("", |echo| &echo.text)
    }

    /// The log-probabilities of a text whose tokens begin in what is certain: none of them can be cut off any more.
    fn due(&self, choice: usize) -> usize {
        let own = &self.texts[choice];
        let certain = own.offsets.partition_point(|offset| *offset <= own.length);
        own.prompt.len() + certain
    }

    fn choice(&self, choice: usize, text: String, part: Range<usize>, end: bool) -> Value {
        let logprobs = self.top.map(|_| self.logprobs(choice, part));
        let own = &self.texts[choice];
        let mut value = json!({
            "index": choice,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": end.then(|| own.finish_reason()),
        });
        if self.ids && end {
            value["prompt_token_ids"] = json!(&*self.prompts[choice / self.choices.max(1)]);
            value["token_ids"] = json!(own.tokens);
        }
        value
    }

    fn logprobs(&self, choice: usize, part: Range<usize>) -> Value {
        let own = &self.texts[choice];
        // the token that ended the text stands at the end of the lists, as clients that measure prompts expect
        let entries = own.prompt.iter().chain(&own.logprobs).chain(&own.ending);
        let echo = self.echo(choice);
        let of_prompt = echo.map_or(&[][..], |echo| &echo.offsets);
        let of_prompt = of_prompt.iter().take(own.prompt.len()).copied();
        let before = echo.map_or(0, |echo| echo.length);
        // a stop string cuts the text in front of the last tokens, and what ends the text is no part of it
        let own_offsets = own.offsets.iter().copied().chain([own.length]);
        let own_offsets = own_offsets.map(|offset| before + offset.min(own.length));
        let all = entries.zip(of_prompt.chain(own_offsets));
        let all = all.skip(part.start).take(part.end - part.start);
        let (mut texts, mut logprobs, mut tops, mut offsets) = (vec![], vec![], vec![], vec![]);
        for (entry, offset) in all {
            offsets.push(offset);
            texts.push(self.service.token_text(entry.token));
            logprobs.push(entry.logprob);
            tops.push(entry.logprob.map(|_| {
                let mut map = Map::new();
                for (id, ln) in &entry.top {
                    // of two tokens with one text, the likelier counts
                    map.entry(self.service.token_text(*id)).or_insert(json!(ln));
                }
                map
            }));
        }
        json!({
            "tokens": texts,
            "token_logprobs": logprobs,
            "top_logprobs": tops,
            "text_offset": offsets,
        })
    }

    fn envelope(&self, choices: Vec<Value>) -> Value {
        let mut value = json!({
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.service.name,
            "system_fingerprint": self.service.fingerprint(),
            "choices": choices,
        });
        if let Some(seed) = self.seed {
            value["seed"] = seed.into();
        }
        value
    }

    fn usage(&self) -> Value {
        let prompt = self.prompts.iter().map(|prompt| prompt.len()).sum();
        usage(
            prompt,
            self.texts.iter().map(|text| text.tokens.len()).sum(),
        )
    }
}
