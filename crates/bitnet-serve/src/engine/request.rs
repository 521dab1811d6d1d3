//! What the engine is asked for, and what it says.
//!
//! Invariant: a request is complete and checked when it is made: tokens are in the vocabulary, texts fit their context.

use crate::constraint::Constraint;
use bitnet_checkpoint::Pooling;
use bitnet_formats::FormatError;
use bitnet_model::{LogitOptions, SamplerOptions, Stopped};
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Whose request it is: the engine is fair among clients.
pub type Client = u64;

/// How texts continue.
#[derive(Debug, Clone)]
pub struct Continuation {
    /// How tokens are drawn; `None`: always the likeliest.
    pub sampler: Option<SamplerOptions>,
    /// How logits are changed before a draw.
    pub logits: LogitOptions,
    /// Most new tokens.
    pub most: usize,
    /// Strings in front of which a text ends.
    pub stops: Vec<String>,
    /// Tokens that end a text.
    pub stop_tokens: Vec<u32>,
    /// Special tokens that give their text all the same.
    pub kept: Vec<u32>,
    /// So many alternatives of each token, with log-probabilities; `None`: no log-probabilities.
    pub logprobs: Option<usize>,
    /// Whether prompts get log-probabilities, too, and texts keep the space in front that a tokenizer may drop.
    pub echo: bool,
    /// What texts have to look like.
    pub constraint: Option<Constraint>,
}

/// Texts to continue.
#[derive(Debug, Clone)]
pub struct Generate {
    /// Whose request it is.
    pub client: Client,
    /// The prompts, none of them empty.
    pub prompts: Vec<Arc<[u32]>>,
    /// Texts for each prompt; the seed of the next one is larger by 1.
    pub choices: usize,
    /// How they continue.
    pub how: Continuation,
}

/// Texts to turn into vectors.
#[derive(Debug, Clone)]
pub struct Embed {
    /// Whose request it is.
    pub client: Client,
    /// The texts, none of them empty.
    pub texts: Vec<Arc<[u32]>>,
    /// How hidden states become one vector.
    pub pooling: Pooling,
}

/// The log-probability of a token where it stands, and the likeliest tokens there.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// The token.
    pub token: u32,
    /// Its log-probability; the first token of a prompt has none.
    pub logprob: Option<f64>,
    /// The likeliest tokens, the likeliest first.
    pub top: Vec<(u32, f64)>,
}

/// What happens to the texts of a request. Texts are numbered prompt by prompt.
#[derive(Debug, Clone)]
pub enum Event {
    /// The log-probabilities of a prompt.
    Prompt {
        /// Which text.
        choice: usize,
        /// All tokens of the prompt.
        tokens: Vec<TokenLogprob>,
    },
    /// A new token.
    Token {
        /// Which text.
        choice: usize,
        /// The token.
        token: u32,
        /// The text that is certain with it.
        text: String,
        /// Characters of the text in front of it; more than there are, if a stop string cuts the text.
        offset: usize,
        /// If log-probabilities were asked for.
        logprob: Option<TokenLogprob>,
    },
    /// The end of a text.
    Done {
        /// Which text.
        choice: usize,
        /// What was held back.
        text: String,
        /// Why.
        stopped: Stopped,
        /// The token that ended the text and is no part of it, if log-probabilities were asked for.
        ending: Option<TokenLogprob>,
    },
    /// A vector.
    Vector {
        /// Which text.
        index: usize,
        /// `(hidden_size,)`.
        vector: Vec<f32>,
    },
    /// The request failed; nothing follows.
    Failed(FormatError),
}

/// Where the events of a request arrive. Dropping it ends the request.
#[derive(Debug)]
pub struct Events(pub(crate) UnboundedReceiver<Event>);

impl Events {
    /// A new pair; what is sent waits without limit, but a text has a limit.
    pub(crate) fn channel() -> (UnboundedSender<Event>, Self) {
        let (sender, receiver) = unbounded_channel();
        (sender, Self(receiver))
    }

    /// Waits for the next event; `None` behind the last one. Not for asynchronous code.
    pub fn wait(&mut self) -> Option<Event> {
        self.0.blocking_recv()
    }
}
