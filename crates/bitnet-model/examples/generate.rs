//! Answers one message with a chat model.
//!
//! `cargo run --release --example generate -- MODEL "MESSAGE"`

#![allow(clippy::print_stdout)] // an example prints the answer

use bitnet_checkpoint::{Checkpoint, OpenOptions};
use bitnet_model::{Generation, LoadOptions, Model, Sampler, TextStream};
use bitnet_text::ChatMessage;
use std::error::Error;
use std::io::Write;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [path, message] = &args[..] else {
        return Err("usage: generate MODEL \"MESSAGE\"".into());
    };
    let checkpoint = Checkpoint::open(Path::new(path), &OpenOptions::default())?;
    let tokenizer = checkpoint
        .tokenizer()?
        .ok_or("the model has no tokenizer")?;
    let template = tokenizer.chat()?.ok_or("the model has no chat template")?;
    let model = Model::load(&checkpoint, &LoadOptions::default())?;

    let prompt = template.render(&[ChatMessage::user(message.as_str())], true)?;
    let prompt = tokenizer.encode(&prompt, false)?;

    let stop_tokens = Generation::stop_tokens(&model, &tokenizer);
    let context = prompt.len() + 200;
    let mut generation = Generation::new(&model, context, Sampler::greedy(), stop_tokens)?;
    let text = TextStream::new(&tokenizer, &[]);
    let mut out = std::io::stdout();
    generation.run_text(text, &prompt, 200, |piece| {
        write!(out, "{piece}")?;
        out.flush()?;
        Ok::<(), Box<dyn Error>>(())
    })?;
    println!();
    Ok(())
}
