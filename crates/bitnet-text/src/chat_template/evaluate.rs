//! Evaluates the expressions of a template.
//!
//! Invariant: attributes and items are looked up in the order of Jinja's immutable sandbox; what is
//! private or would change a value is undefined.

use super::args::Args;
use super::arithmetic::{binary, negative};
use super::ast::{Arguments, Constant, Expr, Kind, Sign};
use super::comparing::compare;
use super::filters::{apply_filter, is_filter};
use super::meter::{Buf, R, at, fail, spend};
use super::methods::{call_method, has_method, is_mutating};
use super::render::Renderer;
use super::slices::slice;
use super::tests::{apply_test, is_test};
use super::text::shown;
use super::value::{Frame, Function, Grow, Method, Text, Value};
use std::rc::Rc;

impl Renderer {
    pub(super) fn eval(&self, expr: &Expr, frame: &Rc<Frame>) -> R<Value> {
        spend(1)?;
        match &expr.kind {
            Kind::Const(constant) => Ok(match constant {
                Constant::None => Value::None,
                Constant::Bool(b) => Value::Bool(*b),
                Constant::Int(i) => Value::Int(*i),
                Constant::Float(f) => Value::Float(*f),
                Constant::Text(text) => Value::Str(text.clone()),
            }),
            Kind::Name(name) => {
                let value = at(expr.line, frame.load(name))?;
                value.map_or_else(|| Value::undefined(name), Ok)
            }
            _ => at(expr.line, self.deeper(|| self.node(expr, frame))),
        }
    }

    fn list_of(&self, items: &[Expr], frame: &Rc<Frame>) -> R<Grow> {
        let mut out = Grow::default();
        for item in items {
            out.push(self.eval(item, frame)?)?;
        }
        Ok(out)
    }

