//! Which frame each name of a template belongs to.
//!
//! Invariant: frames and what their variables begin as are those of Jinja's compiler, which makes a
//! Python function of each macro and resolves names before anything runs.

use super::ast::{
    Act, Arguments, Block, Expr, For, Kind, Load, Macro, Names, Scope, Special, Statement, Target,
    Template,
};
use super::filters::is_filter;
use super::meter::{R, at, fail};
use super::tests::is_test;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Fills in the scopes of a template and refuses what Jinja's compiler refuses.
pub(super) fn resolve(template: &Template) -> R<()> {
    let names = root_names(&template.body, &["self"]);
    let names = finish(&template.scope, names);
    frames(&template.body, &[names], false)?;
    for block in &template.blocks {
        let names = root_names(&block.body, &["self", "super"]);
        let names = finish(&block.scope, names);
        frames(&block.body, &[names], false)?;
    }
    Ok(())
}

fn root_names(body: &[Statement], special: &[&str]) -> Symbols<'static> {
    let mut symbols = Symbols::new(&[]);
    for name in undeclared(body, special) {
        symbols.parameter(&name.into());
    }
    symbols.statements(body);
    symbols
}

fn finish(scope: &Scope, symbols: Symbols<'_>) -> Rc<Names> {
    scope
        .get_or_init(|| Rc::new(Names::new(symbols.names)))
        .clone()
}

/// The names of a frame while they are collected.
struct Symbols<'a> {
    names: Vec<(Rc<str>, Load)>,
    places: HashMap<Rc<str>, usize>,
    stores: Vec<Rc<str>>,
    stored: HashSet<Rc<str>>,
    /// What names known before the branch were when a branch changed them.
    undo: Vec<(usize, Load)>,
    /// Frames around, outermost first.
    outer: &'a [Rc<Names>],
}

/// What one branch of an `if` adds to the names.
#[derive(Default)]
struct Branch {
    names: Vec<(Rc<str>, Load)>,
    changed: Vec<(usize, Load)>,
    stores: Vec<Rc<str>>,
}

impl<'a> Symbols<'a> {
    fn new(outer: &'a [Rc<Names>]) -> Self {
        Self {
            names: Vec::new(),
            places: HashMap::new(),
            stores: Vec::new(),
            stored: HashSet::new(),
            undo: Vec::new(),
            outer,
        }
    }

    fn is_outer(&self, name: &str) -> bool {
        self.outer
            .iter()
            .any(|names| names.position(name).is_some())
    }

