//! CEL, as the spec's expressions are written in it: compiled once, and run with limits in cost, memory and time.
//!
//! An expression is a stranger's, and what it works on is a credential: neither may bring the controller down, and no
//! message quotes what was met, only types and keys.

mod cost;
mod error_message;
mod functions;
mod program_cache;
mod value;

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
    thread,
};

use kube::core::cel::{KubeCelExt as _, cel::Context};

#[cfg(test)]
pub(super) use self::program_cache::{MAX_BRACKETS, MAX_TEXT};
use self::{cost::Budget, program_cache::Compiled};
pub(super) use self::{
    cost::MAX_OUTPUT,
    error_message::type_name,
    program_cache::are_compiled,
    value::{NoJson, Value, Wiped, json, json_text, map, scalar, text},
};
use super::Failure;
use crate::{
    api::{Invalid, reason::Reason},
    fetch::fair_semaphore::{FairPermit, FairSemaphore},
};

/// Enough for the deepest nesting that the length of the text allows. Untouched pages of it cost nothing.
const STACK: usize = 256 << 20;

/// What the expressions that are evaluated together give, in bytes of memory: more than a Secret can hold.
const MAX_RESULTS: usize = 2 * MAX_OUTPUT;

/// Where an expression stands, and so what it may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Place {
    /// `target.data`.
    Data,
    /// The request of the source `http`.
    Request,
    /// The result of the source `http`.
    Result,
}

impl Place {
    fn variables(self) -> &'static [&'static str] {
        match self {
            Self::Data => &["token", "values", "expiresAt", "metadata"],
            Self::Request => &["secrets"],
            Self::Result => &["response", "now"],
        }
    }

    /// What it means that an expression does not work on the values.
    fn reason(self) -> Reason {
        match self {
            // They come from the spec and from Secrets: nothing changes until someone edits those.
            Self::Request => Reason::InvalidSpec,
            Self::Data | Self::Result => Reason::InvalidResponse,
        }
    }
}

/// Runs what compiles and evaluates expressions. Both recurse as deep as an expression is nested, and a worker's stack
/// would overflow, which ends the process; and a panic of theirs must be no more than this expression's failure.
fn isolated<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("expression".to_owned()).stack_size(STACK);
        thread.spawn_scoped(scope, work).ok()?.join().ok()
    })
}

/// Whether these expressions, each with its field, compile and use only what there is.
///
/// # Errors
/// The first that does not, at its field.
pub(super) fn check(namespace: &str, place: Place, expressions: &[(String, &str)]) -> Result<(), Invalid> {
    program_cache::compiled(namespace, place, expressions).map(drop)
}

/// Expressions that are compiled or evaluated at the same time. They take CPU time and memory, so there are no more than
/// CPUs, and of one namespace fewer than that.
static COMPUTING: LazyLock<FairSemaphore> = LazyLock::new(|| {
    let all = thread::available_parallelism().map_or(2, |cpus| cpus.get().clamp(2, 4));
    FairSemaphore::new(all, all.div_ceil(2))
});

/// Waits until expressions of this namespace may be compiled or evaluated.
pub(super) async fn computing(namespace: &str) -> FairPermit {
    COMPUTING.acquire(namespace, 1).await
}

/// How many wait for that.
#[must_use]
pub fn waiting() -> usize {
    COMPUTING.waiting()
}

/// Does what may compute for a while on a thread where it holds up nobody, and in its turn. `None` if it panics.
pub async fn apart<T: Send + 'static>(namespace: &str, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let permit = computing(namespace).await;
    let work = move || {
        // Held to its end, even if nobody waits for it any more.
        let _permit = permit;
        work()
    };
    tokio::task::spawn_blocking(work).await.ok()
}

/// The variables of a place, with their values.
pub(super) struct Scope {
    namespace: String,
    place: Place,
    variables: BTreeMap<&'static str, Wiped>,
    /// What else there is to say of a variable, or a part of it, that is null.
    notes: BTreeMap<String, String>,
}

impl Scope {
    /// Without any value yet.
    pub(super) fn new(namespace: &str, place: Place) -> Self {
        Self { namespace: namespace.to_owned(), place, variables: BTreeMap::new(), notes: BTreeMap::new() }
    }

    /// With a variable.
    pub(super) fn with(mut self, name: &'static str, value: Value) -> Self {
        self.variables.insert(name, Wiped(value));
        self
    }

    /// With a note on a path such as `response.json`, for messages about an expression that uses it.
    pub(super) fn noting(mut self, path: &str, note: String) -> Self {
        self.notes.insert(path.to_owned(), note);
        self
    }

    /// Evaluates expressions, each with its field, one after another. They share the limits.
    ///
    /// # Errors
    /// `InvalidSpec` for one that never works, or that does not work on what the spec itself names; `InvalidResponse`
    /// for one that does not work on what a server gave.
    pub(super) fn evaluate(&self, expressions: &[(String, &str)]) -> Result<Vec<Wiped>, Failure> {
        let compiled = program_cache::compiled(&self.namespace, self.place, expressions)
            .map_err(|invalid| Failure::new(Reason::InvalidSpec, invalid.to_string()))?;
        let all = isolated(|| {
            let budget = Arc::new(Budget::default());
            let mut context = Context::default().with_all();
            functions::bound(&mut context, &budget);
            for (name, value) in &self.variables {
                context.add_variable_from_value(*name, value.0.clone());
            }
            let mut left = MAX_RESULTS;
            let each = expressions.iter().zip(&compiled);
            each.map(|((field, _), compiled)| {
                let given = self.run(field, compiled, &context, &budget)?;
                left = left.checked_sub(value::size(&given.0)).ok_or_else(|| self.too_much(expressions))?;
                Ok(given)
            })
            .collect()
        });
        all.unwrap_or_else(|| {
            let fields = expressions.iter().map(|(field, _)| field.as_str()).collect::<Vec<_>>().join(", ");
            Err(Failure::new(self.place.reason(), format!("{fields}: cannot be evaluated")))
        })
    }

    fn too_much(&self, expressions: &[(String, &str)]) -> Failure {
        let fields = match expressions {
            [(first, _), .., (last, _)] => format!("{first} to {last}"),
            _ => expressions.iter().map(|(field, _)| field.as_str()).collect(),
        };
        let message = format!("{fields}: give more than {MAX_RESULTS} bytes together");
        Failure::new(Reason::ResponseTooLarge, message)
    }

    fn run(&self, field: &str, compiled: &Compiled, context: &Context<'_>, budget: &Budget) -> Result<Wiped, Failure> {
        let failed = |what: String| Failure::new(self.place.reason(), format!("{field}: {what}"));
        let paths = error_message::paths(compiled.program.expression());
        budget.begin(compiled.nodes);
        for path in &paths {
            if !path.charge(&self.variables, budget) {
                return Err(failed(cost::TOO_MUCH.to_owned()));
            }
        }
        if let Some(path) = error_message::only_path(compiled.program.expression(), &paths) {
            // CEL's implementation gives false for a member of what has no members.
            return path.walk(&self.variables).cloned().map(Wiped).map_err(|missing| failed(self.with_note(missing)));
        }
        let value = compiled.program.execute(context);
        value.map(Wiped).map_err(|error| failed(error_message::words(&error, &paths, self)))
    }

    fn with_note(&self, missing: error_message::Missing) -> String {
        match self.notes.get(&missing.at) {
            Some(note) => format!("{}: {note}", missing.words),
            None => missing.words,
        }
    }
}
