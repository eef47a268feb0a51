//! What to say of an expression that failed: where in the values it went wrong, and what was there. An error's own text
//! quotes values: a token that is no number, a map that was taken for a string.

use std::collections::BTreeMap;

use kube::core::cel::cel::{
    ExecutionError,
    common::ast::{EntryExpr, Expr, IdedExpr, LiteralValue, operators},
};

use super::{
    Scope,
    cost::{Budget, FUNCTIONS},
    value::{self, Value, Wiped},
};
use crate::fetch::redact::Redactor;

/// How many paths a message describes.
const MAX_TOLD: usize = 4;

/// Members from a variable down, as an expression names them: `response.json.items[0]`.
pub(super) struct Path<'a> {
    variable: &'a str,
    steps: Vec<Step<'a>>,
}

enum Step<'a> {
    Member(&'a str),
    Item(i64),
}

/// What a path does not find.
pub(super) struct Missing {
    /// The path of what was there last.
    pub(super) at: String,
    /// What to say.
    pub(super) words: String,
}

/// All paths of an expression, each as long as it can be told beforehand. What `has()` asks for is not one.
pub(super) fn paths(expression: &IdedExpr) -> Vec<Path<'_>> {
    let mut found = Vec::new();
    collect(expression, &mut found);
    found
}

fn collect<'a>(expression: &'a IdedExpr, found: &mut Vec<Path<'a>>) {
    if let Some(path) = path(expression) {
        found.push(path);
        return;
    }
    match &expression.expr {
        Expr::Select(select) => collect(&select.operand, found),
        Expr::Call(call) => call.target.as_deref().into_iter().chain(&call.args).for_each(|part| collect(part, found)),
        Expr::List(list) => list.elements.iter().for_each(|part| collect(part, found)),
        Expr::Map(map) => {
            for entry in &map.entries {
                if let EntryExpr::MapEntry(entry) = &entry.expr {
                    collect(&entry.key, found);
                    collect(&entry.value, found);
                }
            }
        }
        _ => {}
    }
}

fn path(expression: &IdedExpr) -> Option<Path<'_>> {
    let (operand, step) = match &expression.expr {
        Expr::Ident(variable) => return Some(Path { variable, steps: Vec::new() }),
        Expr::Select(select) if !select.test => (&*select.operand, Step::Member(&select.field)),
        Expr::Call(call) if call.func_name == operators::INDEX && call.args.len() == 2 => {
            let step = match &call.args[1].expr {
                Expr::Literal(LiteralValue::String(member)) => Step::Member(member.inner()),
                Expr::Literal(LiteralValue::Int(item)) => Step::Item(*item.inner()),
                _ => return None,
            };
            (&call.args[0], step)
        }
        _ => return None,
    };
    let mut path = path(operand)?;
    path.steps.push(step);
    Some(path)
}

/// The path, where the expression is nothing else.
pub(super) fn only_path<'a, 'b>(expression: &'a IdedExpr, paths: &'b [Path<'a>]) -> Option<&'b Path<'a>> {
    path(expression).and(paths.first())
}

impl Path<'_> {
    /// The path up to so many steps.
    fn name(&self, steps: usize) -> String {
        let mut name = self.variable.to_owned();
        for step in &self.steps[..steps] {
            match step {
                Step::Member(member) if member.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') => {
                    name = format!("{name}.{member}");
                }
                Step::Member(member) => name = format!("{name}['{member}']"),
                Step::Item(item) => name = format!("{name}[{item}]"),
            }
        }
        name
    }

    /// Takes account of what reading it copies: each step's value once.
    pub(super) fn charge(&self, variables: &BTreeMap<&'static str, Wiped>, budget: &Budget) -> bool {
        let mut value = variables.get(self.variable).map(|value| &value.0);
        let mut steps = self.steps.iter();
        while let Some(here) = value {
            if !budget.charge(value::size(here)) {
                return false;
            }
            value = steps.next().and_then(|step| step.of(here));
        }
        true
    }

    /// What it leads to.
    pub(super) fn walk<'v>(&self, variables: &'v BTreeMap<&'static str, Wiped>) -> Result<&'v Value, Missing> {
        let mut value = match variables.get(self.variable) {
            Some(value) => &value.0,
            None => {
                return Err(Missing { at: self.variable.to_owned(), words: format!("there is no {}", self.variable) });
            }
        };
        for (index, step) in self.steps.iter().enumerate() {
            value = step.of(value).ok_or_else(|| {
                let at = self.name(index);
                let words = match (value, step) {
                    (Value::Map(_), Step::Member(member)) => {
                        format!("{at} has no key {member}: it has {}", keys(value))
                    }
                    (Value::List(list), Step::Item(_)) => {
                        format!("{} is beyond the end: {at} has {} items", self.name(index + 1), list.len())
                    }
                    (_, Step::Member(member)) => format!("{at} is {}, which has no key {member}", describe(value)),
                    (_, Step::Item(_)) => format!("{at} is {}, which has no items", describe(value)),
                };
                Missing { at, words }
            })?;
        }
        Ok(value)
    }

    /// Whether the last step that was to be taken is this key.
    fn misses(&self, variables: &BTreeMap<&'static str, Wiped>, key: &str) -> bool {
        let mut value = variables.get(self.variable).map(|value| &value.0);
        for step in &self.steps {
            match value.and_then(|value| step.of(value)) {
                Some(next) => value = Some(next),
                None => return matches!(step, Step::Member(member) if *member == key),
            }
        }
        false
    }
}

