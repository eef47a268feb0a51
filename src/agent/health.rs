//! How each TokenCache fares: what `/healthz` says.

use std::{collections::BTreeMap, fmt::Write as _};

use chrono::{DateTime, Utc};
use tokio::sync::watch;

use crate::{api::ExpiresAt, client::Error};

/// How one TokenCache fares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// When the last value that was seen expires.
    pub expires_at: Option<ExpiresAt>,
    /// Why there is no newer value.
    pub reason: Option<String>,
    /// Whether the value is in all its files.
    pub is_written: bool,
    /// Why it is not.
    pub unwritten: Option<String>,
    /// Why nobody was told of it.
    pub untold: Option<String>,
}

/// What an error means to an agent, which needs more rights than one call does.
pub fn explain(error: &Error) -> String {
    match error {
        Error::Forbidden { .. } => format!("{error}; an agent needs the Role watch, which includes it"),
        _ => error.to_string(),
    }
}

/// All reports, by the TokenCache's name.
#[derive(Clone, Debug)]
pub struct Board(watch::Sender<BTreeMap<String, Report>>);

impl Board {
    /// A board on which nothing is known of these.
    pub fn new<'a>(names: impl Iterator<Item = &'a String>) -> Self {
        Self(watch::Sender::new(names.map(|name| (name.clone(), Report::default())).collect()))
    }

    /// Changes a report; whether it is another one now.
    pub fn report(&self, name: &str, change: impl FnOnce(&mut Report)) -> bool {
        self.0.send_if_modified(|reports| {
            let Some(report) = reports.get_mut(name) else { return false };
            let before = report.clone();
            change(report);
            *report != before
        })
    }

    /// Waits until all values are in their files.
    pub async fn all_written(&self) {
        // The sender lives in self, so waiting cannot fail.
        let _ = self.0.subscribe().wait_for(|reports| reports.values().all(|report| report.is_written)).await;
    }

    /// Whether all is well, and a line for each TokenCache.
    pub fn health(&self, now: DateTime<Utc>) -> (bool, String) {
        let (mut well, mut text) = (true, String::new());
        for (name, report) in &*self.0.borrow() {
            let (fine, line) = report.line(now);
            well &= fine;
            let _ = writeln!(text, "{name}: {line}");
        }
        (well, text)
    }
}

impl Report {
    fn line(&self, now: DateTime<Utc>) -> (bool, String) {
        let valid = self.expires_at.is_some_and(|end| !end.is_past(now));
        let mut line = match self.expires_at {
            None => "no value yet".to_owned(),
            Some(ExpiresAt::Never) => "valid, does not expire".to_owned(),
            Some(end) if valid => format!("valid until {end}"),
            Some(end) => format!("expired at {end}"),
        };
        for (what, why) in
            [("no newer value", &self.reason), ("not written", &self.unwritten), ("not told", &self.untold)]
        {
            if let Some(why) = why {
                let _ = write!(line, "; {what}: {why}");
            }
        }
        (valid && self.is_written && self.untold.is_none(), line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::parse_rfc3339;

    #[test]
    fn all_is_well_while_every_value_is_valid_and_written_and_told() {
        let at = |time: &str| parse_rfc3339(&format!("2026-03-01T{time}Z")).unwrap();
        let names = ["a".to_owned(), "b".to_owned()];
        let board = Board::new(names.iter());
        assert_eq!(board.health(at("12:00:00")), (false, "a: no value yet\nb: no value yet\n".into()));
        for (name, end) in [("a", ExpiresAt::At(at("13:00:00"))), ("b", ExpiresAt::Never)] {
            assert!(board.report(name, |report| report.expires_at = Some(end)));
            board.report(name, |report| report.is_written = true);
        }
        let well = "a: valid until 2026-03-01T13:00:00Z\nb: valid, does not expire\n";
        assert_eq!(board.health(at("12:00:00")), (true, well.into()));
        assert!(!board.health(at("13:00:00")).0);
        // A valid value is served although the newest attempt failed.
        assert!(board.report("a", |report| report.reason = Some("ServerError".into())));
        assert!(!board.report("a", |report| report.reason = Some("ServerError".into())));
        assert!(board.health(at("12:00:00")).0);
        board.report("b", |report| report.untold = Some("sh ended".into()));
        let (well, text) = board.health(at("12:00:00"));
        assert!(!well && text.contains("b: valid, does not expire; not told: sh ended"), "{text}");
    }
}
