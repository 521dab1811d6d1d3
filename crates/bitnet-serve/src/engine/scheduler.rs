//! The one thread that steps the model: which texts run, and which of their tokens go into the next step.
//!
//! Invariant: nothing here decides what a text gets, only when. Keys and values of all texts in progress fit the budget
//! before they start. A text that fails takes its own request with it and no other.

use super::job::{Job, Start};
use super::metrics::Metrics;
use super::prefix_cache::PrefixCache;
use super::request::{Client, Continuation, Embed, Event, Generate};
use bitnet_formats::{ErrorCode, FormatError};
use bitnet_model::{Model, Sequence, Slice, StepLogits, Workspace};
use bitnet_text::Tokenizer;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Instant;
use tokio::sync::mpsc::UnboundedSender;

/// Tokens of prompts in a step without texts that wait for their next token.
const PROMPT_TOKENS: usize = 256;
/// Tokens of prompts in a step beside such texts, which wait for it.
const PROMPT_TOKENS_BESIDE: usize = 64;

/// What the engine's thread is told.
#[derive(Debug)]
pub(crate) enum Command {
    Generate(Box<Generate>, UnboundedSender<Event>),
    Embed(Embed, UnboundedSender<Event>),
}

/// Limits of the engine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Texts in progress at once.
    pub parallel: usize,
    /// Tokens of a text.
    pub context: usize,
    /// Bytes of keys and values.
    pub kv_bytes: usize,
    /// Bytes of keys and values of a block of positions.
    pub block_bytes: usize,
    /// Positions of a block.
    pub block_positions: usize,
    /// Whether sequences that ended are kept.
    pub prefix_cache: bool,
}

impl Limits {
    /// Bytes of keys and values that a text may need.
    pub(crate) fn bytes(&self, prompt: usize, new: usize) -> usize {
        let tokens = prompt
            .saturating_add(new.saturating_sub(1))
            .min(self.context);
        let blocks = tokens.max(1).div_ceil(self.block_positions);
        blocks.saturating_mul(self.block_bytes)
    }
}

/// A request of which not all texts run yet.
#[derive(Debug)]
struct Waiting {
    number: u64,
    client: Client,
    prompts: Vec<Arc<[u32]>>,
    choices: usize,
    how: Arc<Continuation>,
    events: UnboundedSender<Event>,
    next: usize, // the text that starts next
}

impl Waiting {
    fn texts(&self) -> usize {
        self.prompts.len().saturating_mul(self.choices)
    }
}

/// Texts to turn into vectors.
#[derive(Debug)]
struct Vectors {
    request: Embed,
    events: UnboundedSender<Event>,
    next: usize,
}

/// Why no text of a request starts now.
enum Held {
    /// Another text of its prompt reads the prompt.
    Prompt,
    /// There is no memory for its keys and values.
    Memory,
}

pub(crate) struct Scheduler<'t> {
    model: &'t Model,
    tokenizer: &'t Tokenizer,
    workspace: Workspace,
    limits: Limits,
    metrics: &'t Metrics,
    stop: &'t AtomicBool,
    waiting: Vec<Waiting>,
    vectors: VecDeque<Vectors>,
    running: Vec<Job<'t>>,
    cache: PrefixCache,
    last_client: Option<Client>,
    first: usize, // which of the texts that read prompts comes first
    requests: u64,
}

impl<'t> Scheduler<'t> {
    pub(crate) fn new(
        model: &'t Model,
        tokenizer: &'t Tokenizer,
        limits: Limits,
        metrics: &'t Metrics,
        stop: &'t AtomicBool,
    ) -> Self {
        Self {
            model,
            tokenizer,
            workspace: model.workspace(),
            limits,
            metrics,
            stop,
            waiting: Vec::new(),
            vectors: VecDeque::new(),
            running: Vec::new(),
            cache: PrefixCache::default(),
            last_client: None,
            first: 0,
            requests: 0,
        }
    }

