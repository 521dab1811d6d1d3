//! Statements of a template; expressions are in `expressions.rs`.
//!
//! Invariant: recursion is counted before it happens, so no source overflows the stack.

use super::ast::{Act, Block, Constant, Expr, For, Kind, Macro, Statement, Target, Template};
use super::lexer::{Token, tokens};
use super::meter::{Ended, Error, LOOP_DEPTH, R, SOURCE, STATEMENT_DEPTH, over};
use super::text::Text;
use std::cell::OnceCell;
use std::rc::Rc;

/// Parses a template.
pub(super) fn parse(source: &str) -> R<Template> {
    if source.len() > SOURCE {
        return over(format!(
            "the source limit: the template has {} bytes, at most {SOURCE} are read",
            source.len()
        ));
    }
    let mut parser = Parser {
        tokens: tokens(source)?,
        at: 0,
        depth: 0,
        statements: 0,
        loops: 0,
        within_loop: false,
        blocks: Vec::new(),
    };
    let (body, end) = parser.body(&[])?;
    debug_assert!(end.is_none());
    Ok(Template {
        body,
        blocks: parser.blocks,
        scope: OnceCell::new(),
    })
}

pub(super) struct Parser {
    tokens: Vec<(u32, Token)>,
    at: usize,
    /// Expressions that are being parsed.
    pub(super) depth: usize,
    statements: usize,
    loops: usize,
    /// Whether `break` has a loop to leave.
    within_loop: bool,
    blocks: Vec<Rc<Block>>,
}

/// Jinja's word for a token in its errors.
fn describe(token: &Token) -> String {
    match token {
        Token::Data(_) => "template data / text".to_owned(),
        Token::BlockBegin => "begin of statement block".to_owned(),
        Token::BlockEnd => "end of statement block".to_owned(),
        Token::VariableBegin => "begin of print statement".to_owned(),
        Token::VariableEnd => "end of print statement".to_owned(),
        Token::Name(name) => name.to_string(),
        Token::Text(_) => "string".to_owned(),
        Token::Int(_) => "integer".to_owned(),
        Token::Float(_) => "float".to_owned(),
        Token::Op(op) => (*op).to_owned(),
        Token::End => "end of template".to_owned(),
    }
}

impl Parser {
    pub(super) fn token(&self) -> &Token {
        self.tokens.get(self.at).map_or(&Token::End, |(_, t)| t)
    }

    pub(super) fn look(&self) -> &Token {
        self.tokens
            .get(self.at.saturating_add(1))
            .map_or(&Token::End, |(_, t)| t)
    }

    pub(super) fn line(&self) -> u32 {
        let last = self.tokens.last();
        self.tokens
            .get(self.at)
            .or(last)
            .map_or(1, |(line, _)| *line)
    }

    pub(super) fn next(&mut self) {
        self.at = self.tokens.len().min(self.at.saturating_add(1));
    }

    pub(super) fn fail<T>(&self, message: impl Into<String>) -> R<T> {
        self.fail_at(self.line(), message)
    }

    pub(super) fn fail_at<T>(&self, line: u32, message: impl Into<String>) -> R<T> {
        Err(Box::new(Error {
            message: message.into(),
            line: Some(line),
            kind: Ended::Failed,
        }))
    }

    pub(super) fn unexpected<T>(&self, expected: &str) -> R<T> {
        let found = describe(self.token());
        self.fail(format!("expected {expected}, got '{found}'"))
    }

    pub(super) fn is_name(&self, name: &str) -> bool {
        matches!(self.token(), Token::Name(found) if **found == *name)
    }

    pub(super) fn is_op(&self, op: &str) -> bool {
        matches!(self.token(), Token::Op(found) if *found == op)
    }

    pub(super) fn skip_name(&mut self, name: &str) -> bool {
        let is = self.is_name(name);
        if is {
            self.next();
        }
        is
    }

    pub(super) fn skip_op(&mut self, op: &str) -> bool {
        let is = self.is_op(op);
        if is {
            self.next();
        }
        is
    }

    pub(super) fn expect_op(&mut self, op: &str) -> R<()> {
        match self.skip_op(op) {
            true => Ok(()),
            false => self.unexpected(&format!("'{op}'")),
        }
    }

    fn expect_keyword(&mut self, name: &str) -> R<()> {
        match self.skip_name(name) {
            true => Ok(()),
            false => self.unexpected(&format!("'{name}'")),
        }
    }

    pub(super) fn expect_name(&mut self) -> R<Rc<str>> {
        let Token::Name(name) = self.token() else {
            return self.unexpected("a name");
        };
        let name = name.clone();
        self.next();
        Ok(name)
    }