    fn position(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    fn define(&mut self, name: &Rc<str>, load: Load) {
        match self.position(name) {
            Some(at) => {
                if let Some((_, known)) = self.names.get_mut(at) {
                    self.undo.push((at, std::mem::replace(known, load)));
                }
            }
            None => {
                self.places.insert(name.clone(), self.names.len());
                self.names.push((name.clone(), load));
            }
        }
    }

    /// Analyzes a branch and takes back what it did.
    fn branch(&mut self, analyze: impl FnOnce(&mut Self)) -> Branch {
        let (names, stores) = (self.names.len(), self.stores.len());
        let outside = std::mem::take(&mut self.undo);
        analyze(self);
        let undo = std::mem::replace(&mut self.undo, outside);
        let known = undo.iter().filter(|(at, _)| *at < names);
        let load = |at: &usize| self.names.get(*at).map(|(_, load)| (*at, *load));
        let changed = known.filter_map(|(at, _)| load(at)).collect();
        for (at, load) in undo.into_iter().rev() {
            if let Some((_, known)) = self.names.get_mut(at) {
                *known = load;
            }
        }
        let branch = Branch {
            names: self.names.split_off(names),
            changed,
            stores: self.stores.split_off(stores),
        };
        branch.names.iter().for_each(|(name, _)| {
            self.places.remove(name);
        });
        branch.stores.iter().for_each(|name| {
            self.stored.remove(name);
        });
        branch
    }

    fn note_store(&mut self, name: &Rc<str>) {
        if self.stored.insert(name.clone()) {
            self.stores.push(name.clone());
        }
    }

    fn parameter(&mut self, name: &Rc<str>) {
        self.note_store(name);
        self.define(name, Load::Parameter);
    }

    fn store(&mut self, name: &Rc<str>) {
        self.note_store(name);
        if self.position(name).is_none() {
            let load = match self.is_outer(name) {
                true => Load::Alias,
                false => Load::Undefined,
            };
            self.define(name, load);
        }
    }

    fn load(&mut self, name: &Rc<str>) {
        if self.position(name).is_none() && !self.is_outer(name) {
            self.define(name, Load::Resolve);
        }
    }

    fn target(&mut self, target: &Target, parameter: bool) {
        target.each(&mut |part| match part {
            Target::Name(name) if parameter => self.parameter(name),
            Target::Name(name) => self.store(name),
            Target::Attribute(name, _) => self.load(name),
            Target::Tuple(_) => {}
        });
    }

    fn expression(&mut self, expr: &Expr) {
        walk_expression(expr, &mut |name, _| self.load(name));
    }

    fn statements(&mut self, body: &[Statement]) {
        for statement in body {
            self.statement(statement);
        }
    }

    fn statement(&mut self, statement: &Statement) {
        match &statement.kind {
            Act::Data(_) | Act::Break | Act::Continue | Act::Load(_) | Act::Block(_) => {}
            Act::Generation(_) => {}
            Act::Print(items) => items.iter().for_each(|item| self.expression(item)),
            Act::For(inner) => self.expression(&inner.items),
            Act::If {
                branches,
                otherwise,
            } => self.condition(branches, otherwise),
            Act::Set(target, value) => {
                self.expression(value);
                self.target(target, false);
            }
            Act::SetBlock { target, .. } => self.target(target, false),
            Act::With { values, .. } => {
                values.iter().for_each(|(_, value)| self.expression(value));
            }
            Act::FilterBlock { filter, .. } => self.expression(filter),
            Act::Macro(inner) => {
                if let Some(name) = &inner.name {
                    self.store(name);
                }
            }
            Act::Call(_, call) => self.expression(call),
        }
    }

    /// The branches of an `if`; a later branch is an `if` of its own beside the first body.
    fn condition(&mut self, branches: &[(Expr, Vec<Statement>)], otherwise: &[Statement]) {
        let Some(((test, first), rest)) = branches.split_first() else {
            return;
        };
        self.expression(test);
        let body = self.branch(|names| names.statements(first));
        let elifs = self.branch(|names| {
            for branch in rest {
                names.condition(std::slice::from_ref(branch), &[]);
            }
        });
        let last = self.branch(|names| names.statements(otherwise));
        // the last branch knows all older names and so decides what they are
        for &(at, load) in &last.changed {
            if let Some((name, _)) = self.names.get(at) {
                let name = name.clone();
                self.define(&name, load);
            }
        }
        let mut stores: Vec<Rc<str>> = Vec::new();
        for branch in [body, elifs, last] {
            for (name, load) in &branch.names {
                self.define(name, *load);
            }
            for name in &branch.stores {
                if self.stored.insert(name.clone()) {
                    self.stores.push(name.clone());
                    stores.push(name.clone());
                }
            }
        }
        for name in stores {
            let load = match self.is_outer(&name) {
                true => Load::Alias,
                false => Load::Resolve,
            };
            self.define(&name, load);
        }
    }
}

/// Every name in an expression.
fn walk_expression(expr: &Expr, visit: &mut dyn FnMut(&Rc<str>, bool)) {
    match &expr.kind {
        Kind::Const(_) => {}
        Kind::Name(name) => visit(name, true),
        Kind::Tuple(items) | Kind::List(items) | Kind::Concat(items) => {
            items.iter().for_each(|item| walk_expression(item, visit));
        }
        Kind::Dict(items) => {
            for (key, value) in items {
                walk_expression(key, visit);
                walk_expression(value, visit);
            }
        }
        Kind::Attribute(of, _) | Kind::Not(of) | Kind::Sign(_, of) => walk_expression(of, visit),
        Kind::Item(left, right)
        | Kind::Binary(_, left, right)
        | Kind::And(left, right)
        | Kind::Or(left, right) => {
            walk_expression(left, visit);
            walk_expression(right, visit);
        }
        Kind::Slice(of, parts) => {
            walk_expression(of, visit);
            for part in parts.iter().flatten() {
                walk_expression(part, visit);
            }
        }
        Kind::Call(of, arguments) | Kind::Test(of, _, arguments) => {
            walk_expression(of, visit);
            walk_arguments(arguments, visit);
        }
        Kind::Filter(of, _, arguments) => {
            if let Some(of) = of {
                walk_expression(of, visit);
            }
            walk_arguments(arguments, visit);
        }
        Kind::Compare(first, rest) => {
            walk_expression(first, visit);
            rest.iter()
                .for_each(|(_, expr)| walk_expression(expr, visit));
        }
        Kind::Condition {
            test,
            then,
            otherwise,
        } => {
            walk_expression(test, visit);
            walk_expression(then, visit);
            if let Some(otherwise) = otherwise {
                walk_expression(otherwise, visit);
            }
        }
    }
}

fn walk_arguments(arguments: &Arguments, visit: &mut dyn FnMut(&Rc<str>, bool)) {
    arguments
        .each()
        .for_each(|expr| walk_expression(expr, visit));
}

/// Which of `names` a body reads before it assigns to them, macros within included.
fn undeclared<'n>(body: &[Statement], names: &[&'n str]) -> Vec<&'n str> {
    let mut left = names.to_vec();
    let mut found = Vec::new();
    walk_statements(body, &mut |name, is_load| {
        let Some(at) = left.iter().position(|n| *n == &**name) else {
            return;
        };
        if is_load {
            found.extend(left.get(at).filter(|name| !found.contains(*name)).copied());
        } else {
            left.swap_remove(at);
        }
    });
    found
}

