//! What expressions may do: a stranger's expression runs in the controller, so nothing in it may grow without bound or
//! repeat its work by its input.

use std::sync::atomic::{AtomicUsize, Ordering};

use kube::core::cel::cel::common::ast::{EntryExpr, Expr, IdedExpr, operators};

use super::Place;

/// What an expression gives, and each step on the way.
pub(in crate::fetch) const MAX_OUTPUT: usize = 1 << 20;

/// How many parts an expression may have, and how deep they may be nested.
const MAX_NODES: usize = 1000;
const MAX_DEPTH: usize = 250;

/// How many bytes the expressions that are evaluated together may handle: each that is read or made counts once for
/// every part of its expression, since each part could copy it. A fraction of a second.
const MAX_WORK: usize = 1 << 30;

/// What is said when there is no more of it left.
pub(super) const TOO_MUCH: &str = "handles too much: it reads large values too often, or has too many parts for them";

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
    "json.encode",
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
    "url.encode",
];

/// How many parts an expression has.
///
/// # Errors
/// What in it is not available here.
pub(super) fn look_through(place: Place, expression: &IdedExpr) -> Result<usize, String> {
    let mut walk = Walk { place, nodes: 0 };
    walk.look(expression, 0).map(|()| walk.nodes)
}

struct Walk {
    place: Place,
    nodes: usize,
}

impl Walk {
    fn look(&mut self, expression: &IdedExpr, depth: usize) -> Result<(), String> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            return Err(format!("has more than {MAX_NODES} parts"));
        }
        if depth > MAX_DEPTH {
            return Err(format!("is nested more than {MAX_DEPTH} deep"));
        }
        let mut look = |inner: &IdedExpr| self.look(inner, depth + 1);
        match &expression.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) => {
                let known = self.place.variables();
                let there_is = || Err(format!("names {name}; there are {}", known.join(", ")));
                if known.contains(&name.as_str()) { Ok(()) } else { there_is() }
            }
            Expr::Select(select) => look(&select.operand),
            Expr::List(list) => list.elements.iter().try_for_each(look),
            Expr::Map(map) => map.entries.iter().try_for_each(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => look(&entry.key).and_then(|()| look(&entry.value)),
                EntryExpr::StructField(_) => Err("builds a message, which is not available".to_owned()),
            }),
            Expr::Call(call) => {
                let qualified = match call.target.as_deref().map(|target| &target.expr) {
                    Some(Expr::Ident(prefix)) => Some(format!("{prefix}.{}", call.func_name)),
                    _ => None,
                }
                .filter(|name| FUNCTIONS.contains(&name.as_str()));
                if call.func_name == operators::NEGATE {
                    // CEL's implementation does not see the overflow of the smallest integer, as it does in a subtraction.
                    return Err("writes - before what is not a number; write 0 - … instead".to_owned());
                }
                if qualified.is_none() {
                    if is_identifier(&call.func_name) && !FUNCTIONS.contains(&call.func_name.as_str()) {
                        return Err(format!("calls {}; there are {}", call.func_name, FUNCTIONS.join(", ")));
                    }
                    call.target.as_deref().map_or(Ok(()), &mut look)?;
                }
                call.args.iter().try_for_each(look)
            }
            Expr::Comprehension(_) => {
                Err("uses a macro that loops (all, exists, filter, map), which is not available".into())
            }
            // Evaluating these would panic.
            Expr::Struct(_) | Expr::Unspecified => Err("builds a message, which is not available".to_owned()),
        }
    }
}

/// Operators have names that no text can spell, like `_+_`.
fn is_identifier(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// What the expressions that are evaluated together may still handle.
pub(super) struct Budget {
    left: AtomicUsize,
    /// Parts of the expression that is being evaluated.
    nodes: AtomicUsize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { left: AtomicUsize::new(MAX_WORK), nodes: AtomicUsize::new(1) }
    }
}

impl Budget {
    /// Goes on with an expression of so many parts.
    pub(super) fn begin(&self, nodes: usize) {
        self.nodes.store(nodes.max(1), Ordering::Relaxed);
    }

    /// Takes account of so many bytes; false when there is no more left.
    pub(super) fn charge(&self, bytes: usize) -> bool {
        let cost = bytes.saturating_mul(self.nodes.load(Ordering::Relaxed));
        self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(cost)).is_ok()
    }
}
