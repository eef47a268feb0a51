//! Compiled expressions, kept for the next time.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, LazyLock},
    time::Duration,
};

use kube::core::cel::cel::Program;
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};

use super::{Place, cost, isolated};
use crate::{api::Invalid, fetch::redact::Redactor};

/// Longest text of an expression.
pub(in crate::fetch) const MAX_TEXT: usize = 4096;

/// Most opening brackets in an expression: the parser's time grows with the square of their number.
pub(in crate::fetch) const MAX_BRACKETS: usize = 200;

/// How many bytes of text the kept programs have together. A program takes some ten times as much.
const MAX_KEPT: usize = 1 << 20;

/// How much CPU time compiling the expressions of one list may take: many times what the largest list needs that is
/// allowed, so that only an expression that the parser takes much too long for is rejected. It is not wall-clock time,
/// since that depends on how busy the machine is.
const MAX_EFFORT: Duration = Duration::from_secs(5);

/// An expression that may be run.
pub(super) struct Compiled {
    pub(super) program: Program,
    /// How many parts it has.
    pub(super) nodes: usize,
}

/// Compiled programs, for each namespace separately: the namespace that has the most of them makes room for new ones, so
/// no namespace can displace those of another one that has less.
#[derive(Default)]
struct Kept {
    namespaces: HashMap<String, Programs>,
    /// Bytes of text.
    size: usize,
    uses: u64,
}

#[derive(Default)]
struct Programs {
    by_text: HashMap<(Place, String), (Arc<Compiled>, u64)>,
    size: usize,
}

static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

fn kept() -> parking_lot::MutexGuard<'static, Kept> {
    KEPT.lock()
}

/// Whether all of these expressions are compiled already.
pub(in crate::fetch) fn are_compiled(namespace: &str, expressions: &[(Place, String)]) -> bool {
    let mut kept = kept();
    expressions.iter().all(|expression| kept.find(namespace, expression).is_some())
}

/// The programs of these expressions, each with its field; compiled at their first use.
///
/// # Errors
/// The first that does not compile, at its field.
pub(super) fn compiled(
    namespace: &str,
    place: Place,
    expressions: &[(String, &str)],
) -> Result<Vec<Arc<Compiled>>, Invalid> {
    let find = |text: &str| kept().find(namespace, &(place, text.to_owned()));
    if let Some(found) = expressions.iter().map(|(_, text)| find(text)).collect() {
        return Ok(found);
    }
    let compile_all = || {
        let begin = cpu_time();
        let compile_one = |(field, text): &(String, &str)| {
            // Before anything is kept or copied.
            if text.len() > MAX_TEXT {
                return Err(Invalid::new(field, format!("is longer than {MAX_TEXT} bytes")));
            }
            if let Some(known) = find(text) {
                return Ok(known);
            }
            if cpu_time().saturating_sub(begin) > MAX_EFFORT {
                let limit = MAX_EFFORT.as_secs();
                let message = format!("the expressions before this one took more than {limit} s to compile");
                return Err(Invalid::new(field, format!("{message}. Use simpler or fewer expressions")));
            }
            // A panic of the parser must be no more than this expression's failure.
            let made = catch_unwind(AssertUnwindSafe(|| compile(place, text)));
            let made = made.unwrap_or_else(|_| Err("cannot be compiled".to_owned()));
            let made = Arc::new(made.map_err(|message| Invalid::new(field, message))?);
            kept().keep(namespace, (place, (*text).to_owned()), &made);
            Ok(made)
        };
        expressions.iter().map(compile_one).collect()
    };
    let field = || expressions.first().map(|(field, _)| field.clone()).unwrap_or_default();
    isolated(compile_all).unwrap_or_else(|| Err(Invalid::new(field(), "cannot be compiled")))
}

/// CPU time of this thread.
fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

impl Kept {
    fn find(&mut self, namespace: &str, key: &(Place, String)) -> Option<Arc<Compiled>> {
        self.uses += 1;
        let (compiled, used) = self.namespaces.get_mut(namespace)?.by_text.get_mut(key)?;
        *used = self.uses;
        Some(compiled.clone())
    }

    fn keep(&mut self, namespace: &str, key: (Place, String), compiled: &Arc<Compiled>) {
        let length = key.1.len();
        self.remove(namespace, &key);
        while self.size + length > MAX_KEPT {
            let largest = self.namespaces.iter().max_by_key(|(_, programs)| programs.size);
            let Some((largest, programs)) = largest else { break };
            let oldest = programs.by_text.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            let (largest, Some(oldest)) = (largest.clone(), oldest) else { break };
            self.remove(&largest, &oldest);
        }
        let programs = self.namespaces.entry(namespace.to_owned()).or_default();
        programs.by_text.insert(key, (compiled.clone(), self.uses));
        programs.size += length;
        self.size += length;
    }

