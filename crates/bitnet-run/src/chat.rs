//! Talking to a model through its own chat template.
//!
//! Invariant: the model sees exactly what its template renders, its own answers included; a template that rewrites
//! history costs the tokens from the first changed one on, not a wrong context. Every answer ends with a flushed line
//! break, so that who waits for it gets it.

mod answer;
mod command;
mod input;
mod template;

pub use answer::AnswerView;
pub use template::{Prompt, Template};

use crate::args::{Generate, ShowThoughts};
use crate::form::Rule;
use crate::open::{self, Loaded};
use crate::speculate;
use bitnet_cli::{Console, ErrorCode, ExitStatus, Failure, FormatError, StopRequest};
use bitnet_model::{Generated, Generation, LogitOptions, Model, Sampler, Stopped, TextStream};
use bitnet_text::{ChatMessage, REASONING_TAGS, Tokenizer};
use command::Command;
use input::Input;
use serde_json::json;
use std::ops::ControlFlow;
use std::path::Path;

/// Context of a chat for which nobody asked for one.
const CONTEXT: usize = 4096;
/// Tokens of a prompt between two looks at the keyboard.
const READ_AT_ONCE: usize = 256;

/// The prompt of a first user message.
pub fn first_turn(tokenizer: &Tokenizer, args: &Generate, text: &str) -> Result<Prompt, Failure> {
    let mut messages = first_messages(args);
    messages.push(ChatMessage::user(text));
    Template::new(tokenizer, args.think)?.prompt(&messages, tokenizer)
}

fn first_messages(args: &Generate) -> Vec<ChatMessage> {
    args.system.iter().map(ChatMessage::system).collect()
}

/// Special tokens that are tags of reasoning, which the text keeps.
pub fn tags(tokenizer: &Tokenizer) -> Vec<u32> {
    let tags = REASONING_TAGS.iter().filter_map(|tag| tokenizer.id(tag));
    tags.filter(|id| tokenizer.is_special(*id)).collect()
}

/// What a chat computes with.
pub struct Setup<'a> {
    pub args: &'a Generate,
    pub model: &'a Model,
    pub tokenizer: &'a Tokenizer,
    pub sampler: Sampler,
    pub logits: LogitOptions,
    pub rule: Option<Rule>,
    /// The command that takes the flags of a chat, if the command that runs does not take them.
    pub other_command: Option<String>,
}

/// A conversation.
struct Chat<'a> {
    args: &'a Generate,
    tokenizer: &'a Tokenizer,
    template: Template,
    thoughts: Option<ShowThoughts>,
    tags: Vec<u32>,
    rule: Option<Rule>,
    generation: Generation<'a>,
    context: usize,
    most_context: usize,
    messages: Vec<ChatMessage>,
    /// What the session has read.
    fed: Vec<u32>,
    other_command: Option<String>,
    /// Whether lines may be commands.
    has_commands: bool,
}

/// Answers messages until there are no more: of a person at a terminal, or the lines of standard input.
pub fn interactive(setup: Setup<'_>, console: &mut Console<'_>) -> Result<ExitStatus, Failure> {
    let args = setup.args;
    let draft = speculate::draft(args, setup.model, Some(setup.tokenizer))?;
    let mut chat = Chat::new(setup, draft.as_ref(), console.is_interactive())?;
    if !console.is_interactive() {
        if args.history.is_some() {
            return Err(
                Failure::usage("--history: expected a terminal, found a pipe or a file")
                    .hint("leave out --history"),
            );
        }
        console.note(
            "each line of standard input is a message, also one that begins with a slash; end with Ctrl-D",
        )?;
        let mut input = Input::Lines;
        let mut is_told = false;
        while let Some(line) = input.next()? {
            if let (Some(name), false) = (command::name(&line), is_told) {
                console.warn(format_args!(
                    "{name} is sent to the model as text: commands work on a terminal only"
                ))?;
                is_told = true;
            }
            match line.trim() {
                // who sends a line waits for one
                "" => console.text("\n")?,
                _ => chat.say(&line, None, console)?,
            }
        }
        return Ok(ExitStatus::Done);
    }
    let mut input = Input::prompt(args.history.as_deref())?;
    console.note("/help lists the commands; Ctrl-D leaves")?;
    while let Some(line) = input.next()? {
        if let Some(failure) = input.complaint() {
            console.complain(&failure)?;
        }
        let done = match command::parse(&line) {
            _ if line.trim().is_empty() => Ok(ControlFlow::Continue(())),
            Some(Ok(command)) => chat.obey(command, console),
            Some(Err(failure)) => Err(failure),
            None => {
                let stop = StopRequest::listen();
                let said = chat.say(line.trim(), Some(&stop), console);
                said.map(|()| ControlFlow::Continue(()))
            }
        };
        match done {
            Ok(ControlFlow::Continue(())) => {}
            Ok(ControlFlow::Break(())) => break,
            Err(failure) if failure.is_closed_pipe() => return Err(failure),
            Err(failure) => console.complain(&failure)?,
        }
    }
    Ok(ExitStatus::Done)
}

