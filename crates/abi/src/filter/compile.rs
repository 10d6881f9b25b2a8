//! From the parser's tree to a typed [`Test`] over columns.

use std::cmp::Ordering;

use cel::Env;
use cel::common::ast::{CallExpr, Expr as Node, IdedExpr, ListExpr, LiteralValue, SourceInfo};
use memchr::memmem::Finder;
use regex::bytes::RegexBuilder;

use super::FilterError;
use super::expr::{Arithmetic, Comparison, Expr, Items, Needle, Test, negated, order};
use super::scan::{self, char_at};
use crate::limits::{FILTER_REGEX_BYTES_MAX, FILTER_REGEXES_MAX, QUERY_TEXT_BYTES_MAX};
use crate::schema::{ColumnIndex, Kind, Schema};
use crate::value::Value;

/// Compiles `text`; gives the columns it reads, each once, as well.
pub(super) fn compile(
    text: &str,
    schema: &'static Schema,
) -> Result<(Test, Vec<ColumnIndex>), FilterError> {
    if text.len() > QUERY_TEXT_BYTES_MAX {
        return Err(FilterError::TooLong(text.len()));
    }
    scan::check(text)?;
    // An environment without macros: they would hand us loops in place of `exists` and `all`, and
    // refuse `has` of a plain name.
    let parser = Env::default().with_optional_support(false).parser();
    let (node, source) =
        parser.parse_with_source_info(text).map_err(|errors| syntax_error(text, &errors))?;
    let mut compiler =
        Compiler { text, source, schema, columns: Vec::new(), item: None, regexes: 0 };
    let condition = compiler.typed(&node)?;
    if condition.kind != Type::Bool {
        return Err(FilterError::NotBool { kind: condition.kind.name() });
    }
    Ok((condition.into_test(), compiler.columns))
}

/// What the parser says first, made short: it lists every token that could have stood there.
fn syntax_error(text: &str, errors: &cel::ParseErrors) -> FilterError {
    let Some(error) = errors.errors.first() else {
        return FilterError::Syntax { at: 1, message: "this is no condition".to_owned() };
    };
    let message = error.msg.trim_start_matches("Syntax error: ");
    let message = message.split(" expecting ").next().unwrap_or(message);
    if message.contains("<EOF>") {
        let at = text.trim_end().chars().count() + 1;
        return FilterError::Syntax { at, message: "the condition ends too early".to_owned() };
    }
    let (line, column) = error.pos;
    let lines_before = text.split_inclusive('\n').take(usize::try_from(line - 1).unwrap_or(0));
    let before: usize = lines_before.map(|line| line.chars().count()).sum();
    let at = before + usize::try_from(column).unwrap_or(0).max(1);
    FilterError::Syntax { at, message: message.to_owned() }
}

/// The type of an expression. Every value may be null besides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    /// Only ever null.
    Null,
    Bool,
    Int,
    Float,
    Text,
    TextList,
}

impl Type {
    fn of(kind: Kind) -> Type {
        match kind {
            Kind::Bool => Type::Bool,
            Kind::Int => Type::Int,
            Kind::Float => Type::Float,
            Kind::Text => Type::Text,
            Kind::TextList => Type::TextList,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Type::Null => "null",
            Type::Bool => "true or false",
            Type::Int => "an integer",
            Type::Float => "a number",
            Type::Text => "a text",
            Type::TextList => "a list of texts",
        }
    }

    fn is_number(self) -> bool {
        matches!(self, Type::Int | Type::Float)
    }

    /// The type of values of both, if they go together.
    fn common(self, other: Type) -> Option<Type> {
        match (self, other) {
            (a, b) if a == b => Some(a),
            (Type::Null, known) | (known, Type::Null) => Some(known),
            (a, b) if a.is_number() && b.is_number() => Some(Type::Float),
            _ => None,
        }
    }
}

struct Typed {
    expr: Expr,
    kind: Type,
}

impl Typed {
    fn constant(value: Value<'static>, kind: Type) -> Typed {
        Typed { expr: Expr::Constant(value), kind }
    }

    fn test(test: Test) -> Typed {
        Typed { expr: Expr::Test(Box::new(test)), kind: Type::Bool }
    }

    fn into_test(self) -> Test {
        match self.expr {
            Expr::Test(test) => *test,
            expr => Test::Value(expr),
        }
    }
}

