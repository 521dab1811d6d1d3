//! The values of a template, as Python has them.
//!
//! Invariant: texts, lists and dictionaries never change once made (the sandbox of transformers forbids
//! it), and know how deep they are; what can change (namespaces, loops, frames) is held by the
//! renderer's registry too, so dropping a value never recurses far.

use super::ast::{self, For, Names};
use super::meter::{Charge, Error, R, VALUE_DEPTH, error, fail, over, spend, spend_bytes};
pub(super) use super::text::Text;
use super::text::shown;
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// With the error of using it.
    Undefined(Text),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Text),
    /// Python's `bytes`, of the characters up to U+00FF.
    Bytes(Text),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    /// A tuple whose two items are also called `grouper` and `list`.
    Group(Rc<Seq>),
    Dict(Rc<Dict>),
    View(ViewKind, Rc<Dict>),
    Range(Range),
    /// A generator or another iterator: each item comes once.
    Iter(Rc<Iter>),
    Namespace(Rc<RefCell<Dict>>),
    Loop(Rc<LoopState>),
    Macro(Rc<Closure>),
    Cycler(Rc<Cycler>),
    Joiner(Rc<(Text, Cell<bool>)>),
    Function(Function),
    Method(Rc<Method>),
    /// `self`
    Template,
    /// `self.name`
    Block(Rc<ast::Block>),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum ViewKind {
    Keys,
    Values,
    Items,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Function {
    Range,
    Dict,
    Namespace,
    Cycler,
    Joiner,
    Lipsum,
    RaiseException,
    StrftimeNow,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Range {
    pub(super) start: i64,
    pub(super) stop: i64,
    pub(super) step: i64,
}

impl Range {
    pub(super) fn len(self) -> usize {
        let (start, stop) = (i128::from(self.start), i128::from(self.stop));
        let step = i128::from(self.step);
        let span = if step > 0 {
            stop.saturating_sub(start)
        } else {
            start.saturating_sub(stop)
        };
        let count = span.saturating_add(step.saturating_abs()).saturating_sub(1);
        let count = count.div_euclid(step.saturating_abs().max(1));
        usize::try_from(count).unwrap_or(0)
    }

    pub(super) fn get(self, at: usize) -> Value {
        Value::Int(
            i128::from(self.start).saturating_add(i128::from(self.step).saturating_mul(at as i128)),
        )
    }
}

/// A macro with the frame it was made in.
#[derive(Debug)]
pub(super) struct Closure {
    pub(super) of: Rc<ast::Macro>,
    pub(super) frame: Rc<Frame>,
    pub(super) _charge: Charge,
}

#[derive(Debug)]
pub(super) struct Cycler {
    pub(super) items: Rc<Seq>,
    pub(super) at: Cell<usize>,
}

/// The variables of a frame while it runs.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) names: Rc<Names>,
    pub(super) slots: RefCell<Vec<Option<Value>>>,
    pub(super) parent: Option<Rc<Frame>>,
    pub(super) kept: Cell<bool>,
    _charge: Charge,
}

impl Frame {
    pub(super) fn new(names: Option<&Rc<Names>>, parent: Option<&Rc<Frame>>) -> R<Rc<Self>> {
        let names = names.cloned().unwrap_or_default();
        let count = names.len();
        Ok(Rc::new(Self {
            _charge: Charge::new(
                count
                    .saturating_mul(size_of::<Option<Value>>())
                    .saturating_add(96),
            )?,
            slots: RefCell::new(vec![None; count]),
            names,
            parent: parent.cloned(),
            kept: Cell::new(false),
        }))
    }

    /// The value of a variable of this frame or one around it.
    pub(super) fn load(&self, name: &str) -> R<Option<Value>> {
        let mut frame = Some(self);
        while let Some(this) = frame {
            spend(1)?;
            if let Some(at) = this.names.position(name) {
                return Ok(this.slots.borrow().get(at).cloned().flatten());
            }
            frame = this.parent.as_deref();
        }
        Ok(None)
    }

    pub(super) fn store(&self, name: &str, value: Option<Value>) -> R<()> {
        let mut frame = Some(self);
        while let Some(this) = frame {
            spend(1)?;
            if let Some(at) = this.names.position(name) {
                let old = match this.slots.borrow_mut().get_mut(at) {
                    Some(slot) => std::mem::replace(slot, value),
                    None => None,
                };
                drop(old);
                return Ok(());
            }
            frame = this.parent.as_deref();
        }
        fail(format!("the name {name} cannot be resolved"))
    }

    pub(super) fn clear(&self) {
        let values = std::mem::take(&mut *self.slots.borrow_mut());
        let count = values.len();
        drop(values);
        *self.slots.borrow_mut() = vec![None; count];
    }
}

/// What a loop takes its items from.
#[derive(Debug)]
pub(super) enum Source {
    Text(Text, usize),
    Items(Rc<Seq>, usize),
    Dict(ViewKind, Rc<Dict>, usize),
    Range(Range, usize),
    Iter(Rc<Iter>),
    /// Items that have passed the test.
    Passed(
        VecDeque<Value>,
        #[expect(dead_code, reason = "given back with the items")] Charge,
    ),
}

#[derive(Debug)]
pub(super) struct LoopState {
    pub(super) source: RefCell<Source>,
    pub(super) node: Rc<For>,
    pub(super) test_frame: Option<Rc<Frame>>,
    /// The frame around a recursive loop.
    pub(super) outer: Option<Rc<Frame>>,
    pub(super) depth0: usize,
    /// Items taken.
    pub(super) taken: Cell<usize>,
    pub(super) length: Cell<Option<usize>>,
    pub(super) before: RefCell<Option<Value>>,
    pub(super) current: RefCell<Option<Value>>,
    /// The next item if it was looked at: `Some(None)` is the end.
    pub(super) after: RefCell<Option<Option<Value>>>,
    pub(super) changed: RefCell<Option<Value>>,
    pub(super) _charge: Charge,
}

/// A method of a value before it is called.
#[derive(Debug)]
pub(super) struct Method {
    pub(super) of: Value,
    pub(super) name: Rc<str>,
    _charge: Charge,
}

impl Method {
    pub(super) fn value(of: &Value, name: &str) -> R<Value> {
        deep_enough(of.depth().saturating_add(1))?;
        Ok(Value::Method(Rc::new(Self {
            of: of.clone(),
            name: name.into(),
            _charge: Charge::new(name.len().saturating_add(96))?,
        })))
    }
}

/// Items of a list or tuple.
#[derive(Debug)]
pub(super) struct Seq {
    pub(super) items: Vec<Value>,
    depth: usize,
    _charge: Charge,
}

pub(super) fn deep_enough(depth: usize) -> R<()> {
    match depth > VALUE_DEPTH {
        true => over(format!(
            "the nesting limit: a value is nested deeper than {VALUE_DEPTH} levels"
        )),
        false => Ok(()),
    }
}

impl Seq {
    pub(super) fn new(items: Vec<Value>) -> R<Rc<Self>> {
        let depth = items
            .iter()
            .map(Value::depth)
            .max()
            .unwrap_or(0)
            .saturating_add(1);
        deep_enough(depth)?;
        let bytes = items
            .len()
            .saturating_mul(size_of::<Value>())
            .saturating_add(64);
        Ok(Rc::new(Self {
            depth,
            _charge: Charge::new(bytes)?,
            items,
        }))
    }
}

/// A list while it grows within the limits.
#[derive(Debug, Default)]
pub(super) struct Grow {
    items: Vec<Value>,
    charge: Charge,
}

impl Grow {
    pub(super) fn push(&mut self, item: Value) -> R<()> {
        spend(1)?;
        if self.items.len() == self.items.capacity() {
            let more = self.items.len().max(4);
            self.charge.grow(more.saturating_mul(size_of::<Value>()))?;
            self.items.reserve_exact(more);
        }
        self.items.push(item);
        Ok(())
    }

    pub(super) fn into_list(self) -> R<Value> {
        let (items, charge) = self.into_parts()?;
        drop(charge);
        Value::list(items)
    }

    pub(super) fn into_tuple(self) -> R<Value> {
        let (items, charge) = self.into_parts()?;
        drop(charge);
        Value::tuple(items)
    }

    /// An iterator that ends, if so, in an error.
    pub(super) fn into_iter(self, ends: Option<Box<Error>>) -> R<Value> {
        let (items, charge) = self.into_parts()?;
        drop(charge);
        Iter::value(items, ends)
    }

    pub(super) fn into_parts(mut self) -> R<(Vec<Value>, Charge)> {
        self.items.shrink_to_fit();
        Ok((self.items, self.charge))
    }
}

/// An iterator, with what it has left.
#[derive(Debug)]
pub(super) struct Iter {
    state: RefCell<IterState>,
    depth: usize,
    _charge: Charge,
}

#[derive(Debug)]
enum IterState {
    Left(VecDeque<Value>, Option<Box<Error>>),
    /// Another iterator or a loop is reading it: Python would take items from both.
    Borrowed,
}

impl Iter {
    /// Of items that end, if so, in an error.
    pub(super) fn value(items: Vec<Value>, ends: Option<Box<Error>>) -> R<Value> {
        let depth = items
            .iter()
            .map(Value::depth)
            .max()
            .unwrap_or(0)
            .saturating_add(1);
        deep_enough(depth)?;
        let charge = Charge::new(
            items
                .len()
                .saturating_mul(size_of::<Value>())
                .saturating_add(96),
        )?;
        Ok(Value::Iter(Rc::new(Self {
            state: RefCell::new(IterState::Left(items.into(), ends)),
            depth,
            _charge: charge,
        })))
    }

    fn borrowed<T>() -> R<T> {
        fail("an iterator that is read in two places is not supported")
    }

    pub(super) fn next(&self) -> R<Option<Value>> {
        match &mut *self.state.borrow_mut() {
            IterState::Borrowed => Self::borrowed(),
            IterState::Left(items, ends) => match (items.pop_front(), ends.take()) {
                (Some(item), error) => {
                    *ends = error;
                    Ok(Some(item))
                }
                (None, Some(error)) => Err(error),
                (None, None) => Ok(None),
            },
        }
    }

    /// Everything left, for a lazy reader; with the error that ends it.
    pub(super) fn take(&self) -> R<(Vec<Value>, Option<Box<Error>>)> {
        match std::mem::replace(&mut *self.state.borrow_mut(), IterState::Borrowed) {
            IterState::Borrowed => Self::borrowed(),
            IterState::Left(items, ends) => Ok((items.into(), ends)),
        }
    }

    /// Everything left, at once.
    pub(super) fn drain(&self) -> R<Vec<Value>> {
        let (items, ends) = self.take()?;
        *self.state.borrow_mut() = IterState::Left(Default::default(), None);
        match ends {
            Some(error) => Err(error),
            None => Ok(items),
        }
    }
}

/// A key as Python hashes it: `1`, `1.0` and `True` are one key.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    None,
    Int(i128),
    Float(u64),
    Text(Rc<str>),
    Tuple(Vec<Key>),
}

