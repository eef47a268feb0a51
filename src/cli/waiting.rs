//! A line on the terminal that shows how long the command still waits.

use std::{
    io::{IsTerminal as _, Write as _},
    time::Duration,
};

use chrono::TimeDelta;
use tokio::time::{Instant, interval};

use super::screen::words;

/// Nothing is shown of what takes no longer.
const QUICK: Duration = Duration::from_millis(400);

/// Waits for something, and counts down to the limit meanwhile if standard error is a terminal.
pub(super) async fn shown<T>(what: &str, limit: Duration, wait: impl Future<Output = T>) -> T {
    if !std::io::stderr().is_terminal() {
        return wait.await;
    }
    let begun = Instant::now();
    let mut wait = std::pin::pin!(wait);
    if let Ok(done) = tokio::time::timeout(QUICK, &mut wait).await {
        return done;
    }
    let mut second = interval(Duration::from_secs(1));
    let done = loop {
        tokio::select! {
            done = &mut wait => break done,
            _ = second.tick() => {
                let left = limit.saturating_sub(begun.elapsed());
                let left = words(TimeDelta::from_std(left).unwrap_or(TimeDelta::MAX));
                let _ = write!(std::io::stderr(), "\r\u{1b}[K{what} ({left} left)");
            }
        }
    };
    let _ = write!(std::io::stderr(), "\r\u{1b}[K");
    done
}