    /// Serves until every sender of commands is gone and every text has ended, or until it is told to stop.
    pub(crate) fn run(mut self, commands: &Receiver<Command>) {
        let mut open = true;
        loop {
            if self.is_idle() {
                if !open {
                    return;
                }
                match commands.recv() {
                    Ok(command) => self.accept(command),
                    Err(_) => return,
                }
            }
            loop {
                match commands.try_recv() {
                    Ok(command) => self.accept(command),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        open = false;
                        break;
                    }
                }
            }
            if self.stop.load(Ordering::Relaxed) {
                return self.refuse_all();
            }
            self.forget_abandoned();
            self.start_texts();
            self.embed_one();
            self.step();
            self.report();
        }
    }

    fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty() && self.vectors.is_empty()
    }

    fn accept(&mut self, command: Command) {
        self.requests += 1;
        match command {
            Command::Generate(request, events) => self.waiting.push(Waiting {
                number: self.requests,
                client: request.client,
                prompts: request.prompts,
                choices: request.choices,
                how: Arc::new(request.how),
                events,
                next: 0,
            }),
            Command::Embed(request, events) => self.vectors.push_back(Vectors {
                request,
                events,
                next: 0,
            }),
        }
    }

    /// Ends everything.
    fn refuse_all(&mut self) {
        let stopped = || FormatError::new(ErrorCode::Busy, "the server stops");
        for job in self.running.drain(..) {
            job.fail(stopped());
        }
        let waiting = self.waiting.drain(..).map(|waiting| waiting.events);
        let vectors = self.vectors.drain(..).map(|vectors| vectors.events);
        for events in waiting.chain(vectors) {
            let _ = events.send(Event::Failed(stopped()));
        }
        self.report();
    }

    /// Drops what nobody waits for; what its sequences have read stays in the cache.
    fn forget_abandoned(&mut self) {
        let mut gone: Vec<u64> = Vec::new();
        let mut at = 0;
        while let Some(job) = self.running.get(at) {
            if job.is_abandoned() {
                let job = self.running.swap_remove(at);
                gone.push(job.request);
                self.keep(job);
            } else {
                at += 1;
            }
        }
        self.waiting.retain(|waiting| {
            let stays = !waiting.events.is_closed();
            if !stays {
                gone.push(waiting.number);
            }
            stays
        });
        gone.sort_unstable();
        gone.dedup();
        let before = self.vectors.len();
        self.vectors.retain(|vectors| !vectors.events.is_closed());
        let gone = gone.len() + before - self.vectors.len();
        Metrics::add(&self.metrics.cancelled, gone);
    }

    fn reserved(&self) -> usize {
        self.running.iter().map(|job| job.reserved).sum()
    }

    /// Starts texts while there is room: of the client with the fewest in progress, of equal ones the next one in turn.
    fn start_texts(&mut self) {
        let mut held: Vec<u64> = Vec::new(); // requests whose next text waits for another one
        while self.running.len() < self.limits.parallel {
            let Some(at) = self.next_waiting(&held) else {
                return;
            };
            let (number, client) = (self.waiting[at].number, self.waiting[at].client);
            match self.start(at) {
                Ok(()) => {
                    self.last_client = Some(client);
                    // a text that failed took its request with it
                    self.waiting.retain(|waiting| {
                        waiting.number != number || waiting.next < waiting.texts()
                    });
                }
                Err(Held::Prompt) => held.push(number),
                // nobody passes a text that waits for memory: it would wait forever
                Err(Held::Memory) => return,
            }
        }
    }

    fn next_waiting(&self, held: &[u64]) -> Option<usize> {
        let in_progress = |client: Client| {
            let own = self.running.iter().filter(|job| job.client == client);
            own.count()
        };
        let candidates = self.waiting.iter().enumerate();
        let candidates = candidates.filter(|(_, waiting)| !held.contains(&waiting.number));
        let best = candidates.min_by_key(|(at, waiting)| {
            let again = self.last_client == Some(waiting.client);
            (in_progress(waiting.client), again, *at)
        });
        best.map(|(at, _)| at)
    }

    /// Starts the next text of a request.
    fn start(&mut self, at: usize) -> Result<(), Held> {
        let waiting = &self.waiting[at];
        let (number, how) = (waiting.number, Arc::clone(&waiting.how));
        let choice = waiting.next;
        let of_prompt = choice % waiting.choices.max(1);
        let prompt = Arc::clone(&waiting.prompts[choice / waiting.choices.max(1)]);
        let shares = self.limits.prefix_cache && !(how.echo && how.logprobs.is_some());
        let reads_it =
            |job: &Job<'_>| job.request == number && job.is_reading() && job.prompt() == &*prompt;
        if shares && of_prompt > 0 && self.running.iter().any(reads_it) {
            return Err(Held::Prompt);
        }
        let reserved = self.limits.bytes(prompt.len(), how.most);
        let in_use = self.reserved();
        let fits = |cached: usize| {
            let all = in_use.saturating_add(reserved).saturating_add(cached);
            all <= self.limits.kv_bytes
        };
        while !fits(self.cache.bytes()) {
            // a request that no empty engine has memory for was refused before
            if !self.cache.evict() {
                match self.running.is_empty() {
                    true => break,
                    false => return Err(Held::Memory),
                }
            }
        }
        let found = match shares {
            true => self.find(&prompt),
            false => None,
        };
        let sequence = match found {
            Some(sequence) => Ok(sequence),
            None => self.model.sequence(self.limits.context),
        };
        let waiting = &mut self.waiting[at];
        waiting.next += 1;
        let events = waiting.events.clone();
        let client = waiting.client;
        let job = sequence.and_then(|sequence| {
            let start = Start {
                request: number,
                client,
                choice,
                number: of_prompt,
                prompt: &prompt,
                how: &how,
                sequence,
                reserved,
                events: &events,
            };
            Job::new(start, self.tokenizer)
        });
        match job {
            Ok(job) => self.running.push(job),
            Err(error) => {
                self.fail(number, &events, error);
            }
        }
        Ok(())
    }

    /// A sequence that has read the beginning of a prompt, all but its last token at most: from the cache, or from a
    /// text in progress.
    fn find(&mut self, prompt: &[u32]) -> Option<Sequence> {
        Metrics::add(&self.metrics.cache_lookups, 1);
        let most = prompt.len().saturating_sub(1);
        let cached = self.cache.find(prompt, most);
        let have = cached.as_ref().map_or(0, Sequence::position);
        let of_running = self.running.iter().map(|job| {
            let read = job.sequence.position().min(most);
            let length = job.all_tokens().take(read).zip(prompt);
            (length.take_while(|(a, b)| a == *b).count(), job)
        });
        let best = of_running.max_by_key(|(length, _)| *length);
        let found = match best {
            Some((length, job)) if length > have => job.sequence.fork(length).ok().or(cached),
            _ => cached,
        };
        if let Some(sequence) = &found {
            Metrics::add(&self.metrics.cache_hits, 1);
            Metrics::add(&self.metrics.cached_tokens, sequence.position());
        }
        found
    }

    /// Ends a request with an error.
    fn fail(&mut self, request: u64, events: &UnboundedSender<Event>, error: FormatError) {
        Metrics::add(&self.metrics.failed, 1);
        let _ = events.send(Event::Failed(error));
        self.running.retain(|job| job.request != request);
        self.waiting.retain(|waiting| waiting.number != request);
    }

    /// One vector: between two steps, so that texts in progress go on.
    fn embed_one(&mut self) {
        let Some(mut vectors) = self.vectors.pop_front() else {
            return;
        };
        let Some(text) = vectors.request.texts.get(vectors.next) else {
            return;
        };
        Metrics::add(&self.metrics.prompt_tokens, text.len());
        match self.model.embed(text, vectors.request.pooling) {
            Ok(vector) => {
                let index = vectors.next;
                let _ = vectors.events.send(Event::Vector { index, vector });
                vectors.next += 1;
                if vectors.next < vectors.request.texts.len() {
                    self.vectors.push_back(vectors);
                }
            }
            Err(error) => {
                Metrics::add(&self.metrics.failed, 1);
                let _ = vectors.events.send(Event::Failed(error));
            }
        }
    }

    /// The tokens of every text for the next step; none for those that wait for their turn.
    fn plan(&mut self) -> Vec<Vec<u32>> {
        let vocab = self.model.config().vocab_size;
        let reading: Vec<usize> = (0..self.running.len())
            .filter(|at| self.running[*at].is_reading())
            .collect();
        let mut left = match reading.len() == self.running.len() {
            true => PROMPT_TOKENS,
            false => PROMPT_TOKENS_BESIDE,
        };
        let mut plan: Vec<Vec<u32>> = self
            .running
            .iter()
            .map(|job| match job.is_reading() {
                true => Vec::new(),
                false => job.next_tokens(1, vocab),
            })
            .collect();
        self.first = self.first.wrapping_add(1);
        for turn in 0..reading.len() {
            let at = reading[(self.first + turn) % reading.len()];
            let share = (left / (reading.len() - turn)).max(1);
            if left == 0 {
                break;
            }
            let tokens = self.running[at].next_tokens(share, vocab);
            left -= tokens.len().min(left);
            plan[at] = tokens;
        }
        plan
    }

    /// One step of the model with all texts in progress.
    fn step(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let plan = self.plan();
        let started = Instant::now();
        let before: Vec<usize> = self.running.iter().map(|j| j.sequence.position()).collect();
        let results = self.compute(&plan);
        Metrics::add(&self.metrics.steps, 1);
        let micros = usize::try_from(started.elapsed().as_micros()).unwrap_or(usize::MAX);
        Metrics::add(&self.metrics.step_micros, micros);
        let vocab = self.model.config().vocab_size;
        let mut ended = Vec::new();
        let mut failed = Vec::new();
        for (at, (job, result)) in self.running.iter_mut().zip(results).enumerate() {
            let read: Range<usize> = before[at]..before[at] + plan[at].len();
            if read.is_empty() {
                continue;
            }
            let of_prompt = job.prompt().len().min(read.end).saturating_sub(read.start);
            Metrics::add(&self.metrics.prompt_tokens, of_prompt);
            match result.and_then(|logits| job.take(read, logits, vocab, self.metrics)) {
                Ok(true) => {}
                Ok(false) => ended.push(at),
                Err(error) => {
                    Metrics::add(&self.metrics.failed, 1);
                    job.fail(error);
                    failed.push(job.request);
                }
            }
        }
        for at in ended.into_iter().rev() {
            let job = self.running.remove(at);
            self.keep(job);
        }
        if !failed.is_empty() {
            self.running.retain(|job| !failed.contains(&job.request));
            self.waiting
                .retain(|waiting| !failed.contains(&waiting.number));
        }
    }

    /// What the model says of each text; of all together, else, after an error, of each alone.
    fn compute(&mut self, plan: &[Vec<u32>]) -> Vec<Result<StepLogits, FormatError>> {
        let mut slices: Vec<Slice<'_>> = self
            .running
            .iter_mut()
            .zip(plan)
            .map(|(job, tokens)| {
                let want = job.want(tokens.len());
                Slice {
                    sequence: &mut job.sequence,
                    tokens,
                    want,
                }
            })
            .collect();
        let together = self.model.step(&mut slices, &mut self.workspace);
        match together {
            Ok(found) => found.into_iter().map(Ok).collect(),
            Err(error) if slices.len() == 1 => vec![Err(error)],
            Err(_) => slices
                .iter_mut()
                .map(|slice| {
                    let alone = Slice {
                        sequence: &mut *slice.sequence,
                        tokens: slice.tokens,
                        want: slice.want,
                    };
                    let found = self.model.step(&mut [alone], &mut self.workspace)?;
                    Ok(found.into_iter().next().unwrap_or(StepLogits::Nothing))
                })
                .collect(),
        }
    }

    /// Keeps the sequence of a text that ended, while there is memory.
    fn keep(&mut self, job: Job<'t>) {
        if !self.limits.prefix_cache {
            return;
        }
        let tokens: Vec<u32> = job.all_tokens().take(job.sequence.position()).collect();
        let in_use = self.reserved();
        self.cache.insert(tokens, job.sequence);
        while in_use.saturating_add(self.cache.bytes()) > self.limits.kv_bytes && self.cache.evict()
        {
        }
    }

    fn report(&self) {
        let Metrics {
            running,
            waiting,
            reserved_bytes,
            cache_bytes,
            ..
        } = self.metrics;
        Metrics::set(running, self.running.len());
        let texts = self.waiting.iter().map(|w| w.texts() - w.next);
        let vectors = self.vectors.iter().map(|v| v.request.texts.len() - v.next);
        Metrics::set(waiting, texts.chain(vectors).sum());
        Metrics::set(reserved_bytes, self.reserved());
        Metrics::set(cache_bytes, self.cache.bytes());
    }
}
