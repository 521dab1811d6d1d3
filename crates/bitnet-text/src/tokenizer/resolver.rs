//! Merges as texts turned into merges as ids, beside the reading of the texts.
//!
//! Invariant: ids and errors are the same whether a second thread helps or not. A batch that was read whole
//! is looked up whatever comes behind it, and what it says comes before an error behind it.

use super::pre_tokenizer::short;
use super::words::Words;
use bitnet_formats::{ErrorCode, FormatError};
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, channel, sync_channel};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread;

/// Merges that are looked up together.
const BATCH: usize = 128;
/// Merges that go to the other thread together.
const MESSAGE: usize = 16 * BATCH;
/// Messages that may wait: about 10 MB of published merges, read while the vocabulary gets its places.
const WAITING: usize = 256;
/// A list of merges with fewer bytes is done before a thread has started.
const WORTH_A_THREAD: usize = 1 << 20;

fn refuse(what: impl Into<String>) -> FormatError {
    FormatError::new(ErrorCode::Tokenizer, what).in_tensor("model.merges")
}

/// Texts of merges, left and right, end to end.
#[derive(Debug, Default)]
pub(super) struct Texts {
    texts: String,
    ends: Vec<u32>,
}

impl Texts {
    /// Adds the two texts of a merge.
    ///
    /// # Errors
    /// More text than offsets can name.
    pub(super) fn add(&mut self, left: &str, right: &str) -> Result<(), FormatError> {
        for text in [left, right] {
            self.texts.push_str(text);
            let end = u32::try_from(self.texts.len()).map_err(|_| {
                FormatError::new(ErrorCode::LimitExceeded, "more than 4 GiB of merges")
                    .in_tensor("model.merges")
            })?;
            self.ends.push(end);
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.ends.len() >= 2 * MESSAGE
    }
}

/// Turns pairs of texts into merges.
///
/// A lookup waits for memory several times, and one lookup after the other was most of the cost of a
/// tokenizer. So the texts of [`BATCH`] merges are looked up together ([`Words::ids`]).
pub(super) struct Resolver<'w> {
    words: &'w Words,
    ids: Vec<Option<u32>>,
    /// The entry of the last result: merges are mostly in the order of what they make.
    made: u32,
}

impl<'w> Resolver<'w> {
    /// Over a finished vocabulary.
    pub(super) fn new(words: &'w Words) -> Self {
        Self {
            words,
            ids: Vec::new(),
            made: 0,
        }
    }

    /// Left, right and result of each of `merges`, the first of which is number `first` of the list.
    ///
    /// # Errors
    /// A text that is no token.
    pub(super) fn look_up(
        &mut self,
        first: usize,
        merges: &Texts,
    ) -> Result<Vec<[u32; 3]>, FormatError> {
        let text = |start: u32, end: u32| {
            let text = merges.texts.get(start as usize..end as usize);
            text.unwrap_or_default()
        };
        let mut list = Vec::with_capacity(merges.ends.len() / 2);
        let mut start = 0;
        for batch in merges.ends.chunks(2 * BATCH) {
            self.words.ids(&merges.texts, start, batch, &mut self.ids);
            for (ends, ids) in batch.chunks_exact(2).zip(self.ids.chunks_exact(2)) {
                let (&[middle, end], &[left, right]) = (ends, ids) else {
                    continue;
                };
                let found = |id: Option<u32>, text: &str| {
                    let number = first.saturating_add(list.len());
                    id.ok_or_else(|| {
                        refuse(format!(
                            "merge {number} needs `{}`, which is no token",
                            short(text)
                        ))
                    })
                };
                let whole = text(start, end);
                let merge = [
                    found(left, text(start, middle))?,
                    found(right, text(middle, end))?,
                    found(self.words.id_near(whole, &mut self.made), whole)?,
                ];
                list.push(merge);
                start = end;
            }
        }
        Ok(list)
    }
}

