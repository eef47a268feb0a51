//! How things look: colours and countdowns on a terminal, plain text and plain times elsewhere.

use chrono::{DateTime, TimeDelta, Utc};
use clap::builder::styling::{self, AnsiColor};

use crate::{api::ExpiresAt, time::rfc3339};

/// Whether a person looks at it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    terminal: bool,
    colours: bool,
}

impl Style {
    /// For a stream that is a terminal or not; colours unless `NO_COLOR` is set.
    pub(super) fn for_terminal(terminal: bool) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { terminal, colours: terminal && !refused }
    }

    fn paint(self, colour: AnsiColor, text: &str) -> String {
        if !self.colours || text.is_empty() {
            return text.to_owned();
        }
        let style = styling::Style::new().fg_color(Some(colour.into()));
        format!("{style}{text}{style:#}")
    }

    pub(super) fn good(self, text: &str) -> String {
        self.paint(AnsiColor::Green, text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.paint(AnsiColor::Red, text)
    }

    pub(super) fn doubtful(self, text: &str) -> String {
        self.paint(AnsiColor::Yellow, text)
    }

    /// A moment: for people how far it is, for programs as it is stored.
    pub(super) fn moment(self, moment: Option<DateTime<Utc>>, now: DateTime<Utc>) -> String {
        match moment {
            None => "-".to_owned(),
            Some(moment) if !self.terminal => rfc3339(moment),
            Some(moment) if moment > now => format!("in {}", words(moment.signed_duration_since(now))),
            Some(moment) => format!("{} ago", words(now.signed_duration_since(moment))),
        }
    }

    /// When a value expires.
    pub(super) fn expiry(self, expiry: Option<ExpiresAt>, now: DateTime<Utc>) -> String {
        match expiry {
            Some(ExpiresAt::Never) => "never".to_owned(),
            expiry => self.moment(expiry.and_then(ExpiresAt::moment), now),
        }
    }
}

/// The two largest units of a length of time: `3d4h`, `12m31s`, `7s`.
pub(super) fn words(length: TimeDelta) -> String {
    let seconds = length.num_seconds().max(0);
    let units = [("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)];
    let first = units.iter().position(|(_, size)| seconds >= *size).unwrap_or(units.len() - 1);
    let (mut left, mut text) = (seconds, String::new());
    for (unit, size) in units.iter().skip(first).take(2) {
        let count = left / size;
        left %= size;
        if count > 0 || text.is_empty() {
            text.push_str(&format!("{count}{unit}"));
        }
    }
    text
}

/// Text in columns, each as wide as its widest cell. Colours do not count.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<(String, String)>>,
}

impl Table {
    pub(super) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|text| ((*text).to_owned(), (*text).to_owned())).collect()] }
    }

    /// Adds a row of cells: each its plain text, and how it is shown.
    pub(super) fn row(&mut self, cells: Vec<(String, String)>) {
        self.rows.push(cells);
    }

    pub(super) fn text(&self) -> String {
        let columns = self.rows.first().map_or(0, Vec::len);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|(plain, _)| plain.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
        let mut text = String::new();
        for row in &self.rows {
            for (column, (plain, shown)) in row.iter().enumerate() {
                text.push_str(shown);
                if column + 1 < columns {
                    let gap = widths.get(column).copied().unwrap_or_default() - plain.chars().count() + 3;
                    text.push_str(&" ".repeat(gap));
                }
            }
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::fixtures::{at, start};

    #[test]
    fn people_see_how_far_a_moment_is_and_programs_the_moment() {
        let (person, program) = (Style { terminal: true, colours: false }, Style::for_terminal(false));
        assert_eq!(person.moment(Some(at(751.0)), start()), "in 12m31s");
        assert_eq!(person.moment(Some(at(-7.0)), start()), "7s ago");
        assert_eq!(program.moment(Some(at(751.0)), start()), "2026-03-01T12:12:31Z");
        assert_eq!(program.moment(None, start()), "-");
        assert_eq!(person.expiry(Some(ExpiresAt::Never), start()), "never");
    }

    #[test]
    fn a_length_is_told_by_its_two_largest_units() {
        for (seconds, expected) in
            [(0, "0s"), (59, "59s"), (60, "1m"), (3599, "59m59s"), (3605, "1h"), (273_600, "3d4h"), (-5, "0s")]
        {
            assert_eq!(words(TimeDelta::seconds(seconds)), expected);
        }
    }

    #[test]
    fn columns_align_whatever_the_colours() {
        let mut table = Table::new(&["NAME", "READY"]);
        let style = Style { terminal: true, colours: true };
        table.row(vec![("a".into(), style.good("a")), ("True".into(), style.good("True"))]);
        table.row(vec![("longer".into(), "longer".into()), ("False".into(), "False".into())]);
        let plain = table.text().replace("\u{1b}[32m", "").replace("\u{1b}[0m", "");
        assert_eq!(plain, "NAME     READY\na        True\nlonger   False\n");
    }
}
