//! The chat template of a model, and what is asked of it.
//!
//! Invariant: the model sees exactly what its template renders, encoded without a second begin-of-text token.

use crate::args::Think;
use bitnet_cli::{ErrorCode, Failure};
use bitnet_text::{ChatContext, ChatMessage, ChatTemplate, Tokenizer};

/// A template and what is asked of it.
pub struct Template {
    template: ChatTemplate,
    /// The variable of thinking and its value.
    thinking: Option<(&'static str, bool)>,
    /// Whether the model writes its reasoning between tags.
    reasons: bool,
}

/// The prompt of a conversation.
pub struct Prompt {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// Whether the model reasons between tags, and whether the prompt has opened them.
    pub reasoning: Option<bool>,
}

impl Template {
    /// The template of a tokenizer.
    pub fn new(tokenizer: &Tokenizer, think: Option<Think>) -> Result<Self, Failure> {
        let template = tokenizer.chat()?.ok_or_else(|| {
            Failure::new(
                ErrorCode::ChatTemplate,
                "this model has no chat template: it continues text and answers no messages",
            )
            .hint("without --chat the prompt is continued as plain text")
        })?;
        let source = tokenizer.chat_template().unwrap_or_default();
        let mut template = Self {
            template,
            thinking: None,
            reasons: source.contains("<think>") || tokenizer.id("<think>").is_some(),
        };
        if let Some(think) = think {
            template.think(think)?;
        }
        Ok(template)
    }

    /// Turns thinking on or off.
    pub fn think(&mut self, think: Think) -> Result<(), Failure> {
        let variable = self.template.thinking_variable()?.ok_or_else(|| {
            let what = "the chat template of this model has no switch for thinking, such as \
                `enable_thinking`";
            Failure::new(ErrorCode::ChatTemplate, what).hint("leave out --think")
        })?;
        self.thinking = Some((variable, think == Think::On));
        Ok(())
    }

    /// The prompt of a conversation, up to where the assistant speaks.
    pub fn prompt(
        &self,
        messages: &[ChatMessage],
        tokenizer: &Tokenizer,
    ) -> Result<Prompt, Failure> {
        let mut context = ChatContext::of_messages(messages, true);
        if let Some((variable, on)) = self.thinking {
            context.variables.insert(variable.to_owned(), on.into());
        }
        let text = self.template.render_context(&context)?;
        let opened = text.trim_end().ends_with("<think>");
        Ok(Prompt {
            ids: tokenizer.encode(&text, false)?,
            reasoning: self.reasons.then_some(opened),
        })
    }
}
