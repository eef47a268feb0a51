//! Compiled expressions, kept for the next time.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

use kube::core::cel::cel::Program;

use super::{Place, isolated, limits};
use crate::{api::Invalid, fetch::redact::Redactor};

/// Longest text of an expression.
pub(in crate::fetch) const MAX_TEXT: usize = 4096;

/// Most opening brackets in an expression: the parser's time grows with the square of their number.
pub(in crate::fetch) const MAX_BRACKETS: usize = 200;

/// How many bytes of text the kept programs have together. A program takes some ten times as much.
const MAX_KEPT: usize = 1 << 20;

/// An expression that may be run.
pub(super) struct Compiled {
    pub(super) program: Program,
    /// How many parts it has.
    pub(super) nodes: usize,
}

#[derive(Default)]
struct Kept {
    programs: HashMap<(Place, String), (Arc<Compiled>, u64)>,
    /// Bytes of text.
    size: usize,
    uses: u64,
}

/// Those of all specs: a text means the same wherever it stands in the same place.
static KEPT: LazyLock<Mutex<Kept>> = LazyLock::new(Mutex::default);

/// The program of a text; compiled at its first use.
pub(super) fn compiled(place: Place, field: &str, text: &str) -> Result<Arc<Compiled>, Invalid> {
    // Before anything is kept or copied.
    let invalid = |message: String| Invalid::new(field, message);
    if text.len() > MAX_TEXT {
        return Err(invalid(format!("is longer than {MAX_TEXT} bytes")));
    }
    let key = (place, text.to_owned());
    let lock = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(compiled) = lock().find(&key) {
        return Ok(compiled);
    }
    let compiled = isolated(|| compile(place, text)).unwrap_or_else(|| Err("cannot be compiled".to_owned()));
    let compiled = Arc::new(compiled.map_err(invalid)?);
    lock().keep(key, &compiled);
    Ok(compiled)
}

impl Kept {
    fn find(&mut self, key: &(Place, String)) -> Option<Arc<Compiled>> {
        self.uses += 1;
        let (compiled, used) = self.programs.get_mut(key)?;
        *used = self.uses;
        Some(compiled.clone())
    }

    fn keep(&mut self, key: (Place, String), compiled: &Arc<Compiled>) {
        while self.size + key.1.len() > MAX_KEPT {
            let oldest = self.programs.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
            let Some(oldest) = oldest else { break };
            self.size -= oldest.1.len();
            self.programs.remove(&oldest);
        }
        let length = key.1.len();
        if self.programs.insert(key, (compiled.clone(), self.uses)).is_none() {
            self.size += length;
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
    let nodes = limits::look_through(place, program.expression())?;
    Ok(Compiled { program, nodes })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn a_text_is_compiled_once_for_each_place() {
        let compile = |place, text| compiled(place, "f", text).map_err(|invalid| invalid.to_string()).unwrap();
        let first = compile(Place::Request, "'once' + 'only'");
        assert!(Arc::ptr_eq(&first, &compile(Place::Request, "'once' + 'only'")));
        assert!(!Arc::ptr_eq(&first, &compile(Place::Data, "'once' + 'only'")));
        assert!(compiled(Place::Request, "f", "token").is_err());
        assert!(compiled(Place::Data, "f", "token").is_ok(), "what one place refuses, another may have");
    }

    #[test]
    fn only_so_many_are_kept_and_the_one_that_rested_longest_goes() {
        let mut kept = Kept::default();
        let program = Arc::new(compile(Place::Data, "token").unwrap());
        let key = |n: usize| (Place::Data, format!("{n:0>4000}"));
        for n in 0..400 {
            kept.keep(key(n), &program);
            assert!(kept.find(&key(0)).is_some(), "what is used stays");
            assert!(kept.size <= MAX_KEPT);
        }
        assert_eq!(kept.size, kept.programs.keys().map(|(_, text)| text.len()).sum::<usize>());
        assert!(kept.find(&key(1)).is_none() && kept.find(&key(399)).is_some());
    }
}
