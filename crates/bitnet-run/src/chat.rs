//! Talking to a model through its own chat template.
//!
//! Invariant: the model sees exactly what its template renders, its own answers included, encoded
//! without a second begin-of-text token; a template that rewrites history costs a fresh start, not a
//! wrong context.

use crate::args::{Generate, Think};
use crate::open::{self, Loaded};
use crate::{prompts, speculate};
use bitnet_cli::{Console, ErrorCode, ExitStatus, Failure};
use bitnet_model::{Generation, LogitOptions, Sampler, TextStream};
use bitnet_text::{ChatContext, ChatMessage, ChatTemplate, Tokenizer};

/// A template and what is asked of it.
struct Template {
    template: ChatTemplate,
    /// The variable of thinking and its value.
    thinking: Option<(&'static str, bool)>,
}

impl Template {
    fn new(tokenizer: &Tokenizer, think: Option<Think>) -> Result<Self, Failure> {
        let template = tokenizer.chat()?.ok_or_else(|| {
            Failure::new(ErrorCode::ChatTemplate, "this model has no chat template")
                .hint("without --chat the prompt is continued as plain text")
        })?;
        let thinking = match think {
            None => None,
            Some(think) => {
                let variable = template.thinking_variable()?.ok_or_else(|| {
                    let what = "the chat template of this model has no switch for thinking, such as \
                        `enable_thinking`";
                    Failure::new(ErrorCode::ChatTemplate, what).hint("leave out --think")
                })?;
                Some((variable, think == Think::On))
            }
        };
        Ok(Self { template, thinking })
    }

    /// The prompt of a conversation, up to where the assistant speaks.
    fn render(&self, messages: &[ChatMessage]) -> Result<String, Failure> {
        let mut context = ChatContext::of_messages(messages, true);
        if let Some((variable, on)) = self.thinking {
            context.variables.insert(variable.to_owned(), on.into());
        }
        Ok(self.template.render_context(&context)?)
    }
}

fn assistant(content: &str) -> ChatMessage {
    ChatMessage {
        role: "assistant".to_owned(),
        content: content.to_owned(),
    }
}

/// The token ids of a first user message.
pub fn first_turn(tokenizer: &Tokenizer, args: &Generate, text: &str) -> Result<Vec<u32>, Failure> {
    let mut messages: Vec<ChatMessage> = args.system.iter().map(ChatMessage::system).collect();
    messages.push(ChatMessage::user(text));
    let rendered = Template::new(tokenizer, args.think)?.render(&messages)?;
    Ok(tokenizer.encode(&rendered, false)?)
}

/// Reads messages line by line from stdin and answers them.
pub fn interactive(
    args: &Generate,
    loaded: &Loaded,
    sampler: Sampler,
    logits: LogitOptions,
    console: &mut Console<'_>,
) -> Result<ExitStatus, Failure> {
    let Loaded { checkpoint, model } = loaded;
    let tokenizer = open::tokenizer(checkpoint)?;
    let template = Template::new(&tokenizer, args.think)?;
    let context = args
        .ctx
        .unwrap_or(model.config().max_position_embeddings.min(4096));
    let stop_tokens = open::stop_tokens(args, model, Some(&tokenizer));
    let draft = speculate::draft(args, model, Some(&tokenizer))?;
    let generation =
        Generation::new(model, context, sampler, stop_tokens)?.with_logit_options(logits);
    let mut generation = speculate::speculating(generation, args, draft.as_ref())?;
    let mut messages: Vec<ChatMessage> = args.system.iter().map(ChatMessage::system).collect();
    let mut fed: Vec<u32> = Vec::new(); // what the session has seen
    console.note("one message per line; end with Ctrl-D")?;
    let mut input = std::io::stdin().lock();
    while let Some(line) = prompts::line(&mut input)? {
        if line.trim().is_empty() {
            continue;
        }
        messages.push(ChatMessage::user(&line));
        let ids = tokenizer.encode(&template.render(&messages)?, false)?;
        if !ids.starts_with(&fed) || ids.len() == fed.len() {
            generation.truncate(0);
            fed.clear();
        }
        let room = context.saturating_sub(ids.len());
        if room == 0 {
            return Err(Failure::new(
                ErrorCode::ContextExceeded,
                format!("the conversation fills the context of {context} tokens"),
            )
            .hint("--ctx N"));
        }
        let mut answer = String::new();
        let stream = TextStream::new(&tokenizer, &args.stop);
        let (new, most) = (&ids[fed.len()..], args.max_new_tokens.min(room));
        let generated = generation.run_text::<Failure>(stream, new, most, |piece| {
            console.text(piece)?;
            answer.push_str(piece);
            Ok(())
        })?;
        console.line("")?;
        messages.push(assistant(&answer));
        fed = ids;
        fed.extend_from_slice(generated.read());
    }
    Ok(ExitStatus::Done)
}