fn walk_target(target: &Target, visit: &mut dyn FnMut(&Rc<str>, bool)) {
    target.each(&mut |part| {
        if let Target::Name(name) = part {
            visit(name, false);
        }
    });
}

fn walk_macro(inner: &Macro, visit: &mut dyn FnMut(&Rc<str>, bool)) {
    inner.parameters.iter().for_each(|name| visit(name, false));
    inner
        .defaults
        .iter()
        .for_each(|e| walk_expression(e, visit));
    walk_statements(&inner.body, visit);
}

fn walk_statements(body: &[Statement], visit: &mut dyn FnMut(&Rc<str>, bool)) {
    for statement in body {
        match &statement.kind {
            Act::Data(_) | Act::Break | Act::Continue | Act::Load(_) | Act::Block(_) => {}
            Act::Print(items) => items.iter().for_each(|e| walk_expression(e, visit)),
            Act::For(inner) => {
                walk_target(&inner.target, visit);
                walk_expression(&inner.items, visit);
                walk_statements(&inner.body, visit);
                walk_statements(&inner.otherwise, visit);
                if let Some(test) = &inner.test {
                    walk_expression(test, visit);
                }
            }
            Act::If {
                branches,
                otherwise,
            } => {
                for (test, body) in branches {
                    walk_expression(test, visit);
                    walk_statements(body, visit);
                }
                walk_statements(otherwise, visit);
            }
            Act::Set(target, value) => {
                walk_target(target, visit);
                walk_expression(value, visit);
            }
            Act::SetBlock {
                target,
                filter,
                body,
                ..
            } => {
                walk_target(target, visit);
                if let Some(filter) = filter {
                    walk_expression(filter, visit);
                }
                walk_statements(body, visit);
            }
            Act::With { values, body, .. } => {
                values.iter().for_each(|(t, _)| walk_target(t, visit));
                values.iter().for_each(|(_, e)| walk_expression(e, visit));
                walk_statements(body, visit);
            }
            Act::FilterBlock { filter, body, .. } => {
                walk_statements(body, visit);
                walk_expression(filter, visit);
            }
            Act::Macro(inner) | Act::Generation(inner) => walk_macro(inner, visit),
            Act::Call(inner, call) => {
                walk_expression(call, visit);
                walk_macro(inner, visit);
            }
        }
    }
}