impl<'a> Chat<'a> {
    fn new(
        setup: Setup<'a>,
        draft: Option<&'a Loaded>,
        has_commands: bool,
    ) -> Result<Self, Failure> {
        let Setup {
            args,
            model,
            tokenizer,
            sampler,
            logits,
            rule,
            other_command,
        } = setup;
        let most_context = model.config().max_position_embeddings;
        let context = args.ctx.unwrap_or(most_context.min(CONTEXT));
        let stop_tokens = open::stop_tokens(args, model, Some(tokenizer));
        let generation =
            Generation::new(model, context, sampler, stop_tokens)?.with_logit_options(logits);
        let generation = speculate::speculating(generation, args, draft)?;
        Ok(Self {
            template: Template::new(tokenizer, args.think)?,
            thoughts: args.thoughts,
            tags: tags(tokenizer),
            rule,
            generation,
            context,
            most_context,
            messages: first_messages(args),
            fed: Vec::new(),
            other_command,
            has_commands,
            args,
            tokenizer,
        })
    }

    /// Does what a command asks for; whether the chat goes on.
    fn obey(
        &mut self,
        command: Command<'_>,
        console: &mut Console<'_>,
    ) -> Result<ControlFlow<()>, Failure> {
        match command {
            Command::Exit => return Ok(ControlFlow::Break(())),
            Command::Help => console.text(format_args!("{}\n", command::help()))?,
            Command::Clear => {
                self.messages.retain(|message| message.role == "system");
                console.aside("[the conversation is forgotten]")?;
            }
            Command::Retry => self.retry(console)?,
            Command::System(None) => {
                let text = self.system().map_or("(no system message)", |m| &m.content);
                console.text(format_args!("{text}\n"))?;
            }
            Command::System(Some(text)) => {
                self.messages.retain(|message| message.role != "system");
                if !text.is_empty() {
                    self.messages.insert(0, ChatMessage::system(text));
                }
                console.aside("[the next answer follows the new system message]")?;
            }
            Command::Save(file) => {
                self.save(Path::new(file))?;
                console.aside(format_args!(
                    "[saved {} messages to {file}]",
                    self.messages.len()
                ))?;
            }
            Command::Think(think) => self.template.think(think)?,
            Command::Thoughts(thoughts) => self.thoughts = Some(thoughts),
        }
        Ok(ControlFlow::Continue(()))
    }

    fn system(&self) -> Option<&ChatMessage> {
        self.messages
            .iter()
            .find(|message| message.role == "system")
    }

