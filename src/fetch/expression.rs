//! CEL over a fetched value: what `target.data` says the Secret holds.
//!
//! No message quotes what an expression met: that is the credential itself.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use kube::core::cel::{
    KubeCelExt as _,
    cel::{
        Context, ExecutionError, Program, Value,
        context::VariableResolver,
        objects::{Key, Map},
    },
};
use secrecy::ExposeSecret as _;
use zeroize::Zeroize as _;

use super::{
    Failure, Fetched, SecretBytes,
    cel_limits::{self, FUNCTIONS, MAX_OUTPUT, look_through},
    redact::Redactor,
};
use crate::{
    api::{ExpiresAt, Invalid, Target},
    reason::Reason,
};

/// Longest text of an expression.
const MAX_TEXT: usize = 4096;

/// Most opening brackets in an expression: the parser's time grows with the square of their number.
const MAX_BRACKETS: usize = 200;

/// Enough for the deepest nesting that the length of the text allows. Untouched pages of it cost nothing.
const STACK: usize = 256 << 20;

/// How many bytes of values one expression reads, all uses together.
const MAX_READ: usize = 16 << 20;

/// Runs what compiles and evaluates expressions. Both recurse as deep as an expression is nested, and a worker's stack
/// would overflow, which ends the process; and a panic of theirs must be no more than this expression's failure.
fn isolated<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("expression".to_owned()).stack_size(STACK);
        thread.spawn_scoped(scope, work).ok()?.join().ok()
    })
}

/// Whether `target.data` has only expressions that compile and use only what there is.
///
/// # Errors
/// The first that does not, at its field.
pub(super) fn check(data: &BTreeMap<String, String>) -> Result<(), Invalid> {
    isolated(|| data.iter().try_for_each(|(key, text)| compile(&field(key), text).map(drop)))
        .unwrap_or_else(|| Err(Invalid::new("spec.target.data", "an expression cannot be compiled")))
}

fn field(key: &str) -> String {
    format!("spec.target.data[{key}]")
}

/// To be run [`isolated`].
fn compile(field: &str, text: &str) -> Result<Program, Invalid> {
    let invalid = |message: String| Invalid::new(field, message);
    if text.len() > MAX_TEXT {
        return Err(invalid(format!("is longer than {MAX_TEXT} bytes")));
    }
    if text.matches(['(', '[', '{']).count() > MAX_BRACKETS {
        return Err(invalid(format!("has more than {MAX_BRACKETS} opening brackets")));
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
    let mut data = BTreeMap::new();
    let mut expressions = target.data();
    if let Some(token) = &fetched.token {
        // As by default. What passes through CEL is not wiped.
        expressions.retain(|key, text| {
            let other = text != "token";
            if !other {
                data.insert(key.clone(), SecretBytes::from(token.expose_secret().as_bytes().to_vec()));
            }
            other
        });
    }
    if !expressions.is_empty() {
        let evaluated = isolated(|| {
            let each = expressions.into_iter();
            each.map(|(key, text)| evaluate(&key, &text, fetched, name, namespace).map(|value| (key, value)))
                .collect::<Result<Vec<_>, _>>()
        });
        let broken = || Failure::new(Reason::InvalidResponse, "spec.target.data: an expression cannot be evaluated");
        data.extend(evaluated.ok_or_else(broken)??);
    }
    if data.values().map(|value| value.expose_secret().len()).sum::<usize>() > MAX_OUTPUT {
        let message = format!("spec.target.data gives more than {MAX_OUTPUT} bytes, which a Secret cannot hold");
        return Err(Failure::new(Reason::ResponseTooLarge, message));
    }
    Ok(data)
}

fn evaluate(key: &str, text: &str, fetched: &Fetched, name: &str, namespace: &str) -> Result<SecretBytes, Failure> {
    let field = field(key);
    let program = compile(&field, text).map_err(|invalid| Failure::new(Reason::InvalidSpec, invalid.to_string()))?;
    let failed = |what: String| Failure::new(Reason::InvalidResponse, format!("{field}: {what}"));
    let scope = Scope::new(fetched, name, namespace);
    let mut context = Context::default().with_all();
    cel_limits::bound(&mut context);
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

#[cfg(test)]
#[path = "expression_tests.rs"]
mod tests;
