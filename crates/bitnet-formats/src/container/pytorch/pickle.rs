//! The pickle machine: what the operations of `torch.save` describe, as objects that refer to each other by number.
//!
//! Invariant: nothing is ever called, a name stays a name. Every operation is one that `torch.save` uses on a dict of
//! tensors, every length lies in the pickle, objects nest at most [`DEPTH`] deep, and what is used again is in proportion
//! to the pickle. Objects are shared as in Python: the memo holds numbers, so an object that grows after it was put
//! aside has grown for every user.
//!
//! The operations are those of Python's `pickletools`, protocol 2.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::malformed;
use crate::bytes::Cursor;
use crate::error::{ErrorCode, FormatError};
use std::collections::HashMap;

/// Deepest nesting; a parameter in a dict has 8.
const DEPTH: u32 = 64;
/// What every object counts besides its text.
const OBJECT: u64 = 8;
/// How many times the pickle's length may be used again; dicts of tensors need 4.
const COPIES: u64 = 16;

/// The number of an object.
pub(super) type Id = u32;

/// What an operation made.
#[derive(Debug)]
pub(super) enum Object<'a> {
    /// A function or class: module and name.
    Name(&'a str, &'a str),
    /// An integer.
    Int(i64),
    /// A float, whose value nobody asks for.
    Float,
    /// Text.
    Text(&'a str),
    /// True or false.
    Bool,
    /// None.
    None,
    /// A tuple.
    Tuple(Vec<Id>),
    /// A list.
    List(Vec<Id>),
    /// A dict in the order of its keys; a key may stand in it twice.
    Dict(Vec<(Id, Id)>),
    /// A call that is not made: function or class, and arguments.
    Call(Id, Id),
    /// An object and the state that would be set on it.
    Build,
    /// What the archive stores under this name.
    Persistent(Id),
}

/// The objects of a pickle.
#[derive(Debug)]
pub(super) struct Objects<'a>(Vec<(Object<'a>, Size)>);

impl<'a> Objects<'a> {
    /// The object of a number that an operation gave.
    pub(super) fn get(&self, id: Id) -> &Object<'a> {
        let found = usize::try_from(id).ok().and_then(|id| self.0.get(id));
        found.map_or(&Object::None, |(object, _)| object)
    }
}

/// How deep an object is, and how much would be copied with it.
#[derive(Debug, Clone, Copy)]
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

    /// This object with one more in it.
    fn with(self, part: Self) -> Self {
        Self {
            depth: self.depth.max(part.depth.saturating_add(1)),
            cost: self.cost.saturating_add(part.cost),
        }
    }
}

/// `None`: a mark.
type Slot = Option<Id>;

struct Machine<'a> {
    pickle: &'a [u8],
    cursor: Cursor<'a>,
    objects: Objects<'a>,
    stack: Vec<Slot>,
    memo: HashMap<u32, Id>,
    copied: u64,
    may_copy: u64,
}

/// Runs a pickle: its objects, and the number of the one that it describes.
///
/// # Errors
/// `malformed`, `truncated`, `limit-exceeded`, with the byte of the pickle.
pub(super) fn read(pickle: &[u8]) -> Result<(Objects<'_>, Id), FormatError> {
    let mut machine = Machine {
        pickle,
        cursor: Cursor::new(pickle),
        objects: Objects(Vec::new()),
        stack: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
        may_copy: (pickle.len() as u64).saturating_mul(COPIES),
    };
    loop {
        let at = machine.cursor.position();
        match machine.step() {
            Ok(Some(root)) => return Ok((machine.objects, root)),
            Ok(None) => {}
            Err(e) => return Err(e.at(at)),
        }
    }
}