impl Key {
    /// Bytes that a key holds.
    fn weight(&self) -> usize {
        match self {
            Self::Text(text) => text.len().saturating_add(32),
            Self::Tuple(keys) => (keys.iter().map(Self::weight).sum::<usize>()).saturating_add(32),
            _ => 32,
        }
    }
}

fn key(value: &Value) -> R<Key> {
    Ok(match value {
        Value::None => Key::None,
        Value::Bool(b) => Key::Int(i128::from(*b)),
        Value::Int(i) => Key::Int(*i),
        Value::Float(f) if f.is_nan() => return fail("a key that is NaN is not supported"),
        Value::Float(f) if f.fract() == 0.0 && f.abs() < 1e30 => Key::Int(*f as i128),
        Value::Float(f) => Key::Float(f.to_bits()),
        Value::Str(text) => {
            spend_bytes(text.as_str().len())?;
            Key::Text(text.as_str().into())
        }
        Value::Tuple(items) | Value::Group(items) => {
            // a tuple may hold itself many times over
            spend(items.items.len().saturating_mul(16))?;
            Key::Tuple(items.items.iter().map(key).collect::<R<_>>()?)
        }
        Value::List(_) | Value::Dict(_) => {
            return fail(format!("unhashable type: '{}'", value.type_name()));
        }
        other => return fail(format!("{} as a key is not supported", other.type_name())),
    })
}

