//! Expressions of a template, with Jinja's precedence: condition, or, and, not, comparison, `+ -`,
//! `~`, `* / // %`, `**`, sign, postfix, filter and test.
//!
//! Invariant: as in `parser.rs`; a node's depth counts operators in a chain as well, because the tree
//! of `1+1+...` is as deep as the chain is long.

use super::ast::{Arguments, Binary, Comparison, Constant, Expr, Kind, Sign};
use super::lexer::Token;
use super::meter::{EXPRESSION_DEPTH, Ended, Error, R, over};
use super::parser::{Parser, constant};
use std::rc::Rc;

fn depth_of_arguments(arguments: &Arguments) -> usize {
    arguments.each().map(|a| a.depth).max().unwrap_or(0)
}

fn too_deep<T>() -> R<T> {
    over(format!(
        "the nesting limit: an expression is nested deeper than {EXPRESSION_DEPTH} levels"
    ))
}

/// A node; `below` is the depth of its deepest child.
fn node(line: u32, below: usize, kind: Kind) -> R<Expr> {
    let depth = below.saturating_add(1);
    if depth > EXPRESSION_DEPTH {
        return too_deep();
    }
    Ok(Expr { line, depth, kind })
}

fn deepest(items: &[Expr]) -> usize {
    items.iter().map(|item| item.depth).max().unwrap_or(0)
}