const FUNCTIONS: &str = "there are text.contains(), .startsWith(), .endsWith(), .matches(), .lowerAscii(), .upperAscii() and .size(), list.size(), .exists() and .all(), has(column) and double(number)";

struct Compiler<'t> {
    text: &'t str,
    source: SourceInfo,
    schema: &'static Schema,
    columns: Vec<ColumnIndex>,
    /// The name and type of the element, inside of a quantifier.
    item: Option<(String, Type)>,
    regexes: usize,
}

impl Compiler<'_> {
    fn typed(&mut self, node: &IdedExpr) -> Result<Typed, FilterError> {
        match &node.expr {
            Node::Literal(literal) => self.literal(node, literal),
            Node::Ident(name) => self.name(node, name),
            Node::Call(call) => match (&call.target, call.args.as_slice()) {
                (None, [of]) => self.unary(node, &call.func_name, of),
                (None, [a, b]) => self.binary(node, &call.func_name, a, b),
                (None, [condition, yes, no]) if call.func_name == "_?_:_" => {
                    self.choice(node, [condition, yes, no])
                }
                (Some(target), args) => self.method(node, call, target, args),
                (None, _) => Err(self.no_function(node, &call.func_name, FUNCTIONS)),
            },
            Node::List(list) => self.text_list(node, list),
            Node::Select(select) => {
                let message = format!(
                    "`.{}` is not understood: columns have no parts, and a call wants (…)",
                    select.field
                );
                Err(self.type_error(node, message))
            }
            Node::Map(_) | Node::Struct(_) => {
                Err(self.type_error(node, "a condition has no maps; lists stand in […]"))
            }
            Node::Comprehension(_) | Node::Unspecified => {
                Err(FilterError::Syntax { at: self.at(node), message: "not understood".to_owned() })
            }
        }
    }

    fn test(&mut self, node: &IdedExpr, operator: &str) -> Result<Test, FilterError> {
        let typed = self.typed(node)?;
        if typed.kind == Type::Bool {
            return Ok(typed.into_test());
        }
        let kind = typed.kind.name();
        let message = format!("`{operator}` wants true or false, and this is {kind}; compare it");
        Err(self.type_error(node, message))
    }

    /// An operand of type text.
    fn text(&mut self, node: &IdedExpr, function: &str) -> Result<Expr, FilterError> {
        let typed = self.typed(node)?;
        if typed.kind == Type::Text {
            return Ok(typed.expr);
        }
        let kind = typed.kind.name();
        let advice = match typed.kind {
            Type::TextList => "; write `\"…\" in list`, or list.exists(x, …)",
            _ => "",
        };
        let message = format!("{function}() is for texts, and this is {kind}{advice}");
        Err(self.type_error(node, message))
    }

    fn literal(&self, node: &IdedExpr, literal: &LiteralValue) -> Result<Typed, FilterError> {
        Ok(match literal {
            LiteralValue::Boolean(flag) => Typed::constant(Value::Bool(*flag.inner()), Type::Bool),
            LiteralValue::Int(number) => Typed::constant(Value::Int(*number.inner()), Type::Int),
            LiteralValue::UInt(number) => {
                let number = i64::try_from(*number.inner()).map_err(|_| {
                    self.type_error(node, "this number is above the greatest integer, 2^63 - 1")
                })?;
                Typed::constant(Value::Int(number), Type::Int)
            }
            LiteralValue::Double(number) => {
                Typed::constant(Value::Float(*number.inner()), Type::Float)
            }
            LiteralValue::String(text) => {
                Typed::constant(Value::owned_text(text.inner()), Type::Text)
            }
            LiteralValue::Bytes(bytes) => {
                Typed::constant(Value::owned_text(bytes.inner()), Type::Text)
            }
            LiteralValue::Null => Typed::constant(Value::Null, Type::Null),
        })
    }

    fn name(&mut self, node: &IdedExpr, name: &str) -> Result<Typed, FilterError> {
        if let Some((_, kind)) = self.item.as_ref().filter(|(item, _)| item == name) {
            return Ok(Typed { expr: Expr::Item, kind: *kind });
        }
        let unit = match name {
            "KiB" => Some(1 << 10),
            "MiB" => Some(1 << 20),
            "GiB" => Some(1 << 30),
            "TiB" => Some(1 << 40),
            _ => None,
        };
        if let Some(bytes) = unit {
            return Ok(Typed::constant(Value::Int(bytes), Type::Int));
        }
        let Some(index) = self.schema.find(name) else {
            let closest = match name.to_ascii_lowercase().as_str() {
                "kb" | "kib" => Some("KiB"),
                "mb" | "mib" => Some("MiB"),
                "gb" | "gib" => Some("GiB"),
                "tb" | "tib" => Some("TiB"),
                _ => self.schema.closest(name),
            };
            return Err(FilterError::Column { at: self.at(node), name: name.to_owned(), closest });
        };
        if !self.columns.contains(&index) {
            self.columns.push(index);
        }
        Ok(Typed { expr: Expr::Column(index), kind: Type::of(self.schema.columns[index].kind) })
    }

    fn unary(&mut self, node: &IdedExpr, name: &str, of: &IdedExpr) -> Result<Typed, FilterError> {
        match name {
            "!_" => Ok(Typed::test(Test::Not(Box::new(self.test(of, "!")?)))),
            "-_" => {
                let typed = self.number(of, "-")?;
                let expr = match typed.expr {
                    Expr::Constant(number) => match negated(&number) {
                        Value::Null => return Err(self.no_result(node)),
                        negative => Expr::Constant(negative),
                    },
                    expr => Expr::Negate(Box::new(expr)),
                };
                Ok(Typed { expr, kind: typed.kind })
            }
            "has" => {
                let is_null = Test::IsNull(self.typed(of)?.expr);
                Ok(Typed::test(Test::Not(Box::new(is_null))))
            }
            "size" => self.size(of),
            "double" => {
                let typed = self.number(of, "double()")?;
                Ok(into_float(typed))
            }
            "contains" | "startsWith" | "endsWith" | "matches" | "lowerAscii" | "upperAscii" => {
                Err(self.no_function(node, name, "it is written behind its text: text.function(…)"))
            }
            _ => Err(self.no_function(node, name, FUNCTIONS)),
        }
    }

    fn binary(
        &mut self,
        node: &IdedExpr,
        name: &str,
        a: &IdedExpr,
        b: &IdedExpr,
    ) -> Result<Typed, FilterError> {
        let comparison = match name {
            "_&&_" => {
                let sides = (self.test(a, "&&")?, self.test(b, "&&")?);
                return Ok(Typed::test(Test::And(Box::new(sides))));
            }
            "_||_" => {
                let sides = (self.test(a, "||")?, self.test(b, "||")?);
                return Ok(Typed::test(Test::Or(Box::new(sides))));
            }
            "@in" => return self.member(node, a, b),
            "_[_]" => return self.element(node, a, b),
            "_+_" => return self.arithmetic(node, Arithmetic::Add, a, b),
            "_-_" => return self.arithmetic(node, Arithmetic::Subtract, a, b),
            "_*_" => return self.arithmetic(node, Arithmetic::Multiply, a, b),
            "_/_" => return self.arithmetic(node, Arithmetic::Divide, a, b),
            "_%_" => return self.arithmetic(node, Arithmetic::Remainder, a, b),
            "_==_" => Comparison::Equal,
            "_!=_" => Comparison::NotEqual,
            "_<_" => Comparison::Less,
            "_<=_" => Comparison::LessOrEqual,
            "_>_" => Comparison::Greater,
            "_>=_" => Comparison::GreaterOrEqual,
            _ => return Err(self.no_function(node, name, FUNCTIONS)),
        };
        let (a, b) = (self.typed(a)?, self.typed(b)?);
        self.compare(node, comparison, a, b)
    }

    fn compare(
        &self,
        node: &IdedExpr,
        comparison: Comparison,
        a: Typed,
        b: Typed,
    ) -> Result<Typed, FilterError> {
        let equality = matches!(comparison, Comparison::Equal | Comparison::NotEqual);
        let null = a.kind == Type::Null || b.kind == Type::Null;
        let Some(kind) = a.kind.common(b.kind) else {
            let quoted = [&a, &b].into_iter().any(|side| match &side.expr {
                Expr::Constant(Value::Text(text)) => {
                    std::str::from_utf8(text).is_ok_and(|text| text.parse::<f64>().is_ok())
                }
                _ => false,
            });
            let advice = match (a.kind, b.kind) {
                (Type::TextList, Type::Text) | (Type::Text, Type::TextList) => {
                    "; write `text in list`"
                }
                _ if quoted => "; write the number without quotes",
                _ => "",
            };
            let (a, b) = (a.kind.name(), b.kind.name());
            let message = format!("this compares {a} with {b}{advice}");
            return Err(self.type_error(node, message));
        };
        if !equality && (null || kind == Type::TextList) {
            let message = format!("{} has no order; use == or !=", kind_of_order(null, kind));
            return Err(self.type_error(node, message));
        }
        if !null {
            return Ok(Typed::test(Test::Compare(comparison, a.expr, b.expr)));
        }
        let other = if a.kind == Type::Null { b } else { a };
        let is_null = Test::IsNull(other.expr);
        Ok(Typed::test(match comparison {
            Comparison::Equal => is_null,
            _ => Test::Not(Box::new(is_null)),
        }))
    }

    fn number(&mut self, node: &IdedExpr, operator: &str) -> Result<Typed, FilterError> {
        let typed = self.typed(node)?;
        if typed.kind.is_number() {
            return Ok(typed);
        }
        let message = format!("`{operator}` wants a number, and this is {}", typed.kind.name());
        Err(self.type_error(node, message))
    }

    fn arithmetic(
        &mut self,
        node: &IdedExpr,
        operator: Arithmetic,
        a: &IdedExpr,
        b: &IdedExpr,
    ) -> Result<Typed, FilterError> {
        let (a, b) = (self.typed(a)?, self.typed(b)?);
        let kind = match a.kind.common(b.kind) {
            Some(Type::Text) if operator == Arithmetic::Add && a.kind == b.kind => Type::Text,
            Some(Type::Float) if operator == Arithmetic::Remainder => {
                return Err(self.type_error(node, "`%` is for integers"));
            }
            Some(kind) if kind.is_number() && a.kind != Type::Null && b.kind != Type::Null => kind,
            _ => {
                let (a, b) = (a.kind.name(), b.kind.name());
                let message = format!("there is no arithmetic of {a} with {b}");
                return Err(self.type_error(node, message));
            }
        };
        let (a, b) = match (a.expr, b.expr) {
            (Expr::Constant(a), Expr::Constant(b)) => {
                let value = operator.apply(a, b).into_owned();
                if value == Value::Null {
                    return Err(self.no_result(node));
                }
                return Ok(Typed::constant(value, kind));
            }
            sides => sides,
        };
        Ok(Typed { expr: Expr::Arithmetic(operator, Box::new((a, b))), kind })
    }

    fn choice(&mut self, node: &IdedExpr, parts: [&IdedExpr; 3]) -> Result<Typed, FilterError> {
        let condition = self.test(parts[0], "?")?;
        let (yes, no) = (self.typed(parts[1])?, self.typed(parts[2])?);
        let Some(kind) = yes.kind.common(no.kind) else {
            let (yes, no) = (yes.kind.name(), no.kind.name());
            let message = format!("one branch of `?:` is {yes}, the other {no}");
            return Err(self.type_error(node, message));
        };
        let branch = |typed: Typed| if kind == Type::Float { into_float(typed) } else { typed };
        let parts = (condition, branch(yes).expr, branch(no).expr);
        Ok(Typed { expr: Expr::If(Box::new(parts)), kind })
    }

    /// `a in b`.
    fn member(
        &mut self,
        node: &IdedExpr,
        a: &IdedExpr,
        b: &IdedExpr,
    ) -> Result<Typed, FilterError> {
        let needle = self.typed(a)?;
        let Node::List(list) = &b.expr else {
            let list = self.typed(b)?;
            return match (needle.kind, list.kind) {
                (Type::Text, Type::TextList) => {
                    Ok(Typed::test(Test::Element { text: needle.expr, list: list.expr }))
                }
                (_, Type::Text) => Err(self.type_error(
                    node,
                    "`in` looks for an element of a list; a part of a text is text.contains(part)",
                )),
                (a, b) => {
                    let (a, b) = (a.name(), b.name());
                    Err(self.type_error(node, format!("{b} does not hold {a}")))
                }
            };
        };
        let (items, kind) = self.items(list)?;
        if needle.kind == Type::Null || kind.is_some_and(|kind| needle.kind.common(kind).is_none())
        {
            let (a, b) = (needle.kind.name(), kind.map_or("nothing", Type::name));
            return Err(self.type_error(node, format!("this looks for {a} in a list of {b}")));
        }
        Ok(Typed::test(match constants(items) {
            Ok(mut values) => {
                values.sort_by(|a, b| order(a, b).unwrap_or(Ordering::Equal));
                Test::Among(needle.expr, values.into())
            }
            Err(items) => Test::AmongComputed(needle.expr, items.into()),
        }))
    }

    /// The elements of a literal list and their type, `None` if there are none.
    fn items(&mut self, list: &ListExpr) -> Result<(Vec<Expr>, Option<Type>), FilterError> {
        let mut items = Vec::new();
        let mut kind: Option<Type> = None;
        for node in &list.elements {
            let item = self.typed(node)?;
            if item.kind == Type::Null {
                return Err(self.type_error(node, "null is in no list; write `x == null || …`"));
            }
            let common = kind.map_or(Some(item.kind), |kind| kind.common(item.kind));
            let Some(common) = common else {
                let (a, b) = (kind.map_or("", Type::name), item.kind.name());
                return Err(self.type_error(node, format!("this list holds {a} and {b}")));
            };
            kind = Some(common);
            items.push(item.expr);
        }
        Ok((items, kind))
    }

    /// A literal list that stands by itself: texts only, as columns have them.
    fn text_list(&mut self, node: &IdedExpr, list: &ListExpr) -> Result<Typed, FilterError> {
        let (items, _) = self.items(list)?;
        let mut bytes = Vec::new();
        for item in items {
            match item {
                Expr::Constant(Value::Text(text)) if !text.contains(&0) => {
                    bytes.extend_from_slice(&text);
                    bytes.push(0);
                }
                _ => {
                    let message = "here a list may hold plain texts only";
                    return Err(self.type_error(node, message));
                }
            }
        }
        Ok(Typed::constant(Value::TextList(bytes.into()), Type::TextList))
    }

    /// `list[index]`.
    fn element(
        &mut self,
        node: &IdedExpr,
        list: &IdedExpr,
        index: &IdedExpr,
    ) -> Result<Typed, FilterError> {
        let (list, index) = (self.typed(list)?, self.typed(index)?);
        if (list.kind, index.kind) != (Type::TextList, Type::Int) {
            let (list, index) = (list.kind.name(), index.kind.name());
            let message = format!(
                "`[…]` takes a list of texts and an integer, as in argv[0]; this is {list} and {index}"
            );
            return Err(self.type_error(node, message));
        }
        let expr = Expr::Element(Box::new((list.expr, index.expr)));
        Ok(Typed { expr, kind: Type::Text })
    }

    fn size(&mut self, of: &IdedExpr) -> Result<Typed, FilterError> {
        let typed = self.typed(of)?;
        if matches!(typed.kind, Type::Text | Type::TextList) {
            return Ok(Typed { expr: Expr::Size(Box::new(typed.expr)), kind: Type::Int });
        }
        let kind = typed.kind.name();
        Err(self.type_error(of, format!("size() is for texts and lists, and this is {kind}")))
    }

    /// `target.name(args)`.
    fn method(
        &mut self,
        node: &IdedExpr,
        call: &CallExpr,
        target: &IdedExpr,
        args: &[IdedExpr],
    ) -> Result<Typed, FilterError> {
        let name = call.func_name.as_str();
        let test = match (name, args) {
            ("size", []) => return self.size(target),
            ("lowerAscii" | "upperAscii", []) => {
                let text = Box::new(self.text(target, name)?);
                let expr = Expr::AsciiCase { text, upper: name == "upperAscii" };
                return Ok(Typed { expr, kind: Type::Text });
            }
            ("contains", [part]) => {
                let text = self.text(target, name)?;
                let needle = match self.text(part, name)? {
                    Expr::Constant(Value::Text(part)) => {
                        Needle::Constant(Box::new(Finder::new(&part).into_owned()))
                    }
                    part => Needle::Computed(part),
                };
                Test::Contains(text, needle)
            }
            ("startsWith", [part]) => {
                Test::StartsWith(self.text(target, name)?, self.text(part, name)?)
            }
            ("endsWith", [part]) => {
                Test::EndsWith(self.text(target, name)?, self.text(part, name)?)
            }
            ("matches", [pattern]) => self.matches(target, pattern)?,
            ("exists" | "all", [item, condition]) => {
                self.quantified(node, name == "all", target, item, condition)?
            }
            ("exists" | "all", _) => {
                let hint = "write list.exists(x, condition on x), or list.all(x, …)";
                return Err(self.no_function(node, name, hint));
            }
            ("has", _) => return Err(self.no_function(node, name, "write has(column)")),
            _ => return Err(self.no_function(node, name, FUNCTIONS)),
        };
        Ok(Typed::test(test))
    }

    fn matches(&mut self, text: &IdedExpr, pattern: &IdedExpr) -> Result<Test, FilterError> {
        let text = self.text(text, "matches")?;
        let at = self.at(pattern);
        let constant = match self.text(pattern, "matches")? {
            Expr::Constant(Value::Text(pattern)) => String::from_utf8(pattern.into_owned()).ok(),
            _ => None,
        };
        let Some(constant) = constant else {
            return Err(self.type_error(pattern, "a regular expression is a text in quotes"));
        };
        self.regexes += 1;
        if self.regexes > FILTER_REGEXES_MAX {
            return Err(FilterError::RegexCount);
        }
        let regex = RegexBuilder::new(&constant)
            .size_limit(FILTER_REGEX_BYTES_MAX)
            .dfa_size_limit(FILTER_REGEX_BYTES_MAX)
            .build()
            .map_err(|error| match error {
                regex::Error::CompiledTooBig(_) => FilterError::RegexTooLarge { at },
                // The message spans lines, with the pattern above its cause, which is the last.
                error => {
                    let message = error.to_string();
                    let cause = message.lines().last().unwrap_or_default();
                    let message = cause.trim_start_matches("error: ").to_owned();
                    FilterError::Regex { at, message }
                }
            })?;
        Ok(Test::Matches(text, regex))
    }

    /// `over.exists(item, condition)` or `over.all(item, condition)`.
    fn quantified(
        &mut self,
        node: &IdedExpr,
        all: bool,
        over: &IdedExpr,
        item: &IdedExpr,
        condition: &IdedExpr,
    ) -> Result<Test, FilterError> {
        let function = if all { "all()" } else { "exists()" };
        // One loop may be long; loops in loops would let a short text ask for endless work.
        if self.item.is_some() {
            let message = format!("{function} cannot stand inside of another one; join them by &&");
            return Err(self.type_error(node, message));
        }
        let Node::Ident(name) = &item.expr else {
            let message = format!("{function} first names the element: list.exists(x, …)");
            return Err(self.type_error(item, message));
        };
        let (over, kind) = if let Node::List(list) = &over.expr {
            let (items, kind) = self.items(list)?;
            (Items::Each(items.into()), kind.unwrap_or(Type::Null))
        } else {
            let list = self.typed(over)?;
            if list.kind != Type::TextList {
                let message = format!("{function} is for lists, and this is {}", list.kind.name());
                return Err(self.type_error(over, message));
            }
            (Items::List(list.expr), Type::Text)
        };
        self.item = Some((name.clone(), kind));
        let test = self.test(condition, function);
        self.item = None;
        Ok(Test::Quantified { all, over, test: Box::new(test?) })
    }

    fn at(&self, node: &IdedExpr) -> usize {
        match self.source.offset_for(node.id) {
            Some((start, _)) => char_at(self.text, start as usize),
            None => 1,
        }
    }

    fn type_error(&self, node: &IdedExpr, message: impl Into<String>) -> FilterError {
        FilterError::Type { at: self.at(node), message: message.into() }
    }

    fn no_result(&self, node: &IdedExpr) -> FilterError {
        self.type_error(node, "this has no result: it overflows, or divides by zero")
    }

    fn no_function(&self, node: &IdedExpr, name: &str, hint: &'static str) -> FilterError {
        FilterError::Function { at: self.at(node), name: name.to_owned(), hint }
    }
}

fn kind_of_order(null: bool, kind: Type) -> &'static str {
    if null { Type::Null.name() } else { kind.name() }
}

/// The same number as a float.
fn into_float(typed: Typed) -> Typed {
    let expr = match (typed.kind, typed.expr) {
        (Type::Int, Expr::Constant(Value::Int(number))) => {
            Expr::Constant(Value::Float(number as f64))
        }
        (Type::Int, expr) => Expr::Float(Box::new(expr)),
        (_, expr) => expr,
    };
    Typed { expr, kind: Type::Float }
}

/// The values of `items` if all are constant, else `items` again.
fn constants(items: Vec<Expr>) -> Result<Vec<Value<'static>>, Vec<Expr>> {
    if !items.iter().all(|item| matches!(item, Expr::Constant(_))) {
        return Err(items);
    }
    Ok(items
        .into_iter()
        .filter_map(|item| match item {
            Expr::Constant(value) => Some(value),
            _ => None,
        })
        .collect())
}
