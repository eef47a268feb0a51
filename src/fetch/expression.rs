//! CEL over a fetched value: what `target.data` says the Secret holds.
//!
//! An author of a TokenCache could otherwise stop the controller with one expression, so there is a limit on everything
//! that could grow: the text, the functions (a list; none repeats its work by its input), no macros that loop, and how
//! often values are read. And no message quotes what an expression met: that is the credential itself.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use kube::core::cel::{
    KubeCelExt as _,
    cel::{
        Context, ExecutionError, Program, ResolveResult, Value,
        common::ast::{EntryExpr, Expr, IdedExpr},
        context::VariableResolver,
        extractors::{Arguments, This},
        objects::{Key, Map},
    },
};
use secrecy::ExposeSecret as _;
use zeroize::Zeroize as _;

use super::{Failure, Fetched, SecretBytes, redact::Redactor};
use crate::{
    api::{ExpiresAt, Invalid, Target},
    reason::Reason,
};

/// Longest text of an expression.
const MAX_TEXT: usize = 4096;

/// What one expression gives, and all of a Secret's data (the API server's limit).
const MAX_OUTPUT: usize = 1 << 20;

/// How many bytes of values one expression reads, all uses together.
const MAX_READ: usize = 16 << 20;

/// What an expression may name.
const VARIABLES: &[&str] = &["token", "values", "expiresAt", "metadata"];