impl<'a> Machine<'a> {
    /// One operation; the object of the last one.
    fn step(&mut self) -> Result<Option<Id>, FormatError> {
        let operation = self.cursor.u8("pickle")?;
        match operation {
            0x80 => self.cursor.u8("argument").map(|_| ())?, // PROTO
            b'c' => self.global()?,                          // GLOBAL
            b'K' => {
                let value = self.cursor.u8("argument")?; // BININT1
                self.leaf(Object::Int(value.into()))?;
            }
            b'M' => {
                let value = self.cursor.u16("argument")?; // BININT2
                self.leaf(Object::Int(value.into()))?;
            }
            b'J' => {
                let value = i32::from_le_bytes(self.cursor.array("argument")?); // BININT
                self.leaf(Object::Int(value.into()))?;
            }
            b'G' => {
                self.cursor.take(8, "argument")?; // BINFLOAT
                self.leaf(Object::Float)?;
            }
            b'N' => self.leaf(Object::None)?,              // NONE
            0x88 | 0x89 => self.leaf(Object::Bool)?,       // NEWTRUE, NEWFALSE
            b')' => self.leaf(Object::Tuple(Vec::new()))?, // EMPTY_TUPLE
            b']' => self.leaf(Object::List(Vec::new()))?,  // EMPTY_LIST
            b'}' => self.leaf(Object::Dict(Vec::new()))?,  // EMPTY_DICT
            0x8a => self.long()?,                          // LONG1
            b'X' => self.text()?,                          // BINUNICODE
            b'(' => self.stack.push(None),                 // MARK
            b't' => {
                let parts = self.pop_to_mark()?; // TUPLE
                self.tuple(parts)?;
            }
            0x85 => self.tuple_of(1)?, // TUPLE1
            0x86 => self.tuple_of(2)?, // TUPLE2
            0x87 => self.tuple_of(3)?, // TUPLE3
            b'R' | 0x81 => {
                let arguments = self.pop()?; // REDUCE, NEWOBJ
                let callable = self.pop()?;
                self.call(callable, arguments)?;
            }
            b'b' => {
                let state = self.pop()?; // BUILD
                self.build(state)?;
            }
            b'Q' => {
                let id = self.pop()?; // BINPERSID
                self.push(Object::Persistent(id), &[id])?;
            }
            b'a' => {
                let item = self.pop()?; // APPEND
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?; // APPENDS
                self.append(&items)?;
            }
            b's' => {
                let value = self.pop()?; // SETITEM
                let key = self.pop()?;
                self.set_items(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?; // SETITEMS
                self.set_items(&items)?;
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
                self.memoized(id.into())?;
            }
            b'j' => {
                let id = self.cursor.u32("memo")?; // LONG_BINGET
                self.memoized(id)?;
            }
            b'.' => return self.pop().map(Some), // STOP
            other => {
                let message = format!(
                    "expected an operation of a pickled dict of tensors, found {other:#04x}"
                );
                return Err(malformed(message)
                    .hint("torch.save(model.state_dict(), FILE) with its defaults writes what can be read"));
            }
        }
        Ok(None)
    }

    fn leaf(&mut self, object: Object<'a>) -> Result<(), FormatError> {
        self.push_sized(object, Size::LEAF)
    }

    fn long(&mut self) -> Result<(), FormatError> {
        let len = self.cursor.u8("integer")?;
        if len > 8 {
            let message = format!("an integer of {len} bytes, expected at most 8");
            return Err(FormatError::new(ErrorCode::LimitExceeded, message));
        }
        let bytes = self.cursor.take(len.into(), "integer")?;
        // two's complement, little-endian, as short as possible
        let sign = bytes.last().is_some_and(|last| *last >= 0x80);
        let mut all = [if sign { 0xff } else { 0 }; 8];
        for (to, from) in all.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.leaf(Object::Int(i64::from_le_bytes(all)))
    }

    fn text(&mut self) -> Result<(), FormatError> {
        let len = self.cursor.u32("text")?;
        let text = utf8(self.span(len.into(), "text")?)?;
        self.push_sized(Object::Text(text), Size::text(len.into()))
    }

    /// Module and name, a line each.
    fn global(&mut self) -> Result<(), FormatError> {
        let (module, name) = (self.line()?, self.line()?);
        let len = module.len().saturating_add(name.len()) as u64;
        self.push_sized(Object::Name(module, name), Size::text(len))
    }

    fn line(&mut self) -> Result<&'a str, FormatError> {
        let mut ahead = self.cursor.clone();
        let mut len = 0u64;
        while ahead.u8("name")? != b'\n' {
            len = len.saturating_add(1);
        }
        let line = self.span(len, "name")?;
        self.cursor.skip(1, "name")?;
        utf8(line)
    }

