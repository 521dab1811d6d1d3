//! Runs the statements of a template.
//!
//! Invariant: frames that a macro holds on to, namespaces and loops are listed here and emptied one by
//! one at the end, so neither circles nor long chains of values are dropped by recursion.

use super::args::Args;
use super::ast::{Act, Block, Expr, For, Load, Macro, Names, Statement, Target, Template};
use super::meter::{Buf, CALL_DEPTH, Charge, DEPTH, R, at, fail, over, spend};
use super::value::{Closure, Dict, Frame, Grow, LoopState, Text, Value};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// Where execution goes on after a statement.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Flow {
    Next,
    Break,
    Continue,
}

#[derive(Default)]
pub(super) struct Renderer {
    /// What the caller and the environment give.
    context: HashMap<Rc<str>, Value>,
    /// What the template assigns outside of loops and macros.
    exported: RefCell<HashMap<Rc<str>, Value>>,
    blocks: HashMap<Rc<str>, Rc<Block>>,
    depth: Cell<usize>,
    calls: Cell<usize>,
    /// Reads of what can change; see `filters`.
    pub(super) mutable_reads: Cell<u64>,
    frames: RefCell<Vec<Rc<Frame>>>,
    namespaces: RefCell<Vec<Rc<RefCell<Dict>>>>,
    loops: RefCell<Vec<Rc<LoopState>>>,
}

impl Drop for Renderer {
    fn drop(&mut self) {
        self.exported.take().clear();
        self.frames.take().iter().for_each(|frame| frame.clear());
        for namespace in &self.namespaces.take() {
            let emptied = std::mem::take(&mut *namespace.borrow_mut());
            drop(emptied);
        }
        self.loops.take().iter().for_each(|state| state.clear());
    }
}

impl Renderer {
    pub(super) fn new(template: &Template, context: HashMap<Rc<str>, Value>) -> Self {
        let block = |block: &Rc<Block>| (block.name.clone(), block.clone());
        let mut renderer = Self::default();
        renderer.context = context;
        renderer.blocks = template.blocks.iter().map(block).collect();
        renderer
    }

    /// The text of a template.
    pub(super) fn render(&self, template: &Template) -> R<Buf> {
        let mut out = Buf::default();
        let frame = Frame::new(template.scope.get(), None)?;
        self.enter(&frame)?;
        if frame.names.position("self").is_some() && self.lookup("self").is_none() {
            frame.store("self", Some(Value::Template))?;
        }
        let result = self.body(&template.body, &frame, true, &mut out);
        frame.clear();
        result.map(|_| out)
    }

    /// A variable of the context.
    fn lookup(&self, name: &str) -> Option<Value> {
        let exported = self.exported.borrow().get(name).cloned();
        exported.or_else(|| self.context.get(name).cloned())
    }

    /// Gives the variables of a frame what they begin as.
    fn enter(&self, frame: &Frame) -> R<()> {
        spend(frame.names.len())?;
        for (at, (name, load)) in frame.names.iter().enumerate() {
            let value = match load {
                Load::Parameter => continue,
                Load::Resolve => self.lookup(name),
                Load::Alias => match &frame.parent {
                    Some(parent) => parent.load(name)?,
                    None => None,
                },
                Load::Undefined => None,
            };
            if let Some(slot) = frame.slots.borrow_mut().get_mut(at) {
                *slot = value;
            }
        }
        Ok(())
    }

    /// Runs a step that may recurse.
    pub(super) fn deeper<T>(&self, step: impl FnOnce() -> R<T>) -> R<T> {
        let depth = self.depth.get();
        if depth > DEPTH {
            return over("the recursion limit: the template nests its work too deeply");
        }
        self.depth.set(depth.saturating_add(1));
        let result = step();
        self.depth.set(depth);
        result
    }

    fn within_call<T>(&self, step: impl FnOnce() -> R<T>) -> R<T> {
        let calls = self.calls.get();
        if calls >= CALL_DEPTH {
            return over(format!(
                "the recursion limit: calls are nested deeper than {CALL_DEPTH} levels"
            ));
        }
        self.calls.set(calls.saturating_add(1));
        let result = step();
        self.calls.set(calls);
        result
    }

    fn body(&self, body: &[Statement], frame: &Rc<Frame>, top: bool, out: &mut Buf) -> R<Flow> {
        self.deeper(|| {
            for statement in body {
                spend(1)?;
                let flow = at(
                    statement.line,
                    self.statement(&statement.kind, frame, top, out),
                )?;
                out.check_output()?;
                if flow != Flow::Next {
                    return Ok(flow);
                }
            }
            Ok(Flow::Next)
        })
    }