    /// Writes the conversation to a new file.
    fn save(&self, path: &Path) -> Result<(), Failure> {
        let messages = self.messages.iter();
        let messages: Vec<_> = messages
            .map(|message| json!({"role": message.role, "content": message.content}))
            .collect();
        let text = format!("{:#}\n", json!({"messages": messages}));
        let failed = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::AlreadyExists => {
                let message = format!("{}: the file exists", path.display());
                Failure::new(ErrorCode::Exists, message).hint("save under another name")
            }
            _ => FormatError::io(path, &e).into(),
        };
        let mut file = std::fs::File::create_new(path).map_err(failed)?;
        std::io::Write::write_all(&mut file, text.as_bytes()).map_err(failed)
    }

    /// Answers the last message of the user again.
    fn retry(&mut self, console: &mut Console<'_>) -> Result<(), Failure> {
        if self
            .messages
            .last()
            .is_none_or(|last| last.role != "assistant")
        {
            return Err(Failure::usage("there is no answer to try again").hint("send a message"));
        }
        let answer = self.messages.pop();
        let stop = StopRequest::listen();
        let answered = self.answer(Some(&stop), console);
        if !matches!(answered, Ok(true)) {
            // the conversation is as it was
            self.messages.extend(answer);
        } else if self.is_greedy() {
            let temp = self.flag("--temp");
            console.aside(format_args!(
                "[the same message gets the same answer; start with {temp} for others]"
            ))?;
        }
        answered.map(|_| ())
    }

    fn is_greedy(&self) -> bool {
        self.args.temp.is_none_or(|temperature| temperature == 0.0)
            && self.args.top_k.is_none()
            && self.args.top_p.is_none()
            && self.args.min_p.is_none()
            && self.args.seed.is_none()
    }

    /// Answers a message.
    fn say(
        &mut self,
        message: &str,
        stop: Option<&StopRequest>,
        console: &mut Console<'_>,
    ) -> Result<(), Failure> {
        self.messages.push(ChatMessage::user(message));
        let answered = self.answer(stop, console);
        if !matches!(answered, Ok(true)) {
            // a message without an answer is not part of the conversation
            self.messages.pop();
        }
        answered.map(|_| ())
    }

    /// Answers the messages so far; whether there is an answer.
    fn answer(
        &mut self,
        stop: Option<&StopRequest>,
        console: &mut Console<'_>,
    ) -> Result<bool, Failure> {
        let prompt = self.template.prompt(&self.messages, self.tokenizer)?;
        let room = self.context.saturating_sub(prompt.ids.len());
        if room == 0 {
            return Err(self.full(prompt.ids.len()));
        }
        let is_stopped = || stop.is_some_and(StopRequest::is_made);
        if !self.read(&prompt.ids, is_stopped)? {
            console.aside("[stopped]")?;
            return Ok(false);
        }
        let rule = self.rule.as_ref();
        let rule = rule.map(|rule| rule.begin(prompt.reasoning == Some(true)));
        self.generation.constrain(rule.transpose()?);
        self.generation.begin(&prompt.ids);

        let most = self.args.max_new_tokens.min(room);
        let mut view = AnswerView::new(prompt.reasoning, self.thoughts, console);
        let mut answer = String::new();
        let mut text = TextStream::new(self.tokenizer, &self.args.stop).keeping(&self.tags);
        let unread = &prompt.ids[self.fed.len()..];
        let generated = self.generation.run::<Failure>(unread, most, |token| {
            let piece = text.push(token)?;
            view.push(&piece, console)?;
            answer.push_str(&piece);
            Ok(match text.is_stopped() || is_stopped() {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })?;
        let rest = text.finish()?;
        view.push(&rest, console)?;
        view.finish(console)?;
        answer.push_str(&rest);
        console.text("\n")?;
        self.fed = prompt.ids;
        self.fed.extend_from_slice(&generated.tokens);
        self.fed.truncate(self.generation.position());
        self.messages.push(ChatMessage {
            role: "assistant".to_owned(),
            content: answer,
        });
        self.conclude(&generated, is_stopped(), room, console)?;
        Ok(true)
    }

    /// Reads a prompt but for its last tokens, which the first draw reads; whether it was read to there. What the session
    /// has read already stays.
    fn read(&mut self, ids: &[u32], is_stopped: impl Fn() -> bool) -> Result<bool, Failure> {
        let alike = self.fed.iter().zip(ids).take_while(|(a, b)| a == b).count();
        let alike = alike.min(ids.len().saturating_sub(1));
        self.generation.truncate(alike);
        self.fed.truncate(alike);
        while ids.len() - self.fed.len() > READ_AT_ONCE {
            if is_stopped() {
                return Ok(false);
            }
            let next = &ids[self.fed.len()..][..READ_AT_ONCE];
            self.generation.feed(next)?;
            self.fed.extend_from_slice(next);
        }
        Ok(!is_stopped())
    }

    /// Says how an answer ended.
    fn conclude(
        &self,
        generated: &Generated,
        stopped: bool,
        room: usize,
        console: &mut Console<'_>,
    ) -> Result<(), Failure> {
        let made = generated.tokens.len();
        match generated.stopped {
            _ if stopped => console.aside("[stopped]")?,
            Stopped::Length if made >= room => console.aside(format_args!(
                "[stopped: the context of {} tokens is full; {}]",
                self.context,
                self.more_context()
            ))?,
            Stopped::Length => console.aside(stopped_after(made, &self.flag("-n")))?,
            _ => {}
        }
        let speed = generated.tokens_per_second();
        console.aside(format_args!("[{made} tokens, {speed:.1} tokens/s]"))
    }

    /// A flag, as it is given: behind another command, if this one does not take it.
    fn flag(&self, flag: &str) -> String {
        match &self.other_command {
            Some(command) => format!("{command} {flag}"),
            None => flag.to_owned(),
        }
    }

    fn more_context(&self) -> String {
        let over = match self.has_commands {
            true => "/clear starts over",
            false => "run the program again to start over",
        };
        match self.context < self.most_context {
            true => format!(
                "{over}, {} N holds up to {} tokens",
                self.flag("--ctx"),
                self.most_context
            ),
            false => format!("{over}; the model was made for no more"),
        }
    }

    fn full(&self, found: usize) -> Failure {
        let message = format!(
            "the conversation of {found} tokens fills the context of {} tokens",
            self.context
        );
        let failure =
            Failure::new(ErrorCode::ContextExceeded, message).hint(match self.has_commands {
                true => "start over with /clear",
                false => "run the program again to start over",
            });
        match self.context < self.most_context {
            true => failure.hint(format!(
                "start with {} N for a longer context, up to {} tokens",
                self.flag("--ctx"),
                self.most_context
            )),
            false => failure,
        }
    }
}

/// What a text that was cut off is told; `flag` sets the number of tokens.
pub fn stopped_after(tokens: usize, flag: &str) -> String {
    format!("[stopped after {tokens} tokens; {flag} for more]")
}
