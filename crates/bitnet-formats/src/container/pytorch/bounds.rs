//! What a pickle would cost, before anybody builds what it describes.
//!
//! Invariant: of a pickle that passes, every operation is one that `torch.save` uses on a dict of tensors,
//! every length lies in the pickle, objects nest at most [`DEPTH`] deep, and what is copied to and from the
//! memo is in proportion to the pickle. So a reader that recurses, and that copies where Python shares,
//! can be trusted with it.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::malformed;
use crate::bytes::Cursor;
use crate::error::{ErrorCode, FormatError};
use std::collections::HashMap;

/// Deepest nesting; a parameter in a dict has 8.
const DEPTH: u32 = 64;
/// What every object counts besides its text.
const OBJECT: u64 = 8;
/// How many times the pickle's length may be copied; dicts of tensors need 4.
const COPIES: u64 = 16;

/// An object on the stack.
#[derive(Clone, Copy)]
struct Size {
    depth: u32,
    cost: u64,
}

impl Size {
    const LEAF: Self = Self {
        depth: 1,
        cost: OBJECT,
    };

    fn text(len: u64) -> Self {
        Self {
            depth: 1,
            cost: OBJECT.saturating_add(len),
        }
    }

    /// An object around these.
    fn around(parts: &[Self]) -> Self {
        parts.iter().fold(Self::LEAF, |all, part| all.with(*part))
    }

    /// This object with one more in it.
    fn with(self, part: Self) -> Self {
        Self {
            depth: self.depth.max(part.depth.saturating_add(1)),
            cost: self.cost.saturating_add(part.cost),
        }
    }
}

/// `None`: a mark.
type Slot = Option<Size>;

struct Machine<'a> {
    cursor: Cursor<'a>,
    stack: Vec<Slot>,
    memo: HashMap<u32, Size>,
    copied: u64,
    may_copy: u64,
}

/// Runs a pickle without making its objects.
///
/// # Errors
/// `malformed`, `truncated`, `limit-exceeded`, with the byte of the pickle.
pub(super) fn check(pickle: &[u8]) -> Result<(), FormatError> {
    let mut machine = Machine {
        cursor: Cursor::new(pickle),
        stack: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
        may_copy: (pickle.len() as u64).saturating_mul(COPIES),
    };
    loop {
        let at = machine.cursor.position();
        match machine.step() {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            Err(e) => return Err(e.at(at)),
        }
    }
}