    fn statement(&self, act: &Act, frame: &Rc<Frame>, top: bool, out: &mut Buf) -> R<Flow> {
        match act {
            Act::Data(text) => out.push_str(text)?,
            Act::Print(items) => {
                for item in items {
                    self.eval(item, frame)?.print(out)?;
                }
            }
            Act::For(node) => {
                let items = self.eval(&node.items, frame)?;
                return self.run_loop(node, frame, &items, 0, out);
            }
            Act::If {
                branches,
                otherwise,
            } => {
                for (test, body) in branches {
                    if self.eval(test, frame)?.is_true() {
                        return self.body(body, frame, top, out);
                    }
                }
                return self.body(otherwise, frame, top, out);
            }
            Act::Set(target, value) => {
                let value = self.eval(value, frame)?;
                self.assign(target, value, frame, top)?;
            }
            Act::SetBlock {
                target,
                filter,
                body,
                scope,
            } => {
                let inner = self.inner(scope.get(), frame)?;
                let text = self.capture(|out| self.body(body, &inner, false, out))?;
                let value = match filter {
                    Some(filter) => self.filtered(filter, &inner, Some(&text))?,
                    None => text,
                };
                inner.clear();
                self.assign(target, value, frame, top)?;
            }
            Act::With {
                values,
                body,
                scope,
            } => {
                let inner = self.inner(scope.get(), frame)?;
                for (target, value) in values {
                    let value = self.eval(value, frame)?;
                    self.assign(target, value, &inner, false)?;
                }
                let flow = self.body(body, &inner, false, out)?;
                inner.clear();
                return Ok(flow);
            }
            Act::FilterBlock {
                filter,
                body,
                scope,
            } => {
                let inner = self.inner(scope.get(), frame)?;
                let text = self.capture(|out| self.body(body, &inner, false, out))?;
                write_text(&self.filtered(filter, &inner, Some(&text))?, out)?;
                inner.clear();
            }
            Act::Macro(node) => {
                let value = self.closure(node, frame)?;
                if let Some(name) = &node.name {
                    frame.store(name, Some(value.clone()))?;
                    if top {
                        self.export(name, value)?;
                    }
                }
            }
            Act::Call(node, call) => {
                let caller = self.closure(node, frame)?;
                write_text(&self.call_with(call, frame, Some(caller))?, out)?;
            }
            Act::Generation(node) => {
                let caller = self.closure(node, frame)?;
                self.call(&caller, Args::default())?.print(out)?;
            }
            Act::Block(block) if block.scoped => {
                return fail("scoped blocks are not supported");
            }
            Act::Block(block) => self.block(block, out)?,
            Act::Break => return Ok(Flow::Break),
            Act::Continue => return Ok(Flow::Continue),
            Act::Load(what) => {
                return fail(format!("'{what}' has no other template to load"));
            }
        }
        Ok(Flow::Next)
    }

    fn inner(&self, names: Option<&Rc<Names>>, frame: &Rc<Frame>) -> R<Rc<Frame>> {
        let inner = Frame::new(names, Some(frame))?;
        self.enter(&inner)?;
        Ok(inner)
    }

    /// What a step writes, as a text.
    fn capture<T>(&self, step: impl FnOnce(&mut Buf) -> R<T>) -> R<Value> {
        let mut out = Buf::default();
        step(&mut out)?;
        Text::from_buf(out).map(Value::Str)
    }

    fn export(&self, name: &Rc<str>, value: Value) -> R<()> {
        let old = self.exported.borrow_mut().insert(name.clone(), value);
        drop(old);
        Ok(())
    }

    /// Keeps a frame, which a macro refers to, until the end.
    fn keep(&self, frame: &Rc<Frame>) {
        let mut frame = Some(frame);
        while let Some(this) = frame {
            if this.kept.replace(true) {
                return;
            }
            self.frames.borrow_mut().push(this.clone());
            frame = this.parent.as_ref();
        }
    }

    fn closure(&self, node: &Rc<Macro>, frame: &Rc<Frame>) -> R<Value> {
        self.keep(frame);
        Ok(Value::Macro(Rc::new(Closure {
            of: node.clone(),
            frame: frame.clone(),
            _charge: Charge::new(64)?,
        })))
    }