    fn remove(&mut self, namespace: &str, key: &(Place, String)) {
        let Some(programs) = self.namespaces.get_mut(namespace) else { return };
        if programs.by_text.remove(key).is_some() {
            programs.size -= key.1.len();
            self.size -= key.1.len();
        }
        if programs.by_text.is_empty() {
            self.namespaces.remove(namespace);
        }
    }
}

/// To be run [`isolated`].
fn compile(place: Place, text: &str) -> Result<Compiled, String> {
    if text.matches(['(', '[', '{']).count() > MAX_BRACKETS {
        return Err(format!("has more than {MAX_BRACKETS} opening brackets"));
    }
    let program = Program::compile(text).map_err(|errors| {
        let first = errors.errors.first();
        let at = first.map(|error| format!(" (line {}, column {})", error.pos.0, error.pos.1)).unwrap_or_default();
        let words = first.map(|error| error.msg.as_str()).unwrap_or_default();
        format!("is not CEL{at}: {}", Redactor::default().clean(words))
    })?;
    let nodes = cost::look_through(place, program.expression())?;
    Ok(Compiled { program, nodes })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    fn one(namespace: &str, place: Place, text: &str) -> Result<Arc<Compiled>, String> {
        let compiled = compiled(namespace, place, &[("f".to_owned(), text)]);
        compiled.map(|mut all| all.remove(0)).map_err(|invalid| invalid.to_string())
    }

    #[test]
    fn a_text_is_compiled_once_for_each_place_and_namespace() {
        let compile = |place, text| one("a", place, text).unwrap();
        let first = compile(Place::Request, "'once' + 'only'");
        assert!(Arc::ptr_eq(&first, &compile(Place::Request, "'once' + 'only'")));
        assert!(!Arc::ptr_eq(&first, &compile(Place::Data, "'once' + 'only'")));
        assert!(!Arc::ptr_eq(&first, &one("b", Place::Request, "'once' + 'only'").unwrap()));
        assert!(one("a", Place::Request, "token").is_err());
        assert!(one("a", Place::Data, "token").is_ok(), "what one place refuses, another may have");
        let compiled = |namespace, place, text: &str| are_compiled(namespace, &[(place, text.to_owned())]);
        let known = |text| compiled("a", Place::Request, text);
        assert!(known("'once' + 'only'") && !known("'never'") && !compiled("c", Place::Data, "token"));
    }

    #[test]
    fn the_first_of_several_that_does_not_compile_is_told() {
        let fields = ["a", "b", "c"].map(str::to_owned);
        let long = "x".repeat(MAX_TEXT + 1);
        let expressions: Vec<_> = fields.into_iter().zip(["token", long.as_str(), "token +"]).collect();
        let told = compiled("a", Place::Data, &expressions).map(drop).unwrap_err();
        assert_eq!(told, Invalid::new("b", "is longer than 4096 bytes"));
    }

    #[test]
    fn the_dearest_list_that_is_allowed_stays_below_the_limit_of_time() {
        let texts: Vec<_> = (0..16).map(|n| format!("[{n}{}]", ",1".repeat(985))).collect();
        let expressions: Vec<_> = texts.iter().map(|text| ("f".to_owned(), text.as_str())).collect();
        assert!(compiled("dear", Place::Data, &expressions).is_ok());
    }

    #[test]
    fn only_so_many_are_kept_and_the_one_that_rested_longest_goes() {
        let mut kept = Kept::default();
        let program = Arc::new(compile(Place::Data, "token").unwrap());
        let key = |n: usize| (Place::Data, format!("{n:0>4000}"));
        for n in 0..400 {
            kept.keep("a", key(n), &program);
            assert!(kept.find("a", &key(0)).is_some(), "what is used stays");
            assert!(kept.size <= MAX_KEPT);
        }
        let texts = kept.namespaces["a"].by_text.keys();
        assert_eq!(kept.size, texts.map(|(_, text)| text.len()).sum::<usize>());
        assert!(kept.find("a", &key(1)).is_none() && kept.find("a", &key(399)).is_some());
    }

    #[test]
    fn a_namespace_with_much_does_not_displace_the_programs_of_others() {
        let mut kept = Kept::default();
        let program = Arc::new(compile(Place::Data, "token").unwrap());
        let key = |n: usize| (Place::Data, format!("{n:0>4000}"));
        (0..10).for_each(|n| kept.keep("victim", key(n), &program));
        (0..1000).for_each(|n| kept.keep("attacker", key(n), &program));
        assert!((0..10).all(|n| kept.find("victim", &key(n)).is_some()), "they rested for longest");
        assert_eq!(kept.size, kept.namespaces.values().map(|programs| programs.size).sum::<usize>());
        assert!(kept.size <= MAX_KEPT && kept.size > MAX_KEPT - 4001);
    }
}
