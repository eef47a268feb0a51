//! Functions in the place of kube's and of CEL's own where those grow, or take time, by more than their input; and two that
//! credentials are often written with.

use std::sync::Arc;

use base64::{Engine as _, prelude::BASE64_STANDARD};
use kube::core::cel::cel::{
    Context, ExecutionError, ResolveResult, Value,
    extractors::{Arguments, This},
};
use regex::RegexBuilder;

use super::{
    cost::{Budget, MAX_OUTPUT},
    value,
};

/// Size of a compiled regular expression, in bytes, and how much a byte of text costs that it is looked for in.
const MAX_REGEX: usize = 1 << 16;
const REGEX_COST: usize = 64;

type Function = fn(&Value, &[Value], &Budget) -> Result<Value, &'static str>;

const TOO_LARGE: &str = "too large";

/// Puts them in.
pub(super) fn bound(context: &mut Context<'_>, budget: &Arc<Budget>) {
    let methods: [(&'static str, Function); 8] = [
        ("contains", contains),
        ("find", find),
        ("indexOf", index_of),
        ("join", join),
        ("lastIndexOf", last_index_of),
        ("matches", matches),
        ("replace", replace),
        ("split", split),
    ];
    for (name, function) in methods {
        let budget = Arc::clone(budget);
        context.add_function(name, move |This(this): This<Value>, Arguments(arguments): Arguments| -> ResolveResult {
            paid(name, function(&this, &arguments, &budget), &budget)
        });
    }
    let functions: [(&'static str, Function); 4] =
        [("base64.encode", encode), ("json.encode", json), ("strings.quote", quote), ("url.encode", percent)];
    for (name, function) in functions {
        let budget = Arc::clone(budget);
        context.add_function(name, move |argument: Value| -> ResolveResult {
            paid(name, function(&argument, &[], &budget), &budget)
        });
    }
}

/// What a function made counts.
fn paid(name: &str, made: Result<Value, &'static str>, budget: &Budget) -> ResolveResult {
    made.and_then(|made| if budget.charge(value::size(&made)) { Ok(made) } else { Err(TOO_LARGE) })
        .map_err(|why| ExecutionError::function_error(name, why))
}

fn bounded(size: usize) -> Result<(), &'static str> {
    if size <= MAX_OUTPUT { Ok(()) } else { Err(TOO_LARGE) }
}

fn string(value: Option<&Value>) -> Result<&str, &'static str> {
    match value {
        Some(Value::String(text)) => Ok(text),
        _ => Err("not a string"),
    }
}

fn made(text: String) -> Value {
    Value::String(Arc::new(text))
}

fn count(value: Option<&Value>) -> Result<usize, &'static str> {
    match value {
        None => Ok(usize::MAX),
        // As in cel-go, a negative number is no limit.
        Some(Value::Int(number)) => Ok(usize::try_from(*number).unwrap_or(usize::MAX)),
        Some(_) => Err("not an int"),
    }
}

fn join(list: &Value, arguments: &[Value], _: &Budget) -> Result<Value, &'static str> {
    let Value::List(list) = list else { return Err("not a list") };
    let separator = arguments.first().map_or(Ok(""), |value| string(Some(value)))?;
    let parts = list.iter().map(|part| string(Some(part))).collect::<Result<Vec<_>, _>>()?;
    bounded(parts.iter().map(|part| part.len().saturating_add(separator.len())).fold(0, usize::saturating_add))?;
    Ok(made(parts.join(separator)))
}

fn replace(text: &Value, arguments: &[Value], _: &Budget) -> Result<Value, &'static str> {
    let text = string(Some(text))?;
    let (from, to) = (string(arguments.first())?, string(arguments.get(1))?);
    let found = text.matches(from).take(count(arguments.get(2))?).count();
    bounded(text.len().saturating_add(found.saturating_mul(to.len())))?;
    Ok(made(text.replacen(from, to, found)))
}

fn split(text: &Value, arguments: &[Value], _: &Budget) -> Result<Value, &'static str> {
    let text = string(Some(text))?;
    let separator = string(arguments.first())?;
    let limit = count(arguments.get(1))?;
    // Each part is an object of its own.
    bounded(text.matches(separator).take(limit).count().saturating_mul(64))?;
    Ok(Value::List(Arc::new(text.splitn(limit, separator).map(|part| made(part.to_owned())).collect())))
}

