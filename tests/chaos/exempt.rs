//! When an invariant of `tests/support/invariants` need not hold. All of the list; the numbers are those of `excuse.rs`:
//!
//! - What `Ready` says, and how many Secrets there are, while nobody can report or write: the API server or etcd is in
//!   trouble (2); no controller is at work (4), where one whose watches are silent counts as not at work; the machine is
//!   busy with something else (6).
//! - `Ready=False` with a value, and a second Secret: also while the Lease of this very TokenCache is held by a process that
//!   was dead, frozen or cut off while it held it (3). That process had written, and had not yet reported or tidied up.
//! - A void refresh token is sent once more where the answer to the request that voided it was lost: the process that had
//!   sent it was dead, frozen or cut off before it gave the Lease back, or the API server or etcd, the door of the token
//!   server, or the machine was in trouble meanwhile.
//!
//! `Ready=True` without a value is not excused by who holds the Lease: any replica reports an expiry. How often status is
//! written, and how often the token server is asked, is never excused.

use super::{
    book::{Book, Page},
    excuse::Excuses,
    weather::{Scope, Weather},
    world::{TIMEOUT, World},
};
use crate::support::{Invariant, spans::Span};

/// A Lease is seen so many seconds later than it is taken, and earlier than it is given back.
const SEEN_LATE: f64 = 1.0;

/// All that is excused in a run until `end`.
pub fn exemptions(world: &World, book: &Book, excuses: &Excuses, end: f64) -> Vec<(Invariant, String, Span)> {
    let weather = &world.weather;
    let unix = |span: Span| Span::new(weather.unix(span.from), weather.unix(span.to));
    let nobody = excuses.nobody_reports();
    let mut exempt = Vec::new();
    for name in &world.names {
        let page = book.get(name).cloned().unwrap_or_default();
        let held: Vec<Span> = excuses.interrupted(&page, end);
        let mut add = |invariant: Invariant, spans: &[Span]| {
            exempt.extend(spans.iter().map(|span| (invariant, name.clone(), unix(*span))));
        };
        for invariant in [Invariant::ReadyWithoutValue, Invariant::NotReadyWithValue, Invariant::OneSecret] {
            add(invariant, &nobody);
        }
        for invariant in [Invariant::NotReadyWithValue, Invariant::OneSecret] {
            add(invariant, &held);
        }
        let resent = world.server.resent(name).into_iter();
        let resent = resent.map(|(voided, sent)| Span::new(weather.at(voided), weather.at(sent)));
        let explained: Vec<Span> = resent.filter(|span| lost(weather, excuses, &page, *span, end)).collect();
        add(
            Invariant::VoidRefreshToken,
            &explained.iter().map(|it| Span::new(it.to - 0.1, it.to + 0.1)).collect::<Vec<_>>(),
        );
    }
    exempt
}

/// Whether the answer was lost to the request that voided a refresh token at the beginning of this span; at its end, the
/// token was sent once more.
fn lost(weather: &Weather, excuses: &Excuses, page: &Page, span: Span, end: f64) -> bool {
    let held = page.holds(end).into_iter().map(|(_, hold)| Span::new(hold.from - SEEN_LATE, hold.to + SEEN_LATE));
    let run: Vec<Span> = held.filter(|hold| hold.has(span.from)).collect();
    let hampered = excuses.hampered_holds(page, end);
    let interrupted =
        hampered.iter().any(|hampered| hampered.to >= span.from && run.iter().any(|run| run.meets(*hampered)));
    let answered = Span::new(span.from, span.from + TIMEOUT.as_secs_f64());
    let server = weather.spans(|scope| *scope == Scope::Server).into_iter().any(|ill| ill.meets(answered));
    let meanwhile = |choice: &dyn Fn(&Scope) -> bool| weather.spans(choice).into_iter().any(|it| it.meets(span));
    interrupted || server || meanwhile(&|scope| matches!(scope, Scope::Plane | Scope::Machine))
}