    /// The next bytes, for as long as the pickle lives.
    fn span(&mut self, len: u64, what: &str) -> Result<&'a [u8], FormatError> {
        let start = self.cursor.position();
        self.cursor.skip(len, what)?;
        let (start, end) = (start as usize, self.cursor.position() as usize);
        // the cursor moves inside the pickle only
        Ok(self.pickle.get(start..end).unwrap_or_default())
    }

    fn size(&self, id: Id) -> Size {
        let found = usize::try_from(id)
            .ok()
            .and_then(|id| self.objects.0.get(id));
        found.map_or(Size::LEAF, |(_, size)| *size)
    }

    /// A new object around others.
    fn push(&mut self, object: Object<'a>, parts: &[Id]) -> Result<(), FormatError> {
        let size = parts
            .iter()
            .fold(Size::LEAF, |size, part| size.with(self.size(*part)));
        self.push_sized(object, size)
    }

    fn push_sized(&mut self, object: Object<'a>, size: Size) -> Result<(), FormatError> {
        shallow(size)?;
        let id = Id::try_from(self.objects.0.len()).map_err(|_| {
            FormatError::new(ErrorCode::LimitExceeded, "more objects than 32 bits count")
        })?;
        self.objects.0.push((object, size));
        self.stack.push(Some(id));
        Ok(())
    }

    fn pop(&mut self) -> Result<Id, FormatError> {
        match self.stack.pop() {
            Some(Some(id)) => Ok(id),
            _ => Err(malformed("the operation finds no object on the stack")),
        }
    }

    /// What was pushed since the last mark, in order.
    fn pop_to_mark(&mut self) -> Result<Vec<Id>, FormatError> {
        let mark = self.stack.iter().rposition(Option::is_none);
        let mark = mark.ok_or_else(|| malformed("the operation finds no mark on the stack"))?;
        let parts = self.stack.drain(mark..).flatten().collect();
        Ok(parts)
    }

    fn tuple(&mut self, parts: Vec<Id>) -> Result<(), FormatError> {
        let size = parts
            .iter()
            .fold(Size::LEAF, |size, part| size.with(self.size(*part)));
        self.push_sized(Object::Tuple(parts), size)
    }

    fn tuple_of(&mut self, count: usize) -> Result<(), FormatError> {
        let mut parts = Vec::with_capacity(count);
        for _ in 0..count {
            parts.push(self.pop()?);
        }
        parts.reverse();
        self.tuple(parts)
    }

    /// An ordered dict without arguments is an empty dict; every other call stays what it is.
    fn call(&mut self, callable: Id, arguments: Id) -> Result<(), FormatError> {
        let dict = matches!(
            self.objects.get(callable),
            Object::Name("collections", "OrderedDict" | "defaultdict")
        );
        let bare = matches!(self.objects.get(arguments), Object::Tuple(parts) if parts.is_empty());
        let object = match dict && bare {
            true => Object::Dict(Vec::new()),
            false => Object::Call(callable, arguments),
        };
        self.push(object, &[callable, arguments])
    }

    /// Attributes of a dict (torch keeps versions of modules there) are no entries of it.
    fn build(&mut self, state: Id) -> Result<(), FormatError> {
        let object = self.pop()?;
        let attributes = matches!(self.objects.get(state), Object::Dict(_));
        if attributes && matches!(self.objects.get(object), Object::Dict(_)) {
            self.stack.push(Some(object));
            return Ok(());
        }
        self.push(Object::Build, &[object, state])
    }

    /// The last object, grown by these parts.
    fn grow(&mut self, parts: &[Id]) -> Result<&mut Object<'a>, FormatError> {
        let Some(Some(id)) = self.stack.last().copied() else {
            return Err(malformed("the operation finds no object on the stack"));
        };
        let size = parts
            .iter()
            .fold(self.size(id), |size, part| size.with(self.size(*part)));
        shallow(size)?;
        let found = usize::try_from(id)
            .ok()
            .and_then(|id| self.objects.0.get_mut(id));
        let (object, own) =
            found.ok_or_else(|| malformed("the operation finds no object on the stack"))?;
        *own = size;
        Ok(object)
    }

    fn append(&mut self, items: &[Id]) -> Result<(), FormatError> {
        match self.grow(items)? {
            Object::List(list) => {
                list.extend(items);
                Ok(())
            }
            _ => Err(malformed(
                "the pickle cannot be read: items for what is not a list",
            )),
        }
    }

    fn set_items(&mut self, items: &[Id]) -> Result<(), FormatError> {
        let (pairs, []) = items.as_chunks::<2>() else {
            return Err(malformed(
                "the pickle cannot be read: a key without a value",
            ));
        };
        match self.grow(items)? {
            Object::Dict(dict) => {
                dict.extend(pairs.iter().map(|[key, value]| (*key, *value)));
                Ok(())
            }
            _ => Err(malformed(
                "the pickle cannot be read: entries for what is not a dict",
            )),
        }
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
        let Some(Some(object)) = self.stack.last().copied() else {
            return Err(malformed("the operation finds no object on the stack"));
        };
        self.copy(self.size(object))?;
        self.memo.insert(id, object);
        Ok(())
    }

    fn memoized(&mut self, id: u32) -> Result<(), FormatError> {
        let object = self.memo.get(&id).copied();
        let object = object.ok_or_else(|| malformed(format!("no object {id} was put aside")))?;
        self.copy(self.size(object))?;
        self.stack.push(Some(object));
        Ok(())
    }
}

fn shallow(size: Size) -> Result<(), FormatError> {
    if size.depth <= DEPTH {
        return Ok(());
    }
    let message = format!("objects nest deeper than {DEPTH}");
    Err(FormatError::new(ErrorCode::LimitExceeded, message))
}

fn utf8(bytes: &[u8]) -> Result<&str, FormatError> {
    std::str::from_utf8(bytes)
        .map_err(|_| malformed("the pickle cannot be read: expected UTF-8 text"))
}