/// Positions count characters.
fn position(text: &str, byte: Option<usize>) -> Value {
    Value::Int(byte.map_or(-1, |byte| i64::try_from(text[..byte].chars().count()).unwrap_or(i64::MAX)))
}

fn index_of(text: &Value, arguments: &[Value], _: &Budget) -> Result<Value, &'static str> {
    let (text, wanted) = (string(Some(text))?, string(arguments.first())?);
    let from = arguments.get(1).map_or(Ok(0), |offset| count(Some(offset)))?;
    let from = text.char_indices().nth(from).map_or(text.len(), |(byte, _)| byte);
    Ok(position(text, text[from..].find(wanted).map(|byte| from + byte)))
}

fn last_index_of(text: &Value, arguments: &[Value], _: &Budget) -> Result<Value, &'static str> {
    let (text, wanted) = (string(Some(text))?, string(arguments.first())?);
    match arguments.get(1) {
        None => Ok(position(text, text.rfind(wanted))),
        Some(_) => Err("a limit is not available"),
    }
}

fn contains(container: &Value, arguments: &[Value], _: &Budget) -> Result<Value, &'static str> {
    let wanted = arguments.first().ok_or("nothing to look for")?;
    let found = match container {
        Value::String(text) => text.contains(string(Some(wanted))?),
        Value::List(list) => list.contains(wanted),
        Value::Map(map) => map.map.contains_key(&value::key(string(Some(wanted))?)),
        _ => return Err("not a string, list or map"),
    };
    Ok(Value::Bool(found))
}

fn regex(text: &str, arguments: &[Value], budget: &Budget) -> Result<regex::Regex, &'static str> {
    let pattern = string(arguments.first())?;
    if !budget.charge(text.len().saturating_mul(REGEX_COST)) || pattern.len() > 1024 {
        return Err(TOO_LARGE);
    }
    let builder = RegexBuilder::new(pattern).size_limit(MAX_REGEX).dfa_size_limit(MAX_REGEX).nest_limit(50).build();
    builder.map_err(|_| "not a regular expression, or one that is too large")
}

fn matches(text: &Value, arguments: &[Value], budget: &Budget) -> Result<Value, &'static str> {
    let text = string(Some(text))?;
    Ok(Value::Bool(regex(text, arguments, budget)?.is_match(text)))
}

fn find(text: &Value, arguments: &[Value], budget: &Budget) -> Result<Value, &'static str> {
    let text = string(Some(text))?;
    Ok(made(regex(text, arguments, budget)?.find(text).map_or("", |found| found.as_str()).to_owned()))
}

fn encode(bytes: &Value, _: &[Value], _: &Budget) -> Result<Value, &'static str> {
    let Value::Bytes(bytes) = bytes else { return Err("not bytes") };
    bounded(bytes.len())?;
    Ok(made(BASE64_STANDARD.encode(&**bytes)))
}

fn quote(text: &Value, _: &[Value], _: &Budget) -> Result<Value, &'static str> {
    let text = string(Some(text))?;
    bounded(text.len().saturating_mul(2))?;
    let mut quoted = String::with_capacity(text.len() + 2);
    for character in text.chars() {
        let escape = match character {
            '\\' | '"' => Some(character),
            '\x07' => Some('a'),
            '\x08' => Some('b'),
            '\x0C' => Some('f'),
            '\n' => Some('n'),
            '\r' => Some('r'),
            '\t' => Some('t'),
            '\x0B' => Some('v'),
            _ => None,
        };
        match escape {
            Some(escape) => quoted.extend(['\\', escape]),
            None => quoted.push(character),
        }
    }
    Ok(made(format!("\"{quoted}\"")))
}

fn json(value: &Value, _: &[Value], _: &Budget) -> Result<Value, &'static str> {
    let text = value::json_text(value).ok_or("not JSON")?;
    bounded(text.len())?;
    Ok(made(text))
}

/// All but the unreserved characters (RFC 3986 §2.3), so that the text can stand in any part of a URL.
fn percent(text: &Value, _: &[Value], _: &Budget) -> Result<Value, &'static str> {
    let text = string(Some(text))?;
    bounded(text.len().saturating_mul(3))?;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            for half in [byte >> 4, byte & 15] {
                encoded.push(char::from_digit(half.into(), 16).unwrap_or_default().to_ascii_uppercase());
            }
        }
    }
    Ok(made(encoded))
}