    /// A new namespace.
    pub(super) fn namespace(&self, values: Dict) -> R<Value> {
        // the list of namespaces is charged for good
        std::mem::forget(Charge::new(256)?);
        let namespace = Rc::new(RefCell::new(values));
        self.namespaces.borrow_mut().push(namespace.clone());
        Ok(Value::Namespace(namespace))
    }

    pub(super) fn assign(&self, to: &Target, value: Value, frame: &Rc<Frame>, top: bool) -> R<()> {
        match to {
            Target::Name(name) => {
                if top {
                    self.export(name, value.clone())?;
                }
                frame.store(name, Some(value))
            }
            Target::Attribute(name, attribute) => match frame.load(name)? {
                Some(Value::Namespace(namespace)) => {
                    check_attribute(attribute)?;
                    let key = Value::text(attribute)?;
                    namespace.borrow_mut().insert(key, value)
                }
                _ => fail("cannot assign attribute on non-namespace object"),
            },
            Target::Tuple(targets) => {
                let items = value.items()?;
                if items.len() != targets.len() {
                    let word = match items.len() > targets.len() {
                        true => "too many",
                        false => "not enough",
                    };
                    let expected = targets.len();
                    return fail(format!("{word} values to unpack (expected {expected})"));
                }
                let mut pairs = targets.iter().zip(items);
                pairs.try_for_each(|(target, value)| self.assign(target, value, frame, top))
            }
        }
    }

    /// What the variables of a target hold.
    fn read_target(&self, target: &Target, frame: &Rc<Frame>) -> R<Value> {
        match target {
            Target::Name(name) => Ok(frame.load(name)?.unwrap_or(Value::None)),
            Target::Tuple(targets) => {
                let mut items = Grow::default();
                for target in targets {
                    items.push(self.read_target(target, frame)?)?;
                }
                items.into_tuple()
            }
            Target::Attribute(..) => fail("an attribute as the variable of a loop"),
        }
    }

    fn run_loop(
        &self,
        node: &Rc<For>,
        frame: &Rc<Frame>,
        items: &Value,
        depth: usize,
        out: &mut Buf,
    ) -> R<Flow> {
        let test_frame = match node.test {
            Some(_) => Some(Frame::new(node.test_scope.get(), Some(frame))?),
            None => None,
        };
        let outer = node.recursive.then(|| frame.clone());
        let state = Rc::new(LoopState::new(items, node, test_frame, outer, depth)?);
        let extended = node.extended.get() == Some(&true);
        if extended {
            self.loops.borrow_mut().push(state.clone());
        }
        let inner = Frame::new(node.scope.get(), Some(frame))?;
        let mut otherwise = true;
        while let Some(item) = state.advance(self)? {
            spend(1)?;
            self.assign(&node.target, item, &inner, false)?;
            if extended {
                inner.store("loop", Some(Value::Loop(state.clone())))?;
            }
            self.enter(&inner)?;
            match self.body(&node.body, &inner, false, out)? {
                Flow::Next => otherwise = false,
                Flow::Continue => {}
                Flow::Break => break,
            }
        }
        inner.clear();
        if extended {
            // nothing else refers to most loops
            let mut loops = self.loops.borrow_mut();
            let is_last = loops.last().is_some_and(|last| Rc::ptr_eq(last, &state));
            if is_last && Rc::strong_count(&state) == 2 {
                loops.pop();
            } else {
                std::mem::forget(Charge::new(256)?);
            }
        }
        if otherwise && !node.otherwise.is_empty() {
            let inner = self.inner(node.otherwise_scope.get(), frame)?;
            let flow = self.body(&node.otherwise, &inner, false, out)?;
            inner.clear();
            return Ok(flow);
        }
        Ok(Flow::Next)
    }

    /// Whether a loop with a test takes an item, and the item as the test has unpacked it.
    pub(super) fn loop_test(
        &self,
        node: &For,
        test: &Expr,
        frame: &Rc<Frame>,
        item: Value,
    ) -> R<Option<Value>> {
        self.enter(frame)?;
        self.assign(&node.target, item, frame, false)?;
        match self.eval(test, frame)?.is_true() {
            true => self.read_target(&node.target, frame).map(Some),
            false => Ok(None),
        }
    }

