//! The state of a `for` loop and the variable `loop`.
//!
//! Invariant: items are taken one by one and tests run when an item is wanted, as Python's generators
//! do, so what a body changes is seen by the test of the next item.

use super::ast::For;
use super::meter::{Charge, R, fail, spend};
use super::render::Renderer;
use super::value::{Frame, Grow, LoopState, Source, Value, ViewKind};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

impl LoopState {
    pub(super) fn new(
        items: &Value,
        node: &Rc<For>,
        test_frame: Option<Rc<Frame>>,
        outer: Option<Rc<Frame>>,
        depth0: usize,
    ) -> R<Self> {
        let source = match items {
            Value::Str(text) => Source::Text(text.clone(), 0),
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                Source::Items(items.clone(), 0)
            }
            Value::Dict(dict) => Source::Dict(ViewKind::Keys, dict.clone(), 0),
            Value::View(kind, dict) => Source::Dict(*kind, dict.clone(), 0),
            Value::Range(range) => Source::Range(*range, 0),
            Value::Iter(iter) => Source::Iter(iter.clone()),
            other => Source::Passed(other.lasting_items()?.into(), Charge::default()),
        };
        let length = match items {
            Value::Iter(_) => None,
            _ if node.test.is_some() => None,
            other => Some(other.len()?),
        };
        Ok(Self {
            source: RefCell::new(source),
            node: node.clone(),
            test_frame,
            outer,
            depth0,
            taken: Cell::new(0),
            length: Cell::new(length),
            before: RefCell::default(),
            current: RefCell::default(),
            after: RefCell::default(),
            changed: RefCell::default(),
            _charge: Charge::new(320)?,
        })
    }

    pub(super) fn depth0(&self) -> usize {
        self.depth0
    }

    pub(super) fn recursive(&self) -> Option<(&Rc<For>, &Rc<Frame>)> {
        self.outer.as_ref().map(|frame| (&self.node, frame))
    }

    pub(super) fn clear(&self) {
        let values = (self.before.take(), self.current.take());
        let more = (self.after.take(), self.changed.take());
        let none = Source::Passed(VecDeque::new(), Charge::default());
        let source = self.source.replace(none);
        drop((values, more, source));
    }

    fn raw(&self) -> R<Option<Value>> {
        let mut source = match self.source.try_borrow_mut() {
            Ok(source) => source,
            Err(_) => return fail("a loop whose test reads the loop itself is not supported"),
        };
        Ok(match &mut *source {
            Source::Text(text, at) => {
                let Some(c) = text.as_str()[*at..].chars().next() else {
                    return Ok(None);
                };
                *at = (*at).saturating_add(c.len_utf8());
                Some(Value::text(c.encode_utf8(&mut [0; 4]))?)
            }
            Source::Items(items, at) => {
                *at = (*at).saturating_add(1);
                items.items.get((*at).saturating_sub(1)).cloned()
            }
            Source::Dict(kind, dict, at) => {
                *at = (*at).saturating_add(1);
                match (dict.entries().get((*at).saturating_sub(1)), kind) {
                    (None, _) => None,
                    (Some((key, _)), ViewKind::Keys) => Some(key.clone()),
                    (Some((_, value)), ViewKind::Values) => Some(value.clone()),
                    (Some((key, value)), ViewKind::Items) => {
                        Some(Value::tuple(vec![key.clone(), value.clone()])?)
                    }
                }
            }
            Source::Range(range, at) => {
                *at = (*at).saturating_add(1);
                (*at <= range.len()).then(|| range.get((*at).saturating_sub(1)))
            }
            Source::Iter(iter) => iter.next()?,
            Source::Passed(items, _) => items.pop_front(),
        })
    }

    /// The next item that passes the test.
    fn pull(&self, renderer: &Renderer) -> R<Option<Value>> {
        while let Some(item) = self.raw()? {
            spend(1)?;
            let (Some(test), Some(frame)) = (&self.node.test, &self.test_frame) else {
                return Ok(Some(item));
            };
            if matches!(&*self.source.borrow(), Source::Passed(..)) {
                return Ok(Some(item));
            }
            let taken = renderer.loop_test(&self.node, test, frame, item)?;
            if taken.is_some() {
                return Ok(taken);
            }
        }
        Ok(None)
    }

    /// Goes to the next item.
    pub(super) fn advance(&self, renderer: &Renderer) -> R<Option<Value>> {
        let next = match self.after.take() {
            Some(next) => next,
            None => self.pull(renderer)?,
        };
        if next.is_some() {
            self.taken.set(self.taken.get().saturating_add(1));
            let current = self.current.replace(next.clone());
            let before = self.before.replace(current);
            drop(before);
        }
        Ok(next)
    }

    fn peek(&self, renderer: &Renderer) -> R<Option<Value>> {
        if let Some(after) = &*self.after.borrow() {
            return Ok(after.clone());
        }
        let next = self.pull(renderer)?;
        self.after.replace(Some(next.clone()));
        Ok(next)
    }

    pub(super) fn len(&self, renderer: &Renderer) -> R<usize> {
        if let Some(length) = self.length.get() {
            return Ok(length);
        }
        let mut items = Grow::default();
        while let Some(item) = self.pull(renderer)? {
            items.push(item)?;
        }
        let (items, charge) = items.into_parts()?;
        let looked_at = usize::from(matches!(&*self.after.borrow(), Some(Some(_))));
        let length = items
            .len()
            .saturating_add(self.taken.get())
            .saturating_add(looked_at);
        self.source.replace(Source::Passed(items.into(), charge));
        self.length.set(Some(length));
        Ok(length)
    }

    pub(super) fn index0(&self) -> usize {
        self.taken.get().saturating_sub(1)
    }

    /// `loop.name`; methods are those of `methods`.
    pub(super) fn attribute(&self, renderer: &Renderer, name: &str) -> R<Option<Value>> {
        let int = |value: usize| Value::Int(value as i128);
        let index0 = self.index0();
        Ok(Some(match name {
            "index0" => int(index0),
            "index" => int(index0.saturating_add(1)),
            "depth0" => int(self.depth0),
            "depth" => int(self.depth0.saturating_add(1)),
            "length" => int(self.len(renderer)?),
            "revindex" => int(self.len(renderer)?.saturating_sub(index0)),
            "revindex0" => Value::Int(
                ((self.len(renderer)? as i128).saturating_sub(index0 as i128)).saturating_sub(1),
            ),
            "first" => Value::Bool(index0 == 0),
            "last" => Value::Bool(self.peek(renderer)?.is_none()),
            "previtem" if index0 == 0 => Value::lacking("there is no previous item")?,
            "previtem" => self.before.borrow().clone().unwrap_or(Value::None),
            "nextitem" => match self.peek(renderer)? {
                Some(item) => item,
                None => Value::lacking("there is no next item")?,
            },
            _ => return Ok(None),
        }))
    }

    /// `loop.changed(...)`
    pub(super) fn changed(&self, values: Vec<Value>) -> R<Value> {
        let values = Value::tuple(values)?;
        let same = match &*self.changed.borrow() {
            Some(last) => last.equals(&values)?,
            None => false,
        };
        if !same {
            let old = self.changed.replace(Some(values));
            drop(old);
        }
        Ok(Value::Bool(!same))
    }
}
