//! Entries of `modules_to_not_convert`, matched as transformers' `should_convert_module` matches them.
//!
//! Invariant: an entry gets the answer that Python's `re` gives, or an error; the work is bounded whatever the
//! entry is. A match is computed as the set of positions where it can end, so nothing is tried twice.

/// Most characters of an entry.
const ENTRY_CHARS: usize = 1024;
/// Most characters of a module name: positions are bits of a `u128`.
const NAME_CHARS: usize = 127;
/// Nesting of groups.
const DEPTH: usize = 32;
/// Steps of one entry on one name.
const STEPS: u32 = 1 << 16;
/// Python's `MAXREPEAT`: a count from here on is an error there.
const MOST_REPEATS: u64 = 4_294_967_295;

/// Why an entry has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoAnswer {
    /// Python refuses the expression.
    Invalid(&'static str),
    /// Python knows the syntax, and this matcher does not.
    Unsupported(&'static str),
    /// Too long, too deep, or too much work.
    TooLarge,
}

impl NoAnswer {
    /// The reason, to be put behind "the entry".
    pub(super) fn reason(self) -> String {
        match self {
            Self::Invalid(why) => format!("is not a valid regular expression: {why}"),
            Self::Unsupported(what) => format!("uses {what}, which is not matched here"),
            Self::TooLarge => "is too long or takes too many steps to match".to_owned(),
        }
    }
}

/// One entry of a list of modules.
#[derive(Debug)]
pub(super) struct ModulePattern {
    text: String,
    expression: Node,
}

impl ModulePattern {
    /// Parses an entry.
    pub(super) fn new(entry: &str) -> Result<Self, NoAnswer> {
        if entry.chars().count() > ENTRY_CHARS {
            return Err(NoAnswer::TooLarge);
        }
        // the expression that transformers makes of it, parsed as a whole: an entry may close the group early
        let whole = format!(r"(?:{entry})(?:(?<=\.)|(?=\.|$))");
        let mut parser = Parser {
            chars: whole.chars().collect(),
            at: 0,
            depth: 0,
        };
        let expression = parser.alternatives()?;
        if parser.at < parser.chars.len() {
            return Err(NoAnswer::Invalid("unbalanced parenthesis"));
        }
        Ok(Self {
            text: entry.to_owned(),
            expression,
        })
    }

    /// Whether the entry names a module. `steps` counts down over all calls that share a budget.
    pub(super) fn names(&self, module: &str, steps: &mut u64) -> Result<bool, NoAnswer> {
        if module.ends_with(&self.text) {
            return Ok(true);
        }
        let name: Vec<char> = module.chars().collect();
        if name.len() > NAME_CHARS {
            return Err(NoAnswer::TooLarge);
        }
        let mut matching = Matching {
            name: &name,
            steps: STEPS,
        };
        let found = matching.ends(&self.expression, 1);
        let used = u64::from(STEPS.saturating_sub(matching.steps)).saturating_add(1);
        *steps = steps.checked_sub(used).ok_or(NoAnswer::TooLarge)?;
        Ok(found? != 0)
    }
}

/// A part of an expression.
#[derive(Debug, Clone)]
enum Node {
    /// One character.
    One(Class),
    /// The beginning.
    Start,
    /// The end, or before a newline at the end.
    End,
    /// The end alone.
    VeryEnd,
    /// A boundary of a word, or none.
    Boundary { is: bool },
    /// One part after the other.
    Sequence(Vec<Node>),
    /// One part or another.
    Either(Vec<Node>),
    /// A part several times.
    Repeat {
        part: Box<Node>,
        least: u64,
        most: Option<u64>,
    },
    /// What follows or goes before.
    Look {
        part: Box<Node>,
        ahead: bool,
        is: bool,
    },
}

impl Node {
    /// The number of characters that every match has, if there is one: Python asks it of what goes before.
    fn width(&self) -> Option<u64> {
        match self {
            Self::One(_) => Some(1),
            Self::Start | Self::End | Self::VeryEnd | Self::Boundary { .. } | Self::Look { .. } => {
                Some(0)
            }
            Self::Sequence(parts) => parts
                .iter()
                .try_fold(0u64, |sum, part| sum.checked_add(part.width()?)),
            Self::Either(parts) => {
                let mut widths = parts.iter().map(Self::width);
                let first = widths.next()??;
                widths.all(|width| width == Some(first)).then_some(first)
            }
            Self::Repeat { part, least, most } if *most == Some(*least) => {
                part.width()?.checked_mul(*least)
            }
            Self::Repeat { .. } => None,
        }
    }

    /// Whether Python has nothing to repeat in it.
    fn is_position(&self) -> bool {
        matches!(
            self,
            Self::Start | Self::End | Self::VeryEnd | Self::Boundary { .. }
        )
    }
}

/// A set of characters.
#[derive(Debug, Clone)]
enum Class {
    Char(char),
    /// Everything but a newline.
    Any,
    Digit(bool),
    Space(bool),
    Word(bool),
    Set {
        of: Vec<SetItem>,
        is: bool,
    },
}

#[derive(Debug, Clone)]
enum SetItem {
    Range(char, char),
    Class(Class),
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

impl Class {
    fn has(&self, c: char) -> bool {
        match self {
            Self::Char(own) => c == *own,
            Self::Any => c != '\n',
            Self::Digit(is) => c.is_ascii_digit() == *is,
            Self::Space(is) => c.is_whitespace() == *is,
            Self::Word(is) => is_word(c) == *is,
            Self::Set { of, is } => {
                let inside = of.iter().any(|item| match item {
                    SetItem::Range(from, to) => (*from..=*to).contains(&c),
                    SetItem::Class(class) => class.has(c),
                });
                inside == *is
            }
        }
    }
}

/// One name that is matched.
struct Matching<'a> {
    name: &'a [char],
    steps: u32,
}

/// The set of one position; of one beyond 127, which no name has, the empty set.
fn bit(at: usize) -> u128 {
    let at = u32::try_from(at).ok();
    at.and_then(|at| 1u128.checked_shl(at)).unwrap_or(0)
}

impl Matching<'_> {
    /// The positions (bits) where `node` can end that begins at one of `from`.
    fn ends(&mut self, node: &Node, from: u128) -> Result<u128, NoAnswer> {
        self.steps = self.steps.checked_sub(1).ok_or(NoAnswer::TooLarge)?;
        if from == 0 {
            return Ok(0);
        }
        let len = self.name.len();
        let end = bit(len);
        Ok(match node {
            Node::One(class) => {
                let fits = self.name.iter().enumerate().filter(|(_, c)| class.has(**c));
                let places = fits.fold(0u128, |set, (at, _)| set | bit(at));
                (from & places).checked_shl(1).unwrap_or(0)
            }
            Node::Start => from & 1,
            Node::VeryEnd => from & end,
            Node::End => {
                let newline = self.name.last() == Some(&'\n');
                from & (end | if newline { end >> 1 } else { 0 })
            }
            Node::Boundary { is } => {
                let word = |at: Option<usize>| {
                    at.and_then(|at| self.name.get(at))
                        .is_some_and(|c| is_word(*c))
                };
                let at_boundary = |at: &usize| word(at.checked_sub(1)) != word(Some(*at));
                let places = (0..=len).filter(|at| at_boundary(at) == *is);
                from & places.fold(0u128, |set, at| set | bit(at))
            }
            Node::Sequence(parts) => {
                let mut set = from;
                for part in parts {
                    if set == 0 {
                        break;
                    }
                    set = self.ends(part, set)?;
                }
                set
            }
            Node::Either(parts) => {
                let mut set = 0;
                for part in parts {
                    set |= self.ends(part, from)?;
                }
                set
            }
            Node::Repeat { part, least, most } => {
                let mut set = from;
                // a set that did not change will not: matches never go back
                for _ in 0..*least {
                    let next = self.ends(part, set)?;
                    if next == set {
                        break;
                    }
                    set = next;
                }
                let (mut new, mut more) = (set, most.map(|most| most.saturating_sub(*least)));
                while new != 0 && more != Some(0) {
                    new = self.ends(part, new)? & !set;
                    set |= new;
                    more = more.map(|n| n.saturating_sub(1));
                }
                set
            }
            Node::Look { part, ahead, is } => {
                let mut set = 0;
                for at in (0..=len).filter(|at| from & bit(*at) != 0) {
                    let here = bit(at);
                    let found = if *ahead {
                        self.ends(part, here)? != 0
                    } else {
                        // fixed width: at most one place where it can begin
                        let width = part.width().and_then(|w| usize::try_from(w).ok());
                        match width.and_then(|width| at.checked_sub(width)) {
                            Some(begin) => self.ends(part, bit(begin))? & here != 0,
                            None => false,
                        }
                    };
                    if found == *is {
                        set |= here;
                    }
                }
                set
            }
        })
    }
}

