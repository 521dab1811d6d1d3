//! Pieces of a text, or tokens, as they are generated.
//!
//! Invariant: a thread generates at most one piece ahead of its reader, and ends at its next token when nobody reads
//! any more.

use crate::failure::{panicked, raised, usage};
use crate::process::Owned;
use crate::work::{Watch, wait};
use bitnet_cli::{Failure, FormatError, Observer};
use pyo3::prelude::*;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

/// What the generating thread sends.
#[derive(Debug)]
pub enum Message {
    /// A piece of text.
    Text(String),
    /// A token.
    Token(u32),
    /// Why there is no more.
    Failed(Failure),
    /// A panic.
    Panicked(Box<dyn Any + Send>),
}

/// Why a text ends early.
#[derive(Debug)]
pub enum Ended {
    /// Nobody reads any more.
    Unread,
    /// It failed.
    Failed(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

impl From<FormatError> for Ended {
    fn from(error: FormatError) -> Self {
        Self::Failed(error.into())
    }
}

/// Where the generating thread sends to.
pub struct Sink {
    sender: SyncSender<Message>,
    watch: Arc<Watch>,
}

impl Sink {
    /// Sends a message; an empty text is only a look at whether anybody reads.
    ///
    /// # Errors
    /// Nobody reads any more.
    pub fn send(&self, message: Message) -> Result<(), Ended> {
        if self.watch.is_cancelled() {
            return Err(Ended::Unread);
        }
        match message {
            Message::Text(text) if text.is_empty() => Ok(()),
            message => self.sender.send(message).map_err(|_| Ended::Unread),
        }
    }
}

/// An iterator over what is generated: `str` pieces, or `int` tokens.
#[pyclass(module = "bitnet_toolchain._native", frozen)]
pub struct Pieces {
    inner: Owned<Inner>,
}

struct Inner {
    /// Taken while somebody waits.
    receiver: Mutex<State>,
    watch: Arc<Watch>,
}

enum State {
    Open(Receiver<Message>),
    Waited,
    Ended,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.watch.cancel();
    }
}

impl Pieces {
    /// Starts `work` on a thread.
    ///
    /// # Errors
    /// No thread.
    pub fn start(
        py: Python<'_>,
        work: impl FnOnce(&Sink) -> Result<(), Ended> + Send + 'static,
    ) -> PyResult<Self> {
        let watch = Arc::new(Watch::default());
        let (sender, receiver) = sync_channel(0);
        let sink = Sink {
            sender,
            watch: Arc::clone(&watch),
        };
        let started = std::thread::Builder::new()
            .name("bitnet-text".to_owned())
            .spawn(move || {
                let message = match catch_unwind(AssertUnwindSafe(|| work(&sink))) {
                    Ok(Ok(()) | Err(Ended::Unread)) => return,
                    Ok(Err(Ended::Failed(failure))) => Message::Failed(failure),
                    Err(panic) => Message::Panicked(panic),
                };
                // fails if nobody reads any more
                let _ = sink.sender.send(message);
            });
        started.map_err(|e| usage(py, &format!("cannot start a thread: {e}"), None))?;
        Ok(Self {
            inner: Owned::new(Inner {
                receiver: Mutex::new(State::Open(receiver)),
                watch,
            }),
        })
    }
}

impl Inner {
    fn replace(&self, state: State) -> State {
        let mut held = self.receiver.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *held, state)
    }
}

#[pymethods]
impl Pieces {
    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let inner = self.inner.get(py)?;
        let mut receiver = match inner.replace(State::Waited) {
            State::Open(receiver) => receiver,
            State::Ended => {
                inner.replace(State::Ended);
                return Ok(None);
            }
            State::Waited => {
                let message = "another thread is waiting for the next piece";
                return Err(usage(py, message, Some("read the pieces in one thread")));
            }
        };
        loop {
            // also while pieces come faster than any wait ends
            if let Err(error) = py.check_signals() {
                inner.watch.cancel();
                inner.replace(State::Ended);
                py.detach(move || drop(receiver));
                return Err(error);
            }
            let came;
            (came, receiver) = wait(py, receiver);
            let ended = match came {
                Ok(Message::Text(text)) => {
                    inner.replace(State::Open(receiver));
                    return Ok(Some(text.into_pyobject(py)?.into_any().unbind()));
                }
                Ok(Message::Token(token)) => {
                    inner.replace(State::Open(receiver));
                    return Ok(Some(token.into_pyobject(py)?.into_any().unbind()));
                }
                Ok(Message::Failed(failure)) => Err(raised(py, &failure)),
                Ok(Message::Panicked(panic)) => Err(panicked(py, &*panic)),
                Err(RecvTimeoutError::Disconnected) => Ok(None),
                Err(RecvTimeoutError::Timeout) => match py.check_signals() {
                    Err(error) => Err(error),
                    Ok(()) if inner.watch.is_cancelled() => Ok(None),
                    Ok(()) => continue,
                },
            };
            inner.watch.cancel();
            inner.replace(State::Ended);
            return ended;
        }
    }

    /// Stops the generation.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let inner = self.inner.get(py)?;
        inner.watch.cancel();
        // somebody who waits sees the end at the next tick
        match inner.replace(State::Ended) {
            State::Waited => drop(inner.replace(State::Waited)),
            State::Open(receiver) => py.detach(move || drop(receiver)),
            State::Ended => {}
        }
        Ok(())
    }
}