/// What an expression may call.
const FUNCTIONS: &[&str] = &[
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

/// Compiles an expression of the spec.
///
/// # Errors
/// At the field, what the expression may not have.
pub(super) fn compile(field: &str, text: &str) -> Result<Program, Invalid> {
    let invalid = |message: String| Invalid::new(field, message);
    if text.len() > MAX_TEXT {
        return Err(invalid(format!("is longer than {MAX_TEXT} bytes")));
    }
    let program = Program::compile(text).map_err(|errors| {
        let first = errors.errors.first();
        let at = first.map(|error| format!(" (line {}, column {})", error.pos.0, error.pos.1)).unwrap_or_default();
        let words = first.map(|error| error.msg.as_str()).unwrap_or_default();
        invalid(format!("is not CEL{at}: {}", Redactor::default().clean(words)))
    })?;
    look_through(program.expression()).map_err(invalid)?;
    Ok(program)
}

/// What in an expression is not available here.
fn look_through(expression: &IdedExpr) -> Result<(), String> {
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

/// `target.data` over a fetched value.
///
/// # Errors
/// `InvalidSpec` for an expression that never works, `InvalidResponse` for one that does not work on this value,
/// `ResponseTooLarge` for more than a Secret can hold. No message holds a value.
pub fn render(
    target: &Target,
    fetched: &Fetched,
    name: &str,
    namespace: &str,
) -> Result<BTreeMap<String, SecretBytes>, Failure> {
    let mut left = MAX_OUTPUT;
    let mut data = BTreeMap::new();
    for (key, text) in target.data() {
        let field = format!("spec.target.data[{key}]");
        let value = match &fetched.token {
            // As by default. What passes through CEL is not wiped.
            Some(token) if text == "token" => SecretBytes::from(token.expose_secret().as_bytes().to_vec()),
            _ => evaluate(&field, &text, fetched, name, namespace)?,
        };
        left = left.checked_sub(value.expose_secret().len()).ok_or_else(|| {
            Failure::new(
                Reason::ResponseTooLarge,
                format!("spec.target.data gives more than {MAX_OUTPUT} bytes, which a Secret cannot hold"),
            )
        })?;
        data.insert(key, value);
    }
    Ok(data)
}

fn evaluate(field: &str, text: &str, fetched: &Fetched, name: &str, namespace: &str) -> Result<SecretBytes, Failure> {
    let program = compile(field, text).map_err(|invalid| Failure::new(Reason::InvalidSpec, invalid.to_string()))?;
    let failed = |what: String| Failure::new(Reason::InvalidResponse, format!("{field}: {what}"));
    let scope = Scope::new(fetched, name, namespace);
    let mut context = Context::default().with_all();
    context.add_function("join", join);
    context.add_function("replace", replace);
    context.add_function("split", split);
    context.set_variable_resolver(&scope);
    let value = program.execute(&context).map_err(|error| failed(scope.words(&error, text, fetched)))?;
    drop(context);
    match value {
        Value::String(mut text) => Ok(mem::take(Arc::make_mut(&mut text)).into_bytes().into()),
        Value::Bytes(mut bytes) => Ok(mem::take(Arc::make_mut(&mut bytes)).into()),
        other => Err(failed(format!("gives {}, not a string or bytes", article(&other.type_of().to_string())))),
    }
}

fn article(type_name: &str) -> String {
    match type_name {
        "null" => "null".to_owned(),
        "int" | "opaque" => format!("an {type_name}"),
        _ => format!("a {type_name}"),
    }
}

/// The variables, and how much of them may still be read.
struct Scope {
    variables: BTreeMap<&'static str, (Value, usize)>,
    left: AtomicUsize,
}

impl VariableResolver for Scope {
    fn resolve(&self, variable: &str) -> Option<Value> {
        let (value, size) = self.variables.get(variable)?;
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(*size)).ok()?;
        Some(value.clone())
    }
}

impl Scope {
    fn new(fetched: &Fetched, name: &str, namespace: &str) -> Self {
        let text = |text: &str| Value::String(Arc::new(text.to_owned()));
        let map = |entries: &mut dyn Iterator<Item = (&str, &str)>| {
            let map: HashMap<_, _> =
                entries.map(|(key, value)| (Key::String(Arc::new(key.to_owned())), text(value))).collect();
            Value::Map(Map { map: Arc::new(map) })
        };
        let values = || fetched.values.iter().map(|(name, value)| (name.as_str(), value.expose_secret()));
        let expires_at = match fetched.expires_at {
            ExpiresAt::At(moment) => Value::Timestamp(crate::time::floor(moment).fixed_offset()),
            ExpiresAt::Never => Value::Null,
        };
        let mut variables = BTreeMap::from([
            ("values", (map(&mut values()), values().map(|(name, value)| 64 + name.len() + value.len()).sum())),
            ("expiresAt", (expires_at, 0)),
            ("metadata", (map(&mut [("name", name), ("namespace", namespace)].into_iter()), 0)),
        ]);
        if let Some(token) = fetched.token.as_ref().map(|token| token.expose_secret()) {
            variables.insert("token", (text(token), token.len()));
        }
        Self { variables, left: AtomicUsize::new(MAX_READ) }
    }

    /// An error's own text quotes values: a token that is no number, a map that was taken for a string.
    fn words(&self, error: &ExecutionError, text: &str, fetched: &Fetched) -> String {
        let names = fetched.values.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let names = Redactor::default().clean(if names.is_empty() { "nothing" } else { &names });
        match error {
            ExecutionError::UndeclaredReference(name) if self.variables.contains_key(name.as_str()) => {
                format!("reads more than {MAX_READ} bytes of values")
            }
            ExecutionError::UndeclaredReference(name) if name.as_str() == "token" => {
                format!("this source gives no token; values has {names}")
            }
            // The key may itself be a value, as in values[token].
            ExecutionError::NoSuchKey(key) if text.contains(key.as_str()) => {
                format!("there is no {key}; values has {names}")
            }
            ExecutionError::NoSuchKey(_) => format!("a key is missing; values has {names}"),
            ExecutionError::FunctionError { function, .. }
                if FUNCTIONS.iter().any(|name| name.ends_with(function.as_str())) =>
            {
                format!("{function} does not work on this value")
            }
            ExecutionError::Overflow(..) => "a number is too large".to_owned(),
            ExecutionError::DivisionByZero(_) | ExecutionError::RemainderByZero(_) => "divides by zero".to_owned(),
            ExecutionError::IndexOutOfBounds(_) => "an index is out of bounds".to_owned(),
            _ => format!(
                "an operator or a function does not fit its operands: token is a string, values a map of strings \
                 ({names}), expiresAt a timestamp or null, metadata a map of strings"
            ),
        }
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        for (value, _) in mem::take(&mut self.variables).into_values() {
            // CEL's own copies are out of reach; these need not stay.
            match value {
                Value::String(mut text) => _ = Arc::get_mut(&mut text).map(|text| text.zeroize()),
                Value::Map(mut map) => {
                    for value in Arc::get_mut(&mut map.map).into_iter().flat_map(HashMap::values_mut) {
                        if let Value::String(text) = value {
                            _ = Arc::get_mut(text).map(|text| text.zeroize());
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

// kube's own `join`, `replace` and `split` have no limit: a few of them in a row would fill any memory.

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
