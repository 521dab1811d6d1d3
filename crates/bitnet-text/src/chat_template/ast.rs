//! The syntax tree of a template.
//!
//! Invariant: no node lies deeper than the limits of `meter`, so walking or dropping a tree cannot
//! overflow the stack.

use super::text::Text;
use std::cell::OnceCell;
use std::collections::HashMap;
use std::rc::Rc;

#[derive(Debug)]
pub(super) struct Expr {
    pub(super) line: u32,
    /// Levels of nodes below and including this one.
    pub(super) depth: usize,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    Const(Constant),
    Name(Rc<str>),
    Tuple(Vec<Expr>),
    List(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Attribute(Box<Expr>, Rc<str>),
    Item(Box<Expr>, Box<Expr>),
    /// `value[start:stop:step]`
    Slice(Box<Expr>, [Option<Box<Expr>>; 3]),
    Call(Box<Expr>, Arguments),
    Filter(Option<Box<Expr>>, Rc<str>, Arguments),
    Test(Box<Expr>, Rc<str>, Arguments),
    Not(Box<Expr>),
    Sign(Sign, Box<Expr>),
    Binary(Binary, Box<Expr>, Box<Expr>),
    And(Box<Expr>, Box<Expr>),
    Or(Box<Expr>, Box<Expr>),
    Concat(Vec<Expr>),
    Compare(Box<Expr>, Vec<(Comparison, Expr)>),
    /// `then if test else otherwise`
    Condition {
        test: Box<Expr>,
        then: Box<Expr>,
        otherwise: Option<Box<Expr>>,
    },
}

/// A literal.
#[derive(Debug)]
pub(super) enum Constant {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(Text),
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Sign {
    Plus,
    Minus,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    FloorDiv,
    Mod,
    Pow,
}

impl Binary {
    pub(super) fn symbol(self) -> &'static str {
        match self {
            Self::Add => "+",
            Self::Sub => "-",
            Self::Mul => "*",
            Self::Div => "/",
            Self::FloorDiv => "//",
            Self::Mod => "%",
            Self::Pow => "**",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Comparison {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    In,
    NotIn,
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    pub(super) positional: Vec<Expr>,
    pub(super) named: Vec<(Rc<str>, Expr)>,
    /// `*args`
    pub(super) more: Option<Box<Expr>>,
    /// `**kwargs`
    pub(super) more_named: Option<Box<Expr>>,
}

impl Arguments {
    /// Every expression, in the order in which Jinja visits them.
    pub(super) fn each(&self) -> impl Iterator<Item = &Expr> {
        let named = self.named.iter().map(|(_, value)| value);
        let more = self.more.iter().chain(&self.more_named).map(Box::as_ref);
        self.positional.iter().chain(named).chain(more)
    }
}

#[derive(Debug)]
pub(super) struct Statement {
    pub(super) line: u32,
    pub(super) kind: Act,
}

#[derive(Debug)]
pub(super) enum Act {
    Data(String),
    Print(Vec<Expr>),
    For(Rc<For>),
    If {
        /// Each test with its body; `elif` included.
        branches: Vec<(Expr, Vec<Statement>)>,
        otherwise: Vec<Statement>,
    },
    Set(Target, Expr),
    SetBlock {
        target: Target,
        /// A chain of filters that ends in the block's text.
        filter: Option<Expr>,
        body: Vec<Statement>,
        scope: Scope,
    },
    With {
        values: Vec<(Target, Expr)>,
        body: Vec<Statement>,
        scope: Scope,
    },
    FilterBlock {
        filter: Expr,
        body: Vec<Statement>,
        scope: Scope,
    },
    Macro(Rc<Macro>),
    /// `{% call(args) f(...) %}`: the body is a macro that the call gets as `caller`.
    Call(Rc<Macro>, Expr),
    /// `{% generation %}`: the body alone.
    Generation(Rc<Macro>),
    Block(Rc<Block>),
    Break,
    Continue,
    /// `include`, `import`, `from`: there is nothing to load from.
    Load(&'static str),
}

#[derive(Debug)]
pub(super) enum Target {
    Name(Rc<str>),
    /// `namespace.attribute`
    Attribute(Rc<str>, Rc<str>),
    Tuple(Vec<Target>),
}

impl Target {
    pub(super) fn each(&self, visit: &mut dyn FnMut(&Target)) {
        visit(self);
        if let Self::Tuple(items) = self {
            items.iter().for_each(|item| item.each(visit));
        }
    }
}

/// The names of a frame, found after parsing.
pub(super) type Scope = OnceCell<Rc<Names>>;

/// The variables of one frame.
#[derive(Debug, Default)]
pub(super) struct Names {
    list: Vec<(Rc<str>, Load)>,
    places: HashMap<Rc<str>, usize>,
}

impl Names {
    pub(super) fn new(list: Vec<(Rc<str>, Load)>) -> Self {
        let place = |(at, (name, _)): (usize, &(Rc<str>, Load))| (name.clone(), at);
        let places = list.iter().enumerate().map(place).collect();
        Self { list, places }
    }

    pub(super) fn position(&self, name: &str) -> Option<usize> {
        self.places.get(name).copied()
    }

    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &(Rc<str>, Load)> {
        self.list.iter()
    }
}

/// What a variable is when its frame begins.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Load {
    /// A value that the caller of the frame passes in.
    Parameter,
    /// What the context has under the name.
    Resolve,
    /// The variable of that name in an outer frame.
    Alias,
    Undefined,
}

#[derive(Debug)]
pub(super) struct For {
    pub(super) target: Target,
    pub(super) items: Expr,
    pub(super) test: Option<Expr>,
    pub(super) recursive: bool,
    pub(super) body: Vec<Statement>,
    pub(super) otherwise: Vec<Statement>,
    /// Whether the body knows `loop`.
    pub(super) extended: OnceCell<bool>,
    pub(super) scope: Scope,
    pub(super) test_scope: Scope,
    pub(super) otherwise_scope: Scope,
}

#[derive(Debug)]
pub(super) struct Macro {
    /// `None` of the body of a call block.
    pub(super) name: Option<Rc<str>>,
    pub(super) parameters: Vec<Rc<str>>,
    /// Of the last parameters.
    pub(super) defaults: Vec<Expr>,
    pub(super) body: Vec<Statement>,
    pub(super) special: OnceCell<Special>,
    pub(super) scope: Scope,
}

impl Macro {
    /// The default of a parameter.
    pub(super) fn default(&self, at: usize) -> Option<&Expr> {
        let first = self.parameters.len().checked_sub(self.defaults.len())?;
        self.defaults.get(at.checked_sub(first)?)
    }
}

/// Which of the names that every macro may use this one does use.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Special {
    pub(super) caller: bool,
    pub(super) kwargs: bool,
    pub(super) varargs: bool,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) name: Rc<str>,
    pub(super) scoped: bool,
    pub(super) required: bool,
    pub(super) body: Vec<Statement>,
    pub(super) scope: Scope,
}

/// A parsed template.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) body: Vec<Statement>,
    pub(super) blocks: Vec<Rc<Block>>,
    pub(super) scope: Scope,
}
