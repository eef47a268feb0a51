//! The results, as they go into `docs/contributing/performance-diary.md`.

use std::{fmt::Write as _, process::Command};

use crate::process::machine;

/// The rows.
#[derive(Default)]
pub struct Table(Vec<Row>);

struct Row {
    what: String,
    reach: String,
    measured: String,
    floor: String,
    met: Option<bool>,
}

impl Table {
    /// Adds a row with a reach, and whether it is met.
    pub fn row(&mut self, what: &str, reach: &str, measured: String, floor: String, met: bool) {
        self.add(Row { what: what.to_owned(), reach: reach.to_owned(), measured, floor, met: Some(met) });
    }

    /// Adds a row that only tells.
    pub fn note(&mut self, what: &str, measured: String) {
        self.add(Row { what: what.to_owned(), reach: String::new(), measured, floor: String::new(), met: None });
    }

    fn add(&mut self, row: Row) {
        eprintln!("bench: {}: {} (floor: {}; reach: {})", row.what, row.measured, row.floor, row.reach);
        self.0.push(row);
    }

    /// Whether every reach is met.
    pub fn all_met(&self) -> bool {
        self.0.iter().all(|row| row.met != Some(false))
    }

    /// The table, and where it was made.
    pub fn markdown(&self) -> String {
        let mut text = format!("{}; commit {}.\n\n", machine(), commit());
        text += "| what | reach | measured | floor beside it | met |\n| --- | --- | --- | --- | --- |\n";
        for Row { what, reach, measured, floor, met } in &self.0 {
            let met = met.map_or("", |met| if met { "yes" } else { "no" });
            let _ = writeln!(text, "| {what} | {reach} | {measured} | {floor} | {met} |");
        }
        text
    }
}

fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// The middle one.
pub fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The number below which this share of all lies.
pub fn percentile(mut numbers: Vec<f64>, share: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let at = (numbers.len() as f64 * share) as usize;
    numbers.get(at.min(numbers.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}

/// All of them, shortly.
pub fn list(numbers: &[f64]) -> String {
    numbers.iter().map(|number| format!("{number:.2}")).collect::<Vec<_>>().join(", ")
}