/// Frames within a body whose own names are known. `soft`: within an `if`, where an unknown filter
/// is an error only when it is reached.
fn frames(body: &[Statement], outer: &[Rc<Names>], soft: bool) -> R<()> {
    for statement in body {
        at(statement.line, frame(statement, outer, soft))?;
    }
    Ok(())
}

fn within(outer: &[Rc<Names>], names: Rc<Names>) -> Vec<Rc<Names>> {
    let mut all = outer.to_vec();
    all.push(names);
    all
}

fn frame(statement: &Statement, outer: &[Rc<Names>], soft: bool) -> R<()> {
    match &statement.kind {
        Act::Data(_) | Act::Break | Act::Continue | Act::Load(_) => Ok(()),
        Act::Block(block) => check_block(block),
        Act::Print(items) => items.iter().try_for_each(|e| check(e, outer, soft)),
        Act::Set(target, value) => {
            check_target(target, outer)?;
            check(value, outer, soft)
        }
        Act::If {
            branches,
            otherwise,
        } => {
            for (test, body) in branches {
                check(test, outer, true)?;
                frames(body, outer, true)?;
            }
            frames(otherwise, outer, true)
        }
        Act::For(inner) => for_frames(inner, outer, soft),
        Act::SetBlock {
            target,
            filter,
            body,
            scope,
        } => {
            check_target(target, outer)?;
            let mut symbols = Symbols::new(outer);
            symbols.statements(body);
            let outer = within(outer, finish(scope, symbols));
            frames(body, &outer, false)?;
            filter.iter().try_for_each(|e| check(e, &outer, false))
        }
        Act::With {
            values,
            body,
            scope,
        } => {
            for (_, value) in values {
                check(value, outer, soft)?;
            }
            let mut symbols = Symbols::new(outer);
            values.iter().for_each(|(t, _)| symbols.target(t, true));
            symbols.statements(body);
            frames(body, &within(outer, finish(scope, symbols)), false)
        }
        Act::FilterBlock {
            filter,
            body,
            scope,
        } => {
            let mut symbols = Symbols::new(outer);
            symbols.statements(body);
            symbols.expression(filter);
            let outer = within(outer, finish(scope, symbols));
            frames(body, &outer, false)?;
            check(filter, &outer, false)
        }
        Act::Macro(inner) | Act::Generation(inner) => macro_frames(inner, outer),
        Act::Call(inner, call) => {
            macro_frames(inner, outer)?;
            check(call, outer, soft)
        }
    }
}

fn check_block(block: &Block) -> R<()> {
    // a required block has nothing to show without a child template
    match block.required {
        true => fail(format!("Required block '{}' not found", block.name)),
        false => Ok(()),
    }
}

fn for_frames(inner: &For, outer: &[Rc<Names>], soft: bool) -> R<()> {
    check(&inner.items, outer, soft)?;
    let mut symbols = Symbols::new(outer);
    let extended = inner.recursive || !undeclared(&inner.body, &["loop"]).is_empty();
    inner.extended.get_or_init(|| extended);
    if extended {
        symbols.parameter(&"loop".into());
    }
    symbols.target(&inner.target, true);
    symbols.statements(&inner.body);
    let names = within(outer, finish(&inner.scope, symbols));
    if let Some(test) = &inner.test {
        let mut symbols = Symbols::new(outer);
        symbols.target(&inner.target, true);
        symbols.expression(test);
        check(
            test,
            &within(outer, finish(&inner.test_scope, symbols)),
            false,
        )?;
    }
    frames(&inner.body, &names, false)?;
    let mut symbols = Symbols::new(outer);
    symbols.statements(&inner.otherwise);
    let names = within(outer, finish(&inner.otherwise_scope, symbols));
    frames(&inner.otherwise, &names, false)
}