/// A set of values as Python hashes them.
#[derive(Default)]
pub(super) struct Seen(std::collections::HashSet<Key>, Charge);

impl Seen {
    /// Whether a value is new.
    pub(super) fn insert(&mut self, value: &Value) -> R<bool> {
        let key = key(value)?;
        self.1.grow(key.weight().saturating_add(64))?;
        Ok(self.0.insert(key))
    }
}

/// A dictionary in the order of insertion.
#[derive(Debug, Default)]
pub(super) struct Dict {
    places: HashMap<Key, usize>,
    entries: Vec<(Value, Value)>,
    depth: usize,
    charge: Charge,
}

impl Dict {
    pub(super) fn get(&self, at: &Value) -> R<Option<Value>> {
        let place = self.places.get(&key(at)?);
        Ok(place
            .and_then(|&at| self.entries.get(at))
            .map(|(_, v)| v.clone()))
    }

    pub(super) fn get_str(&self, at: &str) -> Option<Value> {
        let place = self.places.get(&Key::Text(at.into()));
        place
            .and_then(|&at| self.entries.get(at))
            .map(|(_, v)| v.clone())
    }

    pub(super) fn insert(&mut self, at: Value, value: Value) -> R<()> {
        let depth = at.depth().max(value.depth()).saturating_add(1);
        deep_enough(depth)?;
        self.depth = self.depth.max(depth);
        let key = key(&at)?;
        if let Some(&place) = self.places.get(&key) {
            if let Some(entry) = self.entries.get_mut(place) {
                entry.1 = value;
            }
            return Ok(());
        }
        self.charge.grow(key.weight().saturating_add(160))?;
        self.places.insert(key, self.entries.len());
        self.entries.push((at, value));
        Ok(())
    }

    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn entries(&self) -> &[(Value, Value)] {
        &self.entries
    }
}