/// Python's syntax, without flags.
struct Parser {
    chars: Vec<char>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at = self.at.saturating_add(1);
        Some(c)
    }

    fn eat(&mut self, text: &str) -> bool {
        let mut at = self.at;
        for c in text.chars() {
            if self.chars.get(at) != Some(&c) {
                return false;
            }
            at = at.saturating_add(1);
        }
        self.at = at;
        true
    }

    fn alternatives(&mut self) -> Result<Node, NoAnswer> {
        self.depth = self.depth.saturating_add(1);
        if self.depth > DEPTH {
            return Err(NoAnswer::TooLarge);
        }
        let mut all = vec![self.sequence()?];
        while self.eat("|") {
            all.push(self.sequence()?);
        }
        self.depth = self.depth.saturating_sub(1);
        match (all.pop(), all.is_empty()) {
            (Some(only), true) => Ok(only),
            (last, _) => {
                all.extend(last);
                Ok(Node::Either(all))
            }
        }
    }

    fn sequence(&mut self) -> Result<Node, NoAnswer> {
        let mut parts: Vec<Node> = Vec::new();
        while let Some(c) = self.peek() {
            if c == '|' || c == ')' {
                break;
            }
            self.at = self.at.saturating_add(1);
            let part = match c {
                '.' => Node::One(Class::Any),
                '^' => Node::Start,
                '$' => Node::End,
                '[' => Node::One(self.set()?),
                '(' => match self.group()? {
                    Some(group) => group,
                    None => continue,
                },
                '\\' => self.escape()?,
                '*' | '+' | '?' | '{' => {
                    let Some((least, most)) = self.repeat(c)? else {
                        parts.push(Node::One(Class::Char(c)));
                        continue;
                    };
                    let part = match parts.pop() {
                        None => return Err(NoAnswer::Invalid("nothing to repeat")),
                        Some(part) if part.is_position() => {
                            return Err(NoAnswer::Invalid("nothing to repeat"));
                        }
                        Some(Node::Repeat { .. }) => {
                            return Err(NoAnswer::Invalid("multiple repeat"));
                        }
                        Some(part) => part,
                    };
                    if self.eat("+") {
                        return Err(NoAnswer::Unsupported("a possessive repeat"));
                    }
                    // how eagerly it repeats does not change whether it matches
                    let _lazy = self.eat("?");
                    Node::Repeat {
                        part: Box::new(part),
                        least,
                        most,
                    }
                }
                literal => Node::One(Class::Char(literal)),
            };
            parts.push(part);
        }
        Ok(Node::Sequence(parts))
    }

    /// The counts of a repeat; `None` for a brace that is a character.
    fn repeat(&mut self, c: char) -> Result<Option<(u64, Option<u64>)>, NoAnswer> {
        match c {
            '*' => return Ok(Some((0, None))),
            '+' => return Ok(Some((1, None))),
            '?' => return Ok(Some((0, Some(1)))),
            _ => {}
        }
        let start = self.at;
        if self.peek() == Some('}') {
            return Ok(None);
        }
        let low = self.digits();
        let high = match self.eat(",") {
            true => self.digits(),
            false => low.clone(),
        };
        if !self.eat("}") {
            self.at = start;
            return Ok(None);
        }
        let number = |text: &str| match text.parse::<u64>() {
            Ok(n) if n < MOST_REPEATS => Ok(n),
            _ => Err(NoAnswer::Invalid("the repetition number is too large")),
        };
        let least = if low.is_empty() { 0 } else { number(&low)? };
        let most = match high.is_empty() {
            true => None,
            false => Some(number(&high)?),
        };
        if most.is_some_and(|most| most < least) {
            return Err(NoAnswer::Invalid("min repeat greater than max repeat"));
        }
        Ok(Some((least, most)))
    }

    fn digits(&mut self) -> String {
        let mut text = String::new();
        while let Some(c) = self.peek().filter(char::is_ascii_digit) {
            text.push(c);
            self.at = self.at.saturating_add(1);
        }
        text
    }

    /// What stands behind an opening parenthesis; `None` for a comment.
    fn group(&mut self) -> Result<Option<Node>, NoAnswer> {
        let look = |part, ahead, is| Node::Look {
            part: Box::new(part),
            ahead,
            is,
        };
        let node = if self.eat("?:") {
            self.alternatives()?
        } else if self.eat("?P<") {
            let mut name = String::new();
            while let Some(c) = self.next() {
                if c == '>' {
                    break;
                }
                name.push(c);
            }
            let first = name.chars().next();
            if !first.is_some_and(|c| c == '_' || c.is_alphabetic()) || !name.chars().all(is_word) {
                return Err(NoAnswer::Invalid("a bad group name"));
            }
            self.alternatives()?
        } else if self.eat("?=") {
            look(self.alternatives()?, true, true)
        } else if self.eat("?!") {
            look(self.alternatives()?, true, false)
        } else if self.eat("?<=") {
            look(self.behind()?, false, true)
        } else if self.eat("?<!") {
            look(self.behind()?, false, false)
        } else if self.eat("?#") {
            loop {
                match self.next() {
                    Some(')') => return Ok(None),
                    Some(_) => {}
                    None => return Err(NoAnswer::Invalid("an unterminated comment")),
                }
            }
        } else if self.peek() == Some('?') {
            return Err(NoAnswer::Unsupported("flags or a special group"));
        } else {
            self.alternatives()?
        };
        if !self.eat(")") {
            return Err(NoAnswer::Invalid("an unterminated group"));
        }
        // a group is one part, whatever it holds
        Ok(Some(match node {
            Node::Look { .. } => node,
            other => Node::Either(vec![other]),
        }))
    }

    fn behind(&mut self) -> Result<Node, NoAnswer> {
        let part = self.alternatives()?;
        match part.width() {
            Some(_) => Ok(part),
            None => Err(NoAnswer::Invalid("look-behind of no fixed width")),
        }
    }

    /// What stands behind a backslash outside of brackets.
    fn escape(&mut self) -> Result<Node, NoAnswer> {
        let Some(c) = self.next() else {
            return Err(NoAnswer::Invalid("a bad escape at the end"));
        };
        match c {
            'A' => return Ok(Node::Start),
            'Z' => return Ok(Node::VeryEnd),
            'b' => return Ok(Node::Boundary { is: true }),
            'B' => return Ok(Node::Boundary { is: false }),
            '0'..='9' => return Err(NoAnswer::Unsupported("a back-reference or an octal escape")),
            _ => {}
        }
        self.escaped(c).map(Node::One)
    }

    /// An escape that is one character, or a class of them.
    fn escaped(&mut self, c: char) -> Result<Class, NoAnswer> {
        Ok(match c {
            'd' | 'D' => Class::Digit(c == 'd'),
            's' | 'S' => Class::Space(c == 's'),
            'w' | 'W' => Class::Word(c == 'w'),
            'a' => Class::Char('\u{7}'),
            'f' => Class::Char('\u{c}'),
            'n' => Class::Char('\n'),
            'r' => Class::Char('\r'),
            't' => Class::Char('\t'),
            'v' => Class::Char('\u{b}'),
            'x' => Class::Char(self.code_point(2)?),
            'u' => Class::Char(self.code_point(4)?),
            'U' => Class::Char(self.code_point(8)?),
            'N' => return Err(NoAnswer::Unsupported("a character by its name")),
            c if c.is_ascii_alphabetic() => return Err(NoAnswer::Invalid("a bad escape")),
            other => Class::Char(other),
        })
    }

    fn code_point(&mut self, digits: usize) -> Result<char, NoAnswer> {
        let mut code = 0u32;
        for _ in 0..digits {
            let digit = self.next().and_then(|c| c.to_digit(16));
            let digit = digit.ok_or(NoAnswer::Invalid("an incomplete escape"))?;
            code = code.wrapping_mul(16).wrapping_add(digit);
        }
        char::from_u32(code).ok_or(NoAnswer::Unsupported("a surrogate"))
    }

    /// What stands behind an opening bracket.
    fn set(&mut self) -> Result<Class, NoAnswer> {
        const OPEN: NoAnswer = NoAnswer::Invalid("an unterminated character set");
        let is = !self.eat("^");
        let mut of = Vec::new();
        let mut first = true;
        loop {
            let c = self.next().ok_or(OPEN)?;
            if c == ']' && !first {
                return Ok(Class::Set { of, is });
            }
            first = false;
            let low = self.set_item(c)?;
            if self.peek() != Some('-') {
                of.push(single(low));
                continue;
            }
            self.at = self.at.saturating_add(1);
            let c = self.next().ok_or(OPEN)?;
            if c == ']' {
                of.push(single(low));
                of.push(SetItem::Range('-', '-'));
                return Ok(Class::Set { of, is });
            }
            match (low, self.set_item(c)?) {
                (Class::Char(low), Class::Char(high)) if low <= high => {
                    of.push(SetItem::Range(low, high));
                }
                _ => return Err(NoAnswer::Invalid("a bad character range")),
            }
        }
    }

    fn set_item(&mut self, c: char) -> Result<Class, NoAnswer> {
        if c != '\\' {
            return Ok(Class::Char(c));
        }
        match self.next() {
            None => Err(NoAnswer::Invalid("a bad escape at the end")),
            Some('b') => Ok(Class::Char('\u{8}')),
            Some('0'..='9') => Err(NoAnswer::Unsupported("an octal escape")),
            Some(c) => self.escaped(c),
        }
    }
}

fn single(class: Class) -> SetItem {
    match class {
        Class::Char(c) => SetItem::Range(c, c),
        class => SetItem::Class(class),
    }
}

#[cfg(test)]
mod tests;