    fn node(&self, expr: &Expr, frame: &Rc<Frame>) -> R<Value> {
        match &expr.kind {
            Kind::Const(_) | Kind::Name(_) => self.eval(expr, frame),
            Kind::Tuple(items) => self.list_of(items, frame)?.into_tuple(),
            Kind::List(items) => self.list_of(items, frame)?.into_list(),
            Kind::Dict(items) => {
                let mut dict = super::value::Dict::default();
                for (key, value) in items {
                    let key = self.eval(key, frame)?;
                    dict.insert(key, self.eval(value, frame)?)?;
                }
                Ok(Value::Dict(Rc::new(dict)))
            }
            Kind::Attribute(of, name) => {
                let of = self.eval(of, frame)?;
                self.attribute(&of, name)
            }
            Kind::Item(of, key) => {
                let of = self.eval(of, frame)?;
                let key = self.eval(key, frame)?;
                self.item(&of, &key)
            }
            Kind::Slice(of, parts) => {
                let of = self.eval(of, frame)?;
                let mut values = [const { None }; 3];
                for (value, part) in values.iter_mut().zip(parts) {
                    if let Some(part) = part {
                        *value = Some(self.eval(part, frame)?);
                    }
                }
                slice(&of, values)
            }
            Kind::Call(..) => self.call_with(expr, frame, None),
            Kind::Filter(..) => self.filtered(expr, frame, None),
            Kind::Test(of, name, arguments) => {
                let of = self.eval(of, frame)?;
                let args = self.arguments(arguments, frame)?;
                self.test(name, &of, args).map(Value::Bool)
            }
            Kind::Not(of) => Ok(Value::Bool(!self.eval(of, frame)?.is_true())),
            Kind::Sign(sign, of) => {
                let of = self.eval(of, frame)?;
                negative(&of, *sign == Sign::Minus)
            }
            Kind::Binary(op, left, right) => {
                let left = self.eval(left, frame)?;
                let right = self.eval(right, frame)?;
                binary(*op, &left, &right)
            }
            Kind::And(left, right) => {
                let left = self.eval(left, frame)?;
                match left.is_true() {
                    true => self.eval(right, frame),
                    false => Ok(left),
                }
            }
            Kind::Or(left, right) => {
                let left = self.eval(left, frame)?;
                match left.is_true() {
                    true => Ok(left),
                    false => self.eval(right, frame),
                }
            }
            Kind::Concat(parts) => {
                // Jinja evaluates all parts before it prints the first
                let parts = self.list_of(parts, frame)?;
                let mut out = Buf::default();
                for part in parts.into_parts()?.0 {
                    part.print(&mut out)?;
                }
                Text::from_buf(out).map(Value::Str)
            }
            Kind::Compare(first, rest) => {
                let mut left = self.eval(first, frame)?;
                for (comparison, right) in rest {
                    let right = self.eval(right, frame)?;
                    if !compare(*comparison, &left, &right)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Kind::Condition {
                test,
                then,
                otherwise,
            } => match (self.eval(test, frame)?.is_true(), otherwise) {
                (true, _) => self.eval(then, frame),
                (false, Some(otherwise)) => self.eval(otherwise, frame),
                (false, None) => Value::lacking(
                    "the inline if-expression evaluated to false and no else section was defined.",
                ),
            },
        }
    }

    pub(super) fn test(&self, name: &str, of: &Value, args: Args) -> R<bool> {
        match is_test(name) {
            true => apply_test(name, of, args),
            false => fail(format!("No test named '{name}'.")),
        }
    }

    /// A filter; `input` is what the chain begins with in a filter block.
    pub(super) fn filtered(
        &self,
        expr: &Expr,
        frame: &Rc<Frame>,
        input: Option<&Value>,
    ) -> R<Value> {
        let Kind::Filter(of, name, arguments) = &expr.kind else {
            return self.eval(expr, frame);
        };
        let of = match (of, input) {
            (Some(of), Some(_)) => self.deeper(|| self.filtered(of, frame, input))?,
            (Some(of), None) => self.eval(of, frame)?,
            (None, Some(input)) => input.clone(),
            (None, None) => return fail("a filter without a value"),
        };
        let args = self.arguments(arguments, frame)?;
        at(expr.line, self.filter(name, &of, args))
    }

    pub(super) fn filter(&self, name: &str, of: &Value, args: Args) -> R<Value> {
        spend(1)?;
        match is_filter(name) {
            true => apply_filter(self, name, of, args),
            false => fail(format!("No filter named '{name}'.")),
        }
    }

    fn arguments(&self, arguments: &Arguments, frame: &Rc<Frame>) -> R<Args> {
        let mut positional = Grow::default();
        for expr in &arguments.positional {
            positional.push(self.eval(expr, frame)?)?;
        }
        let mut named = Vec::new();
        for (name, expr) in &arguments.named {
            named.push((name.clone(), self.eval(expr, frame)?));
        }
        if let Some(more) = &arguments.more {
            for item in self.eval(more, frame)?.items()? {
                positional.push(item)?;
            }
        }
        if let Some(more) = &arguments.more_named {
            let Value::Dict(more) = self.eval(more, frame)? else {
                return fail("the argument after ** must be a mapping");
            };
            spend(more.entries().len())?;
            for (key, value) in more.entries() {
                let Value::Str(key) = key else {
                    return fail("keywords must be strings");
                };
                if named.iter().any(|(known, _)| **known == *key.as_str()) {
                    let key = key.as_str();
                    return fail(format!("got multiple values for keyword argument '{key}'"));
                }
                // the search above is as long as the list
                spend(named.len())?;
                named.push((key.as_str().into(), value.clone()));
            }
        }
        Ok(Args {
            positional: positional.into_parts()?.0,
            named,
        })
    }

    /// A call expression; `caller` is the body of a call block.
    pub(super) fn call_with(
        &self,
        expr: &Expr,
        frame: &Rc<Frame>,
        caller: Option<Value>,
    ) -> R<Value> {
        let Kind::Call(function, arguments) = &expr.kind else {
            return fail("expected call");
        };
        let function = self.eval(function, frame)?;
        let mut args = self.arguments(arguments, frame)?;
        if let Some(caller) = caller {
            if args.named.iter().any(|(name, _)| **name == *"caller") {
                return fail("got multiple values for keyword argument 'caller'");
            }
            args.named.push(("caller".into(), caller));
        }
        at(expr.line, self.call(&function, args))
    }

    pub(super) fn call(&self, function: &Value, args: Args) -> R<Value> {
        match function {
            Value::Undefined(what) => fail(what.as_str()),
            Value::Function(function) => self.call_global(*function, args),
            Value::Method(method) => {
                self.deeper(|| call_method(self, &method.of, &method.name, args))
            }
            Value::Macro(closure) => self.deeper(|| self.call_macro(closure, args)),
            Value::Loop(state) => {
                let [items] = args.bind("loop", ["iterable"], 1)?;
                let items = items.unwrap_or(Value::None);
                self.deeper(|| self.recurse(state, &items))
            }
            Value::Joiner(joiner) => {
                args.none("joiner")?;
                match joiner.1.replace(true) {
                    true => Ok(Value::Str(joiner.0.clone())),
                    false => Value::text(""),
                }
            }
            Value::Block(block) => {
                args.none("block")?;
                self.deeper(|| self.block_text(block))
            }
            other => fail(format!("'{}' object is not callable", other.type_name())),
        }
    }

    /// `value.name`
    pub(super) fn attribute(&self, of: &Value, name: &str) -> R<Value> {
        if let Some(found) = self.real_attribute(of, name)? {
            return Ok(found);
        }
        if let Value::Dict(dict) = of
            && let Some(value) = dict.get_str(name)
        {
            return match name.starts_with("__") && name.ends_with("__") {
                true => fail(format!("the key '{name}' as an attribute is not supported")),
                false => Ok(value),
            };
        }
        if let (Value::Template, Some(block)) = (of, self.block_named(name)) {
            return Ok(block);
        }
        if let (Value::Function(_), false) = (of, name.starts_with('_')) {
            return fail("attributes of a function are not supported");
        }
        missing(of, &format!("attribute '{}'", shown(name)))
    }

    /// What Python's `getattr` finds; undefined if the sandbox forbids it.
    pub(super) fn real_attribute(&self, of: &Value, name: &str) -> R<Option<Value>> {
        spend(1)?;
        if is_mutating(of, name) {
            let of = of.type_name();
            let what = format!(
                "access to attribute '{name}' of '{of}' object is not allowed in the sandbox"
            );
            return Value::lacking(&what).map(Some);
        }
        let found = match of {
            Value::Undefined(what) => return fail(what.as_str()),
            Value::Namespace(values) => {
                self.mutable_reads
                    .set(self.mutable_reads.get().saturating_add(1));
                return match name.starts_with('_') {
                    true => Ok(None),
                    false => Ok(values.borrow().get_str(name)),
                };
            }
            Value::Loop(state) => {
                self.mutable_reads
                    .set(self.mutable_reads.get().saturating_add(1));
                state.attribute(self, name)?
            }
            Value::Cycler(cycler) => match name {
                "current" => cycler.items.items.get(cycler.at.get()).cloned(),
                "pos" => Some(Value::Int(cycler.at.get() as i128)),
                "items" => Some(Value::Tuple(cycler.items.clone())),
                _ => None,
            },
            Value::Joiner(joiner) => match name {
                "sep" => Some(Value::Str(joiner.0.clone())),
                "used" => Some(Value::Bool(joiner.1.get())),
                _ => None,
            },
            Value::Macro(closure) => match name {
                "name" => Some(match &closure.of.name {
                    Some(name) => Value::text(name)?,
                    None => Value::None,
                }),
                "arguments" => {
                    let mut names = Grow::default();
                    for name in &closure.of.parameters {
                        names.push(Value::text(name)?)?;
                    }
                    Some(names.into_tuple()?)
                }
                "catch_kwargs" | "catch_varargs" | "caller" => {
                    let special = closure.of.special.get().copied().unwrap_or_default();
                    Some(Value::Bool(match name {
                        "catch_kwargs" => special.kwargs,
                        "catch_varargs" => special.varargs,
                        _ => special.caller,
                    }))
                }
                "explicit_caller" => {
                    let mut names = closure.of.parameters.iter();
                    Some(Value::Bool(names.any(|name| **name == *"caller")))
                }
                _ => None,
            },
            Value::Group(items) => match name {
                "grouper" => items.items.first().cloned(),
                "list" => items.items.get(1).cloned(),
                _ => None,
            },
            Value::Range(range) => match name {
                "start" => Some(Value::Int(i128::from(range.start))),
                "stop" => Some(Value::Int(i128::from(range.stop))),
                "step" => Some(Value::Int(i128::from(range.step))),
                _ => None,
            },
            Value::Int(_) | Value::Bool(_) => match name {
                "real" | "numerator" => of.as_int().map(Value::Int),
                "imag" => Some(Value::Int(0)),
                "denominator" => Some(Value::Int(1)),
                _ => None,
            },
            Value::Float(_) => match name {
                "real" => Some(of.clone()),
                "imag" => Some(Value::Float(0.0)),
                _ => None,
            },
            Value::Block(_) if name == "super" => {
                return fail("the attribute super of a block is not supported");
            }
            Value::Method(_) if !name.starts_with('_') => {
                return fail("attributes of a method are not supported");
            }
            _ => None,
        };
        match found {
            Some(found) => Ok(Some(found)),
            None if has_method(of, name) => Method::value(of, name).map(Some),
            None => Ok(None),
        }
    }

    /// `value[key]`
    pub(super) fn item(&self, of: &Value, key: &Value) -> R<Value> {
        spend(1)?;
        let by_place = |count: usize| -> Option<usize> {
            let place = key.as_int()?;
            let place = if place < 0 {
                place.checked_add(count as i128)?
            } else {
                place
            };
            usize::try_from(place).ok().filter(|place| *place < count)
        };
        let found = match of {
            Value::Undefined(what) => return fail(what.as_str()),
            Value::Str(text) => match by_place(text.chars()) {
                Some(place) => {
                    let from = text.offset(place)?;
                    let c = text.as_str()[from..].chars().next();
                    let c = c.map(|c| c.to_string()).unwrap_or_default();
                    Some(Value::text(&c)?)
                }
                None => None,
            },
            Value::Bytes(_) => return fail("items of bytes are not supported"),
            Value::List(items) | Value::Tuple(items) | Value::Group(items) => {
                by_place(items.items.len()).and_then(|at| items.items.get(at).cloned())
            }
            Value::Range(range) => by_place(range.len()).map(|at| range.get(at)),
            Value::Dict(dict) => match key {
                Value::List(_) | Value::Dict(_) | Value::Undefined(_) => None,
                key => dict.get(key)?,
            },
            Value::Template => match key {
                Value::Str(name) => self.block_named(name.as_str()),
                _ => None,
            },
            Value::Function(Function::Range) => {
                return fail("items of a function are not supported");
            }
            _ => None,
        };
        if let Some(found) = found {
            return Ok(found);
        }
        let Value::Str(name) = key else {
            return missing(of, &format!("element {}", describe(key)?));
        };
        if let Some(found) = self.real_attribute(of, name.as_str())? {
            return Ok(found);
        }
        missing(of, &format!("attribute '{}'", shown(name.as_str())))
    }
}

/// A key in an error.
fn describe(key: &Value) -> R<String> {
    let mut out = Buf::default();
    match key {
        Value::Int(_) | Value::Bool(_) | Value::Float(_) | Value::None => key.repr(&mut out, 0)?,
        _ => out.push_str(key.type_name())?,
    }
    Ok(out.as_str().to_owned())
}

fn missing(of: &Value, what: &str) -> R<Value> {
    let object = match of {
        Value::None => "None".to_owned(),
        other => format!("'{} object'", other.type_name()),
    };
    Value::lacking(&format!("{object} has no {what}"))
}