    fn expect_block_end(&mut self) -> R<()> {
        if *self.token() != Token::BlockEnd {
            return self.unexpected("'%}'");
        }
        self.next();
        Ok(())
    }

    /// Statements up to one of the words, which is taken and given back.
    fn body(&mut self, ends: &[&'static str]) -> R<(Vec<Statement>, Option<&'static str>)> {
        self.statements = self.statements.saturating_add(1);
        if self.statements > STATEMENT_DEPTH {
            return over(format!(
                "the nesting limit: statements are nested deeper than {STATEMENT_DEPTH} levels"
            ));
        }
        let mut out = Vec::new();
        let end = loop {
            let line = self.line();
            match self.token() {
                Token::Data(text) => {
                    let kind = Act::Data(text.clone());
                    out.push(Statement { line, kind });
                    self.next();
                }
                Token::VariableBegin => {
                    self.next();
                    let expr = self.tuple(true)?;
                    if *self.token() != Token::VariableEnd {
                        return self.unexpected("'}}'");
                    }
                    self.next();
                    let kind = Act::Print(vec![expr]);
                    out.push(Statement { line, kind });
                }
                Token::BlockBegin => {
                    self.next();
                    if let Some(end) = ends.iter().find(|end| self.is_name(end)) {
                        self.next();
                        break Some(*end);
                    }
                    let line = self.line();
                    let kind = self.statement()?;
                    self.expect_block_end()?;
                    out.push(Statement { line, kind });
                }
                Token::End if ends.is_empty() => break None,
                Token::End => {
                    let ends = ends.join(" or ");
                    return self.fail(format!("unexpected end of template, expected {ends}"));
                }
                _ => return self.unexpected("template data"),
            }
        };
        self.statements = self.statements.saturating_sub(1);
        Ok((out, end))
    }

    /// The body of a statement whose tag has been read up to `%}`.
    fn block_body(&mut self, ends: &[&'static str]) -> R<(Vec<Statement>, &'static str)> {
        // a colon is allowed, as in Python
        self.skip_op(":");
        self.expect_block_end()?;
        let (body, end) = self.body(ends)?;
        Ok((body, end.unwrap_or_default()))
    }

    /// A body that becomes a function of its own: no `break` leaves it.
    fn function_body(&mut self, end: &'static str) -> R<Vec<Statement>> {
        let outside = (self.within_loop, self.loops);
        (self.within_loop, self.loops) = (false, 0);
        let (body, _) = self.block_body(&[end])?;
        (self.within_loop, self.loops) = outside;
        Ok(body)
    }

    fn statement(&mut self) -> R<Act> {
        let Token::Name(name) = self.token() else {
            return self.fail("tag name expected");
        };
        let name = name.clone();
        let line = self.line();
        self.next();
        match &*name {
            "for" => self.parse_for(),
            "if" => self.parse_if(),
            "set" => self.parse_set(),
            "with" => self.parse_with(),
            "block" => self.parse_block(line),
            "print" => {
                let mut printed = Vec::new();
                while *self.token() != Token::BlockEnd {
                    if !printed.is_empty() {
                        self.expect_op(",")?;
                    }
                    printed.push(self.expression()?);
                }
                Ok(Act::Print(printed))
            }
            "macro" => {
                let name = self.target_name()?;
                let (parameters, defaults) = self.signature()?;
                let body = self.function_body("endmacro")?;
                Ok(Act::Macro(new_macro(
                    Some(name),
                    parameters,
                    defaults,
                    body,
                )))
            }
            "call" => {
                let (parameters, defaults) = match self.is_op("(") {
                    true => self.signature()?,
                    false => Default::default(),
                };
                let call = self.expression()?;
                if !matches!(call.kind, Kind::Call(..)) {
                    return self.fail_at(line, "expected call");
                }
                let body = self.function_body("endcall")?;
                Ok(Act::Call(new_macro(None, parameters, defaults, body), call))
            }
            "generation" => {
                let body = self.function_body("endgeneration")?;
                Ok(Act::Generation(new_macro(None, vec![], vec![], body)))
            }
            "filter" => {
                let filter = self.filter_chain(None, true)?;
                let Some(filter) = filter else {
                    return self.unexpected("a filter");
                };
                let (body, _) = self.block_body(&["endfilter"])?;
                Ok(Act::FilterBlock {
                    filter,
                    body,
                    scope: OnceCell::new(),
                })
            }
            "break" | "continue" => {
                if !self.within_loop {
                    return self.fail_at(line, format!("'{name}' outside loop"));
                }
                Ok(match &*name {
                    "break" => Act::Break,
                    _ => Act::Continue,
                })
            }
            "include" => {
                self.expression()?;
                if self.is_name("ignore") {
                    self.next();
                    self.expect_keyword("missing")?;
                }
                self.import_context()?;
                Ok(Act::Load("include"))
            }
            "import" => {
                self.expression()?;
                self.expect_keyword("as")?;
                self.target_name()?;
                self.import_context()?;
                Ok(Act::Load("import"))
            }
            "from" => {
                self.expression()?;
                self.expect_keyword("import")?;
                while *self.token() != Token::BlockEnd {
                    if !self.skip_op(",") {
                        self.expect_name()?;
                    }
                }
                Ok(Act::Load("import"))
            }
            "extends" | "autoescape" => Err(Box::new(Error {
                message: format!("the statement '{name}' is not supported"),
                line: Some(line),
                kind: Ended::Unsupported,
            })),
            _ => self.fail_at(line, format!("Encountered unknown tag '{name}'")),
        }
    }

    fn import_context(&mut self) -> R<()> {
        if self.is_name("with") || self.is_name("without") {
            self.next();
            self.expect_keyword("context")?;
        }
        Ok(())
    }

    fn parse_for(&mut self) -> R<Act> {
        let target = self.target(false)?;
        self.expect_keyword("in")?;
        let items = self.tuple(false)?;
        let test = match self.skip_name("if") {
            true => Some(self.expression()?),
            false => None,
        };
        let recursive = self.skip_name("recursive");
        let outside = (self.within_loop, self.loops);
        self.loops = if recursive {
            1
        } else {
            self.loops.saturating_add(1)
        };
        if self.loops > LOOP_DEPTH {
            return over(format!(
                "the nesting limit: loops are nested deeper than {LOOP_DEPTH} levels"
            ));
        }
        self.within_loop = true;
        let (body, end) = self.block_body(&["endfor", "else"])?;
        self.loops = outside.1;
        // a recursive loop is a function, its `else` lies within it and outside the loop
        self.within_loop = outside.0 && !recursive;
        let mut otherwise = Vec::new();
        if end == "else" {
            otherwise = self.block_body(&["endfor"])?.0;
        }
        self.within_loop = outside.0;
        if stores_loop(&target) || any_stores_loop(&body) || any_stores_loop(&otherwise) {
            return self.fail("Can't assign to special loop variable in for-loop target");
        }
        Ok(Act::For(Rc::new(For {
            target,
            items,
            test,
            recursive,
            body,
            otherwise,
            extended: OnceCell::new(),
            scope: OnceCell::new(),
            test_scope: OnceCell::new(),
            otherwise_scope: OnceCell::new(),
        })))
    }

    fn parse_if(&mut self) -> R<Act> {
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        loop {
            let test = self.tuple(false)?;
            let (body, end) = self.block_body(&["elif", "else", "endif"])?;
            branches.push((test, body));
            match end {
                "elif" => continue,
                "else" => otherwise = self.block_body(&["endif"])?.0,
                _ => {}
            }
            return Ok(Act::If {
                branches,
                otherwise,
            });
        }
    }

    fn parse_set(&mut self) -> R<Act> {
        let target = self.target(true)?;
        if self.skip_op("=") {
            let value = self.tuple(true)?;
            return Ok(Act::Set(target, value));
        }
        let filter = self.filter_chain(None, false)?;
        let (body, _) = self.block_body(&["endset"])?;
        Ok(Act::SetBlock {
            target,
            filter,
            body,
            scope: OnceCell::new(),
        })
    }

    fn parse_with(&mut self) -> R<Act> {
        let mut values = Vec::new();
        while *self.token() != Token::BlockEnd {
            if !values.is_empty() {
                self.expect_op(",")?;
            }
            let target = self.target(false)?;
            self.expect_op("=")?;
            values.push((target, self.expression()?));
        }
        let (body, _) = self.block_body(&["endwith"])?;
        Ok(Act::With {
            values,
            body,
            scope: OnceCell::new(),
        })
    }

    fn parse_block(&mut self, line: u32) -> R<Act> {
        let name = self.expect_name()?;
        let scoped = self.skip_name("scoped");
        let required = self.skip_name("required");
        let body = self.function_body("endblock")?;
        self.skip_name(&name);
        let blank = |statement: &Statement| matches!(&statement.kind, Act::Data(text) if text.chars().all(super::unicode::is_space));
        if required && !body.iter().all(blank) {
            return self.fail("Required blocks can only contain comments or whitespace");
        }
        if self.blocks.iter().any(|block| block.name == name) {
            return self.fail_at(line, format!("block '{name}' defined twice"));
        }
        let block = Rc::new(Block {
            name,
            scoped,
            required,
            body,
            scope: OnceCell::new(),
        });
        self.blocks.push(block.clone());
        Ok(Act::Block(block))
    }

    /// Parameters and the defaults of the last ones.
    fn signature(&mut self) -> R<(Vec<Rc<str>>, Vec<Expr>)> {
        let (mut names, mut defaults) = (Vec::new(), Vec::new());
        self.expect_op("(")?;
        while !self.is_op(")") {
            if !names.is_empty() {
                self.expect_op(",")?;
            }
            let name = self.target_name()?;
            if self.skip_op("=") {
                defaults.push(self.expression()?);
            } else if !defaults.is_empty() {
                return self.fail("non-default argument follows default argument");
            }
            if names.contains(&name) {
                return self.fail(format!("duplicate argument '{name}'"));
            }
            names.push(name);
        }
        self.next();
        Ok((names, defaults))
    }

    fn target_name(&mut self) -> R<Rc<str>> {
        let name = self.expect_name()?;
        self.assignable(name)
    }

    fn assignable(&self, name: Rc<str>) -> R<Rc<str>> {
        match &*name {
            "true" | "false" | "none" | "True" | "False" | "None" => {
                self.fail(format!("can't assign to '{name}'"))
            }
            _ => Ok(name),
        }
    }

    fn one_target(&mut self, with_namespace: bool) -> R<Target> {
        if self.skip_op("(") {
            self.depth = self.depth.saturating_add(1);
            if self.depth > STATEMENT_DEPTH {
                return over("the nesting limit: names in parentheses are nested too deeply");
            }
            let target = self.target(with_namespace)?;
            self.depth = self.depth.saturating_sub(1);
            self.expect_op(")")?;
            return Ok(target);
        }
        let name = self.target_name()?;
        if with_namespace && self.skip_op(".") {
            let attribute = self.expect_name()?;
            return Ok(Target::Attribute(name, attribute));
        }
        Ok(Target::Name(name))
    }

    fn target(&mut self, with_namespace: bool) -> R<Target> {
        let mut items = Vec::new();
        let mut is_tuple = false;
        loop {
            if !items.is_empty() {
                self.expect_op(",")?;
            }
            if self.is_tuple_end() {
                break;
            }
            items.push(self.one_target(with_namespace)?);
            if !self.is_op(",") {
                break;
            }
            is_tuple = true;
        }
        match (is_tuple, items.len()) {
            (false, 1) => Ok(items.swap_remove(0)),
            (false, _) => self.unexpected("a name"),
            (true, _) => Ok(Target::Tuple(items)),
        }
    }

    /// Jinja means other ends for some statements, and its test for them never holds.
    pub(super) fn is_tuple_end(&self) -> bool {
        matches!(self.token(), Token::VariableEnd | Token::BlockEnd) || self.is_op(")")
    }
}

fn new_macro(
    name: Option<Rc<str>>,
    parameters: Vec<Rc<str>>,
    defaults: Vec<Expr>,
    body: Vec<Statement>,
) -> Rc<Macro> {
    Rc::new(Macro {
        name,
        parameters,
        defaults,
        body,
        special: OnceCell::new(),
        scope: OnceCell::new(),
    })
}

fn stores_loop(target: &Target) -> bool {
    let mut stores = false;
    target.each(&mut |part| {
        stores |= matches!(part, Target::Name(name) if &**name == "loop");
    });
    stores
}

/// Whether a name `loop` is assigned to anywhere within; Jinja forbids it in loops.
fn any_stores_loop(body: &[Statement]) -> bool {
    body.iter().any(|statement| match &statement.kind {
        Act::Set(target, _) => stores_loop(target),
        Act::SetBlock { target, body, .. } => stores_loop(target) || any_stores_loop(body),
        Act::If {
            branches,
            otherwise,
        } => branches.iter().any(|(_, body)| any_stores_loop(body)) || any_stores_loop(otherwise),
        Act::With { body, .. } | Act::FilterBlock { body, .. } => any_stores_loop(body),
        Act::Macro(inner) | Act::Call(inner, _) | Act::Generation(inner) => {
            any_stores_loop(&inner.body)
        }
        Act::Block(block) => any_stores_loop(&block.body),
        // inner loops have been looked at
        _ => false,
    })
}

/// A constant text.
pub(super) fn constant(text: &str) -> R<Constant> {
    Text::new(text).map(Constant::Text)
}
