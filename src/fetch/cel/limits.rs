//! What expressions may do: a stranger's expression runs in the controller, so nothing in it may grow without bound or
//! repeat its work by its input.

use std::sync::Arc;

use kube::core::cel::cel::{
    Context, ExecutionError, ResolveResult, Value,
    common::ast::{EntryExpr, Expr, IdedExpr},
    extractors::{Arguments, This},
};

/// What an expression gives, and each step on the way.
pub(super) const MAX_OUTPUT: usize = 1 << 20;

/// What an expression may name.
const VARIABLES: &[&str] = &["token", "values", "expiresAt", "metadata"];

/// What an expression may call.
pub(super) const FUNCTIONS: &[&str] = &[
    "base64.decode",
    "base64.encode",
    "bytes",
    "charAt",
    "contains",
    "double",
    "duration",
    "endsWith",
    "find",
    "getDate",
    "getDayOfMonth",
    "getDayOfWeek",
    "getDayOfYear",
    "getFullYear",
    "getHours",
    "getMilliseconds",
    "getMinutes",
    "getMonth",
    "getSeconds",
    "indexOf",
    "int",
    "join",
    "lastIndexOf",
    "lowerAscii",
    "matches",
    "replace",
    "size",
    "split",
    "startsWith",
    "string",
    "strings.quote",
    "substring",
    "timestamp",
    "trim",
    "uint",
    "upperAscii",
];

/// What in an expression is not available here.
pub(super) fn look_through(expression: &IdedExpr) -> Result<(), String> {
    match &expression.expr {
        Expr::Literal(_) => Ok(()),
        Expr::Ident(name) if VARIABLES.contains(&name.as_str()) => Ok(()),
        Expr::Ident(name) => Err(format!("names {name}; there are {}", VARIABLES.join(", "))),
        Expr::Select(select) => look_through(&select.operand),
        Expr::List(list) => list.elements.iter().try_for_each(look_through),
        Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
            EntryExpr::MapEntry(entry) => look_through(&entry.key).and_then(|()| look_through(&entry.value)),
            EntryExpr::StructField(_) => Err("builds a message, which is not available".to_owned()),
        }),
        Expr::Call(call) => {
            let qualified = match call.target.as_deref().map(|target| &target.expr) {
                Some(Expr::Ident(prefix)) => Some(format!("{prefix}.{}", call.func_name)),
                _ => None,
            }
            .filter(|name| FUNCTIONS.contains(&name.as_str()));
            if qualified.is_none() {
                if is_identifier(&call.func_name) && !FUNCTIONS.contains(&call.func_name.as_str()) {
                    return Err(format!("calls {}; there are {}", call.func_name, FUNCTIONS.join(", ")));
                }
                call.target.as_deref().map_or(Ok(()), look_through)?;
            }
            call.args.iter().try_for_each(look_through)
        }
        Expr::Comprehension(_) => {
            Err("uses a macro that loops (all, exists, filter, map), which is not available".into())
        }
        // Evaluating these would panic.
        Expr::Struct(_) | Expr::Unspecified => Err("builds a message, which is not available".to_owned()),
    }
}

/// Operators have names that no text can spell, like `_+_`.
fn is_identifier(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// Puts bounded functions in the place of kube's `join`, `replace` and `split`: a few of those in a row would fill any
/// memory.
pub(super) fn bound(context: &mut Context<'_>) {
    context.add_function("join", join);
    context.add_function("replace", replace);
    context.add_function("split", split);
}

fn bounded(function: &str, size: usize) -> Result<(), ExecutionError> {
    if size <= MAX_OUTPUT { Ok(()) } else { Err(ExecutionError::function_error(function, "too large")) }
}

fn string<'a>(function: &str, value: Option<&'a Value>) -> Result<&'a str, ExecutionError> {
    match value {
        Some(Value::String(text)) => Ok(text),
        _ => Err(ExecutionError::function_error(function, "not a string")),
    }
}

fn count(function: &str, value: Option<&Value>) -> Result<usize, ExecutionError> {
    match value {
        None => Ok(usize::MAX),
        // As in cel-go, a negative number is no limit.
        Some(Value::Int(number)) => Ok(usize::try_from(*number).unwrap_or(usize::MAX)),
        Some(_) => Err(ExecutionError::function_error(function, "not an int")),
    }
}

fn join(This(list): This<Arc<Vec<Value>>>, Arguments(arguments): Arguments) -> ResolveResult {
    let separator = arguments.first().map_or(Ok(""), |value| string("join", Some(value)))?;
    let parts = list.iter().map(|part| string("join", Some(part))).collect::<Result<Vec<_>, _>>()?;
    let size = parts.iter().map(|part| part.len().saturating_add(separator.len())).fold(0, usize::saturating_add);
    bounded("join", size)?;
    Ok(Value::String(Arc::new(parts.join(separator))))
}

fn replace(This(text): This<Arc<String>>, Arguments(arguments): Arguments) -> ResolveResult {
    let from = string("replace", arguments.first())?;
    let to = string("replace", arguments.get(1))?;
    let limit = count("replace", arguments.get(2))?;
    let found = text.matches(from).take(limit).count();
    bounded("replace", text.len().saturating_add(found.saturating_mul(to.len())))?;
    Ok(Value::String(Arc::new(text.replacen(from, to, found))))
}

fn split(This(text): This<Arc<String>>, Arguments(arguments): Arguments) -> ResolveResult {
    let separator = string("split", arguments.first())?;
    let limit = count("split", arguments.get(1))?;
    // Each part is an object of its own.
    bounded("split", text.matches(separator).take(limit).count().saturating_mul(64))?;
    let parts = text.splitn(limit, separator).map(|part| Value::String(Arc::new(part.to_owned()))).collect();
    Ok(Value::List(Arc::new(parts)))
}