impl Parser {
    /// Runs a step that may recurse.
    fn deeper<T>(&mut self, step: impl FnOnce(&mut Self) -> R<T>) -> R<T> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > EXPRESSION_DEPTH {
            return too_deep();
        }
        let result = step(self);
        self.depth = self.depth.saturating_sub(1);
        result
    }

    pub(super) fn expression(&mut self) -> R<Expr> {
        self.deeper(Self::condition)
    }

    fn condition(&mut self) -> R<Expr> {
        let line = self.line();
        let mut expr = self.or()?;
        while self.skip_name("if") {
            let test = self.or()?;
            let otherwise = match self.skip_name("else") {
                true => Some(Box::new(self.deeper(Self::condition)?)),
                false => None,
            };
            let below = expr.depth.max(test.depth);
            let below = below.max(otherwise.as_ref().map_or(0, |e| e.depth));
            let kind = Kind::Condition {
                test: Box::new(test),
                then: Box::new(expr),
                otherwise,
            };
            expr = node(line, below, kind)?;
        }
        Ok(expr)
    }

    fn or(&mut self) -> R<Expr> {
        let line = self.line();
        let mut left = self.and()?;
        while self.skip_name("or") {
            let right = self.and()?;
            let below = left.depth.max(right.depth);
            left = node(line, below, Kind::Or(Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }

    fn and(&mut self) -> R<Expr> {
        let line = self.line();
        let mut left = self.not()?;
        while self.skip_name("and") {
            let right = self.not()?;
            let below = left.depth.max(right.depth);
            left = node(line, below, Kind::And(Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }

    fn not(&mut self) -> R<Expr> {
        if self.is_name("not") {
            let line = self.line();
            self.next();
            let inner = self.deeper(Self::not)?;
            return node(line, inner.depth, Kind::Not(Box::new(inner)));
        }
        self.compare()
    }

    fn compare(&mut self) -> R<Expr> {
        let line = self.line();
        let first = self.sum()?;
        let mut rest = Vec::new();
        loop {
            let comparison = match self.token() {
                Token::Op("==") => Comparison::Eq,
                Token::Op("!=") => Comparison::Ne,
                Token::Op("<") => Comparison::Lt,
                Token::Op("<=") => Comparison::Le,
                Token::Op(">") => Comparison::Gt,
                Token::Op(">=") => Comparison::Ge,
                Token::Name(name) if &**name == "in" => Comparison::In,
                Token::Name(name)
                    if &**name == "not"
                        && matches!(self.look(), Token::Name(next) if &**next == "in") =>
                {
                    self.next();
                    Comparison::NotIn
                }
                _ => break,
            };
            self.next();
            rest.push((comparison, self.sum()?));
        }
        if rest.is_empty() {
            return Ok(first);
        }
        let below = rest.iter().map(|(_, e)| e.depth).max().unwrap_or(0);
        let below = below.max(first.depth);
        node(line, below, Kind::Compare(Box::new(first), rest))
    }

    fn binary(&mut self, ops: &[(&str, Binary)], operand: fn(&mut Self) -> R<Expr>) -> R<Expr> {
        let line = self.line();
        let mut left = operand(self)?;
        while let Some((_, binary)) = ops.iter().find(|(op, _)| self.is_op(op)) {
            self.next();
            let right = operand(self)?;
            let below = left.depth.max(right.depth);
            let kind = Kind::Binary(*binary, Box::new(left), Box::new(right));
            left = node(line, below, kind)?;
        }
        Ok(left)
    }

    fn sum(&mut self) -> R<Expr> {
        self.binary(&[("+", Binary::Add), ("-", Binary::Sub)], Self::concat)
    }

    fn concat(&mut self) -> R<Expr> {
        let line = self.line();
        let mut parts = vec![self.product()?];
        while self.skip_op("~") {
            parts.push(self.product()?);
        }
        if parts.len() == 1 {
            return Ok(parts.swap_remove(0));
        }
        node(line, deepest(&parts), Kind::Concat(parts))
    }

    fn product(&mut self) -> R<Expr> {
        const OPS: [(&str, Binary); 4] = [
            ("*", Binary::Mul),
            ("/", Binary::Div),
            ("//", Binary::FloorDiv),
            ("%", Binary::Mod),
        ];
        self.binary(&OPS, Self::power)
    }

    fn power(&mut self) -> R<Expr> {
        self.binary(&[("**", Binary::Pow)], |parser| parser.unary(true))
    }

    fn unary(&mut self, with_filter: bool) -> R<Expr> {
        let line = self.line();
        let sign = match self.token() {
            Token::Op("-") => Some(Sign::Minus),
            Token::Op("+") => Some(Sign::Plus),
            _ => None,
        };
        let mut expr = match sign {
            Some(sign) => {
                self.next();
                let inner = self.deeper(|parser| parser.unary(false))?;
                node(line, inner.depth, Kind::Sign(sign, Box::new(inner)))?
            }
            None => self.primary()?,
        };
        expr = self.postfix(expr)?;
        if with_filter {
            expr = self.filtered(expr)?;
        }
        Ok(expr)
    }

    fn primary(&mut self) -> R<Expr> {
        let line = self.line();
        let kind = match self.token().clone() {
            Token::Name(name) => {
                self.next();
                match &*name {
                    "true" | "True" => Kind::Const(Constant::Bool(true)),
                    "false" | "False" => Kind::Const(Constant::Bool(false)),
                    "none" | "None" => Kind::Const(Constant::None),
                    _ => Kind::Name(name),
                }
            }
            Token::Text(mut text) => {
                self.next();
                while let Token::Text(more) = self.token() {
                    text.push_str(more);
                    self.next();
                }
                Kind::Const(constant(&text)?)
            }
            Token::Int(value) => {
                self.next();
                Kind::Const(Constant::Int(value))
            }
            Token::Float(value) => {
                self.next();
                Kind::Const(Constant::Float(value))
            }
            Token::Op("(") => {
                self.next();
                let expr = self.parentheses()?;
                self.expect_op(")")?;
                return Ok(expr);
            }
            Token::Op("[") => {
                self.next();
                let mut items = Vec::new();
                while !self.is_op("]") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                    }
                    if self.is_op("]") {
                        break;
                    }
                    items.push(self.expression()?);
                }
                self.expect_op("]")?;
                return node(line, deepest(&items), Kind::List(items));
            }
            Token::Op("{") => {
                self.next();
                let mut items = Vec::new();
                while !self.is_op("}") {
                    if !items.is_empty() {
                        self.expect_op(",")?;
                    }
                    if self.is_op("}") {
                        break;
                    }
                    let key = self.expression()?;
                    self.expect_op(":")?;
                    items.push((key, self.expression()?));
                }
                self.expect_op("}")?;
                let below = items.iter().map(|(k, v)| k.depth.max(v.depth)).max();
                return node(line, below.unwrap_or(0), Kind::Dict(items));
            }
            _ => return self.unexpected("an expression"),
        };
        node(line, 0, kind)
    }

    fn parentheses(&mut self) -> R<Expr> {
        let line = self.line();
        if self.is_op(")") {
            return node(line, 0, Kind::Tuple(Vec::new()));
        }
        self.deeper(|parser| parser.tuple(true))
    }

    /// An expression, or several with commas between them.
    pub(super) fn tuple(&mut self, with_condition: bool) -> R<Expr> {
        let line = self.line();
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if self.is_tuple_end() {
                break;
            }
            items.push(match with_condition {
                true => self.expression()?,
                false => self.deeper(Self::or)?,
            });
            if !self.is_op(",") {
                break;
            }
            is_tuple = true;
        }
        match (is_tuple, items.len()) {
            (false, 1) => Ok(items.swap_remove(0)),
            (false, _) => self.unexpected("an expression"),
            (true, _) => node(line, deepest(&items), Kind::Tuple(items)),
        }
    }

    fn postfix(&mut self, mut expr: Expr) -> R<Expr> {
        loop {
            expr = match self.token() {
                Token::Op("." | "[") => self.subscript(expr)?,
                Token::Op("(") => self.call(expr)?,
                _ => return Ok(expr),
            };
        }
    }

    fn filtered(&mut self, mut expr: Expr) -> R<Expr> {
        loop {
            expr = match self.token() {
                Token::Op("|") => match self.filter_chain(Some(expr), false)? {
                    Some(expr) => expr,
                    None => return self.unexpected("a filter"),
                },
                Token::Name(name) if &**name == "is" => self.test(expr)?,
                Token::Op("(") => self.call(expr)?,
                _ => return Ok(expr),
            };
        }
    }

    fn subscript(&mut self, of: Expr) -> R<Expr> {
        let line = self.line();
        if self.skip_op(".") {
            return match self.token().clone() {
                Token::Name(name) => {
                    self.next();
                    node(line, of.depth, Kind::Attribute(Box::new(of), name))
                }
                Token::Int(at) => {
                    self.next();
                    let at = node(line, 0, Kind::Const(Constant::Int(at)))?;
                    node(line, of.depth, Kind::Item(Box::new(of), Box::new(at)))
                }
                _ => self.fail("expected name or number"),
            };
        }
        self.expect_op("[")?;
        let mut items = Vec::new();
        while !self.is_op("]") {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if !self.is_op(":") {
                let item = self.expression()?;
                if !self.is_op(":") {
                    items.push(item);
                    continue;
                }
                return self.slice(line, of, Some(item), items.is_empty());
            }
            return self.slice(line, of, None, items.is_empty());
        }
        self.next();
        let at = match items.len() {
            1 => items.swap_remove(0),
            _ => node(line, deepest(&items), Kind::Tuple(items))?,
        };
        let below = of.depth.max(at.depth);
        node(line, below, Kind::Item(Box::new(of), Box::new(at)))
    }

    /// The rest of `[start:stop:step]`, from the first colon on.
    fn slice(&mut self, line: u32, of: Expr, start: Option<Expr>, alone: bool) -> R<Expr> {
        let mut below = start.as_ref().map_or(0, |e| e.depth).max(of.depth);
        let mut parts = [start.map(Box::new), None, None];
        for part in parts.iter_mut().skip(1) {
            if !self.skip_op(":") {
                break;
            }
            if !(self.is_op(":") || self.is_op("]") || self.is_op(",")) {
                let expr = self.expression()?;
                below = below.max(expr.depth);
                *part = Some(Box::new(expr));
            }
        }
        if !alone || self.is_op(",") {
            return Err(Box::new(Error {
                message: "slices within a tuple are not supported".to_owned(),
                line: Some(line),
                kind: Ended::Unsupported,
            }));
        }
        self.expect_op("]")?;
        node(line, below, Kind::Slice(Box::new(of), parts))
    }

    fn call(&mut self, function: Expr) -> R<Expr> {
        let line = self.line();
        let arguments = self.arguments()?;
        let below = function.depth.max(depth_of_arguments(&arguments));
        node(line, below, Kind::Call(Box::new(function), arguments))
    }

    fn arguments(&mut self) -> R<Arguments> {
        const INVALID: &str = "invalid syntax for function call expression";
        let mut out = Arguments::default();
        let line = self.line();
        self.expect_op("(")?;
        let mut first = true;
        while !self.is_op(")") {
            if !first {
                self.expect_op(",")?;
                if self.is_op(")") {
                    break;
                }
            }
            first = false;
            if self.skip_op("*") {
                if out.more.is_some() || out.more_named.is_some() {
                    return self.fail_at(line, INVALID);
                }
                out.more = Some(Box::new(self.expression()?));
            } else if self.skip_op("**") {
                if out.more_named.is_some() {
                    return self.fail_at(line, INVALID);
                }
                out.more_named = Some(Box::new(self.expression()?));
            } else if let (Token::Name(name), Token::Op("=")) = (self.token(), self.look()) {
                if out.more_named.is_some() {
                    return self.fail_at(line, INVALID);
                }
                let name: Rc<str> = name.clone();
                self.next();
                self.next();
                if out.named.iter().any(|(known, _)| *known == name) {
                    return self.fail_at(line, format!("invalid keyword argument '{name}'"));
                }
                let value = self.expression()?;
                out.named.push((name, value));
            } else {
                if out.more.is_some() || out.more_named.is_some() || !out.named.is_empty() {
                    return self.fail_at(line, INVALID);
                }
                let value = self.expression()?;
                out.positional.push(value);
            }
        }
        self.expect_op(")")?;
        Ok(out)
    }

    fn dotted_name(&mut self) -> R<Rc<str>> {
        let name = self.expect_name()?;
        if !self.is_op(".") {
            return Ok(name);
        }
        let mut full = name.to_string();
        while self.skip_op(".") {
            full.push('.');
            full.push_str(&self.expect_name()?);
        }
        Ok(full.into())
    }

    /// `|filter|filter`; with `inline` the first one has no bar before it.
    pub(super) fn filter_chain(&mut self, of: Option<Expr>, inline: bool) -> R<Option<Expr>> {
        let mut expr = of;
        let mut inline = inline;
        while self.is_op("|") || inline {
            if !inline {
                self.next();
            }
            inline = false;
            let line = self.line();
            let name = self.dotted_name()?;
            let arguments = match self.is_op("(") {
                true => self.arguments()?,
                false => Arguments::default(),
            };
            let below = expr.as_ref().map_or(0, |e| e.depth);
            let below = below.max(depth_of_arguments(&arguments));
            let kind = Kind::Filter(expr.map(Box::new), name, arguments);
            expr = Some(node(line, below, kind)?);
        }
        Ok(expr)
    }

    fn test(&mut self, of: Expr) -> R<Expr> {
        let line = self.line();
        self.next();
        let negated = self.skip_name("not");
        let name = self.dotted_name()?;
        let mut arguments = Arguments::default();
        match self.token() {
            Token::Op("(") => arguments = self.arguments()?,
            Token::Name(word) if matches!(&**word, "else" | "or" | "and") => {}
            Token::Name(word) if &**word == "is" => {
                return self.fail("You cannot chain multiple tests with is");
            }
            Token::Name(_)
            | Token::Text(_)
            | Token::Int(_)
            | Token::Float(_)
            | Token::Op("[" | "{") => {
                let argument = self.deeper(|parser| {
                    let argument = parser.primary()?;
                    parser.postfix(argument)
                })?;
                arguments.positional.push(argument);
            }
            _ => {}
        }
        let below = of.depth.max(depth_of_arguments(&arguments));
        let test = node(line, below, Kind::Test(Box::new(of), name, arguments))?;
        match negated {
            true => node(line, test.depth, Kind::Not(Box::new(test))),
            false => Ok(test),
        }
    }
}