/// A finished vocabulary and its merges: left, right and result.
pub(super) type Assembled = (Words, Vec<[u32; 3]>);

/// Takes the left and the right text of the next merge. An error ends the reading.
pub(super) type Add<'a> = &'a mut dyn FnMut(&str, &str) -> Result<(), FormatError>;

/// Finishes a vocabulary and turns the merges that `read` gives into ids (left, right, result). If the list is
/// long, which has about `bytes` bytes, another thread begins with that, and this one helps when all is read.
///
/// Gives back what `read` gave, and vocabulary and merges. An error of these comes before one of `read`, which may
/// have been ended by it.
///
/// # Errors
/// Two tokens with one id; a text of a merge that is no token.
pub(super) fn assemble<T>(
    bytes: usize,
    words: Words,
    read: impl FnOnce(Add<'_>) -> T,
) -> (T, Result<Assembled, FormatError>) {
    let (sender, receiver) = sync_channel(WAITING);
    let shared = Shared {
        words: OnceLock::new(),
        messages: Mutex::new(Some(receiver)),
    };
    let unfinished = Mutex::new(Some(words));
    let finish = || {
        let mut words = unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(words) = words.take() {
            shared.finish(words);
        }
    };
    let (value, parts) = thread::scope(|scope| {
        let sender = sender; // which ends with this closure, however that ends
        let (ready, finished) = channel::<()>();
        let first = || {
            let _close = Close(&shared);
            finish();
            drop(ready);
            shared.look_up()
        };
        let thread = thread::Builder::new().name("tokenizer".to_owned());
        let worker = match bytes >= WORTH_A_THREAD {
            true => thread.spawn_scoped(scope, first).ok(),
            false => None,
        };
        let Some(worker) = worker else {
            // without a thread the texts wait for the end of the list
            let mut waiting = Vec::new();
            let value = in_messages(read, |message| {
                waiting.push(message);
                true
            });
            finish();
            return (value, shared.resolve(waiting));
        };
        let value = in_messages(read, |message| sender.send(message).is_ok());
        drop(sender);
        // an error: the other side dropped its end, which it does when there is a vocabulary
        let _ = finished.recv();
        let mut parts = shared.look_up();
        parts.extend(worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        (value, parts)
    });
    (value, shared.assembled(parts))
}

/// The number of a message, and its merges as ids.
type Part = (usize, Result<Vec<[u32; 3]>, FormatError>);

/// What the threads share that look up merges.
struct Shared {
    words: OnceLock<Result<Words, FormatError>>,
    /// `None` after an error: nobody waits any more, so that the reading ends, too.
    messages: Mutex<Option<Receiver<Message>>>,
}

/// Merges, and how many messages there were before.
type Message = (usize, Texts);

impl Shared {
    fn finish(&self, mut words: Words) {
        self.words.get_or_init(|| {
            let finished = words.finish().map_err(|e| e.in_tensor("model.vocab"));
            finished.map(|()| words)
        });
    }

    fn next(&self) -> Option<Message> {
        let messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.as_ref()?.recv().ok()
    }

    /// Looks up what is waiting until nothing comes any more, or an error does.
    fn look_up(&self) -> Vec<Part> {
        let _close = Close(self);
        self.resolve(std::iter::from_fn(|| self.next()))
    }

    /// The parts of `messages`, an error the last.
    fn resolve(&self, messages: impl IntoIterator<Item = Message>) -> Vec<Part> {
        let Some(Ok(words)) = self.words.get() else {
            return Vec::new();
        };
        let mut resolver = Resolver::new(words);
        let mut parts: Vec<Part> = Vec::new();
        for (number, texts) in messages {
            let part = resolver.look_up(number.saturating_mul(MESSAGE), &texts);
            let failed = part.is_err();
            parts.push((number, part));
            if failed {
                break;
            }
        }
        parts
    }

    /// Messages are taken in their order, and one that was taken is looked up: so the first error is among the parts.
    fn assembled(self, mut parts: Vec<Part>) -> Result<Assembled, FormatError> {
        let words = self.words.into_inner().unwrap_or_else(|| {
            let error = FormatError::new(ErrorCode::Tokenizer, "not finished");
            Err(error.in_tensor("model.vocab"))
        })?;
        parts.sort_unstable_by_key(|(number, _)| *number);
        let lens = parts.iter().flat_map(|(_, part)| part).map(Vec::len);
        let mut list = Vec::with_capacity(lens.fold(0, usize::saturating_add));
        for (_, part) in parts {
            list.append(&mut part?);
        }
        Ok((words, list))
    }
}

/// Nobody waits for messages any more when this is dropped.
struct Close<'s>(&'s Shared);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        let messages = self.0.messages.lock();
        *messages.unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Runs `read` and gives what it reads to `send`, many merges at once, until that is false.
fn in_messages<T>(read: impl FnOnce(Add<'_>) -> T, mut send: impl FnMut(Message) -> bool) -> T {
    let mut texts = Texts::default();
    let mut count = 0usize;
    let value = read(&mut |left, right| {
        texts.add(left, right)?;
        if !texts.is_full() {
            return Ok(());
        }
        let message = (count, std::mem::take(&mut texts));
        count = count.saturating_add(1);
        match send(message) {
            true => Ok(()),
            // the other side ended with an error, which is reported instead of this one
            false => Err(refuse("not read to the end")),
        }
    });
    send((count, texts));
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vocabulary of the numbers below `count`, and how to merge their digits.
    fn numbers(count: u32) -> (Words, Vec<(String, String)>) {
        let mut words = Words::with_capacity(0);
        let mut merges = Vec::new();
        for number in 0..count {
            let text = number.to_string();
            words.push(&text, number).unwrap();
            if let Some((left, right)) = text.split_at_checked(text.len() - 1)
                && !left.is_empty()
            {
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
        (words, merges)
    }

    fn assembled(
        bytes: usize,
        change: impl Fn(&mut Words, &mut Vec<(String, String)>),
    ) -> (bool, Result<Vec<[u32; 3]>, FormatError>) {
        let (mut words, mut merges) = numbers(20_000);
        change(&mut words, &mut merges);
        let (read, made) = assemble(bytes, words, |add| {
            merges.iter().try_for_each(|(left, right)| add(left, right))
        });
        (read.is_ok(), made.map(|(_, list)| list))
    }

    #[test]
    fn a_second_thread_changes_neither_ids_nor_errors() {
        let many = WORTH_A_THREAD;
        let (read, list) = assembled(many, |_, _| {});
        let list = list.unwrap();
        assert!(read);
        assert_eq!((list.len(), list[0]), (19_990, [1, 0, 10]));
        assert_eq!(list.last(), Some(&[1999, 9, 19_999]));
        assert_eq!(assembled(0, |_, _| {}).1.unwrap(), list);
        for bytes in [0, many] {
            // at the first, in the middle, at the last, and twice: the first counts
            for (places, named) in [
                (&[0][..], "merge 0 needs `x0`"),
                (&[9_999], "merge 9999 needs `x9999`"),
                (&[19_989, 5000], "merge 5000 needs `x5000`"),
                (&[19_989], "merge 19989 needs `x19989`"),
            ] {
                let (_, list) = assembled(bytes, |_, merges| {
                    for place in places {
                        merges[*place].0 = format!("x{place}");
                    }
                });
                let error = list.unwrap_err();
                assert!(error.message.starts_with(named), "{bytes}: {error}");
            }
            let (_, list) = assembled(bytes, |words, merges| {
                words.push("a", 7).unwrap();
                merges[0].0 = "x".to_owned();
            });
            let error = list.unwrap_err();
            assert!(error.message.contains("the same id 7"), "{bytes}: {error}");
        }
    }
}