impl Value {
    pub(super) fn text(text: &str) -> R<Self> {
        Text::new(text).map(Self::Str)
    }

    pub(super) fn list(items: Vec<Self>) -> R<Self> {
        Seq::new(items).map(Self::List)
    }

    pub(super) fn tuple(items: Vec<Self>) -> R<Self> {
        Seq::new(items).map(Self::Tuple)
    }

    /// A variable that is not there.
    pub(super) fn undefined(name: &str) -> R<Self> {
        Self::lacking(&format!("'{}' is undefined", shown(name)))
    }

    /// What is not there, with the error of using it.
    pub(super) fn lacking(what: &str) -> R<Self> {
        Text::new(what).map(Self::Undefined)
    }

    /// Levels of values within; those of the registry count as none.
    pub(super) fn depth(&self) -> usize {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.depth,
            Self::Dict(dict) | Self::View(_, dict) => dict.depth(),
            Self::Iter(iter) => iter.depth,
            Self::Method(method) => method.of.depth().saturating_add(1),
            Self::Cycler(cycler) => cycler.items.depth.saturating_add(1),
            _ => 0,
        }
    }

    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(text) if text.is_markup() => "Markup",
            Self::Str(_) => "str",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Group(_) => "_GroupTuple",
            Self::Dict(_) => "dict",
            Self::View(ViewKind::Keys, _) => "dict_keys",
            Self::View(ViewKind::Values, _) => "dict_values",
            Self::View(ViewKind::Items, _) => "dict_items",
            Self::Range(_) => "range",
            Self::Iter(_) => "generator",
            Self::Namespace(_) => "Namespace",
            Self::Loop(_) => "LoopContext",
            Self::Macro(_) => "Macro",
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
            Self::Function(_) => "function",
            Self::Method(_) => "method",
            Self::Template => "TemplateReference",
            Self::Block(_) => "BlockReference",
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(b) => *b,
            Self::Int(i) => *i != 0,
            Self::Float(f) => *f != 0.0,
            Self::Str(text) | Self::Bytes(text) => !text.as_str().is_empty(),
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => !items.items.is_empty(),
            Self::Dict(dict) | Self::View(_, dict) => !dict.entries().is_empty(),
            Self::Range(range) => range.len() > 0,
            // a loop has a length, which is not zero while it runs
            _ => true,
        }
    }

    /// A number as Python's arithmetic sees it.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(i) => Some(*i),
            Self::Bool(b) => Some(i128::from(*b)),
            _ => None,
        }
    }

    /// A whole number that stands for a size or a place.
    pub(super) fn index(&self) -> R<i128> {
        match self.as_int() {
            Some(i) => Ok(i),
            None => fail(format!(
                "'{}' object cannot be interpreted as an integer",
                self.type_name()
            )),
        }
    }

    /// Python's `len`.
    pub(super) fn len(&self) -> R<usize> {
        Ok(match self {
            Self::Undefined(_) => 0,
            Self::Str(text) | Self::Bytes(text) => text.chars(),
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.items.len(),
            Self::Dict(dict) | Self::View(_, dict) => dict.entries().len(),
            Self::Range(range) => range.len(),
            Self::Loop(_) => return fail("the length of a loop object is not supported"),
            _ => {
                return fail(format!(
                    "object of type '{}' has no len()",
                    self.type_name()
                ));
            }
        })
    }

    /// Everything that iterating gives, at once.
    pub(super) fn items(&self) -> R<Vec<Self>> {
        match self {
            Self::Iter(iter) => {
                let items = iter.drain()?;
                spend(items.len())?;
                Ok(items)
            }
            _ => self.lasting_items(),
        }
    }

    /// As [`Self::items`], of what can be read more than once.
    pub(super) fn lasting_items(&self) -> R<Vec<Self>> {
        let pair = |(k, v): &(Self, Self)| Self::tuple(vec![k.clone(), v.clone()]);
        let count = match self {
            Self::Iter(_) => 0,
            Self::Loop(_) | Self::Template => return fail("iterating it is not supported"),
            _ if self.is_iterable() => self.len()?,
            _ => return fail(format!("'{}' object is not iterable", self.type_name())),
        };
        spend(count)?;
        // what the list takes until it is gone
        let _charge = Charge::new(count.saturating_mul(size_of::<Self>()))?;
        Ok(match self {
            Self::Str(text) => {
                let mut buffer = [0; 4];
                let chars = text.as_str().chars();
                chars
                    .map(|c| Self::text(c.encode_utf8(&mut buffer)))
                    .collect::<R<_>>()?
            }
            Self::List(items) | Self::Tuple(items) | Self::Group(items) => items.items.clone(),
            Self::Dict(dict) | Self::View(ViewKind::Keys, dict) => {
                dict.entries().iter().map(|(k, _)| k.clone()).collect()
            }
            Self::View(ViewKind::Values, dict) => {
                dict.entries().iter().map(|(_, v)| v.clone()).collect()
            }
            Self::View(ViewKind::Items, dict) => {
                dict.entries().iter().map(pair).collect::<R<_>>()?
            }
            Self::Range(range) => (0..range.len()).map(|at| range.get(at)).collect(),
            _ => Vec::new(),
        })
    }

    pub(super) fn is_iterable(&self) -> bool {
        matches!(
            self,
            Self::Undefined(_)
                | Self::Str(_)
                | Self::List(_)
                | Self::Tuple(_)
                | Self::Group(_)
                | Self::Dict(_)
                | Self::View(..)
                | Self::Range(_)
                | Self::Iter(_)
                | Self::Loop(_)
                | Self::Template
        )
    }

    pub(super) fn is_callable(&self) -> bool {
        matches!(
            self,
            Self::Undefined(_)
                | Self::Loop(_)
                | Self::Macro(_)
                | Self::Joiner(_)
                | Self::Function(_)
                | Self::Method(_)
                | Self::Block(_)
        )
    }
}

/// What an undefined value says of itself wherever it is used.
pub(super) fn check_defined(value: &Value) -> R<()> {
    match value {
        Value::Undefined(what) => Err(error(what.as_str())),
        _ => Ok(()),
    }
}
