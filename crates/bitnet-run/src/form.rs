//! `--json-schema` and `--grammar`: what the text has to look like.
//!
//! Invariant: the tokens that are excluded are those that the server excludes for the same schema.

use crate::args::Generate;
use crate::prompts;
use bitnet_cli::{ErrorCode, Failure, FormatError};
use bitnet_formats::read_file;
use bitnet_model::{Constrain, Model};
use bitnet_serve::Grammars;
use bitnet_text::Tokenizer;
use serde_json::Value;
use std::path::Path;

/// Longest schema or grammar.
const MOST_BYTES: u64 = 1 << 20;

/// What the text has to look like.
#[derive(Debug, Clone)]
pub enum Form {
    Schema(Value),
    Grammar(String),
}

impl Form {
    /// What the flags ask for, read from its file.
    pub fn of(args: &Generate) -> Result<Option<Self>, Failure> {
        if let Some(given) = &args.json_schema {
            return schema(given).map(|schema| Some(Self::Schema(schema)));
        }
        let Some(path) = &args.grammar else {
            return Ok(None);
        };
        let grammar = prompts::utf8(read_file(path, MOST_BYTES)?, path)?;
        Ok(Some(Self::Grammar(grammar)))
    }

    /// The rule for the texts of a model.
    pub fn rule(
        self,
        model: &Model,
        tokenizer: &Tokenizer,
        stop_tokens: &[u32],
    ) -> Result<Rule, Failure> {
        let grammars = Grammars::new(tokenizer, model.config().vocab_size, stop_tokens)?;
        Ok(Rule {
            form: self,
            grammars,
        })
    }
}

/// A form, prepared for the vocabulary of a model.
#[derive(Debug)]
pub struct Rule {
    form: Form,
    grammars: Grammars,
}

impl Rule {
    /// The rule of one text; `opened`: behind the rest of the reasoning that the prompt opened.
    pub fn begin(&self, opened: bool) -> Result<Box<dyn Constrain>, Failure> {
        let constraint = match &self.form {
            Form::Schema(schema) => self.grammars.json(schema, opened)?,
            Form::Grammar(grammar) => self.grammars.grammar(grammar, opened)?,
        };
        Ok(Box::new(constraint))
    }
}

/// A schema, given as it is or as the file that has it.
fn schema(given: &str) -> Result<Value, Failure> {
    let place = match given.trim_start().starts_with(['{', '[', '"']) || given == "true" {
        true => Path::new("--json-schema"),
        false => Path::new(given),
    };
    let text = match place == Path::new(given) {
        true => prompts::utf8(read_file(place, MOST_BYTES)?, place)?,
        false => given.to_owned(),
    };
    let parsed: Result<Value, _> = serde_json::from_str(text.trim_start_matches('\u{feff}'));
    match parsed {
        Ok(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(schema),
        Ok(_) => {
            let error = FormatError::new(ErrorCode::Malformed, "expected a JSON Schema, an object");
            Err(error.in_file(place).into())
        }
        Err(e) => {
            let error = FormatError::new(ErrorCode::Malformed, format!("not JSON: {e}"));
            let error = error.in_file(place).because(e);
            Err(error
                .hint("give a file, or the schema itself: --json-schema '{\"type\": \"object\"}'")
                .into())
        }
    }
}