impl Machine<'_> {
    /// One operation; whether it was the last.
    fn step(&mut self) -> Result<bool, FormatError> {
        let operation = self.cursor.u8("pickle")?;
        match operation {
            0x80 => self.skip(1)?,                                    // PROTO
            b'c' => self.global()?,                                   // GLOBAL
            b'K' => self.leaf(1)?,                                    // BININT1
            b'M' => self.leaf(2)?,                                    // BININT2
            b'J' => self.leaf(4)?,                                    // BININT
            b'G' => self.leaf(8)?,                                    // BINFLOAT
            b'N' | 0x88 | 0x89 | b')' | b']' | b'}' => self.leaf(0)?, // NONE, bools, empty ones
            0x8a => self.long()?,                                     // LONG1
            b'X' => self.text()?,                                     // BINUNICODE
            b'(' => self.stack.push(None),                            // MARK
            b't' => {
                let parts = self.pop_to_mark()?; // TUPLE
                self.push(Size::around(&parts))?;
            }
            0x85 => self.join(1)?,                      // TUPLE1
            0x86 | b'R' | 0x81 | b'b' => self.join(2)?, // TUPLE2, REDUCE, NEWOBJ, BUILD
            0x87 => self.join(3)?,                      // TUPLE3
            b'Q' => self.join(1)?,                      // BINPERSID
            b'a' => self.add(1)?,                       // APPEND
            b's' => self.add(2)?,                       // SETITEM
            b'e' | b'u' => {
                let parts = self.pop_to_mark()?; // APPENDS, SETITEMS
                self.add_all(&parts)?;
            }
            b'q' => {
                let id = self.cursor.u8("memo")?; // BINPUT
                self.put(id.into())?;
            }
            b'r' => {
                let id = self.cursor.u32("memo")?; // LONG_BINPUT
                self.put(id)?;
            }
            b'h' => {
                let id = self.cursor.u8("memo")?; // BINGET
                self.get(id.into())?;
            }
            b'j' => {
                let id = self.cursor.u32("memo")?; // LONG_BINGET
                self.get(id)?;
            }
            b'.' => {
                self.pop()?; // STOP
                return Ok(true);
            }
            other => {
                let message = format!(
                    "expected an operation of a pickled dict of tensors, found {other:#04x}"
                );
                return Err(malformed(message)
                    .hint("torch.save(model.state_dict(), FILE) with its defaults writes what can be read"));
            }
        }
        Ok(false)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), FormatError> {
        self.cursor.take(bytes, "argument").map(|_| ())
    }

    fn leaf(&mut self, bytes: u64) -> Result<(), FormatError> {
        self.skip(bytes)?;
        self.push(Size::LEAF)
    }

    fn long(&mut self) -> Result<(), FormatError> {
        let len = self.cursor.u8("integer")?;
        if len > 8 {
            let message = format!("an integer of {len} bytes, expected at most 8");
            return Err(FormatError::new(ErrorCode::LimitExceeded, message));
        }
        self.leaf(len.into())
    }

    fn text(&mut self) -> Result<(), FormatError> {
        let len = self.cursor.u32("text")?;
        self.skip(len.into())?;
        self.push(Size::text(len.into()))
    }

    /// Module and name, a line each.
    fn global(&mut self) -> Result<(), FormatError> {
        let before = self.cursor.position();
        for _ in 0..2 {
            while self.cursor.u8("name")? != b'\n' {}
        }
        self.push(Size::text(self.cursor.position().saturating_sub(before)))
    }

    fn push(&mut self, size: Size) -> Result<(), FormatError> {
        if size.depth > DEPTH {
            let message = format!("objects nest deeper than {DEPTH}");
            return Err(FormatError::new(ErrorCode::LimitExceeded, message));
        }
        self.stack.push(Some(size));
        Ok(())
    }

    fn pop(&mut self) -> Result<Size, FormatError> {
        match self.stack.pop() {
            Some(Some(size)) => Ok(size),
            _ => Err(malformed("the operation finds no object on the stack")),
        }
    }

    /// What was pushed since the last mark, in order.
    fn pop_to_mark(&mut self) -> Result<Vec<Size>, FormatError> {
        let mark = self.stack.iter().rposition(Option::is_none);
        let mark = mark.ok_or_else(|| malformed("the operation finds no mark on the stack"))?;
        let parts = self.stack.drain(mark..).flatten().collect();
        Ok(parts)
    }

    /// The last objects become one.
    fn join(&mut self, count: usize) -> Result<(), FormatError> {
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            parts.push(self.pop()?);
        }
        self.push(Size::around(&parts))
    }

    /// The last objects go into the one before them.
    fn add(&mut self, count: usize) -> Result<(), FormatError> {
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            parts.push(self.pop()?);
        }
        self.add_all(&parts)
    }

    fn add_all(&mut self, parts: &[Size]) -> Result<(), FormatError> {
        let whole = self.pop()?;
        self.push(parts.iter().fold(whole, |whole, part| whole.with(*part)))
    }

    fn copy(&mut self, size: Size) -> Result<(), FormatError> {
        self.copied = self.copied.saturating_add(size.cost);
        if self.copied <= self.may_copy {
            return Ok(());
        }
        let message = "objects that are used again and again make more than the pickle could hold";
        Err(FormatError::new(ErrorCode::LimitExceeded, message))
    }

    fn put(&mut self, id: u32) -> Result<(), FormatError> {
        let Some(Some(size)) = self.stack.last().copied() else {
            return Err(malformed("the operation finds no object on the stack"));
        };
        self.copy(size)?;
        self.memo.insert(id, size);
        Ok(())
    }

    fn get(&mut self, id: u32) -> Result<(), FormatError> {
        let size = self.memo.get(&id).copied();
        let size = size.ok_or_else(|| malformed(format!("no object {id} was put aside")))?;
        self.copy(size)?;
        self.push(size)
    }
}