fn macro_frames(inner: &Macro, outer: &[Rc<Names>]) -> R<()> {
    let mut symbols = Symbols::new(outer);
    inner
        .parameters
        .iter()
        .for_each(|name| symbols.parameter(name));
    inner.defaults.iter().for_each(|e| symbols.expression(e));
    symbols.statements(&inner.body);
    let used = undeclared(&inner.body, &["caller", "kwargs", "varargs"]);
    let mut special = Special::default();
    for name in used {
        let declared = inner.parameters.iter().position(|p| **p == *name);
        match (name, declared) {
            ("caller", Some(at)) if inner.default(at).is_none() => {
                return fail(
                    "the special \"caller\" argument must be omitted or be given a default",
                );
            }
            ("caller", Some(_)) => special.caller = true,
            (_, Some(_)) => {}
            (name, None) => {
                match name {
                    "caller" => special.caller = true,
                    "kwargs" => special.kwargs = true,
                    _ => special.varargs = true,
                }
                symbols.parameter(&name.into());
            }
        }
    }
    inner.special.get_or_init(|| special);
    let outer = within(outer, finish(&inner.scope, symbols));
    for default in &inner.defaults {
        check(default, &outer, false)?;
    }
    frames(&inner.body, &outer, false)
}

fn check_target(target: &Target, outer: &[Rc<Names>]) -> R<()> {
    let mut unknown = None;
    target.each(&mut |part| {
        if let Target::Attribute(name, _) = part
            && !outer.iter().any(|names| names.position(name).is_some())
        {
            unknown = Some(name.clone());
        }
    });
    match unknown {
        Some(name) => fail(format!("the name {name} cannot be resolved")),
        None => Ok(()),
    }
}

/// Refuses filters and tests that do not exist, and names that Jinja cannot resolve.
fn check(expr: &Expr, outer: &[Rc<Names>], soft: bool) -> R<()> {
    at(expr.line, check_node(expr, outer, soft))
}

fn check_node(expr: &Expr, outer: &[Rc<Names>], soft: bool) -> R<()> {
    let each = |items: &[Expr]| items.iter().try_for_each(|e| check(e, outer, soft));
    let arguments = |arguments: &Arguments, soft: bool| {
        arguments.each().try_for_each(|e| check(e, outer, soft))
    };
    match &expr.kind {
        Kind::Const(_) => Ok(()),
        Kind::Name(name) => match outer.iter().any(|names| names.position(name).is_some()) {
            true => Ok(()),
            false => fail(format!("the name {name} cannot be resolved")),
        },
        Kind::Tuple(items) | Kind::List(items) | Kind::Concat(items) => each(items),
        Kind::Dict(items) => items.iter().try_for_each(|(key, value)| {
            check(key, outer, soft)?;
            check(value, outer, soft)
        }),
        Kind::Attribute(of, _) | Kind::Not(of) | Kind::Sign(_, of) => check(of, outer, soft),
        Kind::Item(left, right)
        | Kind::Binary(_, left, right)
        | Kind::And(left, right)
        | Kind::Or(left, right) => {
            check(left, outer, soft)?;
            check(right, outer, soft)
        }
        Kind::Slice(of, parts) => {
            check(of, outer, soft)?;
            let mut parts = parts.iter().flatten();
            parts.try_for_each(|part| check(part, outer, soft))
        }
        Kind::Call(of, args) => {
            check(of, outer, soft)?;
            arguments(args, soft)
        }
        Kind::Filter(of, name, args) => {
            if !soft && !is_filter(name) {
                return fail(format!("No filter named '{name}'."));
            }
            of.iter().try_for_each(|of| check(of, outer, soft))?;
            arguments(args, soft)
        }
        Kind::Test(of, name, args) => {
            if !soft && !is_test(name) {
                return fail(format!("No test named '{name}'."));
            }
            check(of, outer, soft)?;
            arguments(args, soft)
        }
        Kind::Compare(first, rest) => {
            check(first, outer, soft)?;
            rest.iter().try_for_each(|(_, e)| check(e, outer, soft))
        }
        Kind::Condition {
            test,
            then,
            otherwise,
        } => {
            check(test, outer, true)?;
            check(then, outer, true)?;
            otherwise.iter().try_for_each(|e| check(e, outer, true))
        }
    }
}