impl Step<'_> {
    fn of<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        match (self, value) {
            (Self::Member(member), Value::Map(map)) => map.map.get(&value::key(member)),
            (Self::Item(item), Value::List(list)) => list.get(usize::try_from(*item).ok()?),
            _ => None,
        }
    }
}

/// A type's name with its article.
pub(in crate::fetch) fn type_name(value: &Value) -> String {
    let name = value.type_of().to_string();
    match name.as_str() {
        "null" => name,
        "int" | "opaque" => format!("an {name}"),
        "float" => "a double".to_owned(),
        _ => format!("a {name}"),
    }
}

fn describe(value: &Value) -> String {
    match value {
        Value::Map(_) => format!("a map with {}", keys(value)),
        Value::List(list) => format!("a list of {}", list.len()),
        other => type_name(other),
    }
}

/// The names in a map, as much as fits a message.
fn keys(value: &Value) -> String {
    let names = match value {
        Value::Map(map) => value::members(map).into_keys().collect::<Vec<_>>().join(", "),
        _ => String::new(),
    };
    Redactor::default().clean(if names.is_empty() { "nothing" } else { &names })
}

/// What went wrong. What a path meets on its way is told, wherever it is that.
pub(super) fn words(error: &ExecutionError, paths: &[Path<'_>], scope: &Scope) -> String {
    let variables = &scope.variables;
    let missing = |path: &Path<'_>| path.walk(variables).err().map(|missing| scope.with_note(missing));
    let there = || {
        let told = paths.iter().take(MAX_TOLD).map(|path| match path.walk(variables) {
            Ok(value) => format!("{} is {}", path.name(path.steps.len()), describe(value)),
            Err(missing) => scope.with_note(missing),
        });
        let mut told: Vec<_> = told.collect();
        told.dedup();
        if told.is_empty() { String::new() } else { format!(": {}", told.join("; ")) }
    };
    match error {
        ExecutionError::NoSuchKey(key) => {
            let path = paths.iter().find(|path| path.misses(variables, key));
            path.and_then(missing).unwrap_or_else(|| format!("a key is missing{}", there()))
        }
        ExecutionError::UndeclaredReference(name) => {
            let path = paths.iter().find(|path| path.variable == name.as_str());
            path.and_then(missing).unwrap_or_else(|| "names what there is not".to_owned())
        }
        ExecutionError::FunctionError { function, message }
            if FUNCTIONS.iter().any(|name| name.ends_with(function.as_str())) =>
        {
            // The words of functions of our own; others quote.
            let why = match message.as_str() {
                "too large" => " (what it would give is too large, or the expression handles too much)",
                _ => "",
            };
            format!("{function} does not work on this value{why}{}", there())
        }
        ExecutionError::Overflow(..) => format!("a number is too large{}", there()),
        ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "divides by zero".to_owned(),
        ExecutionError::IndexOutOfBounds(_) => format!("an index is out of bounds{}", there()),
        _ => format!("an operator or a function does not fit its operands{}", there()),
    }
}