    /// `loop(items)` of a recursive loop.
    pub(super) fn recurse(&self, state: &LoopState, items: &Value) -> R<Value> {
        let Some((node, frame)) = state.recursive() else {
            return fail("The loop must have the 'recursive' marker to be called recursively.");
        };
        let depth = state.depth0().saturating_add(1);
        self.within_call(|| self.capture(|out| self.run_loop(node, frame, items, depth, out)))
    }

    fn block(&self, block: &Rc<Block>, out: &mut Buf) -> R<()> {
        let frame = Frame::new(block.scope.get(), None)?;
        self.enter(&frame)?;
        if frame.names.position("self").is_some() {
            frame.store("self", Some(Value::Template))?;
        }
        if frame.names.position("super").is_some() {
            let what = format!("there is no parent block called '{}'.", block.name);
            frame.store("super", Some(Value::lacking(&what)?))?;
        }
        self.within_call(|| self.body(&block.body, &frame, false, out))?;
        frame.clear();
        Ok(())
    }

    /// `self.name`
    pub(super) fn block_named(&self, name: &str) -> Option<Value> {
        self.blocks.get(name).cloned().map(Value::Block)
    }

    /// `self.name()`
    pub(super) fn block_text(&self, block: &Rc<Block>) -> R<Value> {
        self.capture(|out| self.block(block, out))
    }

    pub(super) fn call_macro(&self, closure: &Rc<Closure>, mut args: Args) -> R<Value> {
        let node = &closure.of;
        let name = node.name.as_deref().unwrap_or("None");
        let special = node.special.get().copied().unwrap_or_default();
        let frame = Frame::new(node.scope.get(), Some(&closure.frame))?;
        let mut given = std::mem::take(&mut args.positional);
        let extra = given.split_off(given.len().min(node.parameters.len()));
        let filled = given.len();
        let mut values: Vec<Option<Value>> = given.into_iter().map(Some).collect();
        let mut found_caller = false;
        for parameter in node.parameters.iter().skip(filled) {
            found_caller |= **parameter == *"caller";
            values.push(args.take(parameter));
        }
        if filled == node.parameters.len() {
            found_caller = node.parameters.iter().any(|p| **p == *"caller");
        }
        let declared = |name: &str| node.parameters.iter().any(|p| **p == *name);
        if special.caller && !found_caller {
            let caller = match args.take("caller") {
                None | Some(Value::None) => Value::lacking("No caller defined")?,
                Some(caller) => caller,
            };
            if !declared("caller") {
                frame.store("caller", Some(caller))?;
            }
        }
        if special.kwargs {
            let mut kwargs = Dict::default();
            for (name, value) in std::mem::take(&mut args.named) {
                kwargs.insert(Value::text(&name)?, value)?;
            }
            frame.store("kwargs", Some(Value::Dict(Rc::new(kwargs))))?;
        } else if let Some((unknown, _)) = args.named.first() {
            return fail(format!(
                "macro '{name}' takes no keyword argument '{unknown}'"
            ));
        }
        if special.varargs {
            frame.store("varargs", Some(Value::tuple(extra)?))?;
        } else if !extra.is_empty() {
            let count = node.parameters.len();
            return fail(format!(
                "macro '{name}' takes not more than {count} argument(s)"
            ));
        }
        self.within_call(|| {
            self.enter(&frame)?;
            for (parameter, value) in node.parameters.iter().zip(&values) {
                frame.store(parameter, value.clone())?;
            }
            for (at, (parameter, value)) in node.parameters.iter().zip(&values).enumerate() {
                if value.is_some() {
                    continue;
                }
                let value = match node.default(at) {
                    Some(default) => self.eval(default, &frame)?,
                    None => {
                        let what = format!("parameter '{parameter}' was not provided");
                        Value::lacking(&what)?
                    }
                };
                frame.store(parameter, Some(value))?;
            }
            let text = self.capture(|out| self.body(&node.body, &frame, false, out))?;
            if Rc::strong_count(&frame) == 1 {
                frame.clear();
            }
            Ok(text)
        })
    }
}

/// Writes what Jinja joins without printing it first.
fn write_text(value: &Value, out: &mut Buf) -> R<()> {
    out.push_str(super::args::text(value)?.as_str())
}

/// Namespaces of chat templates take no names that begin with an underscore.
pub(super) fn check_attribute(name: &str) -> R<()> {
    match name.starts_with('_') {
        true => fail(format!(
            "chat templates cannot store underscore-prefixed attributes on a namespace, but got '{name}'"
        )),
        false => Ok(()),
    }
}
